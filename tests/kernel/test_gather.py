"""Gathers and OneHot against onnx's reference, and the search for patterns in index tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.definitions import check, random

from smartmem.index.lin import Lookup, axis_digit, pseudo_axes, show
from smartmem.index.map import evaluate
from smartmem.kernel.definitions.tables import as_lin
from smartmem.kernel.expr import Load
from smartmem.kernel.stage import Stage

Array = np.ndarray[Any, Any]


def lookups(stage: Stage) -> int:
    """How many lookups the stage's one load has."""
    assert isinstance(stage.body, Load)
    return sum(isinstance(axis, Lookup) for i in stage.body.index for axis in pseudo_axes(i))


INDICES = [np.array([0, 2, 1, 4]), np.array([[0, -1], [2, -5]]), np.array(3), np.array(-2), np.array([1])]


@pytest.mark.parametrize("indices", INDICES)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("constant", [(), (1,)])
def test_gather(indices: Array, axis: int, constant: tuple[int, ...]) -> None:
    (stage,) = check("Gather", [random(5, 6, 5), indices], axis=axis, constant=constant)
    assert stage.is_view


def test_gather_of_types() -> None:
    check("Gather", [random(5, 3, dtype=np.int8), np.array([4, 0], np.int32)])
    check("Gather", [random(5, 3, dtype=bool), np.array([4, 0], np.int32)])


def test_gather_from_one_element() -> None:
    (stage,) = check("Gather", [random(1, 3), np.array([0, -1, 0])])
    assert lookups(stage) == 0


PATTERNS = [
    (np.arange(6), "i%6"),
    (np.arange(5, -1, -1), "-(i%6) + 5"),
    (np.arange(0, 6, 2), "2*(i%3)"),
    (np.array(4), "4"),
    (np.array([3, 3]), "3"),
    (np.repeat(np.arange(3), 2), "i//2%3"),
    (np.tile(np.arange(3), 2), "i%3"),
    (np.arange(6).reshape(2, 3), "3*(i%2) + j%3"),
    (np.array([-1, -2]), "-(i%2) + 5"),
]


@pytest.mark.parametrize("indices, wanted", PATTERNS)
def test_constant_indices_with_a_pattern_need_no_lookup(indices: Array, wanted: str) -> None:
    (stage,) = check("Gather", [random(6, 2), indices], constant=(1,))
    assert lookups(stage) == 0
    assert isinstance(stage.body, Load)
    assert show(stage.body.index[0]) == wanted


def test_constant_indices_without_a_pattern_are_looked_up() -> None:
    (stage,) = check("Gather", [random(6, 2), np.array([0, 3, 1, 1, 5])], constant=(1,))
    assert lookups(stage) == 1


def test_relative_position_index_is_affine() -> None:
    """The (49, 49) table of a Swin window: a sum of the four digits of row and column."""
    place = np.stack(np.meshgrid(np.arange(7), np.arange(7), indexing="ij")).reshape(2, -1)
    offset = place[:, :, None] - place[:, None, :] + 6
    table = offset[0] * 13 + offset[1]
    (stage,) = check("Gather", [random(169, 3), table], constant=(1,))
    assert lookups(stage) == 0
    assert isinstance(stage.body, Load)
    assert len(stage.body.index[0].terms) == 4


@given(st.data())
def test_as_lin_is_exact(data: st.DataObject) -> None:
    """Whatever `as_lin` returns equals the table at every coordinate; separable digit tables are always found."""
    shape = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    coords = tuple(axis_digit(a, n) for a, n in enumerate(shape))
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    table = np.full(shape, data.draw(st.integers(0, 5)))
    for position, extent in zip(grid, shape, strict=True):
        run = data.draw(st.sampled_from([d for d in range(1, extent + 1) if extent % d == 0]))
        table = (
            table + data.draw(st.integers(-4, 4)) * (position // run) + data.draw(st.integers(-4, 4)) * (position % run)
        )
    found = as_lin(table, coords)
    assert found is not None
    np.testing.assert_array_equal(np.broadcast_to(evaluate(found, grid), shape), table)
    noise = np.array(data.draw(st.lists(st.integers(0, 3), min_size=table.size, max_size=table.size))).reshape(shape)
    found = as_lin(noise, coords)
    if found is not None:
        np.testing.assert_array_equal(np.broadcast_to(evaluate(found, grid), shape), noise)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("constant", [(), (1,)])
def test_gather_elements(axis: int, constant: tuple[int, ...]) -> None:
    shape = [4 if a == axis % 3 else 3 for a in range(3)]
    indices = np.random.default_rng(0).integers(-3, 3, shape)
    wanted = np.take_along_axis(random(3, 3, 3), indices, axis)
    (stage,) = check("GatherElements", [random(3, 3, 3), indices], axis=axis, constant=constant, expected=[wanted])
    assert stage.is_view


GATHER_ND = [
    ((2, 3), (4, 2), 0),
    ((2, 3), (4, 1), 0),
    ((2, 3, 4), (3, 2, 2), 0),
    ((2, 3, 4), (2, 1), 1),
    ((2, 3, 4), (2, 5, 2), 1),
    ((2, 3, 4, 2), (2, 3, 5, 1), 2),
]


@pytest.mark.parametrize("shape, index_shape, batch", GATHER_ND)
@pytest.mark.parametrize("constant", [(), (1,)])
def test_gather_nd(shape: tuple[int, ...], index_shape: tuple[int, ...], batch: int, constant: tuple[int, ...]) -> None:
    limits = np.array(shape[batch : batch + index_shape[-1]])
    indices = np.random.default_rng(1).integers(-limits if not batch else 0, limits, index_shape)
    (stage,) = check("GatherND", [random(*shape), indices], batch_dims=batch, constant=constant)
    assert stage.is_view


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
@pytest.mark.parametrize("constant", [(1,), (1, 2)])
def test_one_hot(axis: int, dtype: Any, constant: tuple[int, ...]) -> None:
    indices = np.random.default_rng(2).integers(-4, 4, (3, 2)).astype(dtype)
    values = np.array([-1.5, 2.5], np.float32)
    inputs = [indices, np.array(4), values]
    check("OneHot", inputs, axis=axis, constant=constant, frontend=True)
    check("OneHot", [indices, np.array(4), np.array([0, 1])], axis=axis, constant=constant, frontend=True)


def test_one_hot_outside_the_range_is_off() -> None:
    indices = np.array([0, 3, 7, -1, -5])
    wanted = np.where(np.arange(4) == (np.where(indices < 0, indices + 4, indices))[:, None], 1.0, 0.0)
    inputs = [indices, np.array(4), np.array([0, 1], np.float32)]
    check("OneHot", inputs, constant=(1,), frontend=True, expected=[wanted.astype(np.float32)])
