"""Statistics of group normalizations on a CPU: lanes span several groups, several vectors share a pass over pixels."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program

GROUPS = 8


def normalized(channels: int, side: int) -> onnx.ModelProto:
    """Between two 1x1 convolutions, so that channels are innermost."""
    rng = np.random.default_rng(channels)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "bias"], ["a"]),
        helper.make_node("Reshape", ["a", "grouped"], ["g"]),
        helper.make_node("InstanceNormalization", ["g", "one", "zero"], ["n"]),
        helper.make_node("Reshape", ["n", "whole"], ["b"]),
        helper.make_node("Conv", ["b", "w1"], ["y"]),
    ]
    constants = {
        "w0": rng.standard_normal((channels, 6, 1, 1)).astype(np.float32),
        "bias": 3 + rng.standard_normal(channels).astype(np.float32),
        "w1": rng.standard_normal((9, channels, 1, 1)).astype(np.float32),
        "grouped": np.array([1, GROUPS, -1]),
        "whole": np.array([1, channels, side, side + 1]),
        "one": np.ones(GROUPS, np.float32),
        "zero": np.zeros(GROUPS, np.float32),
    }
    return model(nodes, {"x": (1, 6, side, side + 1)}, constants=constants)


@pytest.mark.parametrize("level", ["eliminate", "full"])
@pytest.mark.parametrize(
    ("channels", "side"),
    [
        (64, 40),  # a vector of AVX-512 spans two groups; four of them at once
        (32, 40),  # four groups; too few channels for four vectors
        (80, 36),  # groups of 10, which vectors cut anywhere
        (136, 30),  # 17 in a group, and a part of a vector at the end
    ],
)
def test_numbers(channels: int, side: int, level: str) -> None:
    proto = normalized(channels, side)
    x = np.random.default_rng(side).standard_normal((1, 6, side, side + 1)).astype(np.float32)
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        error = np.linalg.norm(compiled(x) - expected) / np.linalg.norm(expected)
    assert error < 1e-5


def test_a_pass_takes_whole_vectors() -> None:
    """With lanes of one group a vector of 16 would be half empty, and every group read all cache lines again."""
    program = build_program(normalized(64, 40), march="x86-64-v4")
    sums = [
        text[: text.index("\n}\n")]
        for source in program.sources.values()
        for text in source.split("\nvoid ")[1:]
        if text.startswith("window")
    ]
    assert len(sums) == 2  # of values, of squares
    for text in sums:
        assert "+= 4 * SM_W" in text
        assert "count" not in text
    assert sum("sm_lookup" in text for text in sums) == 1  # the means of two groups, each in eight lanes
