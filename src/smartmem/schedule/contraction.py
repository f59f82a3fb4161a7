"""Contractions in register tiles: ``C[m, n] = sum over k of A[m, k] * B[k, n]`` inside a row pipeline.

For each panel of B and each block of k, all row tiles of the block in turn; the pointwise epilogue follows a tile's
last block of k, in the tile's registers where it can (`finish`). The tile functions are shared by the kernels of a
file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from smartmem.codegen.c_expr import (
    Emitter,
    Lane,
    Value,
    c_guards,
)
from smartmem.codegen.c_index import Axes, c_lin
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.stage import Stage
from smartmem.schedule.finish import Ending, Finish, finish_of
from smartmem.schedule.flatten import B, Flat, K, N
from smartmem.schedule.operand_a import Walk, even_step, walk_of
from smartmem.schedule.operand_b import direct_b, held_of
from smartmem.schedule.tile_functions import ROWS_ACROSS, grouped_tile_function, tile_function
from smartmem.schedule.tiling import Tiling, tile_columns

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline, Place
    from smartmem.schedule.row_emitter import RowEmitter


K_BLOCK = 768  # steps of k that A's tile and B's panel share L1 and L2 for


def emit_contraction(e: RowEmitter, stage: Stage, epilogue: list[Stage]) -> None:
    """Row pointers, then panels x blocks of k x row tiles; the epilogue follows each tile's last block."""
    p, w = e.pipeline, e.writer
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    width, tiling, columns = tile_columns(p.target, flat.columns), p.tiling, flat.columns
    across = _across(p, walk)
    with w.block(""), ExitStack() as opened:
        if across is not None:
            w.line(f"const float *const a = s + {across.offset};")
        else:
            row_pointers(e, stage, flat, walk, tiling.block)
        if p.shared_step is not None:
            opened.enter_context(w.loop("b", "b1", "b0"))
        source, stride, streamed = b_pointer(e, stage, flat, walk, width)
        held = held_of(p, stage, walk)
        start, end = held.column, held.columns_end or str(columns)
        if (epilogue or [stage])[-1] is p.stages[-1] and e.task.column_chunks > 1:
            start, end = "c0", f"(c0 + {e.task.span} < {columns} ? c0 + {e.task.span} : {columns})"
        blocks = _k_blocks(walk) if p.target.tuned else KBlocks(1, walk.count, 1, walk.run)
        prefetch = -(-4 * (width // p.target.lanes) // tiling.group) if streamed and p.target.tuned else 0
        direct = _place_of_tiles(p, stage, epilogue)
        finish = finish_of(e, stage, epilogue, width) if direct is None else None
        for number, place in enumerate(finish.tables if finish is not None else ()):
            w.line(f"long *const rows{number} = (long *)(s + {p.reserve(2 * tiling.block)});")
            with w.loop("r", "rows"):
                w.line("const long m = m0 + r;")
                w.line(f"rows{number}[r] = {place};")
        if direct is None and (finish is None or blocks.count > 1):
            kept = tiling.block if blocks.count > 1 else tiling.rows
            w.line(f"float *const c = s + {p.reserve(kept * width)};")
        with w.loop("n0", end, start, width):
            w.line(f"const float *const bp = {source};")
            if blocks.count == 1:
                _tile_loop(e, stage, epilogue, finish, flat, walk, blocks, stride, prefetch, width)
            else:
                with w.loop("kb", blocks.count):
                    _tile_loop(e, stage, epilogue, finish, flat, walk, blocks, stride, prefetch, width)


@dataclass(frozen=True)
class KBlocks:
    """The reduction in blocks: either `segments` whole segments each, or each segment in `parts` parts of `length`."""

    count: int
    segments: int
    parts: int
    length: int


def _k_blocks(walk: Walk) -> KBlocks:
    if walk.depth <= K_BLOCK * 4 // 3:
        return KBlocks(1, walk.count, 1, walk.run)
    if walk.run > K_BLOCK:
        parts = -(-walk.run // K_BLOCK)
        length = -(-walk.run // parts // 4) * 4
        return KBlocks(walk.count * parts, 1, parts, length)
    segments = max(1, K_BLOCK // walk.run)
    return KBlocks(-(-walk.count // segments), segments, 1, walk.run)


def _tile_loop(
    e: RowEmitter, stage: Stage, epilogue: list[Stage], finish: Finish | None, flat: Flat, walk: Walk,
    blocks: KBlocks, stride: int, prefetch: int, width: int,
) -> None:  # fmt: skip
    """All row tiles of the block with one panel and one block of k."""
    p, w = e.pipeline, e.writer
    tiling, table = p.tiling, p.tiling.block
    vectors = width // p.target.lanes
    step, across = _even_step(p, walk), _across(p, walk)
    at, b, segments, first_k, last_k, first, final = "0", "bp", str(walk.count), "0", str(walk.run), "1", ""
    if blocks.count > 1:
        first, final = "kb == 0", f"if (kb == {blocks.count - 1})"
        if blocks.parts > 1:
            at = "0" if walk.count == 1 else f"kb / {blocks.parts}"
            part = "kb" if walk.count == 1 else f"kb % {blocks.parts}"
            w.line(f"const long k_from = {part} * {blocks.length};")
            w.line(f"const long k_to = k_from + {blocks.length} < {walk.run} ? k_from + {blocks.length} : {walk.run};")
            first_k, last_k, segments = "k_from", "k_to", "1"
            b = f"bp + ({at} * {walk.run} + k_from) * {stride}" if walk.count > 1 else f"bp + k_from * {stride}"
        else:
            w.line(f"const long q_from = kb * {blocks.segments};")
            rest = f"{walk.count} - q_from"
            w.line(f"const long taps = {rest} < {blocks.segments} ? {rest} : {blocks.segments};")
            segments, at, b = "taps", "q_from", f"bp + q_from * {walk.run * stride}"
    direct = _place_of_tiles(p, stage, epilogue)
    with w.loop("q", "h", "g"):
        w.line(f"const long i = {tiling.start('q')} - m0;")
        if direct is not None:
            held, apart = f"s + {direct.offset} + i * {direct.width} + n0", direct.width
        else:
            held, apart = f"c + i * {width}" if blocks.count > 1 else "c", width
        ahead = f"(q - g) * {-(-blocks.length * blocks.segments // 4) * prefetch * 16}"
        ahead = f"{b} + ({segments}) * ({last_k} - {first_k}) * {stride} + {ahead}" if prefetch else "bp"
        if finish is None or final:
            w.line(f"float *const cq = {held};")

        def call(ending: Ending | None, rows: int) -> str:
            moved = [f"b * {p.shared_step}"] if p.shared_step is not None else []
            a = "a + i"
            if at != "0" and step is not None:
                moved.append(f"{at} * {step}")
            elif at != "0":
                a = f"a + {at} * {table} + i"
            table_of = f"{a}, {segments}, {table if step is None else step}, {' + '.join(moved) or '0'}"
            kind = "tile" if step is None else "even"
            if across is not None:
                kind, table_of = "across", f"a + i, {ROWS_ACROSS}"
            if p.group_size:
                name, text = grouped_tile_function(rows, p.group_size, p.target.lanes)
                arguments = f"{table_of}, {b}, cq"
            else:
                name, text = tile_function(rows, ending.vectors if ending else vectors, prefetch, kind, ending)
                into = f"cq, {apart}, {first}" if ending is None else ending.arguments(f"{flat.columns} - n0")
                arguments = f"{table_of}, {first_k}, {last_k}, {b}, {stride}, {ahead}, {into}"
            p.support[name] = text
            return f"{name}({arguments});"

        if finish is not None:
            with ExitStack() as last_block:
                if final:
                    last_block.enter_context(w.block(final))
                whole = Ending(finish, vectors, vectors if blocks.count > 1 else 0)
                _finishing_tiles(w, tiling, whole, flat.columns, p.target.lanes, call)
            if final:
                with w.block("else"):
                    call_tile(w, tiling, partial(call, None))
            return
        call_tile(w, tiling, partial(call, None))
        if direct is not None:
            return
        w.line(f"const long height = {tiling.rows_of('q')};")
        with w.block(final), w.loop("y", "height"):
            w.line("const long r = i + y, m = m0 + r;")
            w.line("(void)m;")
            epilogue_row(e, stage, epilogue, flat, flat.columns, width)


def _finishing_tiles(
    w: Writer, tiling: Tiling, whole: Ending, columns: int, lanes: int, call: Callable[[Ending, int], str]
) -> None:
    """Row tile q of panel n0 with its epilogue in registers; the last panel may have fewer columns, and vectors."""
    width = whole.vectors * lanes
    tail = replace(whole, vectors=-(-(columns % width) // lanes), tail=True)
    if columns % width == 0 or columns < width:
        call_tile(w, tiling, partial(call, tail if columns < width else whole))
        return
    with w.block(f"if (n0 + {width} <= {columns})"):
        call_tile(w, tiling, partial(call, whole))
    with w.block("else"):
        call_tile(w, tiling, partial(call, tail))


def call_tile(w: Writer, tiling: Tiling, call: Callable[[int], str]) -> None:
    """The call for row tile q, given the one for a number of rows."""
    if tiling.tall == tiling.count:
        w.line(call(tiling.rows))
    else:
        w.line(f"if (q < {tiling.tall}) {call(tiling.rows)}")
        w.line(f"else {call(tiling.rows - 1)}")


def _even_step(pipeline: Pipeline, walk: Walk) -> int | None:
    """How far rows of A move from one segment to the next where all segments use one table of pointers, else None."""
    return None if pipeline.group_size else even_step(walk)


def _across(pipeline: Pipeline, walk: Walk) -> Place | None:
    """Where operand A lies if its rows lie side by side, packed so, else None."""
    place = pipeline.places.get(walk.branches[0].tensor)
    return place if place is not None and place.kind == "across" else None


def _place_of_tiles(pipeline: Pipeline, stage: Stage, epilogue: list[Stage]) -> Place | None:
    """Where tiles store a contraction that stays in scratch as it is; None where a loop over its elements does."""
    place = pipeline.places.get(stage.name)
    if epilogue or place is None or place.kind != "block" or place.first or pipeline.group_size:
        return None
    return place


def row_pointers(e: RowEmitter, stage: Stage, flat: Flat, walk: Walk, table: int) -> None:
    """a[segment][row]: where each row of A starts in each segment, or in the first of even ones; guarded rows start at
    zeros."""
    p, w = e.pipeline, e.writer
    segments = walk.segments if _even_step(p, walk) is None else ()
    size = math.prod(segments) * table
    offset = p.reserve(2 * size)
    w.line(f"const float **const a = (const float **)(s + {offset});")
    extents = (*flat.extents[:K], *walk.segments, walk.run)
    context = e.context(replace(flat, extents=extents), None, row="m", column="0")
    names = {**context.axes.names, **{K + k: "0" for k in range(len(segments), len(walk.segments) + 1)}}
    if p.shared_step is not None:
        names[B] = "0"
    axes = replace(context.axes, names=names)
    segment = Lin()
    with ExitStack() as loops:
        for k, extent in enumerate(segments):
            segment = segment * extent + axis_digit(K + k, extent)
            loops.enter_context(w.loop(f"k{k}", extent))
        loops.enter_context(w.loop("r", "rows"))
        w.line("const long m = m0 + r;")
        slot = f"({c_lin(segment, axes)}) * {table} + r" if segments else "r"
        w.line(f"(void)m, a[{slot}] = {_branch_pointers(e, walk, axes)};")


def _branch_pointers(e: RowEmitter, walk: Walk, axes: Axes) -> str:
    """``guards ? base + address : ... : zeros`` as a C expression."""
    p = e.pipeline
    text = ""
    for branch in walk.branches:
        if branch.tensor in {s.name for s in p.stages}:
            place = p.places[branch.tensor]
            base = f"s + {place.row} + {c_lin(branch.address, axes)}"
        else:
            base = f"{e.pointers[branch.tensor]} + {c_lin(branch.address, axes)}"
        if not branch.guards:
            return text + base
        text += f"{c_guards(branch.guards, axes)} ? {base} : "
    zeros = (p.target.lanes if p.group_size else walk.run) + (p.shared_step or 0) * (p.batches - 1)
    p.support[f"zeros{zeros}"] = f"static const float sm_zeros_{zeros}[{zeros}];\n"
    return text + f"sm_zeros_{zeros}"


def b_pointer(e: RowEmitter, stage: Stage, flat: Flat, walk: Walk, width: int) -> tuple[str, int, bool]:
    """C expression for panel n0 of B at the first step that is held, the distance between steps, and whether it streams
    from memory."""
    p = e.pipeline
    held = held_of(p, stage, walk)
    if stage.name in e.packed.slot:
        pointer = e.arguments.pointer(e.packed.slot[stage.name], "float")
        batches = e.packed.weights[e.packed.slot[stage.name]].shape[0]
        size = walk.depth * width
        per_batch = f"b * {-(-flat.columns // width) * size} + " if batches > 1 else ""
        return f"{pointer} + {per_batch}n0 / {width} * {size}", width, True
    direct = direct_b(p, stage)
    if direct is None:
        place = "n0" if held.column == "0" else f"(n0 - {held.column})"
        return f"s + {e.packed_offset(stage)} + {place} / {width} * {held.depth * width}", width, False
    context = e.context(flat, None, row="0", column="n0")
    names = {**context.axes.names, K: held.step}
    address = c_lin(direct.address, replace(context.axes, names=names, extents=(*flat.extents[:K], walk.run)))
    return f"{e.pointers[direct.tensor]} + {address}", direct.stride, False


def epilogue_row(e: RowEmitter, stage: Stage, epilogue: list[Stage], flat: Flat, columns: int, width: int) -> None:
    """One row of the tile: chunks of lanes through the epilogue stages, then stored."""
    p, w = e.pipeline, e.writer
    lanes = p.target.lanes
    lane = Lane(N, columns, lanes)
    limit = f"n0 + {width}" if columns % width == 0 else f"(n0 + {width} < {columns} ? n0 + {width} : {columns})"
    with w.loop("n", limit, "n0", "SM_W"):
        if columns % lanes == 0:
            _epilogue_chunk(e, stage, epilogue, flat, lane, width)
            return
        if columns > lanes:
            with w.block(f"if (n + SM_W <= {columns})"):
                _epilogue_chunk(e, stage, epilogue, flat, lane, width)
            header = "else"
        else:
            header = ""
        with w.block(header):
            w.line(f"const long count = {columns} - n;")
            _epilogue_chunk(e, stage, epilogue, flat, replace(lane, count="count"), width)


def _epilogue_chunk(e: RowEmitter, stage: Stage, epilogue: list[Stage], flat: Flat, lane: Lane, width: int) -> None:
    w = e.writer
    e.values = {}
    emitter = Emitter(w, e.context(flat, lane))
    total = emitter.name(f"sm_load(cq + y * {width} + (n - n0))", stage.dtype, True)
    e.values[stage.name] = total
    text = total.text
    for following in epilogue:
        value = emitter.value(e.pipeline.flats[following.name].body)
        e.values[following.name] = Value(emitter.as_vector(value, following.dtype), True)
        text = e.values[following.name].text
    last = (epilogue or [stage])[-1]
    e.keep_vector(last, e.pipeline.flats[last.name], emitter, text, lane)
    e.values = {}
