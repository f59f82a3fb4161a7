"""MNN on the CPU, float32 ("high" precision)."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import numpy as np

from smartmem.bench.peers.base import Array, Facts, Job, Peer, imported, narrowed, output_names, telling_line, tool
from smartmem.errors import RuntimeFailure


class Mnn(Peer):
    """`convert` is mnnconvert, on the ONNX file."""

    name: ClassVar[str] = "mnn"
    package: ClassVar[str] = "MNN"
    module: ClassVar[str] = "MNN"
    converts: ClassVar[bool] = True

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(threads), "PIP_NO_INDEX": "1"}  # the converter tries to install packages

    def convert(self, job: Job) -> Facts:
        imported(self.module, self.package)
        command = [sys.executable, "-m", "MNN.tools.mnnconvert", "-f", "ONNX", "--modelFile", str(job.model.absolute())]
        command += ["--MNNModel", "model.mnn", "--bizCode", "bench", "--keepInputFormat=1"]
        if job.model.with_name(job.model.name + ".data").is_file():
            command += ["--saveExternalData=1"]
        text = tool(command, job.folder)
        if not (job.folder / "model.mnn").is_file():
            raise RuntimeFailure(f"mnnconvert wrote nothing: {telling_line(text)}")
        return Facts()

    def load(self, job: Job) -> Facts:
        mnn = imported(self.module, self.package)
        names = output_names(job)
        manager = mnn.nn.create_runtime_manager(
            ({"backend": "CPU", "precision": "high", "memory": "normal", "power": "high", "numThread": job.threads},)
        )
        self._expr, self._numpy = mnn.expr, mnn.numpy
        self._module = mnn.nn.load_module_from_file(
            str(job.folder / "model.mnn"), list(job.inputs), names, runtime_manager=manager, shape_mutable=False
        )
        self._names = names
        self._inputs = [self._variable(narrowed(array)) for array in job.inputs.values()]
        return Facts()

    def run(self) -> dict[str, Array]:
        outputs = self._module.forward(self._inputs)
        plain = [self._expr.convert(each, self._expr.NCHW) for each in outputs]
        return {name: np.array(each.read(), copy=True) for name, each in zip(self._names, plain, strict=True)}

    def _variable(self, array: Array) -> Any:
        dtype = self._expr.int if array.dtype == np.int32 else self._expr.float
        variable = self._expr.placeholder(list(array.shape), self._expr.NCHW, dtype)
        variable.write(np.ascontiguousarray(array))
        return variable
