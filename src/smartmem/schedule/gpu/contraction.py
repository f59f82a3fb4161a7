"""Contractions on a device: matrix products, convolutions and their batched and grouped forms, with what is fused on.

In: a row pipeline of one contraction, pointwise producers in its operands' loads, pointwise stages behind it. Out:
OpenCL C of a tiled kernel (`tile`). Constant operands B are packed at compile time as [batch][k][n].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import Lane, Value, lane_free
from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.cl_memory import Bounds, checked
from smartmem.codegen.writer import Writer
from smartmem.device import Device
from smartmem.errors import CompilerError
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Choose, Expr, Load, is_zero, walk
from smartmem.kernel.stage import Kernel, Stage, tensors_read
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import B, K, M, N, flat_space, flatten
from smartmem.schedule.gpu import matrix, matrix_tile, statistics
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
    power_of_two,
)
from smartmem.schedule.gpu.loops import ease, ease_of_stores
from smartmem.schedule.gpu.matrix_tile import FLOAT, Form, Operands
from smartmem.schedule.gpu.nest import reader, store
from smartmem.schedule.gpu.product import Product, flatten_product, is_constant, pack, to_half
from smartmem.schedule.gpu.ptx import SUPPORT, WARPGROUPS, warpgroup_products
from smartmem.schedule.gpu.ring import PackedB, copied
from smartmem.schedule.gpu.sweeps import of_statistics, of_tile, packed
from smartmem.schedule.gpu.tile import ALIGNED, PAD, PlainStager, Staged, Tile, choose_tile, multiply, pipelined, staged
from smartmem.schedule.pipeline import batch_axes, batch_first
from smartmem.schedule.roles import is_contraction

Array = np.ndarray[Any, Any]


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget, constants: Mapping[str, Array]) -> DeviceCode:
    """OpenCL C of a kernel with one contraction."""
    rows = kernel.rows
    assert rows is not None
    kernel = batch_first(kernel, rows)
    batch = len(batch_axes(kernel, rows))
    first = next(s for s in kernel.stages if is_contraction(s, rows))
    found, stages = statistics.take_apart(kernel.stages, first, rows)
    kernel = replace(kernel, stages=stages)
    local = kernel.local() | {s.name for s in found}
    product = flatten_product(stages[0], batch, rows, storages, local)
    batches, m, n, k = product.extents
    read = {*tensors_read(product.a), *tensors_read(product.b)} - set(constants) - local
    form = matrix_tile.form_of(target.half, (storages[name].stored for name in read))
    on_matrix_units = target.tuned and matrix_tile.accepts(m, n, k, target.device)
    constant = is_constant(product, constants)
    names = {t for s in stages[1:] for t in tensors_read(s.body)} | set(tensors_read(product.a))
    names |= set() if constant else set(tensors_read(product.b))
    names |= {t for s in found for t in tensors_read(s.body)}
    arguments, w = Arguments(storages, target.check), new_writer()
    memories = memories_of(kernel, arguments, [t for t in kernel.inputs() if t in names])
    context = context_of(Axes({B: "b", M: "m", N: "n", K: "k"}, product.extents), memories, storages)
    context = replace(context, local=statistics.readers(found))
    shape = kernel.output.shape
    coords = tuple(substitute(c, flat_space(shape, batch, rows), shape) for c in kernel.store_coords())
    tail = [placed_stage(stage, batch, rows, storages, local) for stage in stages[1:]]
    job = Job(
        product, arguments, context, tail, destinations_of(kernel, coords, memories, storages), found, batch, rows
    )  # fmt: skip
    operands = placed(product.a, storages, local), None if constant else placed(product.b, storages, local)
    if on_matrix_units:
        emitted = _matrix_tile(w, job, operands, constants, form, target.device)
    else:
        emitted = _tile(w, job, operands, constants, target)
    note, items, (rows_, columns), weights, dynamic, support = emitted
    size = (-(-n // columns) * items, -(-m // rows_), batches)
    parameters = [*arguments.parameters, *([matrix.POOL] if dynamic else [])]
    return DeviceCode(
        w.text(), parameters, arguments.slots, size, (items, 1, 1), weights, "contraction", [note],
        support, arguments.sweeps, arguments.checks, dynamic,
    )  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What both kinds of tiles need of a kernel."""

    product: Product
    arguments: Arguments
    context: DeviceContext
    tail: list[tuple[Stage, Expr]]
    destinations: tuple[Destination, ...]
    per_row: list[Stage]
    batch: int
    rows: int

    @property
    def name(self) -> str:
        return self.product.flat.name

    @property
    def bodies(self) -> list[Expr]:
        """What follows the product."""
        return [body for _, body in self.tail]

    def reduce_rows(
        self, w: Writer, size: int, items: int, parts: statistics.Parts
    ) -> list[tuple[Expr, int, bool, Lane | None]]:
        """The statistics of the tile's rows, before the product; see `statistics.emit`."""
        statistics.declare(w, self.per_row, size)
        height, storages = self.product.extents[M], self.arguments.storages
        return statistics.emit(
            w, self.per_row, self.batch, self.rows, storages, self.context, size, items, height, parts
        )  # fmt: skip


# note, work-items, tile, weights, `dynamic`, `support`
Emitted = tuple[str, int, tuple[int, int], dict[str, Array], int, tuple[str, ...]]


def _corner(w: Writer, rows: int, columns: int) -> None:
    w.line("const int item = get_local_id(0);")
    w.line(f"const int n0 = (int)get_group_id(0) * {columns}, m0 = (int)get_group_id(1) * {rows};")
    w.line("const int b = get_group_id(2);")


def _tile(
    w: Writer, job: Job, operands: tuple[Expr, Expr | None], constants: Mapping[str, Array], target: DeviceTarget
) -> Emitted:
    """A tile on the ordinary units."""
    product, weights = job.product, dict[str, Array]()
    batch, m, n, k = product.extents
    tile = choose_tile(batch, m, n, k, target.device)
    a = staged("A", M, product.extents, tile.rows, tile.rows + PAD, operands[0])
    packed_b = None
    if operands[1] is None:
        slot = f"{job.name}.packed"
        values = pack(product, constants)
        weights[slot] = to_half(values) if target.half else values
        pointer = job.arguments.buffer(slot, "half" if target.half else "float")
        right = packed_operand(weights[slot], pointer, tile, job.arguments.bounds(slot, address=weights[slot].size))
        packed_b = packed(slot, weights[slot].shape, weights[slot].itemsize)
    else:
        right = staged("B", N, product.extents, tile.columns, tile.columns, operands[1])
    if target.half and target.device.fp16:
        a = a if job.per_row else _as_halves(a, job.arguments.storages)  # where statistics are found in the array first
        right = _as_halves(right, job.arguments.storages)
    w.line(f"__local {a.kind} A[{tile.depth * (tile.rows + PAD)}] {ALIGNED};")
    w.line(f"__local {right.kind} B[{tile.depth * tile.columns}] {ALIGNED};")
    _corner(w, tile.rows, tile.columns)
    declare_team(w, tile)
    across = power_of_two(min(tile.depth, tile.items))
    parts = statistics.Parts(across, lambda row, part: f"A[{part} * {a.stride} + {row}]")
    told = job.reduce_rows(w, tile.rows, tile.items, parts)
    accumulate(w, tile, a, right, job.context, product.extents[K])
    if tile.slices > 1:
        w.line(f"__local float4 parts[{parts_size(tile)}];")
        add_slices(w, tile)
        w.line("if (slice > 0) return;")
    finish(w, tile, product.extents, job.name, job.tail, job.context, job.destinations)
    written = [(to.tensor, to.place) for to in job.destinations]
    lane = epilogue_lane(product.extents, job.bodies, job.destinations, tile.height)
    job.arguments.sweeps += of_statistics(tile, product.extents, told, across, job.arguments.storages)
    job.arguments.sweeps += of_tile(
        tile, product.extents, (a, right), packed_b, job.bodies, lane, written, job.arguments.storages,
        phase=len(told),
    )  # fmt: skip
    note = f"tile {tile.rows}x{tile.columns}x{tile.depth}, {tile.height}x{tile.width} per work-item"
    note += f", {tile.slices} slices" if tile.slices > 1 else ""
    return note, tile.items, (tile.rows, tile.columns), weights, 0, ()


def _matrix_tile(
    w: Writer, job: Job, operands: tuple[Expr, Expr | None], constants: Mapping[str, Array], form: Form, device: Device
) -> Emitted:
    """A tile on matrix units."""
    product, weights = job.product, dict[str, Array]()
    batch, m, n, k = product.extents
    slot, split = f"{job.name}.packed", False
    if operands[1] is None:
        weights[slot], split = matrix.pack_matrix(product, constants, form)
    a = staged("A", M, product.extents, 0, 0, operands[0])
    b = None if operands[1] is None else staged("B", N, product.extents, 0, 0, operands[1])
    along_k = all(o.fast == K for o in (a, b) if o is not None)
    left = copied(a, form, job.context)
    tile = matrix_tile.choose_tile(
        batch, m, n, k, form, device,
        Operands(
            warpgroups=split if form == FLOAT else along_k,
            loaded=(left is None, b is not None and copied(b, form, job.context) is None),
            gathered=left is not None and left.gathered(job.context),
        ),
    )  # fmt: skip
    a = replace(a, size=tile.rows)
    right: Staged | PackedB
    if b is None:
        bounds = job.arguments.bounds(slot, address=weights[slot].size)
        batches, columns, depth = weights[slot].shape
        pointer = job.arguments.buffer(slot, form.kind)
        right = PackedB(pointer, batches, columns, depth, split, bounds)
    else:
        right = replace(b, size=tile.columns)
    _corner(w, tile.rows, tile.columns)
    matrix.declare(w)
    across = power_of_two(min(matrix_tile.WARP, tile.local_bytes // 4 // tile.rows))
    job.reduce_rows(
        w, tile.rows, tile.items, statistics.Parts(across, lambda row, part: f"C[{row} * {across} + {part}]")
    )
    matrix.accumulate(w, tile, a, right, job.context, product.extents[K])
    finish_parts(w, tile, product.extents, job.name, job.tail, job.context, job.destinations)
    return (
        f"tile {tile.rows}x{tile.columns}x{tile.depth} of {form.kind}s on matrix units, {tile.stages} stages",
        tile.items,
        (tile.rows, tile.columns),
        weights,
        tile.local_bytes,
        (SUPPORT, WARPGROUPS, warpgroup_products(tile.columns, form == FLOAT)) if tile.warpgroups else (SUPPORT,),
    )


def placed_stage(stage: Stage, batch: int, rows: int, storages: Storages, local: set[str]) -> tuple[Stage, Expr]:
    """A pointwise stage behind a contraction, over (b, m, n), with places."""
    return stage, placed(flatten(stage, batch, rows, False).body, storages, local)


def packed_operand(weight: Array, pointer: str, tile: Tile, bounds: Bounds | None = None) -> Staged:
    """Operand B from packed weights: vectors along n, in place of a definition."""
    batches, depth, width = weight.shape
    base = f"b * {depth * width} + " if batches > 1 else ""
    half = weight.dtype == np.float16

    def load(k: str, n: str) -> str:
        column = f"min({n}, {width - LANES})" if width % tile.columns else n
        where = f"{pointer} + {checked(bounds, f'{base}{k} * {width} + {column}', together=LANES)}"
        return f"sm_load_half4({where})" if half else f"*(const __global float4 *)({where})"

    return Staged("B", N, width, tile.columns, tile.columns, None, N, None, load)


def _as_halves(operand: Staged, storages: Storages) -> Staged:
    """The operand, staged as the halves that memory holds, if it is nothing but loads of such."""
    nodes = [] if operand.body is None else list(walk(operand.body))
    exact = all(
        isinstance(node, Choose)
        or is_zero(node)
        or (isinstance(node, Load) and node.tensor in storages and storages[node.tensor].stored == np.float16)
        for node in nodes
    )
    return replace(operand, kind="half") if exact else operand


def declare_team(w: Writer, tile: Tile) -> None:
    """``my_m``, ``my_n``: the first row and column of this work-item in the tile; ``slice``: its team."""
    across = tile.columns // tile.width
    member = f"item % {tile.team}" if tile.slices > 1 else "item"
    if tile.slices > 1:
        w.line(f"const int slice = item / {tile.team};")
    w.line(f"const int my_n = ({member}) % {across} * {LANES}, my_m = ({member}) / {across} * {LANES};")


def accumulate(w: Writer, tile: Tile, a: Staged, b: Staged, context: DeviceContext, depth: int) -> None:
    """``sum`` = the product of the tile, over all of k."""
    left, right = PlainStager(w, a, tile, depth, context), PlainStager(w, b, tile, depth, context)
    w.line(f"float4 sum[{tile.height}][{tile.width // LANES}];")
    w.line("#pragma unroll")
    with w.loop("i", tile.height):
        w.line("#pragma unroll")
        with w.loop("j", tile.width // LANES):
            w.line("sum[i][j] = (float4)(0.0f);")
    pipelined(w, (left, right), depth, tile.depth, lambda: multiply(w, tile, a, b))


def parts_size(tile: Tile) -> int:
    """Vectors of local memory that `add_slices` needs."""
    return (tile.slices - 1) * tile.rows * tile.columns // LANES


def add_slices(w: Writer, tile: Tile) -> None:
    """The accumulators of all teams, added up in the first one."""
    vectors = tile.height * tile.width // LANES
    index = f"[i * {tile.width // LANES} + j]"
    with w.block("if (slice > 0)"):
        w.line(f"__local float4 *const mine = parts + (item - {tile.team}) * {vectors};")
        _each(w, tile, f"mine{index} = sum[i][j];")
    w.line("barrier(CLK_LOCAL_MEM_FENCE);")
    with w.block("if (slice == 0)"), w.loop("other", tile.slices - 1):
        w.line(f"const __local float4 *const theirs = parts + (other * {tile.team} + item) * {vectors};")
        _each(w, tile, f"sum[i][j] += theirs{index};")


def _each(w: Writer, tile: Tile, text: str) -> None:
    w.line("#pragma unroll")
    with w.loop("i", tile.height):
        w.line("#pragma unroll")
        with w.loop("j", tile.width // LANES):
            w.line(text)


def epilogue_lane(
    extents: tuple[int, ...], bodies: list[Expr], destinations: tuple[Destination, ...], height: int
) -> Lane | None:
    """Along which axis results are finished and stored four at a time: columns, rows, or none."""
    accesses = [node for body in bodies for node in walk(body) if isinstance(node, Load) and node.index]
    guards = [node.guards for body in bodies for node in walk(body) if isinstance(node, Choose)]
    best: tuple[float, Lane] | None = None
    places = [to.place for to in destinations]
    for axis in (N, M):
        lane = Lane(axis, extents[axis], LANES)
        if lane.extent % LANES or (axis == M and height % LANES):
            continue
        stores = ease_of_stores(places, lane)
        if stores is None or not all(lane_free(g, lane) for g in guards):
            continue
        score = 3 * stores + sum(ease(x.index, lane) for x in accesses if len(x.index) > 0)
        if best is None or score > best[0]:
            best = (score, lane)
    if best is None and any(len(place) == 3 for place in places):
        raise CompilerError("a texture is stored to along an axis that no tile has; please report this")
    return best[1] if best else None


def finish(
    w: Writer, tile: Tile, extents: tuple[int, ...], name: str, tail: list[tuple[Stage, Expr]],
    context: DeviceContext, destinations: tuple[Destination, ...],
) -> None:  # fmt: skip
    """The stages behind the contraction on the accumulators, and the store."""
    lane = epilogue_lane(extents, [body for _, body in tail], destinations, tile.height)
    row_step, column_step = tile.rows * LANES // tile.height, tile.columns * LANES // tile.width
    m_of, n_of = f"m0 + my_m + i / {LANES} * {row_step} + i % {LANES}", f"n0 + my_n + j * {column_step}"
    w.line("#pragma unroll")
    with w.loop("i", tile.height, 0, LANES if lane and lane.axis == M else 1):
        w.line("#pragma unroll")
        with w.loop("j", tile.width // LANES):
            if lane is not None and lane.axis == N:
                _finish_one(w, extents, name, tail, context, destinations, lane, m_of, n_of, Value("sum[i][j]", True))
            else:
                w.line("#pragma unroll")
                with w.loop("c", LANES):
                    if lane is None:
                        value = Value("sm_get(sum[i][j], c)")
                    else:
                        parts = ", ".join(f"sm_get(sum[i + {r}][j], c)" for r in range(LANES))
                        value = Value(f"(float4)({parts})", True)
                    _finish_one(w, extents, name, tail, context, destinations, lane, m_of, f"{n_of} + c", value)


def finish_parts(
    w: Writer, tile: matrix_tile.MatrixTile, extents: tuple[int, ...], name: str, tail: list[tuple[Stage, Expr]],
    context: DeviceContext, destinations: tuple[Destination, ...],
) -> None:  # fmt: skip
    """The stages behind a contraction on matrix units, part by part through local memory, and the store."""
    lane = epilogue_lane(extents, [body for _, body in tail], destinations, tile.rows)
    stride = tile.part_stride
    down, across = (LANES if lane and lane.axis == axis else 1 for axis in (M, N))
    per = tile.columns // across
    count = tile.part_rows // down * per
    w.line("#pragma unroll")
    with w.loop("i", tile.row_blocks):
        matrix.put_part(w, tile)
        w.line("#pragma unroll")
        with w.loop("u", -(-count // tile.items)):
            w.line(f"const int at = item + u * {tile.items};")
            if count % tile.items:
                w.line(f"if (at >= {count}) break;")
            w.line(f"const int x = at % {per} * {across}, y = at / {per} * {down};")
            if across > 1:
                value = Value(f"*(const __local float4 *)(C + y * {stride} + x)", True)
            elif down > 1:
                value = Value(f"(float4)({', '.join(f'C[(y + {r}) * {stride} + x]' for r in range(LANES))})", True)
            else:
                value = Value(f"C[y * {stride} + x]")
            row = f"m0 + {matrix.part_row(tile, 'y')}"
            _finish_one(w, extents, name, tail, context, destinations, lane, row, "n0 + x", value)


def _finish_one(
    w: Writer, extents: tuple[int, ...], name: str, tail: list[tuple[Stage, Expr]], context: DeviceContext,
    destinations: tuple[Destination, ...], lane: Lane | None, m_of: str, n_of: str, value: Value,
) -> None:  # fmt: skip
    w.line(f"const int m = {m_of}, n = {n_of};")
    with w.block(f"if (m < {extents[M]} && n < {extents[N]})"):
        w.line(f"const {'float4' if value.vector else 'float'} value = {value.text};")
        values = {name: Value("value", value.vector)}
        local = {**context.local, **{stage.name: reader(values, stage.name) for stage, _ in tail}}
        local[name] = reader(values, name)
        inner = replace(context, lane=lane, local=local)
        emitter = DeviceEmitter(w, inner)
        result, dtype = values[name], np.dtype(np.float32)
        for stage, body in tail:
            result = values[stage.name] = emitter.value(body)
            dtype = stage.dtype
        store(w, inner, destinations, result, emitter, dtype)
