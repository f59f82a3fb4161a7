"""Epilogues in the registers of the tiles: the same numbers as numpy's, wherever rows start and columns end."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program

Arrays = dict[str, np.ndarray]


def text_of(proto: onnx.ModelProto, level: str = "full", march: str = "x86-64-v4") -> str:
    return "".join(build_program(proto, level=level, march=march).sources.values())


def is_finished(text: str) -> bool:
    """Whether no tile leaves its sums for a loop over them."""
    assert "acc[i][j]" in text
    return "sm_load(cq" not in text


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(proto: onnx.ModelProto, feeds: Arrays, want: np.ndarray) -> None:
    for level in ("full", "layout"):
        with smartmem.compile(proto, threads=2, level=level) as compiled:
            got = compiled.run(feeds)[0]
        assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want), level


@pytest.mark.parametrize("depth", [40, 2500])
@pytest.mark.parametrize("columns", [5, 16, 64, 65, 95])
@pytest.mark.parametrize("rows", [1, 29])
def test_bias_residual_and_relu(rows: int, columns: int, depth: int) -> None:
    """Depths in one and in several blocks, columns that end within a panel."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["biased"]),
        helper.make_node("Add", ["biased", "residual"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    constants = {"w": normal(0, depth, columns), "bias": normal(1, columns)}
    proto = model(nodes, {"x": (rows, depth), "residual": (rows, columns)}, constants=constants)
    assert is_finished(text_of(proto))
    assert is_finished(text_of(proto, march="x86-64-v3"))
    assert not is_finished(text_of(proto, "layout"))
    feeds = {"x": normal(2, rows, depth), "residual": normal(3, rows, columns)}
    want = np.maximum(feeds["x"] @ constants["w"] + constants["bias"] + feeds["residual"], 0)
    check(proto, feeds, want)


def test_rows_that_start_anywhere() -> None:
    """Windows of 3x3 that are put back in place: no distance from row to row is the same."""
    window, side, channels = 3, 4, 32
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Reshape", ["product", "apart"], ["windows"]),
        helper.make_node("Transpose", ["windows"], ["image"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["image", "flat"], ["placed"]),
        helper.make_node("Add", ["placed", "residual"], ["y"]),
    ]
    weight = normal(0, channels, channels)
    shapes = {"apart": np.array([side, side, window, window, channels]), "flat": np.array([-1, channels])}
    count = (side * window) ** 2
    inputs = {"x": (side * side, window * window, channels), "residual": (count, channels)}
    proto = model(nodes, inputs, constants={"w": weight, **shapes})
    text = text_of(proto)
    assert is_finished(text)
    assert "long *const rows0" in text
    feeds = {"x": normal(1, *inputs["x"]), "residual": normal(2, *inputs["residual"])}
    product = (feeds["x"] @ weight).reshape(side, side, window, window, channels)
    check(proto, feeds, product.transpose(0, 2, 1, 3, 4).reshape(count, channels) + feeds["residual"])


@pytest.mark.parametrize("keys", [20, 49])
def test_attention(keys: int) -> None:
    """Scores take a bias and stay in scratch; the weighted sum is divided by what each row has one of."""
    heads, depth = 3, 32
    nodes = [
        helper.make_node("Transpose", ["k"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "turned"], ["product"]),
        helper.make_node("Mul", ["product", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    shape = (heads, keys, depth)
    constants = {"scale": np.float32(1 / math.sqrt(depth)), "bias": normal(0, keys, keys)}
    proto = model(nodes, {"q": shape, "k": shape, "v": shape}, constants=constants)
    text = text_of(proto)
    assert is_finished(text)
    feeds = {name: normal(seed, *shape) for seed, name in enumerate("qkv", 1)}
    scores = feeds["q"] @ feeds["k"].transpose(0, 2, 1) / math.sqrt(depth) + constants["bias"]
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    check(proto, feeds, powers / powers.sum(-1, keepdims=True) @ feeds["v"])


def test_long_epilogues_stay_in_a_loop() -> None:
    """They would need the registers that hold sums."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Tanh", ["product"], ["y"]),
    ]
    weight = normal(0, 24, 40)
    proto = model(nodes, {"x": (30, 24)}, constants={"w": weight})
    assert not is_finished(text_of(proto))
    feeds = {"x": normal(1, 30, 24)}
    check(proto, feeds, np.tanh(feeds["x"] @ weight))
