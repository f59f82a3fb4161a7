"""tinygrad on its CPU device, through its ONNX frontend and TinyJit."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from smartmem.bench.peers.base import Array, Facts, Job, Peer, imported


class Tinygrad(Peer):
    """The first two runs record what the later ones replay."""

    name: ClassVar[str] = "tinygrad"
    package: ClassVar[str] = "tinygrad"
    module: ClassVar[str] = "tinygrad"

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        return {"DEV": "CPU", "NUM_CPU_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}

    def load(self, job: Job) -> Facts:
        _find_clang(job.folder)
        tinygrad = imported("tinygrad", self.package)
        onnx = imported("tinygrad.nn.onnx", self.package)
        runner = onnx.OnnxRunner(str(job.model))
        self._inputs = {name: tinygrad.Tensor(np.array(array)).realize() for name, array in job.inputs.items()}

        def forward(**inputs: Any) -> dict[str, Any]:
            return {name: tensor.realize() for name, tensor in runner(inputs).items()}

        self._counters = imported("tinygrad.helpers", self.package).GlobalCounters
        self._call = tinygrad.TinyJit(forward)
        self.run()
        self.run()
        return Facts()

    def run(self) -> dict[str, Array]:
        self._counters.reset()
        return {name: tensor.numpy() for name, tensor in self._call(**self._inputs).items()}

    def count(self) -> Facts:
        return Facts(kernels=int(self._counters.kernel_count) or None)


def _find_clang(folder: Path) -> None:
    """tinygrad's kernels are compiled by clang: the system's, or the one inside of ziglang."""
    if shutil.which(os.environ.get("CC", "clang")):
        return
    imported("ziglang", "ziglang")
    script = folder / "clang"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang clang "$@"\n')
    script.chmod(0o755)
    os.environ["CC"] = str(script)
