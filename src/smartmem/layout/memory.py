"""Where a tensor lies on a device: in a linear buffer, or in a 2.5D image of texels of four values.

An image has rows, columns and four lanes. A tensor in one has three Lins over its axes, ``(row, column, lane)``: the
digits of one axis below 4 are the lane, the other digits are spread over columns and rows. The element address of the
same order of digits in a buffer is ``(row * width + column) * 4 + lane``, so both kinds of memory share their layouts.
An order of digits serves two directions: one axis in the lane, another along the columns (`order_digits`).

Worked example, x[1, 56, 56, 96] with the channels in the lane: row = h, column = 24*w + c//4, lane = c%4; the image is
1344 x 56 texels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smartmem.index.lin import Digit, Lin, lin
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import DType
from smartmem.layout.storage import Storage

LANES = 4
SMALL_CONSTANT = 4096  # elements up to which a constant (biases, scales) stays in float where others are halves


def whole_lanes(extent: int) -> int:
    """An extent rounded up to a multiple of `LANES`."""
    return -(-extent // LANES) * LANES


@dataclass(frozen=True)
class Image:
    """The place of each coordinate in an image of `width` x `height` texels."""

    row: Lin
    column: Lin
    lane: Lin
    width: int
    height: int


@dataclass(frozen=True)
class DeviceStorage(Storage):
    """A `Storage` on a device: `image` is set for textures; `stored` is the element type in memory."""

    stored: DType = np.dtype(np.float32)  # noqa: RUF009 (dtypes are immutable)
    image: Image | None = None

    def access(self, coords: Sequence[Lin]) -> tuple[Lin, ...]:
        """A coordinate's place: (address,) in a buffer, (row, column, lane) in a texture."""
        if self.image is None:
            return (self.at(coords),)
        parts = (self.image.row, self.image.column, self.image.lane)
        return tuple(substitute(part, tuple(coords), self.shape) for part in parts)


def order_digits(shape: Sequence[int], lane: int | None, column: int | None = None) -> list[Digit]:
    """An order of a tensor's digits, outermost first.

    The axis `lane` comes last. With `column` only four of its values do; the axis `column` runs above them, and the
    rest of `lane` above that, so that both axes are walked along in neighbouring texels: n h c/4 w c%4.
    """
    rest = [Digit(axis, 1, n) for axis, n in enumerate(shape) if axis not in (lane, column)]
    if lane is None:
        return rest
    if column is None:
        return [*rest, Digit(lane, 1, shape[lane])]
    return [*rest, Digit(lane, LANES, shape[lane] // LANES), Digit(column, 1, shape[column]), Digit(lane, 1, LANES)]


def cut_image(address: Lin, elements: int, max_width: int, max_height: int) -> Image | None:
    """A dense address as an image, or None if no cut of its digits fits the limits.

    The lowest digit must be divisible by 4; what is left of it and the digits above it are columns up to some border,
    rows from there on. The border lies between two digits, which costs no arithmetic, where the image comes closest to
    a square: then neighbours in both directions are near in memory. If no such image fits, columns take what fits, and
    the digit that crosses the border is cut where it divides.
    """
    if address.offset or not address.terms:
        return None
    terms = sorted(address.terms, key=lambda term: term[0])
    stride, lowest = terms[0]
    if stride != 1 or lowest.ext % LANES:
        return None
    lane = lin(0, ((1, Digit(lowest.axis, lowest.lo, LANES)),))
    texels = [Digit(lowest.axis, lowest.lo * LANES, lowest.ext // LANES), *(digit for _, digit in terms[1:])]
    texels = [digit for digit in texels if digit.ext > 1]
    if math.prod(digit.ext for digit in texels) * LANES != elements:
        return None
    borders = range(len(texels) + 1)
    images = [_image(lane, texels[:border], texels[border:]) for border in borders]
    fitting = [image for image in images if image.width <= max_width and image.height <= max_height]
    if fitting:
        return min(fitting, key=lambda image: max(image.width, image.height))
    columns: list[Digit] = []
    rows: list[Digit] = []
    for digit in texels:
        width = math.prod(d.ext for d in columns)
        inside = 1 if rows else _largest_divisor(digit.ext, max_width // width)
        columns += [Digit(digit.axis, digit.lo, inside)] if inside > 1 else []
        rows += [Digit(digit.axis, digit.lo * inside, digit.ext // inside)] if inside < digit.ext else []
    image = _image(lane, columns, rows)
    return image if image.height <= max_height else None


def _image(lane: Lin, columns: Sequence[Digit], rows: Sequence[Digit]) -> Image:
    """An image whose columns and rows count the given digits, lowest first."""
    (row, height), (column, width) = _counted(rows), _counted(columns)
    return Image(row, column, lane, width, height)


def _counted(digits: Sequence[Digit]) -> tuple[Lin, int]:
    terms, below = [], 1
    for digit in digits:
        terms.append((below, digit))
        below *= digit.ext
    return lin(0, tuple(terms)), below


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(number, max(limit, 1)), 0, -1) if number % d == 0)
