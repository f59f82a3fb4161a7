"""What the compiler hands to the runtime: a `Program`, plain data that can be written to a file and read back.

The pointers that kernels see are numbered *slots*. A native step calls one generated function with some of them; a host
step runs one ONNX operator in Python. Everything else (pool, arena, arrays of the caller) belongs to `runtime.model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: name, shape (None when it depends on data) and numpy dtype name."""

    name: str
    shape: tuple[int, ...] | None
    dtype: str


@dataclass(frozen=True)
class Slot:
    """One pointer of the program.

    Attributes:
        kind: "input" and "output" are the caller's arrays (row-major), "weight" is an entry of `Program.weights`,
            "arena" lies at `offset` in the activation arena, "host" is an array that only host steps touch (its shape
            may depend on data).
        name: tensor name; for inputs, outputs and weights the key.
        offset: bytes from the start of the arena.
        shape: of the tensor as the graph sees it; None when it depends on data. Arena tensors that host steps read or
            write are row-major.
        dtype: numpy dtype name.
    """

    kind: Literal["input", "output", "weight", "arena", "host"]
    name: str
    offset: int = 0
    shape: tuple[int, ...] | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class NativeStep:
    """A call ``symbol(args, begin, end, scratch)`` over [0, tasks), split among threads in chunks of `grain`."""

    symbol: str
    tasks: int
    grain: int
    args: tuple[int, ...]
    label: str


@dataclass(frozen=True)
class HostStep:
    """One ONNX node run by the onnx package's reference operators. Absent optional operands are slot -1.

    `attrs` holds what `host.run_node` needs besides the node: captured names and opsets of control flow.
    """

    label: str
    op: str
    proto: bytes
    opset: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    domain: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    """A compiled model before it is linked.

    Attributes:
        name: of the graph.
        level: optimization level that made it.
        march: instruction set it was made for, as the C compiler names it.
        inputs, outputs: in graph order.
        slots: every pointer, by slot number.
        steps: in execution order.
        arena_bytes: size of the activation arena (slots are 64-byte aligned in it).
        scratch_bytes: thread-private scratch memory that the kernels need, per thread.
        weights: constants as the kernels read them (already packed), by slot name.
        sources: generated C files (text by file name); each defines some of the step symbols.
        report: what `explain` prints; JSON-serializable (see report.explain).
    """

    name: str
    level: str
    march: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    slots: list[Slot]
    steps: list[NativeStep | HostStep]
    arena_bytes: int
    scratch_bytes: int
    weights: dict[str, np.ndarray[Any, Any]]
    sources: dict[str, str]
    report: dict[str, Any] = field(default_factory=dict)
