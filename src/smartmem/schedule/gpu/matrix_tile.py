"""The tiles of products on matrix units, and which one a product takes.

    choose_tile(1, 197, 768, 768, h100)  ->  32x64x64, 4 stages: 84 groups of 12 steps

In: the extents of a product and the device. Out: a `MatrixTile`, which `matrix` writes the code of.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.device import Device
from smartmem.layout.memory import LANES

WARP = 32
VECTOR = 16  # bytes of the widest load and copy, and between rows of a block that lie along k
STATISTICS = 2 << 10  # bytes of local memory that row statistics have beside the ring


@dataclass(frozen=True)
class Rates:
    """What a tile's time is made of, in cycles; see `predicted`.

    Attributes:
        launch: of a kernel that follows another one, whatever it does.
        wait: for the copies of a step.
        work: of 1024 multiply-adds; split: of making halves of floats, beside it.
        moved: bytes that one cycle brings in.
        address: of 128 vectors whose places are computed one by one.
        load: of a value that passes the registers of a work-item; store: of a result of one.
        steps, blocks: of 16 values of k, whatever the tile, and of each block in it, for those who multiply alone.
    """

    launch: float
    wait: float
    work: float
    split: float
    moved: float
    address: float
    load: float
    store: float
    steps: float
    blocks: float


@dataclass(frozen=True)
class Form:
    """How operands lie in local memory, and what matrix units make of them.

    Attributes:
        kind: OpenCL type of a value; bytes: of one.
        inner: extent along k of one instruction's blocks.
        warp, group: rates of tiles whose warps multiply alone, and of those that share instructions.
    """

    kind: str
    bytes: int
    inner: int
    warp: Rates
    group: Rates

    @property
    def run(self) -> int:
        """Values of the widest load."""
        return VECTOR // self.bytes


HALF = Form(
    "half", 2, 16,
    Rates(2786, 1352, 0.917, 0, 26.5, 11.3, 36.6, 81.8, 62.5, 19.2),
    Rates(2671, 1000, 0.130, 0, 40.1, 9.86, 36.6, 66.5, 71.8, 8.32),
)  # fmt: skip
# A product is three: of the upper halves, and of upper with lower ones.
FLOAT = Form(
    "float", 4, 16,
    Rates(3477, 1263, 2.55, 75.6, 48.0, 12.4, 21.0, 64.7, 175, 48.0),
    Rates(4480, 1000, 1.42, 0, 29.8, 25.9, 21.0, 42.1, 70.0, 7.00),
)  # fmt: skip


@dataclass(frozen=True)
class Operands:
    """What a product's operands are, as far as tiles differ by it.

    Attributes:
        warpgroups: whether their instructions take them: values along k, weights if they are floats.
        loaded: whether A and B pass the registers value by value, as something is computed of them.
        gathered: whether the places of A's rows are computed one by one (windows of a convolution).
    """

    warpgroups: bool = True
    loaded: tuple[bool, bool] = (False, False)
    gathered: bool = False


WEIGHTED = Operands()  # rows that are copied as they lie, and weights


@dataclass(frozen=True)
class MatrixTile:
    """`rows` x `columns` per group in steps of `depth`, a ring of `stages`; `down` x `across` warps share it.

    One stage is enough where one step takes all of k. With `warpgroups` four warps share an instruction of 64 rows and
    all columns, which takes operands from local memory, in rows of 128 bytes (``wgmma``); of floats, operand B alone.
    """

    rows: int
    columns: int
    depth: int
    down: int
    across: int
    stages: int = 3
    form: Form = HALF
    warpgroups: bool = False

    @property
    def items(self) -> int:
        return WARP * self.down * self.across

    @property
    def row_blocks(self) -> int:
        """Blocks of 16 rows per warp."""
        return self.rows // self.down // 16

    @property
    def column_blocks(self) -> int:
        """Blocks of 8 columns per warp."""
        return self.columns // self.across // 8

    @property
    def reads(self) -> float:
        """Values that a warp reads from local memory per multiply-add."""
        return 1 / (16 * self.row_blocks) + 1 / (8 * self.column_blocks)

    @property
    def local_bytes(self) -> int:
        """Of the ring, whichever way the operands lie, and of a part of the results, which takes its place."""
        along_k, across = ([self.stride(n, way) for n in (self.rows, self.columns)] for way in (True, False))
        staged = sum(
            max(n * a, self.depth * b) for n, a, b in zip((self.rows, self.columns), along_k, across, strict=True)
        )
        return max(self.form.bytes * self.stages * staged, 4 * self.part_rows * self.part_stride)

    def stride(self, size: int, along_k: bool) -> int:
        """Values from one row of a staged block to the next: work-items read fragments without bank conflicts."""
        return self.depth + self.form.run if along_k else size + 8

    def swizzled(self, right: bool) -> bool:
        """Whether operand B (A, unless `right`) lies in local memory as warpgroups read it."""
        return self.warpgroups and (right or self.form == HALF)

    @property
    def registers(self) -> int:
        """Of a work-item, with warpgroups, about: what compilers took."""
        if self.form == HALF:
            return 44 + 5 * self.columns // 8
        return min(255, 108 + 2 * self.columns)

    @property
    def part_rows(self) -> int:
        """Rows of the results that lie in local memory at a time: one block of each warp."""
        return 16 * self.down

    @property
    def part_stride(self) -> int:
        return self.columns + LANES


TILES = (
    MatrixTile(128, 64, 32, 4, 2), MatrixTile(64, 64, 32, 2, 4, 4), MatrixTile(64, 32, 64, 2, 2),
    MatrixTile(32, 64, 64, 2, 2), MatrixTile(32, 32, 64, 2, 2, 4), MatrixTile(32, 128, 32, 1, 4),
    MatrixTile(16, 64, 64, 1, 4, 4), MatrixTile(128, 32, 32, 4, 2, 4), MatrixTile(64, 16, 64, 4, 1),
    MatrixTile(128, 16, 32, 4, 1), MatrixTile(128, 8, 32, 4, 1), MatrixTile(16, 32, 128, 1, 4),
    # for launches that may give a group more than the usual 48 KiB
    MatrixTile(128, 128, 64, 2, 4), MatrixTile(128, 64, 64, 4, 2, 4), MatrixTile(64, 128, 64, 2, 4, 4),
    MatrixTile(64, 64, 64, 2, 2, 5), MatrixTile(32, 64, 64, 2, 2, 4), MatrixTile(32, 64, 128, 2, 2, 4),
    MatrixTile(16, 32, 128, 1, 4, 5), MatrixTile(32, 128, 64, 1, 4, 4), MatrixTile(16, 64, 128, 1, 4, 4),
    MatrixTile(128, 128, 64, 2, 2), MatrixTile(32, 16, 128, 2, 2, 5), MatrixTile(32, 64, 64, 2, 2, 6),
    MatrixTile(64, 64, 64, 2, 4, 5),
)  # fmt: skip
FLOAT_TILES = tuple(  # a warp has registers for 16 blocks: each has three sets of accumulators
    replace(tile, form=FLOAT)
    for tile in (
        MatrixTile(64, 64, 32, 2, 2, 5), MatrixTile(32, 64, 32, 2, 2, 4), MatrixTile(32, 128, 32, 1, 4, 4),
        MatrixTile(32, 64, 64, 2, 2, 4), MatrixTile(32, 64, 32, 2, 2, 3), MatrixTile(64, 32, 32, 2, 2, 3),
        MatrixTile(32, 32, 32, 2, 2, 6), MatrixTile(32, 32, 64, 2, 2, 4), MatrixTile(16, 32, 64, 1, 4, 5),
        MatrixTile(16, 64, 64, 1, 4, 4),
        MatrixTile(64, 16, 32, 4, 1, 3), MatrixTile(128, 16, 16, 4, 1, 3), MatrixTile(128, 8, 16, 4, 1, 3),
    )
)  # fmt: skip
WARPGROUP_TILES = tuple(
    MatrixTile(64 * groups, columns, 64, 4 * groups, 1, stages, HALF, True)
    for groups, columns, stages in (
        (1, 16, 8), (1, 32, 9), (1, 48, 7), (1, 64, 5), (1, 96, 4), (1, 128, 4), (2, 64, 4), (2, 96, 3), (2, 128, 3),
        (2, 256, 3),
    )
) + tuple(
    MatrixTile(64 * groups, columns, 32, 4 * groups, 1, stages, FLOAT, True)
    for groups, columns, stages in (
        (1, 32, 5), (1, 48, 6), (1, 64, 7), (1, 96, 4), (2, 64, 4), (2, 96, 4), (2, 128, 4),
    )
)  # fmt: skip
READS = 3 / 64  # fragments of the largest warp that `predicted` was fitted to, 64x32
LEAST_ROWS = 4  # with fewer, nearly all of a block of 16 rows would be zeros
MANY_ROWS = 2048  # from which on even a few columns of a tile pay: what counts is how the rows are loaded
FOLLOWS = 3000  # cycles that a pointwise kernel in a graph takes whatever it does
LAUNCHED = 6000  # the same of one in a queue
MOVED = 14  # bytes per cycle and compute unit that a pointwise kernel moves, as measured on an H200
UNIT_LOCAL = 225_000  # bytes of local memory that the groups on one compute unit share
UNIT_REGISTERS = 1 << 16  # the same of registers of 32 bits
FEW_ROWS, FEW_COLUMNS = 32, 16  # up to which warpgroups, with their 64 rows, are not used


def form_of(half: bool, stored: Iterable[np.dtype[Any]]) -> Form:
    """Of a product whose operands are `stored` so: halves where all are, as what is stored in float may be too large.

    Args:
        half: whether constants are stored as halves.
    """
    return HALF if half and all(dtype == np.float16 for dtype in stored) else FLOAT


def accepts(m: int, n: int, k: int, device: Device, least: int = LEAST_ROWS) -> bool:
    """Whether matrix units pay: enough of everything (`least` rows), and the device has them."""
    return device.matrix_units and m >= least and k >= 16 and (n >= 8 or (n > 1 and m >= MANY_ROWS))


def choose_tile(
    batch: int, m: int, n: int, k: int, form: Form, device: Device, operands: Operands = WEIGHTED
) -> MatrixTile:
    """The tile of least predicted time."""
    room = device.group_memory - STATISTICS
    cycles: dict[MatrixTile, float] = {}
    for tile in (*(TILES if form == HALF else FLOAT_TILES), *WARPGROUP_TILES):
        if tile.form != form or tile.local_bytes > room or tile.items > device.max_work_group:
            continue
        if not tile.warpgroups or (operands.warpgroups and device.warpgroups and m > FEW_ROWS and n > FEW_COLUMNS):
            cycles[tile] = predicted(tile, batch, m, n, k, device, operands)
    return min(cycles, key=lambda tile: cycles[tile])


def predicted(
    tile: MatrixTile, batch: int, m: int, n: int, k: int, device: Device, operands: Operands = WEIGHTED
) -> float:
    """Predicted cycles.

    A step takes as long as copies that began `stages` - 1 steps ago, or what all groups on a compute unit bring in and
    multiply, or the instructions of one of them, which wait for each other. The rates are fits to measured times of 500
    products of sixteen networks, 440 of them with up to 18 tiles, each in a chain of 20 that wait for each other and
    read weights of their own, on an H200. The tile that the fit chooses takes 4% longer than the best one with halves,
    2% with floats, on average; of a product that takes 3 to 30 us, it is wrong by 15%.
    """
    groups = batch * -(-m // tile.rows) * -(-n // tile.columns)
    rates = tile.form.group if tile.warpgroups else tile.form.warp
    if tile.warpgroups:
        resident = max(1, min(UNIT_LOCAL // tile.local_bytes, UNIT_REGISTERS // (tile.registers * tile.items)))
        work, blocks = rates.work, tile.columns / 8
    else:
        resident = max(1, min(2048 // tile.items, UNIT_LOCAL // tile.local_bytes, 16))
        work = rates.work * min(1.0, tile.reads / READS) + rates.split / (8 * tile.column_blocks)
        blocks = tile.row_blocks * tile.column_blocks
    work *= tile.rows * tile.columns * tile.depth / 1024
    work += tile.form.bytes * tile.depth * (tile.rows + tile.columns) / rates.moved
    work += operands.gathered * rates.address * tile.rows * tile.depth / tile.form.run / 128
    loaded = operands.loaded[0] * tile.rows + operands.loaded[1] * tile.columns
    alone = max(rates.wait / (tile.stages - 1), tile.depth / 16 * (rates.steps + rates.blocks * blocks))

    def wave(together: int) -> float:
        step = max(alone, together * work) + together * rates.load * loaded * tile.depth / tile.items
        return -(-k // tile.depth) * step + together * rates.store * tile.rows * tile.columns / tile.items

    full, rest = divmod(groups, device.compute_units * resident)
    return rates.launch + full * wave(resident) + (wave(-(-rest // device.compute_units)) if rest else 0)
