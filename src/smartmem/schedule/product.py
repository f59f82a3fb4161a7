"""What loops over register tiles and over tiles of matrix units share: a product's operands, and its epilogue."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from smartmem.codegen.c_expr import Emitter, Lane, Value, c_guards
from smartmem.codegen.c_index import Axes, c_lin
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.stage import Stage
from smartmem.schedule.finish import Ending, Finish, finish_of
from smartmem.schedule.flatten import B, Flat, K, N
from smartmem.schedule.operand_a import Walk, even_step, walk_of
from smartmem.schedule.operand_b import direct_b, held_of
from smartmem.schedule.tiling import tile_columns
from smartmem.schedule.units import b_floats

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline, Place
    from smartmem.schedule.row_emitter import RowEmitter


K_BLOCK = 768  # steps of k that A's tile and B's panel share L1 and L2 for


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
class Product:
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


def product_of(e: RowEmitter, stage: Stage, epilogue: list[Stage]) -> Product:
    """What the loops of a contraction share."""
    p = e.pipeline
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    width = tile_columns(p.target, flat.columns)
    whole = KBlocks(1, walk.count, 1, walk.run)
    blocks = _k_blocks(walk) if p.target.tuned and p.target.form is None else whole
    first = p.places.get(walk.branches[0].tensor)
    across = first if first is not None and first.kind == "across" else None
    direct = stored_directly(p, stage, epilogue)
    finish = finish_of(e, stage, epilogue, width) if direct is None else None
    return Product(e, stage, epilogue, flat, walk, width, blocks, even_segments(p, walk), across, direct, finish)


def stored_directly(p: Pipeline, stage: Stage, epilogue: list[Stage]) -> Place | None:
    """Where in scratch a contraction stays just as its tiles leave it, None where it does not."""
    place = p.places.get(stage.name)
    if p.target.form or epilogue or place is None or place.kind != "block" or place.first or p.group_size:
        return None
    return place


def finishing_tiles(w: Writer, whole: Ending, columns: int, lanes: int, calls: Callable[[Ending], None]) -> None:
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


def even_segments(pipeline: Pipeline, walk: Walk) -> int | None:
    """How far rows of A move from one segment to the next where all segments use one table of pointers, else None."""
    return None if pipeline.group_size else even_step(walk)


def row_pointers(e: RowEmitter, stage: Stage, flat: Flat, walk: Walk, table: int) -> None:
    """a[segment][row]: where each row of A starts in each segment, or in the first of even ones; guarded rows start at
    zeros."""
    p, w = e.pipeline, e.writer
    segments = walk.segments if even_segments(p, walk) is None else ()
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
    return text + outside(p, walk, count)


def outside(pipeline: Pipeline, walk: Walk, count: int) -> str:
    """C expression for so many floats of what operand A is where no guards hold."""
    if walk.fill:
        bits = int(np.float32(walk.fill).view(np.uint32))
        name, values = f"sm_fill_{bits:08x}_{count}", f" = {{{', '.join([hex(bits)] * count)}}}"
        pipeline.support[name] = f"static const uint32_t {name}[{count}]{values};\n"
        return f"(const float *){name}"
    name = f"sm_zeros_{count}"
    pipeline.support[f"zeros{count}"] = f"static const float {name}[{count}];\n"
    return name


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
