"""Functions of one quantized number as tables: found where they are long, with the values of what they replace."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from tests.support.definitions import random
from tests.support.onnx_models import model
from tests.support.processors import skip_unless_it_runs

import smartmem
from smartmem.compiler import build_program


def quantize(source: str, result: str, numbers: str) -> list[onnx.NodeProto]:
    """As exporters write what is quantized: there, and back again."""
    parameters = [f"s{numbers}", f"z{numbers}"]
    return [
        helper.make_node("QuantizeLinear", [source, *parameters], [f"{result}.q"], name=f"{result}.q"),
        helper.make_node("DequantizeLinear", [f"{result}.q", *parameters], [result], name=result),
    ]


def silu(kind: Any) -> onnx.ModelProto:
    """x * sigmoid(x), each of which is quantized."""
    nodes = [
        *quantize("x", "a", "0"),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        *quantize("b", "c", "1"),
        helper.make_node("Mul", ["a", "c"], ["d"]),
        *quantize("d", "y", "2"),
    ]
    numbers = {"s0": 0.05, "s1": 0.004, "s2": 0.03}
    constants = {name: np.float32(value) for name, value in numbers.items()} | {f"z{k}": kind(5 * k) for k in range(3)}
    return model(nodes, {"x": (3, 70)}, {"y": None}, constants)


def tables(proto: onnx.ModelProto) -> int:
    return sum("sm_entry" in text for text in build_program(proto, march="x86-64-v4").sources.values())


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_long_functions_are_tables(kind: Any) -> None:
    proto, x = silu(kind), random(3, 70, low=-8.0, high=8.0)
    assert tables(proto)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto) as compiled, smartmem.compile(proto, level="fuse") as computed:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-6)
        np.testing.assert_allclose(computed(x), wanted, rtol=1e-6)
        np.testing.assert_array_equal(
            compiled(np.full((3, 70), np.nan, np.float32)), computed(np.zeros((3, 70), np.float32))
        )


@pytest.mark.parametrize("march", ["x86-64-v4", "x86-64-v3", "x86-64"])
def test_tables_on_other_processors(march: str) -> None:
    """Entries of a table by permutations, by gathers, and one by one."""
    skip_unless_it_runs(march)
    x = random(3, 70, low=-8.0, high=8.0)
    for kind in (np.uint8, np.int8):
        proto = silu(kind)
        with smartmem.compile(proto, march=march) as compiled, smartmem.compile(proto, level="fuse") as computed:
            np.testing.assert_allclose(compiled(x), computed(x), rtol=1e-6)


def test_numbers_that_are_no_integers_are_tables_of_floats() -> None:
    """Three long functions of one integer, whose value is a float."""
    nodes = [*quantize("x", "a", "0")]
    nodes += [helper.make_node(op, [a], [b]) for op, a, b in (("Sin", "a", "b"), ("Exp", "b", "c"), ("Tanh", "c", "y"))]
    proto = model(nodes, {"x": (3, 70)}, {"y": None}, {"s0": np.float32(0.05), "z0": np.uint8(100)})
    assert any("sm_gather" in text for text in build_program(proto, march="x86-64-v4").sources.values())
    x = random(3, 70, low=-8.0, high=8.0)
    with smartmem.compile(proto) as compiled, smartmem.compile(proto, level="fuse") as computed:
        np.testing.assert_allclose(compiled(x), computed(x), rtol=1e-6)


def test_short_functions_and_those_of_two_numbers_are_computed() -> None:
    constants = {"s0": np.float32(0.05), "z0": np.uint8(7)}
    short = [*quantize("x", "a", "0"), helper.make_node("Relu", ["a"], ["y"])]
    assert not tables(model(short, {"x": (3, 70)}, {"y": None}, constants))
    both = [
        *quantize("x", "a", "0"),
        *quantize("w", "b", "0"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Tanh", ["d"], ["y"]),
    ]
    proto = model(both, {"x": (3, 70), "w": (3, 70)}, {"y": None}, constants)
    assert not tables(proto)
    feeds = {"x": random(3, 70), "w": random(3, 70, seed=1)}
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]
    with smartmem.compile(proto) as compiled:
        np.testing.assert_allclose(compiled(feeds["x"], feeds["w"]), wanted, rtol=1e-5)
