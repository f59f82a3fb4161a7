"""Operand B of a contraction in panels [batch][panel][k][columns], zero-padded to whole panels.

Constant operands are packed at compile time; others are read in place where their columns are contiguous, or packed
once per batch entry into scratch, through squares of vectors that are transposed in registers where B is contiguous
along the reduction instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smartmem.codegen.c_expr import (
    Context,
    Emitter,
    Lane,
)
from smartmem.codegen.c_index import along, c_lin, split_by
from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.substitute import substitute
from smartmem.kernel.evaluate import EXPANSION, LARGE, evaluate_expr
from smartmem.kernel.expr import (
    Choose,
    Expr,
    Load,
    loads,
)
from smartmem.kernel.expr import walk as walk_expr
from smartmem.kernel.stage import Stage, reindex, tensors_read
from smartmem.schedule.b_starts import find_starts, keep_starts, takes_time
from smartmem.schedule.flatten import B, Flat, K, M, N
from smartmem.schedule.groups import turned
from smartmem.schedule.operand_a import Walk, operands, walk_of
from smartmem.schedule.pack_rows import emit_square
from smartmem.schedule.roles import expr_axes, factors
from smartmem.schedule.tiling import tile_columns
from smartmem.schedule.units import b_floats, b_tiles

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline
    from smartmem.schedule.row_emitter import RowEmitter

Array = np.ndarray[Any, Any]


@dataclass
class Packed:
    """Operand B of each contraction, prepared.

    Attributes:
        weights: panels of constant operands, by slot name.
        buffers: their slot names in argument order.
        replaced: tensors that the kernel no longer reads.
        slot: slot name by contraction.
    """

    weights: dict[str, Array] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    slot: dict[str, str] = field(default_factory=dict)


def b_tensors(stage: Stage) -> list[str]:
    operands = factors(stage)
    assert operands is not None
    return tensors_read(operands[1])


def is_dynamic(stage: Stage, constants: Mapping[str, Array]) -> bool:
    """Whether B is known, or better computed, only at run time."""
    return any(name not in constants for name in b_tensors(stage)) or is_expanded(stage, constants)


def is_expanded(stage: Stage, constants: Mapping[str, Array]) -> bool:
    """Whether B is a large constant, a matrix for each batch entry, that is made of much smaller ones."""
    operands = factors(stage)
    assert operands is not None
    a, b = (expr_axes(operand) for operand in operands)
    size = 4 * math.prod(stage.domain[k] for k in b)
    given = sum(constants[name].nbytes for name in b_tensors(stage))
    return bool(a & b & set(range(len(stage.shape)))) and size > LARGE and size > EXPANSION * given


def prepare_weights(pipeline: Pipeline, constants: Mapping[str, Array]) -> Packed:
    """Packs constant operands B into panels; reserves scratch for those packed at run time."""
    packed = Packed()
    still_read: set[str] = set()
    for stage in pipeline.stages:
        operands = factors(stage)
        if not pipeline.is_contraction(stage):
            still_read |= set(tensors_read(stage.body))
            continue
        assert operands is not None
        still_read |= set(tensors_read(operands[0]))
        if is_dynamic(stage, constants):
            still_read |= set(tensors_read(operands[1]))
            continue
        slot = f"{stage.name}.panels"
        packed.weights[slot] = _panels(pipeline, stage, constants)
        packed.buffers.append(slot)
        packed.slot[stage.name] = slot
        packed.replaced |= set(tensors_read(operands[1]))
    packed.replaced -= still_read
    return packed


def _panels(pipeline: Pipeline, stage: Stage, constants: Mapping[str, Array]) -> Array:
    """[batch][panel][k][NR], k in the order of A's walk, zero-padded to whole panels."""
    flat, walk = pipeline.flats[stage.name], walk_of(pipeline, stage)
    width = tile_columns(pipeline.target, flat.columns)
    b = operands(flat)[1]
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    b = reindex(b, (*keep, *walk.axes), flat.extents)
    uses_batch = B in expr_axes(b)
    batches = flat.extents[B] if uses_batch else 1
    extents = (batches, *walk.segments, walk.run, flat.columns)
    values = strided_constant(b, extents, constants)
    if values is None:
        grid = np.ogrid[tuple(slice(n) for n in extents)]
        axes: list[Any] = [grid[0], 0, grid[-1], *grid[1:-1]]
        values = np.broadcast_to(evaluate_expr(b, axes, constants), extents)
    matrix = values.reshape(batches, walk.depth, flat.columns)
    panels = -(-flat.columns // width)
    result = np.zeros((batches, panels, walk.depth, width), np.float32)
    whole = flat.columns // width
    result[:, :whole] = matrix[:, :, : whole * width].reshape(batches, walk.depth, whole, width).transpose(0, 2, 1, 3)
    if whole < panels:
        result[:, whole, :, : flat.columns - whole * width] = matrix[:, :, whole * width :]
    if pipeline.target.form is not None:
        return b_tiles(result, pipeline.target.form)
    return turned(result, pipeline.group_size) if pipeline.group_size else result


def strided_constant(b: Expr, extents: tuple[int, ...], constants: Mapping[str, Array]) -> Array | None:
    """A plain load with an affine address, as a strided view."""
    if not isinstance(b, Load):
        return None
    source = np.ascontiguousarray(constants[b.tensor])
    address = Lin()
    for value, extent in zip(b.index, source.shape, strict=True):
        address = address * extent + value
    order = [B, *range(K, K + len(extents) - 2), N]
    strides = dict.fromkeys(order, 0)
    for stride, digit in address.terms:
        if not isinstance(digit.axis, int) or digit.lo != 1 or digit.ext != extents[order.index(digit.axis)]:
            return None
        strides[digit.axis] = stride
    if any(s < 0 for s in strides.values()):
        return None
    flat = source.reshape(-1)[address.offset :]
    return np.lib.stride_tricks.as_strided(flat, extents, [strides[a] * flat.itemsize for a in order], writeable=False)


@dataclass(frozen=True)
class DirectB:
    """B read in place: its address over the flat axes, and the distance between rows."""

    tensor: str
    address: Lin
    stride: int


def direct_b(pipeline: Pipeline, stage: Stage) -> DirectB | None:
    """How a dynamic B is read in place, or None if it has to be packed.

    A block of keys is packed in any case: its rows are often a power of two apart, which few sets of the cache serve.
    """
    if pipeline.softmax is not None or pipeline.target.form is not None:
        return None
    flat, walk = pipeline.flats[stage.name], walk_of(pipeline, stage)
    width = tile_columns(pipeline.target, flat.columns)
    b = operands(flat)[1]
    if not isinstance(b, Load) or walk.count != 1 or flat.columns % width:
        return None
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    address = substitute(pipeline.storages[b.tensor].at(b.index), (*keep, *walk.axes), flat.extents)
    row_stride, column = 0, False
    for stride, digit in address.terms:
        if digit.axis == N:
            if stride != 1 or digit.lo != 1 or digit.ext != flat.columns:
                return None
            column = True
        elif digit.axis == K:
            if digit.lo != 1 or digit.ext != walk.run:
                return None
            row_stride = stride
        elif not isinstance(digit.axis, int) and {N, K} & set(axes_of(Lin(0, ((1, digit),)))):
            return None
    if not column or row_stride <= 0:
        return None
    return DirectB(b.tensor, address, row_stride)


@dataclass(frozen=True)
class Held:
    """The part of a dynamic B that a kernel works with at a time: all of it, or a block of keys (see `online`).

    Attributes:
        columns, depth: how much of it, at most.
        column, columns_end, step, steps_end: what part, as C.
    """

    columns: int
    depth: int
    column: str = "0"
    columns_end: str = ""
    step: str = "0"
    steps_end: str = ""


def held_of(pipeline: Pipeline, stage: Stage, walk: Walk) -> Held:
    """The part of B that is held at a time. Keys are columns of the first contraction and steps of the second."""
    softmax, columns = pipeline.softmax, pipeline.flats[stage.name].columns
    if softmax is not None and stage.name == softmax.first:
        return Held(pipeline.key_block, walk.depth, column="j0", columns_end="j1")
    if softmax is not None and stage.name == softmax.second:
        return Held(columns, pipeline.key_block, step="j0", steps_end="j1")
    return Held(columns, walk.depth)


def emit_pack(e: RowEmitter, stage: Stage) -> None:
    """Packs what is held of a dynamic B of the current batch entry into panels in scratch."""
    p, w = e.pipeline, e.writer
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    width = tile_columns(p.target, flat.columns)
    lanes, columns = p.target.lanes, flat.columns
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    b = reindex(operands(flat)[1], (*keep, *walk.axes), flat.extents)
    extents = (*flat.extents[:K], *walk.segments, walk.run)
    moved = replace(flat, extents=extents)
    held, offset = held_of(p, stage, walk), e.packed_offset(stage)
    if _transposes(p, b, walk, moved, lanes):
        _pack_transposed(e, b, walk, moved, held, offset, width)
    else:
        _pack_rows(e, stage, b, walk, moved, held, offset)
    if p.target.form is not None:
        size = b_floats(walk.depth, width, p.target.form)
        shape = f"{walk.depth}, {width // lanes}, {p.target.form.parts}"
        with w.loop("n0", -(-columns // width)):
            w.line(f"const float *const panel = s + {offset} + n0 * {held.depth * width};")
            w.line(f"sm_store_panel(s + {e.tiles_offset(stage)} + n0 * {size}, panel, {shape});")


def _pack_rows(e: RowEmitter, stage: Stage, b: Expr, walk: Walk, moved: Flat, held: Held, offset: int) -> None:
    """Panels from rows of B, vector by vector."""
    p, w = e.pipeline, e.writer
    extents, columns, lanes = moved.extents, moved.columns, p.target.lanes
    width = tile_columns(p.target, columns)
    loops = [f"k{k}" for k in range(len(walk.segments) + 1)]
    flat_k = Lin()
    for position, extent in enumerate((*walk.segments, walk.run)):
        flat_k = flat_k * extent + axis_digit(K + position, extent)
    along_n = ("n", _panels_end(held, columns, width), held.column, "SM_W")
    apart = _divides(p, b, {N}, set(range(K, len(extents))), extents)
    # A vector of each row is read before the next of the first: lines of many rows have left L1 by then.
    by_rows = apart or (p.target.tuned and 4 * lanes * walk.depth > p.target.l1 // 4)
    context = e.context(moved, Lane(N, columns, lanes))
    tables = keep_starts(e, b, context, N, K, walk.run) if apart and p.softmax is None else {}
    with ExitStack() as opened:
        if not by_rows:
            opened.enter_context(w.loop(*along_n))
        for name, extent in zip(loops, walk.segments, strict=False):
            opened.enter_context(w.loop(name, extent))
        opened.enter_context(w.loop(loops[-1], held.steps_end or walk.run, held.step))
        if apart:  # a row of B whose address divides or looks up is found once
            context = replace(context, hoist=w.mark(), inner=frozenset({N}))
            context = find_starts(e, b, context, N, tables)
        if by_rows:
            opened.enter_context(w.loop(*along_n))
        step = _step(c_lin(flat_k, context.axes), held)
        _pack_chunk(e, b, context, f"s + {_panel('n', held, offset, width)} + {step} * {width}", columns, lanes)


def _divides(p: Pipeline, b: Expr, inner: set[int], outer: set[int], extents: tuple[int, ...]) -> bool:
    """Whether addresses of B divide or look up in a part that depends on the `outer` axes only."""
    for access in loads(b):
        apart, _ = split_by(p.storages[access.tensor].at(access.index), inner)
        if takes_time(split_by(apart, outer)[1], extents):
            return True
    return False


def _panels_end(held: Held, columns: int, width: int) -> int | str:
    """The end of the last panel, as C."""
    return (
        f"({held.columns_end} + {width - 1}) / {width} * {width}" if held.columns_end else -(-columns // width) * width
    )


def _panel(column: str, held: Held, offset: int, width: int) -> str:
    """Where column `column` of B begins in scratch, as C."""
    place = column if held.column == "0" else f"({column} - {held.column})"
    return f"{offset} + {place} / {width} * {held.depth * width} + {column} % {width}"


def _step(step: str, held: Held) -> str:
    return f"({step})" if held.step == "0" else f"({step} - {held.step})"


def _transposes(p: Pipeline, b: Expr, walk: Walk, flat: Flat, lanes: int) -> bool:
    """Whether B is contiguous along the run instead of along its columns, so that squares of it are transposed."""
    run = K + len(walk.segments)
    if not p.target.tuned or walk.run < lanes or flat.columns < lanes // 2:
        return False
    by_run, by_column = True, True
    for access in loads(b):
        address = p.storages[access.tensor].at(access.index)
        by_run &= along(address, run, walk.run, lanes).stride in (0, 1)
        by_column &= along(address, N, flat.columns, lanes).stride in (0, 1)
    guarded = any(isinstance(n, Choose) for n in walk_expr(b))
    return by_run and not by_column and not guarded


def _pack_transposed(e: RowEmitter, b: Expr, walk: Walk, flat: Flat, held: Held, offset: int, width: int) -> None:
    """Panels from squares of lanes x lanes: columns of the product are loaded along the run, then turned."""
    w, lanes, columns = e.writer, e.pipeline.target.lanes, flat.columns
    run = K + len(walk.segments)
    whole = walk.run - walk.run % lanes
    segment, several = Lin(), walk.run > lanes
    context = e.context(flat, Lane(run, walk.run, lanes), column="n")
    tables = keep_starts(e, b, context, run, N, columns) if several and e.pipeline.softmax is None else {}
    with ExitStack() as loops:
        for k, extent in enumerate(walk.segments):
            segment = segment * extent + axis_digit(K + k, extent)
            loops.enter_context(w.loop(f"k{k}", extent))
        loops.enter_context(w.loop("n0", _panels_end(held, columns, width), held.column, "SM_W"))
        base = f"s + {_panel('n0', held, offset, width)}"
        w.line(f"float *const panel = {base} + ({c_lin(segment, context.axes)}) * {walk.run * width};")
        if several:
            context = find_starts(e, b, context, run, tables, f"n0 + j < {columns} ? n0 + j : {columns - 1}")
        along_run = f"k{len(walk.segments)}"

        def square(ctx: Context, count: str) -> None:
            padded = -(-columns // width) * width > columns
            emit_square(w, ctx, b, columns if padded else None, count, store)

        def store() -> None:
            w.line(f"sm_store(panel + {_step(f'{along_run} + j', held)} * {width}, v[j]);")

        last = held.steps_end  # blocks of keys are whole vectors, except for the last one
        if whole:
            end = f"({last} < {whole} ? {last} : {whole})" if last and whole < walk.run else last or whole
            with w.loop(along_run, end, held.step, "SM_W"):
                square(context, "SM_W")
        if whole < walk.run:
            assert context.lane is not None
            with w.block(f"if ({last} > {whole})" if last else ""):
                w.line(f"const long {along_run} = {whole}, count = {walk.run - whole};")
                square(replace(context, lane=replace(context.lane, count="count")), "count")


def _pack_chunk(e: RowEmitter, b: Expr, context: Context, target: str, columns: int, lanes: int) -> None:
    """One vector of a panel: whole, partial or zero, by the column it starts at."""
    w, lane = e.writer, context.lane
    assert lane is not None
    full = columns - columns % lanes

    def chunk(ctx: Context) -> None:
        emitter = Emitter(w, ctx)
        value = emitter.value(b)
        w.line(f"sm_store({target}, {emitter.as_vector(value, b.dtype)});")

    if full:
        with w.block(f"if (n < {full})"):
            chunk(context)
    if columns % lanes:
        with w.block(f"{'else ' if full else ''}if (n == {full})"):
            w.line(f"const long count = {columns - full};")
            chunk(replace(context, lane=replace(lane, count="count")))
    with w.block("else"):
        w.line(f"sm_store({target}, sm_splat(0.0f));")
