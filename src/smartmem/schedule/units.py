"""Contractions on a CPU's matrix units (x86 AMX): 16 x 16 sums, each of 32 or 64 products, in one instruction.

    A (rows of the block, as row pointers find them)  ->  scratch: [row tile][steps][part] tiles of 16 rows
    B (constant)                                      ->  weights: [panel][steps][part][16 columns] tiles
    row tiles x panel                                  =  up to 2 x 2 tiles of sums, then memory, then the epilogue

The units multiply bytes and add integers: what is quantized becomes the same as without them. Or they multiply bfloat16
and add floats, where that is allowed (`Target.parts`): with one part per operand a float is rounded to bfloat16; with
two it is the nearest bfloat16 and the nearest one to what is left, and a product is three: 16 of its 24 bits count.

In: what `contraction` knows of a product. Out: the parts of its C text that differ from register tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ml_dtypes import bfloat16

from smartmem.schedule.finish import Ending

if TYPE_CHECKING:
    from smartmem.schedule.code import UnitForm
    from smartmem.schedule.operand_a import Walk

Array = np.ndarray[Any, Any]

SIDE = 16  # rows and columns of a tile of sums
TILE = 256  # floats that a tile takes
TOGETHER = 2  # row tiles that one call takes, so that each tile of B is used twice
FEWEST = (8, 16, 1)  # rows, columns and tiles along k that are worth it
ATTENDING = 64  # rows that are worth packing both operands in each call, where two products follow each other
MOST_FETCHED = 16  # cache lines for each step: a tile of A or B is as many
IN_TURN = 8  # vectors of sums that go through an epilogue together
K_TILES = 24  # along k, that A's tiles and B's panel share L1 for


def depth_tiles(depth: int, form: UnitForm) -> int:
    """Tiles along k."""
    return -(-depth // form.steps)


def a_floats(depth: int, form: UnitForm) -> int:
    """Floats of scratch that the operand A of a row tile takes."""
    return depth_tiles(depth, form) * form.tiles * TILE


def b_floats(depth: int, width: int, form: UnitForm) -> int:
    """Floats that a panel of operand B takes."""
    return depth_tiles(depth, form) * form.tiles * width // SIDE * TILE


def k_blocks(depth: int, form: UnitForm) -> int:
    """Tiles along k that go together."""
    tiles, most = depth_tiles(depth, form), K_TILES // form.tiles
    return tiles if tiles <= most * 4 // 3 else -(-tiles // -(-tiles // most))


def b_tiles(panels: Array, form: UnitForm) -> Array:
    """Panels [..., k, columns] of floats as tiles [..., steps, part, columns/16, 16, 16], each of so many floats."""
    *lead, depth, width = panels.shape
    steps = depth_tiles(depth, form)
    padded = np.zeros((*lead, steps * form.steps, width), np.float32)
    padded[..., :depth, :] = panels
    if not form.parts:
        tiles = padded.reshape(*lead, steps, 1, SIDE, width // SIDE, SIDE)
        return np.ascontiguousarray(np.swapaxes(tiles, -3, -2))
    pairs = padded.reshape(*lead, steps, SIDE, 2, width // SIDE, SIDE)
    rest = np.moveaxis(pairs, (-4, -3, -2, -1), (-3, -1, -4, -2))  # steps, columns/16, k%32/2, columns%16, k%2
    found = []
    for _ in range(form.parts):
        nearest = rest.astype(bfloat16)
        found.append(nearest)
        rest = rest - nearest.astype(np.float32)
    stacked = np.stack(found, axis=len(lead) + 1)
    return np.ascontiguousarray(stacked).view(np.float32)[..., 0]


def pack_lines(walk: Walk, form: UnitForm, table: int, step: int | None) -> list[str]:
    """C text that packs row r of A, which row pointers a find, into the row `to` of tiles."""
    run, depth, parts = walk.run, walk.depth, form.parts
    of_segment = f"a[q_of * {table} + r]" if step is None else f"a[r] + q_of * {step}"
    each = f"for (long q_of = 0; q_of < {walk.count}; ++q_of)"
    if walk.count == 1:
        lines = [f"sm_store_run(to, 0, a[r], {run}, {parts}, {TILE});"]
    elif run % SIDE == 0:
        lines = [each, f"    sm_store_run(to, q_of * {run}, {of_segment}, {run}, {parts}, {TILE});"]
    else:
        lines = [f"float side_by_side[{depth}];"]
        lines += [each, f"    sm_copy(side_by_side + q_of * {run}, {of_segment}, {run});"]
        lines += [f"sm_store_run(to, 0, side_by_side, {depth}, {parts}, {TILE});"]
    whole = -(-depth // SIDE) * SIDE
    if whole % form.steps:
        lines += [f"sm_store_parts(to, {whole}, sm_splat(0.0f), {parts}, {TILE});"]
    return lines


def unit_function(
    count: int, vectors: int, panel: int, form: UnitForm, ending: Ending | None, final: bool, fetch: int, apart: int
) -> tuple[str, str]:
    """Name and text of the function for `count` row tiles and `vectors` vectors of columns of a panel of so many.

    Tiles of A lie one after the other, or, where their rows are `apart`, so many floats, in a band (see `unit_band`): a
    table says where each tile along k begins then.

    It goes on with the sums in `c`, [row tile][16][panel], unless they are the `first`; there it leaves them, as floats
    if they are `final`, or they go through an `ending`: then there are `top` rows in the first tile and `rows` in all.
    In each step it fetches `fetch` cache lines of what comes `next`.
    """
    kind = f"bf16x{form.parts}" if form.parts else "bytes"
    name, into, width = f"sm_units_{kind}_{count}x{vectors}of{panel}", "float *c, int first", panel * SIDE
    name += f"_p{fetch}" if fetch else ""
    name += f"_of{apart}" if apart else ""
    places = [(i, j) for i in range(count) for j in range(vectors)]
    sums = [f"c + {i * SIDE * width + j * SIDE}, {4 * width}" for i, j in places]
    zeros = " ".join(f"_tile_zero({k});" for k in range(len(places)))
    begun = " ".join(f"_tile_loadd({k}, {at});" for k, at in enumerate(sums))
    end = [f"_tile_stored({k}, {at});" for k, at in enumerate(sums)]
    if ending is not None:
        name, into = name + ending.suffix, f"{into}, int top, int rows, {ending.parameters}"
        end = [f"float t[{count * SIDE * width}] __attribute__((aligned(64)));"]
        for k, (i, j) in enumerate(places):
            end.append(f"_tile_stored({k}, t + {'top * ' if i else '0 * '}{width} + {j * SIDE}, {4 * width});")
        held = f"sm_load{'' if form.parts else '_sum'}(t + i * {width} + j * SM_W)"
        end += ["(void)top;", *ending.text("rows", held, IN_TURN).splitlines()]
    elif final and not form.parts:
        name += "_final"
        end += [f"for (long k = 0; k < {count * SIDE * width}; k += SM_W) sm_store(c + k, sm_load_sum(c + k));"]
    steps = _step_lines(count, vectors, panel, form, apart)
    if fetch:
        ahead = [f"__builtin_prefetch(next + {16 * line}, 0, 2);" for line in range(fetch)]
        steps = [*ahead, f"next += {16 * fetch};", *steps]
    body = "\n".join(f"        {line}" for line in steps)
    finish = "\n".join(line if line.startswith("#") else f"    {line}" for line in end)
    of_a = "const float *a0, const int *at, long skip" if apart else "const float *a, long skip"
    step = "" if apart else f"a += {form.tiles * TILE}, "
    moved = "        const float *const a = a0 + at[k];\n" if apart else ""
    text = f"""\
/* Sums of {count} x {vectors} tiles over `steps` tiles of k; tiles of A lie `skip` floats apart. */
static __attribute__((noinline)) void {name}({of_a}, const float *b, long steps,
                                             const float *next, {into}) {{
    if (first) {{
        {zeros}
    }} else {{
        {begun}
    }}
    (void)skip, (void)next;
    for (long k = 0; k < steps; ++k, {step}b += {form.tiles * panel * TILE}) {{
{moved}{body}
    }}
{finish}
}}
"""
    return name, text


def _step_lines(count: int, vectors: int, panel: int, form: UnitForm, apart: int) -> list[str]:
    """One step along k: small products first, each operand's tiles loaded as seldom as possible."""
    part, row = (SIDE, apart) if apart else (TILE, SIDE)
    multiply = "_tile_dpbf16ps" if form.parts else "_tile_dpbusd"
    lines: list[str] = []
    held_a = held_b = -1
    for of_a, of_b in _products(form.tiles):
        load_a, load_b = of_a != held_a, of_b != held_b
        held_a, held_b = of_a, of_b
        for i in range(count):
            if load_a:
                lines.append(f"_tile_loadd({4 + i}, a + {'skip + ' if i else ''}{of_a * part}, {4 * row});")
            for j in range(vectors):
                if load_b and i == 0:
                    lines.append(f"_tile_loadd({6 + j}, b + {(of_b * panel + j) * TILE}, 64);")
                lines.append(f"{multiply}({i * vectors + j}, {4 + i}, {6 + j});")
    return lines


def _products(tiles: int) -> list[tuple[int, int]]:
    """Which part of A meets which of B; neighbours share one."""
    return {1: [(0, 0)], 2: [(1, 0), (0, 0), (0, 1)]}[tiles]
