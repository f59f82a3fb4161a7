"""A contraction whose operand B, known at run time, one row tile reads: B goes from memory into the product.

Other operands B are packed, and the panels read by all row tiles (`operand_b`). With one tile there is nothing to win
by that: all columns of the product are sums in registers, and each step of k computes its row of B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from smartmem.codegen.c_expr import Context, Emitter, Lane
from smartmem.codegen.c_index import along
from smartmem.index.lin import axis_digit
from smartmem.kernel.expr import Choose, Expr, loads
from smartmem.kernel.expr import walk as walk_expr
from smartmem.kernel.stage import Stage, reindex
from smartmem.schedule.b_starts import Tables, find_starts, keep_starts
from smartmem.schedule.flatten import B, Flat, K, M, N
from smartmem.schedule.operand_a import operands, walk_of
from smartmem.schedule.product import epilogue_row, row_pointers

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline
    from smartmem.schedule.row_emitter import RowEmitter


def reads_once(p: Pipeline, stage: Stage) -> bool:
    """Whether one tile has all rows and columns of a product that would pack B otherwise; rows of B are contiguous."""
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    lanes = p.target.lanes
    vectors = flat.columns // lanes
    if p.target.form is not None:
        return False
    if not p.target.tuned or p.softmax is not None or p.group_size or p.shared_step is not None:
        return False
    if p.tiling.count > 1 or walk.count > 1 or flat.columns % lanes:
        return False
    if p.height * vectors + vectors + 1 > p.target.registers:  # sums, a row of B, an element of A
        return False
    b, _ = _operand(p, stage)
    if any(isinstance(node, Choose) for node in walk_expr(b)):
        return False
    addresses = [p.storages[access.tensor].at(access.index) for access in loads(b)]
    return all(along(address, N, flat.columns, lanes).stride in (0, 1) for address in addresses)


def keep_rows(e: RowEmitter, stage: Stage) -> Tables:
    """Tables of where rows of B start, where several batch entries share them."""
    b, flat = _operand(e.pipeline, stage)
    return keep_starts(e, b, _context(e, flat), N, K, flat.extents[K])


def emit_once(e: RowEmitter, stage: Stage, epilogue: list[Stage], tables: Tables) -> None:
    """Sums of all columns in registers, then the epilogue of each row."""
    p, w = e.pipeline, e.writer
    b, flat = _operand(p, stage)
    rows, columns, lanes = p.height, flat.columns, p.target.lanes
    vectors = columns // lanes
    with w.block(""):
        row_pointers(e, stage, p.flats[stage.name], walk_of(p, stage), p.tiling.block)
        w.line(f"float *const cq = s + {p.reserve(rows * columns)};")
        with w.block(""):
            w.line(f"f32v acc[{rows}][{vectors}];")
            _each(e, rows, vectors, "acc[i][j] = sm_splat(0.0f);")
            with w.loop("k0", flat.extents[K]):
                context = find_starts(e, b, _context(e, flat), N, tables)
                w.line(f"f32v column[{vectors}];")
                for j in range(vectors):
                    names = {**context.axes.names, N: str(j * lanes)}
                    emitter = Emitter(w, replace(context, axes=replace(context.axes, names=names)))
                    w.line(f"column[{j}] = {emitter.as_vector(emitter.value(b), b.dtype)};")
                _each(e, rows, vectors, "acc[i][j] += sm_splat(a[i][k0]) * column[j];")
            _each(e, rows, vectors, f"sm_store(cq + i * {columns} + j * SM_W, acc[i][j]);")
        with w.loop("y", "rows"):
            w.line("const long r = y, m = m0 + r, n0 = 0;")
            w.line("(void)m;")
            epilogue_row(e, stage, epilogue, p.flats[stage.name], columns, columns)


def _each(e: RowEmitter, rows: int, vectors: int, text: str) -> None:
    w = e.writer
    w.line(f"#pragma GCC unroll {rows}")
    with w.loop("i", rows):
        w.line(f"#pragma GCC unroll {vectors}")
        with w.loop("j", vectors):
            w.line(text)


def _operand(p: Pipeline, stage: Stage) -> tuple[Expr, Flat]:
    """B over its batch entry, its columns and the steps of k that A goes through, and the stage with these axes."""
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    extents = (*flat.extents[:K], *walk.segments, walk.run)
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    return reindex(operands(flat)[1], (*keep, *walk.axes), flat.extents), replace(flat, extents=extents)


def _context(e: RowEmitter, flat: Flat) -> Context:
    return e.context(flat, Lane(N, flat.columns, e.pipeline.target.lanes))
