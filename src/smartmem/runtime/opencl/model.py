"""A model compiled for an OpenCL device that can be called.

In: a `DeviceProgram` and the `Device`. A call uploads the inputs, has its executor launch the kernels in one native
call per stretch between host steps, and reads the outputs. Everything on the device is allocated once, and weights are
uploaded once.
"""

from __future__ import annotations

import os
import time
import warnings
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
from smartmem.runtime.opencl.errors import DeviceLost
from smartmem.runtime.opencl.executor import Executor
from smartmem.runtime.opencl.program import DeviceProgram
from smartmem.runtime.opencl.queue import QueueExecutor, context_of
from smartmem.runtime.plan import Segment, segments


class DeviceModel(CompiledModel):
    """A model compiled for an OpenCL device.

    Attributes:
        device: what runs it.
        compiled: how many sources the driver had to compile (0: all binaries came from the cache).
        repeats: runs of each kernel in a row by `run_timed`; see `Executor.timed`.
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
        self.device, self.repeats = device, 1
        cache = cache or open_cache()
        self._process = os.getpid()
        handle = opencl_device(device)
        builder = Builder(context_of(handle), handle, device, program.options, cache)
        self._executor = _executor(program, device, builder, cache, progress)
        self.compiled = builder.compiled
        self._launches = program.launches
        self._segments = segments(program)
        self._host_steps = HostSteps(program.slots)
        self._arrays: dict[int, Any] = {}  # what lies on the host, by slot number: inputs and results of host steps

    @property
    def where(self) -> str:
        """The device's name, and how kernels get there."""
        return f"{self.device.name}, {self._executor.how}"

    @property
    def native(self) -> bool:
        """Whether kernels are launched by native code."""
        return self._executor.native

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
                self._executor.finish()
                seconds.append(time.perf_counter() - start)
        return seconds

    def enqueue_seconds(self, repeats: int) -> list[float]:
        """Seconds of host time that enqueueing all kernels takes, without waiting for them."""
        seconds = []
        with self._lock:
            self._check_usable()
            for _ in range(repeats):
                start = time.perf_counter()
                self._executor.enqueue(0, len(self._launches))
                seconds.append(time.perf_counter() - start)
                self._executor.finish()
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
        self._executor.close()
        self._arrays = {}

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeFailure("the model is closed; compile it again")
        if os.getpid() != self._process:
            raise RuntimeFailure("a model on an OpenCL device cannot be used after os.fork; compile it in the child")

    def _run(self, inputs: dict[str, Array], times: list[StepTime] | None) -> list[Array]:
        with self._lock:
            self._check_usable()
            try:
                self._upload(inputs)
                self._run_segments(times)
                return self._outputs()
            except DeviceLost:
                self._release()
                context_of.cache_clear()
                raise

    def _run_segments(self, times: list[StepTime] | None) -> None:
        for segment in self._segments:
            if segment.host is not None:
                start = time.perf_counter()
                self._host(segment.host)
                if times is not None:
                    times.append(StepTime(segment.host.label, segment.host.op, time.perf_counter() - start, True))
            elif times is None:
                self._executor.enqueue(segment.first, segment.count)
            else:
                self._timed(segment, times)

    def _timed(self, segment: Segment, times: list[StepTime]) -> None:
        seconds = self._executor.timed(segment.first, segment.count, self.repeats)
        steps = self._launches[segment.first : segment.first + segment.count]
        for step, each in zip(steps, seconds, strict=True):
            times.append(StepTime(step.label, step.kernel, each, False))

    def _host(self, step: HostStep) -> None:
        operands = [None if at < 0 else self._read(at) for at in step.inputs]
        for at, value in self._host_steps.run(step, operands):
            if self._executor.holds(at):
                self._write(at, value)
            else:
                self._arrays[at] = value

    def _upload(self, inputs: dict[str, Array]) -> None:
        self._arrays = {}
        for at, slot in enumerate(self.program.slots):
            if slot.kind == "input":
                self._arrays[at] = inputs[slot.name]
                if self._executor.holds(at):
                    self._write(at, inputs[slot.name])
            elif slot.kind == "check" and self._executor.holds(at):
                self._write(at, np.zeros(slot.elements, np.int32))

    def _write(self, at: int, value: Array) -> None:
        """Put a row-major array into a buffer, in the type that is stored."""
        slot = self.program.slots[at]
        if slot.memory == "texture":
            raise CompilerError(f"a host step writes {slot.name!r}, which is an image")
        array = np.ascontiguousarray(value, dtype_of(slot.stored))
        if array.nbytes:
            self._executor.write(at, array)

    def _read(self, at: int) -> Any:
        """The row-major array of a slot; waits for the kernels before."""
        slot = self.program.slots[at]
        if at in self._arrays:
            return self._arrays[at]
        if slot.kind == "weight":
            return self.program.weights[slot.name].reshape(slot.shape or ()).astype(dtype_of(slot.dtype), copy=False)
        if slot.memory == "texture" or slot.shape is None:
            raise CompilerError(f"a host step reads {slot.name!r}, which is no row-major buffer")
        array = aligned_empty(slot.shape, dtype_of(slot.stored))
        if array.nbytes:
            self._executor.read(at, array)
        return array.astype(dtype_of(slot.dtype), copy=False)

    def _outputs(self) -> list[Array]:
        by_name = {}
        for at, slot in enumerate(self.program.slots):
            if slot.kind == "output":
                by_name[slot.name] = fresh(self._arrays[at]) if at in self._arrays else self._read(at)
            elif slot.kind == "check" and self._executor.holds(at):
                self._judge(at)
        self._executor.finish()
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


def _executor(
    program: DeviceProgram, device: Device, builder: Builder, cache: Cache, progress: Progress | None
) -> Executor:
    """A CUDA graph where the device is NVIDIA's and takes it, else a command queue."""
    if device.graphs:
        from smartmem.runtime.cuda.driver import CudaError
        from smartmem.runtime.cuda.graph import GraphExecutor

        try:
            return GraphExecutor(program, device, builder.binaries(program, progress), device.bus)
        except (CudaError, ValueError) as error:
            warnings.warn(f"kernels are enqueued one by one, which takes longer: {error}", RuntimeWarning, stacklevel=3)
    return QueueExecutor(program, device, builder, cache, progress)
