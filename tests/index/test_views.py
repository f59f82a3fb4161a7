"""Each view against numpy, at every coordinate."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.index_maps import Chain, check, factorizations, marks, shapes

from smartmem.index import views


def source(*shape: int) -> np.ndarray:
    return np.arange(1, math.prod(shape) + 1).reshape(shape)


@pytest.mark.parametrize("perm", list(permutations(range(3))))
def test_permute(perm: tuple[int, ...]) -> None:
    x = source(2, 1, 4)
    index = views.permute(x.shape, perm)
    check(index, x, x.transpose(perm))
    assert index.in_bounds(x.shape)


@pytest.mark.parametrize(
    "slices",
    [
        (slice(None), slice(None)),
        (slice(2, 5), slice(1, None)),
        (slice(None, None, 2), slice(1, None, 3)),
        (slice(None, None, -1), slice(5, 1, -2)),
        (slice(3, 4), slice(0, 1)),
    ],
)
def test_strided_slice(slices: tuple[slice, ...]) -> None:
    x = source(6, 8)
    ranges = [range(n)[s] for n, s in zip(x.shape, slices, strict=True)]
    index = views.strided_slice(x.shape, [r.start for r in ranges], [len(r) for r in ranges], [r.step for r in ranges])
    check(index, x, x[slices])
    assert index.in_bounds(x.shape)
    assert not marks(index)


@pytest.mark.parametrize(
    ("shape", "out"),
    [((3,), (3,)), ((1,), (4,)), ((3,), (2, 3)), ((3, 1), (2, 3, 4)), ((1, 1), (1, 5)), ((), (2, 3)), ((1,), (1,))],
)
def test_expand(shape: tuple[int, ...], out: tuple[int, ...]) -> None:
    x = source(*shape)
    check(views.expand(shape, out), x, np.broadcast_to(x, out))


@pytest.mark.parametrize("amounts", [(0, 0), (1, 0), (0, 2), (2, 3), (-1, 0), (0, -2), (-2, -1), (-1, 2), (2, -1)])
def test_pad(amounts: tuple[int, int]) -> None:
    chain = Chain(4, 3).pad(amounts, (0, 1)).check()
    index = chain.map
    assert index.in_bounds((4, 3))
    assert len(index.guards) == 1 + (max(amounts) > 0)
    assert len(Chain(4, 3).pad(amounts, (0, 0)).map.guards) == (max(amounts) > 0)


@pytest.mark.parametrize("extent", [1, 2, 3, 8])
@pytest.mark.parametrize("shift", [0, 1, 3, 8, -1, -5, 17])
def test_roll(extent: int, shift: int) -> None:
    index = Chain(2, extent).roll(1, shift).check().map
    assert index.in_bounds((2, extent))
    assert len(marks(index)) == (shift % extent != 0 and extent > 2)


@pytest.mark.parametrize(
    ("shape", "out", "text"),
    [
        ((), (), "[]"),
        ((), (1, 1), "[]"),
        ((1, 1), (), "[0, 0]"),
        ((6,), (6,), "[i]"),
        ((1, 6, 1), (6,), "[0, i, 0]"),
        ((6,), (1, 6, 1), "[j]"),
        ((2, 3), (6,), "[i//3, i%3]"),
        ((6,), (2, 3), "[3*i + j]"),
        ((2, 3, 4), (6, 4), "[i//3, i%3, j]"),
        ((2, 6), (4, 3), "[i//2, 3*(i%2) + j]"),
        ((12, 5), (3, 4, 5), "[4*i + j, k]"),
        ((6, 4), (4, 6), "[3*(i//2) + (3*(i%2) + j//2)//2, 2*((3*(i%2) + j//2)%2) + j%2]"),
    ],
)
def test_reshape(shape: tuple[int, ...], out: tuple[int, ...], text: str) -> None:
    x = source(*shape)
    index = views.reshape(shape, out)
    check(index, x, x.reshape(out))
    assert index.in_bounds(shape)
    assert index.show() == text


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_reshape(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    Chain(*shape).reshape(*data.draw(factorizations(math.prod(shape)))).check()


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [
        ((2, 3, 4), (6, 4), [([0, 1], [0]), ([2], [1])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((), (), []),
        ((5,), (5, 1), [([0], [0]), ([], [1])]),
        ((1, 5), (5,), [([0], []), ([1], [0])]),
    ],
)
def test_factor_groups(a: tuple[int, ...], b: tuple[int, ...], groups: list[tuple[list[int], list[int]]]) -> None:
    assert views.factor_groups(a, b) == groups


def test_empty_tensors() -> None:
    """No coordinate, and no error."""
    Chain(0, 3).reshape(3, 0).permute(1, 0).check()
    Chain(4, 3).slice(slice(2, 2)).reshape(0, 1, 3).check()
    Chain(1, 3).expand(0, 3).check()


def test_rank_0() -> None:
    Chain().reshape(1).expand(5).check(max_marks=0)
    Chain(1).reshape().check(max_marks=0)
    Chain().permute().slice().check(max_marks=0)
