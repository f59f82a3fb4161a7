"""Operators that order elements: TopK.

Sorting by counting: the *rank* of an element is the number of elements that come before it, and output k is the element
of rank k. Both are reductions, so nothing is moved about. Worked example, the largest two of x (4)::

    y.rank[i] = sum_j (x[j] before x[i] ? 1 : 0)      before: greater, or equal with j < i
    y[k]      = sum_i (y.rank[i] == k ? x[i] : 0)     k < 2
"""

from __future__ import annotations

import numpy as np

from smartmem.graph.ir import Node
from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.definitions.build import Stages, apply, coordinates, is_float, present, read
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, alu, const, iota
from smartmem.kernel.stage import Stage

LONGEST = 512  # elements to order: counting takes the square of it, and beyond that sorting on the host is faster
FLOAT = np.dtype(np.float32)  # exact for ranks, and vectors of it compare with float32 elements


@defines("TopK")
def top_k(node: Node) -> list[Stage] | None:
    """The first k elements in order and their positions; equal elements in order of position, NaN as the greatest."""
    x, count = present(node, 0), node.attrs.get("k")
    if count is None or not x.dims or x.dtype.kind == "b":
        return None
    axis = int(node.attrs.get("axis", -1)) % len(x.dims)
    extent = x.dims[axis]
    if not 1 < extent <= LONGEST:
        return None
    inner = axis_digit(len(x.dims), extent)  # the reduce axis of every stage here

    def along(position: Lin) -> tuple[Lin, ...]:
        return tuple(position if a == axis else c for a, c in enumerate(coordinates(x.dims)))

    here = axis_digit(axis, extent)
    this, other = read(x, along(here)), read(x, along(inner))
    stages = Stages(node)
    first = _comes_before(other, inner, this, here, bool(node.attrs.get("largest", 1)))
    rank = stages.add("rank", x.dims, apply("where", first, const(1, FLOAT), const(0, FLOAT)), (extent,), "sum")
    wanted = apply("eq", read(rank, along(inner)), iota(axis_digit(axis, int(count)), FLOAT))
    if node.outputs[0] is not None:
        stages.output(apply("where", wanted, other, 0), (extent,), "sum")
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        place = apply("where", wanted, iota(inner, FLOAT), const(0, FLOAT))
        stages.output(place, (extent,), "sum", position=1)
    return stages.list


def _comes_before(a: Expr, at_a: Lin, b: Expr, at_b: Lin, largest: bool) -> Expr:
    """Whether element `a` at position `at_a` comes before `b` at `at_b`."""
    earlier = apply("lt", iota(at_a, FLOAT), iota(at_b, FLOAT))
    first, second = (a, b) if largest else (b, a)
    return apply("or", apply("not", _at_least(second, first)), apply("and", earlier, _at_least(first, second)))


def _at_least(a: Expr, b: Expr) -> Expr:
    """``a >= b`` in the order in which NaN is the greatest number."""
    greater = apply("ge", a, b)
    return apply("or", greater, alu("isnan", a, dtype=bool)) if is_float(a.dtype) else greater
