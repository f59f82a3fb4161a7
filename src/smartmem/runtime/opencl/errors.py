"""What an OpenCL driver complains of, as one line that says what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from smartmem.device import Device
from smartmem.errors import RuntimeFailure
from smartmem.runtime.opencl.loader import pyopencl

# Statuses by their numbers: the native plan gives no more than these.
_NAMES = {
    -2: "DEVICE_NOT_AVAILABLE",
    -4: "MEM_OBJECT_ALLOCATION_FAILURE",
    -5: "OUT_OF_RESOURCES",
    -6: "OUT_OF_HOST_MEMORY",
    -14: "EXEC_STATUS_ERROR",
    -34: "INVALID_CONTEXT",
    -36: "INVALID_COMMAND_QUEUE",
    -40: "INVALID_IMAGE_SIZE",
    -52: "INVALID_KERNEL_ARGS",
    -54: "INVALID_WORK_GROUP_SIZE",
    -55: "INVALID_WORK_ITEM_SIZE",
    -61: "INVALID_BUFFER_SIZE",
    -9999: "illegal memory access",
}
_MEMORY = (-4, -6, -61)
_EXHAUSTED = -5  # NVIDIA says so of memory, of registers, and of a kernel that crashed
_LOST = (-2, -14, -34, -36, -9999)


class DeviceLost(RuntimeFailure):
    """The device stopped working in the middle: nothing that lies on it can be used any more."""


def failure(
    device: Device, status: int, doing: str, needed: str, allocating: bool = False, name: str = ""
) -> RuntimeFailure:
    """The error for `status`.

    Args:
        device: where it happened.
        status: the driver's number.
        doing: "allocating …", "running KERNEL".
        needed: how much memory the model wants, in words.
        allocating: it happened when memory was asked for.
        name: what the driver calls it, where it is not OpenCL's.
    """
    what = name or f"{_NAMES.get(status, 'error')} ({status})"
    if status in _MEMORY or (allocating and status == _EXHAUSTED):
        return RuntimeFailure(
            f"{device.name} is out of memory ({doing}: {what}); the model needs {needed}: "
            "use --precision fp16, smaller --shape, or close what else uses the device"
        )
    if status in _LOST:
        return DeviceLost(f"{device.name} was lost ({doing}: {what}); compile the model again, or use --device cpu")
    if status == _EXHAUSTED:
        return DeviceLost(
            f"{device.name} is out of resources or a kernel crashed ({doing}: {what}); the model needs {needed}; "
            "--check finds accesses out of range"
        )
    return RuntimeFailure(f"{device.name} failed ({doing}: {what})")


@contextlib.contextmanager
def reporting(device: Device, doing: str, needed: str, allocating: bool = False) -> Iterator[None]:
    """`with reporting(…):` turns what pyopencl raises into a `RuntimeFailure`."""
    cl = pyopencl()
    try:
        yield
    except cl.Error as error:
        raise failure(device, int(error.code), doing, needed, allocating) from error
    except MemoryError as error:
        raise failure(device, -6, doing, needed, allocating) from error
