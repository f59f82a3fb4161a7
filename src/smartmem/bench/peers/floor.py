"""The floor: as many multiply-adds as the network has, and nothing else.

It takes its turns like every runner. So its time has the clock, and suffers from what else runs on the machine, as
theirs do, which a peak that was measured once does not.
"""

from __future__ import annotations

from typing import ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer

COUNT = "multiply-adds.txt"


class Floor(Peer):
    """`convert` counts the multiply-adds of the ONNX graph, `load` compiles a loop of so many."""

    name: ClassVar[str] = "floor"
    package: ClassVar[str] = "smartmem"
    module: ClassVar[str] = "smartmem"
    converts: ClassVar[bool] = True
    answers: ClassVar[bool] = False

    def version(self) -> str:
        return ""

    def convert(self, job: Job) -> Facts:
        from smartmem.zoo.count import macs

        shapes = {name: array.shape for name, array in job.inputs.items()}
        (job.folder / COUNT).write_text(str(macs(job.model, shapes)))
        return Facts()

    def load(self, job: Job) -> Facts:
        from smartmem.api import link
        from smartmem.profile.machine import multiply_adds
        from smartmem.runtime.cache import open_cache
        from smartmem.runtime.cc import find_compiler
        from smartmem.runtime.model import Model

        program = multiply_adds(int((job.folder / COUNT).read_text()), job.threads, job.march)
        self._model = Model(program, link(program, find_compiler(), open_cache()), job.threads, features=[])
        return Facts()

    def run(self) -> dict[str, Array]:
        self._model.run({})
        return {}
