"""Substitution of Lins for axes: composition of index maps, the only operation that elimination and fusion need.

Worked example: the transpose-and-flatten ``y[i] = x[i % 4, i // 4]`` read at ``i = 4*a + b`` with b < 4 becomes
``x[b, a]``: digit (i//1 % 4) of ``4*a + b`` is ``b``, digit (i//4 % n) is ``a``.

Where two of the substituted values are digits of one Mark, they are first put together again, so that a flattened sum
that one reshape could not split is split by the next one: with ``i = M//5 + 1, j = M%5`` for the Mark M of ``9*a + b``,
``i//2`` and ``5*(i%2) + j`` are ``(5*i + j)//10`` and ``(5*i + j)%10`` with ``5*i + j = 9*a + b + 5``; for a, b < 5
that is ``a`` and ``b - a + 5`` (Conformer's relative-position shift). This needs the views composed from the consumer
backwards: later views of a chain are substituted into earlier ones.

A digit that reaches the top of its axis is not reduced modulo its extent: a coordinate is inside its tensor wherever
it is used (guards see to the rest), so the modulo would change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import TypeAlias

from smartmem.index.divide import divide
from smartmem.index.lin import Digit, Lin, Lookup, Mark, axis_digit, lin


def substitute(value: Lin, axes: Sequence[Lin], extents: Sequence[int]) -> Lin:
    """`value` with loop axis k (of extent ``extents[k]``) replaced by ``axes[k]``."""
    values, sizes = tuple(axes), tuple(extents)
    joined, values, sizes = _join(values, sizes)
    for parts, before in joined:
        value = _substitute(value, parts, before)
    return _substitute(value, values, sizes)


Extents: TypeAlias = tuple[int, ...]
Values: TypeAlias = tuple[Lin, ...]


@lru_cache(maxsize=4096)
def _join(axes: Values, extents: Extents) -> tuple[tuple[tuple[Values, Extents], ...], Values, Extents]:
    """Pairs of axes that are digits of a common Mark become one axis: (a, b) -> f = a * |b| + b.

    Returns the old axes as digits of the new ones (with the extents before), once per pair, and the new values and
    extents; the place of b is left with a zero.
    """
    steps: list[tuple[Values, Extents]] = []
    while (pair := _digits_of_one_mark(axes, extents)) is not None:
        upper, lower, flat = pair
        size = extents[lower]
        parts = [axis_digit(axis, extent) for axis, extent in enumerate(extents)]
        parts[upper] = lin(0, ((1, Digit(upper, size, extents[upper])),))
        parts[lower] = lin(0, ((1, Digit(upper, 1, size)),))
        steps.append((tuple(parts), extents))
        places = {upper: (flat, extents[upper] * size), lower: (Lin(), 1)}
        axes, extents = (
            tuple(places[k][0] if k in places else value for k, value in enumerate(axes)),
            tuple(places[k][1] if k in places else extent for k, extent in enumerate(extents)),
        )
    return tuple(steps), axes, extents


def _digits_of_one_mark(axes: Values, extents: Extents) -> tuple[int, int, Lin] | None:
    """A pair (a, b) with fewer digits of Marks in ``a * |b| + b`` than in a and b, and that sum."""
    sources = [{digit.axis for _, digit in value.terms if isinstance(digit.axis, Mark)} for value in axes]
    for upper, lower in permutations([k for k, marks in enumerate(sources) if marks], 2):
        if sources[upper] & sources[lower]:
            flat = axes[upper] * extents[lower] + axes[lower]
            if _mark_digits(flat) < _mark_digits(axes[upper]) + _mark_digits(axes[lower]):
                return upper, lower, flat
    return None


def _mark_digits(value: Lin) -> int:
    return sum(isinstance(digit.axis, Mark) for _, digit in value.terms)


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
        if base.min >= 0 and _signature(base) == _signature(
            axis.lin
        ):  # the same sum of other digits: it stays one Mark
            return lin(0, ((1, Digit(Mark(base, extent), digit.lo, digit.ext)),))
    else:
        index = tuple(_substitute(i, axes, extents) for i in axis.index)
        return lin(0, ((1, Digit(Lookup(axis.tensor, index, axis.ext), digit.lo, digit.ext)),))
    quotient = divide(base, digit.lo)[0]
    if digit.lo * digit.ext >= extent or quotient.within(0, digit.ext):
        return quotient
    return divide(quotient, digit.ext)[1]


def redirect(value: Lin, tensor: str, source: str, index: Sequence[Lin], shape: Sequence[int]) -> Lin:
    """`value` with lookups in `tensor`, a view ``tensor[a..] = source[index(a..)]`` of `shape`, made in `source`."""
    result = Lin(value.offset)
    for stride, digit in value.terms:
        axis = digit.axis
        if isinstance(axis, Mark):
            axis = Mark(redirect(axis.lin, tensor, source, index, shape), axis.ext)
        elif isinstance(axis, Lookup):
            at = tuple(redirect(i, tensor, source, index, shape) for i in axis.index)
            if axis.tensor == tensor:
                axis = Lookup(source, tuple(substitute(i, at, shape) for i in index), axis.ext)
            else:
                axis = Lookup(axis.tensor, at, axis.ext)
        result = result + lin(0, ((stride, Digit(axis, digit.lo, digit.ext)),))
    return result


def _signature(value: Lin) -> tuple[int, list[tuple[int, int]]]:
    """`value` without saying which digits it is made of."""
    return value.offset, sorted((stride, digit.ext) for stride, digit in value.terms)
