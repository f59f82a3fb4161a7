"""Fake peers, on the real worker: right, wrong, crashing, hanging, missing. Run as a script, it is that worker."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from smartmem.bench import worker
from smartmem.bench.peers.base import Facts, Job, Peer, count_kinds
from smartmem.errors import RuntimeFailure


class Right(Peer):
    """y = 2 x."""

    name: ClassVar[str] = "right"
    package: ClassVar[str] = "right"
    factor: ClassVar[float] = 2.0

    def version(self) -> str:
        return "1.2"

    def load(self, job: Job) -> Facts:
        self._job = job
        return count_kinds(["Conv", "Transpose", "Reshape"])

    def run(self) -> dict[str, np.ndarray]:
        with open(os.environ["BENCH_LOG"], "a") as log:
            label = self.name + (f"-{self._job.level}" if self.name == "smartmem" else "")
            label += "".join(f"-{self._job.target[key]}" for key in ("memory", "precision") if key in self._job.target)
            print(label, file=log)
        return {"y": self._job.inputs["x"] * self.factor}


class Level(Right):
    """Stands for smartmem; its `convert` leaves a file that `load` wants."""

    name: ClassVar[str] = "smartmem"
    converts: ClassVar[bool] = True

    def convert(self, job: Job) -> Facts:
        (job.folder / "converted").write_text(job.level)
        return Facts(operators=7)

    def load(self, job: Job) -> Facts:
        assert (job.folder / "converted").read_text() == job.level
        if job.level == "fuse":
            raise RuntimeFailure("the compiler failed")
        super().load(job)
        return Facts(kernels=3, layouts=0)


class Waiting(Right):
    """Loads as soon as the number of its kind that BENCH_TOGETHER says (in all, if none) have begun to."""

    def load(self, job: Job) -> Facts:
        folder = Path(os.environ["BENCH_LOG"] + "-begun")
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()
        while len(list(folder.iterdir())) < int(os.environ.get("BENCH_TOGETHER", "0")):
            time.sleep(0.01)
        return super().load(job)


class Rough(Right):
    """On a GPU: off by one in a hundred, which is wrong in fp32 and right in fp16."""

    factor: ClassVar[float] = 2.02

    def seconds(self) -> float:
        self.run()
        return 3.0 if self._job.target["precision"] == "fp16" else 5.0


class Fast(Right):
    """Says how long a run took."""

    def seconds(self) -> float:
        self.run()
        return 2.0 if self._job.target["precision"] == "fp16" else 4.0


class Wrong(Right):
    """An answer that is too large by a half."""

    factor: ClassVar[float] = 3.0


class Nameless(Right):
    """An output under another name."""

    def run(self) -> dict[str, np.ndarray]:
        return {"z": super().run()["y"]}


class Crashing(Right):
    """Ends by a signal, after telling why on standard error."""

    def load(self, job: Job) -> Facts:
        print("fatal error: corrupted memory", file=sys.stderr, flush=True)
        os.abort()


class Hanging(Right):
    """Does not return."""

    def load(self, job: Job) -> Facts:
        time.sleep(600)
        return Facts()


class LateCrash(Right):
    """Crashes in its third run."""

    runs = 0

    def run(self) -> dict[str, np.ndarray]:
        self.runs += 1
        if self.runs == 3:
            os._exit(7)
        return super().run()


class Missing(Right):
    """Not installed."""

    def version(self) -> str:
        raise RuntimeFailure("missing cannot be imported; run: pip install missing")


CLASSES: dict[str, type[Peer]] = {
    "smartmem": Level,
    "onnxruntime": Right,
    "openvino": Wrong,
    "mnn": Crashing,
    "ncnn": Hanging,
    "litert": LateCrash,
    "tvm": Nameless,
    "iree": Missing,
    "executorch": Waiting,
    "inductor": Waiting,
    "torch-cuda": Rough,
    "inductor-cuda": Fast,
}


def peer_class(name: str) -> type[Peer]:
    """In place of `smartmem.bench.peers.peer_class`; peers without a fake are missing."""
    found = CLASSES.get(name, Missing)
    return type(found.__name__, (found,), {"name": name})


def command(python: str) -> list[str]:
    """In place of `smartmem.bench.runner.worker_command`."""
    return [python, str(Path(__file__))]


if __name__ == "__main__":
    worker.peer_class = peer_class
    worker.serve()
