"""Storage: each coordinate has an address of its own, and addresses compose with accesses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.index_maps import shapes, values

from smartmem.index import views
from smartmem.index.lin import Digit, axis_digit, show
from smartmem.layout.storage import Storage, dense

F32 = np.dtype(np.float32)


def addresses(storage: Storage) -> np.ndarray:
    return values(storage.address, storage.shape)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 4), (1, 3, 1)])
def test_row_major_by_default(shape: tuple[int, ...]) -> None:
    storage = dense("x", shape, F32)
    assert storage.elements == math.prod(shape)
    np.testing.assert_array_equal(addresses(storage), np.arange(math.prod(shape)).reshape(shape))


@pytest.mark.parametrize(
    ("order", "text", "transposed"),
    [
        ((0, 2, 3, 1), "n h w c", (0, 2, 3, 1)),
        ((3, 2, 1, 0), "w h c n", (3, 2, 1, 0)),
    ],
)
def test_permuted(order: tuple[int, ...], text: str, transposed: tuple[int, ...]) -> None:
    shape = (2, 4, 3, 5)
    storage = dense("x", shape, F32, [Digit(axis, 1, shape[axis]) for axis in order])
    assert storage.show() == text
    assert addresses(storage).transpose(transposed).ravel().tolist() == list(range(math.prod(shape)))


def test_blocked() -> None:
    """n c/4 h w c%4."""
    order = [Digit(0, 1, 2), Digit(1, 4, 2), Digit(2, 1, 3), Digit(3, 1, 5), Digit(1, 1, 4)]
    storage = dense("x", (2, 8, 3, 5), F32, order)
    assert storage.show() == "n c/4%2 h w c/1%4"
    expected = np.arange(240).reshape(2, 2, 3, 5, 4).transpose(0, 1, 4, 2, 3).reshape(2, 8, 3, 5)
    np.testing.assert_array_equal(addresses(storage), expected)


def test_scalar() -> None:
    assert dense("x", (), F32).show() == "scalar"
    assert dense("x", (0, 3), F32).elements == 1  # something to point at


def test_incomplete_order_is_refused() -> None:
    with pytest.raises(AssertionError, match="does not cover"):
        dense("x", (4, 4), F32, [Digit(0, 1, 4), Digit(1, 1, 2)])


def test_at() -> None:
    """The address of an access is substitution: a transposed read of a channels-last tensor is contiguous."""
    storage = dense("x", (8, 3, 5), F32, [Digit(1, 1, 3), Digit(2, 1, 5), Digit(0, 1, 8)])
    read = views.permute((8, 3, 5), (1, 2, 0))
    assert show(storage.at(read.coords), extents=read.domain) == "40*i + 8*j + k"
    window = Storage("big", (3, 4), F32, axis_digit(0, 3) * 10 + axis_digit(1, 4) + 6, 30)
    assert show(window.at((axis_digit(0, 3), axis_digit(1, 2) * 2)), extents=(3, 2)) == "10*i + 2*j + 6"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_order_of_digits_is_a_bijection(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    digits = []
    for axis, extent in enumerate(shape):
        cut = data.draw(st.sampled_from([d for d in range(1, extent + 1) if extent % d == 0]))
        digits += [Digit(axis, 1, cut), Digit(axis, cut, extent // cut)]
    storage = dense("x", shape, F32, data.draw(st.permutations(digits)))
    assert sorted(addresses(storage).ravel()) == list(range(storage.elements))
    assert storage.address.within(0, storage.elements)
