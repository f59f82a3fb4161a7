"""Contractions on matrix units: half operands in local memory, products of 16x8x16 blocks, float accumulators.

For devices whose compiler takes inline PTX (`Device.matrix_units`) and half storage; every other device runs
`contraction`. Both operands are staged with k innermost, ``A[m][k]`` and ``B[n][k]``, the order in which the fragments
of an ``mma.m16n8k16`` are read: work-item (g, t) = (lane / 4, lane % 4) holds rows g and g + 8, and k = 2t, 2t+1 and
2t+8, 2t+9. Results go through local memory, so that the epilogue stores four neighbours at a time.

In: what `contraction` takes. Out: OpenCL C with PTX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.codegen.cl_expr import DeviceContext
from smartmem.codegen.cl_memory import Bounds, checked
from smartmem.codegen.writer import Writer
from smartmem.device import Device
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import K, N
from smartmem.schedule.gpu.product import Product, pack, to_half
from smartmem.schedule.gpu.tile import ALIGNED, Staged, Stager, pipelined

Array = np.ndarray[Any, Any]
PAD = 8  # halves between the rows of a staged operand: fragments are read without bank conflicts
RUN = 8  # halves of packed weights that one load takes
WARP = 32

PTX = """
inline void sm_multiply(float *c, const uint *a, const uint *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
"""


@dataclass(frozen=True)
class MatrixTile:
    """`rows` x `columns` per group in steps of `depth`; `down` x `across` warps share it."""

    rows: int
    columns: int
    depth: int
    down: int
    across: int

    @property
    def items(self) -> int:
        return WARP * self.down * self.across

    @property
    def row_blocks(self) -> int:
        """Blocks of 16 rows per warp."""
        return self.rows // self.down // 16

    @property
    def column_blocks(self) -> int:
        """Blocks of 8 columns per warp."""
        return self.columns // self.across // 8

    @property
    def stride(self) -> int:
        return self.depth + PAD

    @property
    def local_bytes(self) -> int:
        return 2 * self.stride * (self.rows + self.columns) + 4 * self.rows * (self.columns + LANES)


TILES = (
    MatrixTile(128, 64, 32, 4, 2), MatrixTile(64, 128, 32, 2, 4), MatrixTile(64, 64, 32, 2, 2),
    MatrixTile(64, 64, 64, 2, 4), MatrixTile(32, 64, 64, 2, 4), MatrixTile(64, 32, 64, 4, 2),
    MatrixTile(32, 32, 64, 2, 2), MatrixTile(16, 64, 64, 1, 4), MatrixTile(64, 16, 64, 4, 1),
    MatrixTile(128, 32, 32, 4, 2), MatrixTile(16, 32, 128, 1, 4), MatrixTile(128, 16, 32, 4, 1),
    MatrixTile(128, 8, 32, 4, 1),
)  # fmt: skip


def accepts(m: int, n: int, k: int, device: Device) -> bool:
    """Whether matrix units pay: enough of everything, and the device has them."""
    return device.matrix_units and m >= 8 and n >= 8 and k >= 16


def choose_tile(batch: int, m: int, n: int, k: int, device: Device) -> MatrixTile:
    """The tile of least predicted time."""
    fitting = (t for t in TILES if t.local_bytes <= device.local_memory and t.items <= device.max_work_group)
    return min(fitting, key=lambda t: predicted(t, batch, m, n, k, device))


def predicted(tile: MatrixTile, batch: int, m: int, n: int, k: int, device: Device) -> float:
    """Predicted cycles: steps wait for memory, unless the groups of a compute unit keep it busy."""
    groups = batch * -(-m // tile.rows) * -(-n // tile.columns)
    resident = max(1, min(2048 // tile.items, 200_000 // tile.local_bytes, 16))
    waves = -(-groups // (device.compute_units * resident))
    in_wave = max(1.0, min(groups, device.compute_units * resident) / device.compute_units)
    work = tile.rows * tile.columns * tile.depth / 512
    traffic = 2 * tile.depth * (tile.rows + tile.columns) / 32
    step = max(900 + traffic, in_wave * max(work, traffic))
    return waves * (-(-k // tile.depth) * step + 2500)


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
    """Halves as ``[x][k]``, for matrix units."""

    def __init__(
        self, w: Writer, tile: MatrixTile, operand: Staged | PackedB, name: str, size: int, depth: int,
        context: DeviceContext,
    ) -> None:  # fmt: skip
        self.operand, self.stride = operand, tile.stride
        if isinstance(operand, PackedB):
            self.step, kind = RUN, "uint4"
        else:
            self.step, kind = (LANES, "float4") if operand.along is not None else (1, "float")
        super().__init__(w, name, tile.items, size, tile.depth, depth, self.step, kind, context)

    def _positions(self) -> None:
        o, depth = self.operand, self.block
        if isinstance(o, PackedB) or o.along == K:
            per = depth // self.step
            self.w.line(f"const int at_k = load % {per} * {self.step}, at_x = load / {per};")
        elif o.along is not None or o.fast != K:
            per = self.size // self.step
            self.w.line(f"const int at_x = load % {per} * {self.step}, at_k = load / {per};")
        else:
            self.w.line(f"const int at_k = load % {depth}, at_x = load / {depth};")

    def _load(self, start: str) -> None:
        w, o = self.w, self.operand
        w.line(f"const int k = {start} + at_k;")
        if not isinstance(o, PackedB):
            self._by_definition(o)
            return
        row = f"min(n0 + at_x, {o.columns - 1})" if o.columns % self.size else "(n0 + at_x)"
        base = f"b * {o.columns * o.depth} + " if o.batches > 1 else ""
        where = checked(o.bounds, f"{base}{row} * {o.depth} + k", together=RUN)
        text = f"*(const __global uint4 *)({o.pointer} + {where})"
        text = f"k < {o.depth} ? {text} : (uint4)(0u)" if o.depth % self.block else text
        w.line(f"{self.register}[u] = {text};")

    def _store(self) -> None:
        w, o, value = self.w, self.operand, f"{self.register}[u]"
        where = f"{self.name} + at_x * {self.stride} + at_k"
        if isinstance(o, PackedB):
            w.line(f"*(__local uint4 *)({where}) = {value};")
        elif o.along == K:
            w.line(f"vstorea_half4_rte({value}, 0, (__local half *)({where}));")
        elif o.along is not None:
            for k in range(LANES):
                there = f"{self.name} + (at_x + {k}) * {self.stride} + at_k"
                w.line(f"vstore_half_rte({value}.{'xyzw'[k]}, 0, (__local half *)({there}));")
        else:
            w.line(f"vstore_half_rte({value}, 0, (__local half *)({where}));")


def declare(w: Writer, tile: MatrixTile) -> None:
    """Local memory of a tile: staged operands (arrays of halves need cl_khr_fp16, pointers to them do not) and C."""
    w.line(f"__local ushort A[{tile.rows * tile.stride}] {ALIGNED};")
    w.line(f"__local ushort B[{tile.columns * tile.stride}] {ALIGNED};")
    w.line(f"__local float C[{tile.rows * (tile.columns + LANES)}] {ALIGNED};")


def accumulate(w: Writer, tile: MatrixTile, a: Staged, b: Staged | PackedB, context: DeviceContext, depth: int) -> None:
    """The product of the tile, over all of k, in local memory: ``C[m][n]``, `columns` + 4 floats per row."""
    left = HalfStager(w, tile, a, "A", tile.rows, depth, context)
    right = HalfStager(w, tile, b, "B", tile.columns, depth, context)
    rows, columns = tile.row_blocks, tile.column_blocks
    w.line(f"const int warp = item / {WARP}, g = item % {WARP} / 4, t = item % 4;")
    w.line(f"const int warp_m = warp / {tile.across} * {16 * rows}, warp_n = warp % {tile.across} * {8 * columns};")
    w.line(f"float sum[{rows}][{columns}][4];")
    w.line("#pragma unroll")
    with w.loop("i", rows):
        w.line("#pragma unroll")
        with w.loop("j", columns):
            w.line("sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0.0f;")
    pipelined(w, (left, right), depth, tile.depth, lambda: _blocks(w, tile))
    w.line("#pragma unroll")
    with w.loop("i", rows):
        w.line("#pragma unroll")
        with w.loop("j", columns):
            stride = tile.columns + LANES
            w.line(f"__local float *const c = C + (warp_m + 16 * i + g) * {stride} + warp_n + 8 * j + 2 * t;")
            w.line("*(__local float2 *)c = (float2)(sum[i][j][0], sum[i][j][1]);")
            w.line(f"*(__local float2 *)(c + {8 * stride}) = (float2)(sum[i][j][2], sum[i][j][3]);")
    w.line("barrier(CLK_LOCAL_MEM_FENCE);")


def _blocks(w: Writer, tile: MatrixTile) -> None:
    """All blocks of one step."""
    stride = tile.stride
    w.line("#pragma unroll")
    with w.loop("step", tile.depth, 0, 16):
        w.line(f"uint a[{tile.row_blocks}][4], b_[{tile.column_blocks}][2];")
        w.line("#pragma unroll")
        with w.loop("i", tile.row_blocks):
            w.line(f"const __local ushort *const from = A + (warp_m + 16 * i + g) * {stride} + step + 2 * t;")
            for part, offset in enumerate((0, 8 * stride, 8, 8 * stride + 8)):
                w.line(f"a[i][{part}] = *(const __local uint *)(from + {offset});")
        w.line("#pragma unroll")
        with w.loop("j", tile.column_blocks):
            w.line(f"const __local ushort *const from = B + (warp_n + 8 * j + g) * {stride} + step + 2 * t;")
            w.line("b_[j][0] = *(const __local uint *)from;")
            w.line("b_[j][1] = *(const __local uint *)(from + 8);")
        w.line("#pragma unroll")
        with w.loop("i", tile.row_blocks):
            w.line("#pragma unroll")
            with w.loop("j", tile.column_blocks):
                w.line("sm_multiply(sum[i][j], a[i], b_[j]);")
