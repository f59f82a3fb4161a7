"""Row statistics in front of a product, on a device large enough that fusion chooses them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import onnxruntime as ort
import pytest

from smartmem.compiler import build_device_program
from smartmem.device import DeviceOptions
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.schedule.gpu.choose import MANY_UNITS

ROWS, WIDTH, COLUMNS = 48, 96, 40


def normalized_product(turned: bool) -> onnx.ModelProto:
    """LayerNormalization(x) * w + bias; with `turned`, x comes with its rows side by side: x[width, rows]."""
    rng = np.random.default_rng(5)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return nh.from_array(rng.standard_normal(shape).astype(np.float32), name)

    weights = [
        constant("scale", WIDTH),
        constant("shift", WIDTH),
        constant("w", WIDTH, COLUMNS),
        constant("b", COLUMNS),
    ]
    nodes = [oh.make_node("Transpose", ["x"], ["rows"], perm=[0, 2, 1])] if turned else []
    nodes += [
        oh.make_node("LayerNormalization", ["rows" if turned else "x", "scale", "shift"], ["n"], axis=-1),
        oh.make_node("MatMul", ["n", "w"], ["p"]),
        oh.make_node("Add", ["p", "b"], ["y"]),
    ]
    shape = [1, WIDTH, ROWS] if turned else [1, ROWS, WIDTH]
    graph = oh.make_graph(
        nodes, "normalized",
        [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [oh.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, ROWS, COLUMNS])], weights,
    )  # fmt: skip
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("turned", [False, True], ids=["columns adjacent", "rows adjacent"])
def test_they_belong_to_their_rows(device, turned):
    model = normalized_product(turned)
    large = replace(device, compute_units=MANY_UNITS, bus="")  # where launches are cheap, statistics have their own
    program = build_device_program(model, device=large, options=DeviceOptions("buffer", check=True))
    assert [step.label.split(":")[0] for step in program.steps] == ["contraction"]
    x = np.random.default_rng(7).standard_normal(tuple(program.inputs[0].shape)).astype(np.float32)
    x += np.arange(ROWS, dtype=np.float32).reshape((1, 1, ROWS) if turned else (1, ROWS, 1))  # each row has its mean
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    with DeviceModel(program, device) as compiled:
        found = compiled(x)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
