"""The cache model against a plain one, and replayed sweeps that can be counted by hand."""

from collections import OrderedDict

import numpy as np
import pytest

from smartmem.codegen.c_expr import Lane
from smartmem.counters import count as counting
from smartmem.counters.cache import Caches, _hash
from smartmem.counters.count import count
from smartmem.counters.profiles import Cache, counter_device
from smartmem.counters.replay import Geometry, replay
from smartmem.index.lin import Digit, axis_digit, lin
from smartmem.layout.memory import DeviceStorage, cut_image
from smartmem.layout.storage import dense
from smartmem.schedule.gpu.code import DeviceCode
from smartmem.schedule.gpu.pattern import GROUP, ITEM, STEP, Access, Memory, Sweep, access_of, position

FLOAT = np.dtype(np.float32)


def _plain(cache: Cache, lines, which):
    sets: dict[tuple[int, int], OrderedDict[int, None]] = {}
    missed = []
    for line, unit in zip(lines, which, strict=True):
        at = sets.setdefault((unit, int(_hash(np.array([line]))[0]) % cache.sets), OrderedDict())
        missed.append(line not in at)
        at[line] = None
        at.move_to_end(line)
        if len(at) > cache.ways:
            at.popitem(last=False)
    return missed


@pytest.mark.parametrize("ways", [1, 2, 8])
def test_caches_agree_with_a_plain_one(ways):
    noise = np.random.default_rng(ways)
    cache = Cache(64 * 32, 64, ways)
    caches = Caches(cache, 3)
    lines = np.r_[noise.integers(0, 60, 2000), np.repeat(noise.integers(0, 60, 200), 5)]
    which = noise.integers(0, 3, len(lines))
    halves = [caches.misses(part, unit) for part, unit in zip(np.split(lines, 2), np.split(which, 2), strict=True)]
    assert np.concatenate(halves).tolist() == _plain(cache, lines.tolist(), which.tolist())


def _sweep(access: Access, loops, extents, items: int, steps: int = 1) -> Sweep:
    return Sweep(loops, extents, (access,), items, steps)


def test_adjacent_vectors_share_lines():
    """64 work-items that read 16 adjacent bytes each ask for 16 lines of 64 bytes."""
    buffer = DeviceStorage("x", (256,), FLOAT, dense("x", (256,), FLOAT).address, 256)
    access = access_of(buffer, (axis_digit(0, 256),), Lane(0, 256, 4), True)
    assert access.values == 4
    traffic = replay(
        [_sweep(access, {0: position(ITEM, 64) * 4}, {0: 256}, 64)], np.arange(1), {"x": 0}, Geometry(64, 64)
    )
    assert (traffic.issued.tolist(), len(traffic.lines)) == ([64], 16)
    assert sorted(traffic.lines.tolist()) == list(range(16))


@pytest.mark.parametrize(("image", "lines"), [(True, 32), (False, 64)])
def test_a_column_of_a_texture_shares_lines_where_a_buffer_does_not(image, lines):
    """Work-items along the rows of x[64, 256]: a line of a texture holds 2 x 2 texels, one of a buffer 4 in a row."""
    shape = (64, 256)
    storage = dense("x", shape, FLOAT)
    found = cut_image(storage.address, storage.elements, 64, 16384) if image else None
    tensor = DeviceStorage("x", shape, FLOAT, storage.address, storage.elements, FLOAT, found)
    place = tensor.access((axis_digit(0, 64), axis_digit(1, 256)))
    access = access_of(tensor, place, Lane(1, 256, 4), True)
    assert access.values == 4
    sweep = _sweep(access, {0: position(ITEM, 64), 1: position(GROUP, 1)}, {0: 64, 1: 256}, 64)
    assert len(replay([sweep], np.arange(1), {"x": 0}, Geometry(64, 64)).lines) == lines


def test_guards_and_ends_make_no_access():
    access = Access(Memory("x", 4, 100), (axis_digit(0, 100),))
    sweep = _sweep(access, {0: position(GROUP, 2) * 64 + position(ITEM, 64)}, {0: 100}, 64)
    assert replay([sweep], np.arange(2), {"x": 0}, Geometry(64, 16)).issued.tolist() == [100]


def _columns(groups: int, steps: int) -> DeviceCode:
    """Each group of 128 items reads `steps` rows of 512 values, and stores 512 sums."""
    row = position(GROUP, groups) * 512 + position(ITEM, 128) * 4
    loops = {0: row, 1: position(STEP, steps)}
    wide = groups * 512
    extents = {0: wide, 1: steps}
    x, y = Memory("x", 4, wide * steps), Memory("y", 4, wide)
    load = Access(x, (axis_digit(1, steps) * wide + axis_digit(0, wide),), 4)
    store = Access(y, (axis_digit(0, wide),), 4, written=True)
    sweeps = [Sweep(loops, extents, (load,), 128, steps), Sweep({0: row}, {0: wide}, (store,), 128, phase=1)]
    return DeviceCode("", [], ["x", "y"], (groups * 128,), (128,), sweeps=sweeps)


def test_sampled_counts_are_those_of_the_whole(monkeypatch):
    device = counter_device("adreno-740")
    code = _columns(300, 16)
    monkeypatch.setattr(counting, "BUDGET", 10**9)
    whole, sampled = count(code, device)
    assert not sampled
    assert whole.loaded == 300 * 512 * 16 * 4
    assert whole.shared_misses == 300 * 512 * 17 * 4 / 64
    for budget in (200_000, 60_000, 10_000):
        monkeypatch.setattr(counting, "BUDGET", budget)
        part, sampled = count(code, device)
        assert sampled
        for name in ("loads", "stores", "loaded", "buffer_requests", "first_misses", "shared_misses", "elements"):
            assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.02), (budget, name)
        assert count(code, device) == (part, True)


def test_index_operations_are_those_of_the_text():
    """``3*(i/4) + i%4 + 1``: two adds, one multiply, one division, one modulo."""
    access = Access(Memory("x", 4, 64), (lin(1, ((3, Digit(0, 4, 4)), (1, Digit(0, 1, 4)))),))
    sweep = _sweep(access, {0: position(ITEM, 16)}, {0: 16}, 16)
    assert counting.index_operations(access, sweep) == (2, 1, 1, 1)
