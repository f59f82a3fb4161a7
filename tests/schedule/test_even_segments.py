"""Operands A whose segments lie the same distance apart: one table of row pointers serves all of them."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program


def projection(heads: int, tokens: int, width: int, columns: int) -> onnx.ModelProto:
    """The output projection of attention: x[heads, tokens, width] put side by side, times weights."""
    w = np.random.default_rng(heads).standard_normal((heads * width, columns)) / np.sqrt(heads * width)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    constants = {"w": w.astype(np.float32), "shape": np.array([tokens, heads * width])}
    return model(nodes, {"x": (heads, tokens, width)}, constants=constants)


def tiles(proto: onnx.ModelProto) -> set[tuple[str, str, str]]:
    """Tile functions that are called, with the first table and the distance between segments."""
    sources = build_program(proto).sources
    text = "\n".join(sources.values())
    return set(re.findall(r"(sm_(?:tile|even))_\w+\(([^,]*), \w+, (\w+), ", text))


@pytest.mark.parametrize("level", ["layout", "full"])
@pytest.mark.parametrize(
    ("heads", "width"),
    [(4, 32), (3, 9), (48, 32), (2, 1601)],  # one block of the reduction; blocks of segments, parts of segments
)
@pytest.mark.parametrize("tokens", [5, 60])
def test_heads_side_by_side(heads: int, tokens: int, width: int, level: str) -> None:
    proto = projection(heads, tokens, width, 50)
    x = np.random.default_rng(0).standard_normal((heads, tokens, width)).astype(np.float32)
    w = numpy_helper.to_array(proto.graph.initializer[0])
    wanted = x.transpose(1, 0, 2).reshape(tokens, -1) @ w
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-5)
    assert {(name, step) for name, _, step in tiles(proto)} == {("sm_even", str(tokens * width))}


def test_padding_has_a_table_for_each_segment() -> None:
    """Guards choose between an image and zeros: its rows are no distance apart."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, strides=[2, 2])
    proto = model([node], {"x": (1, 16, 9, 9)}, constants={"w": np.ones((16, 16, 3, 3), np.float32)})
    assert {name for name, _, _ in tiles(proto)} == {"sm_tile"}
