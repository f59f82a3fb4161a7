"""Rows of a row pipeline in register tiles and in blocks that go through all of its stages together.

In: a `Pipeline` with its regions. Out: its `Tiling`, and how many keys a block of a softmax over blocks has.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from smartmem.kernel.stage import Stage
from smartmem.schedule.operand_a import walk_of
from smartmem.schedule.operand_b import is_dynamic
from smartmem.schedule.tiling import Tiling, tile_columns, tile_rows
from smartmem.schedule.unit_band import LINES, UnitBand
from smartmem.schedule.units import SIDE

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline

KEYS, BLOCK_ROWS = 512, 56  # of a block, at most
TALL, TALL_BLOCK = 512, 56


def tiling(pipeline: Pipeline) -> Tiling:
    """Rows per tile and tiles per block.

    Low problems keep all rows together if operand A and the local tensors of a block stay in three quarters of L2;
    columns are then divided among tasks. Those of some height go in two halves, each the same rows from kernel to
    kernel, so that activations stay in the caches of the core that computed them. Blocks of about 56 rows are enough to
    hide reading operand B from a cache; tall problems go in such blocks, and low ones with local stages whose columns
    cannot be divided. An operand B that no cache holds from one call to the next is read as few times as A in the outer
    caches allows.
    """
    contracted = pipeline.contractions()
    height = pipeline.height
    if not contracted:
        return Tiling(height, 1, min(32, height))
    columns = [pipeline.flats[s.name].columns for s in contracted]
    rows = tile_rows(pipeline.target, height, columns, pipeline.group_size)
    if pipeline.unit_band is not None:
        return _lines(pipeline.unit_band, height, pipeline.target.l2 // 2)
    streamed = _streams(pipeline)
    halves = 2 * TALL_BLOCK <= height < TALL and divides(pipeline) and not streamed
    while halves and pipeline.target.form is None and -(-height // rows) % 2:
        rows -= 1
    count = -(-height // rows)
    if pipeline.softmax is not None:
        return Tiling(height, rows, max(1, min(BLOCK_ROWS // rows, count)))
    target = pipeline.target
    budget = 2 * target.l2 if streamed else target.l2 * 3 // 4
    fitting = budget // (4 * _block_floats(pipeline)) // rows
    local = target.tuned and height >= 2 * TALL_BLOCK and bool(_blocks(pipeline))
    tall = (height >= TALL or local) and not (streamed or _is_attention(pipeline))
    wanted = -(-TALL_BLOCK // rows) if tall or pipeline.shared_step is not None else count
    if halves:
        wanted = -(-count // 2)
    group = max(1, min(fitting, wanted, count))
    return Tiling(height, rows, -(-count // -(-count // group)))


def _lines(band: UnitBand, height: int, most: int) -> Tiling:
    """Tiles within lines of pixels, and as many lines in a block as fit `most` bytes, up to an eighth of all."""
    width, lines = band.x.rows, band.y.rows
    wanted = max(1, min(LINES, lines // LINES if height >= TALL else lines // 2))
    while wanted > 1 and 4 * band.floats(wanted) > most:
        wanted -= 1
    per_block, tiles = -(-lines // -(-lines // wanted)), -(-width // SIDE)
    return Tiling(height, -(-width // tiles), tiles * per_block, width)


def key_block(pipeline: Pipeline) -> int:
    """Keys of a block: both operands B of that many keys stay in a quarter of L2; a multiple of a tile's columns."""
    softmax, target = pipeline.softmax, pipeline.target
    assert softmax is not None
    first, second = pipeline.contractions()
    floats = math.prod(first.reduce) + pipeline.flats[second.name].columns
    width = tile_columns(target, softmax.keys)
    most = max(width, min(KEYS, target.l2 // 16 // floats))
    blocks = -(-softmax.keys // most)
    return -(-softmax.keys // blocks // width) * width


def _is_attention(pipeline: Pipeline) -> bool:
    return len(pipeline.contractions()) == 2


def divides(pipeline: Pipeline) -> bool:
    """Whether tasks can divide columns: those of the last region, the only contraction, and its weights constant."""
    contracted = pipeline.contractions()
    last = pipeline.regions[-1].contraction is not None
    return len(contracted) == 1 and last and not is_dynamic(contracted[0], pipeline.constants)


def _streams(pipeline: Pipeline) -> bool:
    """Whether a constant operand B is read from main memory, and its columns can be divided among tasks."""
    last, target = pipeline.regions[-1].contraction, pipeline.target
    if last is None or is_dynamic(last, pipeline.constants):
        return False
    return target.streams(4 * math.prod(last.reduce) * pipeline.flats[last.name].columns)


def _blocks(pipeline: Pipeline) -> list[Stage]:
    """Local tensors with columns that later regions read: a block of rows of them lies in scratch."""
    return [s for s in pipeline.stages[:-1] if s.shape[pipeline.rows :] and not pipeline.within_region(s)]


def _block_floats(pipeline: Pipeline) -> int:
    """Floats per row that a block works on: its local tensors, and what operands A read from memory.

    Rows of a window overlap: what a block reads is then about its part of the tensor.
    """
    local = {s.name for s in pipeline.stages[:-1]}
    total = sum(pipeline.flats[s.name].columns for s in _blocks(pipeline))
    for stage in pipeline.contractions():
        walk = walk_of(pipeline, stage)
        read = {branch.tensor for branch in walk.branches} - local
        parts = sum(math.prod(pipeline.storages[name].shape) for name in read)
        total += min(walk.depth, -(-parts // (pipeline.batches * pipeline.height)))
    return max(1, total)
