"""Windows on a device: rows of taps loaded together, shared by work-items, along the neighbours that lie together."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.support.random_graphs import Array, Builder

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions, Memory, Precision
from smartmem.index.lin import axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.expr import alu, choose, const, load
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.schedule.gpu import window

pytestmark = pytest.mark.usefixtures("built_quickly")
FLOAT = np.dtype(np.float32)


def gpu(device: Device) -> Device:
    return replace(device, kind="gpu", sub_group=32, compute_units=132)


def depthwise(
    g: Builder, x: str, channels: int, height: int, width: int, size: int, stride: int
) -> tuple[str, int, int]:
    low = (size - 1) // 2
    h, w = ((n - 1) // stride + 1 for n in (height, width))
    pads = [low, low, size - 1 - low, size - 1 - low]
    y = g.op(
        "Conv", [x, g.weight(channels, 1, size, size), g.weight(channels)], (1, channels, h, w),
        kernel_shape=[size] * 2, pads=pads, strides=[stride] * 2, group=channels,
    )  # fmt: skip
    return y, h, w


@pytest.mark.parametrize(
    "memory, precision, limit", [("buffer", "fp32", 1e-5), ("texture", "fp32", 1e-5), ("buffer", "fp16", 3e-3)]
)
@pytest.mark.parametrize("channels, image, size, stride", [
    (8, 9, 3, 1), (12, 14, 7, 1), (64, 28, 5, 2), (8, 20, 9, 1), (6, 11, 4, 2), (256, 30, 3, 1),
])  # fmt: skip
def test_results(
    device: Device, tmp_path, memory: Memory, precision: Precision, limit: float,
    channels: int, image: int, size: int, stride: int,
) -> None:  # fmt: skip
    g = Builder(3)
    x = g.op("Relu", [g.input(1, channels, image, image)], (1, channels, image, image))
    y, h, w = depthwise(g, x, channels, image, image, size, stride)
    mixed = g.op("Conv", [g.op("Relu", [y], (1, channels, h, w)), g.weight(8, channels, 1, 1)], (1, 8, h, w))
    model: onnx.ModelProto = g.model([mixed])
    feeds: dict[str, Array] = g.feeds()
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    options = DeviceOptions(memory, precision, check=True)
    program = build_device_program(model, level="full", device=gpu(device), options=options)
    assert "float4 row" in "".join(program.sources.values()) or channels % 4
    made = DeviceModel(program, device, cache=Cache(tmp_path))
    (got,) = made.run(feeds)
    made.close()
    assert np.max(np.abs(got - want)) < limit * np.max(np.abs(want))


@pytest.mark.parametrize("image, shared", [(14, True), (112, False)])
def test_few_results_are_shared(device: Device, image: int, shared: bool) -> None:
    """Work-items take rows of a window each, where there would be too few of them."""
    g = Builder(3)
    x = g.op("Relu", [g.input(1, 64, image, image)], (1, 64, image, image))
    y, *_ = depthwise(g, x, 64, image, image, 7, 1)
    program = build_device_program(g.model([y]), level="full", device=gpu(device), options=DeviceOptions("buffer"))
    assert ("parts[" in "".join(program.sources.values())) == shared


def test_neighbours_go_along_what_lies_together(device: Device) -> None:
    """The input lies in rows of pixels, what a 1x1 convolution reads in rows of channels: the loads decide."""
    g = Builder(3)
    y, h, w = depthwise(g, g.input(1, 256, 48, 48), 256, 48, 48, 3, 1)
    model = g.model([g.op("Conv", [y, g.weight(32, 256, 1, 1)], (1, 32, h, w))])
    program = build_device_program(model, level="full", device=gpu(device), options=DeviceOptions("buffer"))
    (text,) = [t for source in program.sources.values() for t in source.split("__kernel") if "float4 row" in t]
    assert re.search(r"const int i\d = item % 48;", text)
    assert re.search(r"const int i\d = \(item / 48\) % 64 \* 4;", text)


def test_rows_of_taps() -> None:
    """A sum of guarded products, unless zero times the other factor is no zero."""
    x = load("x", (axis_digit(0, 8) + axis_digit(1, 3),), FLOAT)
    w = load("w", (axis_digit(1, 3),), FLOAT)
    guards = (Guard(axis_digit(0, 8) + axis_digit(1, 3) + -1, 8),)
    body = choose(guards, alu("mul", x, w), const(0, FLOAT))
    row = window.find(body, 1, 3, {"w": np.ones(3)})
    assert row is not None and row.plain == w and row.guarded == choose(guards, x, const(0, FLOAT))
    assert window.find(body, 1, 3, {}) is None
    assert window.find(body, 1, 3, {"w": np.array([1, np.inf, 1])}) is None
    assert window.find(body, 1, window.TAPS + 1, {"w": np.ones(3)}) is None
    assert window.find(alu("mul", x, w), 1, 3, {"w": np.ones(3)}) is None


def test_what_lies_inside_only_where_guards_hold_stays_behind_them() -> None:
    """A constant image and computed weights: beyond its borders there is nothing to read."""
    image = load("image", (axis_digit(0, 8) + axis_digit(1, 3) + -1,), FLOAT)
    guards = (Guard(axis_digit(0, 8) + axis_digit(1, 3) + -1, 8),)
    body = choose(guards, alu("mul", image, load("w", (axis_digit(1, 3),), FLOAT)), const(0, FLOAT))
    assert window.find(body, 1, 3, {"image": np.ones(8)}) is None
