"""Operand A of a convolution over a padded image of few channels: the rows of pixels that a block reads, copied once.

Windows of neighbouring pixels overlap: with 32×32 taps of stride 4 each pixel of the image is in 64 of them. Where
padding keeps windows from being read in place, a block of rows of the product shares a *band* of the image in scratch,
padded with zeros::

    band[y][channel][x]     y: from the first row of the first window on, x: from the leftmost padding to the rightmost

and a row of A starts at its window in the band. All its segments (a tap's row of one channel) lie the same distance
apart. (`operand_a.pack_operand` copies each window instead, which is as good where they hardly overlap.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smartmem.codegen.c_index import Axes, c_lin
from smartmem.index.lin import Digit, Lin, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.expr import Choose, Load, is_zero, load
from smartmem.kernel.stage import Stage, reindex
from smartmem.layout.storage import Storage
from smartmem.schedule.code import Target
from smartmem.schedule.roles import factors, with_factors

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter

LEAST_RUN = 8  # taps of a row, which are what a segment has
LEAST_OVERLAP = 4  # windows that have a pixel in common: below that, copying windows moves little more
BLOCK_ROWS = 56  # rows of the product that a block has, about, for the size of a band


@dataclass(frozen=True)
class _Along:
    """A coordinate of the image: ``step * row axis + tap axis - padding``, below `extent`."""

    dim: int
    row: int
    tap: int
    taps: int
    step: int
    padding: int
    extent: int
    rows: int

    @property
    def span(self) -> int:
        """Coordinates that windows of all rows have together."""
        return (self.rows - 1) * self.step + self.taps


@dataclass(frozen=True)
class Band:
    """The band of a contraction.

    Attributes:
        image: the load of the image, over the axes of the contraction.
        y, x: its coordinates that windows move along.
        channel: the dimension of channels and their reduce axis, or None if there is one channel.
        channels: how many there are.
    """

    image: Load
    y: _Along
    x: _Along
    channel: tuple[int, int] | None
    channels: int

    @property
    def row(self) -> str:
        """Where row r of a block starts in the band, as C."""
        down, width = self.y.step * self.channels * self.x.span, self.x.rows
        return f"(m / {width} - m0 / {width}) * {down} + m % {width} * {self.x.step}"

    @property
    def columns(self) -> tuple[int, int, int]:
        """Extents of the band of one row; its strides are those of a row of A: (tap's row, channel, tap)."""
        return (self.y.taps, self.channels, self.x.span)

    def floats(self, block: int) -> int:
        """Size of the band of a block of so many rows of the product."""
        lines = min(self.y.rows, (block + self.x.rows - 2) // self.x.rows + 1)
        return ((lines - 1) * self.y.step + self.y.taps) * self.channels * self.x.span


def band_operand(
    stage: Stage, storages: Mapping[str, Storage], batch: int, rows: int, target: Target
) -> tuple[Band, Stage, Stage] | None:
    """A band, the stage of its windows and the contraction that reads these; None if A is something else, or no use."""
    pair = factors(stage)
    assert pair is not None
    a, b = pair
    if not (target.tuned and isinstance(a, Choose) and is_zero(a.otherwise) and isinstance(a.then, Load)):
        return None
    lead = [k for k in range(rows) if stage.shape[k] > 1]
    if len(lead) != 2 or any(stage.shape[:batch][k] > 1 for k in range(batch)) or a.then.tensor not in storages:
        return None
    band = _band(stage, a.then, a.guards, lead, storages[a.then.tensor])
    if band is None or band.x.taps < LEAST_RUN or 4 * band.floats(BLOCK_ROWS) > target.l2 // 4:
        return None
    if band.y.taps * band.x.taps < LEAST_OVERLAP * band.y.step * band.x.step:
        return None
    taps = (band.y.taps, band.channels, band.x.taps)
    own: list[Lin] = [axis_digit(k, n) for k, n in enumerate(stage.shape[:rows])]
    axes = own + [Lin()] * (len(stage.domain) - rows)
    index = list(own)
    for position, axis in enumerate((band.y.tap, None if band.channel is None else band.channel[1], band.x.tap)):
        if axis is not None:
            axes[axis] = axis_digit(rows + position, taps[position])
        index.append(Lin() if axis is None else axis_digit(axis, taps[position]))
    body = reindex(a, tuple(axes), stage.domain)
    windows = Stage(f"{stage.name}.a", (*stage.shape[:rows], *taps), a.dtype, body, origin=stage.origin)
    return band, windows, with_factors(stage, load(windows.name, tuple(index), a.dtype), b)


def _band(stage: Stage, image: Load, guards: tuple[Guard, ...], lead: list[int], storage: Storage) -> Band | None:
    """The band of an image whose coordinates are one pixel row, one pixel column and perhaps one channel."""
    space, found, channel = len(stage.shape), {}, None
    reduced = set(range(space, len(stage.domain)))
    for dim, value in enumerate(image.index):
        whole = {
            d.axis: s for s, d in value.terms if isinstance(d.axis, int) and d == Digit(d.axis, 1, stage.domain[d.axis])
        }
        if len(whole) != len(value.terms):
            return None
        axes = set(whole)
        if not axes and value.offset == 0:
            continue
        if len(axes) == 1 and axes <= reduced and value.offset == 0 and channel is None and whole[min(axes)] == 1:
            channel = (dim, min(axes))
            continue
        moving, taps = axes & set(lead), axes & reduced
        if len(axes) != 2 or len(moving) != 1 or len(taps) != 1 or whole[min(taps)] != 1 or whole[min(moving)] < 1:
            return None
        row, tap = min(moving), min(taps)
        found[row] = _Along(
            dim, row, tap, stage.domain[tap], whole[row], -value.offset, storage.shape[dim], stage.shape[row]
        )
    used = {along.tap for along in found.values()} | ({channel[1]} if channel else set())
    if set(found) != set(lead) or used != {k for k in reduced if stage.domain[k] > 1}:
        return None
    y, x = found[lead[0]], found[lead[1]]
    for guard in guards:
        if not any(guard.lin == image.index[along.dim] and guard.ext == along.extent for along in (y, x)):
            return None
    strides = [s for s, d in storage.at(image.index).terms if d == Digit(x.tap, 1, x.taps)]
    if strides != [1]:
        return None
    return Band(image, y, x, channel, 1 if channel is None else stage.domain[channel[1]])


def emit_band(e: RowEmitter, stage: Stage) -> None:
    """Copies the rows of pixels of a block, with zeros around."""
    p, w = e.pipeline, e.writer
    band, place = p.bands[stage.name], p.places[stage.name]
    y, x = band.y, band.x
    coordinates = [Lin()] * len(band.image.index)
    coordinates[y.dim] = axis_digit(0, y.extent)
    if band.channel is not None:
        coordinates[band.channel[0]] = axis_digit(1, band.channels)
    address = p.storages[band.image.tensor].at(tuple(coordinates))
    axes = Axes({0: "from", 1: "channel"}, (y.extent, band.channels))
    first, last = max(0, x.padding), min(x.span, x.extent + x.padding)
    with w.block(""):
        w.line(f"const long top = m0 / {x.rows} * {y.step};")
        w.line(f"const long bottom = (m0 + rows - 1) / {x.rows} * {y.step} + {y.taps};")
        with w.loop("line", "bottom - top"), w.loop("channel", band.channels):
            w.line(f"const long from = top + line - {y.padding};")
            w.line(f"float *const to = s + {place.offset} + (line * {band.channels} + channel) * {x.span};")
            with w.block(f"if (from < 0 || from >= {y.extent})"):
                w.line(f"for (long n = 0; n < {x.span}; ++n) to[n] = 0.0f;")
                w.line("continue;")
            w.line(f"const float *const pixels = {e.pointers[band.image.tensor]} + {c_lin(address, axes)};")
            w.line(f"for (long n = 0; n < {first}; ++n) to[n] = 0.0f;")
            w.line(f"for (long n = {first}; n < {last}; ++n) to[n] = pixels[n - {x.padding}];")
            w.line(f"for (long n = {last}; n < {x.span}; ++n) to[n] = 0.0f;")
