"""What schedules tell of texture accesses is what the generated code does: every read and write, by work-item."""

import re
from importlib.resources import files

import numpy as np
import pytest
from tests.support.convolutions import convolution
from tests.support.counter_network import compiled

from smartmem.counters.profiles import counter_device
from smartmem.counters.replay import places
from smartmem.device import Device
from smartmem.kernel.stage import Kernel
from smartmem.runtime.opencl.devices import opencl_device
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.schedule.gpu.code import DeviceCode

NOTE = """
inline void note(__global uint *seen, int store, int2 at) {
    const uint group = get_group_id(0) + get_num_groups(0) * (get_group_id(1) + get_num_groups(1) * get_group_id(2));
    const uint mixed = ((uint)get_local_id(0) + 1u) * 73856093u ^ (uint)(at.x + 1) * 19349663u
                       ^ (uint)(at.y + 1) * 83492791u;
    atomic_inc(seen + 4 * group + 2 * store);
    atomic_add(seen + 4 * group + 2 * store + 1, mixed);
}
#define noted_read(image, how, at) (note(seen, 0, at), read_imagef(image, how, at))
#define noted_write(image, at, value) (note(seen, 1, at), write_imagef(image, at, value))
"""


@pytest.fixture(scope="module")
def opencl(device: Device):
    """A context and a queue on the device."""
    if not device.images:
        pytest.skip(f"{device.name} has no images")
    cl = pyopencl()
    context = cl.Context([opencl_device(device)])
    return cl, context, cl.CommandQueue(context)


def _seen(opencl, code: DeviceCode, storages) -> np.ndarray:
    """Per group: number of reads, their sum, number of writes, their sum, from the running kernel."""
    cl, context, queue = opencl
    size = ", ".join(str(n) for n in (*code.local_size, 1, 1)[:3])
    body = re.sub(r"^ *#pragma unroll\n", "", code.text, flags=re.MULTILINE)
    body = re.sub(r"\b(read|write)_imagef\(", r"noted_\1(", body)
    head = f"__kernel __attribute__((reqd_work_group_size({size})))\nvoid run"
    parameters = ", ".join([*code.parameters, "__global uint *seen"])
    prelude = files("smartmem.codegen").joinpath("prelude.cl").read_text()
    kernel = cl.Program(context, f"{prelude}{NOTE}{head}({parameters}) {{\n{body}\n}}\n").build("-cl-std=CL1.2").run
    roots = {s.buffer: s for s in storages.values()}
    flags, arguments = cl.mem_flags, []
    for slot in code.args:
        image = roots[slot].image if slot in roots else None
        if image is not None:
            kind = cl.ImageFormat(cl.channel_order.RGBA, cl.channel_type.FLOAT)
            arguments.append(cl.create_image(context, flags.READ_WRITE, kind, (image.width, image.height)))
        else:
            nbytes = code.weights[slot].nbytes if slot in code.weights else roots[slot].elements * 8
            arguments.append(cl.Buffer(context, flags.READ_WRITE, max(16, nbytes)))
    groups = int(np.prod(code.global_size)) // int(np.prod(code.local_size))
    seen = np.zeros((groups, 4), np.uint32)
    device = cl.Buffer(context, flags.READ_WRITE | flags.COPY_HOST_PTR, hostbuf=seen)
    kernel(queue, code.global_size, code.local_size, *arguments, device)
    cl.enqueue_copy(queue, seen, device)
    return seen


def _told(code: DeviceCode) -> np.ndarray:
    """The same from the sweeps."""
    groups = np.arange(int(np.prod(code.global_size)) // int(np.prod(code.local_size)))
    told = np.zeros((len(groups), 4), np.uint64)
    for sweep in code.sweeps:
        items = np.arange(sweep.items, dtype=np.uint64)
        for at, place, held in places(sweep, groups):
            access = sweep.accesses[at]
            if not access.memory.width:
                continue
            row, column = (np.broadcast_to(part, held.shape).astype(np.uint64) for part in place[:2])
            mixed = (items + 1) * 73856093 ^ (column + 1) * 19349663 ^ (row + 1) * 83492791
            store = 2 * access.written
            told[:, store] += held.sum(axis=(0, 1, 3), dtype=np.uint64)
            told[:, store + 1] += ((mixed & 0xFFFFFFFF) * held).sum(axis=(0, 1, 3), dtype=np.uint64)
    return (told & 0xFFFFFFFF).astype(np.uint32)


@pytest.mark.parametrize("level", ["naive", "full"])
def test_every_texture_access_is_told(opencl, level):
    used, families = _all_told(opencl, *compiled(level, "texture", counter_device("adreno-740")))
    assert used > 10_000
    assert "contraction" in families


def test_every_texture_access_of_transforms_is_told(opencl, winograd_pays):
    model = convolution(32, channels=32)
    used, families = _all_told(opencl, *compiled("full", "texture", counter_device("adreno-740"), model=model))
    assert used > 10_000
    assert "pointwise" in families


def _all_told(opencl, kernels, storages) -> tuple[int, set[str]]:
    """How many reads of textures kernels made, all of them told, and the kernels' families."""
    used, families = 0, set()
    for kernel, code in kernels:
        assert isinstance(kernel, Kernel)
        told = _told(code)
        if told.any():
            seen = _seen(opencl, code, storages)
            assert (seen == told).all(), (kernel.tensor, code.family, seen.sum(axis=0), told.sum(axis=0))
            used += int(told[:, 0].sum())
            families.add(code.family)
    return used, families
