"""The counters of one kernel: accesses, bytes, requests to the caches, misses, and operations in its index expressions.

In: a kernel's `DeviceCode` (its sweeps), a `CounterDevice`. Out: `Counts`.

Small kernels are replayed whole. Of a large one, three runs of neighbouring work-groups are, one in the
middle of each third; each run begins with groups that only warm the caches up, and of very long loops only the first
steps are taken. What they count is scaled to the whole kernel. All of that is fixed: the same kernel gives the same
counts.

Each kernel begins with empty caches. Stores go through to the shared cache. Where a sampled kernel's operands fit into
the shared cache, every line of them misses there once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from smartmem.counters.cache import Caches
from smartmem.counters.profiles import CounterDevice
from smartmem.counters.replay import Geometry, Traffic, replay, work
from smartmem.index.lin import Lin, parts_of
from smartmem.layout.memory import LANES
from smartmem.schedule.gpu.code import DeviceCode
from smartmem.schedule.gpu.pattern import Access, Sweep

Array = np.ndarray[Any, Any]
BUDGET = 400_000  # accesses that are replayed of one kernel, about
WINDOWS = 3


@dataclass(frozen=True)
class Counts:
    """What a kernel, or a whole network, does to memory; modelled.

    Attributes:
        loads, stores: made by work-items; loaded, stored: their bytes.
        texture_requests, buffer_requests: lines that sub-groups ask for, loads and stores.
        first_misses: loads of lines that the first cache lacks, or that have none.
        shared_misses: lines that the shared cache lacks, loads and stores: traffic to memory.
        adds, multiplies, divisions, modulos: in the index expressions of all accesses.
        elements: of the outputs.
    """

    loads: float = 0
    stores: float = 0
    loaded: float = 0
    stored: float = 0
    texture_requests: float = 0
    buffer_requests: float = 0
    first_misses: float = 0
    shared_misses: float = 0
    adds: float = 0
    multiplies: float = 0
    divisions: float = 0
    modulos: float = 0
    elements: float = 0

    @property
    def accesses(self) -> float:
        return self.loads + self.stores

    @property
    def requests(self) -> float:
        return self.texture_requests + self.buffer_requests

    @property
    def index_operations(self) -> float:
        return self.adds + self.multiplies + self.divisions + self.modulos


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts."""
    found = list(counts)
    return Counts(**{f.name: sum(getattr(c, f.name) for c in found) for f in fields(Counts)})


@dataclass(frozen=True)
class Window:
    """Neighbouring groups that are replayed, in waves of groups that run at once; `counted`: the waves that count."""

    waves: list[Array]
    counted: int


def count(code: DeviceCode, device: CounterDevice) -> tuple[Counts, bool]:
    """The counters of a kernel, and whether they are sampled."""
    sweeps = [s for s in code.sweeps if s.accesses]
    if not sweeps:
        return Counts(), False
    groups = math.prod(code.global_size) // math.prod(code.local_size)
    slots = {a.memory.slot: at for at, a in enumerate({a.memory.slot: a for s in sweeps for a in s.accesses}.values())}
    geometry = Geometry(device.shared.line, device.device.sub_group)
    units = device.device.compute_units
    most, windows = plan(sweeps, groups, units * device.resident)
    sampled = most is not None or len(windows) > 1
    sums = _Sums(sweeps, device, most)
    for window in windows:
        first, shared = (Caches(device.texture, units), Caches(device.texture, units)), Caches(device.shared)
        if device.buffer is not None:
            first = (first[0], Caches(device.buffer, units))
        for number, wave in enumerate(window.waves):
            traffic = replay(sweeps, wave, slots, geometry, most)
            sums.add(traffic, first, shared, len(wave), number >= len(window.waves) - window.counted)
    return sums.counts(groups, sampled), sampled


def plan(sweeps: Sequence[Sweep], groups: int, at_once: int) -> tuple[int | None, list[Window]]:
    """Which groups are replayed, and of each sweep how many steps (None: all)."""
    one = max(1, work(sweeps))
    if one * groups <= BUDGET:
        return None, [_window(0, groups, at_once, 0)]
    wave = min(at_once, groups)
    most = None
    if one * wave * WINDOWS > BUDGET:
        longest = max(s.steps for s in sweeps)
        most = min(longest, max(4, longest * BUDGET // (one * wave * WINDOWS)))
        most = None if most == longest else most
    waves = max(1, BUDGET // (WINDOWS * one * wave))
    span = wave * waves
    if span * WINDOWS >= groups:
        return most, [_window(0, groups, at_once, 0)] if most is None else [_window(0, span, at_once, 0)]
    starts = [(2 * k + 1) * groups // (2 * WINDOWS) - span // 2 for k in range(WINDOWS)]
    return most, [_window(start, span, at_once, min(1, waves - 1)) for start in starts]


def _window(start: int, span: int, at_once: int, warm: int) -> Window:
    groups = np.arange(start, start + span)
    waves = [groups[at : at + at_once] for at in range(0, span, at_once)]
    return Window(waves, len(waves) - warm)


class _Sums:
    """Counts per access of what was replayed."""

    def __init__(self, sweeps: Sequence[Sweep], device: CounterDevice, most: int | None) -> None:
        self.device = device
        self.groups = 0
        in_order = sorted(sweeps, key=lambda s: s.phase)
        # of a sweep of which only some steps were replayed, all steps are taken to be alike
        self.scale = np.array(
            [s.steps / min(s.steps, most or s.steps) for s in in_order for _ in s.accesses], np.float64
        )
        self.accesses = [a for s in in_order for a in s.accesses]
        self.operations = np.array([index_operations(a, s) for s in in_order for a in s.accesses], np.float64)
        self.issued, self.asked, self.first, self.shared = np.zeros((4, len(self.accesses)))

    def add(self, traffic: Traffic, first: tuple[Caches, Caches], shared: Caches, groups: int, counted: bool) -> None:
        texture = np.array([a.memory.width > 0 for a in self.accesses])
        written = np.array([a.written for a in self.accesses])
        unit = traffic.groups % self.device.device.compute_units
        is_texture, is_store = texture[traffic.access], written[traffic.access]
        passes = is_store | (~is_texture & (self.device.buffer is None))
        for kind, caches in ((True, first[0]), (False, first[1])):
            chosen = np.flatnonzero(~is_store & (is_texture == kind) & ~passes)
            passes[chosen] = caches.misses(traffic.lines[chosen], unit[chosen])
        behind = np.flatnonzero(passes)
        missed = behind[shared.misses(traffic.lines[behind])]
        if not counted:
            return
        size = len(self.accesses)
        self.groups += groups
        self.issued += traffic.issued
        self.asked += np.bincount(traffic.access, minlength=size)
        self.first += np.bincount(traffic.access[behind], minlength=size)
        self.shared += np.bincount(traffic.access[missed], minlength=size)

    def counts(self, groups: int, sampled: bool) -> Counts:
        scale = self.scale * (groups / max(1, self.groups))
        issued, asked, first, shared = (x * scale for x in (self.issued, self.asked, self.first, self.shared))
        written = np.array([a.written for a in self.accesses])
        texture = np.array([a.memory.width > 0 for a in self.accesses])
        nbytes = np.array([_bytes(a) for a in self.accesses])
        values = np.array([a.values for a in self.accesses])
        adds, multiplies, divisions, modulos = issued @ self.operations
        memory = float(shared.sum())
        if sampled:
            once = footprint(self.accesses, self.device.shared.line)
            fits = once * self.device.shared.line <= self.device.shared.size
            memory = once if fits else max(once, memory)
        return Counts(
            loads=float(issued[~written].sum()), stores=float(issued[written].sum()),
            loaded=float((issued * nbytes)[~written].sum()), stored=float((issued * nbytes)[written].sum()),
            texture_requests=float(asked[texture].sum()), buffer_requests=float(asked[~texture].sum()),
            first_misses=float(first[~written].sum()), shared_misses=memory,
            adds=float(adds), multiplies=float(multiplies), divisions=float(divisions), modulos=float(modulos),
            elements=float((issued * values)[written].sum()),
        )  # fmt: skip


def _bytes(access: Access) -> int:
    """Of one access; a texture gives whole texels."""
    return access.memory.itemsize * (LANES if access.memory.width else access.values)


def footprint(accesses: Iterable[Access], line: int) -> float:
    """Lines that the accesses touch altogether: no more than an access has places, nor than a memory object has."""
    places: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for access in dict.fromkeys(accesses):
        values = math.prod(d.ext for part in access.place for _, d in part.terms)
        slot = access.memory.slot
        places[slot] = places.get(slot, 0) + values * access.memory.itemsize
        sizes[slot] = access.memory.elements * access.memory.itemsize
    return float(sum(math.ceil(min(nbytes, sizes[slot]) / line) for slot, nbytes in places.items()))


def index_operations(access: Access, sweep: Sweep) -> tuple[int, int, int, int]:
    """Adds, multiplies, divisions and modulos of one access as the code is written, guards included."""
    found = [_operations(part, sweep) for part in (*access.place, *(g.lin for g in access.guards))]
    adds, multiplies, divisions, modulos = (sum(column) for column in zip(*found, strict=True))
    return adds, multiplies, divisions, modulos


def _operations(value: Lin, sweep: Sweep) -> tuple[int, int, int, int]:
    adds = max(0, len(value.terms) + (value.offset != 0) - 1)
    multiplies = divisions = modulos = 0
    for stride, digit in value.terms:
        multiplies += abs(stride) != 1
        divisions += digit.lo != 1
        axis = digit.axis
        extent = sweep.extents[axis] if isinstance(axis, int) else axis.ext
        modulos += digit.lo * digit.ext < extent
        for part in parts_of(axis):
            more = _operations(part, sweep)
            adds, multiplies, divisions, modulos = (
                adds + more[0], multiplies + more[1], divisions + more[2], modulos + more[3],
            )  # fmt: skip
    return adds, multiplies, divisions, modulos
