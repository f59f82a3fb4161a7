"""Winograd convolutions: the same numbers as the convolution, only where the definition is one, and in few kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import onnxruntime as ort
import pytest

import smartmem
from smartmem.frontend.load import load_graph
from smartmem.passes.lower import lower
from smartmem.passes.winograd import winograd

CHANNELS = 64


def convolution(
    size: int = 32, channels: int = CHANNELS, pads: int = 1, constant: bool = True, **attributes: object
) -> onnx.ModelProto:
    """Relu(Conv(x) + bias): x[1, channels, size, size], 3x3 taps."""
    rng = np.random.default_rng(3)
    w = (rng.standard_normal((channels, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32)
    inputs = [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, channels, size, size])]
    constants = [nh.from_array(bias, "bias")]
    if constant:
        constants.append(nh.from_array(w, "w"))
    else:
        inputs.append(oh.make_tensor_value_info("w", onnx.TensorProto.FLOAT, list(w.shape)))
    nodes = [
        oh.make_node("Conv", ["x", "w", "bias"], ["c"], pads=[pads] * 4, **attributes),
        oh.make_node("Relu", ["c"], ["y"]),
    ]
    output = oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = oh.make_graph(nodes, "convolution", inputs, [output], constants)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


def rewritten(model: onnx.ModelProto) -> bool:
    module = lower(load_graph(model, {}))
    before = len(module.steps)
    winograd(module)
    return len(module.steps) > before


@pytest.mark.parametrize("size, pads", [(32, 1), (34, 0), (64, 1)])
def test_it_gives_what_the_convolution_gives(size, pads):
    model = convolution(size, pads=pads)
    x = np.random.default_rng(size).standard_normal((1, CHANNELS, size, size)).astype(np.float32)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(model) as compiled:
        assert any(k["name"].endswith(".products") for k in compiled.program.report["kernels"])
        assert compiled.program.report["totals"]["copies"] == 0
        error = np.linalg.norm(compiled(x) - expected) / np.linalg.norm(expected)
    assert error < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"size": 33},  # the output's sides are no multiples of 4
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": 2},
        {"constant": False},
        {"channels": 4},  # too little to save
    ],
)
def test_what_it_leaves_alone(options):
    assert not rewritten(convolution(**options))


def test_what_it_takes():
    assert rewritten(convolution())


def test_other_levels_have_none():
    with smartmem.compile(convolution(), level="layout") as compiled:
        assert not any("products" in k["name"] for k in compiled.program.report["kernels"])
