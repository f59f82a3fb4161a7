"""ExecuTorch on the CPU: XNNPACK takes what it can, the portable kernels run the rest."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from smartmem.bench.peers.base import Array, Facts, Job, Peer, count_kinds, imported, torch_module, torch_outputs


class ExecuTorch(Peer):
    """`convert` exports the zoo's torch module to a .pte file."""

    name: ClassVar[str] = "executorch"
    package: ClassVar[str] = "executorch"
    module: ClassVar[str] = "executorch"
    converts: ClassVar[bool] = True

    def convert(self, job: Job) -> Facts:
        torch = imported("torch", "torch")
        exir = imported("executorch.exir", self.package)
        partition = imported("executorch.backends.xnnpack.partition.xnnpack_partitioner", self.package)
        module, inputs = torch_module(job)
        with torch.no_grad():
            exported = torch.export.export(module, inputs)
            program = exir.to_edge_transform_and_lower(exported, partitioner=[partition.XnnpackPartitioner()])
        kinds = [_kind(node) for node in program.exported_program().graph.nodes if node.op == "call_function"]
        kinds = [kind for kind in kinds if kind != "getitem"]
        with (job.folder / "model.pte").open("wb") as file:
            program.to_executorch().write_to_file(file)
        return count_kinds(kinds)

    def load(self, job: Job) -> Facts:
        runtime = imported("executorch.runtime", self.package).Runtime.get()
        imported("executorch.extension.pybindings.portable_lib", self.package)._unsafe_reset_threadpool(job.threads)
        torch = imported("torch", "torch")
        self._program = runtime.load_program(job.folder / "model.pte")
        self._method = self._program.load_method("forward")
        self._inputs = [torch.from_numpy(np.array(array)) for array in job.inputs.values()]
        self._job = job
        return Facts()

    def run(self) -> dict[str, Array]:
        results: Any = self._method.execute(self._inputs)
        return torch_outputs(self._job, list(results))


def _kind(node: Any) -> str:
    """`aten.permute_copy.default -> permute_copy`."""
    name = getattr(node.target, "__name__", str(node.target))
    return str(name).removeprefix("aten.").split(".")[0]
