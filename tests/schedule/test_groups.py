"""Convolutions with groups, at every level, whatever part of a vector a group fills."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program
from smartmem.schedule.groups import turned


def grouped_convolution(size: int, groups: int, stride: int = 1, batch: int = 1, height: int = 9) -> onnx.ModelProto:
    """A 1x1 convolution, one in groups of `size` channels with bias and Relu, and a 1x1 convolution."""
    rng = np.random.default_rng([size, groups, stride])
    channels = size * groups

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node(
            "Conv", ["a", "w1", "b1"], ["b"], group=groups, pads=[1, 1, 1, 1], strides=[stride, stride], name="grouped"
        ),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["y"]),
    ]
    weights = {
        "w0": weight(channels, 3, 1, 1), "w1": weight(channels, size, 3, 3), "w2": weight(5, channels, 1, 1),
        "b1": rng.standard_normal(channels).astype(np.float32),
    }  # fmt: skip
    return model(nodes, {"x": (batch, 3, height, height + 2)}, constants=weights)


@pytest.mark.parametrize(
    ("size", "groups", "options"),
    [
        (4, 32, {}), (4, 6, {}), (4, 4, {"batch": 2}), (8, 4, {"stride": 2}), (8, 3, {}), (16, 4, {"stride": 2}),
        (24, 3, {"height": 15}), (48, 2, {}), (80, 2, {}), (5, 4, {}), (32, 2, {"batch": 3}),
    ],
)  # fmt: skip
def test_groups_of_any_size(size: int, groups: int, options: dict[str, Any]) -> None:
    proto = grouped_convolution(size, groups, **options)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    for level in ("fuse", "full"):
        result = smartmem.compile(proto, level=level, threads=2)(x)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize(("march", "tile"), [("x86-64-v4", "sm_grouped_6x4"), ("x86-64-v3", "sm_grouped_3x4")])
def test_small_groups_share_a_vector(march: str, tile: str) -> None:
    program = build_program(grouped_convolution(4, 32), march=march)
    assert tile in "\n".join(program.sources.values())


def test_groups_of_a_vector_need_no_grouped_tile() -> None:
    program = build_program(grouped_convolution(16, 4), march="x86-64-v4")
    assert "sm_grouped_" not in "\n".join(program.sources.values())


def test_groups_that_fill_no_whole_vector_are_no_grouped_tile() -> None:
    """It loads whole vectors of channels: 12 of 6 groups of 4 would go beyond the last pixel's."""
    program = build_program(grouped_convolution(4, 6), march="x86-64-v4")
    assert "sm_grouped_" not in "\n".join(program.sources.values())


def unequal_groups(groups: int, taken: int, given: int, side: int) -> onnx.ModelProto:
    """A convolution of groups with `taken` channels each, which lie apart in memory, to `given` each."""
    rng = np.random.default_rng([groups, taken, given])
    weight = rng.standard_normal((groups * given, taken, side, side)).astype(np.float32)
    bias = rng.standard_normal(groups * given).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Conv", ["c", "w", "bias"], ["d"], group=groups, pads=[side // 2] * 4),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    height, width = 9, 11
    constants = {"w": weight, "bias": bias, "shape": np.array([1, groups * taken, height, width])}
    return model(nodes, {"x": (groups, height, width, taken)}, constants=constants)


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize(
    ("groups", "taken", "given"), [(16, 4, 8), (6, 4, 8), (5, 4, 8), (12, 3, 5), (4, 8, 4), (9, 2, 1)]
)
def test_unequal_groups(groups: int, taken: int, given: int, side: int) -> None:
    proto = unequal_groups(groups, taken, given, side)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    for level in ("layout", "full"):
        result = smartmem.compile(proto, level=level, threads=2)(x)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


def test_columns_of_two_groups_fill_a_vector() -> None:
    """With zeros for the weights between them; the groups' channels are read where they lie."""
    program = build_program(unequal_groups(16, 4, 8, 1), march="x86-64-v4")
    (kernel,) = [k for k in program.report["kernels"] if k["family"] == "contraction"]
    (weights,) = [array for array in program.weights.values() if array.size == 16 * 8 * 4 * 2]
    assert (weights == 0).sum() == weights.size // 2
    assert "sm_even_" in "".join(program.sources.values())
    assert kernel["flops"] < 2 * weights.size * 99  # zeros are no work that the model asks for


def test_turned_panels_hold_each_weight_once() -> None:
    size, lanes = 4, 16
    panels = np.arange(2 * 3 * size * lanes, dtype=np.float32).reshape(2, 1, 3 * size, lanes)
    result = turned(panels, size)
    assert sorted(result.reshape(-1)) == sorted(panels.reshape(-1))
    for step in range(size):
        for lane in range(lanes):
            column = lane - lane % size + (lane + step) % size
            assert result[1, 0, size + step, lane] == panels[1, 0, size + lane % size, column]
