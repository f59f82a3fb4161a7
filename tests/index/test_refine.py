"""Refinement and merging keep every value; digits on the chain become affine."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.index_maps import Chain, axes_values, factorizations, lins, marks, shapes, values

from smartmem.index import views
from smartmem.index.lin import Digit, Lin, axis_digit, lin, pseudo_axes, show
from smartmem.index.map import evaluate
from smartmem.index.refine import Refinement, digits_of, merge, refine


def is_affine(value: Lin, extents: tuple[int, ...]) -> bool:
    """Whether every digit is a whole loop axis: no division and no modulo."""
    return all(isinstance(d.axis, int) and d.lo == 1 and d.ext == extents[d.axis] for _, d in value.terms)


def check_refinement(extents: tuple[int, ...], lins_: list[Lin], refined: Refinement) -> None:
    """The old axes are covered exactly once, and each Lin has its old value at every new coordinate."""
    assert math.prod(refined.extents) == math.prod(extents)
    old_axes = [values(axis, refined.extents) for axis in refined.axes]
    flat = np.ravel_multi_index(old_axes, extents) if extents else np.zeros(())
    assert sorted(flat.ravel()) == list(range(math.prod(extents)))
    for old, new in zip(lins_, refined.lins, strict=True):
        expected = np.broadcast_to(np.asarray(evaluate(old, old_axes)), refined.extents)
        np.testing.assert_array_equal(values(new, refined.extents), expected)


def shuffle_map() -> tuple[tuple[int, ...], list[Lin]]:
    """The docstring's pixel shuffle by 2 from (1, 16, 8, 8)."""
    chain = Chain(1, 16, 8, 8).reshape(1, 4, 2, 2, 8, 8).permute(0, 1, 4, 2, 5, 3).reshape(1, 4, 16, 16)
    return chain.map.domain, list(chain.map.coords)


def test_pixel_shuffle() -> None:
    extents, coords = shuffle_map()
    refined = refine(extents, coords)
    assert refined.extents == (4, 8, 2, 8, 2)
    assert refined.origin == (1, 2, 2, 3, 3)
    names = ("c", "h1", "h0", "w1", "w0")
    assert [show(c, names, refined.extents) for c in refined.lins] == ["0", "4*c + 2*h0 + w0", "h1", "w1"]
    assert [show(a, names, refined.extents) for a in refined.axes] == ["0", "c", "2*h1 + h0", "2*w1 + w0"]
    check_refinement(extents, coords, refined)


def test_the_heavier_cut_wins() -> None:
    third, half = (lin(0, ((1, Digit(0, 1, cut)),)) for cut in (3, 2))
    assert refine((12,), [third, half], [1, 5]).extents == (6, 2)
    assert refine((12,), [third, half], [5, 1]).extents == (4, 3)
    assert refine((12,), [third, half, lin(0, ((1, Digit(0, 1, 6)),))], [1, 5, 1]).extents == (2, 3, 2)


def test_axes_of_extent_1_vanish() -> None:
    refined = refine((1, 4, 1), [axis_digit(1, 4)])
    assert refined.extents == (4,)
    assert refined.axes == (Lin(), axis_digit(0, 4), Lin())
    assert refine((), []).extents == ()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_lins(data: st.DataObject) -> None:
    extents = data.draw(shapes(3))
    wanted = [data.draw(lins(extents)) for _ in range(data.draw(st.integers(1, 3)))]
    weights = [data.draw(st.integers(1, 9)) for _ in wanted]
    refined = refine(extents, wanted, weights)
    check_refinement(extents, wanted, refined)
    assert 1 not in refined.extents
    for old, new in zip(wanted, refined.lins, strict=True):
        if not list(pseudo_axes(old)) and all(_on_chain(d, refined) for d in digits_of(old)):
            assert is_affine(new, refined.extents)
    order = data.draw(st.permutations(range(len(refined.extents))))
    keep = data.draw(st.sets(st.sampled_from(order), max_size=2)) if order else set()
    check_merge(refined.extents, list(refined.lins), order, keep)


def _on_chain(digit: Digit, refined: Refinement) -> bool:
    cuts, low = {1}, 1
    for extent in reversed([n for n, axis in zip(refined.extents, refined.origin, strict=True) if axis == digit.axis]):
        low *= extent
        cuts.add(low)
    return {digit.lo, min(digit.lo * digit.ext, low)} <= cuts


def check_merge(extents: tuple[int, ...], wanted: list[Lin], order: list[int], keep: set[int]) -> Refinement:
    merged = merge(extents, order, wanted, keep)
    assert math.prod(merged.extents) == math.prod(extents)
    new = axes_values(merged.extents)
    old_axes = [np.broadcast_to(np.asarray(evaluate(axis, new)), merged.extents) for axis in merged.axes]
    if order:  # row-major over `order` is row-major over the merged axes
        position = np.ravel_multi_index([old_axes[k] for k in order], [extents[k] for k in order])
        np.testing.assert_array_equal(position.ravel(), np.arange(math.prod(extents)))
    for value, moved in zip(wanted, merged.lins, strict=True):
        expected = np.broadcast_to(np.asarray(evaluate(value, old_axes)), merged.extents)
        np.testing.assert_array_equal(values(moved, merged.extents), expected)
        if is_affine(value, extents):
            assert is_affine(moved, merged.extents)
    assert keep <= set(merged.origin)
    return merged


@pytest.mark.parametrize(
    ("extents", "order", "wanted", "keep", "merged"),
    [
        ((2, 3, 4), (0, 1, 2), [(12, 4, 1)], (), (24,)),  # contiguous throughout
        ((2, 3, 4), (0, 1, 2), [(24, 4, 1)], (), (2, 12)),  # a gap above
        ((2, 3, 4), (0, 1, 2), [(12, 4, 1), (0, 4, 1)], (), (2, 12)),  # one access separates
        ((2, 3, 4), (0, 1, 2), [(12, 4, 1), (0, 0, 1)], (), (6, 4)),
        ((2, 3, 4), (0, 1, 2), [(12, 4, 1)], (1,), (2, 3, 4)),  # kept
        ((2, 3, 4), (0, 1, 2), [(12, 4, 1)], (2,), (6, 4)),
        ((2, 3, 4), (2, 1, 0), [(12, 4, 1)], (), (4, 3, 2)),  # another order
        ((2, 3, 4), (2, 1, 0), [(1, 2, 6)], (), (24,)),
        ((2, 3, 4), (0, 1, 2), [(-12, -4, -1)], (), (24,)),  # reversed
        ((2, 3, 4), (0, 1, 2), [], (), (24,)),
    ],
)
def test_merge(
    extents: tuple[int, ...],
    order: tuple[int, ...],
    wanted: list[tuple[int, ...]],
    keep: tuple[int, ...],
    merged: tuple[int, ...],
) -> None:
    accesses = [
        lin(30, tuple((s, Digit(a, 1, n)) for a, (s, n) in enumerate(zip(strides, extents, strict=True))))
        for strides in wanted
    ]
    result = check_merge(extents, accesses, list(order), set(keep))
    assert result.extents == merged
    assert all(len(value.terms) <= len(merged) for value in result.lins)


def test_merge_cuts_digits_of_what_may_separate_nothing() -> None:
    """A mean per group, read over merged channels: ``mean[c // 4]``."""
    image = lin(0, ((4, Digit(0, 1, 8)), (1, Digit(1, 1, 4))))
    mean = axis_digit(0, 8)
    assert merge((8, 4), (0, 1), [image, mean]).extents == (8, 4)
    merged = merge((8, 4), (0, 1), [image, mean], cut=[1])
    assert merged.extents == (32,)
    assert merged.lins == (axis_digit(0, 32), lin(0, ((1, Digit(0, 4, 8)),)))


def test_merge_looks_into_marks() -> None:
    rolled = views.roll((4, 6), 1, 2)
    flat = rolled.coords[0] * 6 + rolled.coords[1]
    assert marks(flat)
    refined = refine((4, 6), [flat])
    assert refined.extents == (4, 3, 2)  # runs of 2 are exact
    merged = check_merge(refined.extents, list(refined.lins), [0, 1, 2], set())
    assert merged.extents == (4, 3, 2)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_views_refine_to_affine_loops(data: st.DataObject) -> None:
    """One reshape that divides axis by axis needs no division in its loops."""
    shape = data.draw(shapes(3))
    inner = list(itertools.chain.from_iterable(data.draw(factorizations(n, 2)) for n in shape))
    for index in (views.reshape(shape, inner), views.reshape(inner, shape)):
        refined = refine(index.domain, index.coords)
        assert all(is_affine(value, refined.extents) for value in refined.lins)
