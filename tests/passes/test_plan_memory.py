"""The arena: buffers that are alive together never share a byte."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartmem.passes.plan_memory import ALIGNMENT, Lifetime, _orders, _place, lower_bound, plan_memory


@st.composite
def lifetimes(draw: st.DrawFn) -> list[Lifetime]:
    buffers = []
    for number in range(draw(st.integers(0, 20))):
        first = draw(st.integers(0, 12))
        nbytes = draw(st.one_of(st.integers(0, 300), st.integers(0, 5000)))
        buffers.append(Lifetime(f"b{number}", nbytes, first, draw(st.integers(first, 14))))
    return buffers


@settings(max_examples=300, deadline=None)
@given(lifetimes())
def test_plans_are_sound(buffers: list[Lifetime]) -> None:
    offsets, size = plan_memory(buffers)
    assert set(offsets) == {b.name for b in buffers}
    assert all(offset >= 0 and offset % ALIGNMENT == 0 for offset in offsets.values())
    assert all(offsets[b.name] + b.nbytes <= size for b in buffers)
    for step in range(15):
        alive = sorted((b for b in buffers if b.nbytes and b.first <= step <= b.last), key=lambda b: offsets[b.name])
        for low, high in pairwise(alive):
            assert offsets[low.name] + low.nbytes <= offsets[high.name], f"{low} and {high} overlap at step {step}"
    assert lower_bound(buffers) <= size <= sum(b.aligned for b in buffers)
    assert plan_memory(buffers) == (offsets, size)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5000), min_size=1, max_size=10), st.booleans())
def test_extremes_are_optimal(sizes: list[int], together: bool) -> None:
    """All alive at once: the sum. Never two at once: the largest."""
    buffers = [Lifetime(f"b{k}", n, 0 if together else k, 10 if together else k) for k, n in enumerate(sizes)]
    aligned = [b.aligned for b in buffers]
    assert plan_memory(buffers)[1] == lower_bound(buffers) == (sum(aligned) if together else max(aligned))


def test_a_chain_needs_two_neighbours() -> None:
    """a -> b -> c -> d: each buffer dies as its only reader has run."""
    buffers = [Lifetime(name, 640, k, k + 1) for k, name in enumerate("abcd")]
    offsets, size = plan_memory(buffers)
    assert size == 1280
    assert offsets["a"] == offsets["c"] != offsets["b"] == offsets["d"]


def test_gaps_are_used() -> None:
    buffers = [
        Lifetime("low", 640, 0, 9),
        Lifetime("gap", 320, 0, 1),
        Lifetime("high", 256, 0, 9),
        Lifetime("in", 192, 2, 3),
    ]
    offsets, _ = plan_memory(buffers)
    assert offsets["in"] == offsets["gap"]


@st.composite
def feature_pyramids(draw: st.DrawFn) -> list[Lifetime]:
    """A chain of steps, each reading the one before; some outputs are read once more, later: detectors, U-Nets."""
    count = draw(st.integers(3, 24))
    sizes = [draw(st.integers(1, 16)) * 1024 >> draw(st.integers(0, 4)) for _ in range(count)]
    last = [draw(st.integers(k + 1, count)) if draw(st.integers(0, 3)) == 0 else k + 1 for k in range(count)]
    return [Lifetime(f"b{k}", sizes[k], k, last[k]) for k in range(count)]


@settings(max_examples=300, deadline=None)
@given(feature_pyramids())
def test_no_worse_than_any_order(buffers: list[Lifetime]) -> None:
    """The plan is the smallest of the orders; one that meets the bound ends the search."""
    sizes = [_place(order)[1] for order in _orders(buffers)]
    assert plan_memory(buffers)[1] == min(sizes)


def test_largest_first_is_not_always_best() -> None:
    """a and b at the bottom, c above a, d then above c, although below it b's bytes are free until b begins."""
    buffers = [Lifetime("a", 128, 1, 2), Lifetime("b", 128, 4, 4), Lifetime("c", 64, 2, 3), Lifetime("d", 64, 3, 4)]
    first, *_ = _orders(buffers)
    assert _place(first)[1] > lower_bound(buffers)
    assert plan_memory(buffers)[1] == lower_bound(buffers)


@pytest.mark.parametrize(("nbytes", "aligned"), [(0, 0), (1, 64), (64, 64), (65, 128)])
def test_alignment(nbytes: int, aligned: int) -> None:
    assert Lifetime("b", nbytes, 0, 0).aligned == aligned


def test_nothing_to_plan() -> None:
    assert plan_memory([]) == ({}, 0)
    assert lower_bound([]) == 0
