"""Convolutions of padded images with few channels: blocks of rows share what their windows have in common."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program


def convolution(
    image: tuple[int, int, int], outputs: int, kernel: tuple[int, int], strides: tuple[int, int],
    pads: tuple[int, int, int, int], dilations: tuple[int, int] = (1, 1),
) -> onnx.ModelProto:  # fmt: skip
    """A convolution with ReLU after it."""
    channels, height, width = image
    w = np.random.default_rng(0).standard_normal((outputs, channels, *kernel)).astype(np.float32)
    w /= np.sqrt(channels * kernel[0] * kernel[1]).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["z"], pads=pads, strides=strides, dilations=dilations),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    return model(nodes, {"x": (1, channels, height, width)}, constants={"w": w})


def has_band(proto: onnx.ModelProto, level: str = "full") -> bool:
    return "*const pixels = " in "".join(build_program(proto, level=level).sources.values())


@pytest.mark.parametrize(
    ("image", "outputs", "kernel", "strides", "pads", "band"),
    [
        ((3, 64, 64), 12, (32, 32), (4, 4), (14, 14, 14, 14), True),
        ((3, 40, 52), 40, (8, 8), (2, 2), (3, 3, 3, 3), True),  # blocks that begin within a row of pixels
        ((1, 33, 200), 16, (5, 9), (1, 3), (2, 4, 2, 4), True),  # one channel, long rows
        ((2, 31, 29), 20, (9, 16), (3, 2), (0, 7, 8, 1), True),  # another padding at each side, none above
        ((4, 30, 9), 8, (8, 8), (1, 1), (7, 7, 7, 7), True),  # windows that see a single pixel
        ((3, 64, 64), 16, (7, 7), (2, 2), (3, 3, 3, 3), False),  # short rows of taps
        ((3, 64, 64), 16, (8, 8), (8, 8), (4, 4, 4, 4), False),  # windows that hardly overlap
        ((3, 64, 64), 16, (8, 8), (2, 2), (0, 0, 0, 0), False),  # nothing to pad: read in place
    ],
)
def test_numbers(
    image: tuple[int, int, int], outputs: int, kernel: tuple[int, int], strides: tuple[int, int],
    pads: tuple[int, int, int, int], band: bool,
) -> None:  # fmt: skip
    proto = convolution(image, outputs, kernel, strides, pads)
    x = np.random.default_rng(1).standard_normal((1, *image)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    for level in ("layout", "full"):
        with smartmem.compile(proto, level=level, threads=2) as compiled:
            np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-5)
    assert has_band(proto) == band
    assert not has_band(proto, "layout")


def test_taps_apart() -> None:
    """Dilated windows have taps that are no segments."""
    proto = convolution((3, 64, 64), 12, (8, 8), (2, 2), (7, 7, 7, 7), dilations=(2, 2))
    assert not has_band(proto)
    x = np.random.default_rng(1).standard_normal((1, 3, 64, 64)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-5)


def test_several_images() -> None:
    """A batch is a third row axis, which has no band."""
    proto = convolution((3, 40, 40), 12, (8, 8), (2, 2), (3, 3, 3, 3))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    x = np.random.default_rng(1).standard_normal((3, 3, 40, 40)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-5)
