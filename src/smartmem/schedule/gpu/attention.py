"""Attention in one kernel: scores, whatever is added to them, softmax, and the weighted sum.

A work-group takes a block of query rows of one head. The scores of the block lie in local memory; row reductions run
over them; the second product reads them (exponential and quotient are computed as it does) and stores its result. The
scores never reach memory. Found from definitions alone: contraction, pointwise, row reductions, contraction.

In: a row pipeline whose last contraction has an operand B that is no constant; the first contraction may be missing
(softmax of something in memory, times V). Out: OpenCL C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.cl_memory import LocalRows
from smartmem.device import Device
from smartmem.index.lin import axis_digit
from smartmem.index.substitute import substitute
from smartmem.kernel.stage import Kernel, Stage, tensors_read, without
from smartmem.layout.memory import LANES, whole_lanes
from smartmem.schedule.flatten import B, K, M, N, flat_space, flatten
from smartmem.schedule.gpu import matrix, matrix_tile
from smartmem.schedule.gpu.code import (
    Arguments,
    Destination,
    DeviceCode,
    DeviceTarget,
    Storages,
    context_of,
    destinations_of,
    memories_of,
    new_writer,
    placed,
    row_value,
)
from smartmem.schedule.gpu.contraction import (
    accumulate,
    add_slices,
    declare_team,
    epilogue_lane,
    finish,
    finish_parts,
    parts_size,
    placed_stage,
)
from smartmem.schedule.gpu.loops import row_lane
from smartmem.schedule.gpu.matrix_tile import Form
from smartmem.schedule.gpu.nest import tree
from smartmem.schedule.gpu.product import Product, flatten_product
from smartmem.schedule.gpu.ptx import SUPPORT
from smartmem.schedule.gpu.sweeps import of_block_rows, of_tile
from smartmem.schedule.gpu.tile import ALIGNED, PAD, Tile, staged
from smartmem.schedule.nest import combined, initial
from smartmem.schedule.pipeline import batch_axes, batch_first
from smartmem.schedule.roles import is_contraction

ITEMS = 128  # work-items of a group
ROWS = 8  # queries from which on matrix units pay: four take twice as long on them
DEPTH = 16
MOST_BLOCKS = 8  # blocks of 8 columns whose accumulators one warp keeps
MOST_ROWS = 4  # values per row that local memory has room for beside the rest


@dataclass(frozen=True)
class Plan:
    """How a group shares its work.

    Attributes:
        block: query rows of a group; items: its work-items.
        first, second: tiles of the products; both `Tile`s, or both `MatrixTile`s.
    """

    block: int
    items: int
    first: Tile | matrix_tile.MatrixTile | None
    second: Tile | matrix_tile.MatrixTile


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
    if at > MOST_ROWS:
        return f"more than {MOST_ROWS} values per row between the products"
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
    return 4 * (rows * whole_lanes(width) + staging + max(slices, 1) * rows * 64 + ITEMS + 4 * rows)


def tile_of(rows: int, columns: int) -> Tile:
    """A tile of `rows` for a product of `columns`, with all work-items of the group."""
    wide = 64 if columns > 32 else 32
    slices = ITEMS // (rows // LANES * (wide // LANES))
    return Tile(rows, wide, max(DEPTH, slices), LANES, LANES, slices)


def plan_of(batches: int, height: int, width: int, inner: int, columns: int, form: Form | None, device: Device) -> Plan:
    """The plan for `batches` heads of `height` rows with `width` scores each, `inner` long; `columns` of the result.

    On matrix units, where there is a `form`: the largest block for which all compute units have work, else the smallest
    that fits.
    """
    if form is not None:
        best: Plan | None = None
        for block, down, across in ((16, 1, 4), (32, 2, 4), (64, 4, 2)):
            if best is not None and batches * -(-height // block) < device.compute_units:
                break
            first = _matrix_tile(block, down, across, width, inner, form) if width else None
            second = _matrix_tile(block, down, across, columns, width or inner, form)
            made = Plan(block, second.items, first, second)
            static = 4 * (made.items + MOST_ROWS * block)
            if ring_bytes(made) + 4 * block * whole_lanes(width) + static <= device.group_memory:
                best = made
        if best is not None:
            return best
    block = block_rows(width, height, device)
    return Plan(block, ITEMS, tile_of(block, width) if width else None, tile_of(block, columns))


def _matrix_tile(block: int, down: int, across: int, columns: int, depth: int, form: Form) -> matrix_tile.MatrixTile:
    """A tile as wide as the product, if the accumulators fit into registers; all of k in one step, if it is short."""
    blocks = min(-(-columns // (8 * across)), MOST_BLOCKS)
    most = 128 // form.bytes
    step = most if depth > most // 2 else most // 2
    return matrix_tile.MatrixTile(block, 8 * across * blocks, step, down, across, 1 if depth <= step else 2, form)


def ring_bytes(plan: Plan) -> int:
    """Local memory of the larger product on matrix units."""
    return max(t.local_bytes for t in (plan.first, plan.second) if isinstance(t, matrix_tile.MatrixTile))


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget) -> DeviceCode:
    """OpenCL C of an attention kernel."""
    rows = kernel.rows
    assert rows is not None
    kernel = batch_first(kernel, rows)
    parts = take_apart(kernel)
    assert not isinstance(parts, str)
    emit = _Attention(kernel, parts, storages, target, len(batch_axes(kernel, rows)), rows)
    return emit.code()


class _Attention:
    """Writes one kernel; a group has `block` rows of one batch entry."""

    def __init__(
        self, kernel: Kernel, parts: Parts, storages: Storages, target: DeviceTarget, batch: int, rows: int
    ) -> None:
        self.kernel, self.parts, self.storages, self.batch, self.rows = kernel, parts, storages, batch, rows
        shape = kernel.output.shape
        self.batches, self.height = math.prod(shape[:batch]), math.prod(shape[batch:rows])
        self.local = kernel.local()
        self.kept = {parts.scores[-1].name: parts.scores[-1].shape[rows:]} if parts.scores else {}
        self.width = math.prod(parts.scores[-1].shape[rows:]) if parts.scores else 0
        self.second = self._flat(parts.product)
        self.first = self._flat(parts.scores[0]) if parts.scores else None
        inner = (self.first or self.second).extents[K]
        columns = self.second.extents[N]
        units = target.tuned and matrix_tile.accepts(self.height, columns, inner, target.device, ROWS)
        form = matrix_tile.form_of(target.half, self._stored()) if units else None
        self.plan = plan_of(self.batches, self.height, self.width, inner, columns, form, target.device)
        self.block, self.items = self.plan.block, self.plan.items
        self.units = isinstance(self.plan.second, matrix_tile.MatrixTile)
        self.arguments, self.w = Arguments(storages, target.check), new_writer()
        self.memories = memories_of(kernel, self.arguments)
        bounds = self.arguments.bounds("the scores", address=self.block * whole_lanes(self.width))
        self.scores = LocalRows("S", whole_lanes(self.width), M, bounds)
        self.memories |= dict.fromkeys(self.kept, self.scores)
        self.readers = {stage.name: row_value(f"row_{k}") for k, stage in enumerate(parts.rows)}

    def code(self) -> DeviceCode:
        w, parts, plan = self.w, self.parts, self.plan
        self._declare()
        if self.first is not None:
            assert plan.first is not None
            kept = Destination("", self.scores, (axis_digit(N, self.width),))
            self._product(plan.first, self.first, parts.scores[1:], {}, (kept,))
            w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        for k, stage in enumerate(parts.rows):
            self._row_reduction(stage, f"row_{k}")
        kernel, shape = self.kernel, self.kernel.output.shape
        space = flat_space(shape, self.batch, self.rows)
        coords = tuple(substitute(c, space, shape) for c in kernel.store_coords())
        destinations = destinations_of(kernel, coords, self.memories, self.storages)
        self._product(plan.second, self.second, parts.tail, self.kept, destinations)
        note = f"{self.block} rows of a head per group"
        note += f", {self.block} x {self.width} scores in local memory" if self.width else ""
        note += ", on matrix units" if self.units else ""
        size = (self.items * -(-self.height // self.block), self.batches, 1)
        arguments = self.arguments
        dynamic = ring_bytes(plan) + 4 * self.block * whole_lanes(self.width) if self.units else 0
        return DeviceCode(
            w.text(), [*arguments.parameters, *([matrix.POOL] if dynamic else [])], arguments.slots, size,
            (self.items, 1, 1), family="attention", notes=[note], support=(SUPPORT,) if self.units else (),
            sweeps=[] if self.units else arguments.sweeps, checks=arguments.checks, dynamic=dynamic,
        )  # fmt: skip

    def _stored(self) -> list[np.dtype[Any]]:
        """As what the operands of both products are stored."""
        products = [p for p in (self.first, self.second) if p is not None]
        read = {name for p in products for x in (p.a, p.b) for name in tensors_read(x)} - set(self.kept) - self.local
        return [self.storages[name].stored for name in read]

    def _flat(self, stage: Stage) -> Product:
        return flatten_product(stage, self.batch, self.rows, self.storages, self.local)

    def _context(self, extents: tuple[int, ...]) -> DeviceContext:
        axes = Axes({B: "b", M: "m", N: "n", K: "k"}, extents)
        return replace(context_of(axes, self.memories, self.storages), local=self.readers)

    def _declare(self) -> None:
        w, block, plan = self.w, self.block, self.plan
        scores = block * whole_lanes(self.width)
        if self.units:
            matrix.declare(w)
            w.line(f"__local float *const S = (__local float *)(pool + {ring_bytes(plan) // 16});")
        else:
            tiles = [t for t in (plan.second, plan.first) if isinstance(t, Tile)]
            w.line(f"__local float A[{max(t.depth for t in tiles) * (block + PAD)}] {ALIGNED};")
            w.line(f"__local float B[{max(t.depth * t.columns for t in tiles)}] {ALIGNED};")
            if self.parts.scores:
                w.line(f"__local float S[{scores}] {ALIGNED};")
            if slices := max(parts_size(t) for t in tiles):
                w.line(f"__local float4 parts[{slices}];")
        w.line(f"__local float tree[{self.items}];")
        for k in range(len(self.parts.rows)):
            w.line(f"__local float row_{k}[{block}];")
        w.line("const int item = get_local_id(0), b = get_group_id(1);")
        w.line(f"const int m0 = (int)get_group_id(0) * {block};")

    def _product(
        self, tile: Tile | matrix_tile.MatrixTile, product: Product, after: list[Stage],
        kept: dict[str, tuple[int, ...]], destinations: tuple[Destination, ...],
    ) -> None:  # fmt: skip
        """A product, all column tiles one after the other, with the pointwise stages behind it and the store."""
        w, extents, context = self.w, product.extents, self._context(product.extents)
        tail = [placed_stage(s, self.batch, self.rows, self.storages, self.local) for s in after]
        operand_a = placed(product.a, self.storages, self.local, kept)
        operand_b = placed(product.b, self.storages, self.local)
        a = staged("A", M, extents, tile.rows, tile.rows + PAD, operand_a)
        b = staged("B", N, extents, tile.columns, tile.columns, operand_b)
        with w.block(f"for (int n0 = 0; n0 < {extents[N]}; n0 += {tile.columns})"):
            if isinstance(tile, matrix_tile.MatrixTile):
                matrix.accumulate(w, tile, a, b, context, extents[K])
                finish_parts(w, tile, extents, product.flat.name, tail, context, destinations)
                if extents[N] > tile.columns:
                    w.line("barrier(CLK_LOCAL_MEM_FENCE);")
                return
            declare_team(w, tile)
            accumulate(w, tile, a, b, context, extents[K])
            if tile.slices > 1:
                add_slices(w, tile)
            with w.block("if (slice == 0)" if tile.slices > 1 else ""):
                finish(w, tile, extents, product.flat.name, tail, context, destinations)
        bodies = [body for _, body in tail]
        lane = epilogue_lane(extents, bodies, destinations, tile.height)
        self.arguments.sweeps += of_tile(
            tile, extents, (a, b), None, bodies, lane, [(to.tensor, to.place) for to in destinations], self.storages,
            self.kept, -(-extents[N] // tile.columns), len(self.arguments.sweeps),
        )  # fmt: skip

    def _row_reduction(self, stage: Stage, result: str) -> None:
        """One value per row of the block, found by all work-items of the row together."""
        w, across = self.w, self.items // self.block
        flat = flatten(stage, self.batch, self.rows, False)
        body = placed(flat.body, self.storages, self.local, self.kept)
        lane = row_lane(body, flat.columns)
        with w.block(""):
            w.line(f"const int r = item / {across}, l = item % {across}, m = min(m0 + r, {self.height - 1});")
            start, step = initial(stage.combine, stage.dtype), LANES if lane else 1
            w.line(f"{'float4' if lane else 'float'} total = {f'(float4)({start})' if lane else start};")
            with w.loop("n", flat.columns, f"l * {step}", across * step):
                emitter = DeviceEmitter(w, replace(self._context(flat.extents), lane=lane))
                text = emitter.as_vector(emitter.value(body), np.dtype(np.float32))
                w.line(f"total = {combined(stage.combine, 'total', text, lane is not None, stage.dtype)};")
            w.line(f"tree[item] = {f'sm_{stage.combine}4(total)' if lane else 'total'};")
            w.line("barrier(CLK_LOCAL_MEM_FENCE);")
            tree(w, across, "l", "tree[item]", "tree[item + half_]", stage.combine, stage.dtype)
            w.line(f"if (l == 0) {result}[r] = tree[item];")
            w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        self.arguments.sweeps += of_block_rows(
            self.block, across, flat.extents, body, lane, self.storages, {*self.local, *self.kept}
        )
