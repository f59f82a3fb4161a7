"""What the compiler needs to know of an OpenCL device: limits, abilities, and what its memories cost.

Plain data: `runtime.opencl.devices` reads it off a driver, a test may write it down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Memory = Literal["auto", "buffer", "texture"]
Precision = Literal["fp32", "fp16", "bf16x3", "bf16"]
LayoutMethod = Literal["greedy", "exact"]

PARTS = {"fp32": 0, "bf16x3": 2, "bf16": 1}
"""Precisions of the CPU: bfloat16 that a float becomes in a product on matrix units; 0: it stays a float."""


@dataclass(frozen=True)
class MemoryCosts:
    """What one access costs, relative to a 16-byte coalesced read of a buffer (1.0).

    Attributes:
        buffer_read, texture_read: reads of 4 adjacent values that neighbouring work-items make next to each other.
        buffer_gather, texture_gather: the same reads when neighbours are far apart along one image direction.
        buffer_write, texture_write: stores of 4 adjacent values.
        texture_cache: bytes of the texture cache that one compute unit sees.
        line: bytes of a cache line.
        source: "profile NAME" or "measured".
    """

    buffer_read: float = 1.0
    texture_read: float = 1.0
    buffer_gather: float = 4.0
    texture_gather: float = 2.0
    buffer_write: float = 1.0
    texture_write: float = 1.0
    texture_cache: int = 16 << 10
    line: int = 64
    source: str = "profile default"


@dataclass(frozen=True)
class Device:
    """An OpenCL device.

    Attributes:
        index: its number in `smartmem devices`, over all platforms.
        name, vendor, platform, driver, version: as the driver says.
        kind: "gpu", "cpu" or "accelerator".
        images: whether it has image2d objects with float RGBA texels; half_images: also with half ones.
        image_width, image_height: largest image, in texels.
        max_allocation, memory: bytes.
        local_memory: bytes of local memory per work-group; has_local: it is memory of its own, not a part of global.
        max_work_group: work-items; compute_units: their number.
        sub_group: work-items that run in lockstep, 1 if unknown.
        fp16: half arithmetic (cl_khr_fp16); fp64: double arithmetic.
        exact_division: the compiler can be told to round divisions and square roots correctly.
        image_from_buffer: cl_khr_image2d_from_buffer; pitch_alignment: in texels, 0 if unknown.
        base_alignment: bytes at which sub-buffers may start.
        ptx: the compiler takes inline PTX (NVIDIA); matrix_units: its mma instructions for halves and TF32;
            warpgroups: also those that four warps share (wgmma), which only CUDA's driver compiles.
        dynamic_local: bytes of local memory that a launch may give a work-group; 0: as `local_memory`.
        bus: an NVIDIA GPU's address on the PCI bus ("0000:3b:00.0"), by which CUDA's driver finds it; "" for devices
            that run no CUDA graphs.
        costs: what accesses cost.
    """

    index: int = 0
    name: str = "generic"
    vendor: str = ""
    platform: str = ""
    driver: str = ""
    version: str = "OpenCL 1.2"
    kind: Literal["gpu", "cpu", "accelerator"] = "gpu"
    images: bool = True
    half_images: bool = True
    image_width: int = 8192
    image_height: int = 8192
    max_allocation: int = 1 << 28
    memory: int = 1 << 30
    local_memory: int = 32 << 10
    has_local: bool = True
    max_work_group: int = 256
    compute_units: int = 4
    sub_group: int = 1
    fp16: bool = False
    fp64: bool = False
    exact_division: bool = False
    image_from_buffer: bool = False
    pitch_alignment: int = 0
    base_alignment: int = 128
    ptx: bool = False
    matrix_units: bool = False
    warpgroups: bool = False
    dynamic_local: int = 0
    bus: str = ""
    costs: MemoryCosts = field(default_factory=MemoryCosts)

    @property
    def graphs(self) -> bool:
        """Whether stretches of kernels are launched as one CUDA graph, so that a kernel more costs little."""
        return bool(self.bus)

    @property
    def group_memory(self) -> int:
        """Bytes of local memory that a work-group can have at most."""
        return self.dynamic_local or self.local_memory

    def has_images(self, half: bool) -> bool:
        """Whether it has images of float texels, or of half ones."""
        return self.images and (self.half_images or not half)


@dataclass(frozen=True)
class DeviceOptions:
    """How to compile for a device.

    Attributes:
        memory: "texture" or "buffer" forces one kind wherever it is possible.
        precision: of a device, "fp32" or "fp16": the type of activations and weights in memory. Of the CPU, one of
            `PARTS`: what products on matrix units take their operands for. Accumulation is always float.
        layout: "greedy" is the paper's heuristic, "exact" solves the assignment.
        check: kernels assert that every coordinate is inside its buffer or image.
    """

    memory: Memory = "auto"
    precision: Precision = "fp32"
    layout: LayoutMethod = "greedy"
    check: bool = False
