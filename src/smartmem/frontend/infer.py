"""Infer the types of one node's results: operand types and small constants → one TypeProto per result.

The onnx package's inference function of the operator is called with the constants known, once per node: shapes that
follow from shape arithmetic are static because that arithmetic was folded before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import defs, numpy_helper, shape_inference

from smartmem.errors import ModelError
from smartmem.frontend.order import captures, describe, subgraphs
from smartmem.frontend.tensors import elem_type_of
from smartmem.graph.ir import Value

#: Constants up to this many elements are shown to inference: shapes, axes, scales; never weights.
SMALL = 1024


def tensor_type(dtype: np.dtype[Any], shape: Sequence[int | None] | None) -> onnx.TypeProto:
    """The TypeProto of a tensor; None for unknown extents or rank."""
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = elem_type_of(dtype)
    if shape is not None:
        proto.tensor_type.shape.SetInParent()
        for extent in shape:
            dim = proto.tensor_type.shape.dim.add()
            if extent is not None:
                dim.dim_value = extent
    return proto


def static_shape(proto: onnx.TypeProto) -> tuple[int, ...] | None:
    """The shape of a tensor type, or None where any extent (or the rank) is unknown."""
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    if any(not d.HasField("dim_value") or d.dim_value < 0 for d in dims):
        return None
    return tuple(int(d.dim_value) for d in dims)


class Inference:
    """Infers node by node; keeps the types of values and of small constants in protobuf form."""

    def __init__(self, ir_version: int) -> None:
        self._ir_version = ir_version
        self._types: dict[Value, onnx.TypeProto] = {}
        self._tensors: dict[Value, onnx.TensorProto] = {}

    def type_of(self, value: Value) -> onnx.TypeProto:
        """The type of a value, partly unknown extents included."""
        if value not in self._types:
            self._types[value] = tensor_type(value.dtype, value.shape)
        return self._types[value]

    def remember(self, value: Value, proto: onnx.TypeProto) -> None:
        """Keep what `Value` cannot say: partial shapes, sequences, optionals."""
        self._types[value] = proto

    def forget(self, value: Value) -> None:
        """Drop what was remembered: the value's own shape has become exact."""
        self._types.pop(value, None)

    def run(
        self,
        node: onnx.NodeProto,
        schema: defs.OpSchema,
        opsets: Mapping[str, int],
        operands: Mapping[str, Value],
        known: Mapping[Value, np.ndarray[Any, Any]],
    ) -> dict[str, onnx.TypeProto]:
        """Result name → type (absent where the onnx package cannot say).

        Args:
            node: the node.
            schema: its operator.
            opsets: domain → version.
            operands: what the node's input names (and the names its subgraphs capture) stand for.
            known: contents of constants.

        Raises:
            ModelError: operand types or shapes do not fit the operator.
        """
        node = _repaired(node)
        types = {name: self.type_of(value) for name, value in operands.items()}
        data = {name: tensor for name, v in operands.items() if (tensor := self._small(v, known)) is not None}
        if node.op_type == "Range":  # one element is as good as a scalar, and ONNX's own AffineGrid relies on it
            types = {name: _scalar(operands[name]) for name in types}
            data = {name: onnx.TensorProto(data_type=t.data_type, raw_data=t.raw_data) for name, t in data.items()}
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        try:
            if any(True for _ in subgraphs(node)):
                return self._run_as_model(node, imports, types, data)
            found: dict[str, Any] = shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=imports, ir_version=self._ir_version
            )
            if node.op_type == "OneHot":
                found |= _one_hot(node, operands, known)
            elif node.op_type == "GroupNormalization":  # inferred through its function body, which gives no shape
                found |= {node.output[0]: types[node.input[0]]}
            return found
        except (shape_inference.InferenceError, RuntimeError, ValueError, TypeError, IndexError) as error:
            shapes = ", ".join(repr(operands[n]) if n else "absent" for n in node.input)
            raise ModelError(
                f"{describe(node)}: its inputs do not fit operator {node.op_type}: {clean(error)}; inputs: {shapes}"
            ) from None

    def _run_as_model(
        self,
        node: onnx.NodeProto,
        imports: list[onnx.OperatorSetIdProto],
        types: Mapping[str, onnx.TypeProto],
        data: Mapping[str, onnx.TensorProto],
    ) -> dict[str, onnx.TypeProto]:
        """Inference of control flow: the subgraphs see captured values and constants only in a whole model."""
        graph = onnx.GraphProto(name="g", node=[node])
        for name in dict.fromkeys((*node.input, *captures(node))):
            if name:
                graph.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
                if name in data:
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(data[name])
                    tensor.name = name
                    graph.initializer.append(tensor)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
        model = onnx.ModelProto(ir_version=self._ir_version, graph=graph, opset_import=imports)
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        found = {v.name: v.type for v in inferred.graph.output if v.type.WhichOneof("value")}
        if node.op_type == "Loop":
            found |= self._carried(node, model)
        return found

    def _carried(self, node: onnx.NodeProto, model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
        """Types of a Loop's carried values whose shape no iteration changes.

        The onnx package gives up on them, as a shape could grow. We infer the body with the initial shapes: values that
        come out as they went in keep their shape, those that do not lose it, until nothing changes.
        """
        body = next(a.g for a in node.attribute if a.name == "body")
        outer = {v.name: v for v in model.graph.input}
        initial = node.input[2:]
        types = [onnx.TypeProto.FromString(outer[name].type.SerializeToString()) for name in initial]
        while True:
            trial = onnx.ModelProto()
            trial.CopyFrom(model)
            trial.graph.CopyFrom(body)
            for at, value in enumerate(trial.graph.input):
                if at >= 2:
                    value.type.CopyFrom(types[at - 2])
            for value in trial.graph.output:
                value.ClearField("type")
            local = {v.name for v in trial.graph.input} | {t.name for t in trial.graph.initializer}
            trial.graph.input.extend(outer[name] for name in captures(node) if name not in local)
            known = {t.name: t for t in model.graph.initializer}
            trial.graph.initializer.extend(known[name] for name in captures(node) if name in known)
            result = shape_inference.infer_shapes(trial, strict_mode=True, data_prop=True).graph.output
            changed = False
            for kind, after in zip(types, result[1 : 1 + len(types)], strict=True):
                shape = static_shape(kind)
                if shape is not None and static_shape(after.type) != shape:
                    kind.tensor_type.ClearField("shape")
                    changed = True
            if not changed:
                break
        pairs = zip(node.output, types, strict=False)
        return {name: kind for name, kind in pairs if name and static_shape(kind) is not None}

    def _small(self, value: Value, known: Mapping[Value, np.ndarray[Any, Any]]) -> onnx.TensorProto | None:
        array = known.get(value)
        if array is None or array.size > SMALL or array.dtype.kind not in "iufb":
            return None
        if value not in self._tensors:
            self._tensors[value] = numpy_helper.from_array(np.asarray(array), value.name)
        return self._tensors[value]


def _scalar(value: Value) -> onnx.TypeProto:
    return tensor_type(value.dtype, () if value.shape == (1,) else value.shape)


def _repaired(node: onnx.NodeProto) -> onnx.NodeProto:
    """The node in a form for which the onnx package infers right shapes (faults seen in 1.23).

    Squeeze and Unsqueeze need `axes` in order; STFT needs `onesided`, whose default it forgets.
    """
    copy = onnx.NodeProto()
    if node.op_type in ("Squeeze", "Unsqueeze"):
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [])
        if axes != sorted(axes) and min(axes) >= 0:
            copy.CopyFrom(node)
            next(a for a in copy.attribute if a.name == "axes").ints[:] = sorted(axes)
            return copy
    elif node.op_type == "STFT" and not any(a.name == "onesided" for a in node.attribute):
        copy.CopyFrom(node)
        copy.attribute.append(onnx.helper.make_attribute("onesided", 1))
        return copy
    return node


def _one_hot(
    node: onnx.NodeProto, operands: Mapping[str, Value], known: Mapping[Value, np.ndarray[Any, Any]]
) -> dict[str, onnx.TypeProto]:
    """The onnx package does not look at a constant depth: `indices` with `depth` inserted at `axis`."""
    indices, depth, values = (operands[name] for name in node.input[:3])
    if indices.shape is None or depth not in known:
        return {}
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    shape = list(indices.shape)
    shape.insert(axis if axis >= 0 else len(shape) + 1 + axis, int(known[depth].reshape(-1)[0]))
    return {node.output[0]: tensor_type(values.dtype, shape)}


def clean(error: Exception) -> str:
    """The first useful line of an onnx error, without its prefixes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    for mark in ("[ShapeInferenceError] ", "[TypeInferenceError] "):
        line = line.split(mark)[-1]
    return line.rstrip(".")
