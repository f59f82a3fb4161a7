"""Sums that no half holds stay in float, and so does what is made of them until something divides."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import model

from smartmem.compiler import device_module
from smartmem.device import Device, DeviceOptions
from smartmem.runtime.opencl.profiles import profile


def linear_attention(tokens: int, depth: int) -> onnx.ModelProto:
    """``(q k^T v)[:, :-1] / ((q k^T v)[:, -1:] + 1)``, as EfficientViT writes its attention."""
    constants = {
        "first": np.array([0]), "last": np.array([-1]), "end": np.array([1 << 31]), "axis": np.array([1]),
        "one": np.float32(1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[1, 0]),
        helper.make_node("MatMul", ["kt", "v"], ["kv"]),
        helper.make_node("MatMul", ["q", "kv"], ["o"]),
        helper.make_node("Slice", ["o", "first", "last", "axis"], ["top"]),
        helper.make_node("Slice", ["o", "last", "end", "axis"], ["low"]),
        helper.make_node("Add", ["low", "one"], ["below"]),
        helper.make_node("Div", ["top", "below"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    return model(nodes, dict.fromkeys("qkv", (tokens, depth)), constants=constants)


@pytest.mark.parametrize("level", ["naive", "fuse", "eliminate", "layout", "full"])
def test_what_is_as_large_is_as_wide(level: str) -> None:
    device, options = Device(costs=profile("Adreno 740")), DeviceOptions(precision="fp16", memory="buffer")
    module, *_ = device_module(linear_attention(256, 32), None, level, device, options)
    between = {k.tensor for k in module.kernels} - {v.name for v in module.outputs}  # type: ignore[union-attr]
    assert {"kv", "o"} <= module.wide
    assert between & {"top", "low", "below"} <= module.wide
    if level == "naive":
        assert {"top", "low", "below"} <= between
    assert module.wide.isdisjoint({"kt", "d", "y"})
