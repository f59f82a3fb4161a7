"""smartmem at one level."""

from __future__ import annotations

from typing import ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer


class Smartmem(Peer):
    """`convert` compiles into the cache, `load` takes the model from there."""

    name: ClassVar[str] = "smartmem"
    package: ClassVar[str] = "smartmem"
    module: ClassVar[str] = "smartmem"
    converts: ClassVar[bool] = True

    def version(self) -> str:
        from smartmem.version import __version__

        return __version__

    def convert(self, job: Job) -> Facts:
        return self.load(job)

    def load(self, job: Job) -> Facts:
        from smartmem import api

        shapes = {name: array.shape for name, array in job.inputs.items()}
        self._model = api.compile(job.model, shapes, job.threads, job.level, job.march)
        self._inputs = dict(job.inputs)
        totals = self._model.program.report.get("totals", {})
        return Facts(totals.get("operators"), totals.get("kernels"), totals.get("copies"))

    def run(self) -> dict[str, Array]:
        return dict(zip(self._model.output_names, self._model.run(self._inputs), strict=True))
