"""Operand A packed into scratch, row by row or in squares, where a loop over its columns would be slow.

    padded      guards depend on rows and columns, outside lie zeros: a row is cleared, then copied where they hold
    across      the columns of a row lie apart and its neighbours side by side (K^T of linear attention): they stay so,
                for tiles that read A across its rows
    turned      the same for what else reads rows: squares are loaded along the rows and transposed in registers

Operand B is packed in the same squares (`operand_b`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from smartmem.codegen.c_expr import Context, Emitter, Lane, c_guards
from smartmem.codegen.c_index import along, c_lin, split_by
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.expr import Choose, Expr, is_zero, loads, walk
from smartmem.kernel.stage import Stage, reindex
from smartmem.schedule.flatten import M, N, flat_address
from smartmem.schedule.tile_functions import ROWS_ACROSS

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline
    from smartmem.schedule.row_emitter import RowEmitter

UNROLLED = 8  # a loop over so few columns of a packed row is unrolled


def is_packing(p: Pipeline, stage: Stage) -> bool:
    """A padded operand copied into scratch: its guards depend on rows and columns, outside lie zeros."""
    body = stage.body
    return isinstance(body, Choose) and is_zero(body.otherwise) and not stage.reduce and stage is not p.stages[-1]


def pack_row(e: RowEmitter, stage: Stage) -> None:
    """Loops over the column axes; guards are tested as soon as their axes are known, or bound a long loop."""
    p, w = e.pipeline, e.writer
    place, flat = p.places[stage.name], p.flats[stage.name]
    columns = stage.shape[p.rows :]
    first = len(flat.extents)
    axes = (*flat.space[: p.rows], *(axis_digit(first + k, n) for k, n in enumerate(columns)))
    body = reindex(stage.body, axes, stage.domain)
    assert isinstance(body, Choose)
    context = e.context(replace(flat, extents=(*flat.extents, *columns)), None)
    names = {**context.axes.names, **{first + k: f"x{k}" for k in range(len(columns))}}
    context = replace(context, axes=replace(context.axes, names=names))
    with w.loop("n", math.prod(columns)):
        w.line(f"s[{place.row} + n] = 0.0f;")
    pending, bound = list(body.guards), set(range(first))
    where = flat_address(axes[p.rows :], columns)
    with ExitStack() as loops:
        _test(e, pending, bound, context, loops)
        for k, extent in enumerate(columns):
            start, end = "0", str(extent)
            if extent > UNROLLED:
                start, end = _bounds(e, pending, bound, context, axis_digit(first + k, extent), f"x{k}")
                if k == len(columns) - 1:
                    w.line("#pragma clang loop interleave(disable)")
            elif k == len(columns) - 1:
                w.line(f"#pragma GCC unroll {extent}")
            loops.enter_context(w.loop(f"x{k}", end, start))
            bound.add(first + k)
            _test(e, pending, bound, context, loops)
        value = Emitter(w, context).value(body.then)
        w.line(f"s[{place.row} + {c_lin(where, context.axes)}] = {value.text};")


def turns(p: Pipeline, stage: Stage) -> bool:
    """Whether rows of a local stage are better loaded in squares and transposed: columns lie apart, rows do not."""
    flat = p.flats[stage.name]
    lanes, local = p.target.lanes, {s.name for s in p.stages}
    if stage.reduce or stage.dtype != np.float32 or stage is p.stages[-1] or not p.target.tuned:
        return False
    reads = loads(flat.body)
    if (
        not reads
        or min(flat.columns, p.height) < lanes
        or any(isinstance(n, Choose) for n in walk(flat.body))
        or {x.tensor for x in reads} & local
    ):
        return False
    apart = False
    for access in reads:
        address = p.storages[access.tensor].at(access.index)
        # A block may start at any row: no digit of the rows may end inside of a square.
        by_row = split_by(address, {M})[1]
        if by_row not in (Lin(), axis_digit(M, p.height)):
            return False
        apart |= bool(by_row.terms) and along(address, N, flat.columns, lanes).stride not in (0, 1)
    return apart


def pack_turned(e: RowEmitter, stage: Stage) -> None:
    """Squares of lanes x lanes: loaded along the rows, turned, stored along the columns."""
    p, w = e.pipeline, e.writer
    flat, lanes = p.flats[stage.name], p.target.lanes
    part = "" if flat.columns % lanes == 0 else f"{flat.columns} - n0 < SM_W ? {flat.columns} - n0 : SM_W"
    target = f"s + {p.places[stage.name].row} + n0"

    def store() -> None:
        w.line("const long r = r0 + j;")
        w.line(f"sm_store_n({target}, v[j], {part});" if part else f"sm_store({target}, v[j]);")

    def square(context: Context, count: str) -> None:
        with w.loop("n0", flat.columns, 0, "SM_W"):
            emit_square(w, context, flat.body, flat.columns if part else None, count, store)

    _along_rows(e, stage, square)


def pack_across(e: RowEmitter, stage: Stage) -> None:
    """Rows side by side as they are loaded: what they have in column n, then in column n + 1."""
    p, w = e.pipeline, e.writer
    flat, place = p.flats[stage.name], p.places[stage.name]

    def vectors(context: Context, _count: str) -> None:
        w.line(f"const long across = {ROWS_ACROSS};")
        with w.loop("n", flat.columns):
            emitter = Emitter(w, context)
            value = emitter.as_vector(emitter.value(flat.body), flat.body.dtype)
            w.line(f"sm_store(s + {place.offset} + n * across + r0, {value});")

    _along_rows(e, stage, vectors)


def _along_rows(e: RowEmitter, stage: Stage, each: Callable[[Context, str], None]) -> None:
    """The rows r0, r0 + 1, ... of a block in vectors; `each` gets a context with that lane and how many rows it has."""
    p, w = e.pipeline, e.writer
    with w.loop("r0", "rows", 0, "SM_W"):
        w.line("const long m = m0 + r0;")
        for header, count in (("if (r0 + SM_W <= rows)", None), ("else", "count")):
            with w.block(header):
                if count is not None:
                    w.line(f"const long {count} = rows - r0;")
                lane = Lane(M, p.height, p.target.lanes, count)
                each(e.context(p.flats[stage.name], lane), count or "SM_W")


def emit_square(
    w: Writer, context: Context, body: Expr, columns: int | None, count: str, store: Callable[[], None]
) -> None:
    """A square of lanes x lanes: `body` at columns n0 + j, turned in registers.

    With `columns` a square may go beyond them, where the last column comes again: nobody reads what is computed of it.
    `store` writes the code that takes v[j], for each j < `count`.
    """
    assert context.lane is not None
    last = "" if columns is None else f" < {columns} ? n0 + j : {columns - 1}"
    unrolled = f"#pragma GCC unroll {context.lane.width}"  # all of v lies in registers
    w.line("f32v v[SM_W];")
    w.line(unrolled)
    with w.loop("j", "SM_W"):
        w.line(f"const long n = n0 + j{last};")
        emitter = Emitter(w, context)
        w.line(f"v[j] = {emitter.as_vector(emitter.value(body), body.dtype)};")
    w.line("sm_transpose(v);")
    if count == "SM_W":
        w.line(unrolled)
    with w.loop("j", count):
        store()


def _bounds(
    e: RowEmitter, pending: list[Guard], bound: set[int], context: Context, axis: Lin, name: str
) -> tuple[str, str]:
    """Where a loop over `axis` starts and ends, as C, so that the guards hold in it that move along with it.

    Without a test inside the loop is one of vectors.
    """
    ((_, digit),) = axis.terms
    starts, ends = ["0"], [str(digit.ext)]
    for guard in list(pending):
        rest, moving = split_by(guard.lin, set(axes_of(axis)))
        if moving == axis and set(axes_of(rest)) <= bound:
            pending.remove(guard)
            starts.append(f"-({c_lin(rest, context.axes)})")
            ends.append(f"{guard.ext} - ({c_lin(rest, context.axes)})")
    if len(starts) == 1:
        return starts[0], ends[0]
    w = e.writer
    for kind, texts, better in (("from", starts, ">"), ("to", ends, "<")):
        w.line(f"long {name}_{kind} = {texts[0]};")
        for text in texts[1:]:
            w.line(f"if ({text} {better} {name}_{kind}) {name}_{kind} = {text};")
    return f"{name}_from", f"{name}_to"


def _test(e: RowEmitter, pending: list[Guard], bound: set[int], context: Context, loops: ExitStack) -> None:
    ready = tuple(g for g in pending if set(axes_of(g.lin)) <= bound)
    if ready:
        pending[:] = [g for g in pending if g not in ready]
        loops.enter_context(e.writer.block(f"if ({c_guards(ready, context.axes)})"))
