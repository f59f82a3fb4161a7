"""Softmax, LogSoftmax and Hardmax: four primitive stages per row, so that fusion can see each of them.

Worked example: ``y = Softmax(x)`` along the last axis is ``y.max[i, 0] = max_j x[i, j]``, ``y.exp = exp(x - y.max)``,
``y.sum = sum_j y.exp`` and ``y = y.exp / y.sum``. Before opset 13 the row is everything from `axis` on (attribute
`flatten`), which is several reduce axes.
"""

from __future__ import annotations

from smartmem.graph.ir import Node
from smartmem.index.divide import divide
from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.definitions.build import (
    Stages,
    apply,
    coordinates,
    is_float,
    pointwise,
    present,
    read,
    reduced,
    rows,
)
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import const, iota
from smartmem.kernel.stage import Stage


def row_axes(node: Node) -> list[int]:
    """The axes that one row spans."""
    rank = len(present(node, 0).dims)
    if rank == 0:
        return []
    legacy = node.attrs.get("flatten", False)
    axis = node.attrs.get("axis", 1 if legacy else -1)
    axis = axis + rank if axis < 0 else axis
    return list(range(axis, rank)) if legacy else [axis]


@defines("Softmax", "LogSoftmax")
def softmax(node: Node) -> list[Stage] | None:
    """``exp(x - max) / sum(exp(x - max))``, or ``x - max - log(sum(exp(x - max)))``."""
    x = present(node, 0)
    if not is_float(x.dtype):
        return None
    where = rows(x.dims, row_axes(node))
    stages = Stages(node)
    greatest = reduced(stages, "max", "max", where, read(x, where.data))
    shifted = apply("sub", read(x, where.space), read(greatest, where.back))
    powers = stages.add("exp", x.dims, apply("exp", shifted))
    total = reduced(stages, "sum", "sum", where, read(powers, where.data))
    if node.op == "Softmax":
        return stages.output(apply("div", read(powers, where.space), read(total, where.back)))
    logarithm = stages.add("log", where.stat, apply("log", read(total, coordinates(where.stat))))
    return stages.output(apply("sub", shifted, read(logarithm, where.back)))


@defines("Hardmax")
def hardmax(node: Node) -> list[Stage] | None:
    """1 at the first maximum of each row, else 0: the row's axes are read as one flat axis for argmax."""
    x, over = present(node, 0), row_axes(node)
    where = rows(x.dims, over)
    if not where.reduce:
        return pointwise(node, const(1))
    stages = Stages(node)
    flat = axis_digit(len(where.stat), where.length)
    data, position = list(where.data), Lin()
    for axis in reversed(over):
        flat, data[axis] = divide(flat, x.dims[axis])
    for axis in over:
        position = position * x.dims[axis] + where.space[axis]
    best = stages.add("argmax", where.stat, read(x, data), [where.length], "argmax")
    hit = apply("eq", iota(position), read(best, where.back))
    return stages.output(apply("where", hit, const(1), const(0)))
