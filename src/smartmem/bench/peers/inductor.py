"""TorchInductor: torch.compile on the zoo's torch module."""

from __future__ import annotations

from typing import ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer, imported, torch_module, torch_outputs


class Inductor(Peer):
    """Compiles in the process that runs, so its peak memory has the compiler's in it."""

    name: ClassVar[str] = "inductor"
    package: ClassVar[str] = "torch"
    module: ClassVar[str] = "torch"

    def version(self) -> str:
        return str(imported("torch", "torch").__version__)

    def load(self, job: Job) -> Facts:
        torch = imported("torch", "torch")
        # Its cache of compiled code belongs to this run alone: compile times are those of a first time.
        torch._inductor.config.fx_graph_cache = False
        module, self._inputs = torch_module(job)
        torch._inductor.config.freezing = True
        self._torch, self._job = torch, job
        self._call = torch.compile(module, dynamic=False)
        torch._inductor.metrics.reset()
        return Facts()

    def run(self) -> dict[str, Array]:
        with self._torch.no_grad():
            return torch_outputs(self._job, self._call(*self._inputs))

    def count(self) -> Facts:
        """Its own loops; calls of library kernels are not counted by its interface."""
        return Facts(kernels=int(self._torch._inductor.metrics.generated_kernel_count) or None)
