"""Axis roles of a contraction, and alignment: a stage rewritten so that its row axes come first.

For ``out = sum over k of A * B`` a space axis that only A has is a *row*, one that only B has is a *column*, one that
both have is a *batch* axis (the groups of a convolution, the heads of attention). Digits count on their own: with
groups the output-channel axis is a batch digit (group) and a column digit (channel in the group), so axes are refined
first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import IndexMap
from smartmem.index.refine import refine
from smartmem.kernel.expr import Alu, Expr, index_values, loads, with_operands
from smartmem.kernel.stage import Stage, reindex, tensors_read

PRODUCTS = ("mul", "dot4")
MIN_COLUMNS = 4  # with fewer columns per batch entry a contraction is a window reduction (depthwise convolution)
FEW_COLUMNS = 2  # without batch axes fewer columns still beat one dot product after the other


@dataclass(frozen=True)
class Roles:
    """Space axes of a contraction by role."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def factors(stage: Stage) -> tuple[Expr, Expr] | None:
    """The two operands of a contraction (each a load, perhaps guarded or computed), or None for other stages.

    These are floats, or each four bytes in the place of one (`multiplies_bytes`).
    """
    body = stage.body
    if stage.combine != "sum" or not isinstance(body, Alu) or body.op not in PRODUCTS or body.dtype != np.float32:
        return None
    a, b = body.args
    return (a, b) if loads(a) and loads(b) else None


def multiplies_bytes(stage: Stage) -> bool:
    """Whether a contraction is one of bytes (`passes.byte_products`)."""
    return isinstance(stage.body, Alu) and stage.body.op == "dot4"


def with_factors(stage: Stage, a: Expr, b: Expr) -> Stage:
    """The contraction with other operands."""
    assert isinstance(stage.body, Alu)
    return replace(stage, body=with_operands(stage.body, (a, b)))


def expr_axes(expr: Expr) -> set[int]:
    """Loop axes that an expression depends on."""
    return {axis for value in index_values(expr) for axis in axes_of(value)}


@dataclass(frozen=True)
class Aligned:
    """A stage over row axes first, then column axes; `store` gives the coordinates of its tensor."""

    stage: Stage
    rows: int
    store: IndexMap


def align_contraction(stage: Stage, constants: set[str]) -> Aligned | None:
    """The contraction with batch and row axes first, columns last, A before B; None if it is none worth the name."""
    operands = factors(stage)
    if operands is None:
        return None
    a, b = operands
    if _is_constant(a, constants) and not _is_constant(b, constants):
        a, b = b, a
    refined = _refined(with_factors(stage, a, b))
    a, b = refined.stage.body.args  # type: ignore[union-attr]
    space = len(refined.stage.shape)
    in_a, in_b = expr_axes(a), expr_axes(b)
    batch = tuple(k for k in range(space) if k in in_a and k in in_b)
    rows = tuple(k for k in range(space) if k not in in_b)
    columns = tuple(k for k in range(space) if k in in_b and k not in in_a)
    fewest = MIN_COLUMNS if math.prod(refined.stage.shape[k] for k in batch) > 1 else FEW_COLUMNS
    if not in_a - set(range(space)) & in_b or math.prod(refined.stage.shape[k] for k in columns) < fewest:
        return None
    return permuted(refined, (*batch, *rows, *columns), len(batch) + len(rows))


def weighted_extents(stage: Stage, constants: set[str]) -> tuple[int, int, int, int] | None:
    """Extents (batch, m, n, k) of a contraction with constant weights; None for everything else."""
    aligned = align_contraction(stage, constants)
    if aligned is None:
        return None
    operands = factors(aligned.stage)
    assert operands is not None
    if not _is_constant(operands[1], constants):
        return None
    shape, in_b = aligned.stage.shape, expr_axes(operands[1])
    batch = math.prod(shape[a] for a in range(aligned.rows) if a in in_b)
    return batch, math.prod(shape[: aligned.rows]) // batch, math.prod(shape[aligned.rows :]), math.prod(stage.reduce)


def _is_constant(expr: Expr, constants: set[str]) -> bool:
    return all(name in constants for name in tensors_read(expr))


def _refined(stage: Stage) -> Aligned:
    """Cuts the space axes where the operands' coordinates ask for it."""
    space = len(stage.shape)
    values = index_values(stage.body)
    refined = refine(stage.shape, [_space_only(v, space) for v in values])
    shift = len(refined.extents)
    axes = (*refined.axes, *(axis_digit(shift + k, n) for k, n in enumerate(stage.reduce)))
    body = reindex(stage.body, axes, stage.domain)
    return Aligned(replace(stage, shape=refined.extents, body=body), 0, IndexMap(refined.extents, refined.axes))


def _space_only(value: Lin, space: int) -> Lin:
    """The terms of a Lin that whole digits of space axes contribute (marks ask for no cuts)."""
    return Lin(0, tuple((s, d) for s, d in value.terms if isinstance(d.axis, int) and d.axis < space))


def permuted(aligned: Aligned, order: tuple[int, ...], rows: int) -> Aligned:
    """The same stage with its space axes in another order."""
    stage = aligned.stage
    shape = tuple(stage.shape[k] for k in order)
    axes: list[Lin] = [Lin()] * len(order)
    for position, k in enumerate(order):
        axes[k] = axis_digit(position, shape[position])
    full = (*axes, *(axis_digit(len(order) + k, n) for k, n in enumerate(stage.reduce)))
    body = reindex(stage.body, full, stage.domain)
    to_old = IndexMap(shape, tuple(axes))
    return Aligned(replace(stage, shape=shape, body=body), rows, to_old.then(aligned.store))


def align_pointwise(stage: Stage, row_values: tuple[Lin, ...]) -> Aligned:
    """A pointwise stage with the axes that `row_values` depend on first (its rows), the others last."""
    refined = refine(stage.shape, list(row_values))
    body = reindex(stage.body, refined.axes, stage.shape)
    start = Aligned(replace(stage, shape=refined.extents, body=body), 0, IndexMap(refined.extents, refined.axes))
    used = {axis for value in refined.lins for axis in axes_of(value)}
    rows = [k for k in range(len(refined.extents)) if k in used]
    columns = [k for k in range(len(refined.extents)) if k not in used]
    return permuted(start, (*rows, *columns), len(rows))


def is_contraction(stage: Stage, rows: int) -> bool:
    """Whether a stage of a row pipeline is a contraction: a product summed, with columns that only B has."""
    operands = factors(stage)
    if operands is None or len(stage.shape) == rows:
        return False
    columns = set(range(rows, len(stage.shape)))
    return not columns & expr_axes(operands[0])
