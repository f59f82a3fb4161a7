"""OpenVINO on the CPU, tuned for latency, in float32, or in bfloat16 (its default on CPUs with matrix units)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from smartmem.bench.peers.base import Array, Facts, Job, Peer, count_kinds, imported


class OpenVino(Peer):
    """Reads ONNX by itself."""

    name: ClassVar[str] = "openvino"
    package: ClassVar[str] = "openvino"
    module: ClassVar[str] = "openvino"

    def version(self) -> str:
        return str(imported(self.module, self.package).__version__).split("-")[0]

    def load(self, job: Job) -> Facts:
        ov = imported(self.module, self.package)
        core = ov.Core()
        network = core.read_model(str(job.model))
        network.reshape({name: list(array.shape) for name, array in job.inputs.items()})
        config = {
            "INFERENCE_NUM_THREADS": job.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if job.target.get("precision") == "bf16" else "f32",
        }
        compiled = core.compile_model(network, "CPU", config)
        self._request = compiled.create_infer_request()
        # Models read from ONNX keep the names of its outputs, among others.
        self._outputs = [(i, sorted(output.get_names())) for i, output in enumerate(network.outputs)]
        self._inputs = dict(job.inputs)
        kinds = []
        for operator in compiled.get_runtime_model().get_ordered_ops():
            info = operator.get_rt_info()
            kinds.append(str(info["layerType"].astype(str)) if "layerType" in info else operator.get_type_name())
        return count_kinds([kind for kind in kinds if kind not in ("Input", "Output", "Parameter", "Result", "Const")])

    def run(self) -> dict[str, Array]:
        self._request.infer(self._inputs)
        return {
            name: np.array(self._request.get_output_tensor(index).data)
            for index, names in self._outputs
            for name in names
        }
