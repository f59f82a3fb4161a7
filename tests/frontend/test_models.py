"""Whole models load with static shapes, fast, and compute what onnxruntime computes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from frontend_models import random_feeds, run_graph
from onnx import helper
from tests.support.onnx_models import model

from smartmem.frontend import load_graph

rapidocr = pytest.importorskip("rapidocr_onnxruntime")
MODELS = Path(rapidocr.__file__).parent / "models"


@pytest.mark.parametrize(
    ("name", "shape"), [("*det*", (1, 3, 640, 640)), ("*rec*", (1, 3, 48, 320)), ("*cls*", (1, 3, 48, 192))]
)
def test_pp_ocr_shapes_are_static(name, shape):
    (path,) = MODELS.glob(f"{name}.onnx")
    start = time.perf_counter()
    graph = load_graph(path, {"x": shape})
    assert time.perf_counter() - start < 3
    assert all(v.shape is not None for v in graph.values())
    assert not {"Shape", "Constant", "ConstantOfShape"} & {n.op for n in graph.nodes}


def test_pp_ocr_cls_equals_onnxruntime():
    ort = pytest.importorskip("onnxruntime")
    (path,) = MODELS.glob("*cls*.onnx")
    graph = load_graph(path, {"x": (1, 3, 48, 192)})
    feeds = random_feeds(graph)
    (want,) = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feeds)
    np.testing.assert_allclose(run_graph(graph, feeds)[0], want, rtol=1e-3, atol=1e-4)


def test_four_thousand_nodes_load_in_seconds():
    nodes = []
    for i in range(500):
        source = "x" if i == 0 else f"y{i - 1}"
        nodes += [
            helper.make_node("Shape", [source], [f"s{i}"]),
            helper.make_node("Gather", [f"s{i}", "zero"], [f"b{i}"]),
            helper.make_node("Unsqueeze", [f"b{i}", "axis"], [f"u{i}"]),
            helper.make_node("Concat", [f"u{i}", "rest"], [f"t{i}"], axis=0),
            helper.make_node("Reshape", [source, f"t{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", "w"], [f"m{i}"]),
            helper.make_node("Relu", [f"m{i}"], [f"a{i}"]),
            helper.make_node("Add", [f"a{i}", f"r{i}"], [f"y{i}"]),
        ]
    constants = {
        "zero": np.int64(0),
        "axis": np.array([0]),
        "rest": np.array([4, -1]),
        "w": np.ones((8, 8), np.float32),
    }
    proto = model(nodes, {"x": ["b", 32]}, ["y499"], constants)
    start = time.perf_counter()
    graph = load_graph(proto, {"x": (2, 32)})
    assert time.perf_counter() - start < 5
    assert len(graph.nodes) == 2000
    assert isinstance(proto, onnx.ModelProto)
