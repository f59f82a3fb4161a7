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

import numpy as np

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
from smartmem.schedule.code import UnitForm
from smartmem.schedule.finish import Ending, Finish, finish_of
from smartmem.schedule.flatten import B, Flat, K, N
from smartmem.schedule.operand_a import Walk, even_step, walk_of
from smartmem.schedule.operand_b import direct_b, held_of
from smartmem.schedule.roles import multiplies_bytes
from smartmem.schedule.tile_functions import FEW, ROWS_ACROSS, grouped_tile_function, tile_function
from smartmem.schedule.tiling import Tiling, tile_columns
from smartmem.schedule.units import (
    MOST_FETCHED,
    SIDE,
    TILE,
    TOGETHER,
    a_floats,
    b_floats,
    depth_tiles,
    k_blocks,
    pack_lines,
    unit_function,
)

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline, Place
    from smartmem.schedule.row_emitter import RowEmitter


K_BLOCK = 768  # steps of k that A's tile and B's panel share L1 and L2 for


@dataclass(frozen=True)
class _Product:
    """A contraction while it is written: what its loops share.

    Attributes:
        emitter: what writes it.
        stage, epilogue: the contraction, and what follows in the same rows.
        flat, walk: the contraction with flat rows and columns, and how its tiles go through operand A.
        width: columns of a panel.
        blocks: of the reduction.
        step: how far rows of A move from one segment to the next where all use one table of pointers, else None.
        across: where operand A lies if its rows lie side by side, packed so, else None.
        direct: where tiles store a contraction that stays in scratch as it is; None where a loop over its elements or
            `finish` does.
        finish: the epilogue in the registers of the tiles, else None.
    """

    emitter: RowEmitter
    stage: Stage
    epilogue: list[Stage]
    flat: Flat
    walk: Walk
    width: int
    blocks: KBlocks
    step: int | None
    across: Place | None
    direct: Place | None
    finish: Finish | None

    @property
    def vectors(self) -> int:
        """Of a row of a panel."""
        return self.width // self.emitter.pipeline.target.lanes


def _product(e: RowEmitter, stage: Stage, epilogue: list[Stage]) -> _Product:
    p = e.pipeline
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    width = tile_columns(p.target, flat.columns)
    whole = KBlocks(1, walk.count, 1, walk.run)
    blocks = _k_blocks(walk) if p.target.tuned and p.target.form is None else whole
    first = p.places.get(walk.branches[0].tensor)
    across = first if first is not None and first.kind == "across" else None
    direct = p.places.get(stage.name)
    if p.target.form or epilogue or direct is None or direct.kind != "block" or direct.first or p.group_size:
        direct = None
    finish = finish_of(e, stage, epilogue, width) if direct is None else None
    return _Product(e, stage, epilogue, flat, walk, width, blocks, _even_step(p, walk), across, direct, finish)


def emit_contraction(e: RowEmitter, stage: Stage, epilogue: list[Stage]) -> None:
    """Row pointers, then panels x blocks of k x row tiles; the epilogue follows each tile's last block."""
    p, w, product = e.pipeline, e.writer, _product(e, stage, epilogue)
    tiling, width, columns = p.tiling, product.width, product.flat.columns
    with w.block(""), ExitStack() as opened:
        form, a_tiles = p.target.form, 0
        if form is not None:
            a_tiles = e.tiles_at[stage.name] if stage.name in e.tiles_at else pack_tiles(e, stage)
        elif product.across is not None:
            w.line(f"const float *const a = s + {product.across.offset};")
        else:
            row_pointers(e, stage, product.flat, product.walk, tiling.block)
        if p.shared_step is not None:
            opened.enter_context(w.loop("b", "b1", "b0"))
        source, stride, streamed = b_pointer(e, stage, product.flat, product.walk, width)
        held = held_of(p, stage, product.walk)
        start, end = held.column, held.columns_end or str(columns)
        if (epilogue or [stage])[-1] is p.stages[-1] and e.task.column_chunks > 1:
            start, end = "c0", f"(c0 + {e.task.span} < {columns} ? c0 + {e.task.span} : {columns})"
        prefetch = -(-4 * product.vectors // tiling.group) if streamed and p.target.tuned else 0
        if p.height * product.vectors <= FEW:  # it does nothing but read B in order, which processors foresee
            prefetch = 0
        for number, place in enumerate(product.finish.tables if product.finish is not None else ()):
            w.line(f"long *const rows{number} = (long *)(s + {p.reserve(2 * tiling.block)});")
            with w.loop("r", "rows"):
                w.line("const long m = m0 + r;")
                w.line(f"rows{number}[r] = {place};")
        if form is not None:
            if k_blocks(product.walk.depth, form) < depth_tiles(product.walk.depth, form):
                w.line(f"float *const c = s + {p.reserve(tiling.group * SIDE * width)};")
            elif product.finish is None:
                w.line(f"float *const c = s + {p.reserve(TOGETHER * SIDE * width)};")
        elif product.direct is None and (product.finish is None or product.blocks.count > 1):
            kept = tiling.block if product.blocks.count > 1 else tiling.rows
            w.line(f"float *const c = s + {p.reserve(kept * width)};")
        with w.loop("n0", end, start, width):
            w.line(f"const float *const bp = {source};")
            if form is not None:
                _unit_loop(product, form, a_tiles, streamed)
            elif product.blocks.count == 1:
                _tile_loop(product, stride, prefetch)
            else:
                with w.loop("kb", product.blocks.count):
                    _tile_loop(product, stride, prefetch)


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


@dataclass(frozen=True)
class _Block:
    """C expressions of the block of k that tiles are at.

    Attributes:
        at: its first segment.
        b: where its first step of B lies.
        stride: between steps of B.
        segments: how many it has, each from step `first_k` to `last_k`.
        first: whether its sums are the tile's first.
        final: the test for the last block, "" where there is but one.
    """

    at: str
    b: str
    stride: int
    segments: str
    first_k: str = "0"
    last_k: str = "0"
    first: str = "1"
    final: str = ""

    @property
    def behind(self) -> str:
        """Where B goes on after this block."""
        return f"{self.b} + ({self.segments}) * ({self.last_k} - {self.first_k}) * {self.stride}"


def _block(w: Writer, walk: Walk, blocks: KBlocks, stride: int) -> _Block:
    """Block kb of the reduction, its bounds written as C variables."""
    whole = _Block("0", "bp", stride, str(walk.count), last_k=str(walk.run))
    if blocks.count == 1:
        return whole
    whole = replace(whole, first="kb == 0", final=f"if (kb == {blocks.count - 1})")
    if blocks.parts == 1:
        w.line(f"const long q_from = kb * {blocks.segments};")
        rest = f"{walk.count} - q_from"
        w.line(f"const long taps = {rest} < {blocks.segments} ? {rest} : {blocks.segments};")
        return replace(whole, segments="taps", at="q_from", b=f"bp + q_from * {walk.run * stride}")
    at = "0" if walk.count == 1 else f"kb / {blocks.parts}"
    part = "kb" if walk.count == 1 else f"kb % {blocks.parts}"
    w.line(f"const long k_from = {part} * {blocks.length};")
    w.line(f"const long k_to = k_from + {blocks.length} < {walk.run} ? k_from + {blocks.length} : {walk.run};")
    b = f"bp + ({at} * {walk.run} + k_from) * {stride}" if walk.count > 1 else f"bp + k_from * {stride}"
    return replace(whole, at=at, b=b, segments="1", first_k="k_from", last_k="k_to")


def _tile_loop(product: _Product, stride: int, prefetch: int) -> None:
    """All row tiles of the block with one panel and one block of k."""
    e, blocks, finish, direct = product.emitter, product.blocks, product.finish, product.direct
    p, w, width = e.pipeline, e.writer, product.width
    tiling, columns = p.tiling, product.flat.columns
    block = _block(w, product.walk, blocks, stride)
    with w.loop("q", "h", "g"):
        w.line(f"const long i = {tiling.start('q')} - m0;")
        if direct is not None:
            held = f"s + {direct.offset} + i * {direct.width} + n0"
        else:
            held = f"c + i * {width}" if blocks.count > 1 else "c"
        if finish is None or block.final:
            w.line(f"float *const cq = {held};")
        call = partial(_tile_call, product, block, prefetch)
        if finish is not None:
            with ExitStack() as last_block:
                if block.final:
                    last_block.enter_context(w.block(block.final))
                whole = Ending(finish, product.vectors, product.vectors if blocks.count > 1 else 0)
                _finishing_tiles(
                    w, whole, columns, p.target.lanes, lambda ending: call_tile(w, tiling, partial(call, ending))
                )
            if block.final:
                with w.block("else"):
                    call_tile(w, tiling, partial(call, None))
            return
        call_tile(w, tiling, partial(call, None))
        if direct is not None:
            return
        w.line(f"const long height = {tiling.rows_of('q')};")
        with w.block(block.final), w.loop("y", "height"):
            w.line("const long r = i + y, m = m0 + r;")
            w.line("(void)m;")
            epilogue_row(e, product.stage, product.epilogue, product.flat, columns, width)


def pack_tiles(e: RowEmitter, stage: Stage) -> int:
    """Packs operand A of the block into tiles for matrix units, in scratch; where they begin, in floats."""
    p, w = e.pipeline, e.writer
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    tiling, form = p.tiling, p.target.form
    assert form is not None
    of_tile = a_floats(walk.depth, form)
    offset = p.reserve(tiling.group * of_tile)
    with w.block(""):
        row_pointers(e, stage, flat, walk, tiling.block)
        with w.loop("q", "h", "g"):
            w.line(f"const long i = {tiling.start('q')} - m0, height = {tiling.rows_of('q')};")
            with w.loop("y", "height"):
                w.line("const long r = i + y;")
                w.line(f"float *const to = s + {offset} + (q - g) * {of_tile} + y * {SIDE};")
                for line in pack_lines(walk, form, tiling.block, _even_step(p, walk)):
                    w.line(line)
    return offset


def _unit_loop(product: _Product, form: UnitForm, a_tiles: int, streamed: bool) -> None:
    """All row tiles of the block with one panel, on matrix units."""
    e, finish = product.emitter, product.finish
    p, w, width, depth = e.pipeline, e.writer, product.width, product.walk.depth
    tiling, columns = p.tiling, product.flat.columns
    of_tile, steps, together = a_floats(depth, form), depth_tiles(depth, form), k_blocks(depth, form)
    blocked = together < steps
    first, final, count = ("kb == 0", f"kb + {together} >= {steps}", "steps") if blocked else ("1", "", str(steps))
    # Each pair of row tiles asks for its part of what comes after the panel.
    panel = steps * form.tiles * product.vectors * TILE
    pairs = -(-tiling.group // TOGETHER)
    fetch = min(MOST_FETCHED, -(-panel // 16 // (pairs * steps))) if streamed else 0
    ahead = f"bp + {panel} + ((q - g) / {TOGETHER} * {steps}{' + kb' if blocked else ''}) * {16 * fetch}"
    with ExitStack() as opened:
        if blocked:
            opened.enter_context(w.loop("kb", steps, 0, together))
            w.line(f"const long steps = kb + {together} < {steps} ? {together} : {steps} - kb;")
        opened.enter_context(w.loop("q", "h", "g", TOGETHER))
        w.line(f"const long i = {tiling.start('q')} - m0, pair = q + 1 < h;")
        w.line(
            f"const long top = {tiling.rows_of('q')}, height = (q + 2 < h ? {tiling.start('(q + 2)')} - m0 : rows) - i;"
        )
        held = f"c + (q - g) * {SIDE * width}" if blocked else "c"
        keeps = finish is None or blocked
        if keeps:
            w.line(f"float *const cq = {held};")

        def from_block(of_step: int) -> str:
            return f" + kb * {of_step}" if blocked else ""

        def call(ending: Ending | None, tiles: int, is_final: bool) -> str:
            vectors = ending.vectors if ending is not None else product.vectors
            name, text = unit_function(tiles, vectors, product.vectors, form, ending, is_final, fetch)
            p.support[name] = text
            a = f"s + {a_tiles} + (q - g) * {of_tile}{from_block(form.tiles * TILE)}"
            b = f"bp{from_block(form.tiles * product.vectors * TILE)}"
            into = f"{'cq' if keeps else '(float *)0'}, {first}"
            if ending is not None:
                into += f", top, height, {ending.arguments(f'{columns} - n0')}"
            return f"{name}({a}, {of_tile}, {b}, {count}, {ahead if fetch else b}, {into});"

        def calls(ending: Ending | None, is_final: bool = True) -> None:
            w.line(f"if (pair) {call(ending, 2, is_final)}")
            w.line(f"else {call(ending, 1, is_final)}")

        if blocked:
            with w.block(f"if (!({final}))"):
                calls(None, is_final=False)
                w.line("continue;")
        if finish is not None:
            _finishing_tiles(w, Ending(finish, product.vectors), columns, p.target.lanes, calls)
            return
        calls(None)
        with w.loop("of", "height"):
            w.line("const long r = i + of, m = m0 + r, y = of < top ? of : of - top + 16;")
            w.line("(void)m;")
            epilogue_row(e, product.stage, product.epilogue, product.flat, columns, width)


def _tile_call(product: _Product, block: _Block, prefetch: int, ending: Ending | None, rows: int) -> str:
    """The call of a tile of so many rows, with its epilogue in registers if `ending` says so."""
    p, step, table = product.emitter.pipeline, product.step, product.emitter.pipeline.tiling.block
    moved = [f"b * {p.shared_step}"] if p.shared_step is not None else []
    a = "a + i"
    if block.at != "0" and step is not None:
        moved.append(f"{block.at} * {step}")
    elif block.at != "0":
        a = f"a + {block.at} * {table} + i"
    kind = "tile" if step is None else "even"
    table_of = f"{a}, {block.segments}, {table if step is None else step}, {' + '.join(moved) or '0'}"
    if product.across is not None:
        kind, table_of = "across", f"a + i, {ROWS_ACROSS}"
    if p.group_size:
        name, text = grouped_tile_function(rows, p.group_size, p.target.lanes)
        arguments = f"{table_of}, {block.b}, cq"
    else:
        vectors = ending.vectors if ending is not None else product.vectors
        name, text = tile_function(rows, vectors, prefetch, kind, ending, multiplies_bytes(product.stage))
        # Each row tile of the block asks for its part of what comes after the block.
        part = -(-product.blocks.length * product.blocks.segments // 4) * prefetch * 16
        ahead = f"{block.behind} + (q - g) * {part}" if prefetch else "bp"
        if ending is not None:
            into = ending.arguments(f"{product.flat.columns} - n0")
        else:
            into = f"cq, {product.width if product.direct is None else product.direct.width}, {block.first}"
        steps = f"{block.first_k}, {block.last_k}, {block.b}, {block.stride}"
        arguments = f"{table_of}, {steps}, {ahead}, {into}"
    p.support[name] = text
    return f"{name}({arguments});"


def _finishing_tiles(w: Writer, whole: Ending, columns: int, lanes: int, calls: Callable[[Ending], None]) -> None:
    """Row tile q of panel n0 with its epilogue in registers; the last panel may have fewer columns, and vectors."""
    width = whole.vectors * lanes
    tail = replace(whole, vectors=-(-(columns % width) // lanes), tail=True)
    if columns % width == 0 or columns < width:
        calls(tail if columns < width else whole)
        return
    with w.block(f"if (n0 + {width} <= {columns})"):
        calls(whole)
    with w.block("else"):
        calls(tail)


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
    """``guards ? base + address : ... : zeros`` (or what is beyond the guards) as a C expression."""
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
    count = (p.target.lanes if p.group_size else walk.run) + (p.shared_step or 0) * (p.batches - 1)
    if walk.fill:
        bits = int(np.float32(walk.fill).view(np.uint32))
        name, values = f"sm_fill_{bits:08x}_{count}", f" = {{{', '.join([hex(bits)] * count)}}}"
        p.support[name] = f"static const uint32_t {name}[{count}]{values};\n"
        return text + f"(const float *){name}"
    name = f"sm_zeros_{count}"
    p.support[f"zeros{count}"] = f"static const float {name}[{count}];\n"
    return text + name


def b_pointer(e: RowEmitter, stage: Stage, flat: Flat, walk: Walk, width: int) -> tuple[str, int, bool]:
    """C expression for panel n0 of B at the first step that is held, the distance between steps, and whether it streams
    from memory."""
    p = e.pipeline
    held = held_of(p, stage, walk)
    if stage.name in e.packed.slot:
        pointer = e.arguments.pointer(e.packed.slot[stage.name], "float")
        batches = e.packed.weights[e.packed.slot[stage.name]].shape[0]
        size = math.prod(e.packed.weights[e.packed.slot[stage.name]].shape[2:])
        per_batch = f"b * {-(-flat.columns // width) * size} + " if batches > 1 else ""
        return f"{pointer} + {per_batch}n0 / {width} * {size}", width, True
    direct = direct_b(p, stage)
    if p.target.form is not None:
        size = b_floats(walk.depth, width, p.target.form)
        return f"s + {e.tiles_offset(stage)} + n0 / {width} * {size}", width, False
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
