"""Refuse values that cannot fit the machine, before anything allocates them."""

from __future__ import annotations

import os
from functools import lru_cache

from smartmem.errors import ModelError
from smartmem.frontend.fold import size_of
from smartmem.graph.ir import Value


@lru_cache(maxsize=1)
def physical_memory() -> int | None:
    """Bytes of memory of this machine, None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_fits(value: Value, what: str) -> None:
    """Raise unless `value` could be allocated.

    Raises:
        ModelError: saying how much `what` needs and how much there is.
    """
    memory, needed = physical_memory(), size_of(value)
    if memory is not None and needed > memory:
        raise ModelError(
            f"{what} of shape {value.shape} and type {value.dtype} needs {_readable(needed)}, and this machine has "
            f"{_readable(memory)} of memory; use smaller input shapes"
        )


def _readable(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
