"""Spell a few onnxruntime contrib operators in ONNX: a `com.microsoft` node → nodes of the ONNX domain.

Only operators that are an ONNX operator (or two) under another name; the rest is an unknown domain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
from onnx.helper import make_node

from smartmem.frontend.inline import Work

_OPSET = 24  # has Gelu (20), RMSNormalization (23) and Swish (24)
Fresh = Callable[[str], str]
Attributes = dict[str, object]
Rule = Callable[[onnx.NodeProto, Attributes, Fresh], "list[onnx.NodeProto] | None"]


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


def _gelu(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto]:
    approximate = "tanh" if node.op_type == "FastGelu" else "none"
    source, nodes = node.input[0], []
    if len(node.input) > 1 and node.input[1]:
        source = fresh(f"{node.name}/biased")
        nodes.append(make_node("Add", list(node.input[:2]), [source]))
    return [*nodes, make_node("Gelu", [source], list(node.output), approximate=approximate)]


def _quick_gelu(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto]:
    return [make_node("Swish", list(node.input), list(node.output), alpha=attrs.get("alpha", 1.702))]


def _rms(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto] | None:
    if len(node.output) > 1 and any(node.output[1:]):
        return None
    wanted = {"axis": attrs.get("axis", -1), "epsilon": attrs.get("epsilon", 1e-5)}
    return [make_node("RMSNormalization", list(node.input[:2]), [node.output[0]], **wanted)]


def _skip_norm(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto] | None:
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


def _dequantized(parts: Sequence[str], fresh: Fresh, axis: int | None = None) -> tuple[onnx.NodeProto, str]:
    """A tensor, its scale and its zero point (absent: "") as floats."""
    name = fresh(f"{parts[0]}/float")
    attributes = {} if axis is None else {"axis": axis}
    return make_node("DequantizeLinear", [p for p in parts if p], [name], **attributes), name


def _quantized_operator(op: str, *kept: str) -> Rule:
    """The rule ``quantize(op(dequantized operands))``.

    Inputs are (tensor, scale, zero point) for each operand, then scale and zero point of the result. `kept`: attributes
    that ONNX's operator has, too.
    """

    def rule(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto] | None:
        if attrs.get("channels_last"):
            return None
        whole = len(node.input) % 3 == 2  # the last zero point may be left out
        *operands, scale, zero = [*node.input] if whole else [*node.input, ""]
        nodes, floats = _all_dequantized(operands, fresh)
        return _requantized(nodes, op, floats, node, (scale, zero), attrs, kept, fresh)

    return rule


def _all_dequantized(operands: Sequence[str], fresh: Fresh) -> tuple[list[onnx.NodeProto], list[str]]:
    """`_dequantized` of each three names."""
    made = [_dequantized(operands[k : k + 3], fresh) for k in range(0, len(operands), 3)]
    return [node for node, _ in made], [name for _, name in made]


def _requantized(
    before: list[onnx.NodeProto], op: str, operands: list[str], node: onnx.NodeProto, into: tuple[str, str],
    attrs: Attributes, kept: Sequence[str], fresh: Fresh,
) -> list[onnx.NodeProto]:  # fmt: skip
    result = fresh(f"{node.name}/result")
    wanted = {name: attrs[name] for name in kept if name in attrs}
    quantize = make_node("QuantizeLinear", [result, *(name for name in into if name)], list(node.output))
    return [*before, make_node(op, operands, [result], **wanted), quantize]


def _quantized_concat(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto]:
    """Scale and zero point of the result come first."""
    scale, zero, *operands = node.input
    nodes, floats = _all_dequantized(operands, fresh)
    return _requantized(nodes, "Concat", floats, node, (scale, zero), attrs, ["axis"], fresh)


def _matmul_to_float(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto]:
    """``(a - za) @ (b - zb) * (sa * sb) + bias``; DynamicQuantizeMatMul finds sa and za itself."""
    names = [*node.input, "", "", "", ""]
    nodes: list[onnx.NodeProto] = []
    if node.op_type == "DynamicQuantizeMatMul":
        source, b, b_scale, b_zero, bias = names[:5]
        a, a_scale, a_zero = (fresh(f"{node.name}/{part}") for part in ("integers", "scale", "zero"))
        nodes.append(make_node("DynamicQuantizeLinear", [source], [a, a_scale, a_zero]))
    else:
        a, b, a_scale, b_scale, a_zero, b_zero, bias = names[:7]
    integers, floats, scale = (fresh(f"{node.name}/{part}") for part in ("sums", "floats", "factor"))
    product = list(node.output) if not bias else [fresh(f"{node.name}/product")]
    nodes += [
        make_node("MatMulInteger", [a, b, *_without_end([a_zero, b_zero])], [integers]),
        make_node("Cast", [integers], [floats], to=onnx.TensorProto.FLOAT),
        make_node("Mul", [a_scale, b_scale], [scale]),
        make_node("Mul", [floats, scale], product),
    ]
    return nodes + ([make_node("Add", [*product, bias], list(node.output))] if bias else [])


def _quantized_gemm(node: onnx.NodeProto, attrs: Attributes, fresh: Fresh) -> list[onnx.NodeProto]:
    """Gemm of quantized operands; the bias has the scale of the sums, and the result is quantized if it has a scale."""
    bias, scale, zero = [*node.input, "", "", ""][6:9]
    columns = 0 if attrs.get("transB") else 1
    (first, left), (second, right) = _dequantized(node.input[:3], fresh), _dequantized(node.input[3:6], fresh, columns)
    nodes, operands = [first, second], [left, right]
    if bias:
        factor, number, shift = (fresh(f"{node.name}/{part}") for part in ("factor", "bias", "shift"))
        nodes.append(make_node("Mul", [node.input[1], node.input[4]], [factor]))
        nodes.append(make_node("Cast", [bias], [number], to=onnx.TensorProto.FLOAT))
        nodes.append(make_node("Mul", [number, factor], [shift]))
        operands.append(shift)
    alpha = attrs.get("alpha", 1.0)
    wanted = {"alpha": alpha, "beta": alpha, "transA": attrs.get("transA", 0), "transB": attrs.get("transB", 0)}
    if not scale:
        return [*nodes, make_node("Gemm", operands, list(node.output), **wanted)]
    return _requantized(nodes, "Gemm", operands, node, (scale, zero), wanted, list(wanted), fresh)


def _without_end(names: list[str]) -> list[str]:
    """Without absent operands at the end."""
    while names and not names[-1]:
        names = names[:-1]
    return names


_POOL = ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "ceil_mode", "count_include_pad")
_RULES: dict[str, Rule] = {
    "Gelu": _gelu,
    "FastGelu": _gelu,
    "BiasGelu": _gelu,
    "QuickGelu": _quick_gelu,
    "DynamicQuantizeMatMul": _matmul_to_float,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QGemm": _quantized_gemm,
    "QLinearAdd": _quantized_operator("Add"),
    "QLinearAveragePool": _quantized_operator("AveragePool", *_POOL),
    "QLinearConcat": _quantized_concat,
    "QLinearGlobalAveragePool": _quantized_operator("GlobalAveragePool"),
    "QLinearLeakyRelu": _quantized_operator("LeakyRelu", "alpha"),
    "QLinearMul": _quantized_operator("Mul"),
    "QLinearSigmoid": _quantized_operator("Sigmoid"),
    "QLinearSoftmax": _quantized_operator("Softmax", "axis"),
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
}
