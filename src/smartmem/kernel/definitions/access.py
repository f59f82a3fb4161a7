"""How contractions, windows and layout operators are put together: views, guarded loads, reduction then epilogue.

Worked example: ``view(node, x, views.permute(x.dims, perm))`` is the stage ``y[i, j] = x[j, i]`` of a Transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin
from smartmem.index.map import Guard, IndexMap
from smartmem.kernel.definitions.build import Stages, cast, coordinates, operand, raw, wide
from smartmem.kernel.expr import Expr, alu, choose, const, load
from smartmem.kernel.stage import Stage


def parameter(node: Node, name: str, position: int) -> list[Any] | None:
    """A parameter that is an attribute or, in newer opsets, a constant input; None where absent or not constant."""
    if node.attrs.get(name) is not None:
        return list(np.asarray(node.attrs[name]).reshape(-1).tolist())
    value = operand(node, position)
    if value is None or value.data is None or value.data.size == 0:
        return None
    return list(value.data.reshape(-1).tolist())


def view(node: Node, source: Value, index: IndexMap, result: Value | None = None) -> Stage:
    """The layout stage `result[i] = source[index(i)]`, `result` being the first output unless given."""
    assert not index.guards, f"{node.describe()}: a guarded view needs a fill value"
    result = result if result is not None else node.output
    body = load(source.name, index.coords, source.dtype)
    return Stage(result.name, result.dims, result.dtype, body, origin=(node.name,))


def guarded(source: Value, index: tuple[Lin, ...], guards: tuple[Guard, ...], fill: Expr | float = 0) -> Expr:
    """`source` at `index` where all guards hold, else `fill` (a number of its type, or an expression)."""
    otherwise = const(fill, source.dtype) if isinstance(fill, (int, float)) else fill
    return choose(guards, load(source.name, index, source.dtype), otherwise)


def product(left: Expr, right: Expr) -> Expr:
    """The body of a contraction: ``left * right`` in the type for arithmetic."""
    kind = wide(left.dtype)
    return alu("mul", cast(left, kind), cast(right, kind))


def reduce_then(
    node: Node, combine: str, body: Expr, reduce: Sequence[int], finish: Callable[[Expr], Expr] | None = None
) -> list[Stage]:
    """The stages of ``finish(combine(body))``: the reduction, and what follows it pointwise as a stage of its own.

    Args:
        node: the operator; its first output is defined.
        combine: see `expr.COMBINE`.
        body: over the axes of the output, then `reduce`.
        reduce: extents of the reduce axes.
        finish: from the reduced value at an output coordinate to the result.
    """
    stages = Stages(node)
    if finish is None:
        return stages.output(body, reduce, combine)
    total = stages.add(combine, node.output.dims, body, reduce, combine)
    return stages.output(finish(raw(total, coordinates(total.dims))))
