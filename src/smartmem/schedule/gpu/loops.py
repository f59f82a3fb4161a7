"""Loop nests on a device: a kernel whose stages share the output's axes, over refined loops with places.

In: a kernel that `schedule.nest.accepts` admits, storages. Out: a `Nest`; `choose_lane` picks the loop whose values a
work-item computes four at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import Lane, lane_free, step_along, vectorizable
from smartmem.index.lin import Lin, renumber
from smartmem.index.map import evaluate
from smartmem.index.refine import merge, refine
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Choose, Expr, Load, index_values, map_lins, walk
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import N
from smartmem.schedule.gpu.code import Storages, placed
from smartmem.schedule.loops import hoist_padding

LINE = 32  # elements of a cache line, about
MUCH = 0.8  # what another order of the loops must cost at most, beside that of the output

_ACCUMULATE = frozenset(("", "sum", "prod", "max", "min"))


@dataclass
class Nest:
    """A kernel over refined loops.

    Attributes:
        extents: of all loops, space loops first (the outermost in memory first), then reduce loops.
        space: number of space loops.
        bodies: of the stages; loads carry places.
        reduces: the reduce loops of each stage.
        stores: places of the output, and of its copies.
    """

    extents: tuple[int, ...]
    space: int
    bodies: list[Expr]
    reduces: list[tuple[int, ...]]
    stores: tuple[tuple[Lin, ...], ...]


def build(kernel: Kernel, storages: Storages) -> Nest:
    """Gives each stage reduce axes of its own, then refines and merges all loops over the places of the accesses."""
    local, rank = kernel.local(), len(kernel.output.shape)
    extents = list(kernel.output.shape)
    bodies: list[Expr] = []
    owner: list[int] = [-1] * rank
    for number, stage in enumerate(kernel.stages):
        moved = {rank + k: len(extents) + k for k in range(len(stage.reduce))}
        body = placed(hoist_padding(stage.body) if stage.combine == "sum" else stage.body, storages, local)
        bodies.append(map_lins(body, {v: renumber(v, moved) for v in index_values(body)}))
        extents += stage.reduce
        owner += [number] * len(stage.reduce)
    address = storages[kernel.tensor].at(kernel.store_coords())
    stores = [storages[name].access(kernel.store_coords()) for name in kernel.written]
    stored = [part for store in stores for part in store]
    old = list(dict.fromkeys([address, *stored, *(v for body in bodies for v in index_values(body))]))
    refined = refine(extents, old)
    refined = replace(refined, lins=tuple(substitute(v, refined.axes, extents) for v in old))
    strides = {d.axis: s for s, d in refined.lins[0].terms if isinstance(d.axis, int)}
    reducing = [a for a, o in enumerate(refined.origin) if o >= rank]
    order = sorted((a for a, o in enumerate(refined.origin) if o < rank), key=lambda a: (-abs(strides.get(a, 0)), a))
    # the linear address only orders the loops: a texture's rows and columns need not be one number
    kept = [v for v in old if v in stored or any(v in index_values(b) for b in bodies)]
    position = {v: k for k, v in enumerate(old)}
    merged = merge(refined.extents, order + reducing, [refined.lins[position[v]] for v in kept], keep=reducing)
    change = dict(zip(kept, merged.lins, strict=True))
    space = len(merged.extents) - len(reducing)
    loops = [
        tuple(space + k for k, axis in enumerate(reducing) if owner[refined.origin[axis]] == number)
        for number in range(len(kernel.stages))
    ]
    changed = tuple(tuple(change[v] for v in store) for store in stores)
    return Nest(merged.extents, space, [map_lins(b, change) for b in bodies], loops, changed)


def ordered(nest: Nest, lane: Lane | None, items: int) -> tuple[Nest, Lane | None]:
    """The nest with that space loop innermost along which neighbouring work-items touch the fewest cache lines.

    That is the last one, along which the output lies, unless loads of a reduction lie along another one, so that each
    would touch a line of its own. All accesses must be to buffers.

    Args:
        items: how many neighbours are looked at.
    """
    places = [(store, 1) for store in nest.stores]
    for body, reduces in zip(nest.bodies, nest.reduces, strict=True):
        times = math.prod(nest.extents[axis] for axis in reduces)
        places += [(node.index, times) for node in walk(body) if isinstance(node, Load) and node.index]
    if any(len(place) > 1 for place, _ in places) or nest.space < 2:
        return nest, lane
    orders = [[*(a for a in range(nest.space) if a != last), last] for last in reversed(range(nest.space))]
    costs = [sum(n * _lines(place[0], nest, order, lane, items) for place, n in places) for order in orders]
    best = min(range(len(orders)), key=lambda k: costs[k])
    if costs[best] > MUCH * costs[0]:
        return nest, lane
    moved = {axis: number for number, axis in enumerate(orders[best])}
    change = {v: renumber(v, moved) for body in nest.bodies for v in index_values(body)}
    changed = replace(
        nest,
        extents=(*(nest.extents[axis] for axis in orders[best]), *nest.extents[nest.space :]),
        bodies=[map_lins(body, change) for body in nest.bodies],
        stores=tuple(tuple(renumber(part, moved) for part in store) for store in nest.stores),
    )
    return changed, None if lane is None else replace(lane, axis=moved[lane.axis])


def _lines(place: Lin, nest: Nest, order: Sequence[int], lane: Lane | None, items: int) -> int:
    """How many cache lines so many neighbours touch, in the middle of the space, counted for each load of theirs."""
    sizes = [nest.extents[a] // (LANES if lane and lane.axis == a else 1) for a in order]
    number = (np.arange(items) + math.prod(sizes) // 2) % math.prod(sizes)
    coordinates: list[Any] = [0] * len(nest.extents)
    for axis, value in zip(order, np.unravel_index(number, sizes), strict=True):
        coordinates[axis] = value * (LANES if lane and lane.axis == axis else 1)
    step = step_along(place, lane) if lane else 0
    lanes = range(1 if step in (0, 1) else LANES)
    found = 0
    for k in lanes:
        if lane and k:
            coordinates[lane.axis] = coordinates[lane.axis] + 1
        at = evaluate(place, coordinates, lambda tensor, entry: np.zeros(items, np.int64))
        found += len(np.unique(np.broadcast_to(at, items) // LINE))
    return found


def choose_lane(nest: Nest, kernel: Kernel) -> Lane | None:
    """The loop along which four values are computed together, None if single values are better.

    A texture can only be stored to in whole texels, so it decides.
    """
    single = not all(
        vectorizable(b, s.dtype) and s.combine in _ACCUMULATE for b, s in zip(nest.bodies, kernel.stages, strict=True)
    )
    if single or math.prod(nest.extents) == 0:
        return None
    accesses = [n for body in nest.bodies for n in walk(body) if isinstance(n, Load) and n.index]
    guards = [n.guards for body in nest.bodies for n in walk(body) if isinstance(n, Choose)]
    best: tuple[float, Lane] | None = None
    for axis in range(nest.space):
        lane = Lane(axis, nest.extents[axis], LANES)
        if lane.extent % LANES:
            continue
        stores = ease_of_stores(nest.stores, lane)
        if stores is None:
            continue
        score = 2 * stores + sum(ease(n.index, lane) for n in accesses)
        score *= 1 if all(lane_free(g, lane) for g in guards) else 0.5
        if best is None or score > best[0]:
            best = (score, lane)
    if best is None or (all(len(store) == 1 for store in nest.stores) and best[0] < 0.5 * (2 + len(accesses))):
        return None
    return best[1]


def ease(place: tuple[Lin, ...], lane: Lane) -> float:
    """How well an access suits a lane: 1 in one piece or uniform, less otherwise."""
    steps = [step_along(part, lane) for part in place]
    if all(step == 0 for step in steps):
        return 1.0
    if len(place) == 1:
        return 1.0 if steps[0] == 1 else 0.2
    row, column, within = steps
    return 1.0 if row == 0 and column == 0 and within == 1 else 0.1


def ease_of_stores(places: Iterable[tuple[Lin, ...]], lane: Lane) -> float | None:
    """How well stores suit a lane, None if a texture among them is not stored to in whole texels."""
    found = [(ease(place, lane), len(place) == 3) for place in places]
    return None if any(texture and suits < 1 for suits, texture in found) else sum(suits for suits, _ in found)


def row_lane(body: Expr, columns: int) -> Lane | None:
    """The lane along the columns of a row (axis N), if everything that is read lies together there."""
    lane = Lane(N, columns, LANES)
    nodes = list(walk(body))
    if columns % LANES or not all(lane_free(n.guards, lane) for n in nodes if isinstance(n, Choose)):
        return None
    return lane if all(ease(n.index, lane) == 1 for n in nodes if isinstance(n, Load) and n.index) else None
