"""Attention in one kernel: scores, whatever is added to them, softmax, and the weighted sum.

A work-group takes a block of query rows of one head. The scores of the block lie in local memory; row reductions run
over them; the second product reads them (exponential and quotient are computed as it does) and stores its result. The
scores never reach memory. Found from definitions alone: contraction, pointwise, row reductions, contraction.

In: a row pipeline whose last contraction has an operand B that is no constant; the first contraction may be missing
(softmax of something in memory, times V). Out: OpenCL C.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from smartmem.codegen.c_expr import Emitter, Lane, LocalReader, Value, lane_free
from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.cl_memory import LocalRows
from smartmem.device import Device
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Choose, Expr, Load, walk
from smartmem.kernel.stage import Kernel, Stage, tensors_read, without
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import B, K, M, N, digits, flatten
from smartmem.schedule.gpu.code import (
    Arguments,
    DeviceCode,
    DeviceTarget,
    Storages,
    context_of,
    memories_of,
    new_writer,
    placed,
)
from smartmem.schedule.gpu.contraction import (
    accumulate,
    add_slices,
    declare_team,
    epilogue_lane,
    finish,
    parts_size,
    placed_stage,
)
from smartmem.schedule.gpu.loops import ease
from smartmem.schedule.gpu.pattern import Sweep
from smartmem.schedule.gpu.product import Product, flatten_product
from smartmem.schedule.gpu.sweeps import of_block_rows, of_tile
from smartmem.schedule.gpu.tile import ALIGNED, PAD, Staged, Tile, staged
from smartmem.schedule.nest import combined, initial
from smartmem.schedule.pipeline import batch_axes, batch_first
from smartmem.schedule.roles import is_contraction

ITEMS = 128  # work-items of a group
DEPTH = 16


@dataclass(frozen=True)
class Parts:
    """The stages of an attention kernel by their part in it.

    Attributes:
        scores: the first contraction and the pointwise stages that follow it; empty if there is none.
        rows: row reductions, with everything pointwise computed in their loads.
        product: the last contraction, likewise; tail: the pointwise stages behind it.
    """

    scores: list[Stage]
    rows: list[Stage]
    product: Stage
    tail: list[Stage]


def take_apart(kernel: Kernel) -> Parts | str:
    """The parts of a kernel, or why it is no attention."""
    rows = kernel.rows
    assert rows is not None
    contracted = [s for s in kernel.stages if is_contraction(s, rows)]
    product = contracted[-1]
    end = kernel.stages.index(product)
    tail = kernel.stages[end + 1 :]
    if any(s.reduce or s.shape != product.shape for s in tail):
        return "a stage behind the second product needs whole rows of it"
    before = list(kernel.stages[:end])
    if len(contracted) == 2 and before[0] is not contracted[0]:
        lead = before[: before.index(contracted[0])]
        if any(s.reduce for s in lead):
            return "rows are reduced before the first product"
        before = without(before, [s.name for s in lead])
    scores: list[Stage] = []
    if len(contracted) == 2:
        scores = [before[0]]
        for stage in before[1:]:
            if stage.reduce or stage.shape != scores[0].shape or not _follows(stage, scores):
                break
            scores.append(stage)
        if len(scores) > 1 and any(
            name in tensors_read(s.body)
            for s in (*before[len(scores) :], product)
            for name in (x.name for x in scores[:-1])
        ):
            scores = scores[:1]
    between = before[len(scores) :]
    rest = without([*between, product, *tail], [s.name for s in between if not s.reduce])
    at = next(k for k, s in enumerate(rest) if s.name == product.name)
    inside = {s.name for s in scores}
    if any(inside & set(tensors_read(s.body)) for s in rest[at + 1 :]):
        return "a stage behind the second product reads the first"
    return Parts(scores, rest[:at], rest[at], rest[at + 1 :])


def _follows(stage: Stage, scores: list[Stage]) -> bool:
    """Whether a stage computes from the scores at its own coordinate only."""
    names = {s.name for s in scores}
    return all(x.index == stage.space() for x in stage.loads() if x.tensor in names)


def block_rows(width: int, height: int, device: Device) -> int:
    """Rows of a block: as many as local memory holds the scores of; 0 if not even four rows fit."""
    for rows in (32, 16, 8, 4):
        if _local_bytes(rows, width) <= device.local_memory and (rows == 4 or rows < 2 * height):
            return rows
    return 0


def _local_bytes(rows: int, width: int) -> int:
    staging = DEPTH * (rows + PAD) + DEPTH * 64
    slices = max(1, ITEMS // (rows // LANES * 16)) - 1
    return 4 * (rows * _padded(width) + staging + max(slices, 1) * rows * 64 + ITEMS + 4 * rows)


def _padded(width: int) -> int:
    return -(-width // LANES) * LANES


def tile_of(rows: int, columns: int) -> Tile:
    """A tile of `rows` for a product of `columns`, with all work-items of the group."""
    wide = 64 if columns > 32 else 32
    slices = ITEMS // (rows // LANES * (wide // LANES))
    return Tile(rows, wide, max(DEPTH, slices), LANES, LANES, slices)


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget) -> DeviceCode:
    """OpenCL C of an attention kernel."""
    rows = kernel.rows
    assert rows is not None
    kernel = batch_first(kernel, rows)
    batch = len(batch_axes(kernel, rows))
    parts = take_apart(kernel)
    assert not isinstance(parts, str)
    shape = kernel.output.shape
    batches, height = math.prod(shape[:batch]), math.prod(shape[batch:rows])
    local = kernel.local()
    kept = {parts.scores[-1].name: parts.scores[-1].shape[rows:]} if parts.scores else {}
    width = math.prod(parts.scores[-1].shape[rows:]) if parts.scores else 0
    block = block_rows(width, height, target.device)
    arguments, w = Arguments(storages, target.check), new_writer()
    memories = memories_of(kernel, arguments)
    scores = LocalRows("S", _padded(width), M, arguments.bounds("the scores", address=block * _padded(width)))
    memories |= dict.fromkeys(kept, scores)
    second = flatten_product(parts.product, batch, rows, storages, local)
    first = flatten_product(parts.scores[0], batch, rows, storages, local) if parts.scores else None
    tiles = [tile_of(block, p.extents[N]) for p in (second, *((first,) if first else ()))]
    _declare(w, tiles, block, width, bool(parts.scores), parts.rows)
    row_values = {s.name: f"row_{k}" for k, s in enumerate(parts.rows)}
    readers = {name: _row_reader(text) for name, text in row_values.items()}

    def context(extents: tuple[int, ...]) -> DeviceContext:
        axes = Axes({B: "b", M: "m", N: "n", K: "k"}, extents)
        return replace(context_of(axes, memories, storages), local=readers)

    if first is not None:
        with w.block(f"for (int n0 = 0; n0 < {width}; n0 += {tiles[1].columns})"):
            tail = [placed_stage(s, batch, rows, storages, local) for s in parts.scores[1:]]
            place = (axis_digit(N, width),)
            staged_ = _product(w, tiles[1], first, storages, local, {}, context(first.extents))
            with w.block("if (slice == 0)" if tiles[1].slices > 1 else ""):
                inner = context(first.extents)
                finish(w, tiles[1], first.extents, parts.scores[0].name, tail, inner, scores, place)
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        _tell(arguments, tiles[1], first.extents, staged_, [body for _, body in tail], place, kept)
    for stage in parts.rows:
        arguments.sweeps += _row_reduction(
            w, stage, batch, rows, storages, local, kept, block, height, row_values[stage.name], context
        )
    extents = second.extents
    with w.block(f"for (int n0 = 0; n0 < {extents[N]}; n0 += {tiles[0].columns})"):
        staged_ = _product(w, tiles[0], second, storages, local, kept, context(extents))
        tail = [placed_stage(s, batch, rows, storages, local) for s in parts.tail]
        space = (*digits(B, shape[:batch]), *digits(M, shape[batch:rows]), *digits(N, shape[rows:]))
        place = storages[kernel.tensor].access(tuple(substitute(c, space, shape) for c in kernel.store_coords()))
        with w.block("if (slice == 0)" if tiles[0].slices > 1 else ""):
            finish(w, tiles[0], extents, parts.product.name, tail, context(extents), memories[kernel.tensor], place)
    _tell(arguments, tiles[0], extents, staged_, [body for _, body in tail], place, kept, kernel.tensor)
    note = f"{block} rows of a head per group" + (f", {block} x {width} scores in local memory" if width else "")
    size = (ITEMS * -(-height // block), batches, 1)
    return DeviceCode(
        w.text(), arguments.parameters, arguments.slots, size, (ITEMS, 1, 1), family="attention", notes=[note],
        sweeps=arguments.sweeps, checks=arguments.checks,
    )  # fmt: skip


def _row_reader(name: str) -> LocalReader:
    """Reads one value per row of the block; the rows may be the lane."""

    def read(emitter: Emitter, _: tuple[Lin, ...]) -> Value:
        lane, row = emitter.context.lane, f"{emitter.context.axes.names[M]} - m0"
        return Value(f"vload4(0, {name} + {row})", True) if lane and lane.axis == M else Value(f"{name}[{row}]")

    return read


def _tell(
    arguments: Arguments, tile: Tile, extents: tuple[int, ...], operands: tuple[Staged, Staged], bodies: list[Expr],
    place: tuple[Lin, ...], kept: Collection[str], written: str | None = None,
) -> None:  # fmt: skip
    """The loads of a product of all column tiles and its tail; the store, unless it is into local memory."""
    lane = epilogue_lane(extents, bodies, place, tile.height)
    arguments.sweeps += of_tile(
        tile, extents, operands, None, bodies, lane, place if written else None, arguments.storages, written or "",
        kept, -(-extents[N] // tile.columns), len(arguments.sweeps),
    )  # fmt: skip


def _declare(w, tiles: list[Tile], block: int, width: int, scores: bool, reductions: list[Stage]) -> None:  # type: ignore[no-untyped-def]
    depth = max(t.depth for t in tiles)
    w.line(f"__local float A[{depth * (block + PAD)}] {ALIGNED};")
    w.line(f"__local float B[{max(t.depth * t.columns for t in tiles)}] {ALIGNED};")
    if scores:
        w.line(f"__local float S[{block * _padded(width)}] {ALIGNED};")
    if slices := max(parts_size(t) for t in tiles):
        w.line(f"__local float4 parts[{slices}];")
    w.line(f"__local float tree[{ITEMS}];")
    for k in range(len(reductions)):
        w.line(f"__local float row_{k}[{block}];")
    w.line("const int item = get_local_id(0), b = get_group_id(1);")
    w.line(f"const int m0 = (int)get_group_id(0) * {block};")


def _product(
    w, tile: Tile, product: Product, storages: Storages, local: set[str], kept: dict[str, tuple[int, ...]],
    context: DeviceContext,
) -> tuple[Staged, Staged]:  # type: ignore[no-untyped-def]  # fmt: skip
    """One tile of a product into ``sum``; how its operands are loaded."""
    a = staged("A", M, product.extents, tile.rows, tile.rows + PAD, placed(product.a, storages, local, kept))
    b = staged("B", N, product.extents, tile.columns, tile.columns, placed(product.b, storages, local))
    declare_team(w, tile)
    accumulate(w, tile, a, b, context, product.extents[K])
    if tile.slices > 1:
        add_slices(w, tile)
    return a, b


def _row_reduction(w, stage, batch, rows, storages, local, kept, block, height, result, context) -> list[Sweep]:  # type: ignore[no-untyped-def]
    """One value per row of the block, found by all work-items of the row together; its loads."""
    flat = flatten(stage, batch, rows, False)
    body = placed(flat.body, storages, local, kept)
    across = ITEMS // block
    lane: Lane | None = Lane(N, flat.columns, LANES)
    accesses = [n for n in walk(body) if isinstance(n, Load) and n.index]
    guards = [n.guards for n in walk(body) if isinstance(n, Choose)]
    assert lane is not None
    if (
        flat.columns % LANES
        or not all(lane_free(g, lane) for g in guards)
        or any(ease(x.index, lane) < 1 for x in accesses)
    ):
        lane = None
    with w.block(""):
        w.line(f"const int r = item / {across}, l = item % {across}, m = min(m0 + r, {height - 1});")
        start, step = initial(stage.combine, stage.dtype), LANES if lane else 1
        w.line(f"{'float4' if lane else 'float'} total = {f'(float4)({start})' if lane else start};")
        with w.loop("n", flat.columns, f"l * {step}", across * step):
            inner = replace(context(flat.extents), lane=lane)
            emitter = DeviceEmitter(w, inner)
            text = emitter.as_vector(emitter.value(body), np.dtype(np.float32))
            w.line(f"total = {combined(stage.combine, 'total', text, lane is not None, stage.dtype)};")
        w.line(f"tree[item] = {f'sm_{stage.combine}4(total)' if lane else 'total'};")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        with w.block(f"for (int half_ = {across // 2}; half_ > 0; half_ /= 2)"):
            here, there = "tree[item]", "tree[item + half_]"
            w.line(f"if (l < half_) {here} = {combined(stage.combine, here, there, False, stage.dtype)};")
            w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        w.line(f"if (l == 0) {result}[r] = tree[item];")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
    return of_block_rows(block, across, flat.extents, body, lane, storages, {*local, *kept})
