"""The few functions of CUDA's driver library that a graph of kernels needs, by ctypes.

NVIDIA's graphics driver brings the library; nothing has to be installed. `Driver.open` gives None where there is none.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

_HANDLE, _POINTER = ctypes.c_void_p, ctypes.c_void_p
_U64, _SIZE, _UINT, _INT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDeviceGetByPCIBusId": (_POINTER, ctypes.c_char_p),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuModuleLoadData": (_POINTER, ctypes.c_char_p),
    "cuModuleUnload": (_HANDLE,),
    "cuModuleGetFunction": (_POINTER, _HANDLE, ctypes.c_char_p),
    "cuFuncSetAttribute": (_HANDLE, _INT, _INT),
    "cuDeviceGetAttribute": (_POINTER, _INT, _INT),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_U64,),
    "cuMemsetD8_v2": (_U64, ctypes.c_ubyte, _SIZE),
    "cuMemcpyHtoD_v2": (_U64, _POINTER, _SIZE),
    "cuMemcpyDtoH_v2": (_POINTER, _U64, _SIZE),
    "cuMemcpy2D_v2": (_POINTER,),
    "cuArray3DCreate_v2": (_POINTER, _POINTER),
    "cuArrayDestroy": (_HANDLE,),
    "cuTexObjectCreate": (_POINTER, _POINTER, _POINTER, _POINTER),
    "cuTexObjectDestroy": (_U64,),
    "cuSurfObjectCreate": (_POINTER, _POINTER),
    "cuSurfObjectDestroy": (_U64,),
    "cuStreamCreate": (_POINTER, _UINT),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
    "cuGraphCreate": (_POINTER, _UINT),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphAddKernelNode_v2": (_POINTER, _HANDLE, _POINTER, _SIZE, _POINTER),
    "cuGraphAddEventRecordNode": (_POINTER, _HANDLE, _POINTER, _SIZE, _HANDLE),
    "cuGraphInstantiateWithFlags": (_POINTER, _HANDLE, ctypes.c_ulonglong),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuEventCreate": (_POINTER, _UINT),
    "cuEventDestroy_v2": (_HANDLE,),
    "cuEventElapsedTime": (_POINTER, _HANDLE, _HANDLE),
    "cuGetErrorName": (_INT, _POINTER),
}


class CudaError(Exception):
    """What the driver refused.

    Attributes:
        status: its number; name: its name ("CUDA_ERROR_OUT_OF_MEMORY").
    """

    def __init__(self, status: int, name: str, function: str) -> None:
        super().__init__(f"{function}: {name} ({status})")
        self.status, self.name = status, name


class KernelNode(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v2."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class ArrayDescriptor(ctypes.Structure):
    """CUDA_ARRAY3D_DESCRIPTOR."""

    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class ResourceDescriptor(ctypes.Structure):
    """CUDA_RESOURCE_DESC of an array."""

    _fields_ = (
        ("kind", ctypes.c_int),
        ("array", ctypes.c_void_p),
        ("reserved", ctypes.c_int * 30),
        ("flags", ctypes.c_uint),
    )


class TextureDescriptor(ctypes.Structure):
    """CUDA_TEXTURE_DESC; without flags: nearest texels, coordinates that count texels, values as floats."""

    _fields_ = (
        ("address", ctypes.c_int * 3),
        ("filter", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("rest", ctypes.c_uint * 21),
    )


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D_v2."""

    _fields_ = tuple(
        field
        for side in ("source", "target")
        for field in (
            (f"{side}_x", ctypes.c_size_t),
            (f"{side}_y", ctypes.c_size_t),
            (f"{side}_kind", ctypes.c_int),
            (f"{side}_host", ctypes.c_void_p),
            (f"{side}_device", ctypes.c_uint64),
            (f"{side}_array", ctypes.c_void_p),
            (f"{side}_pitch", ctypes.c_size_t),
        )
    ) + (("width", ctypes.c_size_t), ("height", ctypes.c_size_t))


_LOCAL_MEMORY = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def dynamic_local(bus: str) -> int:
    """Bytes of local memory that a launch may give a work-group of the GPU at `bus`; 0 if it is not to run graphs.

    That is where CUDA's driver does not reach it, and with ``SMARTMEM_LAUNCH=queue``.
    """
    if os.environ.get("SMARTMEM_LAUNCH", "graph") != "graph":
        return 0
    driver = Driver.open()
    if driver is None:
        return 0
    try:
        device = driver.made("cuDeviceGetByPCIBusId", bus.encode(), kind=ctypes.c_int)
        return int(driver.made("cuDeviceGetAttribute", _LOCAL_MEMORY, device, kind=ctypes.c_int))
    except CudaError:
        return 0


class Driver:
    """CUDA's driver library; each function raises `CudaError` unless it succeeds."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._name = library.cuGetErrorName
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = list(arguments), ctypes.c_int
            setattr(self, name.removesuffix("_v2"), functools.partial(self._call, function, name))

    def __getattr__(self, name: str) -> Any:  # what __init__ sets by name
        raise AttributeError(name)

    @staticmethod
    @functools.cache
    def open() -> Driver | None:
        """The library, ready to use; None where there is none, or one too old."""
        for name in ("libcuda.so.1", "nvcuda.dll"):
            try:
                driver = Driver(ctypes.CDLL(name))
                driver.cuInit(0)
            except (OSError, AttributeError, CudaError):
                continue
            return driver
        return None

    def made(self, function: str, *arguments: Any, kind: Any = ctypes.c_void_p) -> Any:
        """What a function writes through its first argument."""
        result = kind()
        getattr(self, function)(ctypes.byref(result), *arguments)
        return result.value

    def _call(self, function: Any, name: str, *arguments: Any) -> None:
        status = function(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._name(status, ctypes.byref(text))
            raise CudaError(status, (text.value or b"unknown error").decode(), name)
