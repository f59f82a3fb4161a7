"""Operand A of a convolution on matrix units: the lines of pixels that a block of rows reads, packed once.

Windows of neighbouring pixels overlap: with 3x3 taps a pixel is in nine of them. A block of rows shares a *band* of the
image in scratch, in the numbers that the units take::

    band[line][pixel][channels / 32 or 16][part] of 64 bytes

and a tile's rows are pixels of one line of results: as far apart in the band as the convolution's stride says. Each
step along k, a tap and some channels, is the same tile loaded from another place (`steps`). Which line and which pixel
of the image the band has where is found here, by evaluating the access functions: padding, dilation and an image
enlarged by repetition are entries of two tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from smartmem.codegen.c_index import Axes, c_lin, split_by
from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import Guard, evaluate
from smartmem.kernel.expr import Choose, Load
from smartmem.kernel.stage import Stage
from smartmem.layout.storage import Storage
from smartmem.schedule.code import UnitForm
from smartmem.schedule.flatten import K
from smartmem.schedule.operand_a import Walk
from smartmem.schedule.roles import factors
from smartmem.schedule.units import SIDE

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter

LEAST_OVERLAP = 2  # windows that have a pixel in common
MOST_STEP = 4  # pixels from one window to the next, and from one tap to the next
FULL = 0.75  # of a tile's rows, at least, where each line of results begins a new one
LINES = 8  # of results that a block has, where there are enough
CACHE_LINES = 8  # 64 bytes of a pixel: of so many, all pixels of a tile would be in a few sets of L1

Moving = tuple[int, list[int], int]  # a dimension of an image, and the axes of rows and taps that it moves along


@dataclass(frozen=True)
class Along:
    """One direction of the image: window `row` begins at cell ``step * row`` of the band, its taps are `apart` cells.

    Attributes:
        sources: the image's coordinate of each cell, -1 outside.
    """

    rows: int
    step: int
    taps: int
    apart: int
    sources: tuple[int, ...]

    @property
    def reach(self) -> int:
        """Cells of a window."""
        return (self.taps - 1) * self.apart + 1


@dataclass(frozen=True)
class UnitBand:
    """The band of a contraction.

    Attributes:
        tensor, address: the image, and where its pixel (axis 0, axis 1) begins.
        extents: of the image's lines and pixels.
        y, x: the lines and pixels of the band.
        channels: floats of a pixel, contiguous in memory.
        pitch: floats from one pixel of the band to the next.
        steps: for each tile along k, where it lies behind the one of the window's first pixel, in floats.
    """

    tensor: str
    address: Lin
    extents: tuple[int, int]
    y: Along
    x: Along
    channels: int
    pitch: int
    steps: tuple[int, ...]

    @property
    def line(self) -> int:
        """Floats from one line of the band to the next."""
        return len(self.x.sources) * self.pitch

    def floats(self, lines: int) -> int:
        """Size of the band of so many lines of results; tiles may read beyond the end of the last line."""
        return ((lines - 1) * self.y.step + self.y.reach) * self.line + SIDE * self.x.step * self.pitch

    def place(self, row: str) -> str:
        """Where the window of a row of the block begins in the band, as C."""
        down, right, width = self.y.step * self.line, self.x.step * self.pitch, self.x.rows
        return f"({row} / {width} - m0 / {width}) * {down} + {row} % {width} * {right}"


def unit_band(stage: Stage, walk: Walk, storages: Mapping[str, Storage], rows: int, form: UnitForm) -> UnitBand | None:
    """The band of a convolution whose windows overlap, None for other products and where tiles would be half empty."""
    pair = factors(stage)
    assert pair is not None
    a, space = pair[0], len(stage.shape)
    guards, image = (a.guards, a.then) if isinstance(a, Choose) else ((), a)
    if not isinstance(image, Load) or image.tensor not in storages or len(walk.branches) > 1:
        return None
    if walk.run % form.steps or (walk.fill and form.parts):
        return None
    dims = _dimensions(stage, image, rows)
    if dims is None:
        return None
    (y_dim, y_rows, y_tap), (x_dim, x_rows, x_tap), (channel_dim, channel) = dims
    of_y, of_x = (
        [g for g in guards if set(axes_of(g.lin)) <= {*axes, tap}] for axes, tap in ((y_rows, y_tap), (x_rows, x_tap))
    )
    if len(of_y) + len(of_x) < len(guards):
        return None
    y = _along(stage.domain, image.index[y_dim], of_y, y_rows, y_tap)
    x = _along(stage.domain, image.index[x_dim], of_x, x_rows, x_tap)
    if y is None or x is None or y.taps * x.taps < LEAST_OVERLAP * y.step * x.step:
        return None
    if x.rows < FULL * -(-x.rows // SIDE) * SIDE:
        return None
    storage, channels = storages[image.tensor], stage.domain[channel]
    extents = storage.shape[y_dim], storage.shape[x_dim]
    at, contiguous = list(image.index), axis_digit(2, channels)
    at[y_dim], at[x_dim], at[channel_dim] = axis_digit(0, extents[0]), axis_digit(1, extents[1]), contiguous
    address, moving = split_by(storage.at(tuple(at)), {2})
    if moving != contiguous:
        return None
    lines = channels // form.steps * form.tiles
    pitch = SIDE * (lines + (lines % CACHE_LINES == 0))
    moved = {y_tap - space: y.apart * len(x.sources) * pitch, x_tap - space: x.apart * pitch}
    steps = _steps(walk, channel - space, moved, form)
    return UnitBand(image.tensor, address, extents, y, x, channels, pitch, steps)


def _dimensions(stage: Stage, image: Load, rows: int) -> tuple[Moving, Moving, tuple[int, int]] | None:
    """Those of an image's lines and pixels, and that of its channels with its axis."""
    space = len(stage.shape)
    found: list[Moving] = []
    channel = None
    for dim, value in enumerate(image.index):
        axes = sorted(set(axes_of(value)))
        moving, taps = [k for k in axes if k < rows], [k for k in axes if k >= space]
        if moving and len(taps) == 1 and len(axes) == len(moving) + 1:
            found.append((dim, moving, taps[0]))
        elif channel is None and axes and value == axis_digit(axes[0], stage.domain[axes[0]]) and axes == taps:
            channel = (dim, axes[0])
        elif axes:
            return None
    found.sort(key=lambda along: along[1])
    lead = [k for k in range(rows) if stage.shape[k] > 1]
    if len(found) != 2 or channel is None or found[0][1] + found[1][1] != lead:
        return None
    reduced = {k for k in range(space, len(stage.domain)) if stage.domain[k] > 1}
    if reduced - {found[0][2], found[1][2], channel[1]}:
        return None
    return found[0], found[1], channel


def _along(domain: tuple[int, ...], value: Lin, guards: list[Guard], rows: list[int], tap: int) -> Along | None:
    """A direction whose coordinate depends on nothing but ``step * row + apart * tap``."""
    extents = [domain[k] for k in rows]
    height, taps = math.prod(extents), domain[tap]
    coordinates: list[Any] = [0] * len(domain)
    row = np.arange(height)[:, None]
    for axis, digit in zip(rows, np.unravel_index(row, extents), strict=True):
        coordinates[axis] = digit
    coordinates[tap] = np.arange(taps)
    found = np.broadcast_to(evaluate(value, coordinates), (height, taps))
    for guard in guards:
        inside = evaluate(guard.lin, coordinates)
        found = np.where((inside >= 0) & (inside < guard.ext), found, -1)
    for step, apart in product(range(1, MOST_STEP + 1), repeat=2):
        cell = row * step + np.arange(taps) * apart
        sources = np.full(cell[-1, -1] + 1, -1)
        sources[cell] = found
        if (sources[cell] == found).all():
            return Along(height, step, taps, apart, tuple(map(int, sources)))
    return None


def _steps(walk: Walk, channel: int, moved: Mapping[int, int], form: UnitForm) -> tuple[int, ...]:
    """`UnitBand.steps`, in the order of the walk; `moved`: floats that each axis of taps moves by."""
    position = np.arange(0, walk.depth, form.steps)
    extents = (*walk.segments, walk.run)
    coordinates = [*[0] * K, *np.unravel_index(position, extents)]
    total = evaluate(walk.axes[channel], coordinates) // form.steps * form.tiles * SIDE
    for axis, floats in moved.items():
        total = total + evaluate(walk.axes[axis], coordinates) * floats
    return tuple(map(int, np.broadcast_to(total, position.shape)))


def table(support: dict[str, str], values: tuple[int, ...]) -> str:
    """The name of a table of these numbers, which is added to what a file has."""
    name = f"sm_table_{crc32(repr(values).encode()):08x}_{len(values)}"
    support[name] = f"static const int {name}[{len(values)}] = {{{', '.join(map(str, values))}}};\n"
    return name


def pack_band(e: RowEmitter, band: UnitBand, outside: str, form: UnitForm) -> int:
    """Packs the lines that a block reads into scratch; where they begin, in floats. `outside`: what C has there."""
    p, w = e.pipeline, e.writer
    y, x = band.y, band.x
    offset = p.reserve(band.floats(-(-p.tiling.block // x.rows) + 1))
    lines, pixels = table(p.support, y.sources), table(p.support, x.sources)
    axes = Axes({0: "from", 1: "at"}, band.extents)
    with w.block(""):
        w.line(f"const long top = m0 / {x.rows} * {y.step};")
        w.line(f"const long bottom = (m0 + rows - 1) / {x.rows} * {y.step} + {y.reach};")
        with w.loop("line", "bottom", "top"), w.loop("pixel", len(x.sources)):
            w.line(f"const long from = {lines}[line], at = {pixels}[pixel];")
            source = f"{e.pointers[band.tensor]} + {c_lin(band.address, axes)}"
            w.line(f"const float *const x = from < 0 || at < 0 ? {outside} : {source};")
            to = f"s + {offset} + (line - top) * {band.line} + pixel * {band.pitch}"
            w.line(f"sm_store_run({to}, 0, x, {band.channels}, {form.parts}, {SIDE});")
    return offset
