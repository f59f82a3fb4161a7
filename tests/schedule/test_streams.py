"""Results that no cache holds are stored past them: the same numbers, at any alignment of their rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem
from smartmem.codegen.target import target_of
from smartmem.compiler import build_program
from smartmem.schedule.code import STREAMED


def large_rows(columns: int) -> int:
    """How many rows of so many floats no cache holds."""
    return STREAMED * target_of("native").l2 // (4 * columns) + 3


def streams(proto: onnx.ModelProto, level: str = "full") -> bool:
    text = "".join(build_program(proto, level=level).sources.values())
    assert ("sm_stream(" in text) == ("sm_stream_end();" in text)
    return "sm_stream(" in text


@pytest.mark.parametrize("columns", [64, 67])
def test_products(columns: int) -> None:
    rows = large_rows(columns)
    weight = np.random.default_rng(0).standard_normal((8, columns)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    proto = model(nodes, {"x": (rows, 8)}, constants={"w": weight})
    assert streams(proto)
    assert not streams(proto, "layout")
    assert not streams(model(nodes, {"x": (100, 8)}, constants={"w": weight}))
    x = np.random.default_rng(1).standard_normal((rows, 8)).astype(np.float32)
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), np.maximum(x @ weight, 0), rtol=1e-5, atol=1e-5)


def test_pointwise_results_that_another_thread_reads() -> None:
    """Rows that one thread stored past the caches, read by the other: columns become rows in between."""
    side = 64
    rows = large_rows(side) // side * side + side
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["y"], keepdims=0),
        helper.make_node("Add", ["e", "x"], ["z"]),
    ]
    proto = model(nodes, {"x": (rows, side)}, ["y", "z"], {"axes": np.array([0])})
    assert streams(proto)
    x = np.random.default_rng(1).uniform(-1, 1, (rows, side)).astype(np.float32)
    with smartmem.compile(proto, threads=2) as compiled:
        for _ in range(3):
            y, z = compiled(x)
            np.testing.assert_allclose(y, np.exp(x.astype(np.float64)).sum(0), rtol=1e-4)
            np.testing.assert_allclose(z, np.exp(x) + x, rtol=1e-5, atol=1e-6)
