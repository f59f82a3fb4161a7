"""What the definition modules share: reading operands with broadcasting, lifting numbers, and rows of a reduction.

Arithmetic is never done in float16 or bfloat16: `read` casts such a load to float32 and `Stages.output` casts the
result back, so those dtypes appear in loads, casts and bare copies only. Each rounding to half precision then happens
where ONNX has a tensor, and a target needs conversions but no half arithmetic. Inside of a model `passes.halves` leaves
the roundings out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.divide import divide
from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.expr import Alu, Const, DType, Expr, alu, const, load
from smartmem.kernel.stage import Stage

_HALF = ("float16", "bfloat16")


def wide(dtype: DType) -> DType:
    """The type in which arithmetic on `dtype` is done: float32 for the 16-bit floats, else `dtype`."""
    return np.dtype(np.float32) if dtype.name in _HALF else dtype


def is_float(dtype: DType) -> bool:
    """Whether `dtype` is a floating-point type that definitions cover."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_supported(dtype: DType) -> bool:
    """Whether definitions cover `dtype`: booleans, integers of 8 to 64 bits and floats of 16 to 64 bits."""
    return dtype.kind in "biu" or dtype.name in ("float16", "bfloat16", "float32", "float64")


def lowest(dtype: DType) -> float | int:
    """The neutral element of max."""
    return -math.inf if is_float(dtype) else int(np.iinfo(dtype).min)


def highest(dtype: DType) -> float | int:
    """The neutral element of min."""
    return math.inf if is_float(dtype) else int(np.iinfo(dtype).max)


def coordinates(shape: Sequence[int], first: int = 0) -> tuple[Lin, ...]:
    """The identity coordinate of `shape`, whose axis 0 is loop axis `first`."""
    return tuple(axis_digit(first + a, n) for a, n in enumerate(shape))


def broadcast(shape: Sequence[int], space: Sequence[Lin]) -> tuple[Lin, ...]:
    """Where a tensor of `shape` is read at coordinate `space`, by numpy's rules: aligned right, extent 1 at index 0."""
    lead = len(space) - len(shape)
    return tuple(Lin() if n == 1 else space[lead + a] for a, n in enumerate(shape))


def raw(value: Value, space: Sequence[Lin]) -> Expr:
    """The element of `value` at `space`, broadcast, in its own dtype. A constant of one element becomes a `Const`."""
    if value.data is not None and value.data.size == 1:
        return const(value.data.reshape(-1)[0].item(), value.dtype)
    return load(value.name, broadcast(value.dims, space), value.dtype)


def read(value: Value, space: Sequence[Lin], dtype: DType | None = None) -> Expr:
    """`raw`, in the type for arithmetic: `wide` of `dtype`, or of the value's own type."""
    return cast(raw(value, space), wide(dtype if dtype is not None else value.dtype))


def cast(expr: Expr, dtype: DType) -> Expr:
    """`expr` as `dtype`. Undoes a widening: float16 -> float32 -> float16 is the float16 expression itself."""
    if isinstance(expr, Alu) and expr.op == "cast" and expr.args[0].dtype == dtype and wide(dtype) == expr.dtype:
        return expr.args[0]
    if isinstance(expr, Const) and is_float(dtype):
        return const(expr.value, dtype)
    if dtype.kind == "b" and expr.dtype != dtype:
        return alu("ne", expr, const(0, expr.dtype))
    return alu("cast", expr, dtype=dtype)


def apply(op: str, *args: Expr | float) -> Expr:
    """``alu(op, *args)`` where plain numbers get the dtype of the first expression that is not a condition."""
    kinds = [a.dtype for a in (args[1:] if op == "where" else args) if not isinstance(a, (int, float))]
    lifted = [const(a, kinds[0]) if isinstance(a, (int, float)) else a for a in args]
    return alu(op, *lifted)


class Stages:
    """Collects the stages of one node; internal stages get the name of its first output and a suffix."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.name = next(value.name for value in node.outputs if value is not None)
        self.list: list[Stage] = []

    def add(
        self, suffix: str, shape: Sequence[int], body: Expr, reduce: Sequence[int] = (), combine: str = ""
    ) -> Value:
        """Adds the internal stage ``{first output}.{suffix}`` and returns its tensor. See `Stage` for the arguments."""
        return self._append(f"{self.name}.{suffix}", shape, body, reduce, combine)

    def output(self, body: Expr, reduce: Sequence[int] = (), combine: str = "", position: int = 0) -> list[Stage]:
        """Adds the stage of output `position`, cast to the output's dtype, and returns all stages so far.

        A reduction whose dtype is not the output's stays an internal stage of its own, followed by the cast.
        """
        value = self.node.outputs[position]
        assert value is not None
        if reduce and _result(body, combine) != value.dtype:
            body = raw(self.add(combine, value.dims, body, reduce, combine), coordinates(value.dims))
            reduce, combine = (), ""
        self._append(value.name, value.dims, body if reduce else cast(body, value.dtype), reduce, combine)
        return self.list

    def _append(self, name: str, shape: Sequence[int], body: Expr, reduce: Sequence[int], combine: str) -> Value:
        stage = Stage(name, tuple(shape), _result(body, combine), body, tuple(reduce), combine, (self.node.name,))
        self.list.append(stage)
        return Value(name, stage.shape, stage.dtype)


def _result(body: Expr, combine: str) -> DType:
    """The dtype of a stage: positions for argmax and argmin, else that of its body."""
    return np.dtype(np.int64) if combine.startswith("arg") else body.dtype


def pointwise(node: Node, body: Expr) -> list[Stage]:
    """The one stage of a node that computes each output element on its own."""
    return Stages(node).output(body)


def operands(node: Node, dtype: DType | None = None) -> list[Expr]:
    """All present inputs of a node, broadcast to its output, in the type for arithmetic (see `read`)."""
    space = coordinates(node.output.dims)
    return [read(value, space, dtype) for value in node.inputs if value is not None]


def operand(node: Node, position: int) -> Value | None:
    """Input `position`, or None where it is absent."""
    return node.inputs[position] if position < len(node.inputs) else None


def present(node: Node, position: int) -> Value:
    """Input `position` of a node that must have it."""
    value = operand(node, position)
    assert value is not None, f"{node.describe()} lacks input {position}"
    return value


@dataclass(frozen=True)
class Rows:
    """How a tensor is reduced: a row for each coordinate of `stat`.

    Attributes:
        shape: shape of the whole tensor.
        stat: shape of what is left after the reduction (one number per row).
        reduce: extents of the reduce axes; axes of extent 1 are not among them.
        data: coordinate of the whole tensor over the axes ``stat + reduce``.
        back: coordinate of the row over the axes of `shape`.
    """

    shape: tuple[int, ...]
    stat: tuple[int, ...]
    reduce: tuple[int, ...]
    data: tuple[Lin, ...]
    back: tuple[Lin, ...]

    @property
    def length(self) -> int:
        """Elements per row."""
        return math.prod(self.reduce)

    @property
    def space(self) -> tuple[Lin, ...]:
        """Identity coordinate of the whole tensor."""
        return coordinates(self.shape)


def rows(shape: Sequence[int], over: Sequence[int], keepdims: bool = True) -> Rows:
    """Rows along the axes `over` (non-negative) of a tensor of `shape`; `keepdims`: they stay, with extent 1."""
    kept = [a for a in range(len(shape)) if a not in over]
    stat = [shape[a] if a in kept else 1 for a in range(len(shape)) if keepdims or a in kept]
    reduce: list[int] = []
    data: list[Lin] = []
    for axis, extent in enumerate(shape):
        if axis in kept:
            data.append(axis_digit(axis if keepdims else kept.index(axis), extent))
        elif extent == 1:
            data.append(Lin())
        else:
            data.append(axis_digit(len(stat) + len(reduce), extent))
            reduce.append(extent)
    whole = coordinates(shape)
    back = [whole[a] if a in kept else Lin() for a in range(len(shape)) if keepdims or a in kept]
    return Rows(tuple(shape), tuple(stat), tuple(reduce), tuple(data), tuple(back))


def group_rows(shape: Sequence[int], groups: int) -> Rows:
    """Rows of a group normalisation: (N, C, spatial...) with C in `groups` groups; ``stat`` is (N, groups)."""
    batch, channels, *spatial = shape
    size = channels // groups
    stat = (batch, groups)
    extents = [size, *spatial]
    reduce = [n for n in extents if n != 1]
    loops = iter(range(2, 2 + len(reduce)))
    inner, *rest = [Lin() if n == 1 else axis_digit(next(loops), n) for n in extents]
    data = (axis_digit(0, batch), axis_digit(1, groups) * size + inner, *rest)
    back = (axis_digit(0, batch), divide(axis_digit(1, channels), size)[0])
    return Rows(tuple(shape), stat, tuple(reduce), data, back)


def reduced(stages: Stages, suffix: str, combine: str, where: Rows, body: Expr) -> Value:
    """Adds the stage that combines `body` (over ``where.stat + where.reduce``) along each row."""
    return stages.add(suffix, where.stat, body, where.reduce, combine if where.reduce else "")


def scalar(value: Value | None) -> Any:
    """The number in a constant of one element, or None where it is absent, not constant or larger."""
    if value is None or value.data is None or value.data.size != 1:
        return None
    return value.data.reshape(-1)[0].item()
