"""What the accesses of a group cost on a device, given where its tensors lie.

In: a `Group` with one of its walks, the storage of a tensor, `MemoryCosts`. Out: a number, in coalesced reads of 16
bytes from a buffer. For one block of neighbouring work-items the places that each access touches are computed; an
access costs what a read of neighbours costs if the block touches as few cache lines as it could, what a gather costs
if every work-item touches a line of its own, and in between, something in between.

Example, 32 work-items that read four channels each of x[56, 56, 96]: along the channels of a channels-last buffer they
touch 512 adjacent bytes, cost 1.0 per four values. Of a row-major buffer [96, 56, 56] they read 4 single values each,
every one in a line of its own: 4 gathers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from smartmem.device import MemoryCosts
from smartmem.index.lin import Lin
from smartmem.index.map import evaluate
from smartmem.layout.memory import LANES, DeviceStorage
from smartmem.passes.walks import Access, Group, Walk

Array = np.ndarray[Any, Any]
SINGLE = 0.5  # a coalesced access of one value, relative to one of four
TEXEL_TILES = {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8)}  # rows, columns of texels in a line


def access_cost(access: Access, group: Group, walk: Walk, storage: DeviceStorage, costs: MemoryCosts) -> float:
    """The cost of all runs of one access; infinite if a texture would be stored to in parts of texels."""
    image = storage.image is not None
    place = storage.access(access.index)
    each = _block(place, group.extents, walk, np.dtype(storage.stored).itemsize, image, access.write, costs)
    return each * access.volume / LANES


@lru_cache(maxsize=1 << 16)
def _block(
    place: tuple[Lin, ...], extents: tuple[int, ...], walk: Walk, itemsize: int, image: bool, write: bool,
    costs: MemoryCosts,
) -> float:  # fmt: skip
    """The cost of four values, averaged over a block of neighbours."""
    coordinates = _coordinates(extents, walk)
    shape = (walk.items, LANES if walk.vector is not None else 1)
    parts = [np.broadcast_to(np.asarray(evaluate(p, coordinates, _some_entry)), shape) for p in place]
    if image:
        lines, whole = _texels(parts, costs.line // (LANES * itemsize))
        unit = 1.0  # a texel is fetched as a whole, whatever is used of it
    else:
        lines, whole = parts[0] * itemsize // costs.line, _consecutive(parts[0])
        unit = 1.0 if whole and walk.vector is not None else SINGLE
    if write and image and not (whole and walk.vector is not None):
        return math.inf
    uniform = all((p == p[:, :1]).all() for p in parts)
    instructions = lines[:, :1] if walk.vector is None or whole or uniform else lines
    near, far = _prices(image, write, costs)
    values = LANES if unit == 1.0 else 1
    fewest = max(1, math.ceil(walk.items * values * itemsize / costs.line))
    total = 0.0
    for touched in instructions.T:
        spread = (len(np.unique(touched)) - fewest) / max(1, walk.items - fewest)
        total += unit * near + (far - unit * near) * min(max(spread, 0.0), 1.0)
    return total * LANES / shape[1]


def _prices(image: bool, write: bool, costs: MemoryCosts) -> tuple[float, float]:
    """What an access of neighbours costs, and one that touches a line per work-item."""
    near, far = (costs.texture_read, costs.texture_gather) if image else (costs.buffer_read, costs.buffer_gather)
    if not write:
        return near, far
    first = costs.texture_write if image else costs.buffer_write
    return first, first * max(1.0, far / near)


def _coordinates(extents: tuple[int, ...], walk: Walk) -> list[Any]:
    """The coordinates of a block: work-items downwards, the four values of each across. Other axes stand still in the
    middle, away from borders."""
    result: list[Any] = [n // 2 for n in extents]
    items, below = np.arange(walk.items)[:, None], 1
    if walk.vector is not None:
        result[walk.vector] = np.arange(LANES)[None, :]
    for axis, count in walk.steps:
        step = items // below % count
        result[axis] = LANES * step + np.arange(LANES)[None, :] if axis == walk.vector else step
        below *= count
    return result


def _consecutive(address: Array) -> bool:
    return address.shape[1] == LANES and bool((np.diff(address, axis=1) == 1).all())


def _texels(parts: list[Array], in_line: int) -> tuple[Array, bool]:
    """The cache line of each texel, of which a line holds a tile, and whether every work-item has one whole texel."""
    row, column, lane = parts
    height, width = TEXEL_TILES.get(in_line, (1, max(1, in_line)))
    lines = row // height * (1 << 20) + column // width
    same = (row == row[:, :1]).all() and (column == column[:, :1]).all()
    return lines, bool(same and lane.shape[1] == LANES and (lane == np.arange(LANES)).all())


def _some_entry(tensor: str, index: tuple[Any, ...]) -> Any:
    """An index that depends on data: anywhere."""
    return sum((np.asarray(i) * 7919 for i in index), np.asarray(17)) % 4093
