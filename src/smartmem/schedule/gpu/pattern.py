"""Which work-item touches which place when: the access pattern of a device kernel, as data.

A schedule describes what it emits as `Sweep`s: loads and stores (`Access`, with the very places that the code has) over
loop axes, and each loop axis as a Lin over *positions*: the work-group's linear number (GROUP), the work-item in it
(ITEM), the step of the loop that all items run together (STEP), the round in a step (ROUND), and a work-item's own
number, stopped at the last one (NUMBER). `counters` replays them through a model of the caches; the code itself does
not depend on them.

Worked example: item ``i`` of group ``g`` (128 items) reads the vector ``x[4 * (128*g + i)]``: one loop axis with the
value ``512*GROUP + 4*ITEM``, one access with the place ``(axis,)`` and four values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from smartmem.codegen.c_expr import Lane, lane_free, step_along
from smartmem.index.lin import Digit, Lin, Lookup, Mark, lin, pseudo_axes
from smartmem.index.map import Guard
from smartmem.kernel.expr import Choose, Expr, Load, operands
from smartmem.layout.memory import LANES, DeviceStorage

GROUP, ITEM, STEP, ROUND, NUMBER = range(5)


@dataclass(frozen=True)
class Memory:
    """A memory object: `elements` of `itemsize` bytes; a texture has `width` texels in a row, a buffer has 0."""

    slot: str
    itemsize: int
    elements: int
    width: int = 0


@dataclass(frozen=True)
class Access:
    """A load or store as the code has it.

    Attributes:
        memory: what it touches; place: (address,) or (row, column, lane), over the loop axes.
        values: adjacent values that one access takes, 1 or 4.
        shifts: the access is made once per entry, with the lane axis that much further.
        lane: that axis; of an access of several values, the axis along which they are.
        guards: it happens only where these hold.
        written: a store.
    """

    memory: Memory
    place: tuple[Lin, ...]
    values: int = 1
    shifts: tuple[int, ...] = (0,)
    lane: int = 0
    guards: tuple[Guard, ...] = ()
    written: bool = False


@dataclass(frozen=True)
class Sweep:
    """Accesses that the work-items of a group make together, step after step.

    Attributes:
        loops: the loop axes over the positions (GROUP, ITEM, STEP, ROUND, NUMBER).
        extents: of the loop axes; where one is outside, nothing is accessed.
        limits: loop axes that stop at a value instead (`min(n, limit)` in the code).
        accesses: in the order of the code.
        items: work-items of a group that take part, the first ones.
        steps, rounds: how often all this is done; sweeps of one `phase` take turns, a step each.
        number: what NUMBER is, over the other positions, and where it stops.
    """

    loops: Mapping[int, Lin]
    extents: Mapping[int, int]
    accesses: tuple[Access, ...]
    items: int
    steps: int = 1
    rounds: int = 1
    limits: Mapping[int, int] = field(default_factory=dict)
    phase: int = 0
    number: tuple[Lin, int] | None = None


def position(which: int, extent: int) -> Lin:
    """One of GROUP, ITEM, STEP, ROUND and NUMBER, with values below `extent`."""
    return lin(0, ((1, Digit(which, 1, extent)),))


def digit(value: Lin, lo: int, ext: int | None = None) -> Lin:
    """``value // lo % ext`` (without an extent: up to the top), of a value that is never negative."""
    size = value.max + 1
    return lin(0, ((1, Digit(Mark(value, size), lo, -(-size // lo) if ext is None else ext)),))


def unravel(value: Lin, extents: Iterable[int]) -> list[Lin]:
    """The coordinates of a row-major number; the first one is not reduced, so numbers past the end are outside."""
    sizes = list(extents)
    below, result = math.prod(sizes), []
    for at, extent in enumerate(sizes):
        below //= extent
        result.append(digit(value, below, None if at == 0 else extent))
    return result


def memory_of(storage: DeviceStorage) -> Memory:
    width = storage.image.width if storage.image else 0
    return Memory(storage.buffer, storage.stored.itemsize, storage.elements, width)


def access_of(
    storage: DeviceStorage, place: tuple[Lin, ...], lane: Lane | None, vector: bool, guards: tuple[Guard, ...] = (),
    written: bool = False,
) -> Access:  # fmt: skip
    """One load or store: in one piece, the same for the whole lane, or value by value."""
    memory = memory_of(storage)
    if lane is None:
        return Access(memory, place, guards=guards, written=written)
    steps = [step_along(part, lane) for part in place]
    free = lane_free(guards, lane)
    if free and not written and all(step == 0 for step in steps):
        return Access(memory, place, guards=guards)
    if free and vector and steps in ([1], [0, 0, 1]):
        return Access(memory, place, LANES, (0,), lane.axis, guards, written)
    return Access(memory, place, 1, tuple(range(LANES)), lane.axis, guards, written)


def loads_of(
    bodies: Iterable[Expr], storages: Mapping[str, DeviceStorage], local: Collection[str], lane: Lane | None
) -> list[Access]:
    """The loads of expressions whose loads carry places, each once; entries of looked-up tensors are loads too."""
    found: dict[Access, None] = {}
    seen: set[tuple[int, tuple[Guard, ...]]] = set()

    def entries(value: Lin, guards: tuple[Guard, ...]) -> None:
        for axis in pseudo_axes(value):
            if isinstance(axis, Lookup):
                storage = storages[axis.tensor]
                found.setdefault(access_of(storage, (storage.at(axis.index),), lane, False, guards))

    stack: list[tuple[Expr, tuple[Guard, ...]]] = [(body, ()) for body in bodies]
    while stack:
        node, guards = stack.pop()
        if (id(node), guards) in seen:
            continue
        seen.add((id(node), guards))
        if isinstance(node, Load):
            if not node.index or node.tensor in local:
                continue
            for part in node.index:
                entries(part, guards)
            vector = node.dtype == np.float32
            found.setdefault(access_of(storages[node.tensor], node.index, lane, vector, guards))
        elif isinstance(node, Choose):
            stack += [(node.otherwise, guards), (node.then, tuple(dict.fromkeys((*guards, *node.guards))))]
        else:
            stack += [(operand, guards) for operand in reversed(operands(node))]
    return list(found)
