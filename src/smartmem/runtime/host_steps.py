"""Run the host steps of a program: nodes that have no kernel.

In: a `HostStep` and its operands as arrays. Out: the array of each result, checked against the slot that it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smartmem.errors import RuntimeFailure
from smartmem.runtime.arrays import Array, dtype_of
from smartmem.runtime.artifact import HostStep, Slot

if TYPE_CHECKING:
    from smartmem.runtime.opencl.program import DeviceSlot

    Slots = Sequence[Slot] | Sequence[DeviceSlot]


class HostSteps:
    """The host steps of one program; their nodes are made once."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._nodes: dict[int, Any] = {}

    def run(self, step: HostStep, operands: list[Array | None]) -> list[tuple[int, Any]]:
        """(slot number, value) of each result: an array, or a list for sequences.

        Raises:
            RuntimeFailure: the reference implementation failed, or gave another shape or type than the slot has.
        """
        from smartmem.runtime.host import run_node

        if id(step) not in self._nodes:
            self._nodes[id(step)] = host_node(step, self._slots)
        results = run_node(self._nodes[id(step)], operands)
        return [
            (at, self._checked(step, at, result)) for at, result in zip(step.outputs, results, strict=False) if at >= 0
        ]

    def _checked(self, step: HostStep, at: int, result: Any) -> Any:
        slot = self._slots[at]
        if slot.dtype == "object" and slot.shape is None:  # strings of any shape, a sequence, an optional
            return result if isinstance(result, list) else np.asarray(result, object)
        array = np.asarray(result, object if slot.dtype == "object" else None)
        if slot.shape is not None and (array.shape != slot.shape or array.dtype.name != slot.dtype):
            raise RuntimeFailure(
                f"{step.op} {step.label!r} gave {array.dtype.name}{list(array.shape)} for {slot.name!r}, "
                f"expected {slot.dtype}{list(slot.shape)}"
            )
        return array


def fresh(value: Any) -> Any:
    """A result as the caller may keep it: it shares memory with no operand."""
    return np.array(value, order="C") if isinstance(value, np.ndarray) and not value.dtype.hasobject else value


def host_node(step: HostStep, slots: Slots) -> Any:
    """The graph node that `runtime.host` runs for `step`."""
    from smartmem.graph.ir import Node, Value

    def value(at: int) -> Value | None:
        if at < 0:
            return None
        return Value(slots[at].name, slots[at].shape, dtype_of(slots[at].dtype))

    return Node(
        step.op,
        step.domain,
        step.label,
        [value(at) for at in step.inputs],
        [value(at) for at in step.outputs],
        dict(getattr(step, "attrs", {})),
        step.opset,
        step.proto,
    )
