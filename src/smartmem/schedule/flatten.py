"""A row pipeline over three flat axes: b (batch), m (row in the batch), n (column of a stage), then reduce axes.

Flattening is a substitution by digits, so what memory makes contiguous becomes one whole digit again by itself:
``x[b, t, c]`` with rows (b, t) reads address ``C*m + n``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smartmem.index.lin import Digit, Lin, axis_digit, lin
from smartmem.kernel.expr import Expr
from smartmem.kernel.stage import Stage, reindex

B, M, N, K = 0, 1, 2, 3  # flat axis numbers; contraction reduce axes start at K


@dataclass(frozen=True)
class Flat:
    """One stage over (b, m, n[, k...]).

    Attributes:
        stage: the stage that it comes from.
        body: over the flat axes.
        columns: extent of n.
        extents: of all flat axes.
        column_axes: the coordinates of the stage's column axes (reduce axes for a row reduction) over the flat axes.
    """

    stage: Stage
    body: Expr
    columns: int
    extents: tuple[int, ...]
    space: tuple[Lin, ...]

    @property
    def name(self) -> str:
        return self.stage.name


def digits(axis: int, extents: Sequence[int]) -> tuple[Lin, ...]:
    """Row-major coordinates of a flat axis."""
    total = math.prod(extents)
    result, below = [], total
    for extent in extents:
        below //= extent
        result.append(lin(0, ((1, Digit(axis, below, extent)),)))
    return tuple(result)


def flat_space(shape: Sequence[int], batch: int, rows: int) -> tuple[Lin, ...]:
    """The axes of a stage over (b, m, n): its first `batch` axes, those up to `rows`, the others."""
    return (*digits(B, shape[:batch]), *digits(M, shape[batch:rows]), *digits(N, shape[rows:]))


def flatten(stage: Stage, batch: int, rows: int, contraction: bool) -> Flat:
    """`stage` (whose first `rows` axes are rows, of which the first `batch` are batch axes) over flat axes.

    A row reduction runs over n; a contraction keeps its reduce axes as axes K, K+1, ...
    """
    shape = stage.shape
    b, m = math.prod(shape[:batch]), math.prod(shape[batch:rows])
    columns = shape[rows:]
    lead = flat_space(shape[:rows], batch, rows)
    if contraction:
        reduce = tuple(axis_digit(K + k, n) for k, n in enumerate(stage.reduce))
        extents = (b, m, math.prod(columns), *stage.reduce)
        space = (*lead, *digits(N, columns))
        return Flat(stage, reindex(stage.body, (*space, *reduce), stage.domain), extents[N], extents, space)
    inner = (*columns, *stage.reduce)
    axes = (*lead, *digits(N, inner))
    extents = (b, m, math.prod(inner))
    return Flat(stage, reindex(stage.body, axes, stage.domain), extents[N], extents, axes[: len(shape)])


def flat_address(index: tuple[Lin, ...], shape: tuple[int, ...]) -> Lin:
    """Row-major offset of a column coordinate."""
    address = Lin()
    for value, extent in zip(index, shape, strict=True):
        address = address * extent + value
    return address
