"""Kernels to a `Program`: schedules and C text, slots, weights and the activation arena."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from smartmem.codegen.emit import emit
from smartmem.kernel.stage import Kernel
from smartmem.passes.module import HostOp, Module
from smartmem.passes.plan_memory import Lifetime, lower_bound, plan_memory
from smartmem.passes.slots import Slots, lifetimes, specs
from smartmem.runtime.artifact import HostStep, NativeStep, Program, Slot
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
        module.name, level, march, specs(module.inputs, module), specs(module.outputs, module), slots.slots, steps,
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


class _Slots(Slots[Slot]):
    """Pointers of a CPU program; activations lie in one arena."""

    def __init__(self, module: Module, codes: list[KernelCode]) -> None:
        self._elements = {s.buffer: (s.elements, s.dtype) for s in module.storages.values()}
        super().__init__(module, {name: data for code in codes for name, data in code.weights.items()})

    def make(self, name: str) -> Slot:
        module = self.module
        shape, dtype = module.types.get(name, (None, np.dtype(np.float32)))
        if any(v.name == name for v in module.inputs):
            return Slot("input", name, 0, shape, dtype.name)
        if name in self.packed or name in module.constants:
            data = self.packed[name] if name in self.packed else module.constants[name]
            self.weights[name] = np.asarray(data, order="C")  # `ascontiguousarray` makes vectors of scalars
            return Slot("weight", name, 0, data.shape, data.dtype.name)
        if any(v.name == name for v in module.outputs):
            return Slot("output", module.shown(name), 0, shape, dtype.name)
        if shape is None or dtype.hasobject:
            return Slot("host", name, 0, None, dtype.name)
        return Slot("arena", name, 0, shape, dtype.name)

    def place(self, steps: list[NativeStep | HostStep]) -> tuple[int, int]:
        """Gives arena slots their offsets; the size of the arena and the bound no plan can beat, in bytes."""
        touched = [step.args if isinstance(step, NativeStep) else (*step.inputs, *step.outputs) for step in steps]
        alive = lifetimes(touched)
        buffers = []
        for number, slot in enumerate(self.slots):
            if slot.kind == "arena" and number in alive:
                elements, dtype = self._elements[slot.name]
                buffers.append(Lifetime(slot.name, elements * dtype.itemsize, *alive[number]))
        offsets, size = plan_memory(buffers)
        for number, slot in enumerate(self.slots):
            if slot.name in offsets and slot.kind == "arena":
                self.slots[number] = Slot("arena", slot.name, offsets[slot.name], slot.shape, slot.dtype)
        return size, lower_bound(buffers)
