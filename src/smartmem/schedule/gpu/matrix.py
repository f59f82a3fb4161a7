"""Contractions on matrix units: half operands in local memory, products of 16x8x16 blocks, float accumulators.

For devices whose compiler takes inline PTX (`Device.matrix_units`) and half storage; every other device runs
`contraction`. Blocks of both operands are staged in a ring of `stages` parts of local memory, in the direction in which
they lie in memory (``[x][k]`` or ``[k][x]``); ``ldmatrix`` reads fragments of either. What is stored as halves and
needs no arithmetic is copied past the registers (``cp.async``), several blocks ahead; the rest is loaded one block
ahead, computed, rounded, and stored. Results go through local memory, so that the epilogue stores four neighbours at a
time.

    fragments of ``mma.m16n8k16``: work-item (g, t) = (lane / 4, lane % 4) holds rows g and g + 8 of A, columns g of B,
    and k = 2t, 2t+1, 2t+8, 2t+9 of both

In: what `contraction` takes. Out: OpenCL C with PTX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import Lane, lane_free
from smartmem.codegen.cl_expr import DeviceContext, cl_guards
from smartmem.codegen.cl_memory import Bounds, LinearBuffer, checked
from smartmem.codegen.writer import Writer
from smartmem.index.map import Guard
from smartmem.kernel.expr import Choose, Const, Load
from smartmem.kernel.stage import looked_up
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import K, N
from smartmem.schedule.gpu.matrix_tile import PAD, WARP, MatrixTile
from smartmem.schedule.gpu.product import Product, pack, to_half
from smartmem.schedule.gpu.tile import Staged, Stager

Array = np.ndarray[Any, Any]
RUN = 8  # halves of one 16-byte load
POOL = "__local uint4 *pool"  # parameter: the ring, as large as the launch says

PTX = """
inline void sm_multiply(float *c, const uint *a, const uint *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/* Four (two) blocks of 8x8 halves; each work-item names the start of one row. _t: the blocks transposed. */
#define SM_BLOCKS(name, form) \
    inline void name(uint *r, const __local ushort *row) { \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" form ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((uint)(size_t)row) : "memory"); \
    } \
    inline void name##_2(uint *r, const __local ushort *row) { \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" form ".shared.b16 {%0, %1}, [%2];" \
                     : "=r"(r[0]), "=r"(r[1]) : "r"((uint)(size_t)row) : "memory"); \
    }
SM_BLOCKS(sm_blocks, "")
SM_BLOCKS(sm_blocks_t, ".trans")
/* Copies 8 (4) halves without waiting, or zeros where `inside` is 0. */
inline void sm_copy_8(__local ushort *to, const __global half *from, int inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"((uint)(size_t)to), "l"((ulong)from), "r"(inside ? 16 : 0) : "memory");
}
inline void sm_copy_4(__local ushort *to, const __global half *from, int inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :: "r"((uint)(size_t)to), "l"((ulong)from), "r"(inside ? 8 : 0) : "memory");
}
#define sm_copied() asm volatile("cp.async.commit_group;" ::: "memory")
#define sm_wait_copies(n) asm volatile("cp.async.wait_group " #n ";" ::: "memory")
"""


def pack_matrix(product: Product, constants: Mapping[str, Array]) -> Array:
    """A constant operand B as halves [batch][n][k], k zero-padded to `RUN`."""
    plain = pack(product, constants)[:, :, : product.extents[N]]
    depth = -(-product.extents[K] // RUN) * RUN
    result = np.zeros((plain.shape[0], product.extents[N], depth), np.float16)
    result[:, :, : product.extents[K]] = to_half(plain.transpose(0, 2, 1))
    return result


@dataclass(frozen=True)
class PackedB:
    """Packed weights behind a pointer: a load of `RUN` halves along k."""

    pointer: str
    batches: int
    columns: int
    depth: int
    bounds: Bounds | None = None


class HalfStager(Stager):
    """Halves in a ring of blocks: ``[x][k]`` where the operand lies along k, else ``[k][x]``.

    Attributes:
        copies: whether blocks are copied without passing the registers.
        stride: halves from one row of a block to the next; block_size: of a block.
    """

    def __init__(
        self, w: Writer, tile: MatrixTile, operand: Staged | PackedB, name: str, size: int, depth: int,
        context: DeviceContext,
    ) -> None:  # fmt: skip
        self.operand = operand
        self.copied = None if isinstance(operand, PackedB) else _copied(operand, tile.depth, size, context)
        self.copies = isinstance(operand, PackedB) or self.copied is not None
        self.k_inner = isinstance(operand, PackedB) or (operand.along or operand.fast) == K
        self.stride = (tile.depth if self.k_inner else size) + PAD
        self.block_size = self.stride * (size if self.k_inner else tile.depth)
        if isinstance(operand, PackedB):
            step, kind = RUN, ""
        elif self.copied is not None:
            step, kind = self.copied.lane.width, ""
        else:
            step, kind = (LANES, "float4") if operand.along is not None else (1, "float")
        super().__init__(w, name, tile.items, size, tile.depth, depth, step, kind, context)

    def declare(self) -> None:
        if not self.copies:
            super().declare()

    def begin_copy(self, start: str, stage: str) -> None:
        """Starts the copies of the block from k = `start` into part `stage` of the ring."""
        self._each(lambda: self._copy(start, stage))

    def store_to(self, stage: str) -> None:
        """Puts the loaded block into part `stage` of the ring."""
        self._each(lambda: self._put(stage))

    def _positions(self) -> None:
        if self.k_inner:
            per = self.block // self.step
            self.w.line(f"const int at_k = load % {per} * {self.step}, at_x = load / {per};")
        else:
            per = self.size // self.step
            self.w.line(f"const int at_x = load % {per} * {self.step}, at_k = load / {per};")

    def _place(self, stage: str) -> str:
        inner, outer = ("at_k", "at_x") if self.k_inner else ("at_x", "at_k")
        part = f" + {stage} * {self.block_size}" if stage != "0" else ""
        return f"{self.name}{part} + {outer} * {self.stride} + {inner}"

    def _copy(self, start: str, stage: str) -> None:
        w, o = self.w, self.operand
        w.line(f"const int k = {start} + at_k;")
        inside = [f"k < {self.depth}"] if self.depth % self.block else []
        if isinstance(o, PackedB):
            if o.columns % self.size:
                inside.append(f"n0 + at_x < {o.columns}")
            base = f"b * {o.columns * o.depth} + " if o.batches > 1 else ""
            source = f"{o.pointer} + {checked(o.bounds, f'{base}(n0 + at_x) * {o.depth} + k', together=RUN)}"
            pointer, bounds = o.pointer, o.bounds
        else:
            assert self.copied is not None
            # Nothing is copied beyond the last row: many groups that copied that one would wait for its cache line.
            name = "mn"[o.axis - 1]
            w.line(f"const int {name} = {name}0 + at_x;")
            if o.extent % o.size:
                inside.append(f"{name} < {o.extent}")
            source = self.copied.memory.aligned(self.copied.load.index, self.context.axes, self.copied.lane) or ""
            pointer, bounds = self.copied.memory.pointer, self.copied.memory.bounds
            if self.copied.guards:
                inside.append(cl_guards(self.copied.guards, self.context.axes))
        condition = " && ".join(inside) or "1"
        if bounds is not None and inside:  # an address that is not used is not checked
            source = f"({condition} ? {source} : {pointer})"
        w.line(f"sm_copy_{self.step}({self._place(stage)}, {source}, {condition});")

    def _load(self, start: str) -> None:
        assert not isinstance(self.operand, PackedB)
        self.w.line(f"const int k = {start} + at_k;")
        self._by_definition(self.operand)

    def _store(self) -> None:
        self._put("0")

    def _put(self, stage: str) -> None:
        value, where = f"{self.register}[u]", self._place(stage)
        kind = "vstorea_half4_rte" if self.step == LANES else "vstore_half_rte"
        self.w.line(f"{kind}({value}, 0, (__local half *)({where}));")


@dataclass(frozen=True)
class Copied:
    """An operand that is a load, or zero where guards fail: vectors along `lane` lie together as halves."""

    load: Load
    guards: tuple[Guard, ...]
    memory: LinearBuffer
    lane: Lane


def _copied(operand: Staged, depth: int, size: int, context: DeviceContext) -> Copied | None:
    """How an operand is copied; None if something must be computed, or it lies otherwise."""
    body = operand.body
    guards: tuple[Guard, ...] = ()
    if isinstance(body, Choose) and isinstance(body.otherwise, Const) and body.otherwise.value == 0:
        guards, body = body.guards, body.then
    if operand.along is None or not isinstance(body, Load) or body.tensor in context.local:
        return None
    if operand.body is None or looked_up(
        operand.body
    ):  # copies compute their addresses beyond the ends too, where an index tensor has none
        return None
    memory = context.memories[body.tensor]
    if not isinstance(memory, LinearBuffer) or memory.stored != np.float16:
        return None
    for width in (RUN, LANES):
        lane = Lane(operand.along, context.axes.extents[operand.along], width)
        fits = lane.extent % width == 0 and (depth if operand.along == K else size) % width == 0
        if fits and lane_free(guards, lane) and memory.aligned(body.index, context.axes, lane) is not None:
            return Copied(body, guards, memory, lane)
    return None


def declare(w: Writer) -> None:
    """Local memory of a tile, in `POOL`: the ring of staged blocks, and in its place parts of the results C."""
    w.line("__local float *const C = (__local float *)pool;")


def accumulate(w: Writer, tile: MatrixTile, a: Staged, b: Staged | PackedB, context: DeviceContext, depth: int) -> None:
    """``sum`` = the product of the tile, over all of k: blocks of 16 x 8 of this work-item's warp."""
    left = HalfStager(w, tile, a, "A", tile.rows, depth, context)
    right = HalfStager(w, tile, b, "B", tile.columns, depth, context)
    rows, columns = tile.row_blocks, tile.column_blocks
    w.line("__local ushort *const A = (__local ushort *)pool;")
    w.line(f"__local ushort *const B = A + {tile.stages * left.block_size};")
    w.line(f"const int warp = item / {WARP}, lane = item % {WARP}, g = lane / 4, t = lane % 4;")
    w.line(f"const int warp_m = warp / {tile.across} * {16 * rows}, warp_n = warp % {tile.across} * {8 * columns};")
    w.line(f"float sum[{rows}][{columns}][4];")
    w.line("#pragma unroll")
    with w.loop("i", rows):
        w.line("#pragma unroll")
        with w.loop("j", columns):
            w.line("sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0.0f;")
    _ring(w, tile, left, right, depth)


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


def _ring(w: Writer, tile: MatrixTile, left: HalfStager, right: HalfStager, depth: int) -> None:
    """All blocks of k: copies run `stages` - 1 blocks ahead, loads through registers one."""
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
    w.line("int stage = 0;")
    with w.loop("k0", depth, 0, block, reduces=True):
        if copying:
            w.line(f"sm_wait_copies({ahead - 1});")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        if copying:
            if depth > ahead * block:
                with w.block(f"if (k0 + {ahead * block} < {depth})"):
                    w.line(f"const int last = stage > 0 ? stage - 1 : {stages - 1};")
                    for stager in copying:
                        stager.begin_copy(f"k0 + {ahead * block}", "last")
            w.line("sm_copied();")
        more = loading if depth > block else ()
        for stager in more:
            with w.block(f"if (k0 + {block} < {depth})"):
                stager.load(f"k0 + {block}")
        _blocks(w, tile, left, right)
        w.line(f"stage = stage < {stages - 1} ? stage + 1 : 0;")
        for stager in more:
            with w.block(f"if (k0 + {block} < {depth})"):
                stager.store_to("stage")


def _blocks(w: Writer, tile: MatrixTile, left: HalfStager, right: HalfStager) -> None:
    """All blocks of one step."""
    rows, columns = tile.row_blocks, tile.column_blocks
    w.line(f"const __local ushort *const a0 = A + stage * {left.block_size};")
    w.line(f"const __local ushort *const b0 = B + stage * {right.block_size};")
    w.line("#pragma unroll")
    with w.loop("step", tile.depth, 0, 16):
        w.line(f"uint a[{rows}][4], b_[{columns}][2];")
        w.line("#pragma unroll")
        with w.loop("i", rows):
            if left.k_inner:
                where = f"(warp_m + 16 * i + lane % 16) * {left.stride} + step + lane / 16 * 8"
            else:
                where = f"(step + lane / 16 * 8 + lane % 8) * {left.stride} + warp_m + 16 * i + lane / 8 % 2 * 8"
            w.line(f"sm_blocks{'' if left.k_inner else '_t'}(a[i], a0 + {where});")
        name = f"sm_blocks{'' if right.k_inner else '_t'}"
        at_k, at_n = "step + lane / 8 % 2 * 8", "warp_n + 8 * j"
        if right.k_inner:
            pair = f"({at_n} + lane / 16 * 8 + lane % 8) * {right.stride} + {at_k}"
            single = f"({at_n} + lane % 8) * {right.stride} + {at_k}"
        else:
            pair = f"({at_k} + lane % 8) * {right.stride} + {at_n} + lane / 16 * 8"
            single = f"({at_k} + lane % 8) * {right.stride} + {at_n}"
        if columns > 1:
            w.line("#pragma unroll")
            with w.loop("j", columns - columns % 2, 0, 2):
                w.line(f"{name}(b_[j], b0 + {pair});")
        if columns % 2:
            with w.block(""):
                w.line(f"const int j = {columns - 1};")
                w.line(f"{name}_2(b_[j], b0 + {single});")
        w.line("#pragma unroll")
        with w.loop("i", rows):
            w.line("#pragma unroll")
            with w.loop("j", columns):
                w.line("sm_multiply(sum[i][j], a[i], b_[j]);")
