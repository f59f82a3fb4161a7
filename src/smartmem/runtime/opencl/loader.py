"""Reach OpenCL: the pyopencl package, and the OpenCL library that it has opened.

Imported only when a device is asked for: importing smartmem never imports pyopencl.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path
from types import ModuleType

from smartmem.errors import RuntimeFailure

INSTALL = "pip install 'smartmem[opencl]'"
NO_PLATFORM = (
    "no OpenCL platform: install the driver of your GPU, or PoCL, which runs on CPUs "
    "(Debian and Ubuntu: apt install pocl-opencl-icd; Linux on x86-64: pip install pocl-binary-distribution)"
)


@functools.cache
def pyopencl() -> ModuleType:
    """The pyopencl package.

    Raises:
        RuntimeFailure: it is not installed, or cannot be loaded.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pyopencl as cl
    except ModuleNotFoundError:
        raise RuntimeFailure(f"OpenCL needs the pyopencl package: {INSTALL}") from None
    except (ImportError, OSError) as error:
        raise RuntimeFailure(f"the pyopencl package cannot be loaded ({error}): {INSTALL}") from None
    module: ModuleType = cl
    return module


@functools.cache
def opencl_library() -> ctypes.CDLL:
    """The OpenCL library of this process: the one that pyopencl opened, else the system's.

    Raises:
        RuntimeFailure: neither can be opened.
    """
    pyopencl()
    error: OSError | None = None
    for name in (*_mapped(), "libOpenCL.so.1", "OpenCL.dll", "/System/Library/Frameworks/OpenCL.framework/OpenCL"):
        try:
            return ctypes.CDLL(name)
        except OSError as reason:
            error = error or reason
    raise RuntimeFailure(f"the OpenCL library cannot be opened: {error}")


def _mapped() -> list[str]:
    """Files called libOpenCL… that are mapped into this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = [line.split(None, 5)[5] for line in lines if line.count("/") and len(line.split(None, 5)) == 6]
    return list(dict.fromkeys(path for path in paths if Path(path).name.startswith("libOpenCL")))
