"""Row statistics in front of a product: what a normalization needs of its rows, found by the tile that reads them.

A group that computes a tile of ``LayerNorm(x) * W`` first reduces its own rows of x (mean, then deviation), keeps one
value per row in local memory, and normalizes while it stages operand A. Every column tile does this again, from the
cache; in exchange the normalized tensor does not exist, and a kernel less is launched. That pays where launches cost
much (`choose.schedulable`), so not where they are CUDA graphs.

    row_0[r] = sum over n of x[m0 + r, n];   row_1[r] = rsqrt(sum over n of (x - row_0[r] / N)^2 ...)

Neighbouring work-items read neighbouring columns; each keeps one part per row, the parts of a row lie in memory that
the product needs only later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from smartmem.codegen.c_expr import Lane, LocalReader
from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.writer import Writer
from smartmem.kernel.expr import Expr
from smartmem.kernel.stage import Stage, without
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import B, M, N, flatten
from smartmem.schedule.gpu.code import Storages, placed, row_value
from smartmem.schedule.gpu.loops import row_lane
from smartmem.schedule.nest import combined, initial

MOST = 4  # values per row
WIDEST = 2048  # columns that every tile may reduce again
_COMBINE = frozenset(("sum", "max", "min"))


@dataclass(frozen=True)
class Parts:
    """Where a group keeps the parts of its reductions: `across` per row, part l of row r at ``at(r, l)``."""

    across: int
    at: Callable[[str, str], str]


def refusal(before: list[Stage], rows: int) -> str:
    """ "" if the stages before a contraction are row statistics that its tiles can find, else the reason."""
    single = [s for s in before if s.reduce or len(s.shape) == rows]
    if any(s.reduce and (len(s.shape) != rows or s.combine not in _COMBINE) for s in before):
        return "what is reduced before the product is not one value per row"
    if len(single) > MOST:
        return f"more than {MOST} values per row before the product"
    if any(int(np.prod(s.reduce)) > WIDEST for s in before if s.reduce):
        return f"rows of more than {WIDEST} columns, which every column tile would reduce again"
    return ""


def take_apart(stages: list[Stage], contraction: Stage, rows: int) -> tuple[list[Stage], list[Stage]]:
    """Statistics (one value per row), and the other stages with everything pointwise computed in the loads."""
    before = stages[: stages.index(contraction)]
    rest = without(stages, [s.name for s in before if not s.reduce and len(s.shape) > rows])
    kept = {s.name for s in before if s.reduce or len(s.shape) == rows}
    return [s for s in rest if s.name in kept], [s for s in rest if s.name not in kept]


def readers(statistics: list[Stage]) -> dict[str, LocalReader]:
    """How the product reads them: by the row of the tile."""

    return {stage.name: row_value(f"row_{k}") for k, stage in enumerate(statistics)}


def declare(w: Writer, statistics: list[Stage], rows: int) -> None:
    for k in range(len(statistics)):
        w.line(f"__local float row_{k}[{rows}];")


def emit(
    w: Writer, statistics: list[Stage], batch: int, rows: int, storages: Storages, context: DeviceContext,
    size: int, items: int, height: int, parts: Parts,
) -> list[tuple[Expr, int, bool, Lane | None]]:  # fmt: skip
    """Fills ``row_k`` for the `size` rows of a tile that `items` work-items share.

    Returns what `sweeps.of_statistics` asks for: body, columns, whether they are reduced, lane.
    """
    local = {s.name for s in statistics}
    told: list[tuple[Expr, int, bool, Lane | None]] = []
    for k, stage in enumerate(statistics):
        flat = flatten(stage, batch, rows, False)
        body = placed(flat.body, storages, local)
        inner = replace(context, axes=replace(context.axes, extents=flat.extents, names=_names(context.axes)))
        lane = None
        if stage.reduce:
            w.line(f"/* {stage.combine} of each row */")
            lane = _partial(w, stage, body, inner, flat.columns, size, items, height, parts)
        with w.loop("r", size, "item", items):
            w.line(f"const int m = min(m0 + r, {height - 1});")
            if stage.reduce:
                w.line(f"float total = {parts.at('r', '0')};")
                with w.loop("l", parts.across, 1):
                    w.line(f"total = {combined(stage.combine, 'total', parts.at('r', 'l'), False, stage.dtype)};")
                w.line(f"row_{k}[r] = total;")
            else:
                emitter = DeviceEmitter(w, inner)
                w.line(f"row_{k}[r] = {emitter.value(body).text};")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        told.append((body, flat.columns, bool(stage.reduce), lane))
    return told


def _names(axes: Axes) -> dict[int, str]:
    return {B: axes.names[B], M: "m", N: "n"}


def _partial(
    w: Writer, stage: Stage, body: Expr, context: DeviceContext, columns: int, size: int, items: int, height: int,
    parts: Parts,
) -> Lane | None:  # fmt: skip
    """The part of every work-item in each of its rows; the lane of its loads."""
    lane = row_lane(body, columns)
    start, step = initial(stage.combine, stage.dtype), LANES if lane else 1
    w.line("#pragma unroll 4")  # rows are independent: their loads may be under way together
    with w.loop("r", size, f"item / {parts.across}", max(1, items // parts.across)):
        w.line(f"const int l = item % {parts.across}, m = min(m0 + r, {height - 1});")
        w.line(f"{'float4' if lane else 'float'} total = {f'(float4)({start})' if lane else start};")
        with w.loop("n", columns, f"l * {step}", parts.across * step):
            emitter = DeviceEmitter(w, replace(context, lane=lane))
            text = emitter.as_vector(emitter.value(body), np.dtype(np.float32))
            w.line(f"total = {combined(stage.combine, 'total', text, lane is not None, stage.dtype)};")
        w.line(f"{parts.at('r', 'l')} = {f'sm_{stage.combine}4(total)' if lane else 'total'};")
    w.line("barrier(CLK_LOCAL_MEM_FENCE);")
    return lane
