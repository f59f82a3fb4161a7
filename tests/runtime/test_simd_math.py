"""The vector functions of `simd.h` against float64, in units in the last place (ulp) of float32.

Largest errors measured over every 1009th float32, AVX-512 / AVX2 / SSE2: see `BOUNDS`, which are these numbers
rounded up.
"""

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

NATIVE = Path(__file__).parents[2] / "src" / "smartmem" / "runtime" / "native"
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-fPIC", "-Wall", "-Wextra", "-Werror"]

# The instruction sets that this machine can run.
TARGETS = {"native": ["-march=native"]}
if os.uname().machine == "x86_64":
    TARGETS["sse2"] = ["-march=nocona"]
    if "avx2" in Path("/proc/cpuinfo").read_text():
        TARGETS["avx2"] = ["-march=haswell"]

EXACT_TO_THE_BIT = ["sqrt", "abs", "floor", "ceil", "round", "trunc"]
LANE_BY_LANE = ["sin", "log1p", "expm1"]
UNARY = ["exp", "exp_below", "log", "tanh", "erf", "gelu", "sigmoid", "rsqrt", *EXACT_TO_THE_BIT, *LANE_BY_LANE]
BINARY = ["max", "max_ordered", "min", "pow"]
REDUCTIONS = ["hsum", "hmax", "hmax_ordered", "hmin", "hprod"]

SOURCE = '#include "simd.h"\nint lanes(void) { return SM_W; }\n'
for _name in UNARY:
    SOURCE += f"""
void {_name}_v(const float *x, float *y, long n) {{
    long i = 0;
    for (; i + SM_W <= n; i += SM_W) sm_store(y + i, sm_{_name}v(sm_load(x + i)));
    if (i < n) sm_store_n(y + i, sm_{_name}v(sm_load_n(x + i, n - i, 0.5f)), n - i);
}}
void {_name}_s(const float *x, float *y, long n) {{
    for (long i = 0; i < n; i++) y[i] = sm_{_name}s(x[i]);
}}
"""
for _name in BINARY:
    _vector = f"sm_{_name}" + ("v" if _name == "pow" else "")
    SOURCE += f"""
void {_name}_v(const float *a, const float *b, float *y, long n) {{
    for (long i = 0; i < n; i += SM_W) sm_store(y + i, {_vector}(sm_load(a + i), sm_load(b + i)));
}}
void {_name}_s(const float *a, const float *b, float *y, long n) {{
    for (long i = 0; i < n; i++) y[i] = sm_{_name}s(a[i], b[i]);
}}
"""
for _name in REDUCTIONS:
    SOURCE += f"float {_name}(const float *x) {{ return sm_{_name}(sm_load(x)); }}\n"
SOURCE += """
void load_n(const float *p, float *y, long n, float fill) { sm_store(y, sm_load_n(p, n, fill)); }
void store_n(const float *p, float *y, long n) { sm_store_n(y, sm_load(p), n); }
void strided(const float *p, float *y, long stride) { sm_store_strided(y, stride, sm_load_strided(p, stride)); }
void strided_n(const float *p, float *y, long stride, long n) {
    sm_store_strided_n(y, stride, sm_load_strided_n(p, stride, n, 0.0f), n);
}
void choose(const unsigned char *mask, const float *a, const float *b, float *y, long n) {
    i32v k = n == SM_W ? sm_load_bool(mask) : sm_load_bool_n(mask, n);
    sm_store_n(y, sm_select(k, sm_load_n(a, n, 0.0f), sm_load_n(b, n, 0.0f)), n);
}
void less(const float *a, const float *b, unsigned char *y, long n) {
    i32v k = (i32v)(sm_load_n(a, n, 0.0f) < sm_load_n(b, n, 0.0f));
    if (n == SM_W) sm_store_bool(y, k);
    else sm_store_bool_n(y, k, n);
}
void count(float *y) { sm_store(y, sm_iota_f() + sm_to_float(sm_iota()) + sm_splat(0.0f)); }
"""

# Largest error allowed, in ulp.
BOUNDS = {"exp": 1.2, "log": 1.0, "tanh": 3.2, "erf": 6.0, "sigmoid": 2.5, "rsqrt": 1.5}

SPECIAL = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1.0, -1.0]
    + [88.72283, 88.72284, 88.8, -87.3, -87.4, -103.97, -103.98, -104.0, -105.0, 9.01, 9.02, 9.03, 3.91, 3.92, 3.93]
    + [0.5, 1.5, 2.5, -0.5, -1.5, 8388607.5, 8388608.0, 2.0**31, 0.6666666, 0.6666667, 1.3333333, 1.3333334],
    np.float32,
)


@pytest.fixture(scope="module", params=list(TARGETS))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The functions of `SOURCE`, compiled for one instruction set."""
    folder = tmp_path_factory.mktemp("simd")
    (folder / "functions.c").write_text(SOURCE)
    compiler = os.environ.get("SMARTMEM_CC", f"{sys.executable} -m ziglang cc").split()
    output = folder / "functions.so"
    target = [*TARGETS[request.param], f"-I{NATIVE}"]
    command = [*compiler, *FLAGS, *target, "-shared", "functions.c", "-o", str(output), "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(output))


def call(function: Callable[..., object], *arrays: F32) -> F32:
    """`function(inputs..., output, count)` over flat arrays."""
    out = np.full_like(arrays[0], 777.0)
    function(*(ctypes.c_void_p(a.ctypes.data) for a in (*arrays, out)), ctypes.c_long(out.size))
    return out


def dense(step: int = 1009) -> F32:
    """Special values, every `step`-th float32 pattern of both signs, and random values of moderate size."""
    pattern = np.arange(0, 2**32, step, dtype=np.uint32)
    random = np.random.default_rng(0).normal(0, 4, 300_001).astype(np.float32)
    values: F32 = np.concatenate([SPECIAL, pattern.view(np.float32), random])
    wanted: F32 = values[~np.isnan(values) | (np.arange(values.size) < SPECIAL.size)]
    return wanted


def error_in_ulp(got: F32, exact: F64) -> F64:
    """|got - exact| over the spacing of float32 at `exact`; 0 where both are the same infinity or NaN."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(np.float32)
    same = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    spacing = np.spacing(np.abs(np.where(np.isfinite(rounded), rounded, np.float32(3.4e38)))).astype(np.float64)
    with np.errstate(invalid="ignore"):
        error: F64 = np.abs(got.astype(np.float64) - exact) / spacing
    error[np.isnan(error)] = np.inf
    error[same & ~np.isfinite(rounded)] = 0.0
    return error


def exact_sigmoid(x: F64) -> F64:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


EXACT: dict[str, Callable[[F64], F64]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": lambda x: np.array([math.erf(v) for v in x.tolist()]),
    "sigmoid": exact_sigmoid,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
}


@pytest.mark.parametrize("name", list(EXACT))
def test_error(library: ctypes.CDLL, name: str) -> None:
    x = dense(10_007 if name == "erf" else 1009)
    got = call(library[f"{name}_v"], x)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
    if name in ("exp", "sigmoid"):
        subnormal = exact < 2.0**-126
        assert (got[subnormal] == 0).all()
        exact[subnormal] = 0.0
    error = error_in_ulp(got, exact)
    worst = int(np.argmax(error))
    print(f"{name}: {error[worst]:.3f} ulp at {x[worst]!r}")
    assert error[worst] <= BOUNDS[name], f"{error[worst]} ulp at {x[worst]!r}: {got[worst]!r}, exact {exact[worst]!r}"
    if name in ("tanh", "erf", "sigmoid"):
        assert np.nanmax(np.abs(got)) == 1.0
    scalar = call(library[f"{name}_s"], x[::17].copy())
    assert np.allclose(scalar, got[::17], rtol=3e-7, atol=1e-44, equal_nan=True)


def test_exp_below(library: ctypes.CDLL) -> None:
    """For x <= 0 the relative error grows with -x; 0 for results below 2^-126 and for -inf; NaN stays."""
    x = dense()
    x = np.ascontiguousarray(x[~(x > 0)])
    got = call(library["exp_below_v"], x)
    assert np.array_equal(np.isnan(got), np.isnan(x))
    assert (got[x == 0] == 1).all()
    assert (got[x < -87.34] == 0).all()
    normal = x > -87.33
    exact = np.exp(x[normal].astype(np.float64))
    error = np.abs(got[normal] - exact) / exact / (1 - x[normal].astype(np.float64))
    print(f"exp_below: {error.max() * 2**23:.3f} * 2^-23 (1 - x) at {x[normal][np.argmax(error)]!r}")
    assert error.max() <= 2.0**-23 * 1.5
    scalar = call(library["exp_below_s"], x[::17].copy())
    assert np.allclose(scalar, got[::17], rtol=3e-7, atol=0, equal_nan=True)


def exact_gelu(x: F64) -> F64:
    return x / 2 * (1 + np.array([math.erf(v) for v in (x * math.sqrt(0.5)).tolist()]))


def exact_gelu_of_negatives(x: F64) -> F64:
    return x / 2 * np.array([math.erfc(v) for v in (-x * math.sqrt(0.5)).tolist()])


def test_gelu(library: ctypes.CDLL) -> None:
    """Of positive numbers a few ulp; of negative ones the error is that of erf times x, or relative to the result."""
    x = dense(10_007)
    x = np.ascontiguousarray(x[np.abs(x) < 2.0**126])
    got = call(library["gelu_v"], x)
    wide = x.astype(np.float64)
    exact = exact_gelu(wide)
    positive = x >= 2.0**-120
    ulp = error_in_ulp(got, exact)[positive].max()
    share = np.max(np.abs(got - exact)[x != 0] / (np.abs(wide[x != 0]) + 2.0**-120))
    print(f"gelu: {ulp:.3f} ulp, {share:.2e} |x|")
    assert ulp <= 3.5 and share <= 3e-7
    if library.lanes() == 16:
        small = (x < -(2.0**-120)) & (x > -3)
        assert ulp <= 1.7 and share <= 8e-8 and error_in_ulp(got, exact_gelu_of_negatives(wide))[small].max() <= 3
    assert np.isnan(call(library["gelu_v"], np.full(16, np.nan, np.float32))).all()
    low = call(library["gelu_v"], np.full(16, -np.inf, np.float32))
    assert (np.isnan(low) | (low == 0)).all()
    assert np.isinf(call(library["gelu_v"], np.full(16, np.inf, np.float32))).all()
    scalar = call(library["gelu_s"], x[::17].copy())
    assert np.allclose(scalar, got[::17], rtol=3e-7, atol=1e-7)


def test_max_ordered(library: ctypes.CDLL) -> None:
    values = SPECIAL[~np.isnan(SPECIAL)][:16]
    a, b = (np.ascontiguousarray(g.ravel()) for g in np.meshgrid(values, values))
    for form in "vs":
        assert np.array_equal(call(library[f"max_ordered_{form}"], a, b), np.maximum(a, b))
    reduce = library["hmax_ordered"]
    reduce.restype = ctypes.c_float
    for lane in range(library.lanes()):
        x = np.full(library.lanes(), -1.0, np.float32)
        x[lane] = 2.0
        assert reduce(ctypes.c_void_p(x.ctypes.data)) == 2.0


@pytest.mark.parametrize("name", EXACT_TO_THE_BIT)
def test_ieee_operations_are_exact(library: ctypes.CDLL, name: str) -> None:
    x = dense(100_003)
    with np.errstate(all="ignore"):
        expected: F32 = getattr(np, name)(x)
    assert np.array_equal(call(library[f"{name}_v"], x), expected, equal_nan=True)
    assert np.array_equal(call(library[f"{name}_s"], x), expected, equal_nan=True)


@pytest.mark.parametrize("name", LANE_BY_LANE)
def test_lane_by_lane(library: ctypes.CDLL, name: str) -> None:
    x = np.random.default_rng(1).uniform(-0.9, 30, 1003).astype(np.float32)
    exact: F64 = getattr(np, name)(x.astype(np.float64))
    assert error_in_ulp(call(library[f"{name}_v"], x), exact).max() <= 2.0
    assert error_in_ulp(call(library[f"{name}_s"], x), exact).max() <= 2.0


@pytest.mark.parametrize(("name", "function"), [("max", np.maximum), ("min", np.minimum), ("pow", np.power)])
def test_of_two(library: ctypes.CDLL, name: str, function: Callable[..., F32]) -> None:
    a, b = (np.ascontiguousarray(g.ravel()) for g in np.meshgrid(SPECIAL[:16], SPECIAL[:16]))
    with np.errstate(all="ignore"):
        expected = function(a, b)
    for form in "vs":
        assert np.allclose(call(library[f"{name}_{form}"], a, b), expected, rtol=1e-6, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "function"), [("hsum", np.sum), ("hmax", np.max), ("hmin", np.min), ("hprod", np.prod)]
)
def test_reductions(library: ctypes.CDLL, name: str, function: Callable[[F32], np.float32]) -> None:
    lanes = library.lanes()
    reduce = library[name]
    reduce.restype = ctypes.c_float
    x = np.random.default_rng(2).uniform(0.5, 1.5, lanes).astype(np.float32)
    assert reduce(ctypes.c_void_p(x.ctypes.data)) == pytest.approx(float(function(x)), rel=1e-5)
    for lane in range(lanes):
        y = x.copy()
        y[lane] = np.nan
        assert math.isnan(reduce(ctypes.c_void_p(y.ctypes.data)))
        z = np.full(lanes, -1.0, np.float32)
        z[lane] = 2.0
        assert reduce(ctypes.c_void_p(z.ctypes.data)) == float(function(z))


def test_partial_loads_and_stores(library: ctypes.CDLL) -> None:
    lanes = library.lanes()
    x = np.arange(1, lanes + 1, dtype=np.float32)
    for n in range(1, lanes + 1):
        y = np.zeros(lanes, np.float32)
        at = (ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
        library.load_n(*at, ctypes.c_long(n), ctypes.c_float(9.0))
        assert np.array_equal(y, np.where(np.arange(lanes) < n, x, 9))
        y[:] = 5
        library.store_n(*at, ctypes.c_long(n))
        assert np.array_equal(y, np.where(np.arange(lanes) < n, x, 5))


def test_partial_load_leaves_the_next_page_alone(library: ctypes.CDLL) -> None:
    import mmap

    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + page), ctypes.c_size_t(page), 0) == 0
    y = np.zeros(library.lanes(), np.float32)
    for n in range(1, library.lanes() + 1):
        end = ctypes.c_void_p(base + page - 4 * n)
        library.load_n(end, ctypes.c_void_p(y.ctypes.data), ctypes.c_long(n), ctypes.c_float(1.0))
        library.store_n(ctypes.c_void_p(y.ctypes.data), end, ctypes.c_long(n))


def test_strided(library: ctypes.CDLL) -> None:
    lanes = library.lanes()
    for stride in (1, 3, 7):
        x = np.arange(1, lanes * stride + 1, dtype=np.float32)
        for n in range(1, lanes + 1):
            y = np.zeros_like(x)
            at = (ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_long(stride))
            if n == lanes:
                library.strided(*at)
            else:
                library.strided_n(*at, ctypes.c_long(n))
            index = np.arange(x.size)
            assert np.array_equal(y, np.where((index % stride == 0) & (index < n * stride), x, 0))


def test_masks(library: ctypes.CDLL) -> None:
    lanes = library.lanes()
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, lanes)).astype(np.float32)
    mask = rng.integers(0, 3, lanes).astype(np.uint8)
    for n in range(1, lanes + 1):
        y = np.zeros(lanes, np.float32)
        library.choose(*(ctypes.c_void_p(v.ctypes.data) for v in (mask, a, b, y)), ctypes.c_long(n))
        assert np.array_equal(y[:n], np.where(mask, a, b)[:n])
        assert not y[n:].any()
        flags = np.full(lanes, 7, np.uint8)
        library.less(*(ctypes.c_void_p(v.ctypes.data) for v in (a, b, flags)), ctypes.c_long(n))
        assert np.array_equal(flags[:n], a[:n] < b[:n])
        assert (flags[n:] == 7).all()
    y = np.zeros(lanes, np.float32)
    library.count(ctypes.c_void_p(y.ctypes.data))
    assert np.array_equal(y, 2 * np.arange(lanes))
