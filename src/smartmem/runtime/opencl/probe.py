"""Measure what accesses to a device's memories cost, once per device and driver.

In: a `Device`. Out: `MemoryCosts` from the device's own clock. Every kernel touches each 16-byte value of a square
once, `RUN` values per work-item. *Coalesced*: neighbouring work-items take neighbouring columns. *Gather*: neighbouring
work-items take neighbouring rows, and each walks along its row.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from typing import Any

import numpy as np

from smartmem.device import Device, MemoryCosts
from smartmem.errors import SmartmemError
from smartmem.runtime.cache import Cache, open_cache
from smartmem.runtime.opencl.devices import opencl_device
from smartmem.runtime.opencl.errors import reporting
from smartmem.runtime.opencl.loader import pyopencl

RUN = 16
VERSION = 1  # of this measurement, in the cache's key
_FIRST, _LARGEST = 1 << 10, 1 << 12  # side of the square
_LONG_ENOUGH = 2e-4  # seconds: a launch itself is then no part of the result
_REPEATS = 5
_SOURCE = """
#define RUN %d
__constant sampler_t at = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;
#define COALESCED const int x = get_global_id(0), y = get_global_id(1) * RUN, dx = 0, dy = 1
#define GATHER const int x = get_global_id(1) * RUN, y = get_global_id(0), dx = 1, dy = 0
#define READ(name, order, parameter, value) \\
    __kernel void name(parameter, __global float4 *out, int side) { \\
        order; \\
        float4 sum = 0.0f; \\
        for (int r = 0; r < RUN; r++) sum += value; \\
        out[get_global_id(1) * get_global_size(0) + get_global_id(0)] = sum; \\
    }
#define IN_BUFFER in[(y + r * dy) * side + x + r * dx]
READ(buffer_read, COALESCED, __global const float4 *in, IN_BUFFER)
READ(buffer_gather, GATHER, __global const float4 *in, IN_BUFFER)
__kernel void buffer_write(__global float4 *memory, __global float4 *out, int side) {
    COALESCED;
    for (int r = 0; r < RUN; r++) memory[(y + r * dy) * side + x + r * dx] = (float4)(r);
}
#ifdef IMAGES
#define IN_IMAGE read_imagef(in, at, (int2)(x + r * dx, y + r * dy))
READ(texture_read, COALESCED, __read_only image2d_t in, IN_IMAGE)
READ(texture_gather, GATHER, __read_only image2d_t in, IN_IMAGE)
__kernel void texture_write(__write_only image2d_t memory, __global float4 *out, int side) {
    COALESCED;
    for (int r = 0; r < RUN; r++) write_imagef(memory, (int2)(x + r * dx, y + r * dy), (float4)(r));
}
#endif
"""
_BUFFERS = ("buffer_read", "buffer_gather", "buffer_write")
_TEXTURES = ("texture_read", "texture_gather", "texture_write")


def measured(device: Device, cache: Cache | None = None) -> MemoryCosts:
    """The costs of `device`'s memories, from the cache if they were measured before.

    A device that cannot be measured gets the default costs, with a warning.
    """
    cache = cache or open_cache()
    key = json.dumps(["memory costs", VERSION, device.name, device.platform, device.driver, device.version])
    if found := cache.find("devices", key, ".json"):
        return MemoryCosts(**json.loads(found.read_text()))
    try:
        costs = measure(device)
    except SmartmemError as error:
        warnings.warn(f"the memories of {device.name} cannot be measured: {error}", RuntimeWarning, stacklevel=2)
        return MemoryCosts()
    cache.add("devices", key, ".json", json.dumps(asdict(costs)).encode())
    return costs


def measure(device: Device) -> MemoryCosts:
    """Measure now.

    Raises:
        RuntimeFailure: the device refuses the kernels.
    """
    cl = pyopencl()
    with reporting(device, "measuring its memories", "up to 512 MiB"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = opencl_device(device)
        context = cl.Context([handle])
        queue = cl.CommandQueue(context, properties=cl.command_queue_properties.PROFILING_ENABLE)
        options = ["-DIMAGES"] if device.images else []
        program = cl.Program(context, _SOURCE % RUN)
        _ = program.int_ptr  # made now, so that pyopencl does not look into a cache of its own
        program.build(options)
        side = _FIRST
        # A quarter of the largest allocation: a phone shares its memory with everything else.
        largest = [_LARGEST, int((device.max_allocation // 64) ** 0.5)]
        largest += [device.image_width, device.image_height] if device.images else []
        while 2 * side <= min(largest) and _seconds(cl, queue, context, program, "buffer_read", side) < _LONG_ENOUGH:
            side *= 2
        seconds = {
            name: _seconds(cl, queue, context, program, name, side)
            for name in (*_BUFFERS, *(_TEXTURES if device.images else ()))
        }
        line = int(handle.get_info(cl.device_info.GLOBAL_MEM_CACHELINE_SIZE)) or MemoryCosts.line
    costs = {name: round(spent / seconds["buffer_read"], 2) for name, spent in seconds.items()}
    return MemoryCosts(**costs, line=line, source="measured")  # type: ignore[arg-type]


def _seconds(cl: Any, queue: Any, context: Any, program: Any, name: str, side: int) -> float:
    """The shortest time of one kernel."""
    flags = cl.mem_flags
    if name in _TEXTURES:
        layout = cl.ImageFormat(cl.channel_order.RGBA, cl.channel_type.FLOAT)
        memory = cl.create_image(context, flags.READ_WRITE, layout, shape=(side, side))
        cl.enqueue_fill_image(queue, memory, np.zeros(4, np.float32), (0, 0), (side, side))
    else:
        memory = cl.Buffer(context, flags.READ_WRITE, side * side * 16)
        # Pages that nobody wrote are all the same page, which is read from a cache.
        cl.enqueue_fill_buffer(queue, memory, np.float32(0), 0, side * side * 16)
    out = cl.Buffer(context, flags.WRITE_ONLY, side * side // RUN * 16)
    kernel = cl.Kernel(program, name)
    kernel.set_args(memory, out, np.int32(side))
    spent: list[float] = []
    for _ in range(_REPEATS):
        event = cl.enqueue_nd_range_kernel(queue, kernel, (side, side // RUN), None)
        event.wait()
        spent.append((event.profile.end - event.profile.start) * 1e-9)
    return max(min(spent), 1e-9)
