"""Slots: the pointers of a program, numbered on first use, and the lifetimes of those that activations share.

`assemble` (CPU) and `assemble_device` make their own kinds of slots from this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.passes.module import HostOp, Module
from smartmem.runtime.artifact import HostStep, TensorSpec

Array = np.ndarray[Any, Any]
S = TypeVar("S")
SAMPLES = 256  # elements by which arrays are told apart before all of them are compared


class Slots(ABC, Generic[S]):
    """Numbers memory objects by name and collects the weights among them."""

    def __init__(self, module: Module, packed: Mapping[str, Array]) -> None:
        self.module = module
        self.slots: list[S] = []
        self.weights: dict[str, Array] = {}
        self.packed = dict(packed)
        self._same = _equal(self.packed)
        self._numbers: dict[str, int] = {}
        for value in (*module.inputs, *module.outputs):
            self.number(value.name)

    @abstractmethod
    def make(self, name: str) -> S:
        """The slot of a buffer that is used for the first time."""

    def number(self, name: str) -> int:
        """The number of a buffer's slot, made on first use; equal packed constants have one."""
        name = self._same.get(name, name)
        if name not in self._numbers:
            slot = self.make(name)
            self._numbers[name] = len(self.slots)
            self.slots.append(slot)
        return self._numbers[name]

    def host(self, step: HostOp) -> HostStep:
        """A host operator as a step."""
        node = step.node
        inputs = tuple(self._host_inputs(node))
        outputs = tuple(-1 if v is None else self.number(v.name) for v in node.outputs)
        return HostStep(node.describe(), node.op, node.proto, node.version, inputs, outputs, node.domain, node.attrs)

    def _host_inputs(self, node: Node) -> Iterator[int]:
        """Slots of all operands of the ONNX node; what the frontend baked into attributes becomes weights again."""
        given = iter(node.inputs)
        for position in range(len(node.inputs) + len(node.baked)):
            if position not in node.baked:
                value = next(given)
                yield -1 if value is None else self.number(value.name)
                continue
            array = node.baked[position]
            if array is None:
                yield -1
                continue
            name = f"{node.name or node.output.name}.operand{position}"
            self.packed[name] = array
            yield self.number(name)


def _equal(packed: Mapping[str, Array]) -> dict[str, str]:
    """The first of equal arrays by the names of the others (steps of a sequence pack the same weights)."""
    firsts: dict[tuple[object, ...], list[str]] = {}
    same: dict[str, str] = {}
    for name, data in packed.items():
        some = data.reshape(-1)[:: max(1, data.size // SAMPLES)].tobytes()
        others = firsts.setdefault((data.shape, data.dtype, some), [])
        first = next((other for other in others if np.array_equal(packed[other], data)), None)
        if first is None:
            others.append(name)
        else:
            same[name] = first
    return same


def lifetimes(touched: Sequence[Sequence[int]]) -> dict[int, tuple[int, int]]:
    """First and last step that touches each slot, given the slots of every step."""
    result: dict[int, tuple[int, int]] = {}
    for position, numbers in enumerate(touched):
        for number in numbers:
            result[number] = (result.get(number, (position, 0))[0], position)
    return result


def specs(values: list[Value], module: Module) -> list[TensorSpec]:
    """Graph inputs or outputs as the runtime describes them."""
    return [TensorSpec(module.shown(v.name), v.shape, v.dtype.name) for v in values]
