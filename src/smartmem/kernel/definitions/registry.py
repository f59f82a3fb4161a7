"""The table from ONNX operators to functions that give their compute definitions.

A definition function takes a canonical `Node` (see `frontend.normalise`) and returns the stages that define its
outputs, in order, or `Defined` where they need constants of their own. Stage names are the names of the output values;
internal stages append a suffix (``"y.max"``). It returns None where this use of the operator has no definition (it then
runs on the host).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartmem.graph.ir import Node
from smartmem.kernel.stage import Stage


@dataclass(frozen=True)
class Defined:
    """Stages that need constants of their own: index and weight tables that the graph does not hold.

    Attributes:
        stages: the definition.
        constants: new tensors by name (unique: ``f"{output}.…"``); loads and lookups name them like any tensor.
    """

    stages: list[Stage]
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


Definition = Callable[[Node], "list[Stage] | Defined | None"]
_definitions: dict[str, Definition] = {}


def defines(*operators: str) -> Callable[[Definition], Definition]:
    """Registers a definition function for operators of the ONNX domain."""

    def register(function: Definition) -> Definition:
        for operator in operators:
            assert operator not in _definitions, f"{operator} has two definitions"
            _definitions[operator] = function
        return function

    return register


def definition_of(node: Node) -> Definition | None:
    """The definition function of a node's operator, or None."""
    return _definitions.get(node.op) if node.domain == "" else None


def defined_operators() -> list[str]:
    """Names of all operators that have a compute definition, sorted."""
    return sorted(_definitions)
