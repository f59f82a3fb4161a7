"""The OpenCL C of a few kernels, kept as text: whoever changes what is generated sees, and commits, the difference.

``pytest tests/codegen/test_cl_golden.py --update-golden`` writes `tests/golden/` anew. No driver is needed: the device
is one on paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.random_graphs import Builder

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
DEVICE = Device(name="paper", local_memory=48 << 10, compute_units=16)


def pointwise(g: Builder) -> list[str]:
    total = g.op("Add", [g.input(6, 8), g.weight(8)], (6, 8))
    return [g.op("Transpose", [g.op("Gelu", [total], (6, 8))], (8, 6), perm=[1, 0])]


def softmax(g: Builder) -> list[str]:
    return [g.op("Softmax", [g.input(5, 49)], (5, 49), axis=-1)]


def window(g: Builder) -> list[str]:
    """Between two products, so that channels are the lane."""
    x = g.op("Conv", [g.input(1, 3, 6, 6), g.weight(8, 3, 1, 1)])
    y = g.op("Conv", [g.op("HardSwish", [x]), g.weight(8, 1, 3, 3), g.weight(8)], group=8, pads=[1, 1, 1, 1])
    return [g.op("Conv", [y, g.weight(4, 8, 1, 1)])]


def convolution(g: Builder) -> list[str]:
    y = g.op("Conv", [g.input(1, 4, 9, 9), g.weight(8, 4, 3, 3), g.weight(8)], strides=[2, 2], pads=[1, 1, 1, 1])
    return [g.op("Relu", [y])]


def product(g: Builder) -> list[str]:
    """The second one stages the halves of an activation and of its weights as they are."""
    x = g.op("Relu", [g.op("MatMul", [g.input(8, 6), g.weight(6, 16)], (8, 16))], (8, 16))
    return [g.op("MatMul", [x, g.weight(16, 300)], (8, 300))]


def attention(g: Builder) -> list[str]:
    q, k, v = g.input(3, 7, 8), g.input(3, 8, 10), g.input(3, 10, 8)
    return [g.op("MatMul", [g.op("Softmax", [g.op("MatMul", [q, k])], axis=-1), v])]


@pytest.mark.parametrize(
    "build, options",
    [
        (pointwise, DeviceOptions()), (softmax, DeviceOptions()), (attention, DeviceOptions("buffer")),
        (window, DeviceOptions("texture", "fp16")), (convolution, DeviceOptions("buffer", "fp16")),
        (softmax, DeviceOptions("buffer", check=True)), (product, DeviceOptions("texture", "fp16")),
    ],
    ids=[
        "pointwise", "softmax", "attention", "window_texture_fp16", "convolution_fp16", "softmax_check",
        "product_native_half",
    ],
)  # fmt: skip
def test_generated_kernels(
    build: Callable[[Builder], list[str]], options: DeviceOptions, request: pytest.FixtureRequest, update_golden: bool
) -> None:
    g = Builder(0)
    device = replace(DEVICE, fp16="native_half" in request.node.callspec.id)
    program = build_device_program(g.model(build(g)), level="full", device=device, options=options)
    kernels = [text[text.index("/* ", text.index("sm_index(int64_t")) :] for text in program.sources.values()]
    file = GOLDEN / f"{request.node.callspec.id}.cl"
    found = "".join(kernels)
    if update_golden:
        file.write_text(found)
    assert found == file.read_text(), f"{file.name} is other code now; if that is meant: pytest --update-golden"
