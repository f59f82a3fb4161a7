"""Many small graphs as one device program: one build of the kernels instead of hundreds.

The counterpart of `support.batch` for OpenCL devices: ``run_on_device(graphs, feeds, ...)`` gives the outputs of each
graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tests.support.batch import joined, split

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions
from smartmem.graph.ir import Graph
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram

Array = np.ndarray[Any, Any]


def build(
    graphs: Sequence[Graph], device: Device, level: str = "full", options: DeviceOptions | None = None
) -> DeviceProgram:
    """All graphs as one program."""
    return build_device_program(joined(graphs), level=level, device=device, options=options or DeviceOptions())


def run_on_device(
    graphs: Sequence[Graph],
    feeds: Sequence[Mapping[str, Array]],
    device: Device,
    cache: Cache,
    level: str = "full",
    options: DeviceOptions | None = None,
) -> list[list[Array]]:
    """The outputs of each graph on its inputs."""
    inputs, outputs = [[v.name for v in g.inputs] for g in graphs], [len(g.outputs) for g in graphs]
    model = DeviceModel(build(graphs, device, level, options), device, cache=cache)
    try:
        return split(model, inputs, outputs, feeds)
    finally:
        model.close()
