"""Arrays at the border of the native code: aligned, contiguous, of exactly the type that the kernels expect."""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from smartmem.errors import InputError
from smartmem.runtime.artifact import TensorSpec

Array = np.ndarray[Any, Any]
ALIGNMENT = 64
SMALL = 1 << 12  # elements
PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialized array whose data starts at a multiple of 64 bytes (strings: an ordinary array of objects)."""
    if dtype.hasobject:
        return np.empty(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def empty_output(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An uninitialized array for the caller, aligned if that is worth the time: behind a run, it takes 25 µs."""
    return np.empty(shape, dtype) if math.prod(shape) < SMALL else aligned_empty(shape, dtype)


def ask_for_huge_pages(memory: mmap.mmap) -> None:
    """Tells the system that mapped memory is worth huge pages, if it has them."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without
            memory.madvise(mmap.MADV_HUGEPAGE)


def working_memory(sizes: Sequence[int]) -> list[Array]:
    """Uninitialized bytes, so many in each array, for the life of a model.

    Those of large models lie side by side in huge pages, if the system has them, whose addresses the processor finds in
    fewer steps.
    """
    places = list(accumulate((-(-size // PAGE) * PAGE for size in sizes), initial=0))
    if places[-1] < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return [aligned_empty((size,), np.dtype(np.uint8)) for size in sizes]
    memory = mmap.mmap(-1, places[-1] + 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    ask_for_huge_pages(memory)
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % HUGE_PAGE
    return [raw[start + place : start + place + size] for place, size in zip(places, sizes, strict=False)]


@functools.cache
def dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype called `name`, those of the ml_dtypes package too."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype


def fitting(spec: TensorSpec, given: Any) -> Array:
    """`given` as a contiguous native array, if it is what `spec` says."""
    if type(given) is np.ndarray and _fits(spec, given):
        return given
    array = _to_array(spec.name, given)
    if array.dtype.kind in "US" and spec.dtype == "object":
        array = array.astype(object)
    expected = f"expected {describe(spec)}"
    if array.dtype.name != spec.dtype:
        hint = f"; convert it with x.astype({spec.dtype!r})" if isinstance(given, np.ndarray) else ""
        raise InputError(f"input {spec.name!r} has dtype {array.dtype.name}, {expected}{hint}")
    if spec.shape is not None and array.ndim != len(spec.shape):
        raise InputError(f"input {spec.name!r} has rank {array.ndim} (shape {list(array.shape)}), {expected}")
    if spec.shape is not None and array.shape != spec.shape:
        raise InputError(f"input {spec.name!r} has shape {list(array.shape)}, {expected}")
    return np.require(array, dtype_of(spec.dtype), ["C", "A"])


def _fits(spec: TensorSpec, array: Array) -> bool:
    same = array.shape == spec.shape and array.dtype == dtype_of(spec.dtype)
    return same and array.flags.c_contiguous and array.flags.aligned


def _to_array(name: str, given: Any) -> Array:
    if isinstance(given, (np.ndarray, np.generic)):
        return np.asarray(given)
    if hasattr(given, "__dlpack__"):
        try:
            return np.from_dlpack(given)
        except Exception as error:  # each producer has its own
            raise InputError(f"input {name!r} cannot be read through DLPack: {error}") from None
    raise InputError(f"input {name!r} is a {type(given).__name__}: give a numpy array, or a tensor with __dlpack__")


def readable(array: Array) -> Array:
    """Weights as kernels may read them: contiguous, 64-byte aligned."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    aligned = aligned_empty(array.shape, array.dtype)
    np.copyto(aligned, array)
    return aligned


def describe(spec: TensorSpec) -> str:
    """`x: float32[1, 3]`."""
    return f"{spec.name}: {spec.dtype}{'[?]' if spec.shape is None else list(spec.shape)}"


def listed(names: list[str]) -> str:
    """Names as messages list them."""
    return ", ".join(map(repr, names)) or "none"
