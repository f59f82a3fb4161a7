"""The command `smartmem counters`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from smartmem.errors import InputError
from smartmem.levels import LEVELS
from smartmem.options import OnnxFile, Shape


def counters(
    model: OnnxFile,
    profile: Annotated[str, typer.Option(help="Whose caches: adreno-540, adreno-740 or mali-g57.")] = "adreno-740",
    levels: Annotated[str, typer.Option(help="Levels to count.")] = ",".join(LEVELS),
    shape: Shape = None,
    memory: Annotated[str, typer.Option(help="auto, or all in buffer or texture memory.")] = "auto",
    precision: Annotated[str, typer.Option(help="How values lie in memory, fp32 or fp16.")] = "fp32",
    layout: Annotated[str, typer.Option(help="How layouts are assigned, greedy or exact.")] = "greedy",
    top: Annotated[int, typer.Option(min=0, help="Kernels of the last level to show.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with every kernel.")] = False,
) -> None:
    """Model memory accesses and cache misses of the OpenCL kernels on a phone's GPU. Nothing is measured.

    The kernels' own access functions are replayed through a model of the device's caches; no device is needed.
    """
    from smartmem import api
    from smartmem.counters.network import count_network
    from smartmem.counters.profiles import counter_device
    from smartmem.counters.show import as_object, renderable
    from smartmem.inputs import parse_shapes
    from smartmem.report.progress import progress_bar
    from smartmem.report.tables import console

    if model.suffix == ".smem":
        raise InputError(f"{model} is compiled already; give the .onnx file")
    wanted = [level for level in levels.split(",") if level]
    for level in wanted:
        if level not in LEVELS:
            raise InputError(f"no level {level!r}; choose from {', '.join(LEVELS)}")
    if not wanted:
        raise InputError(f"--levels is empty; choose from {', '.join(LEVELS)}")
    options = api.device_options(memory, precision, layout)
    device = counter_device(profile)
    shapes = parse_shapes(shape or [])
    with progress_bar() as report:
        found = [count_network(model, level, device, options, shapes, report) for level in wanted]
    if as_json:
        print(json.dumps(as_object(device, memory, precision, found)))
    else:
        title = f"{model.name} on {device.device.name}, {precision}, memory {memory}"
        console().print(renderable(title, device, found, top))
