"""The memory objects of a program on a device: one per slot.

In: a `DeviceProgram`, a context and a queue. Out: `Memories`, where `objects[slot]` is what kernels get. Activations
share pooled buffers and images; weights are uploaded once. What no kernel touches has no object: it stays an array of
the host. What does not need OpenCL (sizes, limits, the contents of weights) serves CUDA's executor, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartmem.device import Device
from smartmem.errors import CompilerError, InputError, RuntimeFailure
from smartmem.runtime.arrays import Array, dtype_of
from smartmem.runtime.opencl.errors import reporting
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.runtime.opencl.program import DeviceProgram, DeviceSlot

_ADVICE = "use --precision fp16, a smaller --shape, or --device cpu"


@dataclass
class Memories:
    """Memory on the device.

    Attributes:
        objects: buffer or image of each slot that kernels touch, by slot number.
        needed: bytes of everything, in words.
    """

    objects: dict[int, Any] = field(default_factory=dict)
    needed: str = ""


def allocate(program: DeviceProgram, device: Device, context: Any, queue: Any) -> Memories:
    """Allocate all slots and upload the weights.

    Raises:
        CompilerError: an image is larger than the device can have.
        RuntimeFailure: the device has not enough memory.
    """
    cl = pyopencl()
    flags = cl.mem_flags
    touched = touched_slots(program)
    memories = Memories(needed=words_of_need(program, touched))
    check_limits(program, device, touched, memories.needed)
    with reporting(device, f"allocating {memories.needed}", memories.needed, allocating=True):
        buffers = [cl.Buffer(context, flags.READ_WRITE, nbytes) for nbytes in program.buffers]
        images = [
            cl.create_image(context, flags.READ_WRITE, _format(stored), shape=(width, height))
            for width, height, stored in program.images
        ]
        uploads = []
        for at in touched:
            slot = program.slots[at]
            if slot.kind == "activation" and slot.memory == "texture":
                memories.objects[at] = images[slot.place]
            elif slot.kind == "activation":
                memories.objects[at] = buffers[slot.place]
            elif slot.kind == "weight":
                array = weight_array(program, slot)
                memories.objects[at] = _weight(cl, context, slot, array)
                uploads.append((memories.objects[at], array, slot))
            else:
                memories.objects[at] = cl.Buffer(context, flags.READ_WRITE, buffer_bytes(slot))
                # What pads an input is read by kernels like any value, and must not be NaN.
                uploads.append((memories.objects[at], np.zeros(buffer_bytes(slot), np.uint8), slot))
        for target, array, slot in uploads:
            if slot.memory == "texture":
                region = (slot.width, slot.height)
                cl.enqueue_copy(queue, target, array, origin=(0, 0), region=region, is_blocking=False)
            elif array.nbytes:
                cl.enqueue_copy(queue, target, array, is_blocking=False)
        queue.finish()
    return memories


def buffer_bytes(slot: DeviceSlot) -> int:
    """Size of a slot in a buffer; never 0, which OpenCL does not allow."""
    values = max(slot.elements, math.prod(slot.shape or (0,)))
    return max(1, values * dtype_of(slot.stored).itemsize)


def touched_slots(program: DeviceProgram) -> list[int]:
    """The slots that kernels touch, in order."""
    return sorted({at for step in program.launches for at in step.args})


def weight_array(program: DeviceProgram, slot: DeviceSlot) -> Array:
    """The contents of a weight's slot.

    Raises:
        CompilerError: they are not what the slot says.
    """
    array = np.ascontiguousarray(program.weights[slot.name])
    if array.dtype.name != slot.stored:
        raise CompilerError(f"weight {slot.name!r} is {array.dtype.name}, its slot says {slot.stored}")
    if slot.memory == "texture" and array.shape != (slot.height, slot.width, 4):
        raise CompilerError(f"weight {slot.name!r} has {list(array.shape)} values for {slot.width}x{slot.height}")
    return array


def _weight(cl: Any, context: Any, slot: DeviceSlot, array: Array) -> Any:
    if slot.memory == "texture":
        return cl.create_image(context, cl.mem_flags.READ_ONLY, _format(slot.stored), shape=(slot.width, slot.height))
    return cl.Buffer(context, cl.mem_flags.READ_ONLY, max(buffer_bytes(slot), array.nbytes))


def _format(stored: str) -> Any:
    cl = pyopencl()
    kinds = {"float32": cl.channel_type.FLOAT, "float16": cl.channel_type.HALF_FLOAT}
    if stored not in kinds:
        raise CompilerError(f"no image holds {stored}")
    return cl.ImageFormat(cl.channel_order.RGBA, kinds[stored])


def check_limits(program: DeviceProgram, device: Device, touched: Sequence[int], needed: str) -> None:
    """Refuse what the device says it cannot hold; drivers complain late, or not at all.

    Raises:
        InputError: no images, or none that large.
        RuntimeFailure: not enough memory.
    """
    slots = [program.slots[at] for at in touched]
    extents = [(slot.name, slot.width, slot.height, slot.stored) for slot in slots if slot.memory == "texture"]
    extents += [(f"pooled image {at}", *image) for at, image in enumerate(program.images)]
    for name, width, height, stored in extents:
        if not device.has_images(stored == "float16"):
            raise InputError(f"{device.name} has no images of {stored}: use --memory buffer")
        if width > device.image_width or height > device.image_height:
            raise InputError(
                f"{name!r} would be an image of {width}x{height} texels, {device.name} allows "
                f"{device.image_width}x{device.image_height}: use --memory auto or buffer"
            )
    largest = [(f"pooled buffer {at}", nbytes) for at, nbytes in enumerate(program.buffers)]
    largest += [(repr(slot.name), buffer_bytes(slot)) for slot in slots if slot.kind != "activation"]
    for name, nbytes in largest:
        if nbytes > device.max_allocation:
            raise RuntimeFailure(
                f"{name} needs {_mib(nbytes)} in one piece, {device.name} allows {_mib(device.max_allocation)}: "
                f"{_ADVICE}"
            )
    total = _total(program, touched)
    if total > device.memory:
        raise RuntimeFailure(f"the model needs {needed}, {device.name} has {_mib(device.memory)}: {_ADVICE}")


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _total(program: DeviceProgram, touched: Sequence[int]) -> int:
    return sum(_parts(program, touched))


def _parts(program: DeviceProgram, touched: Sequence[int]) -> tuple[int, int]:
    """Bytes of activations (with inputs and outputs) and of weights."""
    activations = sum(program.buffers) + sum(
        width * height * 4 * dtype_of(stored).itemsize for width, height, stored in program.images
    )
    weights = 0
    for at in touched:
        slot = program.slots[at]
        if slot.kind == "weight":
            weights += program.weights[slot.name].nbytes
        elif slot.kind != "activation":
            activations += buffer_bytes(slot)
    return activations, weights


def words_of_need(program: DeviceProgram, touched: Sequence[int]) -> str:
    """Bytes of everything, for messages."""
    activations, weights = _parts(program, touched)
    return f"{_mib(activations + weights)} ({_mib(activations)} activations, {_mib(weights)} weights)"
