"""How tall and wide register tiles are, and how rows divide into tiles and blocks."""

from __future__ import annotations

from dataclasses import dataclass

from smartmem.schedule.code import Target


def tile_columns(target: Target, columns: int) -> int:
    """Columns of the register tile: a few vectors, one where there are no more columns."""
    if columns <= target.lanes:
        return target.lanes
    return target.lanes * (4 if target.lanes == 4 and target.registers >= 32 else 2)


def tile_rows(target: Target, height: int, columns: int) -> int:
    """Rows of the register tile: as many accumulators as registers allow, in tiles of (nearly) equal height."""
    vectors = tile_columns(target, columns) // target.lanes
    most = min(14, (target.registers - vectors - 1) // vectors)
    return -(-height // -(-height // most))


@dataclass(frozen=True)
class Tiling:
    """Rows in tiles of `rows` and `rows - 1`, the taller ones first, and tiles in blocks of `group`."""

    height: int
    rows: int
    group: int

    @property
    def count(self) -> int:
        return -(-self.height // self.rows)

    @property
    def tall(self) -> int:
        """How many tiles have `rows` rows; the others have one row less."""
        return self.height - self.count * (self.rows - 1)

    @property
    def block(self) -> int:
        """Most rows of a block."""
        return self.group * self.rows

    def start(self, tile: str) -> str:
        """First row of a tile, as C."""
        if self.tall == self.count:
            return f"{tile} * {self.rows}" if self.rows > 1 else tile
        return f"({tile} * {self.rows - 1} + ({tile} < {self.tall} ? {tile} : {self.tall}))"
