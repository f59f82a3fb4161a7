"""What a device schedule gives back for a kernel, and what all share: arguments, memories, bodies with places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import Emitter, LocalReader, Value
from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext
from smartmem.codegen.cl_memory import CL_TYPES, Bounds, LinearBuffer, MemoryAccess, Texture
from smartmem.codegen.writer import Writer
from smartmem.device import Device
from smartmem.index.lin import Lin, Lookup
from smartmem.kernel.expr import Expr, Iota, Load, load, rebuild
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import LANES, DeviceStorage
from smartmem.schedule.flatten import M, flat_address
from smartmem.schedule.gpu.pattern import Sweep

Array = np.ndarray[Any, Any]
Storages = Mapping[str, DeviceStorage]
CHECK = "out of range?"  # slot of the buffer in which kernels report a coordinate; no tensor is called so


@dataclass(frozen=True)
class DeviceTarget:
    """What device schedules need to know.

    Attributes:
        device: limits and abilities.
        tuned: whether schedules use what only speed asks for (level `full`).
        half: whether activations and weights are stored as halves.
        check: whether kernels assert every coordinate.
    """

    device: Device = field(default_factory=Device)
    tuned: bool = True
    half: bool = False
    check: bool = False


@dataclass(frozen=True)
class Destination:
    """Where results go: a tensor ("" for local memory), how it is reached, their place over the loop axes."""

    tensor: str
    memory: MemoryAccess
    place: tuple[Lin, ...]


@dataclass
class DeviceCode:
    """Generated code of one kernel.

    Attributes:
        text: the body of the function; parameters: its parameter list.
        args: slot names in parameter order.
        global_size, local_size: work-items, and work-items of a group.
        weights: packed constants that the kernel reads, by slot name; half ones are stored so.
        family: name of the schedule; notes: remarks for `explain`.
        support: texts of functions that the body calls, beyond the prelude; each comes once per program.
        sweeps: its loads and stores, for `counters`; empty if the schedule does not tell.
        checks: what each number that it gives to `sm_check` means.
        dynamic: bytes of local memory that the launch gives; its pointer is the last parameter.
    """

    text: str
    parameters: list[str]
    args: list[str]
    global_size: tuple[int, ...]
    local_size: tuple[int, ...]
    weights: dict[str, Array] = field(default_factory=dict)
    family: str = ""
    notes: list[str] = field(default_factory=list)
    support: tuple[str, ...] = ()
    sweeps: list[Sweep] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    dynamic: int = 0


class Arguments:
    """The parameters of a kernel: one per memory object, shared by all tensors that lie in it."""

    def __init__(self, storages: Storages, check: bool = False) -> None:
        self.storages = storages
        self.check = check
        self.checks: list[str] = []
        self.slots: list[str] = []
        self.sweeps: list[Sweep] = []
        self.parameters: list[str] = []
        self._names: dict[str, str] = {}
        if check:
            self._names[CHECK] = "check"
            self.slots.append(CHECK)
            self.parameters.append("__global int *check")

    def bounds(self, name: str, **extents: int) -> Bounds | None:
        """What coordinates in a memory object are checked against, if they are."""
        return Bounds(self.checks, name, extents) if self.check else None

    def buffer(self, slot: str, kind: str, written: bool = False) -> str:
        """The pointer to a buffer of OpenCL type `kind`."""
        if slot not in self._names:
            self._names[slot] = f"p{len(self.slots)}"
            self.slots.append(slot)
            self.parameters.append(f"__global {'' if written else 'const '}{kind} *{self._names[slot]}")
        return self._names[slot]

    def memory(self, tensor: str, written: bool = False) -> MemoryAccess:
        """How a tensor is reached; the written ones must be asked for first (their pointers are not const)."""
        storage = self.storages[tensor]
        if storage.image is None:
            bounds = self.bounds(tensor, address=max(storage.elements, LANES))
            pointer = self.buffer(storage.buffer, CL_TYPES[storage.stored.name], written)
            return LinearBuffer(pointer, storage.stored, bounds)
        if storage.buffer not in self._names:
            name = self._names[storage.buffer] = f"image{len(self.slots)}"
            self.slots.append(storage.buffer)
            self.parameters.append(f"{'__write_only' if written else '__read_only'} image2d_t {name}")
        bounds = self.bounds(tensor, column=storage.image.width, row=storage.image.height)
        return Texture(self._names[storage.buffer], storage.stored == np.float16, bounds)


def memories_of(kernel: Kernel, arguments: Arguments, names: list[str] | None = None) -> dict[str, MemoryAccess]:
    """Memories of a kernel's outputs and inputs (or of the given inputs)."""
    result = {name: arguments.memory(name, written=True) for name in kernel.written}
    for name in kernel.inputs() if names is None else names:
        result[name] = arguments.memory(name)
    return result


def destinations_of(
    kernel: Kernel, coords: tuple[Lin, ...], memories: Mapping[str, MemoryAccess], storages: Storages
) -> tuple[Destination, ...]:
    """Where a kernel stores, given the coordinates of its results in the stored tensor over the loop axes."""
    return tuple(Destination(name, memories[name], storages[name].access(coords)) for name in kernel.written)


def context_of(axes: Axes, memories: Mapping[str, MemoryAccess], storages: Storages) -> DeviceContext:
    """An emitter's context over loop axes."""
    pointers = {name: memory.pointer for name, memory in memories.items() if isinstance(memory, LinearBuffer)}

    def lookup(entry: Lookup, inner: Axes) -> str:
        """An entry of an index tensor, wrapped (negative counts from the end) and clamped into [0, ext)."""
        place = storages[entry.tensor].access(entry.index)
        return f"sm_index({memories[entry.tensor].scalar(place, inner)}, {entry.ext})"

    return DeviceContext(Axes(axes.names, axes.extents, lookup), storages, pointers, memories=memories)


def placed(expr: Expr, storages: Storages, local: set[str], kept: Mapping[str, tuple[int, ...]] | None = None) -> Expr:
    """Loads from memory with their place instead of their coordinate; loads of local tensors without any.

    `kept` gives the column extents of local tensors that lie in local memory: their place is the column.
    """

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Iota):
            return node
        if kept and node.tensor in kept:
            columns = kept[node.tensor]
            return load(node.tensor, (flat_address(node.index[-len(columns) :], columns),), node.dtype)
        if node.tensor in local:
            return load(node.tensor, (), node.dtype)
        return load(node.tensor, storages[node.tensor].access(node.index), node.dtype)

    return rebuild(expr, leaf)


def row_value(name: str) -> LocalReader:
    """Reads the array `name` (one value per row of a block that starts at `m0`, in local memory) at the row in hand.

    Where rows are the lane these are the values of four rows.
    """

    def read(emitter: Emitter, _: tuple[Lin, ...]) -> Value:
        lane, row = emitter.context.lane, f"{emitter.context.axes.names[M]} - m0"
        if lane is not None and lane.axis == M:
            return Value(f"vload4(0, {name} + {row})", True)
        return Value(f"{name}[{row}]")

    return read


def new_writer() -> Writer:
    """A writer with 32-bit loop variables."""
    return Writer("int")


def power_of_two(value: int) -> int:
    """The largest power of two that is at most `value` (at least 1)."""
    return 1 << max(0, value.bit_length() - 1)
