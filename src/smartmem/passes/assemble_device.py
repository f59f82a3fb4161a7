"""Kernels to a `DeviceProgram`: OpenCL C, slots, packed weights, the pools of buffers and images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files

import numpy as np

from smartmem.codegen.comment import comment
from smartmem.kernel.expr import Alu, walk
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import DeviceStorage
from smartmem.passes.module import HostOp, Module
from smartmem.passes.plan_memory import Lifetime, lower_bound
from smartmem.passes.slots import Slots, lifetimes, specs
from smartmem.runtime.artifact import HostStep
from smartmem.runtime.opencl.program import DeviceProgram, DeviceSlot, LaunchStep
from smartmem.schedule.gpu.choose import schedule
from smartmem.schedule.gpu.code import CHECK, DeviceCode, DeviceTarget
from smartmem.schedule.gpu.product import to_half

Progress = Callable[[str, int, int], None]
FILES = 8  # sources build in parallel
_UNROLL = re.compile(r"^ *#pragma unroll.*\n", re.MULTILINE)
BUILD_OPTIONS = "-cl-std=CL1.2 -cl-mad-enable"


def assemble_device(
    module: Module, storages: Mapping[str, DeviceStorage], target: DeviceTarget, level: str, progress: Progress | None
) -> DeviceProgram:
    """Schedules every kernel and lays out everything the runtime needs."""
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    codes = schedule_all(module, storages, target, progress)
    if target.device.kind == "cpu":  # compilers of CPU devices unroll by themselves; told to, they take minutes
        codes = [replace(code, text=_UNROLL.sub("", code.text)) for code in codes]
    sources, symbols, checks = _sources(kernels, codes)
    slots = _DeviceSlots(module, storages, codes)
    steps: list[LaunchStep | HostStep] = []
    number = 0
    for step in module.kernels:
        if isinstance(step, HostOp):
            steps.append(slots.host(step))
            continue
        code, (source, symbol) = codes[number], symbols[number]
        args = tuple(slots.number(name) for name in code.args)
        label = f"{code.family}: {step.tensor}"
        writes = tuple(slots.number(storages[name].buffer) for name in step.written)
        steps.append(LaunchStep(symbol, source, code.global_size, code.local_size, args, writes, label, code.dynamic))
        number += 1
    buffers, images, bound = slots.place(steps)
    options = BUILD_OPTIONS + (" -DSM_PTX" if target.device.ptx else "")
    if target.device.exact_division and _rounds(kernels):
        options += " -cl-fp32-correctly-rounded-divide-sqrt"
    program = DeviceProgram(
        module.name, level, target.device.name, options, specs(module.inputs, module),
        specs(module.outputs, module), slots.slots, steps, buffers, images, slots.weights, sources, checks=checks,
    )  # fmt: skip
    program.report["memory"] = {
        "arena_bytes": sum(buffers),
        "lower_bound_bytes": bound,
        "images_bytes": sum(w * h * 4 * np.dtype(kind).itemsize for w, h, kind in images),
        "weights_bytes": sum(int(w.nbytes) for w in slots.weights.values()),
        "scratch_bytes": 0,
    }
    program.report["families"] = [c.family for c in codes]
    program.report["code_notes"] = [c.notes for c in codes]
    return program


def _rounds(kernels: list[Kernel]) -> bool:
    """Whether quotients may be rounded to integers, which differ where the last bit of a quotient does."""
    return any(isinstance(n, Alu) and n.op == "round" for k in kernels for s in k.stages for n in walk(s.body))


def schedule_all(
    module: Module, storages: Mapping[str, DeviceStorage], target: DeviceTarget, progress: Progress | None
) -> list[DeviceCode]:
    """The code of each kernel of a module, in order."""
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    codes: list[DeviceCode] = []
    for number, kernel in enumerate(kernels):
        if progress:
            progress("generate", number, len(kernels))
        codes.append(schedule(kernel, storages, target, module.constants))
    return codes


def _sources(kernels: list[Kernel], codes: list[DeviceCode]) -> tuple[dict[str, str], list[tuple[str, str]], list[str]]:
    """OpenCL C by file name, equal kernels once, (file, function) of each kernel, and what the kernels check."""
    titles: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    support: dict[str, tuple[str, ...]] = {}
    names: list[str] = []
    checks: list[str] = []
    for kernel, code in zip(kernels, codes, strict=True):
        size = ", ".join(str(n) for n in (*code.local_size, 1, 1)[:3])
        head = f"__attribute__((reqd_work_group_size({size})))"
        body = f"({', '.join(code.parameters)}) {{\n{code.text}\n}}\n"
        digest = hashlib.sha256((head + body).encode()).hexdigest()[:10]
        name = f"{code.family.replace(' ', '_')}_{digest}"
        if name not in texts:
            support[name] = code.support
            first = f"    const int first_check = {len(checks)};\n" if code.checks else ""
            texts[name] = f"__kernel {head}\nvoid {name}" + body.replace("{\n", "{\n" + first, 1)
            checks += [f"kernel {name} ({kernel.tensor}), {text}" for text in code.checks]
        titles.setdefault(name, []).append(kernel.tensor)
        names.append(name)
    count = max(1, min(FILES, len(texts) // 4))
    buckets: list[list[str]] = [[] for _ in range(count)]
    for name in sorted(texts, key=lambda n: -len(texts[n])):
        min(buckets, key=lambda b: sum(len(texts[n]) for n in b)).append(name)
    prelude = files("smartmem.codegen").joinpath("prelude.cl").read_text()
    sources, where = {}, {}
    for number, bucket in enumerate(buckets):
        parts = [prelude, *dict.fromkeys(part for name in bucket for part in support[name])]
        for name in bucket:
            shown = ", ".join(titles[name][:4]) + (
                f" and {len(titles[name]) - 4} more" if len(titles[name]) > 4 else ""
            )
            parts.append(f"/* {comment(shown)} */\n{texts[name]}")
            where[name] = f"kernels{number}.cl"
        sources[f"kernels{number}.cl"] = "\n".join(parts)
    return sources, [(where[name], name) for name in names], checks


class _DeviceSlots(Slots[DeviceSlot]):
    """Memory objects; activations lie in buffers and images that are reused."""

    def __init__(self, module: Module, storages: Mapping[str, DeviceStorage], codes: list[DeviceCode]) -> None:
        self._roots = {s.buffer: s for s in storages.values()}
        super().__init__(module, {name: data for code in codes for name, data in code.weights.items()})

    def make(self, name: str) -> DeviceSlot:
        module = self.module
        if name == CHECK:
            return DeviceSlot("check", "check", (4,), "int32", "int32", elements=4)
        shape, dtype = module.types.get(name, (None, np.dtype(np.float32)))
        root = self._roots.get(name)
        stored = root.stored.name if root else dtype.name
        elements = root.elements if root else 0
        if any(v.name == name for v in module.inputs):
            return DeviceSlot("input", name, shape, dtype.name, stored, elements=elements)
        if name in self.packed or name in module.constants:
            data = self.packed.get(name)
            if data is None:
                data = module.constants[name]
                data = to_half(data) if root and root.stored == np.float16 else data
            self.weights[name] = np.asarray(data, order="C").reshape(-1)  # packed weights have axes of their own
            return DeviceSlot("weight", name, data.shape, data.dtype.name, data.dtype.name, elements=data.size)
        if any(v.name == name for v in module.outputs):
            return DeviceSlot("output", module.shown(name), shape, dtype.name, stored, elements=elements)
        if shape is None or dtype.hasobject or root is None:
            return DeviceSlot("host", name, None, dtype.name, dtype.name)
        if root.image is not None:
            image = root.image
            return DeviceSlot(
                "activation", name, shape, dtype.name, stored, "texture", width=image.width, height=image.height
            )
        return DeviceSlot("activation", name, shape, dtype.name, stored, elements=elements)

    def place(self, steps: list[LaunchStep | HostStep]) -> tuple[list[int], list[tuple[int, int, str]], int]:
        """Gives activations their places: bytes of the pooled buffers, the pooled images, and the bound in bytes."""
        touched = [step.args if isinstance(step, LaunchStep) else (*step.inputs, *step.outputs) for step in steps]
        alive = {n: span for n, span in lifetimes(touched).items() if n >= 0}
        buffers: list[int] = []
        images: list[tuple[int, int, str]] = []
        busy: dict[tuple[str, int], int] = {}  # last step that uses a pooled object
        spans: list[Lifetime] = []
        for number in sorted(alive, key=lambda n: alive[n]):
            slot = self.slots[number]
            if slot.kind != "activation":
                continue
            first, last = alive[number]
            if slot.memory == "buffer":
                nbytes = max(slot.elements, 4) * np.dtype(slot.stored).itemsize
                free = [k for k in range(len(buffers)) if busy["buffer", k] < first]
                # the smallest that holds it, else the largest, which grows
                fits = [k for k in free if buffers[k] >= nbytes]
                at = min(fits, key=lambda k: buffers[k]) if fits else max(free, key=lambda k: buffers[k], default=-1)
                if at < 0:
                    at = len(buffers)
                    buffers.append(nbytes)
                buffers[at] = max(buffers[at], nbytes)
                spans.append(Lifetime(slot.name, nbytes, first, last))
            else:
                kind = slot.stored
                free = [k for k, image in enumerate(images) if busy["texture", k] < first and image[2] == kind]
                fits = [k for k in free if images[k][0] >= slot.width and images[k][1] >= slot.height]
                at = min(fits, key=lambda k: images[k][0] * images[k][1]) if fits else len(images)
                if not fits:
                    images.append((slot.width, slot.height, kind))
            busy[slot.memory, at] = last
            self.slots[number] = replace(slot, place=at)
        return buffers, images, lower_bound(spans)
