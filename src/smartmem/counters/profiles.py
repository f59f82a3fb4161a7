"""Devices whose counters can be modelled without having them: limits for the compiler, sizes of the caches.

In: a name. Out: a `CounterDevice`. Where the sizes come from, as far as they are published (the rest is assumed):

- Lines of 64 bytes and the size of the first cache are those of `runtime.opencl.profiles`.
- Adreno: textures go through the first cache of a shader processor, buffers go straight to the shared cache (Qualcomm,
  "Snapdragon OpenCL General Programming and Optimization": L1 is for textures only); waves of 64 work-items. The shared
  cache of an Adreno 640 has 128 KiB (ArchProbe); 1 MiB for the 740 and 128 KiB for the 540 are assumed.
- Mali-G57 (Valhall): the load/store cache and the texture cache of a core have 16 KiB and lines of 64 bytes, warps have
  16 work-items (Arm, "The Valhall shader core"); a shared cache of 512 KiB and 4 cores are assumed.

Ways and the number of groups that a core has at once are assumed. Textures lie in square-ish tiles of one line: 2 x 2
texels of 16 bytes, 4 x 2 of 8 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from smartmem.device import Device
from smartmem.errors import InputError
from smartmem.runtime.opencl.profiles import profile


@dataclass(frozen=True)
class Cache:
    """A set-associative cache with least-recently-used replacement; `size` and `line` in bytes."""

    size: int
    line: int
    ways: int

    @property
    def sets(self) -> int:
        return max(1, self.size // (self.line * self.ways))


@dataclass(frozen=True)
class CounterDevice:
    """A device as the cache model sees it.

    Attributes:
        device: limits and costs, for the compiler.
        texture: the first cache for textures, one per compute unit.
        buffer: the first cache for buffers, one per compute unit; None: buffers are read through `shared` alone.
        shared: the cache behind them, one for the device.
        resident: work-groups that a compute unit runs at once.
    """

    device: Device
    texture: Cache
    buffer: Cache | None
    shared: Cache
    resident: int = 2


def _adreno(name: str, units: int, wave: int, shared: int, image: int, group: int) -> CounterDevice:
    costs = profile(name)
    device = Device(
        name=name, vendor="modelled", compute_units=units, sub_group=wave, fp16=True, image_width=image,
        image_height=image, max_work_group=group, local_memory=32 << 10, costs=costs,
    )  # fmt: skip
    first = Cache(costs.texture_cache, costs.line, 8)
    return CounterDevice(device, first, None, Cache(shared, costs.line, 16))


def _mali(name: str, units: int, shared: int) -> CounterDevice:
    costs = profile(name)
    device = Device(
        name=name, vendor="modelled", compute_units=units, sub_group=16, fp16=True, image_width=8192,
        image_height=8192, max_work_group=512, local_memory=32 << 10, has_local=False, costs=costs,
    )  # fmt: skip
    first = Cache(costs.texture_cache, costs.line, 4)
    return CounterDevice(device, first, first, Cache(shared, costs.line, 16))


def counter_device(name: str) -> CounterDevice:
    """The device called `name`, as in `COUNTER_DEVICES`."""
    if name == "adreno-540":
        return _adreno("Adreno 540", 4, 64, 128 << 10, 16384, 1024)
    if name == "adreno-740":
        return _adreno("Adreno 740", 6, 64, 1 << 20, 16384, 1024)
    if name == "mali-g57":
        return _mali("Mali-G57", 4, 512 << 10)
    raise InputError(f"no profile {name!r} for counters; choose one of {', '.join(COUNTER_DEVICES)}")


COUNTER_DEVICES = ("adreno-540", "adreno-740", "mali-g57")
