"""How tall and wide register tiles are, and how rows divide into tiles and blocks."""

from __future__ import annotations

from dataclasses import dataclass

from smartmem.schedule.code import Target
from smartmem.schedule.units import SIDE

FEWEST_ROWS = 4  # rows that a tile must have for loads of B to hide behind its arithmetic


def tile_columns(target: Target, columns: int) -> int:
    """Columns of the register tile: two vectors (four short ones), or as many as avoid an eighth of padding."""
    needed = -(-columns // target.lanes)
    if needed == 1:
        return target.lanes
    if target.form is not None:
        return 2 * target.lanes
    usual = 4 if target.lanes == 4 and target.registers >= 32 else 2
    others = [v for v in (3, 5) if _most_rows(target, v) >= FEWEST_ROWS]
    best = min([usual, *others], key=lambda v: _padded(needed, v))
    return target.lanes * (best if _padded(needed, best) * 8 <= _padded(needed, usual) * 7 else usual)


def _padded(needed: int, vectors: int) -> int:
    return -(-needed // vectors) * vectors


def _most_rows(target: Target, vectors: int) -> int:
    """Rows of a tile of `vectors` vectors: as many accumulators as registers allow."""
    return min(14, (target.registers - vectors - 1) // vectors)


def tile_rows(target: Target, height: int, columns: list[int], group_size: int) -> int:
    """Rows of the register tile of contractions with these columns, in tiles of (nearly) equal height.

    A grouped tile (`group_size` > 0) has as many accumulators per row as a group has columns.
    """
    if target.form is not None:
        most = SIDE
    elif group_size:
        most = (target.registers - 1) // (group_size + 1)
    else:
        most = min(_most_rows(target, tile_columns(target, n) // target.lanes) for n in columns)
    return -(-height // -(-height // most))


@dataclass(frozen=True)
class Tiling:
    """Rows in tiles of `rows` and `rows - 1`, the taller ones first, and tiles in blocks of `group`.

    With a `line` no tile goes beyond a multiple of so many rows: the last one before it has what is left.
    """

    height: int
    rows: int
    group: int
    line: int = 0

    @property
    def count(self) -> int:
        if self.line:
            return self.height // self.line * self.per_line
        return -(-self.height // self.rows)

    @property
    def per_line(self) -> int:
        """Tiles of a line."""
        return -(-self.line // self.rows)

    @property
    def tall(self) -> int:
        """How many tiles have `rows` rows, if all of them have, or the others have one row less."""
        return self.height - self.count * (self.rows - 1)

    @property
    def block(self) -> int:
        """Most rows of a block."""
        return self.group * self.rows

    def start(self, tile: str) -> str:
        """First row of a tile, as C."""
        if self.tall == self.count:
            return f"{tile} * {self.rows}" if self.rows > 1 else tile
        if self.line:
            return f"({tile} / {self.per_line} * {self.line} + {tile} % {self.per_line} * {self.rows})"
        return f"({tile} * {self.rows - 1} + ({tile} < {self.tall} ? {tile} : {self.tall}))"

    def rows_of(self, tile: str) -> str:
        """Rows of a tile, as C."""
        if self.tall == self.count:
            return str(self.rows)
        if self.line:
            rest = self.line - (self.per_line - 1) * self.rows
            return f"{tile} % {self.per_line} == {self.per_line - 1} ? {rest} : {self.rows}"
        return f"{tile} < {self.tall} ? {self.rows} : {self.rows - 1}"
