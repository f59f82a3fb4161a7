"""Enqueue kernels whose arguments are set: natively in one call per stretch, or one by one from Python.

In: the `LaunchStep`s, built programs, memory objects. Out: a `LaunchPlan` that enqueues steps [first, first + count).
"""

from __future__ import annotations

import ctypes
import math
import warnings
from typing import Any

import numpy as np

from smartmem.device import Device
from smartmem.errors import CompilerError, SmartmemError
from smartmem.runtime.cache import Cache
from smartmem.runtime.cc import build_library, find_compiler
from smartmem.runtime.opencl.errors import failure, reporting
from smartmem.runtime.opencl.loader import opencl_library, pyopencl
from smartmem.runtime.opencl.memory import Memories
from smartmem.runtime.opencl.program import LaunchStep, check_step

_DIMENSIONS = 3
_LAUNCH = np.dtype(
    [("kernel", np.uintp), ("dims", np.uintp), ("global", np.uintp, _DIMENSIONS), ("local", np.uintp, _DIMENSIONS)]
)  # sm_launch in native/cl_plan.c


class LaunchPlan:
    """The kernels of a program in order; each step has a kernel object of its own, with its arguments set.

    Attributes:
        native: whether one native call enqueues a stretch.
    """

    def __init__(
        self,
        steps: list[LaunchStep],
        programs: dict[str, Any],
        memories: Memories,
        device: Device,
        handle: Any,
        cache: Cache,
    ) -> None:
        """Make the kernels and set their arguments.

        Raises:
            CompilerError: a step names no kernel, or gives it other arguments or groups than it can have.
        """
        self._steps = steps
        self._device = device
        self._needed = memories.needed
        self._kernels = [_kernel(step, programs, memories, device, handle) for step in steps]
        self._table = np.zeros(len(steps), _LAUNCH)
        for row, step, kernel in zip(self._table, steps, self._kernels, strict=True):
            row["kernel"], row["dims"] = kernel.int_ptr, len(step.global_size)
            row["global"][: len(step.global_size)] = step.global_size
            row["local"][: len(step.local_size)] = step.local_size
        self._native = _native(cache) if steps else None
        self.native = self._native is not None

    def enqueue(self, queue: Any, first: int, count: int) -> None:
        """Enqueue steps [first, first + count) of the table.

        Raises:
            RuntimeFailure: the driver refuses one.
        """
        if self._native is None:
            self.enqueue_timed(queue, first, count)
            return
        function, enqueue = self._native
        at = ctypes.c_long(0)
        status = function(
            enqueue, queue.int_ptr, self._table.ctypes.data + first * _LAUNCH.itemsize, count, ctypes.byref(at)
        )
        if status:
            raise failure(self._device, status, f"running {self._steps[first + at.value].kernel}", self._needed)

    def enqueue_timed(self, queue: Any, first: int, count: int) -> list[Any]:
        """The same from Python, with an event per step."""
        cl = pyopencl()
        events = []
        for step, kernel in zip(self._steps[first : first + count], self._kernels[first : first + count], strict=True):
            with reporting(self._device, f"running {step.kernel}", self._needed):
                events.append(cl.enqueue_nd_range_kernel(queue, kernel, step.global_size, step.local_size or None))
        return events


def _kernel(step: LaunchStep, programs: dict[str, Any], memories: Memories, device: Device, handle: Any) -> Any:
    cl = pyopencl()
    made: list[Any] = []

    def parameters(step: LaunchStep) -> int:
        try:
            made.append(cl.Kernel(programs[step.source], step.kernel))
        except cl.Error:
            return -1
        return int(made[0].num_args)

    check_step(step, programs, parameters)
    kernel = made[0]
    if step.dynamic > device.local_memory:
        raise CompilerError(
            f"kernel {step.kernel} wants {step.dynamic} bytes of local memory for a group, "
            f"{device.name} has {device.local_memory}: set SMARTMEM_LAUNCH=queue and compile the model again"
        )
    allowed = kernel.get_work_group_info(cl.kernel_work_group_info.WORK_GROUP_SIZE, handle)
    if (items := math.prod(step.local_size)) > allowed:
        raise CompilerError(
            f"kernel {step.kernel}: groups of {items} work-items, {device.name} runs it with {allowed} at most"
        )
    for position, at in enumerate(step.args):
        try:
            kernel.set_arg(position, memories.objects[at])
        except cl.Error as error:
            raise CompilerError(f"kernel {step.kernel} does not take its argument {position} ({error})") from None
    if step.dynamic:
        kernel.set_arg(len(step.args), cl.LocalMemory(step.dynamic))
    return kernel


def _native(cache: Cache) -> tuple[Any, int] | None:
    """The native function and what it calls, or None (with a warning) where there is no C compiler."""
    try:
        library = build_library({}, "native", cache, find_compiler(), runtime="cl_plan.c")
        function = ctypes.CDLL(str(library)).sm_cl_launch
        enqueue = ctypes.cast(opencl_library().clEnqueueNDRangeKernel, ctypes.c_void_p).value
    except (SmartmemError, OSError, AttributeError) as error:
        warnings.warn(f"kernels are enqueued from Python, which takes longer: {error}", RuntimeWarning, stacklevel=2)
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function, enqueue or 0
