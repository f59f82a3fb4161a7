"""BatchNormalization after a convolution goes into its weights: conv(x, W) * s + t = conv(x, W * s) + t."""

from __future__ import annotations

import numpy as np

from smartmem.graph.ir import Graph, Node, Value


def fold_batch_norm(graph: Graph) -> None:
    """Folds each BatchNormalization whose input is a Conv that nothing else reads and whose parameters are constant."""
    uses: dict[int, int] = {}
    for node in graph.nodes:
        for value in node.inputs:
            if value is not None:
                uses[id(value)] = uses.get(id(value), 0) + 1
    outputs = {id(v) for v in graph.outputs}
    producer = {id(v): node for node in graph.nodes for v in node.outputs if v is not None}
    removed: set[int] = set()
    for node in graph.nodes:
        x = node.inputs[0] if node.inputs else None
        if node.op != "BatchNormalization" or node.domain or x is None:
            continue
        conv = producer.get(id(x))
        if conv is None or conv.op != "Conv" or conv.domain or uses[id(x)] != 1 or id(x) in outputs:
            continue
        if any(v is None or v.data is None for v in node.inputs[1:5]) or any(
            v is None or v.data is None for v in conv.inputs[1:]
        ):
            continue
        if sum(v is not None for v in node.outputs) != 1 or node.attrs.get("training_mode"):
            continue
        _fold(conv, node)
        producer[id(conv.output)] = conv
        removed.add(id(node))
    graph.nodes = [node for node in graph.nodes if id(node) not in removed]


def _fold(conv: Node, norm: Node) -> None:
    weight = conv.inputs[1]
    assert weight is not None and weight.data is not None
    scale, shift, mean, variance = (v.data.astype(np.float64) for v in norm.inputs[1:5])  # type: ignore[union-attr]
    factor = scale / np.sqrt(variance + float(norm.attrs.get("epsilon", 1e-5)))
    bias = conv.inputs[2].data.astype(np.float64) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0  # type: ignore[union-attr]
    spread = factor.reshape(-1, *[1] * (weight.data.ndim - 1))
    name = norm.output.name
    new_weight = (weight.data * spread).astype(weight.dtype)
    new_bias = ((bias - mean) * factor + shift).astype(weight.dtype)
    conv.inputs = [
        conv.inputs[0],
        Value(f"{name}.weight", new_weight.shape, weight.dtype, new_weight),
        Value(f"{name}.bias", new_bias.shape, weight.dtype, new_bias),
    ]
    conv.outputs = [norm.outputs[0]]
