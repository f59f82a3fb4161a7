"""Layouts where a reader and the kernel that stores a tensor want different axes to be contiguous."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program


def keys(tokens: int, depth: int, linear: bool) -> onnx.ModelProto:
    """``q (x w)^T`` if not `linear`, else ``(relu(x w))^T q``: products whose operand a product stores row by row."""
    w = np.random.default_rng(0).standard_normal((48, depth)).astype(np.float32) / 7
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["k"])]
    nodes.append(helper.make_node("Transpose", ["k"], ["kt"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["kt", "q"] if linear else ["q", "kt"], ["y"]))
    return model(nodes, {"x": (tokens, 48), "q": (tokens, depth)}, constants={"w": w})


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("tokens", "depth"), [(77, 32), (196, 64), (40, 20)])
def test_stores_are_not_scattered(tokens: int, depth: int, linear: bool) -> None:
    proto = keys(tokens, depth, linear)
    program = build_program(proto, level="full")
    assert all("sm_store_strided" not in text for text in program.sources.values())
    rng = np.random.default_rng(1)
    x, q = (rng.standard_normal((tokens, n)).astype(np.float32) for n in (48, depth))
    k = np.maximum(x @ numpy_helper.to_array(proto.graph.initializer[0]), 0)
    wanted = k.T @ q if linear else q @ k.T
    for level in ("layout", "full"):
        with smartmem.compile(proto, level=level, threads=2) as compiled:
            np.testing.assert_allclose(compiled(x=x, q=q), wanted, rtol=1e-4, atol=1e-4)


def products(rows: int, middle: int) -> onnx.ModelProto:
    """``(x w + 1) u``"""
    rng = np.random.default_rng(0)
    w, u = (rng.standard_normal(shape).astype(np.float32) for shape in ((24, middle), (middle, 40)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        helper.make_node("Add", ["z", "one"], ["k"]),
        helper.make_node("MatMul", ["k", "u"], ["y"]),
    ]
    return model(nodes, {"x": (rows, 24)}, constants={"w": w, "u": u, "one": np.float32(1)})


@pytest.mark.parametrize(("rows", "middle", "padding"), [(30, 1024, 16), (30, 768, 16), (30, 1000, 0), (5, 1024, 0)])
def test_rows_keep_apart(rows: int, middle: int, padding: int) -> None:
    """Rows of a multiple of 1 KiB would share few sets of the cache: a line is left free after each."""
    proto = products(rows, middle)
    sizes = {level: build_program(proto, level=level).arena_bytes for level in ("layout", "full")}
    assert sizes["full"] - sizes["layout"] == 4 * rows * padding
    x = np.random.default_rng(1).standard_normal((rows, 24)).astype(np.float32)
    w, u, _ = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), (x @ w + 1) @ u, rtol=1e-4, atol=1e-3)
