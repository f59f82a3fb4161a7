"""Convolutions on matrix units whose windows overlap: lines of the image are packed once, tiles loaded from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.schedule.test_units import (
    WITH_UNITS,
    assert_same_without_units,
    error,
    needs_units,
    normal,
    rounded,
    text_of,
)
from tests.support.onnx_models import model

import smartmem

Array = np.ndarray
PACKS = "sm_table_"  # the band finds its pixels by tables


def convolutions(
    weights: Array, height: int, width: int, stride: int = 1, apart: int = 1, twice: bool = False
) -> onnx.ModelProto:
    """A 1x1 convolution (so that channels lie side by side), then one of `weights`, perhaps of an enlarged image."""
    size, channels = weights.shape[2], weights.shape[1]
    pad = (size - 1) // 2 * apart
    nodes, image = [helper.make_node("Conv", ["x", "w0"], ["x0"])], "x0"
    constants = {"w": weights, "w0": np.eye(channels, dtype=np.float32)[:, :, None, None]}
    if twice:
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        nodes.append(helper.make_node("Resize", ["x0", "", "scales"], ["x1"], **how))
        constants["scales"], image = np.array([1, 1, 2, 2], np.float32), "x1"
    nodes.append(
        helper.make_node("Conv", [image, "w"], ["c"], pads=[pad] * 4, strides=[stride] * 2, dilations=[apart] * 2)
    )
    nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    return model(nodes, {"x": (1, channels, height, width)}, {"y": None}, constants)


CASES = {
    "lines of one tile": ((40, 64, 3, 3), 14, 14, {}),
    "a last tile that is lower": ((64, 64, 3, 3), 20, 30, {}),
    "steps of two": ((64, 64, 3, 3), 28, 28, {"stride": 2}),
    "taps apart": ((64, 64, 3, 3), 20, 32, {"apart": 2}),
    "an enlarged image": ((64, 64, 3, 3), 9, 16, {"twice": True}),
    "five taps": ((32, 32, 5, 5), 33, 64, {}),
    "several blocks of k": ((64, 512, 3, 3), 12, 32, {}),
    "an odd width": ((96, 96, 3, 3), 31, 29, {}),
}


@needs_units
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_of_bfloat16(case: str, threads: int) -> None:
    """Two parts of a float are nearly it; one is what floats give for rounded operands."""
    shape, height, width, options = CASES[case]
    weights, x = normal(0, *shape), normal(1, 1, shape[1], height, width)
    with smartmem.compile(convolutions(weights, height, width, **options), level="fuse") as exact:
        want = exact(x)
    with smartmem.compile(convolutions(rounded(weights), height, width, **options), level="fuse") as exact:
        of_rounded = exact(rounded(x))
    for precision, wanted in (("bf16x3", want), ("bf16", of_rounded)):
        proto = convolutions(weights, height, width, **options)
        with smartmem.compile(proto, precision=precision, threads=threads) as compiled:
            assert error(compiled(x), wanted) < 1e-5, precision


@pytest.mark.parametrize("case", CASES)
def test_a_band_is_used(case: str) -> None:
    shape, height, width, options = CASES[case]
    assert PACKS in text_of(convolutions(normal(0, *shape), height, width, **options))


def test_a_band_is_not_used() -> None:
    """Where tiles would be half empty, channels do not fill their rows, or windows share nothing."""
    narrow = convolutions(normal(0, 64, 64, 3, 3), 20, 20)
    few = convolutions(normal(0, 64, 48, 3, 3), 16, 16)
    single = convolutions(normal(0, 64, 64, 1, 1), 16, 16)
    patches = convolutions(normal(0, 64, 64, 3, 3), 48, 48, stride=3)
    for proto in (narrow, few, single, patches):
        text = text_of(proto)
        assert "sm_units_begin" in text and PACKS not in text


@needs_units
@pytest.mark.parametrize("channels", [64, 128])
def test_bytes_with_another_zero(channels: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Beyond the sides of the image lies the zero point."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=0),
        helper.make_node("Conv", ["d", "dw"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "t", "z"], ["q1"]),
        helper.make_node("DequantizeLinear", ["q1", "t", "z"], ["d1"]),
        helper.make_node("Conv", ["d1", "dw1"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("DequantizeLinear", ["w1", "sw", "zw"], ["dw1"], axis=0),
    ]
    nodes = [*nodes[:6], nodes[7], nodes[6]]
    rng = np.random.default_rng(0)
    integers = {name: rng.integers(-128, 128, (channels, channels, 3, 3)).astype(np.int8) for name in ("w", "w1")}
    constants = {
        "s": np.float32(0.02), "z": np.uint8(100), "sw": rng.uniform(0.01, 0.02, channels).astype(np.float32),
        "zw": np.zeros(channels, np.int8), "t": np.float32(0.5), **integers,
    }  # fmt: skip
    proto, x = model(nodes, {"x": (1, channels, 18, 28)}, {"y": None}, constants), normal(1, 1, channels, 18, 28)
    text = text_of(proto, "fp32", WITH_UNITS)
    assert PACKS in text and "_tile_dpbusd" in text and "sm_fill_64646464" in text
    assert_same_without_units(proto, x, monkeypatch, tmp_path)
