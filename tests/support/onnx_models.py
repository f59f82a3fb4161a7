"""ONNX models of a few nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None] | None
Values = Mapping[str, Shape] | Sequence[str | onnx.ValueInfoProto]


def info(name: str, shape: Shape, elem: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A value of float32, or of element type `elem`; extents are numbers, names or unknown, and so may be the shape."""
    return helper.make_tensor_value_info(name, elem, shape)


def infos(values: Values) -> list[onnx.ValueInfoProto]:
    """Shapes by name are of float32; names alone have no type."""
    if isinstance(values, Mapping):
        return [info(name, shape) for name, shape in values.items()]
    return [onnx.ValueInfoProto(name=value) if isinstance(value, str) else value for value in values]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Values,
    outputs: Values = ("y",),
    constants: Mapping[str, npt.ArrayLike] | None = None,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of `nodes`.

    Inputs are shapes by name, of float32, or `info`s; outputs also names alone, whose types shape inference finds (ONNX
    Runtime wants types). Constants keep their shapes and dtypes. `domains` are versions of operator sets beside ONNX's.
    """
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)
