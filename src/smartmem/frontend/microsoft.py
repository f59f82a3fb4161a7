"""Spell a few onnxruntime contrib operators in ONNX: a `com.microsoft` node → nodes of the ONNX domain.

Only operators that are an ONNX operator (or two) under another name; the rest is an unknown domain.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx.helper import make_node

from smartmem.frontend.inline import Work

_OPSET = 24  # has Gelu (20), RMSNormalization (23) and Swish (24)
Fresh = Callable[[str], str]


def from_microsoft(work: Work, fresh: Fresh) -> list[Work] | None:
    """The nodes that `work.node` stands for, or None where it is not one of these."""
    node = work.node
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    nodes: list[onnx.NodeProto] | None = None
    if node.domain == "com.microsoft":
        rule = _RULES.get(node.op_type)
        nodes = rule(node, attrs, fresh) if rule else None
    elif node.domain in ("", "ai.onnx") and node.op_type == "SimplifiedLayerNormalization":
        nodes = _rms(node, attrs, fresh)
    elif node.domain in ("", "ai.onnx") and node.op_type == "LayerNormalization" and work.opsets.get("", 0) < 17:
        return [Work(node, {**work.opsets, "": 17}, work.calls)]  # onnxruntime wrote it before ONNX had it
    if nodes is None:
        return None
    for index, made in enumerate(nodes):
        made.name = f"{node.name}/{made.op_type}_{index}" if len(nodes) > 1 else node.name
    return [Work(made, {**work.opsets, "": _OPSET}, work.calls) for made in nodes]


def _gelu(node: onnx.NodeProto, attrs: dict[str, object], fresh: Fresh) -> list[onnx.NodeProto]:
    approximate = "tanh" if node.op_type == "FastGelu" else "none"
    source, nodes = node.input[0], []
    if len(node.input) > 1 and node.input[1]:
        source = fresh(f"{node.name}/biased")
        nodes.append(make_node("Add", list(node.input[:2]), [source]))
    return [*nodes, make_node("Gelu", [source], list(node.output), approximate=approximate)]


def _quick_gelu(node: onnx.NodeProto, attrs: dict[str, object], fresh: Fresh) -> list[onnx.NodeProto]:
    return [make_node("Swish", list(node.input), list(node.output), alpha=attrs.get("alpha", 1.702))]


def _rms(node: onnx.NodeProto, attrs: dict[str, object], fresh: Fresh) -> list[onnx.NodeProto] | None:
    if len(node.output) > 1 and any(node.output[1:]):
        return None
    wanted = {"axis": attrs.get("axis", -1), "epsilon": attrs.get("epsilon", 1e-5)}
    return [make_node("RMSNormalization", list(node.input[:2]), [node.output[0]], **wanted)]


def _skip_norm(node: onnx.NodeProto, attrs: dict[str, object], fresh: Fresh) -> list[onnx.NodeProto] | None:
    """`norm(x + skip [+ bias])`; output 3 is the sum."""
    simplified = node.op_type.startswith("SkipSimplified")
    outputs = [*node.output, "", "", ""][:4]
    if outputs[1] or outputs[2]:
        return None
    scale, rest = node.input[2], list(node.input[3:])
    beta = rest.pop(0) if rest and not simplified else ""
    bias = rest[0] if rest else ""
    total = outputs[3] or fresh(f"{node.name}/sum")
    first = fresh(f"{node.name}/unbiased") if bias else total
    nodes = [make_node("Add", list(node.input[:2]), [first])]
    if bias:
        nodes.append(make_node("Add", [first, bias], [total]))
    operands = [total, scale] + ([beta] if beta else [])
    op = "RMSNormalization" if simplified else "LayerNormalization"
    return [*nodes, make_node(op, operands, [outputs[0]], axis=-1, epsilon=attrs.get("epsilon", 1e-12))]


_RULES: dict[str, Callable[[onnx.NodeProto, dict[str, object], Fresh], list[onnx.NodeProto] | None]] = {
    "Gelu": _gelu,
    "FastGelu": _gelu,
    "BiasGelu": _gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
}
