"""x86 matrix units (AMX): whether code may use them. Linux gives a process their registers only if it asks."""

from __future__ import annotations

import ctypes
import functools
import sys

FEATURES = frozenset(("amx_tile", "amx_bf16", "amx_int8"))  # as /proc/cpuinfo names them
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # system call, its operation, the register state


@functools.cache
def permitted() -> bool:
    """Asks the system for the tile registers, for all threads of this process; False if it does not give them."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return int(libc.syscall(_ARCH_PRCTL, ctypes.c_long(_REQUEST_PERMISSION), ctypes.c_long(_TILE_DATA))) == 0
