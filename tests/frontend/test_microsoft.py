"""Quantized operators of ONNX Runtime's own domain, as its quantizer writes them: integers at most one step apart."""

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
IMAGE = (1, 8, 6, 7)


def bytes_of(*shape: int, kind: Any = np.uint8) -> Any:
    limits = np.iinfo(kind)
    return RANDOM.integers(limits.min, int(limits.max) + 1, shape).astype(kind)


def quantum(scale: float, zero: int, kind: Any = np.uint8) -> list[Any]:
    return [np.float32(scale), kind(zero)]


def apart(op: str, operands: list[Any], result: int, steps: float, **attributes: Any) -> None:
    """Runs an operator of `operands`, the first of which is the input; None: absent."""
    names = [f"i{k}" if x is not None else "" for k, x in enumerate(operands)]
    node = helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)
    x = operands[0]
    constants = {name: value for name, value in zip(names[1:], operands[1:], strict=True) if value is not None}
    inputs = [info(names[0], x.shape, helper.np_dtype_to_tensor_dtype(x.dtype))]
    proto: onnx.ModelProto = model(
        [node], inputs, [info("y", None, result)], constants, 13, domains={"com.microsoft": 1}
    )
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {names[0]: x})[0]
    assert len(np.unique(wanted)) > 5
    with smartmem.compile(proto) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        got = compiled(x)
    assert got.dtype == wanted.dtype
    assert np.abs(got.astype(np.float64) - wanted).max() <= steps


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_two_operands(op: str) -> None:
    other = [bytes_of(*IMAGE), *quantum(0.03, 100)]
    apart(op, [bytes_of(*IMAGE), *quantum(0.02, 120), *other, *quantum(0.05, 128)], TensorProto.UINT8, 1)
    apart(op, [bytes_of(*IMAGE), *quantum(0.02, 120), *other, np.float32(0.05)], TensorProto.UINT8, 1)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("QLinearSigmoid", {}),
        ("QLinearLeakyRelu", {"alpha": 0.1}),
        ("QLinearSoftmax", {"axis": 1, "opset": 13}),
        ("QLinearGlobalAveragePool", {"channels_last": 0}),
        ("QLinearAveragePool", {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1], "channels_last": 0}),
    ],
)
def test_one_operand(op: str, attributes: dict[str, Any]) -> None:
    into = quantum(0.004, 0) if op in ("QLinearSigmoid", "QLinearSoftmax") else quantum(0.01, 110)
    apart(op, [bytes_of(*IMAGE), *quantum(0.02, 120), *into], TensorProto.UINT8, 1, **attributes)


def test_concat() -> None:
    node = helper.make_node(
        "QLinearConcat", ["sy", "zy", "x", "sx", "zx", "w", "sw", "zw"], ["y"], axis=1, domain="com.microsoft"
    )
    constants = {"sy": np.float32(0.03), "zy": np.uint8(9), "sx": np.float32(0.02), "zx": np.uint8(120)}
    constants |= {"w": bytes_of(*IMAGE), "sw": np.float32(0.01), "zw": np.uint8(3)}
    x = bytes_of(*IMAGE)
    inputs, outputs = [info("x", IMAGE, TensorProto.UINT8)], [info("y", None, TensorProto.UINT8)]
    proto = model([node], inputs, outputs, constants, 13, domains={"com.microsoft": 1})
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto) as compiled:
        assert np.abs(compiled(x).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("quantized", [False, True])
def test_gemm(transposed: int, quantized: bool) -> None:
    shape = (40, 64) if transposed else (64, 40)
    weights = [bytes_of(*shape, kind=np.int8), RANDOM.uniform(0.01, 0.02, 40).astype(np.float32), np.zeros(40, np.int8)]
    bias = RANDOM.integers(-5000, 5000, 40).astype(np.int32)
    into = quantum(0.5, 128) if quantized else []
    operands = [bytes_of(9, 64), *quantum(0.02, 120), *weights, bias, *into]
    kind, steps = (TensorProto.UINT8, 1) if quantized else (TensorProto.FLOAT, 1e-3)
    apart("QGemm", operands, kind, steps, transB=transposed, alpha=1.0)


def test_matrix_products_to_floats() -> None:
    weights, scale, bias = (
        bytes_of(64, 40, kind=np.int8),
        np.float32(0.02),
        RANDOM.standard_normal(40).astype(np.float32),
    )
    x = RANDOM.standard_normal((9, 64)).astype(np.float32)
    apart("DynamicQuantizeMatMul", [x, weights, scale, np.int8(0), bias], TensorProto.FLOAT, 1e-4)
    apart("DynamicQuantizeMatMul", [x, weights, scale], TensorProto.FLOAT, 1e-4)
    operands = [bytes_of(9, 64), weights, np.float32(0.01), scale, np.uint8(120), np.int8(0), bias]
    apart("MatMulIntegerToFloat", operands, TensorProto.FLOAT, 1e-4)
