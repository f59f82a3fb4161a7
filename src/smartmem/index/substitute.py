"""Substitution of Lins for axes: composition of index maps, the only operation that elimination and fusion need.

Worked example: the transpose-and-flatten ``y[i] = x[i % 4, i // 4]`` read at ``i = 4*a + b`` with b < 4 becomes
``x[b, a]``: digit (i//1 % 4) of ``4*a + b`` is ``b``, digit (i//4 % n) is ``a``.

A digit that reaches the top of its axis is not reduced modulo its extent: a coordinate is inside its tensor wherever
it is used (guards see to the rest), so the modulo would change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from smartmem.index.divide import divide
from smartmem.index.lin import Digit, Lin, Lookup, Mark, lin


def substitute(value: Lin, axes: Sequence[Lin], extents: Sequence[int]) -> Lin:
    """`value` with loop axis k (of extent ``extents[k]``) replaced by ``axes[k]``."""
    return _substitute(value, tuple(axes), tuple(extents))


@lru_cache(maxsize=1 << 16)
def _substitute(value: Lin, axes: tuple[Lin, ...], extents: tuple[int, ...]) -> Lin:
    result = Lin(value.offset)
    for stride, digit in value.terms:
        result = result + _digit_of(digit, axes, extents) * stride
    return result


def _digit_of(digit: Digit, axes: tuple[Lin, ...], extents: tuple[int, ...]) -> Lin:
    axis = digit.axis
    if isinstance(axis, int):
        base, extent = axes[axis], extents[axis]
    elif isinstance(axis, Mark):
        base, extent = _substitute(axis.lin, axes, extents), axis.ext
    else:
        index = tuple(_substitute(i, axes, extents) for i in axis.index)
        return lin(0, ((1, Digit(Lookup(axis.tensor, index, axis.ext), digit.lo, digit.ext)),))
    quotient = divide(base, digit.lo)[0]
    if digit.lo * digit.ext >= extent or quotient.within(0, digit.ext):
        return quotient
    return divide(quotient, digit.ext)[1]
