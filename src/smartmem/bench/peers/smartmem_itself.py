"""smartmem at one level."""

from __future__ import annotations

from typing import ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer


class Smartmem(Peer):
    """`convert` compiles to a .smem file."""

    name: ClassVar[str] = "smartmem"
    package: ClassVar[str] = "smartmem"
    module: ClassVar[str] = "smartmem"
    converts: ClassVar[bool] = True

    def version(self) -> str:
        from smartmem.version import __version__

        return __version__

    def convert(self, job: Job) -> Facts:
        from smartmem import api

        shapes = {name: array.shape for name, array in job.inputs.items()}
        words = {"memory": "auto", "precision": "fp32", "layout": "greedy", **job.target}
        options = api.device_options(words["memory"], words["precision"], words["layout"])
        device = api.find_device(words["device"], options)
        file = job.folder / "model.smem"
        program = api.compile_to(job.model, file, shapes, job.level, job.march, device=device, options=options)
        totals = program.report.get("totals", {})
        return Facts(totals.get("operators"), totals.get("kernels"), totals.get("copies"))

    def load(self, job: Job) -> Facts:
        from smartmem import api

        self._model = api.load(job.folder / "model.smem", job.threads)
        self._inputs = dict(job.inputs)
        return Facts()

    def run(self) -> dict[str, Array]:
        return dict(zip(self._model.output_names, self._model.run(self._inputs), strict=True))

    def seconds(self) -> float:
        on_device = getattr(self._model, "bench", None)  # of the last call's inputs, which lie there
        return float(on_device(1)[0]) if on_device is not None else super().seconds()
