"""A contraction whose operand B, known at run time, one row tile reads: B goes from memory into the product.

Other operands B are packed, and the panels read by all row tiles (`operand_b`). With one tile there is nothing to win
by that:

    rows        B is contiguous along its columns: all sums are in registers, and each step of k computes its row
    squares     B is contiguous along k: a square of lanes x lanes is turned in registers and multiplied from there
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
from smartmem.schedule.pack_rows import emit_square
from smartmem.schedule.product import epilogue_row, row_pointers, stored_directly

if TYPE_CHECKING:
    from smartmem.schedule.pipeline import Pipeline
    from smartmem.schedule.row_emitter import RowEmitter

CHAINS = 2  # sums of a result


def reads_once(p: Pipeline, stage: Stage) -> bool:
    """Whether one tile has all rows of a product that would pack B otherwise, and B suits one of the two ways."""
    if p.target.form is not None or not p.target.tuned:
        return False
    if p.softmax is not None or p.group_size or p.shared_step is not None or p.tiling.count > 1:
        return False
    return walk_of(p, stage).count == 1 and (_by_rows(p, stage) or _by_squares(p, stage))


def _by_rows(p: Pipeline, stage: Stage) -> bool:
    lanes, columns = p.target.lanes, p.flats[stage.name].columns
    if columns % lanes or _registers(p.height, columns // lanes, 1) > p.target.registers:
        return False
    return _contiguous(p, stage, N, columns)


def _registers(rows: int, vectors: int, chains: int) -> int:
    """Of sums, a row of B, an element of A."""
    return chains * rows * vectors + vectors + 1


def _by_squares(p: Pipeline, stage: Stage) -> bool:
    lanes, depth = p.target.lanes, walk_of(p, stage).run
    if p.flats[stage.name].columns % lanes or depth % lanes:
        return False
    if lanes + CHAINS * p.height + 1 > p.target.registers:  # a square, sums, an element of A
        return False
    return _contiguous(p, stage, K, depth)


def _contiguous(p: Pipeline, stage: Stage, axis: int, extent: int) -> bool:
    b, _ = _operand(p, stage)
    if any(isinstance(node, Choose) for node in walk_expr(b)):
        return False
    addresses = [p.storages[access.tensor].at(access.index) for access in loads(b)]
    return all(along(address, axis, extent, p.target.lanes).stride in (0, 1) for address in addresses)


def keep_tables(e: RowEmitter, stage: Stage) -> Tables:
    """Tables of where rows or columns of B start, where several batch entries share them."""
    b, flat = _operand(e.pipeline, stage)
    if _by_rows(e.pipeline, stage):
        return keep_starts(e, b, _context(e, flat, N), N, K, flat.extents[K])
    return keep_starts(e, b, _context(e, flat, K), K, N, flat.columns)


def emit_once(e: RowEmitter, stage: Stage, epilogue: list[Stage], tables: Tables) -> None:
    """Sums of all columns, then the epilogue of each row."""
    p, w, columns = e.pipeline, e.writer, e.pipeline.flats[stage.name].columns
    with w.block(""):
        row_pointers(e, stage, p.flats[stage.name], walk_of(p, stage), p.tiling.block)
        place = stored_directly(p, stage, epilogue)
        target, stride = (place.offset, place.width) if place else (p.reserve(p.height * columns), columns)
        w.line(f"float *const cq = s + {target};")
        with w.block(""):
            (_rows if _by_rows(p, stage) else _squares)(e, stage, tables, stride)
        if place is None:
            with w.loop("y", "rows"):
                w.line("const long r = y, m = m0 + r, n0 = 0;")
                w.line("(void)m;")
                epilogue_row(e, stage, epilogue, p.flats[stage.name], columns, columns)


def _rows(e: RowEmitter, stage: Stage, tables: Tables, stride: int) -> None:
    p, w = e.pipeline, e.writer
    b, flat = _operand(p, stage)
    rows, lanes = p.height, p.target.lanes
    vectors = flat.columns // lanes
    chains = CHAINS if flat.extents[K] % CHAINS == 0 and _registers(rows, vectors, CHAINS) <= p.target.registers else 1
    w.line(f"f32v acc[{chains}][{rows}][{vectors}];")
    w.line(f"#pragma GCC unroll {chains}")
    with w.loop("c", chains):
        _each(e, rows, vectors, "acc[c][i][j] = sm_splat(0.0f);")
    with w.loop("k", flat.extents[K], 0, str(chains)):
        w.line(f"#pragma GCC unroll {chains}")
        with w.loop("c", chains):
            w.line("const long k0 = k + c;")
            context = find_starts(e, b, _context(e, flat, N), N, tables)
            w.line(f"f32v column[{vectors}];")
            for j in range(vectors):
                names = {**context.axes.names, N: str(j * lanes)}
                emitter = Emitter(w, replace(context, axes=replace(context.axes, names=names)))
                w.line(f"column[{j}] = {emitter.as_vector(emitter.value(b), b.dtype)};")
            _each(e, rows, vectors, "acc[c][i][j] += sm_splat(a[i][k0]) * column[j];")
    total = " + ".join(f"acc[{c}][i][j]" for c in range(chains))
    _each(e, rows, vectors, f"sm_store(cq + i * {stride} + j * SM_W, {total});")


def _squares(e: RowEmitter, stage: Stage, tables: Tables, stride: int) -> None:
    """A vector of columns at a time. A row has several chains of sums, for an addition takes longer than a step."""
    p, w = e.pipeline, e.writer
    b, flat = _operand(p, stage)
    rows = p.height

    def multiply() -> None:
        w.line(f"#pragma GCC unroll {rows}")
        with w.loop("i", rows):
            w.line(f"acc[i][j % {CHAINS}] += sm_splat(a[i][k0 + j]) * v[j];")

    with w.loop("n0", flat.columns, 0, "SM_W"):
        context = find_starts(e, b, _context(e, flat, K), K, tables, "n0 + j")
        w.line(f"f32v acc[{rows}][{CHAINS}];")
        _each(e, rows, CHAINS, "acc[i][j] = sm_splat(0.0f);")
        with w.loop("k0", flat.extents[K], 0, "SM_W"):
            emit_square(w, context, b, None, "SM_W", multiply)
        w.line(f"#pragma GCC unroll {rows}")
        with w.loop("i", rows):
            w.line(f"sm_store(cq + i * {stride} + n0, {' + '.join(f'acc[i][{c}]' for c in range(CHAINS))});")


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


def _context(e: RowEmitter, flat: Flat, axis: int) -> Context:
    extent = flat.columns if axis == N else flat.extents[K]
    return e.context(flat, Lane(axis, extent, e.pipeline.target.lanes))
