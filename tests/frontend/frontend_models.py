"""A node-by-node interpreter and its comparison with onnxruntime, shared by the frontend's tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from smartmem.frontend import load_graph
from smartmem.graph.ir import Graph
from smartmem.runtime.host import run_node


def run_graph(graph: Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Every node on the host, in order."""
    values: dict[Any, Any] = {v: v.data for v in graph.values() if v.is_constant}
    values.update((v, feeds[v.name]) for v in graph.inputs)
    for node in graph.nodes:
        results = run_node(node, [None if v is None else values[v] for v in node.inputs])
        for value, result in zip(node.outputs, results, strict=False):
            if value is None:
                continue
            if value.shape is not None:
                assert np.shape(result) == value.shape, f"{node.describe()}: {np.shape(result)} is not {value.shape}"
                assert np.asarray(result).dtype == value.dtype, node.describe()
            values[value] = result
    return [values[v] for v in graph.outputs]


def run_ort(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    # onnxruntime wants typed outputs.
    typed = onnx.shape_inference.infer_shapes(copy)
    for at, value in enumerate(typed.graph.output):
        if not value.type.WhichOneof("value"):
            copy.graph.output[at].type.tensor_type.elem_type = TensorProto.FLOAT
        else:
            copy.graph.output[at].CopyFrom(value)
    try:
        session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        if "only *guarantees* support" in str(error):  # an opset newer than this onnxruntime
            pytest.skip(str(error).splitlines()[0])
        raise
    return list(session.run(None, dict(feeds)))


def random_feeds(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in graph.inputs:
        if value.dtype.kind in "iu":
            feeds[value.name] = rng.integers(0, 2, value.dims).astype(value.dtype)
        elif value.dtype.kind == "b":
            feeds[value.name] = rng.integers(0, 2, value.dims).astype(bool)
        else:
            feeds[value.name] = rng.standard_normal(value.dims).astype(value.dtype)
    return feeds


def check(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None, tol: float = 1e-5) -> Graph:
    """Load with and without folding, run node by node, and compare with onnxruntime; the folded graph."""
    graph = load_graph(proto, shapes)
    feeds = random_feeds(graph)
    want = run_ort(proto, feeds)
    for candidate in (graph, load_graph(proto, shapes, fold=False)):
        got = run_graph(candidate, feeds)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
    return graph


def only(graph: Graph, op: str) -> Any:
    """The single node of type `op`."""
    (node,) = [n for n in graph.nodes if n.op == op]
    return node
