"""TVM: Relax, its CPU pipeline, and tuned schedules where a MetaSchedule database is given."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from smartmem.bench.peers.base import Array, Facts, Job, Peer, count_kinds, imported, output_names


class Tvm(Peer):
    """`convert` imports the ONNX file and compiles it for this machine into a library."""

    name: ClassVar[str] = "tvm"
    package: ClassVar[str] = "apache-tvm"
    module: ClassVar[str] = "tvm"
    converts: ClassVar[bool] = True

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return {"TVM_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}

    def version(self) -> str:
        return str(imported(self.module, self.package).__version__)

    def convert(self, job: Job) -> Facts:
        import onnx

        tvm, relax = imported("tvm", self.package), imported("tvm.relax", self.package)
        frontend = imported("tvm.relax.frontend.onnx", self.package)
        shapes = {name: list(array.shape) for name, array in job.inputs.items()}
        module = frontend.from_onnx(onnx.load(job.model), shape_dict=shapes, keep_params_in_input=False)
        target = _target(tvm, job.threads)
        with target:
            module = relax.get_pipeline("zero")(module)
            if job.database is not None:
                module = relax.transform.MetaScheduleApplyDatabase(str(job.database))(module)
        kinds = _calls(module)
        with tvm.transform.PassContext(opt_level=3):
            tvm.compile(module, target).export_library(str(job.folder / "model.so"))
        return count_kinds(kinds)

    def load(self, job: Job) -> Facts:
        tvm, relax = imported("tvm", self.package), imported("tvm.relax", self.package)
        device = tvm.cpu()
        self._machine = relax.VirtualMachine(tvm.runtime.load_module(str(job.folder / "model.so")), device)
        self._inputs = [tvm.runtime.tensor(np.array(array), device) for array in job.inputs.values()]
        self._names = output_names(job)
        return Facts()

    def run(self) -> dict[str, Array]:
        results = self._machine["main"](*self._inputs)
        arrays = [results] if hasattr(results, "numpy") else list(results)
        return {name: array.numpy() for name, array in zip(self._names, arrays, strict=True)}


def _target(tvm: Any, threads: int) -> Any:
    """This machine's CPU, as LLVM names it."""
    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    return tvm.target.Target({"kind": "llvm", "mcpu": str(cpu), "num-cores": threads})


def _calls(module: Any) -> list[str]:
    """Names of the functions that main calls, without TVM's numbering."""
    kinds = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            operator = getattr(getattr(binding, "value", None), "op", None)
            if getattr(operator, "name", "").startswith("relax.call_tir"):
                kinds.append(binding.value.args[0].name_hint.rstrip("0123456789"))
    return kinds
