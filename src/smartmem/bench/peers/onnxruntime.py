"""ONNX Runtime on the CPU, with all of its graph optimizations."""

from __future__ import annotations

from typing import Any, ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer, count_kinds, imported


class OnnxRuntime(Peer):
    """`convert` only writes the optimised graph, to count its operators; what runs is made from the model itself."""

    name: ClassVar[str] = "onnxruntime"
    package: ClassVar[str] = "onnxruntime"
    module: ClassVar[str] = "onnxruntime"
    converts: ClassVar[bool] = True

    def version(self) -> str:
        return str(imported(self.module, self.package).__version__)

    def convert(self, job: Job) -> Facts:
        import onnx

        target = job.folder / "optimized.onnx"
        self._open(job, str(target))
        graph = onnx.load(target, load_external_data=False).graph
        for file in (target, target.with_name("weights")):
            file.unlink(missing_ok=True)
        return count_kinds([node.op_type for node in graph.node])

    def load(self, job: Job) -> Facts:
        self._session = self._open(job)
        self._names = [info.name for info in self._session.get_outputs()]
        self._inputs = dict(job.inputs)
        return Facts()

    def run(self) -> dict[str, Array]:
        return dict(zip(self._names, self._session.run(self._names, self._inputs), strict=True))

    def _open(self, job: Job, optimized: str = "") -> Any:
        ort = imported(self.module, self.package)

        def session(fixed: dict[str, int]) -> Any:
            options = ort.SessionOptions()
            options.intra_op_num_threads = job.threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            for name, extent in fixed.items():
                options.add_free_dimension_override_by_name(name, extent)
            if optimized:
                options.optimized_model_filepath = optimized
                options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            return ort.InferenceSession(str(job.model), options, providers=["CPUExecutionProvider"])

        first = session({})
        # It optimizes better with static shapes, which we have as well.
        extents: dict[str, set[int]] = {}
        for info in first.get_inputs():
            for dim, extent in zip(info.shape, job.inputs[info.name].shape, strict=True):
                if isinstance(dim, str):
                    extents.setdefault(dim, set()).add(extent)
        # Some exporters give one name to dimensions that differ.
        fixed = {dim: values.pop() for dim, values in extents.items() if len(values) == 1}
        return session(fixed) if fixed else first
