"""The oracle of the index tests: every coordinate of a map or of a chain of views against numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from smartmem.index import views
from smartmem.index.lin import Digit, Lin, Mark, axis_digit, lin, pseudo_axes
from smartmem.index.map import IndexMap, evaluate

Array = np.ndarray[Any, Any]


def axes_values(extents: Sequence[int]) -> list[Array]:
    """The value of each axis at every coordinate of `extents`."""
    return list(np.indices(tuple(extents)))


def values(value: Lin, extents: Sequence[int]) -> Array:
    """`value` at every coordinate of `extents`."""
    return np.broadcast_to(np.asarray(evaluate(value, axes_values(extents))), tuple(extents))


def gather(index: IndexMap, source: Array, fill: int = 0) -> Array:
    """What a load through `index` sees at every coordinate of its domain; outside of the guards, `fill`.

    Fails where a coordinate leaves `source` although all guards hold.
    """
    inside = np.ones(index.domain, bool)
    for guard in index.guards:
        position = values(guard.lin, index.domain)
        inside &= (position >= 0) & (position < guard.ext)
    result = np.full(index.domain, fill, source.dtype)
    coords = [values(c, index.domain)[inside] for c in index.coords]
    for position, extent in zip(coords, source.shape, strict=True):
        assert ((position >= 0) & (position < extent)).all(), f"out of bounds: {index.show()} of {source.shape}"
    result[inside] = source[tuple(coords)]
    return result


def check(index: IndexMap, source: Array, expected: Array, fill: int = 0) -> None:
    """`index` reads `expected` out of `source`, at every coordinate, and is proved to stay inside of it."""
    assert index.domain == expected.shape
    np.testing.assert_array_equal(gather(index, source, fill), expected, err_msg=index.show())


def marks(*items: Lin | IndexMap) -> set[Mark]:
    """The distinct residual sums in Lins, or in the coordinates of maps."""
    lins = [value for item in items for value in (item.coords if isinstance(item, IndexMap) else (item,))]
    return {axis for value in lins for axis in pseudo_axes(value) if isinstance(axis, Mark)}


class Chain:
    """Views applied one after the other, to a numpy array and to an index map.

    The array starts as 1, 2, 3, ... (so that 0 is the fill value of padding); each method returns the chain itself.
    """

    def __init__(self, *shape: int) -> None:
        self.source: Array = np.arange(1, math.prod(shape) + 1).reshape(shape)
        self.array = self.source
        self.steps: list[IndexMap] = []
        self.map = IndexMap.identity(shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def _apply(self, view: IndexMap, array: Array) -> Chain:
        self.steps.append(view)
        self.map, self.array = view.then(self.map), array
        return self

    def reshape(self, *shape: int) -> Chain:
        return self._apply(views.reshape(self.shape, shape), self.array.reshape(shape))

    def permute(self, *perm: int) -> Chain:
        return self._apply(views.permute(self.shape, perm), self.array.transpose(perm))

    def slice(self, *slices: slice) -> Chain:
        """One slice per axis; missing ones keep their axis."""
        array = self.array[slices]
        full = (*slices, *[slice(None)] * (len(self.shape) - len(slices)))
        ranges = [range(n)[s] for n, s in zip(self.shape, full, strict=True)]
        view = views.strided_slice(
            self.shape, [r.start for r in ranges], [len(r) for r in ranges], [r.step for r in ranges]
        )
        return self._apply(view, array)

    def pad(self, *amounts: tuple[int, int]) -> Chain:
        """(before, after) of each axis, padding with 0; negative amounts crop."""
        before, after = [b for b, _ in amounts], [a for _, a in amounts]
        crop = tuple(slice(max(0, -b), n - max(0, -a)) for n, (b, a) in zip(self.shape, amounts, strict=True))
        array = np.pad(self.array[crop], [(max(0, b), max(0, a)) for b, a in amounts])
        return self._apply(views.pad(self.shape, before, after), array)

    def roll(self, axis: int, shift: int) -> Chain:
        """Towards lower positions by `shift`: out[k] = in[(k + shift) % n]."""
        return self._apply(views.roll(self.shape, axis, shift), np.roll(self.array, -shift, axis))

    def expand(self, *shape: int) -> Chain:
        return self._apply(views.expand(self.shape, shape), np.broadcast_to(self.array, shape))

    @property
    def map_from_consumer(self) -> IndexMap:
        """The same composition, associated the other way: from the last view backwards."""
        result = self.steps[-1]
        for view in reversed(self.steps[:-1]):
            result = result.then(view)
        return result

    def check(self, max_marks: int | None = None) -> Chain:
        """Both associations of the chain read what numpy computes, with at most `max_marks` distinct residuals."""
        for index in (self.map, self.map_from_consumer):
            check(index, self.source, self.array)
            assert index.in_bounds(self.source.shape) or marks(index) or self.map.guards, index.show()
            if max_marks is not None:
                assert len(marks(index)) <= max_marks, index.show()
        return self


SIZES = (1, 2, 3, 4, 6, 8, 12)


@st.composite
def digits(draw: st.DrawFn, extents: Sequence[int]) -> Digit:
    """A digit lo | hi | extent of one of the axes."""
    axis = draw(st.integers(0, len(extents) - 1))
    upper = draw(st.sampled_from(divisors(extents[axis])))
    lower = draw(st.sampled_from(divisors(upper)))
    return Digit(axis, lower, upper // lower)


@st.composite
def lins(draw: st.DrawFn, extents: Sequence[int]) -> Lin:
    """An offset and up to four digits, now and then with a mark among them."""
    terms = draw(st.lists(st.tuples(st.integers(-30, 30), digits(extents)), max_size=4))
    value = lin(draw(st.integers(-40, 40)), tuple(terms))
    if draw(st.integers(0, 3)) == 0:
        source = value - value.min
        ext = source.max + 1
        lo = draw(st.integers(1, max(1, ext // 2)))
        digit = Digit(Mark(source, ext), lo, draw(st.integers(1, -(-ext // lo))))
        value = lin(value.offset, ((draw(st.integers(-9, 9)), digit), *draw(st.sampled_from([(), value.terms]))))
    return value


@st.composite
def shapes(draw: st.DrawFn, max_rank: int = 4) -> tuple[int, ...]:
    """A shape of at most a few hundred elements."""
    shape: list[int] = []
    for _ in range(draw(st.integers(1, max_rank))):
        room = 400 // math.prod(shape)
        shape.append(draw(st.sampled_from([n for n in SIZES if n <= room])))
    return tuple(shape)


@st.composite
def factorizations(draw: st.DrawFn, number: int, max_rank: int = 4) -> tuple[int, ...]:
    """A shape of `number` elements."""
    shape: list[int] = []
    for _ in range(draw(st.integers(1, max_rank)) - 1):
        shape.append(draw(st.sampled_from(divisors(number))))
        number //= shape[-1]
    return tuple(draw(st.permutations([*shape, number])))


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def flat(extents: Sequence[int]) -> Lin:
    """The row-major position in `extents`."""
    result = Lin()
    for axis, extent in enumerate(extents):
        result = result * extent + axis_digit(axis, extent)
    return result
