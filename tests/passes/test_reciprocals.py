"""Division by constants and by one number per row: products with reciprocals, where these are normal numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import smartmem
from smartmem.compiler import build_program


def model(nodes: list[onnx.NodeProto], shape: tuple[int, ...], **constants: np.ndarray) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
    arrays = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "quotients", [x], [y], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def text_of(proto: onnx.ModelProto, level: str = "full") -> str:
    return "".join(build_program(proto, level=level, march="x86-64-v4").sources.values())


def quotients(divisor: np.ndarray) -> onnx.ModelProto:
    return model([helper.make_node("Div", ["x", "d"], ["y"])], (3, 40), d=divisor.astype(np.float32))


def close(got: np.ndarray, want: np.ndarray) -> bool:
    """Equal to 1.5 ulp; infinities and NaN in the same places."""
    finite = np.isfinite(want)
    ulp = np.spacing(np.abs(want[finite]))
    same = np.array_equal(got[~finite], want[~finite], equal_nan=True)
    return same and bool((np.abs(got[finite].astype(np.float64) - want[finite]) <= 1.5 * ulp).all())


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_vectors(scale: float) -> None:
    divisor = np.random.default_rng(0).uniform(0.5, 3, 40).astype(np.float32)
    divisor[::2] *= -scale
    proto = quotients(divisor)
    assert " / " not in text_of(proto).replace("c1 / ", "")
    assert " / " in text_of(proto, "layout")
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    with smartmem.compile(proto, threads=1) as compiled:
        assert close(compiled(x), x / divisor)


@pytest.mark.parametrize("odd", [0.0, -0.0, np.inf, np.nan, 1e-40, 3e38])
def test_vectors_with_one_that_has_no_normal_reciprocal(odd: float) -> None:
    divisor = np.linspace(0.5, 3, 40).astype(np.float32)
    divisor[7] = odd
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    with smartmem.compile(quotients(divisor), threads=1) as compiled, np.errstate(all="ignore"):
        assert np.array_equal(compiled(x), x / divisor, equal_nan=True)


@pytest.mark.parametrize("number", [3.0, -7e-39, 2.5e38, 0.0, np.inf, np.nan])
def test_one_number_per_row(number: float) -> None:
    """Rows divided by their sum, which may be any number."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Div", ["x", "sum"], ["y"]),
    ]
    proto = model(nodes, (4, 40), axes=np.array([1]))
    assert "sm_over(" in text_of(proto)
    x = np.random.default_rng(1).integers(1, 9, (4, 40)).astype(np.float32)
    x[1] = 0
    x[1, 5] = number
    with smartmem.compile(proto, threads=1) as compiled, np.errstate(all="ignore"):
        got, want = compiled(x), x / x.sum(axis=1, keepdims=True)
    assert close(got, want)


def test_numbers() -> None:
    proto = model([helper.make_node("Div", ["x", "d"], ["y"])], (3, 40), d=np.float32(3).reshape(()))
    assert " / " not in text_of(proto).replace("c1 / ", "")
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    with smartmem.compile(proto, threads=1) as compiled:
        assert close(compiled(x), x / np.float32(3))
