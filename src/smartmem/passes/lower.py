"""Graph -> Module: every node becomes the stages of its compute definition, or a host operator."""

from __future__ import annotations


from smartmem.graph.ir import Graph, Node
from smartmem.kernel.definitions import definition, definition_of
from smartmem.kernel.expr import load
from smartmem.kernel.stage import Stage
from smartmem.passes.module import Fate, HostOp, Module

# Operators that only move data; how the report names "layout operators". Behaviour never depends on this list: what is
# eliminated is decided from definitions alone.
LAYOUT_OPERATORS = frozenset(
    "Reshape Transpose Flatten Squeeze Unsqueeze Slice Split Concat Expand Tile Pad Gather GatherElements GatherND "
    "DepthToSpace SpaceToDepth Identity CenterCropPad".split()
)


def lower(graph: Graph) -> Module:
    """The module of a verified graph."""
    constants = {v.name: v.data for v in graph.values() if v.data is not None}
    types = {v.name: (v.shape, v.dtype) for v in graph.values()}
    module = Module(graph.name, graph.inputs, graph.outputs, constants, types, [], nodes=len(graph.nodes))
    for node in graph.nodes:
        found = definition(node)
        if found is None:
            module.steps.append(HostOp(node, _why_host(node)))
        else:
            module.steps += found.stages
            for name, data in found.constants.items():
                module.constants[name] = data
                module.types[name] = (data.shape, data.dtype)
        if node.op in LAYOUT_OPERATORS:
            shape = node.output.shape or ()
            module.fates[node.name] = Fate(node.name, node.op, shape, "host" if found is None else "")
    for step in module.steps:
        if isinstance(step, Stage):
            module.types[step.name] = (step.shape, step.dtype)
    _copy_passthrough_outputs(module)
    return module


def _why_host(node: Node) -> str:
    if any(v is not None and v.shape is None for v in (*node.inputs, *node.outputs)):
        return "a shape depends on data"
    if definition_of(node) is None:
        return "the operator has no compute definition"
    return "no compute definition covers these attributes or dtypes"


def _copy_passthrough_outputs(module: Module) -> None:
    """A graph output that is an input, a constant or listed twice gets a tensor of its own, which is then a copy."""
    inputs, seen = {v.name for v in module.inputs}, set()
    for position, value in enumerate(module.outputs):
        if value.name in inputs or value.name in module.constants or value.name in seen:
            copy = type(value)(f"{value.name}.out{position}", value.shape, value.dtype)
            assert value.shape is not None
            from smartmem.index.lin import axis_digit

            index = tuple(axis_digit(a, n) for a, n in enumerate(value.shape))
            module.steps.append(Stage(copy.name, value.shape, value.dtype, load(value.name, index, value.dtype)))
            module.types[copy.name] = (value.shape, value.dtype)
            module.outputs = [*module.outputs[:position], copy, *module.outputs[position + 1 :]]
        seen.add(value.name)


