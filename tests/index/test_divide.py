"""`divide`: value == c * quotient + remainder and 0 <= remainder < c, at every coordinate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.index_maps import lins, marks, shapes, values

from smartmem.index.divide import divide
from smartmem.index.lin import Lin, axis_digit, lin, show


def check(value: Lin, divisor: int, extents: tuple[int, ...]) -> tuple[Lin, Lin]:
    quotient, remainder = divide(value, divisor)
    expected = values(value, extents)
    text = f"({show(value)}) by {divisor} -> {show(quotient)}, {show(remainder)}"
    np.testing.assert_array_equal(values(quotient, extents), expected // divisor, err_msg=text)
    np.testing.assert_array_equal(values(remainder, extents), expected % divisor, err_msg=text)
    assert remainder.within(0, divisor), f"not proved: {text}"
    return quotient, remainder


I8, I12, I56 = axis_digit(0, 8), axis_digit(0, 12), axis_digit(0, 56)
J2, J4, J5, J7 = (axis_digit(1, n) for n in (2, 4, 5, 7))


@pytest.mark.parametrize(
    ("value", "divisor", "extents", "quotient", "remainder"),
    [
        # trivial
        (I8, 1, (8,), "i", "0"),
        (I8, 8, (8,), "0", "i"),
        (I8, 9, (8,), "0", "i"),
        (Lin(-5), 3, (), "-2", "1"),
        (I8 * 0 + 17, 5, (8,), "3", "2"),
        # (0) residues
        (I8 * 7 + J7, 7, (8, 7), "i", "j"),
        (I8 * 8 + J4 + 3, 8, (8, 4), "i", "j + 3"),
        (I8 * 8 + J4 + 12, 8, (8, 4), "i + 1", "j + 4"),
        (I8 * 8 + J4 - 5, 8, (8, 4), "i - 1", "j + 3"),
        (axis_digit(0, 5) * 9 + J5 + 5, 10, (5, 5), "i", "-i + j + 5"),  # 9 = 1*10 - 1: relative shift
        (axis_digit(0, 5) * 11 + J5, 10, (5, 5), "i", "i + j"),
        (I8 * 8 - J4 + 3, 8, (8, 4), "i", "-j + 3"),
        (I8 * 8 - J4 - 1, 8, (8, 4), "i - 1", "-j + 7"),
        (J2 + 1, 2, (1, 2), "j", "-j + 1"),  # a roll by one of two
        # (1) strides that the divisor divides
        (I8 * 12 + axis_digit(1, 3), 4, (8, 3), "3*i", "j"),
        (I8 * -12 + axis_digit(1, 3), 4, (8, 3), "-3*i", "j"),
        # (2) split
        (I56, 7, (56,), "i//7", "i%7"),
        (I56 * 3, 7, (56,), "3*(i//7) + (3*(i%7))//7", "(3*(i%7))%7"),
        (I12 * 6 + axis_digit(1, 6), 36, (12, 6), "i//6", "6*(i%6) + j"),
        (I56 * -1 + 55, 7, (56,), "-(i//7) + 7", "-(i%7) + 6"),  # reversed
        (I12 * 2 + J2, 8, (12, 2), "i//4", "2*(i%4) + j"),
        # (4) peel: j % 2 stays exact beneath the Mark of the rest
        (
            axis_digit(0, 4) * 6 + axis_digit(1, 6),
            4,
            (4, 6),
            "3*(i//2) + (3*(i%2) + j//2)//2",
            "2*((3*(i%2) + j//2)%2) + j%2",
        ),
        # Mark: a roll; an extent that the divisor does not divide
        (I56 + 3, 56, (56,), "(i + 3)//56", "(i + 3)%56"),
        (I56 + 4, 56, (56,), "(i//4 + 1)//14", "4*((i//4 + 1)%14) + i%4"),  # runs of 4 stay exact
        (axis_digit(0, 9), 4, (9,), "(i)//4", "(i)%4"),
        (axis_digit(0, 10), 4, (10,), "(i//2)//2", "2*((i//2)%2) + i%2"),
        (axis_digit(0, 10) - 3, 4, (10,), "(i + 1)//4 - 1", "(i + 1)%4"),
    ],
)
def test_rules(value: Lin, divisor: int, extents: tuple[int, ...], quotient: str, remainder: str) -> None:
    found = check(value, divisor, extents)
    assert tuple(show(v, extents=extents) for v in found) == (quotient, remainder)


@pytest.mark.parametrize(
    ("value", "divisor", "count"),
    [
        (I56 + 3, 56, 1),
        (I8 * 7 + J7, 7, 0),
        (axis_digit(0, 5) * 9 + J5 + 5, 10, 0),
        (axis_digit(0, 4) * 6 + axis_digit(1, 6), 4, 1),
    ],
)
def test_number_of_marks(value: Lin, divisor: int, count: int) -> None:
    """Quotient and remainder are digits of one Mark."""
    assert len(marks(*divide(value, divisor))) == count


def test_marks_start_below_the_divisor() -> None:
    """So that sums that differ by whole multiples of the divisor share a Mark."""
    for offset in (-109, -53, 3, 59):
        (mark,) = marks(*divide(I56 + offset, 56))
        assert mark.lin == I56 + 3


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_random(data: st.DataObject) -> None:
    extents = data.draw(shapes(3))
    check(data.draw(lins(extents)), data.draw(st.integers(1, 40)), extents)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_division_by_parts(data: st.DataObject) -> None:
    """Dividing by a, then by b, has the quotient of dividing by a*b."""
    extents = data.draw(shapes(3))
    value, a, b = data.draw(lins(extents)), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    once, low = check(value, a, extents)
    twice, high = check(once, b, extents)
    both, rest = check(value, a * b, extents)
    np.testing.assert_array_equal(values(twice, extents), values(both, extents))
    np.testing.assert_array_equal(values(low + high * a, extents), values(rest, extents))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_multiplying_back_cancels(data: st.DataObject) -> None:
    """c * quotient + remainder is the value itself, in normal form, if all digits nest."""
    extents = data.draw(shapes(3))
    value = lin(data.draw(st.integers(0, 9)), ())
    for axis, extent in enumerate(extents):
        value = value + axis_digit(axis, extent) * data.draw(st.integers(-20, 20))
    divisor = data.draw(st.integers(1, 40))
    quotient, remainder = divide(value, divisor)
    assert quotient * divisor + remainder == value


@example(2, 3)
@given(st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_flat_positions_split_at_every_suffix(a: int, b: int) -> None:
    """Unflattening in the radices that were flattened is free of Marks."""
    extents = (a, b, 3)
    flat = (axis_digit(0, a) * b + axis_digit(1, b)) * 3 + axis_digit(2, 3)
    for cut in range(1, 3):
        quotient, remainder = check(flat, math.prod(extents[cut:]), extents)
        assert not marks(quotient, remainder)
