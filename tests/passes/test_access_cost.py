"""What accesses cost: neighbours, gathers, single values, whole and broken texels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smartmem.device import MemoryCosts
from smartmem.index.lin import axis_digit
from smartmem.layout.memory import DeviceStorage, cut_image, order_digits
from smartmem.layout.storage import dense
from smartmem.passes.access_cost import SINGLE, access_cost
from smartmem.passes.walks import Access, Group, Walk

SHAPE = (96, 64, 64)  # channels, rows, columns
C, H, W = range(3)
COSTS = MemoryCosts(buffer_read=1, texture_read=0.5, buffer_gather=4, texture_gather=2, buffer_write=1, texture_write=3)
INDEX = tuple(axis_digit(axis, n) for axis, n in enumerate(SHAPE))


def cost(lane: int, walk: Walk, column: int | None = None, texture: bool = False, write: bool = False) -> float:
    """The cost per four values of reading or writing x[c, h, w] in an order of digits."""
    plain = dense("x", SHAPE, np.dtype(np.float32), order_digits(SHAPE, lane, column))
    image = cut_image(plain.address, plain.elements, 8192, 8192) if texture else None
    storage = DeviceStorage("x", SHAPE, plain.dtype, plain.address, plain.elements, image=image)
    access = Access("x", INDEX, 4.0, write)
    return access_cost(access, Group("y", SHAPE, (access,), (walk,)), walk, storage, COSTS)


CHANNELS = Walk(C, ((C, 24),))  # 24 neighbours take four channels each
PIXELS = Walk(None, ((W, 32),))  # 32 neighbours take one pixel each


@pytest.mark.parametrize(
    "lane, walk, expected",
    [
        (C, CHANNELS, COSTS.buffer_read),
        (W, CHANNELS, 4 * COSTS.buffer_gather),
        (W, PIXELS, 4 * SINGLE * COSTS.buffer_read),
        (C, PIXELS, 4 * COSTS.buffer_gather),
        (C, Walk(C, ((W, 32),)), COSTS.buffer_gather),
    ],
    ids=[
        "channels of channels-last",
        "channels of rows",
        "pixels of rows",
        "pixels of channels-last",
        "pixels by four",
    ],
)
def test_buffers(lane: int, walk: Walk, expected: float) -> None:
    assert cost(lane, walk) == pytest.approx(expected)


def test_a_second_direction_makes_neighbours_of_pixels() -> None:
    assert cost(C, Walk(C, ((W, 32),)), column=W) == pytest.approx(COSTS.buffer_read)


def test_textures_are_near_in_both_directions() -> None:
    """A line holds a tile of texels: a row of neighbours uses half of each in x, and a block of them all of it."""
    block = Walk(C, ((C, 8), (W, 4)))
    assert cost(C, block, texture=True) < cost(C, Walk(C, ((W, 32),)), texture=True) <= COSTS.texture_gather


def test_a_texture_is_stored_to_in_whole_texels() -> None:
    assert math.isfinite(cost(C, CHANNELS, texture=True, write=True))
    assert cost(W, CHANNELS, texture=True, write=True) == math.inf
    assert cost(C, PIXELS, texture=True, write=True) == math.inf
