"""The access patterns of the device schedules: what `nest`, `unrolled`, `rows`, `tile`, `attention` emit, as `Sweep`s.

In: the same data that the code is written from (nests, tiles, staged operands, bodies with places). Out: `Sweep`s. A
change of how work-items share the work there is a change here; `tests/counters` compares both.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from smartmem.codegen.c_expr import Lane
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.expr import Expr
from smartmem.layout.memory import LANES
from smartmem.schedule.choices import Result, limits_of
from smartmem.schedule.flatten import B, K, M, N
from smartmem.schedule.gpu.code import Storages
from smartmem.schedule.gpu.loops import Nest
from smartmem.schedule.gpu.pattern import (
    GROUP,
    ITEM,
    NUMBER,
    ROUND,
    STEP,
    Access,
    Memory,
    Sweep,
    access_of,
    digit,
    loads_of,
    position,
    unravel,
)
from smartmem.schedule.gpu.tile import Staged, Tile
from smartmem.schedule.gpu.window import Row

LOAD = K + 1  # the number of a staged load, as one more loop axis


def of_nest(
    nest: Nest, rows: Sequence[Row | None], lane: Lane | None, share: int, columns: int, groups: int,
    storages: Storages, local: Collection[str], written: Sequence[str], vector: bool,
) -> list[Sweep]:  # fmt: skip
    """A nest: one output (or four along the lane) per work-item, or per `share` items of a group."""
    member = position(ITEM, columns * share)
    self_ = digit(member, 1, columns)
    steps = [LANES if lane and lane.axis == axis else 1 for axis in range(nest.space)]
    items = math.prod(nest.extents[: nest.space]) // math.prod(steps)
    sizes = [n // step for n, step in zip(nest.extents, steps, strict=False)]

    def axes(of: Lin) -> dict[int, Lin]:
        return {axis: value * step for axis, (value, step) in enumerate(zip(unravel(of, sizes), steps, strict=True))}

    item = position(GROUP, groups) * columns + self_
    # where a reduction is shared, a group's spare items compute the last output again
    number = (item, items - 1) if share > 1 else None
    space = axes(position(NUMBER, items) if number else item)
    sweeps: list[Sweep] = []
    before: set[Access] = set()
    for body, reduces, row in zip(nest.bodies, nest.reduces, rows, strict=True):
        loads = loads_of([body] if row is None else [row.guarded, row.plain], storages, local, lane)
        if not reduces:
            loads = [x for x in loads if x not in before]
            before |= set(loads)
        taps = 1 if row is None else row.taps  # which each of those who share takes one after the other
        outer = reduces if row is None else reduces[:-1]
        inner = [nest.extents[axis] for axis in outer]
        turns = taps * -(-math.prod(inner) // share)
        step = position(STEP, turns)
        term = digit(step, taps) * share + digit(member, columns)
        loops = {**space, **dict(zip(outer, unravel(term, inner), strict=True))}
        if row is not None:
            loops[row.tap] = digit(step, 1, taps)
        extents = {axis: nest.extents[axis] for axis in loops}
        sweep = Sweep(loops, extents, tuple(loads), columns * share, turns, phase=len(sweeps), number=number)
        sweeps.append(sweep)
    stored = _stores(zip(written, nest.stores, strict=True), storages, lane, vector)
    extents = {axis: nest.extents[axis] for axis in space}
    sweeps.append(Sweep(axes(item), extents, stored, columns, phase=len(sweeps)))
    return [s for s in sweeps if s.accesses]


def of_choices(
    results: Sequence[Result], extents: Sequence[int], axes: Sequence[int],
    lane: Lane | None, items: int, groups: int, storages: Storages, written: Sequence[str],
) -> list[Sweep]:  # fmt: skip
    """A kernel whose work-items compute several `results` (bodies and places of stores) each, at loops `axes`.

    That results which end earlier than others load again what those have, at the end, is not told.
    """
    steps = [LANES if lane and lane.axis == axis else 1 for axis in axes]
    item = position(GROUP, groups) * items + position(ITEM, items)
    unraveled = unravel(item, [extents[axis] // step for axis, step in zip(axes, steps, strict=True)])
    loops = {axis: value * step for axis, value, step in zip(axes, unraveled, steps, strict=True)}
    ends = {axis: extents[axis] for axis in axes}
    loads: dict[Access, Access] = {}
    for whole, _ in results:
        limits, body = limits_of(whole)
        for access in loads_of([body], storages, (), lane):
            loads.setdefault(access, replace(access, guards=(*limits, *access.guards)))
    sweeps = [Sweep(loops, ends, tuple(loads.values()), items)]
    for body, places in results:
        limits, _ = limits_of(body)
        stores = _stores(zip(written, places, strict=True), storages, lane, limits=limits)
        sweeps.append(Sweep(loops, ends, stores, items, phase=len(sweeps)))
    return [s for s in sweeps if s.accesses]


def _stores(
    written: Iterable[tuple[str, tuple[Lin, ...]]], storages: Storages, lane: Lane | None, vector: bool = True,
    limits: tuple[Guard, ...] = (),
) -> tuple[Access, ...]:  # fmt: skip
    """The stores to tensors at places, where `limits` hold; those in local memory are not told."""
    return tuple(access_of(storages[name], place, lane, vector, limits, True) for name, place in written if name)


@dataclass(frozen=True)
class RowTeams:
    """How a group is cut: `across` items for each of `down` rows; neighbours are `by_rows` or by columns."""

    across: int
    down: int
    by_rows: bool
    vector: bool
    groups: int

    def coordinates(self, height: int) -> tuple[Lin, Lin]:
        """Row and place in the row's team of a work-item."""
        member = position(ITEM, self.across * self.down)
        if self.by_rows:
            row, place = digit(member, 1, self.down), digit(member, self.down)
        else:
            row, place = digit(member, self.across), digit(member, 1, self.across)
        return position(GROUP, self.groups) * self.down + row, place


def of_rows(
    teams: RowTeams, height: int, bodies: Sequence[tuple[Expr, int, bool]], storages: Storages, local: Collection[str],
    written: Sequence[tuple[str, tuple[Lin, ...]]],
) -> list[Sweep]:  # fmt: skip
    """Row reductions: `bodies` are (body with places, columns, whether it is reduced), the last one is stored at the
    places of the `written` tensors."""
    row, within = teams.coordinates(height)
    items = teams.across * teams.down
    sweeps: list[Sweep] = []
    for at, (body, columns, reduced) in enumerate(bodies):
        wide = teams.vector and columns > 1
        lane = Lane(N, columns, LANES) if wide else None
        step = LANES if wide else 1
        turns = -(-columns // (teams.across * step))
        loops = {B: Lin(), M: row, N: position(STEP, turns) * (teams.across * step) + within * step}
        extents, limits = {B: 1, M: height, N: columns}, {M: height - 1}
        accesses = loads_of([body], storages, local, lane)
        if not reduced and at == len(bodies) - 1:  # rows past the end store nothing
            accesses += _stores(written, storages, lane)
            limits = {}
        elif not reduced:  # one value per row, computed by all of its items
            loops[N] = Lin()
        sweeps.append(Sweep(loops, extents, tuple(accesses), items, turns, limits=limits, phase=at))
    if bodies[-1][2]:
        only_first = {B: Lin(), M: row, N: within}
        sweeps.append(
            Sweep(only_first, {B: 1, M: height, N: 1}, _stores(written, storages, None), items, phase=len(bodies))
        )
    return [s for s in sweeps if s.accesses]


def of_block_rows(
    block: int, across: int, extents: tuple[int, ...], body: Expr, lane: Lane | None, storages: Storages,
    local: Collection[str],
) -> list[Sweep]:  # fmt: skip
    """A row reduction inside of attention: `across` items for each row of a group's block."""
    accesses = loads_of([body], storages, local, lane)
    if not accesses:
        return []
    down, step = -(-extents[M] // block), LANES if lane else 1
    b, turn = unravel(position(GROUP, down * extents[B]), (extents[B], down))
    member = position(ITEM, block * across)
    turns = -(-extents[N] // (across * step))
    n = position(STEP, turns) * (across * step) + digit(member, 1, across) * step
    loops = {B: b, M: turn * block + digit(member, across), N: n}
    bounds, limits = {B: extents[B], M: extents[M], N: extents[N]}, {M: extents[M] - 1}
    return [Sweep(loops, bounds, tuple(accesses), block * across, turns, limits=limits)]


@dataclass(frozen=True)
class Corner:
    """The batch, first row and first column of the tile that a group works on."""

    b: Lin
    m0: Lin
    n0: Lin


def corner(tile: Tile, extents: tuple[int, ...], turns: int, turn: Lin) -> Corner:
    """Groups take tiles, columns fastest; with `turns` > 1 a group takes all column tiles of its rows in turn."""
    across, down = 1 if turns > 1 else -(-extents[N] // tile.columns), -(-extents[M] // tile.rows)
    b, m, n = unravel(position(GROUP, across * down * extents[B]), (extents[B], down, across))
    return Corner(b, m * tile.rows, (turn if turns > 1 else n) * tile.columns)


def of_statistics(
    tile: Tile, extents: tuple[int, ...], found: Sequence[tuple[Expr, int, bool, Lane | None]], across: int,
    storages: Storages,
) -> list[Sweep]:  # fmt: skip
    """Values of the tile's rows before its product: `across` items reduce a row, or one computes it from others.

    `found` are (body with places, columns, whether they are reduced, lane), as `statistics.emit` gives them.
    """
    at = corner(tile, extents, 1, Lin())
    member = position(ITEM, tile.items)
    sweeps = []
    for phase, (body, columns, reduced, lane) in enumerate(found):
        accesses = loads_of([body], storages, (), lane)
        wide, team = across if reduced else 1, LANES if lane else 1
        down = max(1, tile.items // wide)
        turns = -(-columns // (wide * team)) if reduced else 1
        row_turn, turn = unravel(position(STEP, -(-tile.rows // down) * turns), (-(-tile.rows // down), turns))
        row = row_turn * down + digit(member, wide)
        n = turn * (wide * team) + digit(member, 1, wide) * team
        loops = {B: at.b, M: at.m0 + row, N: n if reduced else Lin(), LOAD: row}
        bounds = {B: extents[B], M: extents[M], N: columns, LOAD: tile.rows}
        steps = -(-tile.rows // down) * turns
        sweep = Sweep(loops, bounds, tuple(accesses), tile.items, steps, limits={M: extents[M] - 1}, phase=phase)
        sweeps.append(sweep)
    return [s for s in sweeps if s.accesses]


def packed(slot: str, shape: tuple[int, ...], itemsize: int) -> Access:
    """Four columns of a packed operand B, [batch][k][n]."""
    batches, depth, width = shape
    address = axis_digit(K, depth) * width + axis_digit(N, width)
    if batches > 1:
        address = address + axis_digit(B, batches) * (depth * width)
    return Access(Memory(slot, itemsize, math.prod(shape)), (address,), LANES, lane=N)


def of_tile(
    tile: Tile, extents: tuple[int, ...], operands: tuple[Staged, Staged], packed_b: Access | None,
    bodies: Sequence[Expr], lane: Lane | None, written: Sequence[tuple[str, tuple[Lin, ...]]], storages: Storages,
    local: Collection[str] = (), turns: int = 1, phase: int = 0,
) -> list[Sweep]:  # fmt: skip
    """A product and what follows it: `bodies` along `lane`, stored at places of `written` ("" is local memory).

    `packed_b` is the load of a packed operand B. A group takes `turns` column tiles, one after the other.
    """
    stored = _stores(written, storages, lane)
    product = of_product(tile, extents, *operands, packed_b, storages, local, turns, phase)
    return product + of_epilogue(tile, extents, bodies, lane, stored, storages, local, turns, phase + 1)


def of_product(
    tile: Tile, extents: tuple[int, ...], a: Staged, b: Staged, packed_b: Access | None, storages: Storages,
    local: Collection[str], turns: int, phase: int,
) -> list[Sweep]:  # fmt: skip
    """The staged loads of a product."""
    blocks = -(-extents[K] // tile.depth)
    step = position(STEP, blocks * turns)
    block = digit(step, 1, blocks) if turns > 1 else step
    at = corner(tile, extents, turns, digit(step, blocks))
    result = []
    for operand in (a, b):
        is_packed = packed_b is not None and operand is b
        vector = is_packed or operand.along is not None
        along = operand.axis if is_packed else operand.along
        count = operand.size * tile.depth // (LANES if vector else 1)
        rounds = -(-count // tile.items)
        load = position(ROUND, rounds) * tile.items + position(ITEM, tile.items)
        x_step, k_step = (LANES if along == operand.axis else 1), (LANES if along == K else 1)
        if is_packed or operand.fast == operand.axis:
            per = operand.size // x_step
            at_x, at_k = digit(load, 1, per) * x_step, digit(load, per) * k_step
        else:
            per = tile.depth // k_step
            at_k, at_x = digit(load, 1, per) * k_step, digit(load, per) * x_step
        first = at.m0 if operand.axis == M else at.n0
        loops = {B: at.b, operand.axis: first + at_x, K: block * tile.depth + at_k, LOAD: load}
        bounds = {B: extents[B], operand.axis: operand.extent, K: extents[K], LOAD: count}
        if is_packed:
            assert packed_b is not None
            accesses: tuple[Access, ...] = (packed_b,)
        else:
            assert operand.body is not None
            lane = None if along is None else Lane(along, extents[along], LANES)
            accesses = tuple(loads_of([operand.body], storages, local, lane))
        limits = {operand.axis: operand.extent - x_step}
        if accesses:
            result.append(Sweep(loops, bounds, accesses, tile.items, blocks * turns, rounds, limits, phase))
    return result


def of_epilogue(
    tile: Tile, extents: tuple[int, ...], bodies: Sequence[Expr], lane: Lane | None, stored: Sequence[Access],
    storages: Storages, local: Collection[str], turns: int, phase: int,
) -> list[Sweep]:  # fmt: skip
    """What follows a product on its accumulators, and the stores to memory."""
    accesses = [*loads_of(bodies, storages, local, lane), *stored]
    if not accesses:
        return []
    down = LANES if lane and lane.axis == M else 1
    values = 1 if lane and lane.axis == N else LANES
    sizes = (turns, tile.height // down, tile.width // LANES, values)
    turn, i, j, c = unravel(position(STEP, math.prod(sizes)), sizes)
    at = corner(tile, extents, turns, turn)
    across = tile.columns // tile.width
    member, i = position(ITEM, tile.team), i * down
    my_m, my_n = digit(member, across) * LANES, digit(member, 1, across) * LANES
    m = at.m0 + my_m + digit(i, LANES) * (tile.rows * LANES // tile.height) + digit(i, 1, LANES)
    n = at.n0 + my_n + j * (tile.columns * LANES // tile.width) + c
    bounds = {B: extents[B], M: extents[M], N: extents[N]}
    return [Sweep({B: at.b, M: m, N: n}, bounds, tuple(accesses), tile.team, math.prod(sizes), phase=phase)]
