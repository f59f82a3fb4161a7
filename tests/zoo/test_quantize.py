"""`smartmem zoo quantize`: both methods, and what it says of inputs that it cannot guess."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.support.definitions import random
from tests.support.onnx_models import info, model

import smartmem
from smartmem.errors import InputError
from smartmem.inputs import allowed_error, relative_error
from smartmem.zoo.quantize import quantize


def network(path: Path, elem: int = TensorProto.FLOAT, rows: int | str = 8) -> Path:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    constants = {"w": random(64, 48), "v": random(48, 32, seed=1)}
    onnx.save(model(nodes, [info("x", (rows, 64), elem)], {"y": (rows, 32)}, constants), str(path))
    return path


@pytest.mark.parametrize("method", ["dynamic", "static"])
def test_answers_are_near(method: str, tmp_path: Path) -> None:
    source, target = network(tmp_path / "n.onnx"), tmp_path / "q.onnx"
    quantize(source, target, method)
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float32)
    with smartmem.compile(str(source)) as floats, smartmem.compile(str(target)) as quantized:
        assert 1e-4 < relative_error(quantized(x), floats(x)) < 0.1
    assert allowed_error(source) == 1e-3
    assert allowed_error(target) == 0.2


def test_halves_everywhere(tmp_path: Path) -> None:
    source, target = network(tmp_path / "n.onnx"), tmp_path / "h.onnx"
    quantize(source, target, "fp16")
    x = np.random.default_rng(1).standard_normal((8, 64)).astype(np.float16)
    with smartmem.compile(str(source)) as floats, smartmem.compile(str(target)) as halves:
        assert halves(x).dtype == np.float16
        assert 1e-5 < relative_error(halves(x), floats(x.astype(np.float32))) < 1e-3


def test_inputs_that_are_unknown(tmp_path: Path) -> None:
    for source in (network(tmp_path / "n.onnx", rows="n"), network(tmp_path / "i.onnx", TensorProto.INT32)):
        with pytest.raises(InputError, match=r"give an example in .*npz"):
            quantize(source, tmp_path / "q.onnx", "static")
    np.savez(tmp_path / "i.npz", **{"input.x": np.ones((8, 64), np.int32)})
    quantize(tmp_path / "i.onnx", tmp_path / "q.onnx", "static")
    with pytest.raises(InputError, match="choose one of dynamic, static, fp16"):
        quantize(tmp_path / "i.onnx", tmp_path / "q.onnx", "fast")
    with pytest.raises(InputError, match="no such file"):
        quantize(tmp_path / "absent.onnx", tmp_path / "q.onnx", "static")
