"""Contractions on matrix units: operands in local memory, products of 16x8 blocks, float accumulators.

For devices whose compiler takes inline PTX (`Device.matrix_units`); every other device runs `contraction`. Blocks of
both operands are staged in a ring of `stages` parts of local memory, in the direction in which they lie in memory
(``[x][k]`` or ``[k][x]``). What needs no arithmetic is copied past the registers (``cp.async``), several blocks ahead;
the rest is loaded one block ahead, computed, rounded, and stored. Results go through local memory, so that the epilogue
stores four neighbours at a time.

Halves are multiplied as they are. The units take no floats. So each float is the sum of two halves, x = upper +
lower / 2^11, and a product is three: lower x upper + upper x lower + upper x upper; what is left out is 2^-22 of it
(Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022). The units also round their sums
towards zero, so that sums of a whole product would lose bits: the small products have a sum of their own, and that of
the large ones starts from zero in each step; ordinary additions add them up.

Halves have few exponents: nothing is beyond 65504, and below 2^-14 bits are lost, the more the smaller the value. A
tile whose sums are not finite, or in which no value of an operand is as large as 2^-14, is computed once more, `exact`:
from TF32 numbers, the upper 19 bits of a float, which have all of its exponents but take twice as long. Weights are
split when they are packed, and their range is known (`fits_halves`).

    fragments of ``mma.m16n8k16`` (halves): work-item (g, t) = (lane / 4, lane % 4) holds rows g and g + 8 of A, columns
    g of B, and k = 2t, 2t+1, 2t+8, 2t+9 of both; of ``mma.m16n8k8`` (TF32): the same rows and columns, k = t and t+4.
    As k is only summed over, halves made of floats take the k of two TF32 fragments: t, t+4, t+8, t+12

Large products go to warpgroups (`MatrixTile.warpgroups`, ``wgmma``): four warps share an instruction of 64 rows by all
columns of the tile, which takes its operands from local memory. Work-items hold the same results as with ``mma`` of 16
rows per warp, so what follows is the same code. Of floats, operand A comes from registers, where it becomes halves.

In: what `contraction` takes. Out: OpenCL C with PTX.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np

from smartmem.codegen.cl_expr import DeviceContext
from smartmem.codegen.writer import Writer
from smartmem.schedule.flatten import K, N
from smartmem.schedule.gpu.matrix_tile import FLOAT, HALF, WARP, Form, MatrixTile
from smartmem.schedule.gpu.product import Product, pack, to_half
from smartmem.schedule.gpu.ptx import PIECES
from smartmem.schedule.gpu.ring import PackedB, RingStager
from smartmem.schedule.gpu.tile import Staged

Array = np.ndarray[Any, Any]
POOL = "__local uint4 *pool"  # parameter: the ring, as large as the launch says

SMALLEST = 2.0**-14  # of halves with all of their bits
LARGEST = 65504.0
PAIRS = ((0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15))  # values of k that share a register
THREE_PRODUCTS = (("small", "a_lower", "b_"), ("part", "a", "b_"), ("small", "a", "b_lower"))  # sum, operands
ELEMENT = {"half": "ushort", "float": "float"}  # how values of a `Form.kind` are declared in local memory


def pack_matrix(product: Product, constants: Mapping[str, Array], form: Form) -> tuple[Array, bool]:
    """A constant operand B [batch][n][k], k zero-padded, as halves or floats; and whether these are `split`."""
    plain = pack(product, constants)[:, :, : product.extents[N]].transpose(0, 2, 1)
    values = to_half(plain) if form == HALF else plain
    unit = form.run if form == HALF else form.inner
    depth = -(-product.extents[K] // unit) * unit
    result = np.zeros((*plain.shape[:2], depth), values.dtype)
    result[:, :, : product.extents[K]] = values
    if form == HALF or not fits_halves(plain):
        return result, False
    return split(result), True


def fits_halves(values: Array) -> bool:
    """Whether floats [..., k] keep their bits as two halves: none is too large, and each k has a value large enough."""
    sizes = np.abs(values).max(-1, initial=0.0)
    return bool(np.all((sizes == 0) | (sizes >= SMALLEST) & (sizes <= LARGEST)))


def split(values: Array) -> Array:
    """Floats [..., k] as two halves each: of 16 of k, eight registers of upper halves, then eight of lower ones.

    The registers come as floats, which none of them is.
    """
    upper = values.astype(np.float16)
    lower = ((values - upper.astype(np.float32)) * np.float32(2048)).astype(np.float16)
    blocks = (*values.shape[:-1], values.shape[-1] // 16, 16)
    words = [half.reshape(blocks)[..., np.array(PAIRS)].copy().view(np.uint32)[..., 0] for half in (upper, lower)]
    return np.concatenate(words, -1).view(np.float32).reshape(values.shape)


def declare(w: Writer) -> None:
    """Local memory of a tile, in `POOL`: the ring of staged blocks, and in its place parts of the results C."""
    w.line("__local float *const C = (__local float *)pool;")


def accumulate(w: Writer, tile: MatrixTile, a: Staged, b: Staged | PackedB, context: DeviceContext, depth: int) -> None:
    """``sum`` = the product of the tile, over all of k: blocks of 16 x 8 of this work-item's warp."""
    left = RingStager(w, tile, a, "A", tile.rows, depth, context)
    right = RingStager(w, tile, b, "B", tile.columns, depth, context)
    rows, columns = tile.row_blocks, tile.column_blocks
    element = ELEMENT[tile.form.kind]
    w.line(f"__local {element} *const A = (__local {element} *)pool;")
    w.line(f"__local {element} *const B = A + {tile.stages * left.block_size};")
    w.line(f"const int warp = item / {WARP}, lane = item % {WARP}, g = lane / 4, t = lane % 4;")
    w.line(f"const int warp_m = warp / {tile.across} * {16 * rows}, warp_n = warp % {tile.across} * {8 * columns};")
    w.line(f"float sum[{rows}][{columns}][4];")
    if tile.form == HALF:
        _each_sum(w, tile, "sum[i][j]@ = 0.0f;")
        _ring(w, tile, left, right, depth)
        return
    halves = right.halves
    w.line(f"float small[{rows}][{columns}][4];")
    with w.block("for (int exact = 0;; exact = 1)") if halves else nullcontext():
        if halves:
            w.line("uint seen_a = 0, seen_b = 0;")
        _each_sum(w, tile, "sum[i][j]@ = small[i][j]@ = 0.0f;")
        if tile.warpgroups:
            with w.block("if (!exact)"):
                _ring(w, tile, left, right, depth)
            with w.block("else"):
                _ring(w, tile, left, right, depth, exact=True)
        else:
            _ring(w, tile, left, right, depth)
        # With an infinity the small products are of either sign, and say nothing.
        small = f"small[i][j]@{' * (exact ? 1.0f : 0x1p-11f)' if halves else ''}"
        _each_sum(w, tile, f"sum[i][j]@ += isinf(sum[i][j]@) ? 0.0f : {small};")
        if halves:
            _leave_unless_outside(w, tile, right.split)


def _leave_unless_outside(w: Writer, tile: MatrixTile, constant: bool) -> None:
    """Leaves the loop if the operands were within the range of halves, or the tile has been computed exactly."""
    w.line("if (exact) break;")
    w.line("uint odd = 0; /* its highest bit: a sum is not finite */")
    _each_sum(w, tile, "odd |= (as_uint(sum[i][j]@) & 0x7fffffffu) + 0x800000u;")
    w.line("int inside = !sm_any(odd >> 31);")
    for name in ("seen_a",) if constant else ("seen_a", "seen_b"):
        w.line(f"inside &= sm_any((({name} | {name} >> 16) & 0x7c00u) != 0);")
    w.line("if (inside) break;")


def put_part(w: Writer, tile: MatrixTile) -> None:
    """Puts block ``i`` of every warp into local memory: ``C[y][n]`` is row ``part_row(y)`` of the tile."""
    w.line("barrier(CLK_LOCAL_MEM_FENCE);")
    w.line("#pragma unroll")
    with w.loop("j", tile.column_blocks):
        stride = tile.part_stride
        row = f"(warp / {tile.across} * 16 + g)" if tile.down > 1 else "g"
        w.line(f"__local float *const c = C + {row} * {stride} + warp_n + 8 * j + 2 * t;")
        w.line("*(__local float2 *)c = (float2)(sum[i][j][0], sum[i][j][1]);")
        w.line(f"*(__local float2 *)(c + {8 * stride}) = (float2)(sum[i][j][2], sum[i][j][3]);")
    w.line("barrier(CLK_LOCAL_MEM_FENCE);")


def part_row(tile: MatrixTile, y: str) -> str:
    """The row of the tile that row `y` of part ``i`` is."""
    return f"{y} / 16 * {16 * tile.row_blocks} + 16 * i + {y} % 16" if tile.row_blocks > 1 else y


def _ring(w: Writer, tile: MatrixTile, left: RingStager, right: RingStager, depth: int, *, exact: bool = False) -> None:
    """All blocks of k: copies run `stages` - 1 blocks ahead, loads through registers one.

    Args:
        exact: with warpgroups, whether floats are taken as TF32 numbers. (Without, that is asked in each step.)
    """
    stages, block = tile.stages, tile.depth
    copying = [s for s in (left, right) if s.copies]
    loading = [s for s in (left, right) if not s.copies]
    ahead = max(1, stages - 1)
    for stager in loading:
        stager.declare()
    for number in range(ahead):
        for stager in copying if number * block < depth else ():
            stager.begin_copy(str(number * block), str(number))
        if copying:
            w.line("sm_copied();")
    for stager in loading:
        stager.load("0")
        stager.store_to("0")
    further = copying if depth > ahead * block else []
    shared = tile.warpgroups and not exact
    w.line("int stage = 0;")
    with w.loop("k0", depth, 0, block, reduces=True):
        if copying:
            w.line(f"sm_wait_copies({ahead - 1});")
        if shared:
            w.line("sm_publish();")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        if shared:
            _products_and_copies(w, tile, left, right, further, ahead * block)
        elif further:
            with w.block(f"if (k0 + {ahead * block} < {depth})"):
                _declare_last(w, stages)
                for stager in further:
                    stager.begin_copy(f"k0 + {ahead * block}", "last")
        if copying:
            w.line("sm_copied();")
        more = loading if depth > block else ()
        for stager in more:
            with w.block(f"if (k0 + {block} < {depth})"):
                stager.load(f"k0 + {block}")
        if shared:
            _finish_products(w, tile)
        else:
            _blocks(w, tile, left, right)
        w.line(f"stage = stage < {stages - 1} ? stage + 1 : 0;")
        for stager in more:
            with w.block(f"if (k0 + {block} < {depth})"):
                stager.store_to("stage")
    if shared and further:
        w.line("sm_wait_copies(0); /* of zeros behind the end of k */")


def _blocks(w: Writer, tile: MatrixTile, left: RingStager, right: RingStager) -> None:
    """All blocks of one step."""
    rows, columns, form = tile.row_blocks, tile.column_blocks, tile.form
    _declare_blocks(w, left, right)
    if form == HALF:
        w.line("#pragma unroll")
        with w.loop("step", tile.depth, 0, form.inner):
            w.line(f"uint a[{rows}][4], b_[{columns}][2];")
            w.line("#pragma unroll")
            with w.loop("i", rows):
                _left_fragment(w, left, "a[i]", "step")
            _right_fragments(w, tile, right, "b_", "step")
            _each_block(w, tile, "sm_multiply(sum[i][j], a[i], b_[j]);")
        return
    w.line(f"float part[{rows}][{columns}][4];")
    _each_sum(w, tile, "part[i][j]@ = 0.0f;")
    if tile.warpgroups:
        _few_floats(w, tile, left, right)
    else:
        if right.halves:
            with w.block("if (!exact)"):
                _blocks_of_halves(w, tile, left, right)
        with w.block("else") if right.halves else nullcontext():
            _blocks_of_floats(w, tile, left, right)
    _each_sum(w, tile, "sum[i][j]@ += part[i][j]@;")


def _declare_last(w: Writer, stages: int) -> None:
    """``last``: the part of the ring that was read in the step before, which is filled next."""
    w.line(f"const int last = stage > 0 ? stage - 1 : {stages - 1};")


def _declare_blocks(w: Writer, left: RingStager, right: RingStager) -> None:
    """``a0``, ``b0``: where the blocks of this step are."""
    for stager, block in ((left, "a"), (right, "b")):
        start = f"{stager.name} + stage * {stager.block_size}"
        w.line(f"const __local {ELEMENT[stager.form.kind]} *const {block}0 = {start};")


def _blocks_of_halves(w: Writer, tile: MatrixTile, left: RingStager, right: RingStager) -> None:
    """All blocks of one step, of floats that are two halves each."""
    rows, columns = tile.row_blocks, tile.column_blocks
    w.line("#pragma unroll")
    with w.loop("step", tile.depth, 0, tile.form.inner):
        w.line(f"uint a[{rows}][4], a_lower[{rows}][4], b_[{columns}][2], b_lower[{columns}][2];")
        w.line("#pragma unroll")
        with w.loop("i", rows):
            _left_halves(w, left, "i", "step")
        if right.split:
            _right_fragments(w, tile, right, "b_", "step")
            _right_fragments(w, tile, right, "b_lower", "step + 8")
        else:
            w.line(f"uint raw[2][{columns}][2];")
            for part in range(2):
                _right_fragments(w, tile, right, f"raw[{part}]", f"step + {8 * part}")
            w.line("#pragma unroll")
            with w.loop("j", columns):
                for part in range(2):
                    to = f"[j][{part}]"
                    w.line(f"sm_to_halves(&b_{to}, &b_lower{to}, raw[{part}][j][0], raw[{part}][j][1]);")
                w.line("seen_b |= b_[j][0] | b_[j][1];")
        _three_products(w, tile, "sm_multiply")


def _products_and_copies(
    w: Writer, tile: MatrixTile, left: RingStager, right: RingStager, copying: list[RingStager], ahead: int
) -> None:
    """All products of one step by warpgroups, under way: nothing may be done with their sums before they are finished.

    A warp waits to begin a product until the one before is nearly done. So the copies of a later block are begun in
    turns between them, without a branch.
    """
    _declare_last(w, tile.stages)
    _declare_blocks(w, left, right)
    w.line("const ulong y = sm_rows(b0);")
    products = list(_halves(w, tile, left) if tile.form == HALF else _floats(w, tile, left, right))
    for turn, product in enumerate(products):
        w.line(product)
        if turn == len(products) - 1:
            w.line("sm_commit();")
        for stager in copying:
            stager.begin_copy(f"k0 + {ahead}", "last", turn, len(products), ends=True)


def _halves(w: Writer, tile: MatrixTile, left: RingStager) -> Iterator[str]:
    """The products of one step, of halves."""
    w.line(f"const ulong x = sm_rows(a0 + warp / 4 * {64 * left.stride});")
    for step in range(tile.depth // tile.form.inner):
        yield f"sm_product_{tile.columns}(&sum[0][0][0], x + {step * PIECES}, y + {step * PIECES});"


def _floats(w: Writer, tile: MatrixTile, left: RingStager, right: RingStager) -> Iterator[str]:
    """The same of floats, which become two halves each: operand A in registers, weights as they were packed."""
    assert right.split
    inner = tile.form.inner
    steps = range(tile.depth // inner)
    w.line(f"float part[1][{tile.column_blocks}][4];")
    w.line(f"uint a[{len(steps)}][4], a_lower[{len(steps)}][4];")
    for step in steps:
        with w.block(""):
            w.line("const int i = 0;")
            _left_halves(w, left, str(step), str(step * inner))
    for step in steps:
        for to, x, y in THREE_PRODUCTS:
            first = "first_" if to == "part" and step == 0 else ""
            place = (2 * step + (y == "b_lower")) * PIECES  # in a row of B, where lower halves lie behind upper ones
            yield f"sm_{first}product_of_{tile.columns}(&{to}[0][0][0], {x}[{step}], y + {place});"


def _finish_products(w: Writer, tile: MatrixTile) -> None:
    """Waits for the products of the step."""
    if tile.form == HALF:
        w.line(f"sm_finish_{tile.columns}(&sum[0][0][0]);")
        return
    w.line(f"sm_finish_of_{tile.columns}(&part[0][0][0]);")
    w.line(f"sm_finish_of_{tile.columns}(&small[0][0][0]);")
    _each_sum(w, tile, "sum[i][j]@ += part[i][j]@;")


def _blocks_of_floats(w: Writer, tile: MatrixTile, left: RingStager, right: RingStager) -> None:
    """All blocks of one step, of floats that are two TF32 numbers each."""
    rows, columns = tile.row_blocks, tile.column_blocks
    w.line("#pragma unroll")
    with w.loop("step", tile.depth, 0, tile.form.inner):
        if right.split:
            w.line(f"uint upper[{columns}][2], lower[{columns}][2];")
            _right_fragments(w, tile, right, "upper", "step")
            _right_fragments(w, tile, right, "lower", "step + 8")
        w.line("#pragma unroll")
        with w.loop("part_", 2):
            w.line(f"uint a[{rows}][4], a_lower[{rows}][4], b_[{columns}][2], b_lower[{columns}][2];")
            w.line("#pragma unroll")
            with w.loop("i", rows):
                _left_fragment(w, left, "a[i]", "step + 8 * part_")
                for r in range(4):
                    w.line(f"sm_split(&a[i][{r}], &a_lower[i][{r}]);")
            if not right.split:
                _right_fragments(w, tile, right, "b_", "step + 8 * part_")
            w.line("#pragma unroll")
            with w.loop("j", columns):
                if right.split:
                    w.line("sm_from_halves(&b_[j][0], &b_[j][1], upper[j][part_], lower[j][part_]);")
                for r in range(2):
                    w.line(f"sm_split(&b_[j][{r}], &b_lower[j][{r}]);")
            _three_products(w, tile, "sm_multiply_upper")


def _few_floats(w: Writer, tile: MatrixTile, left: RingStager, right: RingStager) -> None:
    """The same in few registers, one block of columns at a time: what is seldom used must not cost what always is."""
    w.line("#pragma unroll 1")
    with w.loop("step", tile.depth, 0, tile.form.inner):
        w.line("uint a[2][4], a_lower[2][4];")
        for part in range(2):
            with w.block(""):
                w.line("const int i = 0;")
                _left_fragment(w, left, f"a[{part}]", f"step + {8 * part}")
        w.line("#pragma unroll")
        with w.loop("part_", 2):
            for r in range(4):
                w.line(f"sm_split(&a[part_][{r}], &a_lower[part_][{r}]);")
        w.line("#pragma unroll")
        with w.loop("j", tile.column_blocks):
            w.line("uint upper[2], lower[2];")
            for name, at in (("upper", "step"), ("lower", "step + 8")):
                row, k = "8 * j + lane % 8", right.piece(f"{at} + lane / 8 % 2 * {tile.form.run}", "lane")
                w.line(f"sm_blocks_2({name}, b0 + ({row}) * {right.stride} + {k});")
            w.line("#pragma unroll")
            with w.loop("part_", 2):
                w.line("uint b_[2], b_lower[2];")
                w.line("sm_from_halves(&b_[0], &b_[1], upper[part_], lower[part_]);")
                w.line("sm_split(&b_[0], &b_lower[0]), sm_split(&b_[1], &b_lower[1]);")
                for to, x, y in THREE_PRODUCTS:
                    w.line(f"sm_multiply_upper({to}[0][j], {x}[part_], {y});")


def _three_products(w: Writer, tile: MatrixTile, multiply: str) -> None:
    """All of one kind first, so that an instruction does not wait for the one before."""
    for to, x, y in THREE_PRODUCTS:
        _each_block(w, tile, f"{multiply}({to}[i][j], {x}[i], {y}[j]);")


def _left_halves(w: Writer, left: RingStager, at: str, step: str) -> None:
    """``a[at]``, ``a_lower[at]`` = a block of halves of rows ``i``, made of floats."""
    w.line("uint raw[2][4];")
    for part in range(2):
        _left_fragment(w, left, f"raw[{part}]", f"{step} + {8 * part}")
    for part, r in ((0, 0), (0, 1), (1, 0), (1, 1)):
        to = f"[{at}][{2 * part + r}]"
        w.line(f"sm_to_halves(&a{to}, &a_lower{to}, raw[{part}][{r}], raw[{part}][{r + 2}]);")
    w.line("seen_a |= " + " | ".join(f"a[{at}][{r}]" for r in range(4)) + ";")


def _left_fragment(w: Writer, left: RingStager, to: str, step: str) -> None:
    """`to` = one instruction's block of rows ``i``."""
    stride, run = left.stride, left.form.run
    if left.k_inner:
        w.line(f"sm_blocks({to}, a0 + (warp_m + 16 * i + lane % 16) * {stride} + {step} + lane / 16 * {run});")
    elif left.form == HALF:
        where = f"({step} + lane / 16 * 8 + lane % 8) * {stride} + warp_m + 16 * i + lane / 8 % 2 * 8"
        w.line(f"sm_blocks_t({to}, a0 + {where});")
    else:
        with w.block(""):
            w.line(f"const __local float *const from = a0 + ({step} + t) * {stride} + warp_m + 16 * i + g;")
            for r in range(4):
                w.line(f"({to})[{r}] = as_uint(from[{r // 2 * 4 * stride + r % 2 * 8}]);")


def _right_fragments(w: Writer, tile: MatrixTile, right: RingStager, to: str, step: str) -> None:
    """`to`[j] = one instruction's blocks of all columns."""
    stride, run, columns = right.stride, tile.form.run, tile.column_blocks
    if not right.k_inner and tile.form == FLOAT:
        w.line("#pragma unroll")
        with w.loop("j", columns):
            w.line(f"const __local float *const from = b0 + ({step} + t) * {stride} + warp_n + 8 * j + g;")
            w.line(f"{to}[j][0] = as_uint(from[0]), {to}[j][1] = as_uint(from[{4 * stride}]);")
        return
    name = f"sm_blocks{'' if right.k_inner else '_t'}"
    at_k, at_n = f"{step} + lane / 8 % 2 * {run}", "warp_n + 8 * j"
    if right.k_inner:
        pair = f"({at_n} + lane / 16 * 8 + lane % 8) * {stride} + {at_k}"
        single = f"({at_n} + lane % 8) * {stride} + {at_k}"
    else:
        pair = f"({at_k} + lane % 8) * {stride} + {at_n} + lane / 16 * 8"
        single = f"({at_k} + lane % 8) * {stride} + {at_n}"
    if columns > 1:
        w.line("#pragma unroll")
        with w.loop("j", columns - columns % 2, 0, 2):
            w.line(f"{name}({to}[j], b0 + {pair});")
    if columns % 2:
        with w.block(""):
            w.line(f"const int j = {columns - 1};")
            w.line(f"{name}_2({to}[j], b0 + {single});")


def _each_block(w: Writer, tile: MatrixTile, *lines: str) -> None:
    """What is done with the accumulators of every block [i][j]."""
    w.line("#pragma unroll")
    with w.loop("i", tile.row_blocks):
        w.line("#pragma unroll")
        with w.loop("j", tile.column_blocks):
            for line in lines:
                w.line(line)


def _each_sum(w: Writer, tile: MatrixTile, text: str) -> None:
    """What is done with every accumulator ``[i][j]@``."""
    _each_block(w, tile, *(text.replace("@", f"[{e}]") for e in range(4)))
