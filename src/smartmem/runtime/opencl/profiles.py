"""What accesses cost on devices whose memories are known; `probe` measures the others.

In: a `Device` as the driver describes it. Out: `MemoryCosts`, relative to a coalesced 16-byte read of a buffer.

Where the numbers come from:

- Adreno: the ArchProbe report of an Adreno 640 (github.com/microsoft/ArchProbe, examples/adreno640): buffers 96 GB/s,
  images 195 GB/s from their caches, 30 and 68 GB/s from memory; a first image cache of 1024 texels of 16 bytes; lines
  of 64 bytes. Gathers are derived: a 16-byte value uses a quarter of a line of a buffer; an image is tiled, so a line
  of it holds 2 x 2 texels, and half of it is used. Adreno 540 and 740 are older and younger devices of the same
  design; the 740's first cache is assumed to have twice the size.
- Mali-G57: no measurement was found. The texture unit and the load/store unit are taken to be equally fast, each with a
  cache of 16 KiB (Mali-G52's load/store cache has that) and lines of 64 bytes; gathers are derived as for Adreno.
- NVIDIA: `probe` on an H200 (OpenCL 3.0, driver 580.159). Its write to images, 4.9, is of a square in memory; in the
  L2 cache, where most activations are, 17 us were measured against 9 us for a buffer. What an image write costs depends
  on the work-group: 16 x 16 items that write one texel each are as fast as a buffer, 256 x 1 take four times as long.
  The first cache is half of Hopper's 256 KiB of L1 and local memory.
- PoCL runs on CPUs, where an image is read by a function call: `probe` on PoCL 3.1, Intel Xeon with AVX-512.
"""

from __future__ import annotations

import re

from smartmem.device import Device, MemoryCosts

_PROFILES: dict[str, MemoryCosts] = {
    "Adreno 540": MemoryCosts(1.0, 0.5, 4.0, 1.0, 1.0, 1.0, 16 << 10, 64, "profile Adreno 540"),
    "Adreno 740": MemoryCosts(1.0, 0.5, 4.0, 1.0, 1.0, 1.0, 32 << 10, 64, "profile Adreno 740"),
    "Mali-G57": MemoryCosts(1.0, 1.0, 4.0, 2.0, 1.0, 1.2, 16 << 10, 64, "profile Mali-G57"),
    "NVIDIA": MemoryCosts(1.0, 1.0, 1.6, 1.05, 0.9, 1.9, 128 << 10, 128, "profile NVIDIA"),
    "PoCL": MemoryCosts(1.0, 4.0, 1.5, 11.0, 4.5, 4.5, 32 << 10, 64, "profile PoCL"),
}


def profile(name: str) -> MemoryCosts:
    """The costs called `name`: "Adreno 540", "Adreno 740", "Mali-G57", "NVIDIA" or "PoCL"."""
    return _PROFILES[name]


def known(device: Device) -> MemoryCosts | None:
    """The costs of a device that there is a profile for."""
    text = f"{device.name} {device.vendor} {device.platform} {device.version}"
    if "Portable Computing Language" in text or "PoCL" in text:
        return _PROFILES["PoCL"]
    if adreno := re.search(r"Adreno\D*(\d)\d\d", text):
        return _PROFILES["Adreno 740" if int(adreno.group(1)) >= 7 else "Adreno 540"]
    if re.search(r"Mali-G(5|7)7\b", text):
        return _PROFILES["Mali-G57"]
    if "NVIDIA" in text:
        return _PROFILES["NVIDIA"]
    return None


def costs_of(device: Device) -> MemoryCosts:
    """The costs of `device`'s memories: from a profile, else measured (once, see `probe`)."""
    from smartmem.runtime.opencl.probe import measured

    return known(device) or measured(device)
