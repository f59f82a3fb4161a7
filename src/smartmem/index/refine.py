"""Refinement: loop axes cut so that the digits of every access are whole, then merged where nothing separates them.

Every digit asks for cuts on its axis at `lo` and `lo * ext`. Per axis the heaviest chain of cuts in which each divides
the next becomes the axis's sub-axes, and every digit on the chain is affine: no division, no modulo is left. Digits off
the chain keep their division (rare; they lie outside of reductions, see `schedule`).

Worked example, pixel shuffle by 2: h asks for the cut 2 and so does w, the loops become c h1:8 h0:2 w1:8 w0:2, and
``channel = 4*c + 2*h0 + w0, row = h1, column = w1``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from smartmem.index.lin import Digit, Lin, Lookup, Mark, axis_digit, lin
from smartmem.index.substitute import substitute


@dataclass(frozen=True)
class Refinement:
    """New loop axes in terms of which the old ones are whole sums.

    Attributes:
        extents: of the new axes; those of old axis 0 come first, outermost sub-axis first.
        origin: for each new axis, the old axis it is part of (-1 once axes of different origins are merged).
        axes: each old axis as a Lin over the new ones (meaningless after `merge`, which folds it into the Lins).
        lins: the Lins that were refined, over the new axes.
    """

    extents: tuple[int, ...]
    origin: tuple[int, ...]
    axes: tuple[Lin, ...]
    lins: tuple[Lin, ...]


def digits_of(value: Lin) -> Iterator[Digit]:
    """All digits of loop axes in `value`, those inside marks and lookups included."""
    for _, digit in value.terms:
        if isinstance(digit.axis, Mark):
            yield from digits_of(digit.axis.lin)
        elif isinstance(digit.axis, Lookup):
            for index in digit.axis.index:
                yield from digits_of(index)
        else:
            yield digit


def refine(extents: Sequence[int], lins: Sequence[Lin], weights: Sequence[int] | None = None) -> Refinement:
    """Cuts every axis where the digits of `lins` (of the given traffic `weights`) ask for it."""
    wanted: list[Counter[int]] = [Counter({1: 1, extent: 1}) for extent in extents]
    for value, weight in zip(lins, weights or [1] * len(lins), strict=True):
        for digit in digits_of(value):
            assert isinstance(digit.axis, int)
            for cut in (digit.lo, digit.lo * digit.ext):
                wanted[digit.axis][min(cut, extents[digit.axis])] += weight
    new_extents: list[int] = []
    origin: list[int] = []
    axes: list[Lin] = []
    for axis, cuts in enumerate(wanted):
        chain = _heaviest_chain(cuts)
        value = Lin()
        for low, high in reversed(list(pairwise(chain))):
            value = value + axis_digit(len(new_extents), high // low) * low
            new_extents.append(high // low)
            origin.append(axis)
        axes.append(value)
    refined = tuple(substitute(value, axes, extents) for value in lins)
    return Refinement(tuple(new_extents), tuple(origin), tuple(axes), refined)


def _heaviest_chain(cuts: Counter[int]) -> list[int]:
    """The chain 1 | a | b | ... | extent of the greatest total weight in which each cut divides the next."""
    ordered = sorted(cuts)
    best: dict[int, tuple[int, list[int]]] = {}
    for cut in ordered:
        choices = [(best[c][0] + cuts[cut], [*best[c][1], cut]) for c in best if cut % c == 0]
        best[cut] = max(choices, key=lambda choice: choice[0]) if choices else (cuts[cut], [cut])
    return best[ordered[-1]][1]


def merge(
    extents: Sequence[int], order: Sequence[int], lins: Sequence[Lin], keep: Iterable[int] = (),
    cut: Collection[int] = (),
) -> Refinement:  # fmt: skip
    """Joins axes that are neighbours in `order` (outermost first) wherever no Lin separates them.

    Axes in `keep` are not joined. The Lins at the positions `cut` separate none: they have digits of a joined axis. In
    the result axes are numbered by `order`; `origin` is -1 for a joined axis.
    """
    kept = set(keep)
    whole = [value for position, value in enumerate(lins) if position not in cut]
    groups = [[axis] for axis in order]
    position = 0
    while position + 1 < len(groups):
        outer, inner = groups[position], groups[position + 1]
        if not kept & {*outer, *inner} and _joinable(extents, outer, inner, whole):
            groups[position : position + 2] = [[*outer, *inner]]
            position = max(position - 1, 0)
        else:
            position += 1
    axes = [Lin()] * len(extents)
    new_extents: list[int] = []
    for number, group in enumerate(groups):
        low = 1
        for axis in reversed(group):
            axes[axis] = lin(0, ((1, Digit(number, low, extents[axis])),))
            low *= extents[axis]
        new_extents.append(low)
    for axis, extent in enumerate(extents):
        if extent == 1:
            axes[axis] = Lin()
    origin = tuple(group[0] if len(group) == 1 else -1 for group in groups)
    refined = tuple(substitute(value, axes, extents) for value in lins)
    return Refinement(tuple(new_extents), origin, tuple(axes), refined)


def _joinable(extents: Sequence[int], outer: Sequence[int], inner: Sequence[int], lins: Sequence[Lin]) -> bool:
    """Whether in every Lin the stride of the last outer axis is the stride of the first inner one times its extent."""
    above, below = outer[-1], inner[0]
    return all(_fits(value, above, below, extents) for value in lins)


def _fits(value: Lin, above: int, below: int, extents: Sequence[int]) -> bool:
    strides = {above: 0, below: 0}
    for stride, digit in value.terms:
        if isinstance(digit.axis, Mark):
            if not _fits(digit.axis.lin, above, below, extents):
                return False
        elif isinstance(digit.axis, Lookup):
            if not all(_fits(i, above, below, extents) for i in digit.axis.index):
                return False
        elif digit.axis in strides:
            if digit.lo != 1 or digit.ext != extents[digit.axis]:
                return False
            strides[digit.axis] = stride
    return strides[above] == strides[below] * extents[below]
