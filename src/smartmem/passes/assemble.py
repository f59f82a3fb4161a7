"""Kernels to a `Program`: schedules and C text, slots, weights and the activation arena."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from smartmem.codegen.emit import emit
from smartmem.graph.ir import Node, Value
from smartmem.kernel.stage import Kernel
from smartmem.passes.module import HostOp, Module
from smartmem.passes.plan_memory import Lifetime, lower_bound, plan_memory
from smartmem.runtime.artifact import HostStep, NativeStep, Program, Slot, TensorSpec
from smartmem.schedule.choose import schedule
from smartmem.schedule.code import KernelCode, Target

Progress = Callable[[str, int, int], None]


def assemble(module: Module, target: Target, level: str, march: str, progress: Progress | None) -> Program:
    """Schedules every kernel and lays out everything the runtime needs."""
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    codes: list[KernelCode] = []
    for number, kernel in enumerate(kernels):
        if progress:
            progress("generate", number, len(kernels))
        codes.append(schedule(kernel, module.storages, target, module.constants))
    emitted = emit([(k.tensor, c) for k, c in zip(kernels, codes, strict=True)])
    slots = _Slots(module, codes)
    steps: list[NativeStep | HostStep] = []
    number = 0
    for step in module.kernels:
        if isinstance(step, HostOp):
            steps.append(slots.host(step))
            continue
        code, symbol = codes[number], emitted.symbols[number]
        args = tuple(slots.number(name) for name in code.buffers)
        steps.append(NativeStep(symbol, code.tasks, code.grain, args, f"{code.family}: {step.tensor}"))
        number += 1
    arena = slots.place(steps)
    scratch = max((code.scratch for code in codes), default=0)
    program = Program(
        module.name, level, march, _specs(module.inputs, module), _specs(module.outputs, module), slots.slots, steps,
        arena[0], -(-scratch // 64) * 64, slots.weights, emitted.sources,
    )  # fmt: skip
    program.report["memory"] = {
        "arena_bytes": arena[0],
        "lower_bound_bytes": arena[1],
        "weights_bytes": sum(int(w.nbytes) for w in slots.weights.values()),
        "scratch_bytes": program.scratch_bytes,
    }
    program.report["families"] = [c.family for c in codes]
    program.report["code_notes"] = [c.notes for c in codes]
    return program


def _specs(values: list[Value], module: Module) -> list[TensorSpec]:
    return [TensorSpec(module.shown(v.name), v.shape, v.dtype.name) for v in values]


class _Slots:
    """Numbers pointers, collects weights, and finds lifetimes."""

    def __init__(self, module: Module, codes: list[KernelCode]) -> None:
        self.module = module
        self.slots: list[Slot] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self._numbers: dict[str, int] = {}
        self._packed = {name: data for code in codes for name, data in code.weights.items()}
        self._elements = {s.buffer: (s.elements, s.dtype) for s in module.storages.values()}
        for value in module.inputs:
            self.number(value.name)
        for value in module.outputs:
            self.number(value.name)

    def number(self, name: str) -> int:
        """The slot of a buffer, made on first use."""
        if name in self._numbers:
            return self._numbers[name]
        slot = self._make(name)
        self._numbers[name] = len(self.slots)
        self.slots.append(slot)
        return self._numbers[name]

    def _make(self, name: str) -> Slot:
        module = self.module
        shape, dtype = module.types.get(name, (None, np.dtype(np.float32)))
        if any(v.name == name for v in module.inputs):
            return Slot("input", name, 0, shape, dtype.name)
        if name in self._packed or name in module.constants:
            data = self._packed[name] if name in self._packed else module.constants[name]
            self.weights[name] = np.asarray(data, order="C")  # `ascontiguousarray` makes vectors of scalars
            return Slot("weight", name, 0, data.shape, data.dtype.name)
        if any(v.name == name for v in module.outputs):
            return Slot("output", module.shown(name), 0, shape, dtype.name)
        if shape is None or dtype.hasobject:
            return Slot("host", name, 0, None, dtype.name)
        return Slot("arena", name, 0, shape, dtype.name)

    def host(self, step: HostOp) -> HostStep:
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
            self._packed[name] = array
            yield self.number(name)

    def place(self, steps: list[NativeStep | HostStep]) -> tuple[int, int]:
        """Gives arena slots their offsets; the size of the arena and the bound no plan can beat, in bytes."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for position, step in enumerate(steps):
            touched = step.args if isinstance(step, NativeStep) else (*step.inputs, *step.outputs)
            for number in touched:
                first.setdefault(number, position)
                last[number] = position
        buffers = []
        for number, slot in enumerate(self.slots):
            if slot.kind == "arena" and number in first:
                elements, dtype = self._elements[slot.name]
                buffers.append(Lifetime(slot.name, elements * dtype.itemsize, first[number], last[number]))
        offsets, size = plan_memory(buffers)
        for number, slot in enumerate(self.slots):
            if slot.name in offsets and slot.kind == "arena":
                self.slots[number] = Slot("arena", slot.name, offsets[slot.name], slot.shape, slot.dtype)
        return size, lower_bound(buffers)
