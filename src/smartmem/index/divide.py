"""`divide(value, c)`: the exact quotient and remainder of a Lin, as Lins.

This is what a reshape needs: flattening is a sum, unflattening is a chain of divisions. Rules, tried in this order::

    (0) stride = q*c + r, r the residue nearest zero:  if sum(r*digit) stays in a window [0, c)  -> exact split
    (1) stride % c == 0                                -> the term joins the quotient
    (2) q = lcm(stride, c) / stride divides the extent -> split the digit at q, the upper part joins the quotient
    (3) what is left sums to < c                       -> remainder, done
    (4) else peel low digits beneath the largest usable g | c; what stays becomes a Mark

Worked example: divide(7*i + j, 7) with j < 7 is (i, j); divide(i, 7) with i < 56 is (i // 7, i % 7);
divide(i + 3, 56) with i < 56 (a roll) has no exact split and gives digits of Mark(i + 3, 59).

Invariant: ``value == c * quotient + remainder`` and ``0 <= remainder < c`` at every coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from smartmem.index.lin import Digit, Lin, Mark, Term, lin


@lru_cache(maxsize=1 << 16)
def divide(value: Lin, divisor: int) -> tuple[Lin, Lin]:
    """Quotient and remainder of `value` by `divisor` > 0 (floor division, also for negative values)."""
    if divisor == 1:
        return value, Lin()
    if value.within(0, divisor):
        return Lin(), value
    exact = _by_residues(value, divisor)
    if exact is not None:
        return exact
    upper: list[Term] = []
    rest: list[Term] = []
    for stride, digit in value.terms:
        period = math.lcm(abs(stride), divisor) // abs(stride)  # from here on the term is a multiple of the divisor
        if period == 1:
            upper.append((stride // divisor, digit))
        elif digit.ext > period and digit.ext % period == 0:
            rest.append((stride, Digit(digit.axis, digit.lo, period)))
            upper.append((stride * period // divisor, Digit(digit.axis, digit.lo * period, digit.ext // period)))
        else:
            rest.append((stride, digit))
    quotient = lin(value.offset // divisor, tuple(upper))
    remainder = lin(value.offset % divisor, tuple(rest))
    if remainder.within(0, divisor):
        return quotient, remainder
    exact = _by_residues(remainder, divisor)
    if exact is None:
        exact = _peel(remainder, divisor)
    return quotient + exact[0], exact[1]


def unflatten(flat: Lin, extents: Sequence[int]) -> tuple[Lin, ...]:
    """The row-major coordinate in `extents` whose flat index is `flat`."""
    parts: list[Lin] = []
    for extent in reversed(extents[1:]):
        flat, remainder = divide(flat, extent)
        parts.append(remainder)
    return (flat, *reversed(parts))


def _by_residues(value: Lin, divisor: int) -> tuple[Lin, Lin] | None:
    """Rule 0: residues nearest zero, with the offset's residue chosen so that the sum is not negative."""
    upper: list[Term] = []
    lower: list[Term] = []
    for stride, digit in value.terms:
        residue = (stride + divisor // 2) % divisor - divisor // 2
        upper.append(((stride - residue) // divisor, digit))
        lower.append((residue, digit))
    least = Lin(0, tuple(lower)).min
    offset = -least + (value.offset + least) % divisor
    remainder = lin(offset, tuple(lower))
    if not remainder.within(0, divisor):
        return None
    return lin((value.offset - offset) // divisor, tuple(upper)), remainder


def _peel(value: Lin, divisor: int) -> tuple[Lin, Lin]:
    """Rule 4: low digits stay exact, the rest becomes one Mark whose two digits are quotient and remainder."""
    unit, low, high = 1, Lin(value.offset % 1), value
    for candidate in _divisors(divisor):
        parts = _separate(value, candidate)
        if parts is not None:
            unit, (low, high) = candidate, parts
            break
    ratio = divisor // unit
    shift = -(high.min // ratio)  # marks start in [0, ratio): floor(x/c) = floor(x/c + k) - k
    source = high + shift * ratio
    mark = Mark(source, source.max + 1)
    quotient = lin(-shift, ((1, Digit(mark, ratio, -(-mark.ext // ratio))),))
    remainder = lin(low.offset, (*low.terms, (unit, Digit(mark, 1, ratio))))
    return quotient, remainder


def _separate(value: Lin, unit: int) -> tuple[Lin, Lin] | None:
    """`value == low + unit * high` with 0 <= low < unit, or None."""
    low: list[Term] = []
    high: list[Term] = []
    for stride, digit in value.terms:
        if stride % unit == 0:
            high.append((stride // unit, digit))
        elif stride > 0 and stride * (digit.ext - 1) < unit:
            low.append((stride, digit))
        elif stride > 0 and unit % stride == 0 and digit.ext % (unit // stride) == 0:
            split = unit // stride
            low.append((stride, Digit(digit.axis, digit.lo, split)))
            high.append((1, Digit(digit.axis, digit.lo * split, digit.ext // split)))
        else:
            return None
    lower = lin(value.offset % unit, tuple(low))
    if not lower.within(0, unit):
        return None
    return lower, lin(value.offset // unit, tuple(high))


@lru_cache(maxsize=4096)
def _divisors(number: int) -> tuple[int, ...]:
    """Divisors of `number` greater than 1 and less than it, largest first."""
    small = [d for d in range(2, math.isqrt(number) + 1) if number % d == 0]
    return tuple(sorted({*small, *(number // d for d in small)}, reverse=True))
