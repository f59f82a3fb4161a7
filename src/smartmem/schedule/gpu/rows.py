"""Row reductions on a device: LayerNorm, softmax, statistics.

Each row belongs to a few work-items of one group. A tree in local memory combines what they found, or, where they are
part of warps, exchanges between registers. Stages with columns are computed again wherever they are read, so a row is
read as often as there are reductions, from the cache; after exchanges a compiler sees that these are the same loads.

In: a row pipeline without contractions. Out: OpenCL C. Work-items that are neighbours take neighbouring columns, or
neighbouring rows where those lie together in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from smartmem.codegen.c_expr import Lane, Value, lane_free, step_along
from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.writer import Writer
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Choose, Expr, Load, walk
from smartmem.kernel.stage import Kernel, Stage, without
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import B, Flat, M, N, flatten
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
from smartmem.schedule.gpu.loops import ease
from smartmem.schedule.gpu.matrix_tile import WARP
from smartmem.schedule.gpu.nest import reader, store, tree, w_name
from smartmem.schedule.gpu.ptx import ACROSS
from smartmem.schedule.gpu.sweeps import RowTeams, of_rows
from smartmem.schedule.nest import combined, initial

GROUP = 128
UNROLLED = 4  # parts of a row that a work-item of a warp holds in registers
WIDEST = 256  # work-items of several warps that a row may have


def row_stages(kernel: Kernel, rows: int) -> list[Stage]:
    """The stages with every column stage but the last one computed in the loads of its readers."""
    return without(kernel.stages, [s.name for s in kernel.stages[:-1] if not s.reduce and len(s.shape) > rows])


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget) -> DeviceCode:
    """OpenCL C of a row pipeline without contractions."""
    rows = kernel.rows
    assert rows is not None
    stages = row_stages(kernel, rows)
    flats = [flatten(stage, 0, rows, False) for stage in stages]
    arguments, w = Arguments(storages, target.check), new_writer()
    memories = memories_of(kernel, arguments)
    height = flats[0].extents[M]
    width = max(flat.columns for flat in flats)
    local = kernel.local()
    bodies = [placed(flat.body, storages, local) for flat in flats]
    last = flats[-1]
    coords = tuple(substitute(c, last.space, kernel.output.shape) for c in kernel.store_coords())
    destinations = destinations_of(kernel, coords, memories, storages)
    vector = _vector(flats, bodies, destinations)
    adjacent = _columns_adjacent(bodies, flats)
    each = width // (LANES if vector else 1)
    in_warps = adjacent and target.tuned and target.device.ptx and each <= UNROLLED * WIDEST
    if in_warps:
        across = min(WARP, 1 << (max(each, 1) - 1).bit_length())
        while each > UNROLLED * across:
            across *= 2
        down = max(WARP // across, power_of_two(min(GROUP // across, height // target.device.compute_units)))
        group = across * down
    else:
        group = power_of_two(min(GROUP if width < 2048 else 256, target.device.max_work_group))
        across = min(group, power_of_two(max(1, each)))
        if across * 2 <= min(group, each):
            across *= 2
        down = group // across
        w.line(f"__local float parts[{group}];")
    by_rows = not adjacent and down > 1
    first, second = (down, "r") if by_rows else (across, "l")
    other = "l" if by_rows else "r"
    w.line(f"const int {second} = get_local_id(0) % {first}, {other} = get_local_id(0) / {first};")
    w.line(f"const int row = (int)get_group_id(0) * {down} + r, m = min(row, {height - 1}), b = 0;")
    values: dict[str, Value] = {}
    emit = _Rows(w, across, down, vector, height, in_warps)
    for flat, body in zip(flats, bodies, strict=True):
        axes = Axes({B: "b", M: "m", N: "n"}, (1, height, flat.columns))
        context = replace(
            context_of(axes, memories, storages),
            local={name: reader(values, name) for name in local},
        )
        stage = flat.stage
        if stage.reduce:
            values[stage.name] = emit.reduction(flat, body, context)
        elif flat is not last:
            values[stage.name] = DeviceEmitter(w, context).value(body)
        else:
            _output(w, emit, flat, body, context, destinations, len(stage.shape) == rows)
    if last.stage.reduce:
        with w.block(f"if (l == 0 && row < {height})"):
            context = context_of(Axes({B: "b", M: "m", N: "0"}, (1, height, 1)), memories, storages)
            scalar = DeviceEmitter(w, context)
            store(w, context, destinations, values[last.name], scalar, last.stage.dtype)
    groups = -(-height // down)
    told = [(body, flat.columns, bool(flat.stage.reduce)) for flat, body in zip(flats, bodies, strict=True)]
    teams = RowTeams(across, down, by_rows, vector, groups)
    sweeps = of_rows(teams, height, told, storages, local, [(to.tensor, to.place) for to in destinations])
    return DeviceCode(
        w.text(), arguments.parameters, arguments.slots, (groups * group,), (group,), family="row reduction",
        sweeps=sweeps, checks=arguments.checks, support=(ACROSS,) if in_warps else (),
    )  # fmt: skip


def _vector(flats: list[Flat], bodies: list[Expr], destinations: tuple[Destination, ...]) -> bool:
    """Whether columns are taken four at a time."""
    wide = [(f, b) for f, b in zip(flats, bodies, strict=True) if f.columns > 1]
    if not wide or any(f.columns % LANES for f, _ in wide):
        return False
    if any(len(to.place) == 3 for to in destinations):
        return True  # a texture is stored to in whole texels
    good, total = 0.0, 0
    for flat, body in wide:
        lane = Lane(N, flat.columns, LANES)
        for node in walk(body):
            if isinstance(node, Load) and node.index:
                good += ease(node.index, lane)
                total += 1
            if isinstance(node, Choose) and not lane_free(node.guards, lane):
                return False
    return good >= 0.6 * total


def _columns_adjacent(bodies: list[Expr], flats: list[Flat]) -> bool:
    """Whether most loads move along the columns by one."""
    votes = 0
    for body, flat in zip(bodies, flats, strict=True):
        if flat.columns == 1:
            continue
        for node in walk(body):
            if isinstance(node, Load) and node.index:
                steps = [step_along(part, Lane(N, flat.columns, 1)) for part in node.index]
                rows = [step_along(part, Lane(M, flat.extents[M], 1)) for part in node.index]
                votes += (1 in steps) - (1 in rows and 1 not in steps)
    return votes >= 0


class _Rows:
    """Code of row reductions: `across` work-items per row, `down` rows per group.

    `in_warps`: the work-items of a row are a part of a warp or whole warps, and exchange registers.
    """

    def __init__(self, writer: Writer, across: int, down: int, vector: bool, height: int, in_warps: bool) -> None:
        self.writer, self.across, self.down, self.vector, self.height = writer, across, down, vector, height
        self.in_warps = in_warps

    @contextmanager
    def loop(self, columns: int) -> Iterator[None]:
        w, step = self.writer, LANES if self.vector and columns > 1 else 1
        start, stride = f"l * {step}" if step > 1 else "l", self.across * step
        if not self.in_warps:
            with w.loop("n", columns, start, stride):
                yield
            return
        w.line("#pragma unroll")  # as often for all, so that loads are known to be the same ones again
        with w.loop("u", -(-columns // stride)):
            w.line(f"const int n = {start} + u * {stride};")
            with w.block(f"if (n < {columns})") if columns % stride else nullcontext():
                yield

    def reduction(self, flat: Flat, body: Expr, context: DeviceContext) -> Value:
        w, stage = self.writer, flat.stage
        vector = self.vector and flat.columns > 1
        total, start = w.fresh("total"), initial(stage.combine, stage.dtype)
        w.line(f"{'float4' if vector else 'float'} {total} = {f'(float4)({start})' if vector else start};")
        inner = replace(context, lane=Lane(N, flat.columns, LANES) if vector else None)
        with self.loop(flat.columns):
            emitter = DeviceEmitter(w, inner)
            value = emitter.value(body)
            text = emitter.as_vector(value, np.dtype(np.float32))
            w.line(f"{total} = {combined(stage.combine, total, text, vector, stage.dtype)};")
        if vector:
            total = w_name(w, f"sm_{stage.combine}4({total})", False)
        if self.across == 1:
            return Value(total)
        if self.in_warps:
            return Value(self._across_warps(total, stage))
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        w.line(f"parts[r * {self.across} + l] = {total};")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        here = f"parts[r * {self.across} + l"
        tree(w, self.across, "l", f"{here}]", f"{here} + half_]", stage.combine, stage.dtype)
        return Value(w_name(w, f"parts[r * {self.across}]", False))

    def _across_warps(self, total: str, stage: Stage) -> str:
        """All parts of a row combined: by exchanges within warps, then in local memory, which no other stage uses."""
        w = self.writer

        def add(text: str) -> str:
            other = w_name(w, text, False)
            return w_name(w, combined(stage.combine, total, other, False, stage.dtype), False)

        for mask in (16, 8, 4, 2, 1):
            if mask < self.across:
                total = add(f"sm_across({total}, {mask})")
        warps = self.across // WARP
        if warps <= 1:
            return total
        parts = w.fresh("parts")
        w.line(f"__local float {parts}[{self.down * warps}];")
        w.line(f"if (l % {WARP} == 0) {parts}[r * {warps} + l / {WARP}] = {total};")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        total = w_name(w, f"{parts}[r * {warps}]", False)
        for warp in range(1, warps):
            total = add(f"{parts}[r * {warps} + {warp}]")
        return total


def _output(
    w: Writer, emit: _Rows, flat: Flat, body: Expr, context: DeviceContext, destinations: tuple[Destination, ...],
    single: bool,
) -> None:  # fmt: skip
    """The columns of the last stage, or its one value per row."""
    with w.block(f"if (row < {emit.height}{' && l == 0' if single else ''})"):
        if single:
            emitter = DeviceEmitter(w, context)
            store(w, context, destinations, emitter.value(body), emitter, flat.stage.dtype)
            return
        inner = replace(context, lane=Lane(N, flat.columns, LANES) if emit.vector else None)
        with emit.loop(flat.columns):
            emitter = DeviceEmitter(w, inner)
            store(w, inner, destinations, emitter.value(body), emitter, flat.stage.dtype)
