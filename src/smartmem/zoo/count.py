"""Count a network: parameters of a module, multiply-accumulates of an ONNX graph.

A multiply-accumulate is one product of a matrix product or convolution; normalisation, activations and sums are not
counted, as in the papers' tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from smartmem.errors import ModelError

if TYPE_CHECKING:
    import torch

_SMALL = 1024  # bytes; larger constants are no shapes

Shape = tuple[int, ...]


def parameters(module: torch.nn.Module) -> int:
    """Number of parameters, a shared one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(model: str | Path | onnx.ModelProto) -> int:
    """Multiply-accumulates of one run: Conv, ConvTranspose, MatMul, Gemm and Einsum, outside of subgraphs.

    Raises:
        ModelError: the file cannot be read, or a counted node's shapes are not static.
    """
    if not isinstance(model, onnx.ModelProto):
        try:
            model = onnx.load(model, load_external_data=False)
        except Exception as error:  # protobuf's errors have no common base class
            raise ModelError(f"{model}: cannot be read: {error}") from None
    return sum(_counts(model))


def _counts(model: onnx.ModelProto) -> Iterator[int]:
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    shapes: dict[str, Shape] = {}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(extent.HasField("dim_value") for extent in tensor.shape.dim):
            shapes[value.name] = tuple(extent.dim_value for extent in tensor.shape.dim)
    shapes.update({constant.name: tuple(constant.dims) for constant in inferred.initializer})
    for node in inferred.node:
        count = _COUNTS.get(node.op_type)
        if count is None or node.domain not in ("", "ai.onnx"):
            continue
        names = [name for name in (*node.input, *node.output) if name]
        unknown = [name for name in names if name not in shapes]
        if unknown:
            raise ModelError(
                f"node {node.name} ({node.op_type}): the shape of {unknown[0]} is not static, so it cannot be counted"
            )
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        yield count([shapes[name] for name in node.input if name], shapes[node.output[0]], attributes)


def _conv(inputs: list[Shape], output: Shape, attributes: dict[str, Any]) -> int:
    return math.prod(output) * math.prod(inputs[1][1:])  # weights (out, in / groups, kernel…)


def _conv_transpose(inputs: list[Shape], output: Shape, attributes: dict[str, Any]) -> int:
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])  # weights (in, out / groups, kernel…)


def _matmul(inputs: list[Shape], output: Shape, attributes: dict[str, Any]) -> int:
    return math.prod(output) * inputs[0][-1]


def _gemm(inputs: list[Shape], output: Shape, attributes: dict[str, Any]) -> int:
    return math.prod(output) * inputs[0][0 if attributes.get("transA") else 1]


def _einsum(inputs: list[Shape], output: Shape, attributes: dict[str, Any]) -> int:
    """The product of all labels' extents; an ellipsis is as many labels as it stands for."""
    equation = attributes["equation"].decode().replace(" ", "")
    extents: dict[str, int] = {}
    for term, shape in zip(equation.partition("->")[0].split(","), inputs, strict=True):
        hidden = len(shape) - len(term.replace("...", ""))
        labels: list[str] = []
        for part in term.replace("...", ".").strip():
            labels += [f".{k}" for k in range(-hidden, 0)] if part == "." else [part]
        for label, extent in zip(labels, shape, strict=True):
            extents[label] = max(extent, extents.get(label, 1))
    return math.prod(extents.values()) if len(inputs) > 1 else 0


_COUNTS = {"Conv": _conv, "ConvTranspose": _conv_transpose, "MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum}


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large constants as inputs: shape inference copies what it is given."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    known = {value.name for value in graph.input}
    for constant in model.graph.initializer:
        if not constant.HasField("data_location") and constant.ByteSize() <= _SMALL:
            graph.initializer.append(constant)
        elif constant.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(constant.name, constant.data_type, constant.dims))
    return light
