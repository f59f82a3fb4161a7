"""Normal form, bounds and notation of Lins."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.index_maps import axes_values, digits, lins, shapes, values

from smartmem.index.lin import (
    Digit,
    Lin,
    Lookup,
    Mark,
    Term,
    axes_of,
    axis_digit,
    constant,
    lin,
    pseudo_axes,
    show,
    total,
)

I12, J8 = axis_digit(0, 12), axis_digit(1, 8)
MARK = Mark(I12 + 3, 15)


def d(axis: int, lo: int, ext: int) -> Digit:
    return Digit(axis, lo, ext)


@pytest.mark.parametrize(
    ("terms", "normal"),
    [
        ((), ()),
        (((5, d(0, 4, 1)),), ()),  # a digit of extent 1 is always 0
        (((0, d(0, 1, 4)),), ()),
        (((2, d(0, 1, 4)), (3, d(0, 1, 4))), ((5, d(0, 1, 4)),)),
        (((2, d(0, 1, 4)), (-2, d(0, 1, 4))), ()),
        (((1, d(0, 1, 4)), (4, d(0, 4, 3))), ((1, d(0, 1, 12)),)),  # glue
        (((4, d(0, 4, 3)), (1, d(0, 1, 2)), (2, d(0, 2, 2))), ((1, d(0, 1, 12)),)),  # glue three
        (((1, d(0, 1, 4)), (5, d(0, 4, 3))), ((5, d(0, 4, 3)), (1, d(0, 1, 4)))),  # strides do not fit
        (((1, d(0, 1, 4)), (4, d(1, 4, 3))), ((4, d(1, 4, 3)), (1, d(0, 1, 4)))),  # other axis
        (((-1, d(0, 1, 4)), (-4, d(0, 4, 3))), ((-1, d(0, 1, 12)),)),
        (((1, d(0, 1, 2)), (1, d(0, 1, 4))), ((2, d(0, 1, 4)),)),  # same start, same stride: i%2 + i%4 ...
        (((1, d(0, 1, 12)), (-4, d(0, 4, 3))), ((1, d(0, 1, 4)),)),  # i - 4*(i//4) = i%4
        (((2, d(0, 2, 2)), (1, d(0, 1, 2)), (-1, d(0, 1, 4))), ()),  # glued digits are summed again
    ],
)
def test_normal_form(terms: tuple[Term, ...], normal: tuple[Term, ...]) -> None:
    value = lin(7, terms)
    if terms == ((1, d(0, 1, 2)), (1, d(0, 1, 4))):
        normal = ((2, d(0, 1, 2)), (2, d(0, 2, 2)))  # ... is cut at 2: 2*(i%2) + 2*(i//2%2), which does not glue
        assert set(value.terms) == set(normal)
    else:
        assert value == Lin(7, normal)
    i, j = axes_values((12, 8))
    raw = 7 + sum((s * ((i, j)[int(str(g.axis))] // g.lo % g.ext) for s, g in terms), np.zeros_like(i))
    np.testing.assert_array_equal(values(value, (12, 8)), raw)


def test_whole_marks_are_inlined() -> None:
    assert lin(1, ((2, Digit(MARK, 1, 15)),)) == I12 * 2 + 7
    assert lin(0, ((1, Digit(MARK, 1, 20)),)) == I12 + 3
    # only after its digits are glued
    assert lin(0, ((4, Digit(MARK, 4, 4)), (1, Digit(MARK, 1, 4)))) == I12 + 3
    # and what is inlined is glued and summed with the rest
    assert lin(0, ((1, Digit(MARK, 1, 15)), (-1, d(0, 1, 12)))) == constant(3)
    outer = Mark(lin(0, ((1, Digit(MARK, 5, 3)),)), 3)
    assert lin(0, ((5, Digit(outer, 1, 3)), (1, Digit(MARK, 1, 5)))) == I12 + 3
    assert lin(0, ((1, Digit(MARK, 1, 14)),)).terms == ((1, Digit(MARK, 1, 14)),)


def test_terms_are_sorted() -> None:
    terms = ((1, d(1, 1, 4)), (-9, d(0, 3, 4)), (3, d(2, 1, 4)), (3, d(0, 1, 2)))
    assert lin(0, terms) == lin(0, terms[::-1])
    assert [stride for stride, _ in lin(0, terms).terms] == [-9, 3, 3, 1]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_normal_form_keeps_values_and_is_idempotent(data: st.DataObject) -> None:
    extents = data.draw(shapes(3))
    terms = tuple(data.draw(st.lists(st.tuples(st.integers(-9, 9), digits(extents)), max_size=5)))
    value, axes = lin(4, terms), axes_values(extents)
    raw = np.full(extents, 4)
    for stride, digit in terms:
        assert isinstance(digit.axis, int)
        raw = raw + stride * (axes[digit.axis] // digit.lo % digit.ext)
    np.testing.assert_array_equal(values(value, extents), raw)
    assert lin(value.offset, value.terms) == value
    assert all(stride and digit.ext > 1 for stride, digit in value.terms)
    assert len({digit for _, digit in value.terms}) == len(value.terms)
    starts = {(digit.axis, digit.lo, stride) for stride, digit in value.terms}
    assert not any((g.axis, g.lo * g.ext, s * g.ext) in starts for s, g in value.terms)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bounds_hold_and_are_exact_for_independent_digits(data: st.DataObject) -> None:
    extents = data.draw(shapes(3))
    value = data.draw(lins(extents))
    seen = values(value, extents)
    assert value.min <= seen.min()
    assert seen.max() <= value.max
    assert value.within(value.min, value.max + 1)
    assert not value.within(value.min + 1, value.max + 1)
    if _nested(value):
        assert (value.min, value.max) == (seen.min(), seen.max())


def _nested(value: Lin) -> bool:
    """Whether the digits are of loop axes and, per axis, nest: the normal form has then made them independent."""
    cuts: dict[object, set[int]] = {}
    for _, digit in value.terms:
        cuts.setdefault(digit.axis, set()).update((digit.lo, digit.lo * digit.ext))
    chains = [sorted(c) for c in cuts.values()]
    nested = all(b % a == 0 for chain in chains for a, b in pairwise(chain))
    return nested and not list(pseudo_axes(value))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_arithmetic(data: st.DataObject) -> None:
    extents = data.draw(shapes(3))
    a, b, k = data.draw(lins(extents)), data.draw(lins(extents)), data.draw(st.integers(-5, 5))
    x, y = values(a, extents), values(b, extents)
    for value, expected in [(a + b, x + y), (a - b, x - y), (a * k, x * k), (a + k, x + k), (a - k, x - k)]:
        np.testing.assert_array_equal(values(value, extents), expected)
    assert a - a == Lin()
    assert a + b == b + a
    assert total([a, b, a]) == a * 2 + b
    assert (a * 0).is_constant


def test_axes() -> None:
    value = lin(0, ((2, Digit(MARK, 3, 5)), (1, Digit(Lookup("t", (J8,), 9), 1, 9)), (5, d(2, 1, 3))))
    assert set(axes_of(value)) == {0, 1, 2}
    assert list(pseudo_axes(value)) == [MARK, Lookup("t", (J8,), 9)]
    inner = lin(0, ((1, Digit(Mark(value, value.max + 1), 4, 2)),))
    assert len(list(pseudo_axes(inner))) == 3


@pytest.mark.parametrize(
    ("value", "bare", "known"),
    [
        (constant(0), "0", "0"),
        (constant(-3), "-3", "-3"),
        (I12, "i%12", "i"),
        (I12 * -1, "-(i%12)", "-i"),
        (I12 * 4 + 3, "4*(i%12) + 3", "4*i + 3"),
        (J8 - I12 + 7, "-(i%12) + j%8 + 7", "-i + j + 7"),
        (I12 * 3 - J8 * 2 - 1, "3*(i%12) - 2*(j%8) - 1", "3*i - 2*j - 1"),
        (lin(0, ((7, d(0, 4, 3)),)), "7*(i//4%3)", "7*(i//4)"),
        (lin(0, ((7, d(0, 2, 3)),)), "7*(i//2%3)", "7*(i//2%3)"),
        (lin(0, ((1, d(0, 2, 3)),)), "i//2%3", "i//2%3"),
        (lin(0, ((2, Digit(MARK, 3, 5)),)), "2*((i%12 + 3)//3)", "2*((i + 3)//3)"),
        (lin(0, ((2, Digit(MARK, 1, 5)),)), "2*((i%12 + 3)%5)", "2*((i + 3)%5)"),
        (lin(0, ((3, Digit(Lookup("t", (I12, J8), 9), 1, 9)),)), "3*t[i%12, j%8]", "3*t[i, j]"),
        (lin(0, ((1, Digit(Lookup("t", (I12,), 9), 1, 3)),)), "t[i%12]%3", "t[i]%3"),
    ],
)
def test_show(value: Lin, bare: str, known: str) -> None:
    assert show(value) == bare
    assert show(value, extents=(12, 8)) == known


def test_show_names() -> None:
    assert show(I12 + J8, ("row", "column"), (12, 8)) == "row + column"
    assert show(I12 + J8, ("row",), (12, 8)) == "row + a1"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_show_is_an_expression_with_the_value(data: st.DataObject) -> None:
    extents = data.draw(shapes(3))
    value = data.draw(lins(extents))
    names = dict(zip("ijkl", axes_values(extents), strict=False))
    for known in (None, extents):
        np.testing.assert_array_equal(
            eval(show(value, extents=known), names) + np.zeros(extents), values(value, extents)
        )
