"""Graph -> Module: every node becomes the stages of its compute definition, or a host operator."""

from __future__ import annotations

import numpy as np
import onnx

from smartmem.graph.ir import Graph, Node, Operator, Value
from smartmem.kernel.definitions import definition, definition_of
from smartmem.kernel.definitions.build import coordinates, is_supported
from smartmem.kernel.evaluate import LARGE
from smartmem.kernel.expr import load
from smartmem.kernel.stage import Stage
from smartmem.passes.classify import survey
from smartmem.passes.fold_constants import fold_stages
from smartmem.passes.halves import without_halves
from smartmem.passes.module import Fate, HostOp, Module
from smartmem.runtime.host import pack

# Operators that only move data; how the report names "layout operators". Behaviour never depends on this list: what is
# eliminated is decided from definitions alone.
LAYOUT_OPERATORS = frozenset(
    ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Expand", "Tile", "Pad",
     "Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "Identity", "CenterCropPad")
)  # fmt: skip


def lower(graph: Graph, doubles: bool = True) -> Module:
    """The module of a verified graph; without `doubles` the target has no 64-bit floats, and the host computes them."""
    constants = {v.name: v.data for v in graph.values() if v.data is not None}
    types = {v.name: (v.shape, v.dtype) for v in graph.values()}
    module = Module(graph.name, graph.inputs, graph.outputs, constants, types, [], nodes=len(graph.nodes))
    for node in graph.nodes:
        found = None if _is_empty(node) else definition(node)
        if _is_empty(node):
            pass  # nothing to compute
        elif found is None:
            module.steps.append(HostOp(node, _why_host(node)))
        elif not doubles and _has_doubles(node):
            module.steps.append(HostOp(node, "the device has no 64-bit floats"))
        else:
            module.steps += found.stages
            for name, data in found.constants.items():
                module.constants[name] = data
                module.types[name] = (data.shape, data.dtype)
        module.operators[node.name] = node.op
    without_halves(module)
    module.definitions = {step.name: step for step in module.steps if isinstance(step, Stage)}
    module.fates = _fates(graph)
    fold_stages(module, LARGE)
    for step in module.steps:
        if isinstance(step, Stage):
            module.types[step.name] = (step.shape, step.dtype)
    _copy_passthrough_outputs(module, doubles)
    module.classes = survey([step for step in module.steps if isinstance(step, Stage)])
    module.definitions |= {step.name: step for step in module.steps if isinstance(step, Stage)}
    return module


def operators_of(graph: Graph) -> list[Operator]:
    """The operators of the model file; for a graph that did not come from one, its nodes."""
    return graph.operators or [Operator(node.name, node.op, _first(node).shape) for node in graph.nodes]


def _first(node: Node) -> Value:
    """The first output that a node has (an LSTM may give its last state only)."""
    return next(value for value in node.outputs if value is not None)


def _fates(graph: Graph) -> dict[str, Fate]:
    """A fate for each layout operator of the model, "" where `trace` finds it out."""
    return {
        operator.name: Fate(
            operator.name, operator.op, operator.shape or (), "folded" if operator.removed else "", [], operator.removed
        )
        for operator in operators_of(graph)
        if operator.op in LAYOUT_OPERATORS
    }


def _why_host(node: Node) -> str:
    if any(v is not None and v.shape is None for v in (*node.inputs, *node.outputs)):
        return "a shape depends on data"
    if definition_of(node) is None:
        return "the operator has no compute definition"
    return "no compute definition covers these attributes or dtypes"


def _has_doubles(node: Node) -> bool:
    return any(v is not None and v.dtype == np.float64 for v in (*node.inputs, *node.outputs))


def _is_empty(node: Node) -> bool:
    """Whether no result of a node has any elements."""
    return all(v is None or (v.shape is not None and 0 in v.shape) for v in node.outputs)


def _copy_passthrough_outputs(module: Module, doubles: bool) -> None:
    """A graph output that is an input, a constant or listed twice gets a tensor of its own, which is then a copy."""
    inputs, seen = {v.name for v in module.inputs}, set()
    for position, value in enumerate(module.outputs):
        if value.name in inputs or value.name in module.constants or value.name in seen:
            copy = Value(f"{value.name}.out{position}", value.shape, value.dtype)
            if value.shape is None or not is_supported(value.dtype) or (value.dtype == np.float64 and not doubles):
                module.steps.append(HostOp(_identity(value, copy), "an input or another output is passed through"))
            elif 0 not in value.shape:
                body = load(value.name, coordinates(value.shape), value.dtype)
                module.steps.append(Stage(copy.name, value.shape, value.dtype, body))
            module.types[copy.name] = (value.shape, value.dtype)
            module.renamed[copy.name] = value.name
            module.outputs = [*module.outputs[:position], copy, *module.outputs[position + 1 :]]
        seen.add(value.name)


def _identity(source: Value, result: Value) -> Node:
    proto = onnx.helper.make_node("Identity", [source.name], [result.name])
    return Node(
        "Identity", "", result.name, [source], [result], version=onnx.defs.onnx_opset_version(), proto=pack(proto)
    )
