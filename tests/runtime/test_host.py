"""`run_node` runs what the frontend made, whatever its inputs became, from several threads, and fails in one line."""

from __future__ import annotations

import builtins
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper
from tests.support.onnx_models import model

from smartmem.errors import RuntimeFailure
from smartmem.frontend import load_graph
from smartmem.graph.ir import Node
from smartmem.runtime.host import run_node


def topk() -> Node:
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "i"], axis=0)]
    return load_graph(model(nodes, {"x": [6]}, ["y", "i"], {"k": np.array([2])})).nodes[0]


def test_baked_inputs_are_fed():
    values, indices = run_node(topk(), [np.array([3, 9, 1, 4, 8, 2], np.float32)])
    np.testing.assert_array_equal(values, [9, 8])
    np.testing.assert_array_equal(indices, [1, 4])


def test_renamed_values_do_not_matter():
    node = topk()
    node.inputs[0].name = "something else"
    assert run_node(node, [np.arange(6, dtype=np.float32)])[0][0] == 5


def test_threads():
    node = topk()
    arrays = [np.random.default_rng(i).standard_normal(6).astype(np.float32) for i in range(64)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda a: run_node(node, [a])[0], arrays))
    for array, result in zip(arrays, results, strict=True):
        np.testing.assert_array_equal(result, np.sort(array)[::-1][:2])


def test_operand_that_the_reference_refuses():
    with pytest.raises(RuntimeFailure, match='TopK "y" on inputs of shape') as error:
        run_node(topk(), [np.zeros((), np.float32)])
    assert "\n" not in str(error.value)


def test_node_without_onnx_form():
    with pytest.raises(RuntimeFailure, match="made by a pass"):
        run_node(Node("Fused", "", "f", [], []), [])


def test_onnx_missing(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("onnx"):
            raise ImportError("No module named 'onnx'")
        return real(name, *args, **kwargs)

    node = topk()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RuntimeFailure, match="pip install onnx"):
        run_node(node, [np.zeros(6, np.float32)])
