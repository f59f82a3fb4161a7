"""Operand A of a contraction, read in place: segments, runs and branches.

The reduction is a sequence of *segments*, in each of which A is contiguous along the innermost reduce axis (for a 3x3
convolution over a channels-last tensor 9 segments of C floats, for a matmul one of K). A table of row pointers per
segment replaces im2col; a pointer to zeros stands for padding; a Concat along the reduction is a choice of pointers.
An operand without such an axis gets a packing stage into scratch first (`pack_operand`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smartmem.index.divide import divide
from smartmem.index.lin import Digit, Lin, axes_of, axis_digit, lin, renumber
from smartmem.index.map import Guard
from smartmem.index.refine import refine
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import (
    Alu,
    Choose,
    Const,
    Expr,
    Load,
    const,
    is_zero,
    load,
    loads,
)
from smartmem.kernel.stage import Stage, reindex, tensors_read
from smartmem.layout.storage import Storage
from smartmem.schedule.flatten import B, Flat, K, M, N, digits, flat_address, flatten
from smartmem.schedule.roles import factors, multiplies_bytes, with_factors

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline

MAX_SEGMENTS = 256
UNROLLED = 4  # steps of k that a tile does at once: shorter segments are all rest
MIN_RUN = 8  # floats of A that must be contiguous for reading it in place, by a table of row pointers per segment


@dataclass(frozen=True)
class Branch:
    """One source of A: `tensor` at `address` where `guards` hold (all over the flat axes of the walk)."""

    guards: tuple[Guard, ...]
    tensor: str
    address: Lin


@dataclass(frozen=True)
class Walk:
    """How the reduction walks over A: segments, then a contiguous run.

    Attributes:
        segments: extents of the segment axes, outermost first; flat axes K, K+1, ...
        run: extent of the contiguous axis, the last flat axis.
        axes: each reduce axis of the stage as a Lin over the segment axes and the run.
        branches: where A lies, the first whose guards hold (none depends on the run). Several branches are a Concat
            along the reduction that was never made.
        fill: what A is where no guards hold: zero, or four bytes (`passes.byte_products`).
    """

    segments: tuple[int, ...]
    run: int
    axes: tuple[Lin, ...]
    branches: tuple[Branch, ...]
    fill: float = 0.0

    @property
    def count(self) -> int:
        return math.prod(self.segments)

    @property
    def depth(self) -> int:
        return self.count * self.run


def walk_operand(flat: Flat, branches: list[Branch], fill: float = 0.0) -> Walk | None:
    """The walk over A given by `branches`, or None if it has no contiguous axis."""
    reduce = flat.extents[K:]
    asks = [_reduce_only(v) for b in branches for v in (b.address, *(g.lin for g in b.guards))]
    for branch in branches:
        for guard in branch.guards:
            asks += _cuts(guard, flat.extents)
    refined = refine((1, 1, 1, *reduce), asks)
    sub = [n for n, o in zip(refined.extents, refined.origin, strict=True) if o >= K]
    # refine numbers the sub-axes from 0 (extent-1 axes leave none): renumber them behind the flat axes
    number = {k: K + k for k in range(len(sub))}
    axes = tuple(renumber(a, number) for a in refined.axes[K:])
    lead = (axis_digit(B, flat.extents[B]), axis_digit(M, flat.extents[M]), axis_digit(N, flat.extents[N]))
    full = (*lead, *axes)
    for run in reversed(range(len(sub))):
        moved = _along_run(branches, full, flat.extents, K + run, sub[run])
        if moved is not None:
            break
    else:
        return None
    order = [k for k in range(len(sub)) if k != run] + [run]
    place = {K + k: K + position for position, k in enumerate(order)}
    return Walk(
        tuple(sub[k] for k in order[:-1]), sub[run],
        tuple(renumber(a, place) for a in axes),
        tuple(
            Branch(
                tuple(Guard(renumber(g.lin, place), g.ext) for g in b.guards), b.tensor, renumber(b.address, place)
            )
            for b in moved
        ),
        fill,
    )  # fmt: skip


def _along_run(
    branches: list[Branch], axes: tuple[Lin, ...], extents: tuple[int, ...], run: int, length: int
) -> list[Branch] | None:
    """The branches over refined axes if axis `run` is contiguous in all of them and no guard depends on it."""
    moved: list[Branch] = []
    for branch in branches:
        address = substitute(branch.address, axes, extents)
        uses = [(s, d) for s, d in address.terms if run in set(axes_of(Lin(0, ((1, d),))))]
        if (
            len(uses) != 1
            or uses[0][0] != 1
            or uses[0][1].axis != run
            or uses[0][1].lo != 1
            or uses[0][1].ext != length
        ):
            return None
        guards = []
        for guard in branch.guards:
            value, ext = substitute(guard.lin, axes, extents), guard.ext
            if run in set(axes_of(value)) and ext % length == 0:  # 0 <= length*q + r < length*e  ->  0 <= q < e
                value, ext = divide(value, length)[0], ext // length
            if run in set(axes_of(value)):
                return None
            guards.append(Guard(value, ext))
        moved.append(Branch(tuple(guards), branch.tensor, address))
    return moved


def _cuts(guard: Guard, extents: tuple[int, ...]) -> list[Lin]:
    """Cuts that make a guard on one whole reduce axis (a piece of a Concat) a guard on its upper digit."""
    terms = guard.lin.terms
    if len(terms) != 1 or terms[0][0] != 1 or not isinstance(terms[0][1].axis, int) or terms[0][1].axis < K:
        return []
    axis = terms[0][1].axis
    size = math.gcd(guard.lin.offset, guard.ext, extents[axis])
    return [lin(0, ((1, Digit(axis, 1, size)),))] if 1 < size < extents[axis] else []


def _reduce_only(value: Lin) -> Lin:
    return Lin(0, tuple((s, d) for s, d in value.terms if isinstance(d.axis, int) and d.axis >= K))


def operands(flat: Flat) -> tuple[Expr, Expr]:
    assert isinstance(flat.body, Alu)
    a, b = flat.body.args
    return a, b


def _a_branches(
    a: Expr, storages: Mapping[str, Storage], local: Mapping[str, tuple[int, ...]], rows: int
) -> tuple[list[Branch], float] | None:
    """Operand A as a chain of guarded loads that ends in a number or in a load, or None if it is computed."""
    branches: list[Branch] = []
    node: Expr = a
    outer: tuple[Guard, ...] = ()
    while isinstance(node, Choose) and is_zero(node.otherwise) and isinstance(node.then, Choose):  # padding of a Concat
        outer, node = (*outer, *node.guards), node.then
    guards: tuple[Guard, ...]
    while True:
        if isinstance(node, Choose) and isinstance(node.then, Load):
            guards, access, node = node.guards, node.then, node.otherwise
        elif isinstance(node, Load):
            guards, access, node = (), node, const(0.0)
        elif isinstance(node, Const) and branches:
            return branches, float(node.value)
        else:
            return None
        if access.tensor in local:
            address = flat_address(access.index[rows:], local[access.tensor])
        else:
            address = storages[access.tensor].at(access.index)
        branches.append(Branch((*outer, *guards), access.tensor, address))


def walk_stage(
    flat: Flat, storages: Mapping[str, Storage], local: Mapping[str, tuple[int, ...]], rows: int
) -> Walk | None:
    """The walk over operand A, from memory or from a local tensor (given by its column extents)."""
    found = _a_branches(operands(flat)[0], storages, local, rows)
    return None if found is None else walk_operand(flat, *found)


def pack_operand(
    stage: Stage, storages: Mapping[str, Storage], local: Mapping[str, tuple[int, ...]], batch: int, rows: int,
    constants: Collection[str],
) -> tuple[Stage, Stage] | None:  # fmt: skip
    """A packing stage for operand A and the contraction that reads it, or None if A can be read in place.

    With a constant operand B, whose panels follow any order, the contraction has one reduce axis, along which all that
    was packed of a row is contiguous: one segment instead of many short ones.
    """
    flat = flatten(stage, batch, rows, contraction=True)
    walk = walk_stage(flat, storages, local, rows)
    least = UNROLLED if multiplies_bytes(stage) else MIN_RUN
    if walk is not None and walk.count <= MAX_SEGMENTS and walk.run >= _least_run(walk, least):
        return None
    pair = factors(stage)
    assert pair is not None
    a, b = pair
    lead, columns = stage.shape[:rows], stage.shape[rows:]
    order = _reduce_order(a, stage, {n: s for n, s in storages.items() if n not in local})
    shape = (*lead, *(stage.reduce[k] for k in order))
    axes: list[Lin] = [axis_digit(k, n) for k, n in enumerate(lead)] + [Lin()] * (len(columns) + len(stage.reduce))
    for position, k in enumerate(order):
        axes[len(stage.shape) + k] = axis_digit(rows + position, stage.reduce[k])
    packing = Stage(f"{stage.name}.a", shape, a.dtype, reindex(a, tuple(axes), stage.domain), origin=stage.origin)
    reduce, steps = stage.reduce, [axis_digit(len(stage.shape) + k, stage.reduce[k]) for k in order]
    if all(name in constants for name in tensors_read(b)):
        reduce, steps = (math.prod(reduce),), list(digits(len(stage.shape), shape[rows:]))
        at = dict(zip(order, steps, strict=True))
        own = (*(axis_digit(k, n) for k, n in enumerate(stage.shape)), *(at[k] for k in range(len(order))))
        b = reindex(b, own, stage.domain)
    index = (*(axis_digit(k, n) for k, n in enumerate(lead)), *steps)
    return packing, replace(with_factors(stage, load(packing.name, index, a.dtype), b), reduce=reduce)


def _least_run(walk: Walk, least: int) -> int:
    """Floats that must lie side by side for reading them in place: segments cost a table of row pointers each."""
    if walk.count == 1:
        return 1
    return least if even_step(walk) is None else UNROLLED


def _reduce_order(a: Expr, stage: Stage, storages: Mapping[str, Storage]) -> list[int]:
    """Reduce axes by decreasing stride in A's memory, so that packing reads forward."""
    base, strides = len(stage.shape), [0] * len(stage.reduce)
    for access in loads(a):
        if access.tensor in storages:
            for stride, digit in storages[access.tensor].at(access.index).terms:
                if isinstance(digit.axis, int) and digit.axis >= base:
                    strides[digit.axis - base] = max(strides[digit.axis - base], abs(stride))
    return sorted(range(len(stage.reduce)), key=lambda k: -strides[k])


def even_step(walk: Walk) -> int | None:
    """By how many floats A moves from one segment to the next, so that all can use one row pointer.

    None if it has one segment, does not move evenly, or if guards choose.
    """
    (branch, *others) = walk.branches
    if walk.count == 1 or others or branch.guards:
        return None
    steps: dict[object, int] = {}
    for stride, digit in branch.address.terms:
        if digit.axis == B or not {K + k for k in range(len(walk.segments))} & set(axes_of(Lin(0, ((1, digit),)))):
            continue
        if digit.lo != 1 or not isinstance(digit.axis, int) or digit.ext != walk.segments[digit.axis - K]:
            return None
        steps[digit.axis] = stride
    step = steps.get(K + len(walk.segments) - 1)
    inner = 1
    for k in reversed(range(len(walk.segments))):
        if step is None or steps.get(K + k) != step * inner:
            return None
        inner *= walk.segments[k]
    return step


def local_columns(pipeline: Pipeline) -> dict[str, tuple[int, ...]]:
    columns = {s.name: s.shape[pipeline.rows :] for s in pipeline.stages[:-1]}
    return columns | {name: band.columns for name, band in pipeline.bands.items()}


def walk_of(pipeline: Pipeline, stage: Stage) -> Walk:
    walk = walk_stage(pipeline.flats[stage.name], pipeline.storages, local_columns(pipeline), pipeline.rows)
    assert walk is not None
    return walk


def batch_step(walk: Walk, batches: int) -> int | None:
    """By how many floats A moves from one batch entry to the next, so that all can use one table of row pointers.

    None if it does not move evenly, or if guards depend on the entry.
    """
    steps: set[int] = set()
    for branch in walk.branches:
        if any(B in axes_of(guard.lin) for guard in branch.guards):
            return None
        moving = [(s, d) for s, d in branch.address.terms if B in axes_of(Lin(0, ((1, d),)))]
        if len(moving) != 1 or moving[0][1] != Digit(B, 1, batches):
            return None
        steps.add(moving[0][0])
    return steps.pop() if len(steps) == 1 and min(steps) > 0 else None
