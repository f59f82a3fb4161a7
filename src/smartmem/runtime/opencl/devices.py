"""The OpenCL devices of this machine as `Device`, in an order that does not change between runs.

In: what the drivers say. Out: `Device`s, GPUs first, then accelerators and CPUs; of several versions of one platform
the newest first. The position in that list is the N of `--device opencl:N`.
"""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import replace
from typing import Any, Literal

from smartmem.device import Device
from smartmem.errors import InputError, RuntimeFailure, SmartmemError
from smartmem.runtime.cuda.driver import dynamic_local
from smartmem.runtime.opencl.loader import NO_PLATFORM, opencl_library, pyopencl

_PITCH_ALIGNMENT = 0x104A  # CL_DEVICE_IMAGE_PITCH_ALIGNMENT, which pyopencl has no name for
_WARPGROUPS = 9  # compute capability of GPUs with instructions of four warps for matrix units; no other has them
_KINDS: tuple[Literal["gpu", "accelerator", "cpu"], ...] = ("gpu", "accelerator", "cpu")


def list_devices() -> list[Device]:
    """Every device of every platform, with its limits; the costs of its memories are not filled in.

    Raises:
        RuntimeFailure: no pyopencl, or no OpenCL platform.
    """
    return [device for device, _ in _found()]


def opencl_device(device: Device) -> Any:
    """The pyopencl device that `device` describes.

    Raises:
        RuntimeFailure: there is no such device (any more).
    """
    same = [
        (abs(other.index - device.index), handle)
        for other, handle in _found()
        if (other.name, other.platform, other.driver) == (device.name, device.platform, device.driver)
    ]
    if same:
        return min(same, key=lambda pair: pair[0])[1]
    raise RuntimeFailure(f"no OpenCL device {device.name!r} here; `smartmem devices` lists those that are")


def select(name: str) -> Device | None:
    """The device that `--device NAME` means, with the costs of its memories; None is the CPU without OpenCL.

    Args:
        name: "cpu", "auto" (the first GPU, else the CPU), "opencl" (the first device) or "opencl:N".

    Raises:
        InputError: a name of another form, or no such device.
        RuntimeFailure: an OpenCL device is asked for and there is no pyopencl or no platform.
    """
    from smartmem.runtime.opencl.profiles import costs_of

    if name == "cpu":
        return None
    if name == "auto":
        try:
            gpu = next((device for device in list_devices() if device.kind == "gpu"), None)
        except SmartmemError:
            return None
        return None if gpu is None else replace(gpu, costs=costs_of(gpu))
    match = re.fullmatch(r"opencl(?::(\d+))?", name)
    if match is None:
        raise InputError(f"no device {name!r}: give cpu, auto, opencl or opencl:N (`smartmem devices` lists them)")
    devices = list_devices()
    index = int(match.group(1) or 0)
    if index >= len(devices):
        raise InputError(f"no device {name}: {len(devices)} are here (`smartmem devices` lists them), 0 is the first")
    return replace(devices[index], costs=costs_of(devices[index]))


@functools.cache
def _found() -> list[tuple[Device, Any]]:
    cl = pyopencl()
    try:
        platforms = cl.get_platforms()
    except cl.Error:
        platforms = []
    described = []
    for platform in platforms:
        try:
            handles = platform.get_devices()
        except cl.Error:  # a driver without a device says so by an error
            handles = []
        described += [(_describe(cl, platform, handle), handle) for handle in handles]
    if not described:
        raise RuntimeFailure(NO_PLATFORM)
    names = [device.platform for device, _ in described]
    described.sort(key=lambda pair: (_KINDS.index(pair[0].kind), names.index(pair[0].platform), _age(pair[0])))
    return [(replace(device, index=index), handle) for index, (device, handle) in enumerate(described)]


def _age(device: Device) -> tuple[int, ...]:
    """Sorts newer drivers first: `"3.1+debian" -> (-3, -1)`."""
    return tuple(-int(number) for number in re.findall(r"\d+", device.driver)[:3])


def _describe(cl: Any, platform: Any, handle: Any) -> Device:
    def get(name: str, default: Any = 0) -> Any:
        try:
            return handle.get_info(getattr(cl.device_info, name))
        except (cl.Error, AttributeError):  # an older driver, or another vendor's question
            return default

    extensions = str(get("EXTENSIONS", "")).split()
    bits = get("TYPE")
    kind = _KINDS[0 if bits & cl.device_type.GPU else 2 if bits & cl.device_type.CPU else 1]
    images, half_images = _image_formats(cl, handle) if get("IMAGE_SUPPORT") else (False, False)
    capability = get("COMPUTE_CAPABILITY_MAJOR_NV")
    bus = _bus(get) if capability else ""
    graph_local = dynamic_local(bus) if bus else 0
    lockstep = get("WARP_SIZE_NV") or get("WAVEFRONT_WIDTH_AMD")
    if not lockstep and kind == "gpu":
        lockstep = get("PREFERRED_WORK_GROUP_SIZE_MULTIPLE")
    return Device(
        name=str(get("NAME", "")).strip(),
        vendor=str(get("VENDOR", "")).strip(),
        platform=str(platform.name).strip(),
        driver=str(get("DRIVER_VERSION", "")).strip(),
        version=str(get("VERSION", "")).strip(),
        kind=kind,
        images=images,
        half_images=half_images,
        image_width=get("IMAGE2D_MAX_WIDTH"),
        image_height=get("IMAGE2D_MAX_HEIGHT"),
        max_allocation=get("MAX_MEM_ALLOC_SIZE"),
        memory=get("GLOBAL_MEM_SIZE"),
        local_memory=get("LOCAL_MEM_SIZE"),
        has_local=get("LOCAL_MEM_TYPE") == cl.device_local_mem_type.LOCAL,
        max_work_group=get("MAX_WORK_GROUP_SIZE", 1),
        compute_units=get("MAX_COMPUTE_UNITS", 1),
        sub_group=max(1, int(lockstep)),
        fp16="cl_khr_fp16" in extensions,
        fp64="cl_khr_fp64" in extensions,
        exact_division=bool(get("SINGLE_FP_CONFIG", 0) & cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT),
        image_from_buffer="cl_khr_image2d_from_buffer" in extensions,
        pitch_alignment=_pitch_alignment(handle),
        base_alignment=max(1, get("MEM_BASE_ADDR_ALIGN", 1024) // 8),
        ptx=capability > 0,
        dynamic_local=graph_local,
        bus=bus if graph_local else "",
        matrix_units=capability >= 8,
        warpgroups=capability == _WARPGROUPS and graph_local > 0,
    )


def _bus(get: Any) -> str:
    """An NVIDIA GPU's address on the PCI bus, "" where the driver does not say."""
    bus, slot = get("PCI_BUS_ID_NV", None), get("PCI_SLOT_ID_NV", None)
    return "" if bus is None or slot is None else f"{get('PCI_DOMAIN_ID_NV'):04x}:{bus:02x}:{slot:02x}.0"


def _image_formats(cl: Any, handle: Any) -> tuple[bool, bool]:
    """Whether a kernel can read and write RGBA images of floats, and of halves."""
    try:
        formats = cl.get_supported_image_formats(
            cl.Context([handle]), cl.mem_flags.READ_WRITE, cl.mem_object_type.IMAGE2D
        )
    except cl.Error:
        return False, False
    kinds = {f.channel_data_type for f in formats if f.channel_order == cl.channel_order.RGBA}
    return cl.channel_type.FLOAT in kinds, cl.channel_type.HALF_FLOAT in kinds


def _pitch_alignment(handle: Any) -> int:
    """Texels at which the rows of an image in a buffer start; 0 if the driver does not say."""
    value = ctypes.c_uint(0)
    try:
        status = opencl_library().clGetDeviceInfo(
            ctypes.c_void_p(handle.int_ptr), _PITCH_ALIGNMENT, ctypes.c_size_t(4), ctypes.byref(value), None
        )
    except (RuntimeFailure, AttributeError):
        return 0
    return value.value if status == 0 else 0
