"""Run a device program on an NVIDIA GPU as CUDA graphs: one native call per stretch of kernels, whatever their number.

The OpenCL compiler of the driver builds the kernels, as on every device; what it writes is PTX, which CUDA's driver
loads (`ptx`). NVIDIA's OpenCL takes 5 to 9 us of host time for each launch, a graph is launched at once. Kernels that
do not wait for each other's tensors are no neighbours in the graph, and may overlap:

    a = x * w;  b = x * v;  c = a + b        ->   c waits for a and b, which wait for nothing

In: what `QueueExecutor` takes. Out: a `GraphExecutor`. Textures are CUDA arrays with a handle for reading and one for
writing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from smartmem.device import Device
from smartmem.errors import CompilerError
from smartmem.runtime.arrays import Array, dtype_of
from smartmem.runtime.cuda.driver import (
    ArrayDescriptor,
    Copy2D,
    CudaError,
    Driver,
    KernelNode,
    ResourceDescriptor,
    TextureDescriptor,
)
from smartmem.runtime.cuda.ptx import count_parameters, for_cuda
from smartmem.runtime.opencl.errors import failure
from smartmem.runtime.opencl.executor import Executor
from smartmem.runtime.opencl.memory import buffer_bytes, check_limits, touched_slots, weight_array, words_of_need
from smartmem.runtime.opencl.program import DeviceProgram, DeviceSlot, LaunchStep, check_step
from smartmem.runtime.plan import segments

_FORMATS = {"float32": 0x20, "float16": 0x10}
_SURFACES = 0x02  # CUDA_ARRAY3D_SURFACE_LDST
_HOST, _ARRAY = 1, 3  # kinds of memory of a copy
_CLAMP = 1
_DYNAMIC_LOCAL = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
# CUDA's statuses as OpenCL's, which `failure` tells apart.
_STATUSES = {2: -4, 201: -34, 709: -34, 214: -14, 702: -14, 719: -14} | dict.fromkeys((700, *range(715, 719)), -9999)


class GraphExecutor(Executor):
    """See the module."""

    how = "CUDA graph"
    native = True

    def __init__(self, program: DeviceProgram, device: Device, binaries: dict[str, bytes], bus: str) -> None:
        """Load the kernels and allocate everything.

        Args:
            program: what to run.
            device: the GPU.
            binaries: what the OpenCL driver made of each source.
            bus: the GPU's address on the PCI bus, "0000:3b:00.0".

        Raises:
            CudaError: there is no such GPU for CUDA, or it does not take the kernels.
            ValueError: a binary is no PTX.
            CompilerError: a step names no kernel, or gives it other arguments or groups than it can have.
            RuntimeFailure: not enough memory.
        """
        driver = Driver.open()
        if driver is None:
            raise ValueError("there is no CUDA driver library, or one before CUDA 12")
        self._driver, self._device, self._program = driver, device, program
        touched = touched_slots(program)
        self._needed = words_of_need(program, touched)
        self._steps = program.launches
        self._undo: list[tuple[str, Any]] = []  # functions that free what was made, last first
        self._places: dict[int, int] = {}
        self._textures: dict[int, tuple[int, int]] = {}
        self._graphs: dict[tuple[int, int, int], Any] = {}
        self._events: list[Any] = []
        number = driver.made("cuDeviceGetByPCIBusId", bus.encode(), kind=ctypes.c_int)
        self._context = driver.made("cuDevicePrimaryCtxRetain", number)
        self._undo.append(("cuDevicePrimaryCtxRelease", number))
        self._free = weakref.finalize(self, _free, driver, self._context, self._undo, os.getpid())
        try:
            driver.cuCtxSetCurrent(self._context)
            self._functions = self._load(binaries)
            check_limits(program, device, touched, self._needed)
            self._stream = self._make("cuStreamCreate", "cuStreamDestroy", 0)
            with self._reporting(f"allocating {self._needed}"):
                self._allocate(touched)
            for segment in segments(program):  # what CUDA refuses of them, it refuses now
                if segment.host is None:
                    self._graph(segment.first, segment.count)
        except BaseException:
            self.close()
            raise

    def holds(self, at: int) -> bool:
        return at in self._places

    def write(self, at: int, array: Array) -> None:
        with self._reporting(f"writing {self._program.slots[at].name!r}"):
            self._driver.cuMemcpyHtoD(self._places[at], array.ctypes.data, array.nbytes)

    def read(self, at: int, array: Array) -> None:
        with self._reporting("running the model"):
            self._driver.cuMemcpyDtoH(array.ctypes.data, self._places[at], array.nbytes)

    def enqueue(self, first: int, count: int) -> None:
        with self._reporting("running the model"):
            self._driver.cuGraphLaunch(self._graph(first, count), self._stream)

    def timed(self, first: int, count: int, repeats: int = 1) -> list[float]:
        with self._reporting("running the model"):
            while len(self._events) <= count:
                self._events.append(self._make("cuEventCreate", "cuEventDestroy", 0))
            self._driver.cuGraphLaunch(self._graph(first, count, repeats), self._stream)
            self._driver.cuStreamSynchronize(self._stream)
            return [
                self._driver.made("cuEventElapsedTime", begin, end, kind=ctypes.c_float) * 1e-3 / repeats
                for begin, end in zip(self._events[:count], self._events[1 : count + 1], strict=True)
            ]

    def finish(self) -> None:
        with self._reporting("running the model"):
            self._driver.cuStreamSynchronize(self._stream)

    def close(self) -> None:
        self._free()
        self._places, self._graphs = {}, {}

    def _make(self, function: str, undo: str, *arguments: Any, kind: Any = ctypes.c_void_p) -> Any:
        made = self._driver.made(function, *arguments, kind=kind)
        self._undo.append((undo, made))
        return made

    @contextlib.contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        """What CUDA refuses, as a `RuntimeFailure`; the context is made the calling thread's first."""
        try:
            self._driver.cuCtxSetCurrent(self._context)
            yield
        except CudaError as error:
            status = _STATUSES.get(error.status, error.status)
            raise failure(self._device, status, doing, self._needed, name=error.name) from error

    def _load(self, binaries: dict[str, bytes]) -> list[Any]:
        """The function of each step."""
        texts = {name: for_cuda(binary) for name, binary in binaries.items()}
        for step in self._steps:
            check_step(step, texts, lambda step: count_parameters(texts[step.source], step.kernel))
        modules = {name: self._make("cuModuleLoadData", "cuModuleUnload", text) for name, text in texts.items()}
        return [
            self._driver.made("cuModuleGetFunction", modules[step.source], step.kernel.encode()) for step in self._steps
        ]

    def _allocate(self, touched: Sequence[int]) -> None:
        """Memory for every slot: what a kernel reads of it, and what it writes (of a texture another handle)."""
        program = self._program
        buffers = [self._buffer(nbytes) for nbytes in program.buffers]
        images = [self._image(*image) for image in program.images]
        for at in touched:
            slot = program.slots[at]
            array = weight_array(program, slot) if slot.kind == "weight" else None
            if slot.memory == "texture":
                made = images[slot.place] if array is None else self._image(slot.width, slot.height, slot.stored)
                self._textures[at] = made[1:]
                if array is not None:
                    self._fill(made[0], slot, array)
            elif slot.kind == "activation":
                self._places[at] = buffers[slot.place]
            else:
                self._places[at] = self._buffer(max(buffer_bytes(slot), 0 if array is None else array.nbytes))
                if array is not None and array.nbytes:
                    self._driver.cuMemcpyHtoD(self._places[at], array.ctypes.data, array.nbytes)

    def _buffer(self, nbytes: int) -> int:
        """A buffer of zeros: what pads an input is read by kernels like any value, and must not be NaN."""
        made: int = self._make("cuMemAlloc", "cuMemFree", max(nbytes, 1), kind=ctypes.c_uint64)
        self._driver.cuMemsetD8(made, 0, max(nbytes, 1))
        return made

    def _image(self, width: int, height: int, stored: str) -> tuple[Any, int, int]:
        """An array of RGBA texels, its handle for reading, and that for writing."""
        if stored not in _FORMATS:
            raise CompilerError(f"no image holds {stored}")
        what = ArrayDescriptor(width, height, 0, _FORMATS[stored], 4, _SURFACES)
        array = self._make("cuArray3DCreate", "cuArrayDestroy", ctypes.byref(what))
        resource = ResourceDescriptor(0, array)
        how = TextureDescriptor((_CLAMP, _CLAMP, _CLAMP))
        texture = self._make(
            "cuTexObjectCreate", "cuTexObjectDestroy", ctypes.byref(resource), ctypes.byref(how), None,
            kind=ctypes.c_uint64,
        )  # fmt: skip
        surface = self._make("cuSurfObjectCreate", "cuSurfObjectDestroy", ctypes.byref(resource), kind=ctypes.c_uint64)
        return array, texture, surface

    def _fill(self, array: Any, slot: DeviceSlot, values: Array) -> None:
        pitch = slot.width * 4 * dtype_of(slot.stored).itemsize
        copy = Copy2D(
            source_kind=_HOST, source_host=values.ctypes.data, source_pitch=pitch,
            target_kind=_ARRAY, target_array=array, width=pitch, height=slot.height,
        )  # fmt: skip
        self._driver.cuMemcpy2D(ctypes.byref(copy))

    def _graph(self, first: int, count: int, repeats: int = 0) -> Any:
        """Steps [first, first + count) as a graph; with `repeats` in a row, each so often, with events between."""
        key = (first, count, repeats)
        if key not in self._graphs:
            graph = self._driver.made("cuGraphCreate", 0)
            try:
                steps = self._steps[first : first + count]
                nodes: list[Any] = []
                last = [self._event_node(graph, [], 0)] if repeats else []
                for number, (step, waits) in enumerate(zip(steps, dependencies(steps, self._program), strict=True)):
                    if not repeats:
                        nodes.append(self._kernel_node(graph, [nodes[k] for k in waits], first + number, step))
                        continue
                    for _ in range(repeats):
                        last = [self._kernel_node(graph, last, first + number, step)]
                    last = [self._event_node(graph, last, number + 1)]
                self._graphs[key] = self._make("cuGraphInstantiateWithFlags", "cuGraphExecDestroy", graph, 0)
            finally:
                self._driver.cuGraphDestroy(graph)
        return self._graphs[key]

    def _event_node(self, graph: Any, after: list[Any], number: int) -> Any:
        waits = (ctypes.c_void_p * max(len(after), 1))(*after)
        return self._driver.made("cuGraphAddEventRecordNode", graph, waits, len(after), self._events[number])

    def _kernel_node(self, graph: Any, after: list[Any], number: int, step: LaunchStep) -> Any:
        values = [ctypes.c_uint64(self._argument(step, at)) for at in step.args]
        if step.dynamic:
            values.append(ctypes.c_uint64(0))  # a parameter that the kernel does not read (`ptx`)
            # Set earlier, right after loading, it is forgotten (driver 580).
            self._driver.cuFuncSetAttribute(self._functions[number], _DYNAMIC_LOCAL, step.dynamic)
        params = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(value) for value in values))
        local = step.local_size or (1,) * len(step.global_size)
        groups = [whole // part for whole, part in zip(step.global_size, local, strict=True)]
        node = KernelNode(
            self._functions[number], (*groups, 1, 1)[:3], (*local, 1, 1)[:3], step.dynamic,
            ctypes.addressof(params),
        )  # fmt: skip
        waits = (ctypes.c_void_p * max(len(after), 1))(*after)
        return self._driver.made("cuGraphAddKernelNode", graph, waits, len(after), ctypes.byref(node))

    def _argument(self, step: LaunchStep, at: int) -> int:
        return self._textures[at][at in step.writes] if at in self._textures else self._places[at]


def _free(driver: Driver, context: Any, undo: list[tuple[str, Any]], process: int) -> None:
    """Frees what an executor made, last first; nothing in the child of a fork, where CUDA cannot be used."""
    if os.getpid() != process:
        return
    with contextlib.suppress(CudaError):
        driver.cuCtxSetCurrent(context)
    while undo:
        function, argument = undo.pop()
        with contextlib.suppress(CudaError):  # after a crash nothing can be freed
            getattr(driver, function)(argument)


def dependencies(steps: Sequence[LaunchStep], program: DeviceProgram) -> list[list[int]]:
    """For each step those before it (by position) that it must wait for.

    Those are the last that wrote what it reads or writes, and those that read since then what it overwrites. Tensors
    that share a pooled buffer or image are one place: its next tensor waits for the last reader of the one before.
    (All kernels write the "check" slot, by atomic operations, in any order: it is in no `writes`.)
    """
    writer: dict[tuple[str, int], int] = {}
    readers: dict[tuple[str, int], list[int]] = {}
    result = []
    for number, step in enumerate(steps):
        places = {at: _place(program.slots[at], at) for at in step.args}
        waits = {writer[place] for place in places.values() if place in writer}
        for at in step.writes:
            waits.update(readers.pop(places[at], ()))
            writer[places[at]] = number
        for at, place in places.items():
            if at not in step.writes and program.slots[at].kind != "weight":
                readers.setdefault(place, []).append(number)
        result.append(sorted(waits - {number}))
    return result


def _place(slot: DeviceSlot, at: int) -> tuple[str, int]:
    return (slot.memory, slot.place) if slot.kind == "activation" else (slot.kind, at)
