"""Integers that stay floats: where they always are integers of the type, and only casts to floats read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from tests.support.definitions import random
from tests.support.onnx_models import info, model

import smartmem
from smartmem.frontend.load import load_graph
from smartmem.kernel.expr import Const, Expr, walk
from smartmem.kernel.stage import Kernel
from smartmem.passes.pipeline import run_passes

UNSIGNED = {"s": np.float32(0.02), "z": np.uint8(120)}
QUANTIZE = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
DEQUANTIZE = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"])


def agrees(proto: onnx.ModelProto, x: Any) -> None:
    """Every level gives what ONNX Runtime does."""
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    for level in ("naive", "fuse", "full"):
        with smartmem.compile(proto, level=level) as compiled:
            for got, expected in zip(compiled.run({"x": x}), wanted, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def kernels(proto: onnx.ModelProto) -> list[Kernel]:
    return [k for k in run_passes(load_graph(proto), "full").kernels if isinstance(k, Kernel)]


def integers(proto: onnx.ModelProto) -> int:
    """How many operations on integers and reads of them the kernels have."""
    bodies: list[Expr] = [stage.body for kernel in kernels(proto) for stage in kernel.stages]
    return sum(node.dtype.kind in "iu" for body in bodies for node in walk(body) if not isinstance(node, Const))


def test_quantized_and_back_is_arithmetic_on_floats() -> None:
    proto = model([QUANTIZE, DEQUANTIZE, helper.make_node("Relu", ["d"], ["y"])], {"x": (3, 50)}, {"y": None}, UNSIGNED)
    assert integers(proto) == 0
    assert len(kernels(proto)) == 1
    agrees(proto, random(3, 50, low=-5.0, high=5.0))


def test_a_product_with_dynamic_quantization_has_no_integers() -> None:
    """The integers, their zero point and the sums are floats, so scale and bias follow in the product's kernel."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["m"]),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["g"]),
        helper.make_node("Add", ["g", "b"], ["y"]),
    ]
    weights = np.random.default_rng(0).integers(-127, 128, (64, 32)).astype(np.int8)
    proto = model(nodes, {"x": (10, 64)}, {"y": None}, {"w": weights, "b": random(32)})
    assert integers(proto) == 0
    (product,) = [
        kernel for kernel in kernels(proto) if len(kernel.stages[0].reduce) == 1 and kernel.output.size == 320
    ]
    assert product.tensor == "y"
    agrees(proto, random(10, 64))


def test_what_else_reads_integers_keeps_them() -> None:
    """They are an output, indices, or operands of integer arithmetic."""
    x = random(3, 50, low=-5.0, high=5.0)
    output = model(
        [QUANTIZE, DEQUANTIZE], {"x": (3, 50)}, [info("d", None), info("q", None, TensorProto.UINT8)], UNSIGNED
    )
    agrees(output, x)
    rows = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32)
    back = helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT)
    gather = [rows, back, helper.make_node("Gather", ["t", "i"], ["g"]), helper.make_node("Add", ["f", "g"], ["y"])]
    agrees(model(gather, {"x": (3, 50)}, {"y": None}, {"t": random(5)}), np.floor(np.abs(x)) % 5)
    product = [QUANTIZE, DEQUANTIZE, helper.make_node("Add", ["q", "q"], ["e"])]
    both = model([*product, helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT)], {"x": (3, 50)},
                 {"y": None, "d": None}, UNSIGNED, opset=14)  # fmt: skip
    assert integers(both)
    agrees(both, x)


def test_casts_that_cut_stay() -> None:
    """A fraction is lost, or the type has fewer integers."""
    for kind, scale in ((TensorProto.INT32, 1.0), (TensorProto.INT8, 100.0)):
        nodes = [
            helper.make_node("Mul", ["x", "k"], ["a"]),
            helper.make_node("Round" if kind == TensorProto.INT8 else "Identity", ["a"], ["b"]),
            helper.make_node("Clip", ["b", "low", "high"], ["c"]),
            helper.make_node("Cast", ["c"], ["i"], to=kind),
            helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ]
        bounds = {"k": np.float32(scale), "low": np.float32(-200), "high": np.float32(127)}
        proto = model(nodes, {"x": (3, 50)}, {"y": None}, bounds)
        assert integers(proto)
    there = helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32)
    back = helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)
    agrees(model([there, back], {"x": (3, 50)}, {"y": None}), random(3, 50, low=-5.0, high=5.0))


def test_zeros_quantize_to_zeros() -> None:
    """Their scale is 0, and 0 / 0 no number, which as an integer is 0."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    agrees(model(nodes, {"x": (10, 64)}, {"y": None}), np.zeros((10, 64), np.float32))
