"""Integer tables as index expressions: an exact Lin where the table has a pattern, otherwise a lookup.

A constant index tensor is often an arange, a stride, a broadcast or a sum of such things. `as_lin` finds these. Worked
example, the relative-position index of a 2x2 attention window, a (4, 4) table over loop axes i and j::

    [[4 3 1 0] [5 4 2 1] [7 6 4 3] [8 7 5 4]]  ->  3*(i//2) + i%2 - 3*(j//2) - j%2 + 4

Rule: a table that is a sum of one function per axis, ``f(i, j) = f(0, 0) + g(i) + h(j)``, where each of these is a sum
of strides times mixed-radix digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from smartmem.graph.ir import Value
from smartmem.index.divide import divide
from smartmem.index.lin import Digit, Lin, Lookup, lin
from smartmem.kernel.definitions.build import apply
from smartmem.kernel.expr import Expr, alu, iota

Array = np.ndarray[Any, Any]


def as_lin(table: Array, coords: Sequence[Lin]) -> Lin | None:
    """The Lin that equals ``table[coords]`` everywhere, or None. Each coordinate covers its table axis."""
    if table.size == 0:
        return Lin()
    corner = table[(0,) * table.ndim]
    result, explained = Lin(int(corner)), np.full((1,) * table.ndim, corner)
    for axis, (extent, coord) in enumerate(zip(table.shape, coords, strict=True)):
        along = np.moveaxis(table, axis, 0).reshape(extent, -1)[:, 0] - corner
        part = _digits(along, coord)
        if part is None:
            return None
        result = result + part
        explained = explained + along.reshape([extent if a == axis else 1 for a in range(table.ndim)])
    return result if np.array_equal(np.broadcast_to(explained, table.shape), table) else None


def _digits(values: Array, coord: Lin) -> Lin | None:
    """Strides times digits of `coord` that give `values` (values[0] == 0): the longest affine runs first."""
    extent = len(values)
    if not values.any():
        return Lin()
    step = int(values[1])
    for run in _divisors(extent):
        rows = values.reshape(-1, run)
        if np.array_equal(rows, rows[:, :1] + step * np.arange(run)):
            upper, lower = divide(coord, run)
            rest = _digits(rows[:, 0], upper)
            return None if rest is None else lower * step + rest
    return None


def _divisors(number: int) -> list[int]:
    """Divisors of `number` greater than 1, largest first."""
    return [d for d in range(number, 1, -1) if number % d == 0]


def looked_up(name: str, index: tuple[Lin, ...], extent: int) -> Lin:
    """The entry of the integer tensor `name` at `index`, a coordinate of an axis of `extent`."""
    return lin(0, ((1, Digit(Lookup(name, index, extent), 1, extent)),))


def indexed(indices: Value, coords: tuple[Lin, ...], extent: int, component: int | None = None) -> Lin:
    """The coordinate ``indices[coords]`` in an axis of `extent`: a Lin if the indices are constant with a pattern.

    Args:
        indices: integer tensor; entries may be negative (from the end).
        coords: index into it, each covering its axis.
        extent: of the axis that is gathered from.
        component: position on a last axis of `indices` that `coords` leaves out (GatherND).
    """
    last = () if component is None else (Lin(component),)
    if indices.data is not None:
        table = indices.data.astype(np.int64)
        table = table if component is None else table[..., component]
        exact = as_lin(np.where(table < 0, table + extent, table), coords)
        if exact is not None and exact.within(0, extent):
            return exact
    return looked_up(indices.name, (*coords, *last), extent)


def names(entry: Expr, place: Lin, extent: int) -> Expr:
    """Whether an entry of an integer tensor is coordinate `place` of an axis of `extent`; negative: from the end."""
    counted = apply("where", apply("lt", entry, 0), apply("add", entry, extent), entry)
    return alu("eq", counted, iota(place, entry.dtype))


class Tables:
    """Collects the constants that a definition adds."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.constants: dict[str, Array] = {}

    def add(self, suffix: str, data: Array) -> str:
        """Adds a constant and returns its name."""
        name = f"{self.prefix}.{suffix}"
        self.constants[name] = np.ascontiguousarray(data)
        return name

    def index(self, suffix: str, table: Array, coords: tuple[Lin, ...], extent: int) -> Lin:
        """The coordinate ``table[coords]`` of an axis of `extent`; the table becomes a constant only if it must."""
        exact = as_lin(table, coords)
        if exact is not None:
            return exact
        return looked_up(self.add(suffix, table.astype(np.int32)), coords, extent)
