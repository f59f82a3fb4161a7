"""Operators whose values follow from the coordinate: Range, EyeLike, Trilu.

Worked example: ``Range(3, 9, 2)`` is ``y[i] = 2*i + 3``; ``Trilu(x, k)`` keeps ``x[i, j]`` where ``j - i - k >= 0``.
"""

from __future__ import annotations

from smartmem.graph.ir import Node
from smartmem.index.lin import Lin
from smartmem.index.map import Guard
from smartmem.kernel.definitions.build import (
    Stages,
    apply,
    coordinates,
    is_float,
    operand,
    pointwise,
    present,
    raw,
    read,
    scalar,
)
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import choose, const, iota
from smartmem.kernel.stage import Stage


@defines("Range")
def arange(node: Node) -> list[Stage] | None:
    """``start + i * delta``: a bare index expression where both are constant integers."""
    start, delta = present(node, 0), present(node, 2)
    (i,) = coordinates(node.output.dims)
    first, step = scalar(start), scalar(delta)
    if first is not None and step is not None and not is_float(start.dtype):
        return pointwise(node, iota(i * step + first, node.output.dtype))
    origin = read(start, (i,))
    return pointwise(node, apply("add", origin, apply("mul", iota(i, origin.dtype), read(delta, (i,)))))


@defines("EyeLike")
def eye_like(node: Node) -> list[Stage] | None:
    """1 on the k-th diagonal (j - i == k), else 0."""
    row, column = coordinates(node.output.dims)
    diagonal = Guard(column - row - int(node.attrs.get("k", 0)), 1)
    kind = node.output.dtype
    stages = Stages(node)
    return stages.output(choose((diagonal,), const(1, kind), const(0, kind)))


@defines("Trilu")
def trilu(node: Node) -> list[Stage] | None:
    """The triangle on and above (below, if ``upper=0``) the k-th diagonal, zero elsewhere; k must be constant."""
    x, diagonal = present(node, 0), operand(node, 1)
    k = node.attrs.get("k", 0) if diagonal is None else scalar(diagonal)
    if k is None:
        return None
    space = coordinates(x.dims)
    above = space[-1] - space[-2] - int(k)
    inside = above if node.attrs.get("upper", 1) else Lin() - above
    guard = Guard(inside, max(inside.max + 1, 1))
    return pointwise(node, choose((guard,), raw(x, space), const(0, x.dtype)))
