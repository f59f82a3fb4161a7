"""IREE: llvm-cpu for this machine, run by its local-task (or, with one thread, local-sync) device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np

from smartmem.bench.peers.base import Array, Facts, Job, Peer, imported, output_names, tool


class Iree(Peer):
    """`convert` imports the ONNX file and compiles it, both by IREE's own programs."""

    name: ClassVar[str] = "iree"
    package: ClassVar[str] = "iree-base-compiler[onnx] iree-base-runtime"
    module: ClassVar[str] = "iree.runtime"
    converts: ClassVar[bool] = True

    def convert(self, job: Job) -> Facts:
        imported("iree.compiler", "iree-base-compiler")
        programs = Path(sys.executable).parent
        tool(
            [str(programs / "iree-import-onnx"), str(job.model.absolute()), "-o", "model.mlir", "--opset-version=17",
             "--externalize-params", "--save-params-to=model.irpa", "--data-prop"],
            job.folder,
        )  # fmt: skip
        tool(
            [str(programs / "iree-compile"), "model.mlir", "-o", "model.vmfb", "--iree-hal-target-device=local",
             "--iree-hal-local-target-device-backends=llvm-cpu", "--iree-llvmcpu-target-cpu=host",
             "--iree-opt-level=O3", "--iree-scheduling-dump-statistics-format=json",
             "--iree-scheduling-dump-statistics-file=statistics.json"],
            job.folder,
        )  # fmt: skip
        return _dispatches(job.folder / "statistics.json")

    def load(self, job: Job) -> Facts:
        rt = imported(self.module, "iree-base-runtime")
        rt.flags.parse_flags(f"--task_topology_group_count={job.threads}")
        config = rt.Config("local-task" if job.threads > 1 else "local-sync")
        modules = []
        if (job.folder / "model.irpa").is_file():
            index = rt.ParameterIndex()
            index.load(str(job.folder / "model.irpa"))
            modules.append(rt.create_io_parameters_module(config.vm_instance, index.create_provider("model")))
        modules.append(rt.create_hal_module(config.vm_instance, config.device))
        compiled = rt.VmModule.mmap(config.vm_instance, str(job.folder / "model.vmfb"))
        modules.append(compiled)
        bound = rt.load_vm_modules(*modules, config=config)[-1]
        public = [name for name in compiled.function_names if not name.startswith("__") and "$" not in name]
        self._call = bound[public[0]]
        self._inputs = [rt.asdevicearray(config.device, np.array(array)) for array in job.inputs.values()]
        self._names = output_names(job)
        return Facts()

    def run(self) -> dict[str, Array]:
        results = self._call(*self._inputs)
        arrays = results if isinstance(results, (tuple, list)) else (results,)
        return {name: np.array(array.to_host()) for name, array in zip(self._names, arrays, strict=True)}


def _dispatches(path: Path) -> Facts:
    """Dispatches, each a kernel, as the compiler's statistics tell."""
    try:
        execution = json.loads(path.read_text())["stream-aggregate"]["execution"]
        return Facts(kernels=int(execution["dispatch-count"]), layouts=int(execution["copy-count"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Facts()
