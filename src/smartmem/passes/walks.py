"""How the work-items of a device kernel walk over the tensors that they read and write.

In: a kernel. Out: `Group`s of accesses that share a walk. A schedule chooses the walk of a group by the layouts that it
finds, so a group lists all that the schedule could choose; `access_cost` says what each of them costs in given layouts.

    nest            one group: every load and the store; vectors along any loop, neighbours along any loop
    row reduction   one group: vectors along the columns, or single values with neighbours along columns or rows
    contraction     three groups: operand A (along k or rows), operand B (along k or columns, none if it is constant),
                    the store with the loads of the stages behind the product (along columns or rows)
                    and one for each row statistic before the product (along columns)
    attention       the groups of both products, and of the rows between them
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smartmem.device import Device
from smartmem.index.lin import Lin
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Alu, Expr, loads
from smartmem.kernel.stage import Kernel, tensors_read
from smartmem.layout.memory import LANES
from smartmem.schedule.choices import count_choices
from smartmem.schedule.flatten import B, Flat, K, M, N, flat_space, flatten
from smartmem.schedule.gpu import attention, statistics
from smartmem.schedule.gpu.rows import row_stages
from smartmem.schedule.gpu.tile import Tile, choose_tile
from smartmem.schedule.operand_b import b_tensors
from smartmem.schedule.pipeline import batch_axes, batch_first
from smartmem.schedule.roles import is_contraction

NEIGHBOURS = 32  # work-items whose accesses a device makes together


@dataclass(frozen=True)
class Access:
    """A load or store: `index` over the group's axes, `volume` values in one run of the kernel."""

    tensor: str
    index: tuple[Lin, ...]
    volume: float
    write: bool = False


@dataclass(frozen=True)
class Walk:
    """Neighbouring work-items: `vector` is the axis of which each takes four values at once (None: one value), `steps`
    are axes with the number of neighbours along them, the nearest first."""

    vector: int | None
    steps: tuple[tuple[int, int], ...]

    @property
    def items(self) -> int:
        return math.prod(count for _, count in self.steps)


@dataclass(frozen=True)
class Group:
    """Accesses of `kernel` over axes of `extents` that share one of `walks`."""

    kernel: str
    extents: tuple[int, ...]
    accesses: tuple[Access, ...]
    walks: tuple[Walk, ...]


def groups_of(kernel: Kernel, constants: Iterable[str], device: Device) -> list[Group]:
    """The groups of a kernel; their walks are those of the schedule that computes it."""
    rows = kernel.rows
    if kernel.rows is None:
        return [_nest(kernel)]
    contracted = [s for s in kernel.stages if is_contraction(s, kernel.rows)]
    if not contracted:
        return [_rows(kernel, kernel.rows)]
    kernel = batch_first(kernel, kernel.rows)
    assert rows is not None
    batch, local = len(batch_axes(kernel, rows)), kernel.local()
    contracted = [s for s in kernel.stages if is_contraction(s, rows)]
    before = kernel.stages[: kernel.stages.index(contracted[-1])]
    known = set(constants)
    groups: list[Group] = []
    constant = not set(b_tensors(contracted[-1])) - known
    if len(contracted) == 2 or (not constant and any(s.reduce for s in before)):
        parts = attention.take_apart(kernel)
        assert not isinstance(parts, str)
        products, between, tail = [*parts.scores[:1], parts.product], [*parts.scores[1:], *parts.rows], parts.tail
        height = math.prod(kernel.output.shape[batch:rows])
        width = math.prod(parts.scores[-1].shape[rows:]) if parts.scores else 0
        block = attention.block_rows(width, height, device)
        tiles = [attention.tile_of(block, math.prod(s.shape[rows:])) for s in products]
        flats = [flatten(s, batch, rows, False) for s in between]
        groups += [_tail(kernel, flat.extents, [flat], local, None) for flat in flats]
    else:
        found, stages = statistics.take_apart(kernel.stages, contracted[0], rows)
        products, tail, tiles = stages[:1], stages[1:], []
        groups += [_statistic(kernel, flatten(s, batch, rows, False), local) for s in found]
    for stage in products:
        flat = flatten(stage, batch, rows, True)
        b, m, n = flat.extents[:K]
        depth = math.prod(flat.extents[K:])
        tile = tiles.pop(0) if tiles else choose_tile(b, m, n, depth, device)
        groups += _operands(kernel, flat, tile, local, known)
    shape = kernel.output.shape
    space = flat_space(shape, batch, rows)
    store = tuple(substitute(c, space, shape) for c in kernel.store_coords())
    extents = (math.prod(shape[:batch]), math.prod(shape[batch:rows]), math.prod(shape[rows:]))
    groups.append(_tail(kernel, extents, [flatten(s, batch, rows, False) for s in tail], local, store))
    return [group for group in groups if group.accesses]


def _accesses(body: Expr, volume: float, local: set[str]) -> list[Access]:
    return [Access(x.tensor, x.index, volume) for x in loads(body) if x.tensor not in local]


def _stores(kernel: Kernel, coords: tuple[Lin, ...]) -> list[Access]:
    return [Access(name, coords, kernel.output.size, True) for name in kernel.written]


def _nest(kernel: Kernel) -> Group:
    space, local = kernel.output.shape, kernel.local()
    # what choices have in common is loaded once
    found = [a for s in kernel.stages for a in _accesses(s.body, math.prod(s.domain) / count_choices(s.body), local)]
    found += _stores(kernel, kernel.store_coords())
    deepest = max((s.domain for s in kernel.stages), key=len)
    live = [axis for axis, n in enumerate(space) if n > 1] or list(range(len(space)))[-1:]
    walks = [_walk(v, (f, *reversed(live)), space) for v in (*live, None) for f in live]
    return Group(kernel.tensor, deepest, tuple(found), _valid(walks, space))


def _rows(kernel: Kernel, rows: int) -> Group:
    local = kernel.local()
    flats = [flatten(stage, 0, rows, False) for stage in row_stages(kernel, rows)]
    found = [a for f in flats for a in _accesses(f.body, math.prod(f.extents), local)]
    coords = tuple(substitute(c, flats[-1].space, kernel.output.shape) for c in kernel.store_coords())
    found += _stores(kernel, coords)
    extents = (1, flats[0].extents[M], max(flat.columns for flat in flats))
    walks = [_walk(v, order, extents) for v, order in ((N, (N, M)), (None, (N, M)), (None, (M, N)))]
    return Group(kernel.tensor, extents, tuple(found), _valid(walks, extents))


def _operands(kernel: Kernel, flat: Flat, tile: Tile, local: set[str], constants: set[str]) -> list[Group]:
    """Operands A and B of a product; a block of one is loaded again for each tile across the other's free axis."""
    assert isinstance(flat.body, Alu)
    a, b = flat.body.args
    volume = math.prod(flat.extents[:2]) * math.prod(flat.extents[K:])
    groups = [_operand(kernel, flat, a, M, volume * -(-flat.extents[N] // tile.columns), tile, local)]
    if set(tensors_read(b)) - constants:
        volume = flat.extents[B] * flat.extents[N] * math.prod(flat.extents[K:])
        groups.append(_operand(kernel, flat, b, N, volume * -(-flat.extents[M] // tile.rows), tile, local))
    return groups


def _operand(kernel: Kernel, flat: Flat, body: Expr, free: int, volume: float, tile: Tile, local: set[str]) -> Group:
    extents, walks = flat.extents, []
    for k in range(K, len(extents)):
        for vector in (k, free, None):
            for first in (vector,) if vector is not None else (k, free):
                wide = min(extents[k], tile.depth) // (LANES if vector == k else 1)
                long = min(extents[free], tile.rows if free == M else tile.columns) // (LANES if vector == free else 1)
                counts = {k: max(1, wide), free: max(1, long)}
                walks.append(_walk(vector, (first, free, k), extents, counts))
    return Group(kernel.tensor, extents, tuple(_accesses(body, volume, local)), _valid(walks, extents))


def _tail(
    kernel: Kernel, extents: tuple[int, ...], flats: list[Flat], local: set[str], store: tuple[Lin, ...] | None
) -> Group:
    found = [a for f in flats for a in _accesses(f.body, math.prod(f.extents), local)]
    if store is not None:
        found += _stores(kernel, store)
    walks = [_walk(v, (N, M), extents, {N: 16}) for v in (N, M, None)]
    return Group(kernel.tensor, extents, tuple(found), _valid(walks, extents))


def _statistic(kernel: Kernel, flat: Flat, local: set[str]) -> Group:
    """One value per row before a product. That every column tile finds it again, from the cache, is not counted."""
    found = _accesses(flat.body, math.prod(flat.extents), local)
    walks = [_walk(vector, (N, M), flat.extents) for vector in (N, None)]
    return Group(kernel.tensor, flat.extents, tuple(found), _valid(walks, flat.extents))


def _walk(
    vector: int | None, order: Sequence[int], extents: Sequence[int], counts: dict[int, int] | None = None
) -> Walk:
    """A walk of up to `NEIGHBOURS` work-items that goes along the axes in `order`, at most `counts` along one."""
    steps: list[tuple[int, int]] = []
    left = NEIGHBOURS
    for axis in dict.fromkeys(order):
        most = min(extents[axis] // (LANES if axis == vector else 1), (counts or {}).get(axis, NEIGHBOURS))
        count = min(left, max(1, most))
        steps.append((axis, count))
        left //= count
    return Walk(vector, tuple(step for step in steps if step[1] > 1) or tuple(steps[:1]))


def _valid(walks: Sequence[Walk], extents: Sequence[int]) -> tuple[Walk, ...]:
    """Each walk once, without those whose vectors do not divide their axis; one work-item alone if there is no axis."""
    found = dict.fromkeys(w for w in walks if w.vector is None or extents[w.vector] % LANES == 0)
    return tuple(found) or (Walk(None, ()),)
