"""Tables about OpenCL devices: their limits, and the times of kernels on one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group

from smartmem.device import Device
from smartmem.report.tables import size, table
from smartmem.runtime.opencl.model import DeviceModel


def as_table(devices: Sequence[Device]) -> Group:
    """A table with a column per device and a row per limit."""
    columns = ["", *(f"opencl:{device.index}" for device in devices)]
    facts = [_facts(device) for device in devices]
    rows = [(name, *(each[name] for each in facts)) for name in facts[0]]
    return table("", columns, rows)


def as_objects(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """What `--json` prints."""
    return [asdict(device) for device in devices]


def kernel_times(model: DeviceModel, inputs: dict[str, Any], runs: int, top: int, repeats: int) -> Group:
    """The median time of each kernel by the device's clock, longest first; host steps by the host's.

    Args:
        repeats: runs of each kernel in a row; see `Executor.timed`.
    """
    model.repeats = repeats
    timed = [model.run_timed(inputs)[1] for _ in range(runs)]
    steps = [(statistics.median(run[at].seconds for run in timed) * 1e3, step) for at, step in enumerate(timed[0])]
    total = sum(spent for spent, _ in steps)
    rows = [
        (step.symbol, f"{spent:.4f}", f"{100 * spent / (total or 1.0):.1f}", step.label + " (host)" * step.host)
        for spent, step in sorted(steps, key=lambda pair: -pair[0])[:top]
    ]
    title = f"{model.where}: {len(steps)} kernels, {total:.3f} ms in all, medians of {runs} runs"
    title += f", each kernel {repeats} times in a row" if repeats > 1 else ""
    return table(title, ("kernel", ">ms", ">%", "computes"), rows)


def _units(device: Device) -> str:
    if not device.matrix_units:
        return ""
    return ", with matrix units" + (" that groups of four warps drive" if device.warpgroups else "")


def _facts(device: Device) -> dict[str, str]:
    costs = device.costs
    return {
        "name": device.name,
        "kind": device.kind,
        "platform": f"{device.platform}, driver {device.driver}",
        "version": device.version,
        "memory": size(device.memory),
        "largest allocation": size(device.max_allocation),
        "local memory": f"{size(device.local_memory)}{'' if device.has_local else ', a part of global memory'}",
        "work-group": f"up to {device.max_work_group} work-items",
        "sub-group": str(device.sub_group) if device.sub_group > 1 else "unknown",
        "compute units": str(device.compute_units),
        "images": f"{device.image_width} x {device.image_height} texels" if device.images else "none: buffers only",
        "half images": _yes(device.half_images),
        "half arithmetic (cl_khr_fp16)": _yes(device.fp16),
        "double arithmetic": _yes(device.fp64),
        "correctly rounded division": _yes(device.exact_division),
        "image2d from buffer": _yes(device.image_from_buffer),
        "pitch alignment": f"{device.pitch_alignment} texels" if device.pitch_alignment else "unknown",
        "sub-buffers start at": f"multiples of {device.base_alignment} bytes",
        "inline PTX": _yes(device.ptx) + _units(device),
        "costs of accesses": costs.source,
        "  coalesced read, buffer / texture": f"{costs.buffer_read:g} / {costs.texture_read:g}",
        "  strided read, buffer / texture": f"{costs.buffer_gather:g} / {costs.texture_gather:g}",
        "  write, buffer / texture": f"{costs.buffer_write:g} / {costs.texture_write:g}",
        "  texture cache, line": f"{size(costs.texture_cache)}, {costs.line} bytes",
    }


def _yes(value: bool) -> str:
    return "yes" if value else "no"
