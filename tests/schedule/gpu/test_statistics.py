"""Row statistics in front of a product, on a device large enough that fusion chooses them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from tests.support.onnx_models import model

from smartmem.compiler import build_device_program
from smartmem.device import DeviceOptions
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.schedule.gpu.choose import MANY_UNITS

ROWS, WIDTH, COLUMNS = 48, 96, 40


def normalized_product(turned: bool) -> onnx.ModelProto:
    """LayerNormalization(x) * w + bias; with `turned`, x comes with its rows side by side: x[width, rows]."""
    rng = np.random.default_rng(5)

    shapes = {"scale": (WIDTH,), "shift": (WIDTH,), "w": (WIDTH, COLUMNS), "b": (COLUMNS,)}
    constants = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [oh.make_node("Transpose", ["x"], ["rows"], perm=[0, 2, 1])] if turned else []
    nodes += [
        oh.make_node("LayerNormalization", ["rows" if turned else "x", "scale", "shift"], ["n"], axis=-1),
        oh.make_node("MatMul", ["n", "w"], ["p"]),
        oh.make_node("Add", ["p", "b"], ["y"]),
    ]
    shape = [1, WIDTH, ROWS] if turned else [1, ROWS, WIDTH]
    return model(nodes, {"x": shape}, {"y": None}, constants)


@pytest.mark.parametrize("turned", [False, True], ids=["columns adjacent", "rows adjacent"])
def test_they_belong_to_their_rows(device, turned):
    proto = normalized_product(turned)
    large = replace(device, compute_units=MANY_UNITS, bus="")  # where launches are cheap, statistics have their own
    program = build_device_program(proto, device=large, options=DeviceOptions("buffer", check=True))
    assert [step.label.split(":")[0] for step in program.steps] == ["contraction"]
    x = np.random.default_rng(7).standard_normal(tuple(program.inputs[0].shape)).astype(np.float32)
    x += np.arange(ROWS, dtype=np.float32).reshape((1, 1, ROWS) if turned else (1, ROWS, 1))  # each row has its mean
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with DeviceModel(program, device) as compiled:
        found = compiled(x)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
