"""Reductions: Reduce*, ArgMax, ArgMin, CumSum, CumProd.

Worked example: ``y = ReduceMean(x, axes=[1], keepdims=0)`` of x (2, 3) is ``y.sum[i] = sum_j x[i, j]`` and ``y[i] =
y.sum[i] * (1/3)``. A running sum is a guarded reduction: ``y[i] = sum_k (k <= i ? x[k] : 0)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from smartmem.graph.ir import Node
from smartmem.index.lin import axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.definitions.access import parameter
from smartmem.kernel.definitions.build import (
    Stages,
    apply,
    coordinates,
    is_float,
    operand,
    pointwise,
    present,
    read,
    reduced,
    rows,
)
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, choose, const
from smartmem.kernel.stage import Stage

REDUCE = {
    "ReduceSum": "sum", "ReduceMean": "sum", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceL1": "sum", "ReduceL2": "sum", "ReduceSumSquare": "sum", "ReduceLogSum": "sum",
}  # fmt: skip


def reduce_axes(node: Node) -> list[int] | None:
    """The reduced axes (all of them unless given), or None where they are not known at compile time."""
    rank = len(present(node, 0).dims)
    given: Sequence[int] | None = parameter(node, "axes", 1)
    if given is None:
        source = operand(node, 1)
        if source is not None and source.data is None:
            return None
        # an empty list in the attributes is "none at all": noop_with_empty_axes is resolved by the frontend
        given = range(rank)
    return sorted({axis % rank for axis in given}) if rank else []


@defines(*REDUCE)
def reduce(node: Node) -> list[Stage] | None:
    """One reduction, after a function of each element and before one of the result, as the operator's name says."""
    x, over = present(node, 0), reduce_axes(node)
    if over is None or 0 in x.dims:
        return None
    if node.op in ("ReduceL2", "ReduceLogSum") and not is_float(x.dtype):
        return None
    where = rows(x.dims, over, keepdims=bool(node.attrs.get("keepdims", 1)))
    element, combine = read(x, where.data), REDUCE[node.op]
    if x.dtype.kind == "b":
        combine = {"max": "or", "min": "and"}[combine]
    if node.op == "ReduceL1" and x.dtype.kind != "u":
        element = apply("abs", element)
    elif node.op in ("ReduceL2", "ReduceSumSquare"):
        element = apply("mul", element, element)
    finish = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}.get(node.op)
    mean = node.op == "ReduceMean" and where.length > 1
    stages = Stages(node)
    if finish is None and not mean:
        return stages.output(element, where.reduce, combine if where.reduce else "")
    total = read(reduced(stages, combine, combine, where, element), coordinates(where.stat))
    if finish is not None:
        return stages.output(apply(finish, total))
    return stages.output(average(total, where.length))


def average(total: Expr, count: int) -> Expr:
    """``total / count``: a product with the reciprocal for floats, a truncating division for integers."""
    return apply("mul", total, 1 / count) if is_float(total.dtype) else apply("div", total, count)


@defines("ReduceLogSumExp")
def log_sum_exp(node: Node) -> list[Stage] | None:
    """``log(sum(exp(x - m))) + m`` with m the maximum, or 0 where that is infinite: inf - inf would be NaN."""
    x, over = present(node, 0), reduce_axes(node)
    if over is None or 0 in x.dims or not is_float(x.dtype):
        return None
    where = rows(x.dims, over, keepdims=bool(node.attrs.get("keepdims", 1)))
    row = coordinates(where.stat)
    stages = Stages(node)
    greatest = read(reduced(stages, "max", "max", where, read(x, where.data)), row)
    infinite = apply("eq", apply("abs", greatest), math.inf)
    shift = stages.add("shift", where.stat, apply("where", infinite, 0.0, greatest))
    powers = stages.add("exp", x.dims, apply("exp", apply("sub", read(x, where.space), read(shift, where.back))))
    total = reduced(stages, "sum", "sum", where, read(powers, where.data))
    return stages.output(apply("add", apply("log", read(total, row)), read(shift, row)))


@defines("ArgMax", "ArgMin")
def arg_extremum(node: Node) -> list[Stage] | None:
    """The position of the first (or last) extremum along one axis."""
    x = present(node, 0)
    if 0 in x.dims or not x.dims:
        return None
    axis = node.attrs.get("axis", 0) % len(x.dims)
    where = rows(x.dims, [axis], keepdims=bool(node.attrs.get("keepdims", 1)))
    if not where.reduce:
        return pointwise(node, const(0, np.int64))
    combine = node.op.lower() + ("_last" if node.attrs.get("select_last_index", 0) else "")
    return Stages(node).output(read(x, where.data), where.reduce, combine)


@defines("CumSum", "CumProd")
def cumulative(node: Node) -> list[Stage] | None:
    """Running sum or product along a constant axis: a reduction over k, guarded by k <= i (k < i if exclusive)."""
    x, given = present(node, 0), parameter(node, "axis", 1)
    if given is None or not x.dims:
        return None
    shape = x.dims
    axis = int(given[0]) % len(shape)
    i, k = axis_digit(axis, shape[axis]), axis_digit(len(shape), shape[axis])
    behind = k - i if node.attrs.get("reverse", 0) else i - k
    if node.attrs.get("exclusive", 0):
        behind = behind - 1
    space = list(coordinates(shape))
    space[axis] = k
    element = read(x, space)
    neutral, combine = (0, "sum") if node.op == "CumSum" else (1, "prod")
    body = choose((Guard(behind, shape[axis]),), element, const(neutral, element.dtype))
    return Stages(node).output(body, (shape[axis],), combine)
