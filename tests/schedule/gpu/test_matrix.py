"""Contractions on matrix units, on a device without any: the instructions are emulated by exchanges in local memory.

The emulation is written from NVIDIA's description of ``mma.m16n8k16`` (halves), ``mma.m16n8k8`` (floats, of which the
units read the upper 19 bits) and ``ldmatrix`` alone: which work-item holds which element of the blocks A (16 rows),
B (8 columns) and C (16x8), and of the 8x8 blocks that are loaded. A kernel that reads or stores a fragment elsewhere
gives wrong products. Copies that do not wait are made at once.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.support.exchange import with_local
from tests.support.random_graphs import Array, Builder

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions, Memory, Precision
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram
from smartmem.schedule.gpu import matrix, matrix_tile, ptx
from smartmem.schedule.gpu.matrix_tile import MatrixTile

pytestmark = pytest.mark.usefixtures("built_quickly")
WORDS = 6  # 32-bit registers of a work-item: four of A, two of B; also room for an address
EMULATION = """
inline float sm_half_of(const __local uint *words, int half_) { return vload_half(half_, (const __local half *)words); }
inline void sm_emulate(float *c, const uint *a, const uint *b, __local uint *all) {
    const int lane = get_local_id(0) % 32, row = lane / 4, column = lane % 4 * 2;
    __local uint *warp = all + get_local_id(0) / 32 * 32 * 6;
    for (int r = 0; r < 4; ++r) warp[lane * 6 + r] = a[r];
    for (int r = 0; r < 2; ++r) warp[lane * 6 + 4 + r] = b[r];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int e = 0; e < 4; ++e) {
        const int m = row + e / 2 * 8, n = column + e % 2;
        for (int k = 0; k < 16; ++k) {
            const int pair = k % 8 / 2, upper = k / 8;
            c[e] += sm_half_of(warp + (m % 8 * 4 + pair) * 6 + m / 8 + 2 * upper, k % 2)
                  * sm_half_of(warp + (n * 4 + pair) * 6 + 4 + upper, k % 2);
        }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}
inline void sm_emulate_upper(float *c, const uint *a, const uint *b, __local uint *all) {
    const int lane = get_local_id(0) % 32, row = lane / 4, column = lane % 4 * 2;
    __local uint *warp = all + get_local_id(0) / 32 * 32 * 6;
    for (int r = 0; r < 4; ++r) warp[lane * 6 + r] = a[r] & 0xffffe000u;
    for (int r = 0; r < 2; ++r) warp[lane * 6 + 4 + r] = b[r] & 0xffffe000u;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int e = 0; e < 4; ++e) {
        const int m = row + e / 2 * 8, n = column + e % 2;
        for (int k = 0; k < 8; ++k)
            c[e] += as_float(warp[(m % 8 * 4 + k % 4) * 6 + m / 8 + k / 4 * 2])
                  * as_float(warp[(n * 4 + k % 4) * 6 + 4 + k / 4]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}
inline void sm_emulate_load(uint *r, const __local void *row, int count, int turned, __local uint *all) {
    const int lane = get_local_id(0) % 32;
    __local uint *warp = all + get_local_id(0) / 32 * 32 * 6;
    *(__local ulong *)(warp + lane * 6) = (ulong)(size_t)row;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int block = 0; block < count; ++block) {
        uint bits = 0;
        for (int e = 0; e < 2; ++e) {
            const int at = turned ? lane % 4 * 2 + e : lane / 4, column = turned ? lane / 4 : lane % 4 * 2 + e;
            const __local ushort *from =
                (const __local ushort *)(size_t)*(__local ulong *)(warp + (block * 8 + at) * 6);
            bits |= (uint)from[column] << (16 * e);
        }
        r[block] = bits;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
}
inline void sm_copy(__local void *to, const __global void *from, int inside, int bytes) {
    for (int k = 0; k < bytes; ++k) ((__local uchar *)to)[k] = inside ? ((const __global uchar *)from)[k] : 0;
}
inline uint sm_pair(float x, float y) {
    uint word = 0;
    vstore_half_rte(x, 0, (half *)&word);
    vstore_half_rte(y, 1, (half *)&word);
    return word;
}
inline float sm_unpair(uint word, int k) { return vload_half(k, (const half *)&word); }
inline void sm_to_halves(uint *upper, uint *lower, uint x, uint y) {
    *upper = sm_pair(as_float(x), as_float(y));
    *lower = sm_pair((as_float(x) - sm_unpair(*upper, 0)) * 2048.0f, (as_float(y) - sm_unpair(*upper, 1)) * 2048.0f);
}
inline void sm_from_halves(uint *x, uint *y, uint upper, uint lower) {
    *x = as_uint(sm_unpair(upper, 0) + sm_unpair(lower, 0) / 2048.0f);
    *y = as_uint(sm_unpair(upper, 1) + sm_unpair(lower, 1) / 2048.0f);
}
inline int sm_emulate_any(int is, __local uint *all) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (get_local_id(0) == 0) all[0] = 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (is) atomic_or(all, 1u);
    barrier(CLK_LOCAL_MEM_FENCE);
    const int any = all[0] != 0;
    barrier(CLK_LOCAL_MEM_FENCE);
    return any;
}
#define sm_any(is) sm_emulate_any(is, exchange)
#define sm_multiply_upper(c, a, b) sm_emulate_upper(c, a, b, exchange)
#define sm_multiply(c, a, b) sm_emulate(c, a, b, exchange)
#define sm_blocks(r, row) sm_emulate_load(r, row, 4, 0, exchange)
#define sm_blocks_t(r, row) sm_emulate_load(r, row, 4, 1, exchange)
#define sm_blocks_2(r, row) sm_emulate_load(r, row, 2, 0, exchange)
#define sm_blocks_t_2(r, row) sm_emulate_load(r, row, 2, 1, exchange)
#define sm_copy_16(to, from, inside) sm_copy(to, from, inside, 16)
#define sm_copy_8(to, from, inside) sm_copy(to, from, inside, 8)
#define sm_copied()
#define sm_wait_copies(n)
"""


def emulated(program: DeviceProgram) -> DeviceProgram:
    """The program with the instruction replaced; every kernel with such blocks gets memory for the exchange."""
    sources = {}
    for name, text in program.sources.items():
        text = text.replace(ptx.WARPGROUPS, WARPGROUP_EMULATION)
        for columns in {tile.columns for tile in matrix_tile.WARPGROUP_TILES}:
            for floats in (False, True):
                text = text.replace(ptx.warpgroup_products(columns, floats), emulated_products(columns))
        text = text.replace(ptx.PTX, EMULATION).replace("#pragma unroll\n", "")  # exchanges are long when repeated
        assert ptx.PTX not in text.partition("__kernel ")[0]
        sources[name] = with_local(
            text,
            lambda kernel: "sm_multiply" in kernel or "sm_product_" in kernel,
            lambda items: f"uint exchange[{items * WORDS}] __attribute__((aligned(8)))",
        )
    program.sources = sources
    return program


WARPGROUP_EMULATION = """
#define sm_rows(at) ((ulong)(size_t)(at))
#define SM_AT(at) (((at) & ~15ul) | ((at) & 15ul) << 56) /* pieces were added to a multiple of 16 */
inline float sm_row_value(ulong at, int row, int k) { /* `at` counts pieces of 16 bytes from a multiple of 1024 bytes */
    const int piece = at >> 56;
    const __local char *rows = (const __local char *)(size_t)(at & 0xffffffffffffffu);
    return vload_half(k % 8, (const __local half *)(rows + row * 128 + ((piece + k / 8 ^ row % 8) * 16)));
}
inline void sm_emulate_product(float *c, ulong x, ulong y, int columns) {
    const int row = get_local_id(0) / 32 % 4 * 16 + get_local_id(0) % 32 / 4, column = get_local_id(0) % 4 * 2;
    for (int j = 0; j < columns / 8; ++j)
        for (int e = 0; e < 4; ++e)
            for (int k = 0; k < 16; ++k)
                c[4 * j + e] += sm_row_value(x, row + e / 2 * 8, k) * sm_row_value(y, 8 * j + column + e % 2, k);
}
inline void sm_emulate_product_of(float *c, const uint *a, ulong y, int columns, int first, __local uint *all) {
    const int lane = get_local_id(0) % 32, column = lane % 4 * 2;
    __local uint *warp = all + get_local_id(0) / 32 * 32 * 6;
    for (int i = 0; i < columns / 2; ++i) c[i] = first ? 0.0f : c[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int r = 0; r < 4; ++r) warp[lane * 6 + r] = a[r];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int j = 0; j < columns / 8; ++j)
        for (int e = 0; e < 4; ++e)
            for (int k = 0; k < 16; ++k) {
                const int m = lane / 4 + e / 2 * 8, pair = k % 8 / 2;
                const float x = sm_half_of(warp + (m % 8 * 4 + pair) * 6 + m / 8 + 2 * (k / 8), k % 2);
                c[4 * j + e] += x * sm_row_value(y, 8 * j + column + e % 2, k);
            }
}
#define sm_publish()
#define sm_commit() barrier(CLK_LOCAL_MEM_FENCE)
"""


def emulated_products(columns: int) -> str:
    """The functions of `ptx.warpgroup_products`; places in a row, which count pieces, go into the upper bits."""
    return "".join(
        f"#define {text}\n"
        for text in (
            f"sm_product_{columns}(c, x, y) sm_emulate_product(c, SM_AT(x), SM_AT(y), {columns})",
            f"sm_product_of_{columns}(c, a, y) sm_emulate_product_of(c, a, SM_AT(y), {columns}, 0, exchange)",
            f"sm_first_product_of_{columns}(c, a, y) sm_emulate_product_of(c, a, SM_AT(y), {columns}, 1, exchange)",
            f"sm_finish_{columns}(c)",
            f"sm_finish_of_{columns}(c)",
        )
    )


def stored(g: Builder, *shape: int) -> str:
    """A tensor that a kernel stores in halves (inputs stay in float, which matrix units do not take)."""
    x = g.input(*(1,) * (4 - len(shape)), *shape)
    pooled = g.op("MaxPool", [x], kernel_shape=[1, 2], pads=[0, 0, 0, 1])
    return str(g.op("Reshape", [pooled, g.ints(*shape)], shape))


def products(g: Builder) -> list[str]:
    results = []
    for m, n, k in ((16, 8, 16), (17, 9, 18), (64, 64, 64), (49, 32, 49), (130, 40, 72), (8, 100, 200), (70, 136, 200)):
        results.append(g.op("Relu", [g.op("MatMul", [stored(g, m, k), g.weight(k, n)], (m, n))], (m, n)))
        results.append(g.op("MatMul", [stored(g, m, k), stored(g, k, n)], (m, n)))
    return results


def turned_and_batched(g: Builder) -> list[str]:
    x, y = stored(g, 3, 40, 48), stored(g, 3, 40, 48)
    other = g.op("Transpose", [y], (3, 48, 40), perm=[0, 2, 1])
    left = g.op("Transpose", [x], (3, 48, 40), perm=[0, 2, 1])
    first = g.op("MatMul", [x, other], (3, 40, 40))
    last = g.op("Transpose", [g.op("MatMul", [left, y], (3, 48, 48))], (48, 3, 48), perm=[1, 0, 2])
    return [first, last]


def convolutions(g: Builder) -> list[str]:
    x = stored(g, 1, 16, 9, 10)
    return [
        g.op("Conv", [x, g.weight(24, 16, 3, 3), g.weight(24)], pads=[1, 1, 1, 1]),
        g.op("Conv", [x, g.weight(12, 16, 1, 1)], strides=[2, 2]),
        g.op("Conv", [x, g.weight(32, 8, 3, 3)], group=2),
        upsampled(g, x),
    ]


def upsampled(g: Builder, x: str) -> str:
    """A convolution of x, enlarged twofold by repetition: its taps are divisions, yet channels lie together."""
    larger = g.op("Resize", [x, "", g.constant([1, 1, 2, 2], np.float32)], mode="nearest")
    return str(g.op("Conv", [larger, g.weight(24, 16, 3, 3)], pads=[1, 1, 1, 1]))


def many_rows(g: Builder) -> list[str]:
    """Few columns: the last layer of a network that makes an image."""
    x = stored(g, 1, 16, 64, 64)
    return [g.op("Conv", [x, g.weight(3, 16, 3, 3), g.weight(3)], pads=[1, 1, 1, 1])]


def attention(g: Builder) -> list[str]:
    results = []
    for heads, rows, width, inner, columns in ((3, 49, 49, 32, 32), (2, 20, 70, 40, 24), (1, 130, 300, 72, 16)):
        q, k, v = stored(g, heads, rows, inner), stored(g, heads, width, inner), stored(g, heads, width, columns)
        turned = g.op("Transpose", [k], (heads, inner, width), perm=[0, 2, 1])
        scores = g.op("MatMul", [q, turned], (heads, rows, width))
        masked = g.op("Add", [g.op("Mul", [scores, g.constant(np.float32(inner**-0.5))]), g.weight(rows, width)])
        p = g.op("Softmax", [masked], (heads, rows, width), axis=-1)
        results.append(g.op("MatMul", [p, v], (heads, rows, columns)))
    return results


@pytest.fixture
def always_warpgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warpgroups take what they can, with the tile of least predicted time of theirs."""
    predicted = matrix_tile.predicted
    monkeypatch.setattr(
        matrix_tile, "predicted", lambda tile, *rest: predicted(tile, *rest) * (1e-3 if tile.warpgroups else 1.0)
    )


def beyond_halves(g: Builder) -> list[str]:
    """Floats that are too large or too small for halves, in one operand, in both, and in a part of one; infinities."""
    m, n, k = 40, 24, 40
    results = []
    for left, right in ((1e6, 1.0), (1e-7, 1.0), (1e-12, 1e12), (1e30, 1e-30), (1.0, 1e-9), (1.0, 1e9)):
        a = g.op("Mul", [stored(g, m, k), g.constant(np.float32(left))], (m, k))
        b = g.op("Mul", [stored(g, k, n), g.constant(np.float32(right))], (k, n))
        results.append(g.op("MatMul", [a, b], (m, n)))
        weight = g.constant(g.numbers.standard_normal((k, n)) * right, np.float32)
        results.append(g.op("MatMul", [a, weight], (m, n)))
    few = np.where(np.arange(k) == 3, 1e7, 1.0) * np.ones((m, 1))
    a = g.op("Mul", [stored(g, m, k), g.constant(few, np.float32)], (m, k))
    results.append(g.op("MatMul", [a, g.weight(k, n)], (m, n)))
    positive = g.op("Abs", [stored(g, k, n)], (k, n))
    infinite = np.where(np.arange(m) == 2, np.inf, 1.0)[:, None] * np.ones(k)
    results.append(g.op("MatMul", [g.constant(infinite, np.float32), positive], (m, n)))
    return results


@pytest.mark.usefixtures("always_warpgroups")
@pytest.mark.parametrize("warpgroups", [False, True])
def test_range_of_floats(device: Device, tmp_path, warpgroups: bool) -> None:
    """Products of floats that halves cannot stand for are made of other numbers, and as exact."""
    g = Builder(5)
    model = g.model(beyond_halves(g))
    feeds = g.feeds()
    expected = ReferenceEvaluator(model).run(None, feeds)
    units = replace(device, matrix_units=True, warpgroups=warpgroups)
    program = emulated(build_device_program(model, level="full", device=units, options=DeviceOptions("buffer", "fp32")))
    assert sum(text.count("sm_multiply_upper(small") > 0 for text in program.sources.values()) > 0
    made = DeviceModel(program, device, cache=Cache(tmp_path))
    for got, want in zip(made.run(feeds), expected, strict=True):
        finite = np.isfinite(want)
        assert np.array_equal(got[~finite], want[~finite])
        assert np.max(np.abs(got - want)[finite]) < 2e-6 * np.max(np.abs(want[finite]))
    made.close()


@pytest.mark.parametrize("tile", matrix_tile.WARPGROUP_TILES, ids=lambda t: f"{t.form.kind}-{t.rows}x{t.columns}")
def test_every_tile_of_warpgroups(device: Device, tmp_path, monkeypatch, tile: MatrixTile) -> None:
    """With edges along all three axes, and more steps than the ring has stages."""
    monkeypatch.setattr(matrix_tile, "choose_tile", lambda *args, **how: tile)
    m, n, k = tile.rows + 70, tile.columns + 24, tile.depth * (tile.stages + 2) + 24
    g = Builder(7)
    model: onnx.ModelProto = g.model([g.op("MatMul", [stored(g, m, k), g.weight(k, n)], (m, n))])
    feeds: dict[str, Array] = g.feeds()
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    half = tile.form == matrix_tile.HALF
    options = DeviceOptions("buffer", "fp16" if half else "fp32", check=True)
    units = replace(device, matrix_units=True, warpgroups=True)
    program = emulated(build_device_program(model, level="full", device=units, options=options))
    made = DeviceModel(program, device, cache=Cache(tmp_path))
    (got,) = made.run(feeds)
    assert np.max(np.abs(got - want)) < (3e-3 if half else 2e-6) * np.max(np.abs(want))
    made.close()


def test_split_weights() -> None:
    values = np.random.default_rng(3).standard_normal((2, 5, 32)).astype(np.float32)
    words = matrix.split(values).view(np.uint32).reshape(2, 5, 2, 2, 8, 1)
    upper, lower = np.moveaxis(words.copy().view(np.float16).astype(np.float64), 3, 0)
    order = [k for pair in matrix.PAIRS for k in pair]
    found = (upper + lower / 2048).reshape(2, 5, 2, 16)
    wanted = values.reshape(2, 5, 2, 16)[..., order]
    assert np.max(np.abs(found / wanted - 1)) <= 2.0**-22
    assert matrix.fits_halves(values)
    assert not matrix.fits_halves(values * np.float32(1e5))
    assert not matrix.fits_halves(np.where(np.arange(5)[:, None] == 2, np.float32(1e-6), values))
    assert matrix.fits_halves(np.where(np.arange(5)[:, None] == 2, np.float32(0), values))


@pytest.mark.usefixtures("always_warpgroups")
@pytest.mark.parametrize("warpgroups", [False, True])
@pytest.mark.parametrize("case", [products, turned_and_batched, convolutions, many_rows, attention])
@pytest.mark.parametrize(
    ("memory", "precision", "limit"), [("buffer", "fp16", 3e-3), ("texture", "fp16", 3e-3), ("buffer", "fp32", 2e-6)]
)
def test_products(
    device: Device, tmp_path, case, memory: Memory, precision: Precision, limit: float, warpgroups: bool
) -> None:
    g = Builder(11)
    model: onnx.ModelProto = g.model(case(g))
    feeds: dict[str, Array] = g.feeds()
    expected = ReferenceEvaluator(model).run(None, feeds)
    options = DeviceOptions(memory, precision, check=True)
    units = replace(device, matrix_units=True, warpgroups=warpgroups)
    program = emulated(build_device_program(model, level="full", device=units, options=options))
    count = sum(text.count("__local uint exchange[") for text in program.sources.values())
    assert count >= len(expected) - 1, "these are not computed on matrix units"
    shared = sum(text.partition("__kernel")[2].count("sm_commit();") > 0 for text in program.sources.values())
    taken = case is products or case is convolutions or (case is turned_and_batched and precision == "fp16")
    assert (shared > 0) == (warpgroups and taken)
    made = DeviceModel(program, device, cache=Cache(tmp_path))
    for got, want in zip(made.run(feeds), expected, strict=True):
        assert np.max(np.abs(got - want)) < limit * np.max(np.abs(want))
    made.close()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_upsampled_rows_are_copied(device: Device, precision: Precision) -> None:
    """Loads through registers, one channel at a time, took ten times as long as copies."""
    g = Builder(11)
    model = g.model([upsampled(g, stored(g, 1, 16, 9, 10))])
    units = replace(device, matrix_units=True)
    options = DeviceOptions("buffer", precision)
    program = build_device_program(model, level="full", device=units, options=options)
    (text,) = [t for t in program.sources.values() if "sm_multiply" in t.replace(ptx.PTX, "")]
    assert "sm_copy_16(A" in text and "next_A" not in text
    assert program.report["totals"]["copies"] == 0


def test_what_tiles_of_columns_would_compute_again_has_a_kernel(device: Device) -> None:
    """GEGLU: the gate is a kernel of its own where launches are cheap and operands are copied, else a prologue."""
    g = Builder(11)
    both = g.op("MatMul", [stored(g, 64, 128), g.weight(128, 512)])
    x, gate = g.op("Split", [both], outputs=2, axis=1, num_outputs=2)
    product = g.op("Mul", [x, g.op("Gelu", [gate])])
    model = g.model([g.op("MatMul", [product, g.weight(256, 512)])])
    kernels = []
    for bus in ("", "0000:3b:00.0"):
        units = replace(device, matrix_units=True, kind="gpu", bus=bus, compute_units=132)
        program = build_device_program(model, level="full", device=units, options=DeviceOptions("buffer", "fp16"))
        kernels.append([k["family"] for k in program.report["kernels"]])
    assert "pointwise" not in kernels[0] and "pointwise" in kernels[1]


def test_large_products_are_for_warpgroups(device: Device) -> None:
    """Small ones are not, nor what such instructions do not take."""
    h200 = replace(device, matrix_units=True, warpgroups=True, dynamic_local=227 << 10, compute_units=132)
    choose, half, single = matrix_tile.choose_tile, matrix_tile.HALF, matrix_tile.FLOAT
    others = matrix_tile.Operands(warpgroups=False)
    for form in (half, single):
        assert choose(1, 4096, 512, 4608, form, h200).warpgroups
        assert not choose(1, 4096, 512, 4608, form, h200, others).warpgroups
        assert not choose(1, 4096, 512, 4608, form, replace(h200, warpgroups=False)).warpgroups
        assert not choose(1, 49, 768, 768, form, h200).warpgroups
        assert not choose(1, 32, 1 << 14, 4608, form, h200).warpgroups
        assert not choose(1, 1 << 16, 16, 4608, form, h200).warpgroups


@pytest.mark.usefixtures("always_warpgroups")
@pytest.mark.parametrize("constant", [False, True])
def test_what_warpgroups_do_not_take(device: Device, constant: bool) -> None:
    """Floats as operand B that are no weights, or that halves cannot stand for."""
    g = Builder(11)
    units = replace(device, matrix_units=True, warpgroups=True)
    b = g.constant(g.numbers.standard_normal((48, 40)) * 1e6, np.float32) if constant else stored(g, 48, 40)
    model = g.model([g.op("MatMul", [stored(g, 64, 48), b], (64, 40))])
    program = build_device_program(model, level="full", device=units, options=DeviceOptions("buffer", "fp32"))
    text = "".join(program.sources.values())
    assert "sm_multiply" in text and "sm_commit();" not in text


def test_functions_of_warpgroups_have_names_of_their_own() -> None:
    """Kernels of both forms, and of several widths, lie in one program."""
    text = "".join(ptx.warpgroup_products(columns, floats) for columns in (32, 64) for floats in (False, True))
    names = re.findall(r"^inline void (\w+)\(", text, re.MULTILINE)
    assert len(names) == len(set(names)) == 10
