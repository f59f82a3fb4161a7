"""Run a device program on an OpenCL command queue."""

from __future__ import annotations

import functools
from typing import Any

from smartmem.device import Device
from smartmem.runtime.arrays import Array
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.build import Builder, Progress
from smartmem.runtime.opencl.errors import reporting
from smartmem.runtime.opencl.executor import Executor
from smartmem.runtime.opencl.launch import LaunchPlan
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.runtime.opencl.memory import allocate
from smartmem.runtime.opencl.program import DeviceProgram


class QueueExecutor(Executor):
    """Kernels enqueued in order; a stretch of them by one native call where there is a C compiler."""

    how = "command queue"

    def __init__(
        self, program: DeviceProgram, device: Device, builder: Builder, cache: Cache, progress: Progress | None
    ) -> None:
        """Build the kernels and allocate everything.

        Raises:
            CompilerError: the driver refuses a kernel.
            InputError: the device has no images, or none that large.
            RuntimeFailure: not enough memory.
        """
        self._device = device
        self._builder = builder
        self._queue = _queue(builder.context, False)
        self._memories = allocate(program, device, builder.context, self._queue)
        programs = builder.build_all(program, progress)
        self._plan = LaunchPlan(program.launches, programs, self._memories, device, builder.handle, cache)
        self.native = self._plan.native

    def holds(self, at: int) -> bool:
        return at in self._memories.objects

    def write(self, at: int, array: Array) -> None:
        with reporting(self._device, "writing an input", self._memories.needed):
            pyopencl().enqueue_copy(self._queue, self._memories.objects[at], array)

    def read(self, at: int, array: Array) -> None:
        with reporting(self._device, "running the model", self._memories.needed):
            pyopencl().enqueue_copy(self._queue, array, self._memories.objects[at])

    def enqueue(self, first: int, count: int) -> None:
        self._plan.enqueue(self._queue, first, count)

    def timed(self, first: int, count: int, repeats: int = 1) -> list[float]:
        self.finish()
        # Timestamps cost time on some drivers: a queue with them only where they are asked for.
        queue = _queue(self._builder.context, True)
        runs = [
            [self._plan.enqueue_timed(queue, step, 1)[0] for _ in range(repeats)]
            for step in range(first, first + count)
        ]
        with reporting(self._device, "running the model", self._memories.needed):
            queue.finish()
        return [(events[-1].profile.end - events[0].profile.start) * 1e-9 / repeats for events in runs]

    def finish(self) -> None:
        with reporting(self._device, "running the model", self._memories.needed):
            self._queue.finish()

    def close(self) -> None:
        self._memories.objects = {}
        self._plan = None  # type: ignore[assignment]
        self._queue = None


def _queue(context: Any, profiling: bool) -> Any:
    cl = pyopencl()
    properties = cl.command_queue_properties.PROFILING_ENABLE if profiling else 0
    return cl.CommandQueue(context, properties=properties)


@functools.cache
def context_of(handle: Any) -> Any:
    """One context per device and process: a driver may take a tenth of a second for one."""
    return pyopencl().Context([handle])
