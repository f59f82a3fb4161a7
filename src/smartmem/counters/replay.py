"""Sweeps of a kernel as memory traffic: for a run of work-groups, the lines that their sub-groups ask for, in order.

In: `Sweep`s, numbers of work-groups. Out: `Traffic` blocks. A sub-group's access is one request for each line that its
work-items touch (coalescing). Groups that are resident at once take turns step by step. Entries of looked-up tensors,
which depend on data, are taken to be spread evenly: a hash of the position stands for them.

Worked example: 64 work-items that read 16 adjacent bytes each from a buffer with lines of 64 bytes make 16 requests;
where they read one column of a texture, with 2 x 2 texels in a line, they make 32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.index.lin import Digit, Lin, Lookup, Mark
from smartmem.index.map import Guard
from smartmem.layout.memory import LANES
from smartmem.schedule.gpu.pattern import GROUP, ITEM, NUMBER, ROUND, STEP, Access, Sweep

Array = np.ndarray[Any, Any]
SLOT_BITS = 40  # of a line number, for the line in its memory object


@dataclass(frozen=True)
class Traffic:
    """What some groups ask for.

    Attributes:
        accesses: of all sweeps; issued: how many work-items made each, one entry per access.
        lines: lines asked for, in time order; groups, access: the group and the number of the access behind each.
    """

    accesses: list[Access]
    issued: Array
    lines: Array
    groups: Array
    access: Array


@dataclass(frozen=True)
class Geometry:
    """Bytes of a cache line and work-items of a sub-group."""

    line: int
    wave: int


def phases(sweeps: Sequence[Sweep]) -> list[list[Sweep]]:
    """Sweeps by phase, in order."""
    return [[s for s in sweeps if s.phase == phase] for phase in sorted({s.phase for s in sweeps})]


def work(sweeps: Sequence[Sweep]) -> int:
    """Accesses that the work-items of one group make, guards aside."""
    return sum(s.items * s.steps * s.rounds * sum(len(a.shifts) for a in s.accesses) for s in sweeps)


def replay(
    sweeps: Sequence[Sweep], groups: Array, slots: Mapping[str, int], geometry: Geometry, most: int | None = None
) -> Traffic:
    """The traffic of `groups`, which run at the same time; of each sweep the first `most` steps (None: all)."""
    accesses = [access for phase in phases(sweeps) for sweep in phase for access in sweep.accesses]
    issued = np.zeros(len(accesses), np.int64)
    parts: list[tuple[Array, Array, Array]] = []
    number = 0
    for phase in phases(sweeps):
        found: list[tuple[Array, Array, Array, Array]] = []
        for sweep in phase:
            for at, held, lines, steps, who in _sweep(sweep, groups, slots, geometry, most):
                issued[number + at] += held
                found.append((steps, lines, who, np.full(len(lines), number + at)))
            number += len(sweep.accesses)
        steps, *columns = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(steps, kind="stable")
        lines, who, access = (column[order] for column in columns)
        parts.append((lines, who, access))
    return Traffic(accesses, issued, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def _sweep(
    sweep: Sweep, groups: Array, slots: Mapping[str, int], geometry: Geometry, most: int | None
) -> Iterator[tuple[int, int, Array, Array, Array]]:
    """Per access and shift: its number, how often it is made, and the lines with their times and groups."""
    turns = sum(len(access.shifts) for access in sweep.accesses)
    for turn, (at, place, held) in enumerate(places(sweep, groups, most)):
        access = sweep.accesses[at]
        lines, when, who = _lines(access, place, held, groups, geometry)
        lines += slots[access.memory.slot] << SLOT_BITS
        # accesses of one step follow each other, so their order is part of the time
        yield at, int(np.count_nonzero(held)), lines, when * turns + turn, who


def places(sweep: Sweep, groups: Array, most: int | None = None) -> Iterator[tuple[int, list[Any], Array]]:
    """Per access and shift: its number, its place, and where it is made, over [step, round, group, item]."""
    steps = sweep.steps if most is None else min(sweep.steps, most)
    shape = (steps, sweep.rounds, len(groups), sweep.items)
    positions: dict[int, Any] = {
        GROUP: groups[:, None],
        ITEM: np.arange(sweep.items),
        STEP: np.arange(steps)[:, None, None, None],
        ROUND: np.arange(sweep.rounds)[:, None, None],
    }
    if sweep.number is not None:
        value, last = sweep.number
        positions[NUMBER] = np.minimum(evaluate(value, positions), last)
    axes: dict[int, Any] = {}
    inside: Any = np.True_
    for axis, value in sweep.loops.items():
        found = evaluate(value, positions)
        if axis in sweep.limits:
            found = np.minimum(found, sweep.limits[axis])
        elif value.max >= sweep.extents[axis]:
            inside = inside & (found < sweep.extents[axis])
        axes[axis] = found
    for at, access in enumerate(sweep.accesses):
        for shift in access.shifts:
            here = {**axes, access.lane: axes[access.lane] + shift} if shift else axes
            held = inside
            for guard in access.guards:
                held = held & _holds(guard, here)
            yield at, [evaluate(part, here) for part in access.place], np.broadcast_to(held, shape)


def _holds(guard: Guard, axes: Mapping[int, Any]) -> Any:
    value = evaluate(guard.lin, axes)
    return (value >= 0) & (value < guard.ext)


def _lines(
    access: Access, place: list[Any], held: Array, groups: Array, geometry: Geometry
) -> tuple[Array, Array, Array]:
    """The lines of the memory object that sub-groups ask for, with the step and the group of each."""
    memory = access.memory
    if memory.width:
        texels = geometry.line // (LANES * memory.itemsize)
        high = 1 << (texels.bit_length() - 1) // 2
        wide = texels // high
        touched = [place[0] // high * -(-memory.width // wide) + place[1] // wide]
    else:
        first = place[0] * memory.itemsize
        touched = [first // geometry.line]
        if access.values > 1 and not _aligned(access):
            touched.append((first + access.values * memory.itemsize - 1) // geometry.line)
    lines = np.stack([np.where(held, t, -1) for t in touched], axis=-1)
    *outer, items, pieces = lines.shape
    waves = -(-items // geometry.wave)
    if waves * geometry.wave > items:
        idle = ((0, 0),) * len(outer) + ((0, waves * geometry.wave - items), (0, 0))
        lines = np.pad(lines, idle, constant_values=-1)
    lines = lines.reshape(*outer, waves, geometry.wave * pieces)
    if np.any(lines[..., 1:] < lines[..., :-1]):
        lines = np.sort(lines, axis=-1)
    fresh = lines >= 0
    fresh[..., 1:] &= lines[..., 1:] != lines[..., :-1]
    when, _, who, _, _ = np.nonzero(fresh)
    return lines[fresh], when, groups[who]


def _aligned(access: Access) -> bool:
    """Whether a vector starts at a multiple of its size, so that it lies in one line."""
    address, span = access.place[0], access.values
    others = (s for s, d in address.terms if d.axis != access.lane or d.lo != 1)
    return address.offset % span == 0 and all(s % span == 0 for s in others)


def evaluate(value: Lin, axes: Mapping[int, Any]) -> Any:
    """`value` over integer arrays that broadcast."""
    result: Any = np.int64(value.offset)
    for stride, digit in value.terms:
        part = _digit(digit, axes)
        result = result + (part if stride == 1 else part * stride)
    return result


def _digit(digit: Digit, axes: Mapping[int, Any]) -> Any:
    axis = digit.axis
    if isinstance(axis, int):
        base, extent = axes[axis], None
    elif isinstance(axis, Mark):
        base, extent = evaluate(axis.lin, axes), axis.ext
    else:
        base, extent = _entry(axis, axes), axis.ext
    if digit.lo != 1:
        base = base // digit.lo
    return base if extent is not None and digit.lo * digit.ext >= extent else base % digit.ext


def _entry(axis: Lookup, axes: Mapping[int, Any]) -> Any:
    """What stands for the entry of a tensor: the same for the same position, spread over all values."""
    where: Any = np.int64(0)
    for index in axis.index:
        where = where * 8191 + evaluate(index, axes)
    return (where * 2654435761 >> 7) % axis.ext
