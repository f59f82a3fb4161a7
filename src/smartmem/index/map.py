"""Index maps: for each coordinate of a domain, a coordinate of a tensor, and the guards under which it exists.

``IndexMap(domain, coords, guards)`` sends the loop coordinate (one value per axis of `domain`) to the tuple of
`coords`. Where a guard fails the access does not happen and the fill value of the load stands instead (padding).

Worked example: a 1-D convolution window over x of length 8 with padding 1 has domain (8, 3), coords (i + j - 1,) and
the guard 0 <= i + j - 1 < 8.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.index.lin import LETTERS, Digit, Lin, Mark, axis_digit, lin, show
from smartmem.index.substitute import substitute


@dataclass(frozen=True)
class Guard:
    """``0 <= lin < ext`` must hold, or the access does not happen."""

    lin: Lin
    ext: int

    @property
    def always(self) -> bool:
        return self.lin.within(0, self.ext)

    @property
    def never(self) -> bool:
        return self.lin.max < 0 or self.lin.min >= self.ext


def live_guards(guards: Iterable[Guard]) -> tuple[Guard, ...]:
    """The guards that bounds do not already prove, each once."""
    return tuple(dict.fromkeys(guard for guard in guards if not guard.always))


@dataclass(frozen=True)
class IndexMap:
    """`domain` axes -> one Lin per tensor axis, where `guards` hold."""

    domain: tuple[int, ...]
    coords: tuple[Lin, ...]
    guards: tuple[Guard, ...] = ()

    @staticmethod
    def identity(shape: Sequence[int]) -> IndexMap:
        return IndexMap(tuple(shape), tuple(axis_digit(a, n) for a, n in enumerate(shape)))

    @property
    def is_identity(self) -> bool:
        return not self.guards and self.coords == IndexMap.identity(self.domain).coords

    def then(self, inner: IndexMap) -> IndexMap:
        """Composition: this map's coordinates are the loop axes of `inner`."""
        coords = tuple(substitute(c, self.coords, inner.domain) for c in inner.coords)
        guards = (Guard(substitute(g.lin, self.coords, inner.domain), g.ext) for g in inner.guards)
        return IndexMap(self.domain, coords, live_guards((*self.guards, *guards)))

    def inverse(self, shape: Sequence[int]) -> IndexMap | None:
        """The map from `shape` back to the domain, or None unless this is a bijection made of whole digits."""
        return invert(self, tuple(shape))

    def in_bounds(self, shape: Sequence[int]) -> bool:
        """Whether every unguarded coordinate is proved to lie in `shape` (an empty domain has none)."""
        return 0 in self.domain or all(
            c.within(0, n) or any(g.lin == c and g.ext <= n for g in self.guards)
            for c, n in zip(self.coords, shape, strict=True)
        )

    def show(self, names: Sequence[str] = LETTERS) -> str:
        """The coordinates in ordinary notation: ``[i//4, i%4 - 1] if 0 <= i%4 - 1 < 2``."""
        text = ", ".join(show(c, names, self.domain) for c in self.coords)
        guards = " and ".join(f"0 <= {show(g.lin, names, self.domain)} < {g.ext}" for g in self.guards)
        return f"[{text}]" + (f" if {guards}" if guards else "")


def evaluate(value: Lin, coordinate: Sequence[Any], lookup: Callable[[str, tuple[Any, ...]], Any] | None = None) -> Any:
    """`value` at a coordinate: ints, or numpy arrays that broadcast (the oracle of the tests, and of packing)."""
    result: Any = value.offset
    for stride, digit in value.terms:
        result = result + stride * _evaluate_digit(digit, coordinate, lookup)
    return result


def _evaluate_digit(
    digit: Digit, coordinate: Sequence[Any], lookup: Callable[[str, tuple[Any, ...]], Any] | None
) -> Any:
    axis = digit.axis
    if isinstance(axis, int):
        base = coordinate[axis]
    elif isinstance(axis, Mark):
        base = evaluate(axis.lin, coordinate, lookup)
    else:
        assert lookup is not None, f"no tensor to look up {axis.tensor} in"
        entry = lookup(axis.tensor, tuple(evaluate(i, coordinate, lookup) for i in axis.index))
        base = np.clip(np.where(entry < 0, entry + axis.ext, entry), 0, axis.ext - 1)
    return base // digit.lo % digit.ext


def invert(index: IndexMap, shape: tuple[int, ...]) -> IndexMap | None:
    """See `IndexMap.inverse`. Each coordinate must be a mixed-radix number whose digits tile the domain exactly."""
    if index.guards:
        return None
    pieces: list[tuple[Digit, Lin]] = []  # (digit of the domain, the same digit seen from the tensor)
    for position, (coord, extent) in enumerate(zip(index.coords, shape, strict=True)):
        if coord.offset:
            return None
        radix = 1
        for stride, digit in reversed(coord.terms):
            if stride != radix or not isinstance(digit.axis, int):
                return None
            pieces.append((digit, lin(0, ((1, Digit(position, stride, digit.ext)),))))
            radix *= digit.ext
        if radix != extent:
            return None
    result: list[Lin] = []
    for axis, extent in enumerate(index.domain):
        mine = sorted(((d, seen) for d, seen in pieces if d.axis == axis), key=lambda piece: piece[0].lo)
        reached, value = 1, Lin()
        for digit, seen in mine:
            if digit.lo != reached:
                return None
            value = value + seen * digit.lo
            reached *= digit.ext
        if reached != extent:
            return None
        result.append(value)
    return IndexMap(shape, tuple(result))


def all_coordinates(shape: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """Every coordinate of `shape` in row-major order."""
    return itertools.product(*(range(n) for n in shape))
