"""Images: orders of digits, and how they are cut into columns and rows."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartmem.index.map import evaluate
from smartmem.layout.memory import DeviceStorage, cut_image, order_digits
from smartmem.layout.storage import dense

F32 = np.dtype(np.float32)


def storage(shape: tuple[int, ...], lane: int, column: int | None = None) -> DeviceStorage:
    plain = dense("x", shape, F32, order_digits(shape, lane, column))
    return DeviceStorage(plain.buffer, plain.shape, plain.dtype, plain.address, plain.elements)


def test_order_with_two_directions() -> None:
    assert storage((2, 8, 5, 7), 1, 3).show("nchw") == "n h c/4%2 w c/1%4"
    assert storage((2, 8, 5, 7), 1).show("nchw") == "n h w c"


def test_the_border_makes_the_image_as_square_as_whole_digits_allow() -> None:
    image = cut_image(storage((1, 56, 56, 96), 3).address, 56 * 56 * 96, 16384, 16384)
    assert image is not None
    assert (image.width, image.height) == (1344, 56)


def test_a_digit_is_cut_where_no_border_between_digits_fits() -> None:
    image = cut_image(storage((6000, 4), 1).address, 24000, 100, 100)
    assert image is not None
    assert (image.width, image.height) == (100, 60)


@pytest.mark.parametrize(
    "shape, limit",
    [((6, 5), 100), ((7, 4 * 10007), 100)],
    ids=["lane not divisible by 4", "a prime that is too long"],
)
def test_no_image(shape: tuple[int, ...], limit: int) -> None:
    assert cut_image(storage(shape, 1).address, math.prod(shape), limit, limit) is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_every_element_has_a_place_of_its_own(rest: list[int], data: st.DataObject) -> None:
    shape = (*rest, 4 * data.draw(st.integers(1, 4)))
    lane = len(shape) - 1
    column = data.draw(st.sampled_from([None, *range(lane)]))
    found = storage(shape, lane, column)
    image = cut_image(found.address, found.elements, 64, 64)
    if image is None:
        return
    assert image.width <= 64 and image.height <= 64
    places = set()
    for coordinate in itertools.product(*(range(n) for n in shape)):
        row, col, within = (evaluate(part, coordinate) for part in (image.row, image.column, image.lane))
        assert 0 <= row < image.height and 0 <= col < image.width and 0 <= within < 4
        places.add((row, col, within))
        if column is not None and coordinate[lane] < shape[lane] - 1 and coordinate[lane] % 4 < 3:
            following = tuple(c + (axis == lane) for axis, c in enumerate(coordinate))
            assert evaluate(image.lane, following) == within + 1
    assert len(places) == found.elements == image.width * image.height * 4
