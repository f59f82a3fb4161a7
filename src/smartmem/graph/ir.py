"""The graph IR: an ONNX model after import, with static shapes and without protobuf.

In: what the frontend read. Out: what `kernel.definitions` turns into compute definitions.

A `Graph` is a list of `Node`s in execution order over `Value`s. A value is a constant when `data` is set. Its `shape`
is a tuple of ints, or None when the shape depends on data (the result of NonZero, say); nodes that touch such a value
run on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(eq=False)
class Value:
    """A tensor of the graph.

    Attributes:
        name: unique in the graph.
        shape: extents, or None when they depend on data.
        dtype: element type.
        data: the contents of a constant, else None.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: np.dtype[Any]
    data: np.ndarray[Any, Any] | None = None

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def dims(self) -> tuple[int, ...]:
        """The static shape; only for values whose shape is known."""
        assert self.shape is not None, f"{self.name} has a data-dependent shape"
        return self.shape

    def __repr__(self) -> str:
        shape = "?" if self.shape is None else "x".join(map(str, self.shape)) or "scalar"
        return f"%{self.name}:{self.dtype}[{shape}]{'=const' if self.is_constant else ''}"


@dataclass(eq=False)
class Node:
    """One operator: `outputs = op(inputs, attrs)`.

    Attributes:
        op: operator type, for example "MatMul".
        domain: "" for the ONNX domain (never "ai.onnx").
        inputs: None where an optional input is absent.
        outputs: None where an optional output is absent.
        attrs: plain Python values (int, float, str, lists, numpy arrays). Subgraphs stay serialized in `proto`.
        version: opset version of `domain` that gives the operator's meaning.
        proto: the serialized NodeProto, for operators that run on the host (inputs are named by `runtime.host`).
        baked: inputs of `proto` (by position) that the frontend turned into attrs; the host still feeds them.
    """

    op: str
    domain: str
    name: str
    inputs: list[Value | None]
    outputs: list[Value | None]
    attrs: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    proto: bytes = b""
    baked: dict[int, np.ndarray[Any, Any] | None] = field(default_factory=dict)

    @property
    def output(self) -> Value:
        """The first output."""
        assert self.outputs[0] is not None
        return self.outputs[0]

    def describe(self) -> str:
        """`Transpose "/blocks.0/Transpose"`: how messages name a node."""
        return f'{self.op} "{self.name}"'

    def __repr__(self) -> str:
        return f"{self.outputs} = {self.op}({self.inputs}, {self.attrs})"


@dataclass
class Operator:
    """An operator as the model file has it, for the report.

    Attributes:
        name: that of its node.
        op: operator type, before normalisation.
        shape: of its first output, None if it depends on data.
        removed: why the frontend left no node of it, "" if there is one.
    """

    name: str
    op: str
    shape: tuple[int, ...] | None
    removed: str = ""


@dataclass(eq=False)
class Graph:
    """A model: `nodes` in execution order compute `outputs` from `inputs` (and constants).

    `operators` lists what the file had (function bodies inlined, Constant nodes left out), also what was folded away.
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    operators: list[Operator] = field(default_factory=list)

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, constants and node outputs, in order of first appearance."""
        seen: set[int] = set()
        operands = (v for node in self.nodes for v in (*node.inputs, *node.outputs) if v is not None)
        for value in (*self.inputs, *operands, *self.outputs):
            if id(value) not in seen:
                seen.add(id(value))
                yield value
