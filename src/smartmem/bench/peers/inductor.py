"""TorchInductor: the zoo's torch module, exported and compiled ahead of time (AOTInductor)."""

from __future__ import annotations

from typing import ClassVar

from smartmem.bench.peers.base import Array, Facts, Job, Peer, imported, torch_module, torch_outputs


class Inductor(Peer):
    """`convert` writes a package that `load` runs: the code of torch.compile, without its compiler in memory."""

    name: ClassVar[str] = "inductor"
    package: ClassVar[str] = "torch"
    module: ClassVar[str] = "torch"
    converts: ClassVar[bool] = True

    def version(self) -> str:
        return str(imported("torch", "torch").__version__)

    def convert(self, job: Job) -> Facts:
        torch, inductor = imported("torch", "torch"), imported("torch._inductor", "torch")
        metrics = imported("torch._inductor.metrics", "torch")
        module, inputs = torch_module(job)
        metrics.reset()
        with torch.no_grad():
            exported = torch.export.export(module, inputs)
            inductor.aoti_compile_and_package(
                exported, package_path=str(job.folder / "model.pt2"), inductor_configs={"freezing": True}
            )
        # Its own loops; calls of library kernels are not counted by its interface.
        return Facts(kernels=int(metrics.generated_kernel_count) or None)

    def load(self, job: Job) -> Facts:
        torch, inductor = imported("torch", "torch"), imported("torch._inductor", "torch")
        torch.set_num_threads(job.threads)
        self._torch, self._job = torch, job
        self._call = inductor.aoti_load_package(str(job.folder / "model.pt2"))
        self._inputs = tuple(torch.from_numpy(array.copy()) for array in job.inputs.values())
        return Facts()

    def run(self) -> dict[str, Array]:
        with self._torch.no_grad():
            return torch_outputs(self._job, self._call(*self._inputs))
