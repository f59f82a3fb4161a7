"""What a peer is: one way to run a network, in four steps, each behind a method.

A peer lives in a process of its own (see `bench.worker`): `convert` in one that then ends, so that what converters
allocate is not counted as the runtime's memory, then `load` and `run` in another. Imports of the peer's packages are
inside of the methods: only what is measured is loaded, and the table of peers imports none.
"""

from __future__ import annotations

import importlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from smartmem.errors import RuntimeFailure

Array = np.ndarray[Any, Any]

LAYOUT_OPERATORS = frozenset(
    ("reshape", "transpose", "flatten", "squeeze", "unsqueeze", "slice", "split", "concat", "expand", "tile", "pad",
     "gather", "gatherelements", "gathernd", "depthtospace", "spacetodepth", "identity", "permute", "crop",
     "reorder", "reorderinput", "reorderoutput", "convert", "converttensor", "raster", "copy", "strided_slice",
     "view_copy", "permute_copy", "slice_copy", "cat", "clone", "broadcastto", "expanddims", "broadcast",
     "stridedslice", "variadicsplit", "concatenation")
)  # fmt: skip
"""Operators that only move data, in lower case and under the names that the peers give them."""


@dataclass(frozen=True)
class Job:
    """What to run, and how.

    Attributes:
        model: the ONNX file.
        inputs: arrays by name, always the same.
        threads: how many the peer may use.
        folder: of this peer alone: what `convert` writes, `load` reads.
        network: name in the zoo, for peers that start from the torch module; "" for a file of the user's.
        resolution: of that network; None: its default.
        level: of smartmem; march: of smartmem and of the floor.
        target: device, memory, precision and layout of smartmem, as `smartmem run` takes them; of these, peers on a GPU
            have the precision.
        database: of tuned schedules, for TVM.
    """

    model: Path
    inputs: Mapping[str, Array]
    threads: int
    folder: Path
    network: str = ""
    resolution: int | None = None
    level: str = "full"
    march: str = "native"
    target: Mapping[str, str] = field(default_factory=lambda: {"device": "cpu"})
    database: Path | None = None


@dataclass(frozen=True)
class Facts:
    """What a peer's interface tells of the network it made; None: it does not tell.

    Attributes:
        operators: of the optimised graph.
        kernels: that one run calls.
        layouts: of those, the ones that only move data.
    """

    operators: int | None = None
    kernels: int | None = None
    layouts: int | None = None

    def known(self) -> dict[str, int]:
        """What is told, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def count_kinds(kinds: Sequence[str]) -> Facts:
    """The facts of a list of operators, each a kernel: `["Conv", "Transpose"] -> 2 operators, 2 kernels, 1 layout`."""
    layouts = sum(kind.lower() in LAYOUT_OPERATORS for kind in kinds)
    return Facts(len(kinds), len(kinds), layouts)


class Peer:
    """One way to run a network; a peer is a subclass in a file of its own.

    Attributes:
        name: what `--against` calls it.
        package: what pip installs.
        module: what Python imports.
        converts: whether `convert` does something.
        answers: whether `run` gives the network's outputs.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    module: ClassVar[str]
    converts: ClassVar[bool] = False
    answers: ClassVar[bool] = True

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        """Variables that the process starts with."""
        return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}

    def version(self) -> str:
        """Of the package.

        Raises:
            RuntimeFailure: it is not installed.
        """
        imported(self.module, self.package)
        from importlib.metadata import version

        return version(self.package.split()[0].partition("[")[0])

    def convert(self, job: Job) -> Facts:
        """Write what `load` needs to `job.folder`."""
        return Facts()

    def load(self, job: Job) -> Facts:
        """Prepare to run."""
        raise NotImplementedError

    def run(self) -> dict[str, Array]:
        """Run once; the outputs by name."""
        raise NotImplementedError

    def seconds(self) -> float:
        """Of one run; on a GPU, with inputs that lie there and outputs left there where the runtime can do that."""
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start

    def count(self) -> Facts:
        """What can only be told after a run."""
        return Facts()


def imported(module: str, package: str) -> Any:
    """Import a module, or say what to install.

    Raises:
        RuntimeFailure: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeFailure(f"{module} cannot be imported ({error}); run: pip install {package}") from None


def tool(command: Sequence[str], folder: Path) -> str:
    """Run a converter in `folder`; what it prints.

    Raises:
        RuntimeFailure: it fails; the message is its last line that speaks of an error, or its last line.
    """
    done = subprocess.run(
        list(command), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        raise RuntimeFailure(f"{Path(command[0]).name} ended with status {done.returncode}: {telling_line(text)}")
    return text


def telling_line(text: str) -> str:
    """The line of a log that says what went wrong: the last that names what is missing, or an error, else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for words in (
        ("not support", "unsupported"),
        ("error", "fail", "exception", "assert", "unknown", "can't", "cannot"),
    ):
        if telling := [line for line in lines if any(word in line.lower() for word in words)]:
            return telling[-1]
    return (lines or [""])[-1]


def output_names(job: Job) -> list[str]:
    """Names of the ONNX file's outputs, in order."""
    import onnx

    return [output.name for output in onnx.load(job.model, load_external_data=False).graph.output]


def narrowed(array: Array) -> Array:
    """64-bit integers as 32-bit ones, for runtimes that have no others."""
    return array.astype(np.int32) if array.dtype == np.int64 else array


def torch_module(job: Job) -> tuple[Any, tuple[Any, ...]]:
    """The zoo's torch module and its inputs as tensors.

    Raises:
        RuntimeFailure: the network is not of the zoo.
    """
    torch = imported("torch", "torch")
    if not job.network:
        raise RuntimeFailure("starts from a torch module, and an ONNX file is none: networks of the zoo only")
    from smartmem.zoo.registry import find

    torch.set_num_threads(job.threads)
    network = find(job.network)
    module = network.build(job.resolution)
    return module, tuple(torch.from_numpy(np.array(job.inputs[each.name])) for each in network.inputs)


def torch_outputs(job: Job, results: Any) -> dict[str, Array]:
    """Outputs of a zoo module (a tensor or a sequence of them) by name."""
    from smartmem.zoo.registry import find

    tensors = results if isinstance(results, (tuple, list)) else (results,)
    names = find(job.network).outputs
    return {name: np.asarray(tensor) for name, tensor in zip(names, tensors, strict=True)}
