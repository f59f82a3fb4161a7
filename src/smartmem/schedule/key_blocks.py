"""Attention over blocks of keys: the body of a task of a row pipeline whose `softmax` is set (see `online`).

    for blocks of keys j0 .. j1
        pack what is not read in place of both operands B
        for blocks of rows
            scores of the block, with their epilogue                        `emit_contraction`
            maximum, exponentials and sum of each row so far                sm_softmax_block
            weighted sums so far, times the factor, plus those of the block
    for blocks of rows
        quotient and what follows it

Scores of one block of rows and keys lie in scratch, beside the weighted sums, maxima and sums of all rows of the task.
A row whose scores so far are all -inf has the sum 0, so that it ends as 0/0, which is the NaN of its definition.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from smartmem.kernel.stage import Stage
from smartmem.schedule.contraction import call_tile
from smartmem.schedule.operand_a import walk_of
from smartmem.schedule.operand_b import emit_pack
from smartmem.schedule.pipeline import Region
from smartmem.schedule.product import b_pointer, epilogue_row, row_pointers
from smartmem.schedule.tile_functions import tile_function
from smartmem.schedule.tiling import tile_columns

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter

SOFTMAX_BLOCK = """\
/* Scores x[0 .. n) of a row become exp(x - *max), where *max takes them in; *sum is of all exponentials of the row so
   far. Returns the factor that what was summed before takes. A maximum of -inf is left out: exp(-inf - -inf) is NaN. */
static __attribute__((noinline)) float sm_softmax_block(float *x, long n, int first, float *max, float *sum) {
    f32v top[4], total[4];
    for (int u = 0; u < 4; ++u) top[u] = sm_splat(-INFINITY), total[u] = sm_splat(0.0f);
    long i = 0;
    for (; i + 4 * SM_W <= n; i += 4 * SM_W)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) top[u] = sm_max_ordered(top[u], sm_load(x + i + u * SM_W));
    for (; i + SM_W <= n; i += SM_W) top[0] = sm_max_ordered(top[0], sm_load(x + i));
    if (i < n) top[1] = sm_max_ordered(top[1], sm_load_n(x + i, n - i, -INFINITY));
    const float here = sm_hmax_ordered(sm_max_ordered(sm_max_ordered(top[0], top[1]), sm_max_ordered(top[2], top[3])));
    const float before = first ? -INFINITY : *max, now = sm_maxs(before, here);
    const float safe = now == -INFINITY ? 0.0f : now;
    const f32v by = sm_splat(safe);
    for (i = 0; i + 4 * SM_W <= n; i += 4 * SM_W)
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
            const f32v e = sm_exp_belowv(sm_load(x + i + u * SM_W) - by);
            sm_store(x + i + u * SM_W, e);
            total[u] += e;
        }
    for (; i + SM_W <= n; i += SM_W) {
        const f32v e = sm_exp_belowv(sm_load(x + i) - by);
        sm_store(x + i, e);
        total[0] += e;
    }
    if (i < n) {
        const f32v e = sm_exp_belowv(sm_load_n(x + i, n - i, -INFINITY) - by);
        sm_store_n(x + i, e, n - i);
        total[1] += e;
    }
    const float factor = now == before ? 1.0f : sm_exp_belowv(sm_splat(before - safe))[0];
    const float added = sm_hsum((total[0] + total[1]) + (total[2] + total[3]));
    *max = now;
    *sum = first ? added : *sum * factor + added;
    return factor;
}
"""


def emit_key_blocks(e: RowEmitter, dynamic: list[Stage]) -> None:
    """The body of a task; `dynamic` are the contractions whose B is packed at run time."""
    p, w = e.pipeline, e.writer
    softmax = p.softmax
    assert softmax is not None
    at = next(k for k, r in enumerate(p.regions) if r.contraction is not None and r.contraction.name == softmax.second)
    second = p.regions[at]
    assert second.contraction is not None
    width = tile_columns(p.target, p.flats[softmax.second].columns)
    height = min(e.task.chunk * p.tiling.rows, p.height)
    sums = p.reserve(-(-p.flats[softmax.second].columns // width) * width * height)
    for name in (softmax.maximum, softmax.total):
        p.places[name] = replace(p.places[name], offset=p.reserve(height))
    w.line(f"const long m_low = {p.tiling.start('low')};")
    with w.loop("j0", softmax.keys, 0, p.key_block):
        w.line(f"const long j1 = j0 + {p.key_block} < {softmax.keys} ? j0 + {p.key_block} : {softmax.keys};")
        for stage in dynamic:
            emit_pack(e, stage)
        with e.blocks():
            e.regions(p.regions[: at - 1])
            _softmax(e, sums, width, height)
            _add_weighted(e, second.contraction, sums, width, height)
    with e.blocks():
        _finish(e, second, sums, width, height)
        e.regions(p.regions[at + 1 :])


def _softmax(e: RowEmitter, sums: int, width: int, height: int) -> None:
    p, w = e.pipeline, e.writer
    softmax = p.softmax
    assert softmax is not None
    p.support["softmax_block"] = SOFTMAX_BLOCK
    maximum, total = (f"s + {p.places[name].offset} + m - m_low" for name in (softmax.maximum, softmax.total))
    columns = -(-p.flats[softmax.second].columns // width) * width
    with w.loop("r", "rows"):
        w.line("const long m = m0 + r;")
        row = f"s + ({p.places[softmax.scores].row} + j0)"
        w.line(f"const float factor = sm_softmax_block({row}, j1 - j0, j0 == 0, {maximum}, {total});")
        with w.block("if (j0 > 0 && factor != 1.0f)"), w.loop("n0", columns, 0, width):
            w.line(f"float *const c = s + {sums} + n0 * {height} + (m - m_low) * {width};")
            with w.loop("n", width, 0, "SM_W"):
                w.line("sm_store(c + n, sm_load(c + n) * sm_splat(factor));")


def _add_weighted(e: RowEmitter, stage: Stage, sums: int, width: int, height: int) -> None:
    p, w, tiling = e.pipeline, e.writer, e.pipeline.tiling
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    with w.block(""):
        row_pointers(e, stage, flat, walk, tiling.block)
        source, stride, _ = b_pointer(e, stage, flat, walk, width)
        with w.loop("n0", flat.columns, 0, width):
            w.line(f"const float *const bp = {source};")
            with w.loop("q", "h", "g"):
                w.line(f"const long i = {tiling.start('q')} - m0;")
                w.line(f"float *const c = s + {sums} + n0 * {height} + (m0 - m_low + i) * {width};")

                def call(rows: int) -> str:
                    name, text = tile_function(rows, width // p.target.lanes, 0)
                    p.support[name] = text
                    return f"{name}(a + i, 1, {tiling.block}, 0, j0, j1, bp, {stride}, bp, c, {width}, j0 == 0);"

                call_tile(w, tiling, call)


def _finish(e: RowEmitter, region: Region, sums: int, width: int, height: int) -> None:
    p, w = e.pipeline, e.writer
    assert region.contraction is not None
    flat = p.flats[region.contraction.name]
    with w.loop("n0", flat.columns, 0, width):
        w.line(f"const float *const cq = s + {sums} + n0 * {height} + (m0 - m_low) * {width};")
        with w.loop("y", "rows"):
            w.line("const long r = y, m = m0 + r;")
            w.line("(void)m;")
            epilogue_row(e, region.contraction, region.stages, flat, flat.columns, width)
