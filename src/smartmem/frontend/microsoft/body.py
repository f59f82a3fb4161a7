"""Write nodes as a formula: `b("Gelu", b("Add", x, bias))` → an Add node, a Gelu node, and the name of the result.

Worked example: the rule ``lambda b: b("Add", b("Add", *b.operands(2)), b.operand(2))`` of a node ``y = BiasAdd(x, c,
s)`` named n gives ``"n/Add" = Add(x, c); y = Add("n/Add", s)``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.helper import get_attribute_value, make_node

from smartmem.errors import ModelError
from smartmem.frontend.order import describe
from smartmem.graph.ir import Value

Array = np.ndarray[Any, Any]
T = TypeVar("T", bound="str | None")
#: The ONNX opset of the nodes that rules write: has Gelu (20), RMSNormalization (23) and Swish (24).
OPSET = 24
_REQUIRED = object()


@dataclass(frozen=True)
class Scope:
    """What a rule may ask of the graph around a node.

    Attributes:
        fresh: makes a name unique.
        find: the value of a name, None where nothing defines it.
        data: the contents of a value, None where it is not constant.
        shared: what several nodes compute alike; see `Body.shared`.
    """

    fresh: Callable[[str], str]
    find: Callable[[str], Value | None]
    data: Callable[[Value], Array | None]
    shared: dict[Hashable, Any] = field(default_factory=dict)


class Body:
    """The nodes that `node` stands for, in the order in which a rule writes them. Absent operands are ""."""

    def __init__(self, node: onnx.NodeProto, scope: Scope) -> None:
        self.node, self._scope = node, scope
        self._name = node.name or next((o for o in node.output if o), node.op_type)
        self._nodes: list[onnx.NodeProto] = []
        self._attributes = {a.name: get_attribute_value(a) for a in node.attribute}
        self._unread = {name for name in self._attributes if not name.startswith("_")}

    def spell(self, rule: Rule) -> list[onnx.NodeProto] | None:
        """The nodes that `rule` writes, with the node's own results.

        None where the rule declines, does not give a result that the node has, or did not read one of its attributes:
        that may change the operator's meaning.
        """
        results = rule(self)
        if results is None or self._unread:
            return None
        given = [results] if isinstance(results, str) else list(results)
        given += [""] * (len(self.node.output) - len(given))
        if any(wanted and not made for wanted, made in zip(self.node.output, given, strict=False)):
            return None
        self._name_results([(made, wanted) for made, wanted in zip(given, self.node.output, strict=False) if wanted])
        for index, node in enumerate(self._nodes):
            node.name = f"{self._name}/{node.op_type}_{index}" if len(self._nodes) > 1 else self.node.name
        return self._nodes

    def _name_results(self, pairs: list[tuple[str, str]]) -> None:
        made = {name for node in self._nodes for name in node.output}
        renamed: dict[str, str] = {}
        for name, wanted in pairs:
            if name in made and name not in renamed:
                renamed[name] = wanted
            else:  # an operand, or one result twice: a value has one name, so copy
                self._nodes.append(make_node("Identity", [name], [wanted]))
        for node in self._nodes:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]

    # What the node is

    def attribute(self, name: str, default: Any = _REQUIRED) -> Any:
        """The node's attribute, strings as text.

        Raises:
            ModelError: it is missing, and there is no default.
        """
        self._unread.discard(name)
        value = self._attributes.get(name, default)
        if value is _REQUIRED:
            raise ModelError(f'{describe(self.node)}: required attribute "{name}" is missing; export the model again')
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def attributes(self, *names: str) -> dict[str, Any]:
        """Those of the named attributes that the node has."""
        return {name: self.attribute(name) for name in names if name in self._attributes}

    def ignore(self, *names: str) -> None:
        """These attributes do not change what the operator means."""
        self._unread.difference_update(names)

    def operand(self, index: int) -> str:
        """The name of input `index`, "" where it is absent."""
        return str(self.node.input[index]) if index < len(self.node.input) else ""

    def operands(self, count: int) -> list[str]:
        """The names of the first `count` inputs."""
        return [self.operand(index) for index in range(count)]

    def wants(self, index: int) -> bool:
        """Whether the node has result `index`."""
        return index < len(self.node.output) and bool(self.node.output[index])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The extents of an operand, None where it is absent or they depend on data."""
        value = self._scope.find(name) if name else None
        return None if value is None else value.shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The element type of an operand, float32 where it is absent."""
        value = self._scope.find(name) if name else None
        return np.dtype(np.float32) if value is None else value.dtype

    def data(self, name: str) -> Array | None:
        """The contents of a constant operand."""
        value = self._scope.find(name) if name else None
        return None if value is None else self._scope.data(value)

    # Nodes

    def __call__(self, op: str, *operands: str, **attributes: Any) -> str:
        """The result of a new node."""
        return self.results(op, 1, *operands, **attributes)[0]

    def results(self, op: str, count: int, *operands: str, **attributes: Any) -> list[str]:
        """The `count` results of a new node; absent operands at the end are left out."""
        names = list(operands)
        while names and not names[-1]:
            names.pop()
        made = [self._scope.fresh(f"{self._name}/{op}") for _ in range(count)]
        self._nodes.append(make_node(op, names, made, **attributes))
        return made

    def constant(self, data: Any, dtype: Any = np.int64) -> str:
        """A constant."""
        array = np.asarray(data, dtype)
        return self("Constant", value=numpy_helper.from_array(array))

    def reshape(self, x: str, *extents: int) -> str:
        """`x` in another shape; 0 keeps an extent, -1 is the rest."""
        return self("Reshape", x, self.constant(extents))

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        """`x` in parts of `sizes` along `axis`."""
        return self.results("Split", len(sizes), x, self.constant(sizes), axis=axis)

    def shared(self, key: Hashable, write: Callable[[], T]) -> T:
        """What `write` gives, written once for all nodes that ask by the same key, such as the mask of all layers."""
        memory: dict[Hashable, T] = self._scope.shared
        if key not in memory:
            memory[key] = write()
        return memory[key]

    def total(self, *terms: str) -> str:
        """The sum of those terms that are present, from the left."""
        result, *rest = (term for term in terms if term)
        for term in rest:
            result = self("Add", result, term)
        return result


#: Writes a body; gives the names of the node's results (the first alone: a name) or None for what it cannot express.
Rule = Callable[[Body], "str | Sequence[str] | None"]
