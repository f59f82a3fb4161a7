"""Digits and affine sums of digits: the one language in which smartmem writes every index.

A *digit* is one position of a mixed-radix number, ``Digit(axis, lo, ext) = (axis // lo) % ext``; a `Lin` is
``offset + sum(stride * digit)``. Every coordinate that a load or store uses is a `Lin` over the axes of a loop nest.

Worked example, pixel shuffle by 2 from (1, 16, 8, 8) to (1, 4, 16, 16), read backwards from the output (n, c, h, w)::

    channel = 4*c + 2*(h % 2) + (w % 2)     Lin(0, ((4, Digit(1, 1, 4)), (2, Digit(2, 1, 2)), (1, Digit(3, 1, 2))))
    row     = h // 2                        Lin(0, ((1, Digit(2, 2, 8)),))

Normal form (`lin` builds it, nothing else constructs `Lin`): no digit of extent 1, no zero stride, equal digits summed,
overlapping digits cut, adjacent digits glued, whole marks inlined, terms sorted. So an identity is one whole digit, and
round trips cancel.

An axis is an int (a loop axis), a `Mark` (a residual sum that has no exact split) or a `Lookup` (an entry of an
integer tensor: a gather, constant or by data).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias


@dataclass(frozen=True)
class Mark:
    """A residual sum `lin`, 0 <= lin < ext, used as an axis because one of its digits has no exact split."""

    lin: Lin
    ext: int


@dataclass(frozen=True)
class Lookup:
    """The entry of the integer tensor `tensor` at `index`, wrapped and clamped to [0, ext): a data-dependent axis."""

    tensor: str
    index: tuple[Lin, ...]
    ext: int


Axis: TypeAlias = int | Mark | Lookup


@dataclass(frozen=True)
class Digit:
    """``(axis // lo) % ext``; a digit that reaches the top of its axis needs no modulo."""

    axis: Axis
    lo: int
    ext: int


Term: TypeAlias = tuple[int, Digit]


@dataclass(frozen=True)
class Lin:
    """``offset + sum(stride * digit)`` in normal form; build it with `lin`."""

    offset: int = 0
    terms: tuple[Term, ...] = ()

    def __add__(self, other: Lin | int) -> Lin:
        if isinstance(other, int):
            return Lin(self.offset + other, self.terms)
        return lin(self.offset + other.offset, self.terms + other.terms)

    def __sub__(self, other: Lin | int) -> Lin:
        return self + (-other if isinstance(other, int) else other * -1)

    def __mul__(self, factor: int) -> Lin:
        return lin(self.offset * factor, tuple((stride * factor, digit) for stride, digit in self.terms))

    @property
    def min(self) -> int:
        """The least value over the whole domain."""
        return self.offset + sum(stride * (digit.ext - 1) for stride, digit in self.terms if stride < 0)

    @property
    def max(self) -> int:
        """The greatest value over the whole domain."""
        return self.offset + sum(stride * (digit.ext - 1) for stride, digit in self.terms if stride > 0)

    @property
    def is_constant(self) -> bool:
        return not self.terms

    def within(self, low: int, high: int) -> bool:
        """Whether low <= value < high everywhere."""
        return low <= self.min and self.max < high


def axis_digit(axis: int, ext: int) -> Lin:
    """The identity of a loop axis of extent `ext`."""
    return lin(0, ((1, Digit(axis, 1, ext)),))


def constant(value: int) -> Lin:
    """The Lin that is `value` everywhere."""
    return Lin(value)


def _axis_key(axis: Axis) -> tuple[int, str]:
    return (axis, "") if isinstance(axis, int) else (1 << 30, repr(axis))


@lru_cache(maxsize=1 << 16)
def lin(offset: int, terms: tuple[Term, ...]) -> Lin:
    """The normal form of ``offset + sum(stride * digit)``."""
    while True:
        live = _sum_equal(terms)
        for position, (stride, digit) in enumerate(live):
            mark = digit.axis
            if isinstance(mark, Mark) and digit.lo == 1 and digit.ext >= mark.ext:  # whole mark -> the sum itself
                inlined = tuple((stride * inner, d) for inner, d in mark.lin.terms)
                offset, terms = offset + stride * mark.lin.offset, (*live[:position], *live[position + 1 :], *inlined)
                break
        else:
            if len({digit.axis for _, digit in live}) < len(live):
                glued = _glue(_sum_equal(_cut_overlaps(live)))
                if set(glued) != set(live):  # gluing may make a mark whole or a digit equal to another
                    terms = tuple(glued)
                    continue
            live.sort(key=lambda term: (-abs(term[0]), _axis_key(term[1].axis), term[1].lo, term[1].ext))
            return Lin(offset, tuple(live))


def _sum_equal(terms: Iterable[Term]) -> list[Term]:
    """s*d + t*d -> (s + t)*d, without digits of extent 1 and without zero strides."""
    strides: dict[Digit, int] = {}
    for stride, digit in terms:
        if digit.ext != 1:
            strides[digit] = strides.get(digit, 0) + stride
    return [(stride, digit) for digit, stride in strides.items() if stride]


def _cut_overlaps(terms: list[Term]) -> list[Term]:
    """s*(a//l % e*f) -> s*(a//l % e) + s*e*(a//(l*e) % f) where another digit of `a` starts or ends between.

    So ``i - 4*(i//4)`` becomes ``i % 4``, and bounds are exact. Digits that do not nest stay as they are.
    """
    cuts: dict[Axis, set[int]] = {}
    for _, digit in terms:
        cuts.setdefault(digit.axis, set()).update((digit.lo, digit.lo * digit.ext))
    result: list[Term] = []
    for stride, digit in terms:
        chain = sorted(cuts[digit.axis])
        if chain[0] == 0 or any(high % low for low, high in pairwise(chain)):
            result.append((stride, digit))
            continue
        inside = [cut for cut in chain if digit.lo <= cut <= digit.lo * digit.ext]
        for low, high in pairwise(inside):
            result.append((stride * (low // digit.lo), Digit(digit.axis, low, high // low)))
    return result


def _glue(terms: list[Term]) -> list[Term]:
    """s*(a//lo % e) + s*e*(a//(lo*e) % f) -> s*(a//lo % e*f)."""
    by_start: dict[tuple[Axis, int, int], list[Digit]] = {}
    for stride, digit in sorted(terms, key=lambda term: term[1].lo):
        by_start.setdefault((digit.axis, digit.lo, stride), []).append(digit)
    glued: list[Term] = []
    for (axis, lo, stride), digits in by_start.items():  # lowest first
        for digit in digits:
            ext = digit.ext
            while uppers := by_start.get((axis, lo * ext, stride * ext)):
                ext *= uppers.pop().ext
            glued.append((stride, Digit(axis, lo, ext)))
    return glued


def parts_of(axis: Axis) -> tuple[Lin, ...]:
    """The Lins that a mark or a lookup is made of; none of a loop axis."""
    if isinstance(axis, int):
        return ()
    return (axis.lin,) if isinstance(axis, Mark) else axis.index


def axes_of(value: Lin) -> Iterator[int]:
    """The loop axes that `value` depends on, marks and lookups included (with repetitions)."""
    for _, digit in value.terms:
        if isinstance(digit.axis, int):
            yield digit.axis
        for part in parts_of(digit.axis):
            yield from axes_of(part)


def pseudo_axes(value: Lin) -> Iterator[Mark | Lookup]:
    """The marks and lookups in `value`, outermost first."""
    for _, digit in value.terms:
        if not isinstance(digit.axis, int):
            yield digit.axis
        for part in parts_of(digit.axis):
            yield from pseudo_axes(part)


def total(values: Iterable[Lin]) -> Lin:
    """The sum of several Lins."""
    result = Lin()
    for value in values:
        result = result + value
    return result


Names: TypeAlias = Sequence[str]
LETTERS = "ijklmnopqrstuvwxyz"


def show(value: Lin, names: Names = LETTERS, extents: Sequence[int] | None = None) -> str:
    """`value` in ordinary notation, `names` giving the loop axes: ``4*i + j//2%8 + 3``.

    The text is an expression in Python and evaluates to `value`. With the loop's `extents`, a digit that reaches the
    top of its axis is printed without the modulo, so that a whole axis is its bare name: ``4*i + j//2 + 3``.
    """
    parts = [_show_term(stride, digit, names, extents) for stride, digit in value.terms]
    if value.offset or not parts:
        parts.append(str(value.offset))
    return parts[0] + "".join(f" - {part[1:]}" if part[0] == "-" else f" + {part}" for part in parts[1:])


def _show_term(stride: int, digit: Digit, names: Names, extents: Sequence[int] | None) -> str:
    axis = digit.axis
    top: int | None  # where the axis ends, if that is known
    if isinstance(axis, int):
        base = names[axis] if axis < len(names) else f"a{axis}"
        top = extents[axis] if extents is not None else None
    elif isinstance(axis, Mark):
        base, top = f"({show(axis.lin, names, extents)})", axis.ext
    else:
        base, top = f"{axis.tensor}[{', '.join(show(i, names, extents) for i in axis.index)}]", axis.ext
    text = base
    if digit.lo != 1:
        text += f"//{digit.lo}"
    if top is None or digit.lo * digit.ext < top:
        text += f"%{digit.ext}"
    if abs(stride) != 1:
        text = f"{abs(stride)}*{text if text == base else f'({text})'}"
    elif stride < 0 and text != base:
        text = f"({text})"
    return f"-{text}" if stride < 0 else text


def renumber(value: Lin, moved: Mapping[int, int]) -> Lin:
    """`value` with loop axes renumbered; axes that `moved` does not name stay."""
    terms: list[Term] = []
    for stride, digit in value.terms:
        axis = digit.axis
        if isinstance(axis, Mark):
            axis = Mark(renumber(axis.lin, moved), axis.ext)
        elif isinstance(axis, Lookup):
            axis = Lookup(axis.tensor, tuple(renumber(i, moved) for i in axis.index), axis.ext)
        else:
            axis = moved.get(axis, axis)
        terms.append((stride, Digit(axis, digit.lo, digit.ext)))
    return lin(value.offset, tuple(terms))
