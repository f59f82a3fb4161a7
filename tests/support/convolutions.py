"""3x3 convolutions that Winograd's form may take."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
from tests.support.onnx_models import model

CHANNELS = 64


def convolution(
    size: int = 32, channels: int = CHANNELS, pads: int = 1, constant: bool = True, group: int = 1,
    outputs: int | None = None, **attributes: object,
) -> onnx.ModelProto:  # fmt: skip
    """Relu(Conv(x) + bias): x[1, channels, size, size], 3x3 taps."""
    rng = np.random.default_rng(3)
    shape = (outputs or channels, channels // group, 3, 3)
    w = (rng.standard_normal(shape) / np.sqrt(9 * shape[1])).astype(np.float32)
    bias = rng.standard_normal(shape[0]).astype(np.float32)
    inputs, constants = {"x": (1, channels, size, size)}, {"bias": bias}
    if constant:
        constants["w"] = w
    else:
        inputs["w"] = w.shape
    nodes = [
        oh.make_node("Conv", ["x", "w", "bias"], ["c"], pads=[pads] * 4, group=group, **attributes),
        oh.make_node("Relu", ["c"], ["y"]),
    ]
    return model(nodes, inputs, {"y": None}, constants)


def gated(size: int = 32) -> onnx.ModelProto:
    """The convolution of a[1, CHANNELS, size, size] = z * sigmoid(z), z a convolution of stride 2 of x."""
    proto = convolution(size)
    w = (np.random.default_rng(5).standard_normal((CHANNELS, CHANNELS, 3, 3)) / 24).astype(np.float32)
    proto.graph.initializer.append(nh.from_array(w, "w0"))
    for side in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        side.dim_value = 2 * size
    proto.graph.node[0].input[0] = "a"
    first = oh.make_node("Conv", ["x", "w0"], ["z"], pads=[1] * 4, strides=[2, 2])
    for node in (oh.make_node("Mul", ["z", "gate"], ["a"]), oh.make_node("Sigmoid", ["z"], ["gate"]), first):
        proto.graph.node.insert(0, node)
    return proto
