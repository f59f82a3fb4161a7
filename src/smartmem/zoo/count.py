"""Count a network: parameters of a module, multiply-accumulates of an ONNX graph.

A multiply-accumulate is one product of a matrix product or convolution; normalisation, activations and sums are not
counted, as in the papers' tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from smartmem.errors import ModelError
from smartmem.frontend import load_graph

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]


def parameters(module: torch.nn.Module) -> int:
    """Number of parameters, a shared one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(model: str | Path | onnx.ModelProto, shapes: Mapping[str, Shape] | None = None) -> int:
    """Multiply-accumulates of one run: Conv, ConvTranspose, MatMul, Gemm and Einsum, outside of subgraphs.

    The shapes are those that smartmem's own frontend finds: it also evaluates the arithmetic on shapes that torch's
    older exporter leaves in its graphs.

    Args:
        model: a file, or a parsed model.
        shapes: of inputs with symbolic dimensions, by name.

    Raises:
        ModelError: the file cannot be read, or a counted node's shapes depend on data.
        InputError: an input's shape is not static.
    """
    total = 0
    for node in load_graph(model, shapes).nodes:
        count = _COUNTS.get(node.op) if not node.domain else None
        if count is None:
            continue
        found = []
        for value in (*filter(None, node.inputs), node.output):
            if value.shape is None:
                raise ModelError(f"node {node.name} ({node.op}): the shape of {value.name} depends on data")
            found.append(value.shape)
        total += count(found[:-1], found[-1], node.attrs)
    return total


def _conv(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    return math.prod(output) * math.prod(inputs[1][1:])  # weights (out, in / groups, kernel…)


def _conv_transpose(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])  # weights (in, out / groups, kernel…)


def _matmul(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    return math.prod(output) * inputs[0][-1]


def _gemm(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    return math.prod(output) * inputs[0][0 if attributes.get("transA") else 1]


def _einsum(inputs: list[Shape], output: Shape, attributes: Mapping[str, Any]) -> int:
    """The product of all labels' extents; an ellipsis is as many labels as it stands for."""
    equation = attributes["equation"].replace(" ", "")
    extents: dict[str, int] = {}
    for term, shape in zip(equation.partition("->")[0].split(","), inputs, strict=True):
        hidden = len(shape) - len(term.replace("...", ""))
        labels: list[str] = []
        for part in term.replace("...", ".").strip():
            labels += [f".{k}" for k in range(-hidden, 0)] if part == "." else [part]
        for label, extent in zip(labels, shape, strict=True):
            extents[label] = max(extent, extents.get(label, 1))
    return math.prod(extents.values()) if len(inputs) > 1 else 0


_COUNTS: dict[str, Callable[[list[Shape], Shape, Mapping[str, Any]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
}
