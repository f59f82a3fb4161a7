"""Contractions on matrix units: operand A packed into tiles, and the loop over its row tiles; see `units`."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from smartmem.kernel.stage import Stage
from smartmem.schedule.code import UnitForm
from smartmem.schedule.finish import Ending
from smartmem.schedule.operand_a import even_step, walk_of
from smartmem.schedule.product import Product, epilogue_row, finishing_tiles, outside, row_pointers
from smartmem.schedule.unit_band import pack_band, table
from smartmem.schedule.units import (
    MOST_FETCHED,
    SIDE,
    TILE,
    TOGETHER,
    a_floats,
    depth_tiles,
    k_blocks,
    pack_lines,
    unit_function,
)

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter


def pack_tiles(e: RowEmitter, stage: Stage) -> int:
    """Packs operand A of the block into tiles for matrix units, in scratch; where they begin, in floats."""
    p, w = e.pipeline, e.writer
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    tiling, form = p.tiling, p.target.form
    assert form is not None
    if p.unit_band is not None:
        return pack_band(e, p.unit_band, outside(p, walk, p.unit_band.channels), form)
    of_tile = a_floats(walk.depth, form)
    offset = p.reserve(tiling.group * of_tile)
    with w.block(""):
        row_pointers(e, stage, flat, walk, tiling.block)
        with w.loop("q", "h", "g"):
            w.line(f"const long i = {tiling.start('q')} - m0, height = {tiling.rows_of('q')};")
            with w.loop("y", "height"):
                w.line("const long r = i + y;")
                w.line(f"float *const to = s + {offset} + (q - g) * {of_tile} + y * {SIDE};")
                for line in pack_lines(walk, form, tiling.block, even_step(walk)):
                    w.line(line)
    return offset


def unit_loop(product: Product, form: UnitForm, a_tiles: int, streamed: bool) -> None:
    """All row tiles of the block with one panel, on matrix units."""
    e, finish = product.emitter, product.finish
    p, w, width, depth = e.pipeline, e.writer, product.width, product.walk.depth
    tiling, columns = p.tiling, product.flat.columns
    of_tile, steps, together = a_floats(depth, form), depth_tiles(depth, form), k_blocks(depth, form)
    blocked = together < steps
    first, final, count = ("kb == 0", f"kb + {together} >= {steps}", "steps") if blocked else ("1", "", str(steps))
    band = p.unit_band
    places = table(p.support, band.steps) if band is not None else ""
    # Each pair of row tiles asks for its part of what comes after the panel.
    panel = steps * form.tiles * product.vectors * TILE
    pairs = -(-tiling.group // TOGETHER)
    fetch = min(MOST_FETCHED, -(-panel // 16 // (pairs * steps))) if streamed else 0
    ahead = f"bp + {panel} + ((q - g) / {TOGETHER} * {steps}{' + kb' if blocked else ''}) * {16 * fetch}"
    with ExitStack() as opened:
        if blocked:
            opened.enter_context(w.loop("kb", steps, 0, together))
            w.line(f"const long steps = kb + {together} < {steps} ? {together} : {steps} - kb;")
        opened.enter_context(w.loop("q", "h", "g", TOGETHER))
        w.line(f"const long i = {tiling.start('q')} - m0, pair = q + 1 < h;")
        w.line(f"const long top = {tiling.rows_of('q')};")
        end = f"(q + {TOGETHER} < h ? {tiling.start(f'(q + {TOGETHER})')} - m0 : rows)"
        w.line(f"const long height = {end} - i;")
        held = f"c + (q - g) * {SIDE * width}" if blocked else "c"
        if band is not None:
            at = f"s + {a_tiles} + {band.place(tiling.start('q'))}"
            w.line(f"const float *const aq = {at}, *const ar = s + {a_tiles} + {band.place(tiling.start('(q + 1)'))};")
            w.line("(void)ar;")
        keeps = finish is None or blocked
        if keeps:
            w.line(f"float *const cq = {held};")

        def from_block(of_step: int) -> str:
            return f" + kb * {of_step}" if blocked else ""

        def call(ending: Ending | None, tiles: int, is_final: bool) -> str:
            vectors = ending.vectors if ending is not None else product.vectors
            apart = band.x.step * band.pitch if band is not None else 0
            name, text = unit_function(tiles, vectors, product.vectors, form, ending, is_final, fetch, apart)
            p.support[name] = text
            if band is not None:
                a = f"aq, {places}{from_block(1)}, ar - aq"
            else:
                a = f"s + {a_tiles} + (q - g) * {of_tile}{from_block(form.tiles * TILE)}, {of_tile}"
            b = f"bp{from_block(form.tiles * product.vectors * TILE)}"
            into = f"{'cq' if keeps else '(float *)0'}, {first}"
            if ending is not None:
                into += f", top, height, {ending.arguments(f'{columns} - n0')}"
            return f"{name}({a}, {b}, {count}, {ahead if fetch else b}, {into});"

        def calls(ending: Ending | None, is_final: bool = True) -> None:
            w.line(f"if (pair) {call(ending, TOGETHER, is_final)}")
            w.line(f"else {call(ending, 1, is_final)}")

        if blocked:
            with w.block(f"if (!({final}))"):
                calls(None, is_final=False)
                w.line("continue;")
        if finish is not None:
            finishing_tiles(w, Ending(finish, product.vectors), columns, p.target.lanes, calls)
            return
        calls(None)
        with w.loop("of", "height"):
            w.line(f"const long r = i + of, m = m0 + r, y = of < top ? of : of - top + {SIDE};")
            w.line("(void)m;")
            epilogue_row(e, product.stage, product.epilogue, product.flat, columns, width)
