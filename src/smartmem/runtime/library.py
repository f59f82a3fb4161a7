"""Load a model's shared library and declare what it exports (see native/pool.h and `plan`)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

from smartmem.errors import RuntimeFailure


class Library:
    """A loaded library; it stays loaded until the process ends.

    Attributes:
        functions: `sm_pool_*`.
        steps: address of the table of native steps.
        step_size: bytes of one entry of it.
    """

    def __init__(self, path: Path) -> None:
        _share_system_libraries()
        try:
            lib = ctypes.CDLL(str(path))
            lib.sm_pool_create.restype = ctypes.c_void_p
            lib.sm_pool_create.argtypes = [ctypes.c_int]
            lib.sm_pool_destroy.restype = None
            lib.sm_pool_destroy.argtypes = [ctypes.c_void_p]
            run: list[Any] = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
            lib.sm_pool_run.argtypes, lib.sm_pool_run.restype = run, ctypes.c_int
            lib.sm_pool_run_timed.argtypes, lib.sm_pool_run_timed.restype = run + [ctypes.c_void_p] * 2, ctypes.c_int
            self.steps = ctypes.addressof(ctypes.c_char.in_dll(lib, "sm_steps"))
            self.step_size = ctypes.c_long.in_dll(lib, "sm_step_size").value
        except (OSError, AttributeError, ValueError) as error:
            raise RuntimeFailure(f"the model's library cannot be loaded: {error}") from None
        self.functions = lib

    def create_pool(self, threads: int) -> int:
        """Start a thread pool; its handle."""
        handle = self.functions.sm_pool_create(threads)
        if not handle:
            raise RuntimeFailure(f"a pool of {threads} threads cannot be started; give fewer, for example threads=1")
        return int(handle)

    def destroy_pool(self, handle: int, owner: int) -> None:
        """End a pool of process `owner`. In a forked child its threads do not exist, and nothing is done."""
        if os.getpid() == owner:
            self.functions.sm_pool_destroy(handle)


def _share_system_libraries() -> None:
    """Make libm's and libpthread's functions visible to the library, which names no libraries that it needs."""
    if hasattr(os, "RTLD_GLOBAL"):
        for name in ("libm.so.6", "libpthread.so.0"):
            with contextlib.suppress(OSError):  # another libc; there they are one library, which Python has loaded
                ctypes.CDLL(name, mode=os.RTLD_GLOBAL)
