"""Products of quantized integers: as ONNX Runtime gives them, to the last integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

import smartmem

RANDOM = np.random.default_rng(0)
LEVELS = pytest.mark.parametrize("level", ["naive", "full"])


def unsigned(*shape: int) -> Any:
    return RANDOM.integers(0, 256, shape).astype(np.uint8)


def signed(*shape: int) -> Any:
    return RANDOM.integers(-128, 128, shape).astype(np.int8)


def scales(*shape: int) -> Any:
    return RANDOM.uniform(0.01, 0.02, shape).astype(np.float32)


def one(value: float, dtype: Any = np.float32) -> Any:
    return np.array(value, dtype)


def compare(level: str, node: onnx.NodeProto, x: Any, constants: dict[str, Any], result: int) -> None:
    """The first input is `x`; results are the same integers."""
    inputs = [info(node.input[0], x.shape, helper.np_dtype_to_tensor_dtype(x.dtype))]
    proto = model([node], inputs, [info("y", None, result)], constants, opset=13)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {node.input[0]: x})[0]
    assert len(np.unique(wanted)) > 20
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        np.testing.assert_array_equal(compiled(x), wanted)


@LEVELS
@pytest.mark.parametrize(
    ("a", "constants"),
    [
        (unsigned(13, 700), {"b": signed(700, 65), "za": one(120, np.uint8), "zb": one(3, np.int8)}),
        (unsigned(2, 13, 70), {"b": signed(70, 65), "za": one(120, np.uint8), "zb": signed(65)}),
        (signed(2, 3, 5, 40), {"b": signed(3, 40, 9), "za": one(-5, np.int8), "zb": one(0, np.int8)}),
        (unsigned(13, 70), {"b": unsigned(70, 20)}),
    ],
)
def test_matmul_integer(level: str, a: Any, constants: dict[str, Any]) -> None:
    node = helper.make_node("MatMulInteger", ["a", *constants], ["y"])
    compare(level, node, a, constants, TensorProto.INT32)


@LEVELS
@pytest.mark.parametrize("group", [1, 4])
def test_conv_integer(level: str, group: int) -> None:
    constants = {"w": unsigned(16, 8 // group, 3, 3), "zx": one(100, np.uint8), "zw": one(7, np.uint8)}
    node = helper.make_node("ConvInteger", ["x", *constants], ["y"], pads=[1, 1, 1, 1], strides=[2, 1], group=group)
    compare(level, node, unsigned(1, 8, 13, 14), constants, TensorProto.INT32)


@LEVELS
@pytest.mark.parametrize("column_scales", [False, True])
def test_qlinear_matmul(level: str, column_scales: bool) -> None:
    constants = {
        "sa": one(0.02), "za": one(100, np.uint8), "b": signed(700, 65),
        "sb": scales(65) if column_scales else one(0.02), "zb": np.zeros(65 if column_scales else (), np.int8),
        "sy": one(0.9), "zy": one(128, np.uint8),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["a", *constants], ["y"])
    compare(level, node, unsigned(13, 700), constants, TensorProto.UINT8)


@LEVELS
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_qlinear_conv(level: str, group: int, bias: bool) -> None:
    constants = {
        "sx": one(0.02), "zx": one(100, np.uint8), "w": signed(16, 8 // group, 3, 3), "sw": scales(16),
        "zw": np.zeros(16, np.int8), "sy": one(0.5), "zy": one(128, np.uint8),
    }  # fmt: skip
    if bias:
        constants["b"] = RANDOM.integers(-5000, 5000, 16).astype(np.int32)
    node = helper.make_node("QLinearConv", ["x", *constants], ["y"], pads=[1, 1, 1, 1], group=group)
    compare(level, node, unsigned(1, 8, 13, 14), constants, TensorProto.UINT8)
