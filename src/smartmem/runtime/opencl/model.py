"""A model compiled for an OpenCL device that can be called.

In: a `DeviceProgram` and the `Device`. A call uploads the inputs, enqueues the kernels in one native call per stretch
between host steps, and reads the outputs. Everything on the device is allocated once, weights are uploaded once.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.device import Device
from smartmem.errors import CompilerError, InputError, RuntimeFailure
from smartmem.runtime.arrays import Array, aligned_empty, dtype_of
from smartmem.runtime.artifact import HostStep
from smartmem.runtime.cache import Cache, open_cache
from smartmem.runtime.compiled import CompiledModel, StepTime
from smartmem.runtime.host_steps import HostSteps, fresh
from smartmem.runtime.opencl.build import Builder, Progress
from smartmem.runtime.opencl.devices import opencl_device
from smartmem.runtime.opencl.errors import DeviceLost, reporting
from smartmem.runtime.opencl.launch import LaunchPlan
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.runtime.opencl.memory import allocate
from smartmem.runtime.opencl.program import DeviceProgram, LaunchStep
from smartmem.runtime.plan import Segment, segments


class DeviceModel(CompiledModel):
    """A model compiled for an OpenCL device.

    Attributes:
        device: what runs it.
        compiled: how many sources the driver had to compile (0: all binaries came from the cache).
        native: whether kernels are enqueued by native code.
    """

    program: DeviceProgram

    def __init__(
        self, program: DeviceProgram, device: Device, *, cache: Cache | None = None, progress: Progress | None = None
    ) -> None:
        """Build the kernels and allocate what calls need.

        Args:
            program: compiled model.
            device: where it runs.
            cache: where binaries are kept; None: the user's cache.
            progress: called with ("compile", done, total).

        Raises:
            CompilerError: the driver refuses a kernel.
            InputError: the device has no images, or none that large.
            RuntimeFailure: no such device, or not enough memory on it.
        """
        super().__init__(program)
        self.device = device
        cache = cache or open_cache()
        handle = opencl_device(device)
        self._process = os.getpid()
        self._context = _context(handle)
        self._queue = self._make_queue(False)
        self._memories = allocate(program, device, self._context, self._queue)
        builder = Builder(self._context, handle, device, program.options, cache)
        programs = builder.build_all(program, progress)
        self.compiled = builder.compiled
        launches = [step for step in program.steps if isinstance(step, LaunchStep)]
        self._launches = launches
        self._plan = LaunchPlan(launches, programs, self._memories, device, handle, cache)
        self.native = self._plan.native
        self._segments = segments(program)
        self._host_steps = HostSteps(program.slots)
        self._arrays: dict[int, Any] = {}  # what lies on the host, by slot number: inputs and results of host steps

    @property
    def where(self) -> str:
        """The device's name."""
        return self.device.name

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one file that `smartmem.load` reads where there is a device of the same name."""
        from smartmem.runtime.opencl.package import save

        save(self.program, self.device, Path(path))

    def bench(self, repeats: int, inputs: dict[str, Any] | None = None) -> list[float]:
        """Seconds of `repeats` runs with the inputs on the device already and the outputs left there.

        Args:
            repeats: how many.
            inputs: inputs by name; None: those of the last call.

        Raises:
            InputError: no inputs are given, and there was no call.
        """
        if inputs is not None:
            self.run(inputs)
        elif len(self._arrays) < len(self._inputs):
            raise InputError("nothing is on the device yet: give inputs, or call the model first")
        seconds = []
        with self._lock:
            self._check_usable()
            for _ in range(repeats):
                start = time.perf_counter()
                self._run_segments(None)
                self._finish()
                seconds.append(time.perf_counter() - start)
        return seconds

    def enqueue_seconds(self, repeats: int) -> list[float]:
        """Seconds of host time that enqueueing all kernels takes, without waiting for them."""
        seconds = []
        with self._lock:
            self._check_usable()
            for _ in range(repeats):
                start = time.perf_counter()
                self._plan.enqueue(self._queue, 0, len(self._launches))
                seconds.append(time.perf_counter() - start)
                self._finish()
        return seconds

    def kernel_seconds(self, inputs: dict[str, Any]) -> float:
        """Sum of the kernels' times by the device's clock."""
        return sum(step.seconds for step in self.run_timed(inputs)[1] if not step.host)

    def close(self) -> None:
        """Free the device's memory; later calls raise. Closing twice is fine."""
        with self._lock:
            self._release()

    def _release(self) -> None:
        self._closed = True
        self._memories.objects = {}
        self._arrays = {}
        self._plan = None  # type: ignore[assignment]
        self._queue = self._context = None

    def _make_queue(self, profiling: bool) -> Any:
        cl = pyopencl()
        properties = cl.command_queue_properties.PROFILING_ENABLE if profiling else 0
        return cl.CommandQueue(self._context, properties=properties)

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeFailure("the model is closed; compile it again")
        if os.getpid() != self._process:
            raise RuntimeFailure("a model on an OpenCL device cannot be used after os.fork; compile it in the child")

    def _run(self, inputs: dict[str, Array], times: list[StepTime] | None) -> list[Array]:
        with self._lock:
            self._check_usable()
            try:
                # Timestamps cost time on some drivers: a queue with them only where they are asked for.
                queue = self._queue
                if times is not None:
                    self._queue = self._make_queue(True)
                try:
                    self._upload(inputs)
                    self._run_segments(times)
                    return self._outputs()
                finally:
                    self._queue = queue
            except DeviceLost:
                self._release()
                _context.cache_clear()
                raise

    def _run_segments(self, times: list[StepTime] | None) -> None:
        for segment in self._segments:
            if segment.host is not None:
                start = time.perf_counter()
                self._host(segment.host)
                if times is not None:
                    times.append(StepTime(segment.host.label, segment.host.op, time.perf_counter() - start, True))
            elif times is None:
                self._plan.enqueue(self._queue, segment.first, segment.count)
            else:
                self._timed(segment, times)

    def _timed(self, segment: Segment, times: list[StepTime]) -> None:
        events = self._plan.enqueue_timed(self._queue, segment.first, segment.count)
        self._finish()
        steps = self._launches[segment.first : segment.first + segment.count]
        for step, event in zip(steps, events, strict=True):
            seconds = (event.profile.end - event.profile.start) * 1e-9
            times.append(StepTime(step.label, step.kernel, seconds, False))

    def _host(self, step: HostStep) -> None:
        operands = [None if at < 0 else self._read(at) for at in step.inputs]
        for at, value in self._host_steps.run(step, operands):
            if at in self._memories.objects:
                self._write(at, value)
            else:
                self._arrays[at] = value

    def _upload(self, inputs: dict[str, Array]) -> None:
        self._arrays = {}
        for at, slot in enumerate(self.program.slots):
            if slot.kind == "input":
                self._arrays[at] = inputs[slot.name]
                if at in self._memories.objects:
                    self._write(at, inputs[slot.name])
            elif slot.kind == "check" and at in self._memories.objects:
                self._write(at, np.zeros(slot.elements, np.int32))

    def _write(self, at: int, value: Array) -> None:
        """Put a row-major array into a buffer, in the type that is stored."""
        cl = pyopencl()
        slot = self.program.slots[at]
        if slot.memory == "texture":
            raise CompilerError(f"a host step writes {slot.name!r}, which is an image")
        array = np.ascontiguousarray(value, dtype_of(slot.stored))
        if array.nbytes:
            with reporting(self.device, f"writing {slot.name!r}", self._memories.needed):
                cl.enqueue_copy(self._queue, self._memories.objects[at], array)

    def _read(self, at: int) -> Any:
        """The row-major array of a slot; waits for the kernels before."""
        cl = pyopencl()
        slot = self.program.slots[at]
        if at in self._arrays:
            return self._arrays[at]
        if slot.kind == "weight":
            return self.program.weights[slot.name].reshape(slot.shape or ()).astype(dtype_of(slot.dtype), copy=False)
        if slot.memory == "texture" or slot.shape is None:
            raise CompilerError(f"a host step reads {slot.name!r}, which is no row-major buffer")
        array = aligned_empty(slot.shape, dtype_of(slot.stored))
        if array.nbytes:
            with reporting(self.device, "running the model", self._memories.needed):
                cl.enqueue_copy(self._queue, array, self._memories.objects[at])
        return array.astype(dtype_of(slot.dtype), copy=False)

    def _outputs(self) -> list[Array]:
        by_name = {}
        for at, slot in enumerate(self.program.slots):
            if slot.kind == "output":
                by_name[slot.name] = fresh(self._arrays[at]) if at in self._arrays else self._read(at)
            elif slot.kind == "check" and at in self._memories.objects:
                self._judge(at)
        self._finish()
        return [by_name[spec.name] for spec in self.program.outputs]

    def _judge(self, at: int) -> None:
        """Raise if a kernel found a coordinate out of range: the buffer has (count, check, coordinate, extent)."""
        count, check, coordinate, extent = self._read(at).reshape(-1)[:4].tolist()
        if count:
            known = self.program.checks
            name = known[check] if 0 <= check < len(known) else f"check {check}"
            raise CompilerError(
                f"{count} accesses out of range; the first: {name} at {coordinate} of {extent}. Please report it"
            )

    def _finish(self) -> None:
        with reporting(self.device, "running the model", self._memories.needed):
            self._queue.finish()


@functools.cache
def _context(handle: Any) -> Any:
    """One context per device and process: a driver may take a tenth of a second for one."""
    return pyopencl().Context([handle])
