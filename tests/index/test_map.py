"""Composition, inverse, guards and bounds of index maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.index_maps import Chain, check, factorizations, flat, gather, shapes, values

from smartmem.index import views
from smartmem.index.lin import Digit, Lin, Lookup, axis_digit, lin
from smartmem.index.map import Guard, IndexMap, all_coordinates, evaluate, live_guards
from smartmem.index.substitute import substitute


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1, 4)])
def test_identity(shape: tuple[int, ...]) -> None:
    identity = IndexMap.identity(shape)
    assert identity.is_identity
    assert identity.then(identity) == identity
    assert identity.inverse(shape) == identity
    assert identity.in_bounds(shape)
    assert not IndexMap(shape, identity.coords, (Guard(axis_digit(0, 9) - 1, 9),)).is_identity


def test_composition_is_composition() -> None:
    first, second = views.permute((2, 3, 4), (2, 0, 1)), views.reshape((4, 2, 3), (8, 3))
    both = second.then(first)
    x = np.arange(24).reshape(2, 3, 4)
    check(both, x, x.transpose(2, 0, 1).reshape(8, 3))
    assert both.show() == "[i%2, j, i//2]"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_inverse_of_random_bijections(data: st.DataObject) -> None:
    chain = Chain(*data.draw(shapes()))
    for _ in range(data.draw(st.integers(1, 4))):
        if data.draw(st.booleans()):
            chain.permute(*data.draw(st.permutations(range(len(chain.shape)))))
        else:
            chain.reshape(*data.draw(factorizations(math.prod(chain.shape))))
    index, shape = chain.map, chain.source.shape
    inverse = index.inverse(shape)
    if inverse is None:  # only where something is left that is not a whole digit
        assert any(not isinstance(d.axis, int) for c in index.coords for _, d in c.terms) or not _tiles(index)
        return
    check(inverse, chain.array, chain.source)
    assert index.then(inverse).is_identity
    assert inverse.then(index).is_identity
    assert inverse.inverse(index.domain) == index


def _tiles(index: IndexMap) -> bool:
    """Whether each coordinate is a mixed-radix number: strides 1, e, e*f, ... of its digits."""
    for coord in index.coords:
        radix = 1
        for stride, digit in reversed(coord.terms):
            if stride != radix:
                return False
            radix *= digit.ext
    return True


@pytest.mark.parametrize(
    ("index", "shape"),
    [
        (views.strided_slice((4,), (1,), (3,), (1,)), (4,)),  # not onto
        (views.strided_slice((4,), (3,), (4,), (-1,)), (4,)),  # a bijection, but with an offset
        (views.strided_slice((4,), (0,), (2,), (2,)), (4,)),
        (views.expand((1,), (4,)), (1,)),  # not one to one
        (views.expand((3,), (2, 3)), (3,)),
        (views.pad((4,), (1,), (0,)), (4,)),  # guarded
        (views.roll((4,), 0, 1), (4,)),  # a bijection with a Mark
        (IndexMap((4,), (axis_digit(0, 4), axis_digit(0, 4))), (4, 4)),  # a diagonal
        (IndexMap((4,), (lin(0, ((1, Digit(0, 2, 2)),)),)), (2,)),
        (IndexMap((2, 2), (axis_digit(0, 2) + axis_digit(1, 2),)), (3,)),
        (IndexMap((4,), (axis_digit(0, 4),)), (5,)),
    ],
)
def test_no_inverse(index: IndexMap, shape: tuple[int, ...]) -> None:
    assert index.inverse(shape) is None


def test_guards() -> None:
    inside, outside, open_ = Guard(axis_digit(0, 4), 4), Guard(axis_digit(0, 4) + 4, 4), Guard(axis_digit(0, 4) - 1, 4)
    assert (inside.always, outside.always, open_.always) == (True, False, False)
    assert (inside.never, outside.never, open_.never) == (False, True, False)
    assert Guard(axis_digit(0, 4) - 4, 9).never
    assert live_guards([inside, open_, outside, open_]) == (open_, outside)


def test_guards_compose() -> None:
    window = Chain(8).pad((1, 1)).slice(slice(2, 8))  # a crop of the padding: the guard is proved
    assert window.check().map.guards == ()
    twice = Chain(4, 4).pad((1, 0), (0, 0)).reshape(20).pad((1, 1)).check().map
    assert len(twice.guards) == 2
    assert Chain(8).pad((2, 0)).map.show() == "[i - 2] if 0 <= i - 2 < 8"


def test_in_bounds() -> None:
    i = axis_digit(0, 4)
    assert IndexMap((4,), (i,)).in_bounds((4,))
    assert not IndexMap((4,), (i,)).in_bounds((3,))
    assert not IndexMap((4,), (i - 1,)).in_bounds((4,))
    assert IndexMap((4,), (i - 1,), (Guard(i - 1, 3),)).in_bounds((4,))
    assert not IndexMap((4,), (i - 1,), (Guard(i - 1, 5),)).in_bounds((4,))
    assert not IndexMap((4,), (i - 1,), (Guard(i, 3),)).in_bounds((4,))


def test_evaluate_agrees_on_ints_and_arrays() -> None:
    value = views.reshape((6, 4), (4, 6)).coords[0] * 3 - 2
    every = values(value, (4, 6))
    assert [evaluate(value, c) for c in all_coordinates((4, 6))] == every.ravel().tolist()


def test_lookup_wraps_and_clamps() -> None:
    table = np.array([2, -1, 9, -9])
    value = lin(1, ((2, Digit(Lookup("t", (axis_digit(0, 4),), 5), 1, 5)),))
    found = evaluate(value, [np.arange(4)], lambda name, index: table[index])
    assert found.tolist() == [5, 9, 9, 1]
    moved = substitute(value, [axis_digit(0, 2) * 2 + axis_digit(1, 2)], (4,))  # substitution reaches into the index
    found = evaluate(moved, np.indices((2, 2)), lambda name, index: table[index])
    assert found.tolist() == [[5, 9], [9, 1]]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_substitution_of_row_major_digits(data: st.DataObject) -> None:
    """A flat position, put through any factorization and back, is itself."""
    shape = data.draw(shapes())
    out = data.draw(factorizations(math.prod(shape)))
    back = views.reshape(shape, out).then(views.reshape(out, shape))
    assert back.is_identity, back.show()
    assert substitute(flat(shape), views.reshape(shape, out).coords, shape) == flat(out)


def test_digits_of_one_mark_are_joined() -> None:
    """A sum that one reshape cannot split is whole again for the next one (see substitute's docstring)."""
    shift = 9 * np.arange(5)[:, None] + np.arange(5) + 5
    flat_ = axis_digit(0, 5) * 9 + axis_digit(1, 5)
    column = substitute(axis_digit(0, 9), [flat_], (45,)) + 5
    first = views.reshape((9, 5), (45,)).coords
    axes = [substitute(c, [flat_], (45,)) for c in first]
    halves = views.reshape((5, 10), (10, 5)).coords
    row, col = (substitute(c, [axes[0] + 1, axes[1]], (10, 5)) for c in halves)
    np.testing.assert_array_equal(values(row, (5, 5)), shift // 10)
    np.testing.assert_array_equal(values(col, (5, 5)), shift % 10)
    assert IndexMap((5, 5), (row, col)).show() == "[i, -i + j + 5]"
    assert column.min >= 0


def test_gather_reports_accesses_out_of_bounds() -> None:
    """The oracle itself fails on a wrong map."""
    with pytest.raises(AssertionError, match="out of bounds"):
        gather(IndexMap((4,), (axis_digit(0, 4) + 1,)), np.arange(4))
    with pytest.raises(AssertionError):
        check(IndexMap((4,), (Lin(),)), np.arange(4), np.arange(4))
