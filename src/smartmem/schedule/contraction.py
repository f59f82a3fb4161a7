"""Contractions in register tiles: ``C[m, n] = sum over k of A[m, k] * B[k, n]`` inside a row pipeline.

For each panel of B and each block of k, all row tiles of the block in turn; the pointwise epilogue follows a tile's
last block of k, in the tile's registers where it can (`finish`). The tile functions are shared by the kernels of a
file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from smartmem.codegen.writer import Writer
from smartmem.kernel.stage import Stage
from smartmem.schedule.finish import Ending
from smartmem.schedule.operand_a import Walk
from smartmem.schedule.operand_b import held_of
from smartmem.schedule.product import (
    KBlocks,
    Product,
    b_pointer,
    epilogue_row,
    finishing_tiles,
    product_of,
    row_pointers,
)
from smartmem.schedule.roles import multiplies_bytes
from smartmem.schedule.tile_functions import FEW, ROWS_ACROSS, grouped_tile_function, tile_function
from smartmem.schedule.tiling import Tiling
from smartmem.schedule.unit_loop import pack_tiles, unit_loop
from smartmem.schedule.units import SIDE, TOGETHER, depth_tiles, k_blocks

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter


def emit_contraction(e: RowEmitter, stage: Stage, epilogue: list[Stage]) -> None:
    """Row pointers, then panels x blocks of k x row tiles; the epilogue follows each tile's last block."""
    p, w, product = e.pipeline, e.writer, product_of(e, stage, epilogue)
    tiling, width, columns = p.tiling, product.width, product.flat.columns
    with w.block(""), ExitStack() as opened:
        form, a_tiles = p.target.form, 0
        if form is not None:
            a_tiles = e.tiles_at[stage.name] if stage.name in e.tiles_at else pack_tiles(e, stage)
        elif product.across is not None:
            w.line(f"const float *const a = s + {product.across.offset};")
        else:
            row_pointers(e, stage, product.flat, product.walk, tiling.block)
        if p.shared_step is not None:
            opened.enter_context(w.loop("b", "b1", "b0"))
        source, stride, streamed = b_pointer(e, stage, product.flat, product.walk, width)
        held = held_of(p, stage, product.walk)
        start, end = held.column, held.columns_end or str(columns)
        if (epilogue or [stage])[-1] is p.stages[-1] and e.task.column_chunks > 1:
            start, end = "c0", f"(c0 + {e.task.span} < {columns} ? c0 + {e.task.span} : {columns})"
        tiles = min(tiling.group, tiling.count // e.task.row_chunks)  # that fetch the next panel
        prefetch = -(-4 * product.vectors // tiles) if streamed and p.target.tuned else 0
        if p.height * product.vectors <= FEW:  # it does nothing but read B in order, which processors foresee
            prefetch = 0
        for number, place in enumerate(product.finish.tables if product.finish is not None else ()):
            w.line(f"long *const rows{number} = (long *)(s + {p.reserve(2 * tiling.block)});")
            with w.loop("r", "rows"):
                w.line("const long m = m0 + r;")
                w.line(f"rows{number}[r] = {place};")
        if form is not None:
            if k_blocks(product.walk.depth, form) < depth_tiles(product.walk.depth, form):
                w.line(f"float *const c = s + {p.reserve(tiling.group * SIDE * width)};")
            elif product.finish is None:
                w.line(f"float *const c = s + {p.reserve(TOGETHER * SIDE * width)};")
        elif product.direct is None and (product.finish is None or product.blocks.count > 1):
            kept = tiling.block if product.blocks.count > 1 else tiling.rows
            w.line(f"float *const c = s + {p.reserve(kept * width)};")
        with w.loop("n0", end, start, width):
            w.line(f"const float *const bp = {source};")
            if form is not None:
                unit_loop(product, form, a_tiles, streamed)
            elif product.blocks.count == 1:
                _tile_loop(product, stride, prefetch)
            else:
                with w.loop("kb", product.blocks.count):
                    _tile_loop(product, stride, prefetch)


@dataclass(frozen=True)
class _Block:
    """C expressions of the block of k that tiles are at.

    Attributes:
        at: its first segment.
        b: where its first step of B lies.
        stride: between steps of B.
        segments: how many it has, each from step `first_k` to `last_k`.
        first: whether its sums are the tile's first.
        final: the test for the last block, "" where there is but one.
    """

    at: str
    b: str
    stride: int
    segments: str
    first_k: str = "0"
    last_k: str = "0"
    first: str = "1"
    final: str = ""

    @property
    def behind(self) -> str:
        """Where B goes on after this block."""
        return f"{self.b} + ({self.segments}) * ({self.last_k} - {self.first_k}) * {self.stride}"


def _block(w: Writer, walk: Walk, blocks: KBlocks, stride: int) -> _Block:
    """Block kb of the reduction, its bounds written as C variables."""
    whole = _Block("0", "bp", stride, str(walk.count), last_k=str(walk.run))
    if blocks.count == 1:
        return whole
    whole = replace(whole, first="kb == 0", final=f"if (kb == {blocks.count - 1})")
    if blocks.parts == 1:
        w.line(f"const long q_from = kb * {blocks.segments};")
        rest = f"{walk.count} - q_from"
        w.line(f"const long taps = {rest} < {blocks.segments} ? {rest} : {blocks.segments};")
        return replace(whole, segments="taps", at="q_from", b=f"bp + q_from * {walk.run * stride}")
    at = "0" if walk.count == 1 else f"kb / {blocks.parts}"
    part = "kb" if walk.count == 1 else f"kb % {blocks.parts}"
    w.line(f"const long k_from = {part} * {blocks.length};")
    w.line(f"const long k_to = k_from + {blocks.length} < {walk.run} ? k_from + {blocks.length} : {walk.run};")
    b = f"bp + ({at} * {walk.run} + k_from) * {stride}" if walk.count > 1 else f"bp + k_from * {stride}"
    return replace(whole, at=at, b=b, segments="1", first_k="k_from", last_k="k_to")


def _tile_loop(product: Product, stride: int, prefetch: int) -> None:
    """All row tiles of the block with one panel and one block of k."""
    e, blocks, finish, direct = product.emitter, product.blocks, product.finish, product.direct
    p, w, width = e.pipeline, e.writer, product.width
    tiling, columns = p.tiling, product.flat.columns
    block = _block(w, product.walk, blocks, stride)
    with w.loop("q", "h", "g"):
        w.line(f"const long i = {tiling.start('q')} - m0;")
        if direct is not None:
            held = f"s + {direct.offset} + i * {direct.width} + n0"
        else:
            held = f"c + i * {width}" if blocks.count > 1 else "c"
        if finish is None or block.final:
            w.line(f"float *const cq = {held};")
        call = partial(_tile_call, product, block, prefetch)
        if finish is not None:
            with ExitStack() as last_block:
                if block.final:
                    last_block.enter_context(w.block(block.final))
                whole = Ending(finish, product.vectors, product.vectors if blocks.count > 1 else 0)
                finishing_tiles(
                    w, whole, columns, p.target.lanes, lambda ending: call_tile(w, tiling, partial(call, ending))
                )
            if block.final:
                with w.block("else"):
                    call_tile(w, tiling, partial(call, None))
            return
        call_tile(w, tiling, partial(call, None))
        if direct is not None:
            return
        w.line(f"const long height = {tiling.rows_of('q')};")
        with w.block(block.final), w.loop("y", "height"):
            w.line("const long r = i + y, m = m0 + r;")
            w.line("(void)m;")
            epilogue_row(e, product.stage, product.epilogue, product.flat, columns, width)


def _tile_call(product: Product, block: _Block, prefetch: int, ending: Ending | None, rows: int) -> str:
    """The call of a tile of so many rows, with its epilogue in registers if `ending` says so."""
    p, step, table = product.emitter.pipeline, product.step, product.emitter.pipeline.tiling.block
    moved = [f"b * {p.shared_step}"] if p.shared_step is not None else []
    a = "a + i"
    if block.at != "0" and step is not None:
        moved.append(f"{block.at} * {step}")
    elif block.at != "0":
        a = f"a + {block.at} * {table} + i"
    kind = "tile" if step is None else "even"
    table_of = f"{a}, {block.segments}, {table if step is None else step}, {' + '.join(moved) or '0'}"
    if product.across is not None:
        kind, table_of = "across", f"a + i, {ROWS_ACROSS}"
    if p.group_size:
        name, text = grouped_tile_function(rows, p.group_size, p.target.lanes)
        arguments = f"{table_of}, {block.b}, cq"
    else:
        vectors = ending.vectors if ending is not None else product.vectors
        name, text = tile_function(rows, vectors, prefetch, kind, ending, multiplies_bytes(product.stage))
        # Each row tile of the block asks for its part of what comes after the block.
        part = -(-product.blocks.length * product.blocks.segments // 4) * prefetch * 16
        ahead = f"{block.behind} + (q - g) * {part}" if prefetch else "bp"
        if ending is not None:
            into = ending.arguments(f"{product.flat.columns} - n0")
        else:
            into = f"cq, {product.width if product.direct is None else product.direct.width}, {block.first}"
        steps = f"{block.first_k}, {block.last_k}, {block.b}, {block.stride}"
        arguments = f"{table_of}, {steps}, {ahead}, {into}"
    p.support[name] = text
    return f"{name}({arguments});"


def call_tile(w: Writer, tiling: Tiling, call: Callable[[int], str]) -> None:
    """The call for row tile q, given the one for a number of rows."""
    if tiling.tall == tiling.count:
        w.line(call(tiling.rows))
    else:
        w.line(f"if (q < {tiling.tall}) {call(tiling.rows)}")
        w.line(f"else {call(tiling.rows - 1)}")
