"""Compute definitions of ONNX operators: `define(node)` gives the stages that compute a node's outputs.

One module per group of operators; importing this package fills the registry. A node without a definition runs on the
host. `define` itself refuses what no definition covers: shapes that depend on data, empty outputs, and element types
other than booleans, integers of 8 to 64 bits and floats of 16 to 64 bits.
"""

from __future__ import annotations

from smartmem.errors import CompilerError
from smartmem.graph.ir import Node
from smartmem.kernel.definitions import (
    activation,
    contraction,
    einsum,
    elementwise,
    gather,
    generate,
    grid_sample,
    layout,
    normalization,
    order,
    quantize,
    quantized_products,
    recurrent,
    reduction,
    resize,
    scatter,
    softmax,
    window,
)
from smartmem.kernel.definitions.build import is_supported
from smartmem.kernel.definitions.registry import Defined, Definition, defined_operators, defines, definition_of
from smartmem.kernel.stage import Stage

MODULES = (
    activation,
    contraction,
    einsum,
    elementwise,
    gather,
    generate,
    grid_sample,
    layout,
    normalization,
    order,
    quantize,
    quantized_products,
    recurrent,
    reduction,
    resize,
    scatter,
    softmax,
    window,
)


def definition(node: Node) -> Defined | None:
    """The stages that compute the outputs of a canonical node, in order, with the constants that they add.

    Returns None where the node must run on the host.

    Raises:
        CompilerError: a definition gives an output another shape or dtype than the graph states.
    """
    function = definition_of(node)
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    outputs = [value for value in node.outputs if value is not None]
    if function is None or any(value.shape is None or not is_supported(value.dtype) for value in values):
        return None
    if any(0 in value.dims for value in outputs):
        return None
    found = function(node)
    if found is None:
        return None
    result = found if isinstance(found, Defined) else Defined(found)
    stages = {stage.name: stage for stage in result.stages}
    for value in outputs:
        stage = stages.get(value.name)
        if stage is None:  # an optional output that the definition does not cover
            return None
        if stage.shape != value.dims or stage.dtype != value.dtype:
            mine = f"{stage.dtype}{list(stage.shape)}"
            raise CompilerError(f"the definition of {node.describe()} gives {mine} for {value!r}; please report this")
    return result


def define(node: Node) -> list[Stage] | None:
    """The stages of `definition`; None also where they need constants that the graph does not hold."""
    found = definition(node)
    return None if found is None or found.constants else found.stages


__all__ = ["MODULES", "Defined", "Definition", "define", "defined_operators", "defines", "definition", "definition_of"]
