"""Operands A that are packed into scratch, since nothing of them is contiguous along the reduction."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program


def first_layer(taps: int, stride: int, constant: bool = True, channels: int = 3) -> onnx.ModelProto:
    """A convolution of an image whose channels lie apart."""
    rng = np.random.default_rng([taps, stride, channels])
    w = (rng.standard_normal((24, channels, taps, taps)) / taps).astype(np.float32)
    image = {"x": (1, channels, 19, 22)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[taps // 2] * 4, strides=[stride] * 2)
    return model([node], image, constants={"w": w}) if constant else model([node], image | {"w": w.shape})


@pytest.mark.parametrize("level", smartmem.LEVELS)
@pytest.mark.parametrize(
    ("taps", "stride", "constant"),
    [(3, 2, True), (3, 1, True), (7, 2, True), (11, 2, True), (4, 4, True), (3, 2, False)],
)
def test_it_gives_what_the_convolution_gives(taps: int, stride: int, constant: bool, level: str) -> None:
    proto = first_layer(taps, stride, constant)
    rng = np.random.default_rng()
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    (expected,) = ReferenceEvaluator(proto).run(None, inputs)
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        found = compiled(**inputs)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5


def test_a_packed_row_is_one_segment() -> None:
    """Channels, rows and columns of the taps lie one after the other in scratch, whatever order the definition has."""
    sources = build_program(first_layer(3, 2)).sources
    text = "\n".join(sources.values() if isinstance(sources, dict) else sources)
    calls = re.findall(r"sm_tile_\w+\(a \+ i, (\w+), \w+, \w+, (\w+), (\w+),", text)
    assert calls and set(calls) == {("1", "0", "27")}


def summed_over_tokens(tokens: int, width: int) -> onnx.ModelProto:
    """relu(k)^T v of two heads, k and v side by side in x[tokens, 2 * 2 * width]: linear attention."""
    constants = {"shape": np.array([tokens, 2, 2, width]), "zero": np.array(0), "one": np.array(1)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[1, 2, 0, 3]),
        helper.make_node("Gather", ["t", "zero"], ["k"], axis=0),
        helper.make_node("Gather", ["t", "one"], ["v"], axis=0),
        helper.make_node("Relu", ["k"], ["relu"]),
        helper.make_node("Transpose", ["relu"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["kt", "v"], ["y"]),
    ]
    return model(nodes, {"x": (tokens, 4 * width)}, constants=constants)


@pytest.mark.parametrize(("tokens", "width"), [(64, 32), (50, 32), (49, 40), (33, 17), (100, 75), (1100, 20)])
def test_rows_that_lie_side_by_side_stay_so(tokens: int, width: int) -> None:
    """Tiles read operand A across its rows: nothing is turned, nothing gathered."""
    proto = summed_over_tokens(tokens, width)
    x = np.random.default_rng().standard_normal((tokens, 4 * width)).astype(np.float32)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    for level in ("layout", "full"):
        with smartmem.compile(proto, level=level, threads=2) as compiled:
            found = compiled(x=x)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    text = "\n".join(build_program(proto, march="x86-64-v3").sources.values())
    assert "sm_across_" in text and "sm_transpose(v)" not in text and "sm_load_strided" not in text


@pytest.mark.parametrize(("tokens", "slices"), [(384, 2), (383, 1), (1000, 4), (3136, 8)])
def test_long_sums_of_activations_go_in_slices(tokens: int, slices: int) -> None:
    """Of as many tokens each as one core wrote; a kernel adds them up."""
    proto = summed_over_tokens(tokens, 24)
    program = build_program(proto, march="x86-64-v4")
    shapes = [kernel["shape"] for kernel in program.report["kernels"]]
    assert shapes == [[2, 24, 24]] if slices == 1 else shapes[0][0] == slices and shapes[1:] == [[2, 24, 24]]
    x = np.random.default_rng().standard_normal((tokens, 96)).astype(np.float32)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    with smartmem.compile(proto, threads=2) as compiled:
        assert np.linalg.norm(compiled(x=x) - expected) / np.linalg.norm(expected) < 1e-5
