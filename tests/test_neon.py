"""The code for 64-bit ARM, run: kernels of each family and the vector functions, under emulation.

What a kernel computes is compared with the onnx package's reference, the vector functions with float64 and the bounds
that `runtime/test_simd_math.py` has for x86.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.runtime import test_simd_math as simd
from tests.schedule.test_online import attention, masked, random, reference
from tests.schedule.test_windows import depthwise, weight, windows_and_convolution
from tests.support.emulated import MARCH, build, emulator, run, run_program
from tests.support.onnx_models import model

from smartmem.compiler import build_program


@pytest.fixture(autouse=True)
def _emulated() -> None:
    emulator()


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def product() -> onnx.ModelProto:
    """LayerNorm, a matrix product with bias and GELU, a second one, and a residual; sizes fill no vector."""
    nodes = [
        node("LayerNormalization", "x g b", "n"),
        node("MatMul", "n w", "p"),
        node("Add", "p c", "q"),
        node("Gelu", "q", "r"),
        node("MatMul", "r v", "s"),
        node("Add", "s x", "y"),
    ]
    weights = {"g": weight(70), "b": weight(70), "w": weight(70, 150), "c": weight(150), "v": weight(150, 70)}
    made = model(nodes, {"x": (2, 37, 70)}, constants=weights, opset=20)
    made.ir_version = 9
    return made


def convolutions() -> onnx.ModelProto:
    """A strided 3x3, one that Winograd's transform takes, one in groups, a pooling, and a mean to the end."""
    nodes = [
        node("Conv", "x w0", "a", strides=[2, 2], pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b w1", "c", pads=[1] * 4),
        node("HardSwish", "c", "d"),
        node("Conv", "d w2", "e", pads=[1] * 4, group=8),
        node("MaxPool", "e", "f", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Sigmoid", "f", "h"),
        node("Mul", "f h", "i"),
        node("GlobalAveragePool", "i", "y"),
    ]
    weights = {"w0": weight(64, 5, 3, 3), "w1": weight(64, 64, 3, 3), "w2": weight(64, 8, 3, 3)}
    return model(nodes, {"x": (1, 5, 49, 50)}, constants=weights)


def pointwise() -> onnx.ModelProto:
    """Functions that no instruction has, a shuffle of channels, a softmax and a choice by comparison."""
    nodes = [
        node("Tanh", "x", "a"),
        node("Exp", "a", "b"),
        node("Erf", "x", "c"),
        node("Less", "b c", "d"),
        node("Where", "d b c", "e"),
        node("DepthToSpace", "e", "f", blocksize=2),
        node("Transpose", "f", "g", perm=[0, 2, 3, 1]),
        node("Softmax", "g", "h", axis=-1),
        node("ReduceMax", "h", "i", keepdims=1, axes=[2]),
        node("Sub", "h i", "j"),
        node("Log", "i", "k"),
        node("Add", "j k", "y"),
    ]
    return model(nodes, {"x": (1, 12, 9, 11)})


MODELS = {
    "product": product,
    "convolutions": convolutions,
    "depthwise": lambda: depthwise(33, 15, 3),
    "windows": windows_and_convolution,
    "pointwise": pointwise,
}


@pytest.mark.parametrize("level", ["naive", "full"])
@pytest.mark.parametrize("name", list(MODELS))
def test_kernels(name: str, level: str, tmp_path: Path) -> None:
    proto = MODELS[name]()
    inputs = random(proto)
    program = build_program(proto, level=level, march=MARCH)
    (wanted,) = ReferenceEvaluator(proto).run(None, inputs)
    (got,) = run_program(program, inputs, tmp_path).values()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("keys", [49, 600])
def test_attention(keys: int, tmp_path: Path) -> None:
    """Rows of scores kept whole, and blocks of keys; masks of infinities, and one row that sees nothing."""
    proto = attention(2, 21, keys, 36, 40, mask=True)
    inputs = random(proto) | {"mask": masked(21, keys)}
    (got,) = run_program(build_program(proto, level="full", march=MARCH), inputs, tmp_path).values()
    np.testing.assert_allclose(got, reference(**inputs), rtol=0, atol=1e-5)
    assert np.isnan(got[:, 5]).all() and np.isfinite(np.delete(got, 5, axis=1)).all()


def calls(values: int) -> str:
    """A program that writes the results of all functions of one argument, by vectors and one by one."""
    each = "".join(f"    {name}_{form}(x, y, n); fwrite(y, 4, n, out);\n" for name in simd.UNARY for form in "vs")
    pairs = "".join(
        f"    {name}_{form}(x, x + n - {values}, y, {values}); fwrite(y, 4, {values}, out);\n"
        for name in simd.BINARY
        for form in "vs"
    )
    return f"""{simd.SOURCE}
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {{
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    fseek(in, 0, SEEK_END);
    const long n = ftell(in) / 4;
    rewind(in);
    float *x = malloc(4 * n + 64), *y = malloc(4 * n + 64);
    if (argc != 3 || fread(x, 4, n, in) != (size_t)n) return 2;
{each}{pairs}
    for (int k = 0; k < 4; ++k) {{
        float r[4];
        for (int lane = 0; lane < SM_W; ++lane) r[lane] = lane == k ? 3.0f : 0.5f;
        const float found[] = {{ hsum(r), hmax(r), hmin(r), hprod(r) }};
        fwrite(found, 4, 4, out);
        r[k] = NAN;
        const float none[] = {{ hsum(r), hmax(r), hmin(r), hprod(r) }};
        fwrite(none, 4, 4, out);
    }}
    for (int k = 1; k <= 4; ++k) {{
        float part[4] = {{ 5, 5, 5, 5 }};
        load_n(x, part, k, 9.0f);
        fwrite(part, 4, 4, out);
        float kept[4] = {{ 5, 5, 5, 5 }};
        store_n(x, kept, k);
        fwrite(kept, 4, 4, out);
    }}
    return fclose(out) == 0 ? 0 : 3;
}}
"""


def test_vector_functions(tmp_path: Path) -> None:
    pattern = simd.dense(40_009)
    a, b = (g.ravel() for g in np.meshgrid(simd.SPECIAL[:16], simd.SPECIAL[:16]))
    x = np.concatenate([pattern, a, b]).astype(np.float32)
    x.tofile(tmp_path / "in.bin")
    run(build(tmp_path, {"functions.c": calls(a.size)}), tmp_path / "in.bin", tmp_path / "out.bin")
    raw = np.fromfile(tmp_path / "out.bin", np.float32)

    def take(count: int) -> np.ndarray:
        nonlocal raw
        taken, raw = raw[:count], raw[count:]
        return taken

    with np.errstate(all="ignore"):
        for name in simd.UNARY:
            vector, scalar = take(x.size), take(x.size)
            if name in simd.EXACT:
                exact = simd.EXACT[name](x.astype(np.float64))
                if name in ("exp", "sigmoid"):
                    exact[exact < 2.0**-126] = 0.0
                assert simd.error_in_ulp(vector, exact).max() <= simd.BOUNDS[name], name
                assert np.allclose(scalar, vector, rtol=3e-7, atol=1e-44, equal_nan=True), name
            elif name == "exp_below":
                below = ~(x > 0)
                for found in (vector, scalar):
                    assert np.allclose(found[below], np.exp(x[below]), rtol=2e-5, atol=2.0**-126, equal_nan=True), name
            elif name in simd.EXACT_TO_THE_BIT:
                for found in (vector, scalar):
                    assert np.array_equal(found, getattr(np, name)(x), equal_nan=True), name
            else:
                function = simd.exact_gelu if name == "gelu" else getattr(np, name)
                wanted = function(x.astype(np.float64)).astype(np.float32)
                for found in (vector, scalar):
                    assert np.allclose(found, wanted, rtol=1e-6, atol=1e-6, equal_nan=True), name
        second = x[-a.size :]
        for name in simd.BINARY:
            function = {"max": np.maximum, "min": np.minimum, "pow": np.power}.get(name, np.maximum)
            wanted = function(x[: a.size], second)
            known = np.isfinite(wanted) if name == "max_ordered" else np.ones(a.size, bool)
            for _ in "vs":
                assert np.allclose(take(a.size)[known], wanted[known], rtol=1e-6, equal_nan=True), name
    for _ in range(4):
        assert take(4).tolist() == [4.5, 3.0, 0.5, 0.375]
        assert np.isnan(take(4)).all()
    for k in range(1, 5):
        assert np.array_equal(take(4), [*x[:k], *[9.0] * (4 - k)])
        assert np.array_equal(take(4), [*x[:k], *[5.0] * (4 - k)])
    assert raw.size == 0
