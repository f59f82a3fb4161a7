"""The last word on texture or buffer: the placements of a model, measured on the device.

A cost model places each tensor (`passes.place`), but what textures gain depends on how a whole model shares the caches.
Level `full` with ``memory="auto"`` on a GPU therefore times the model as the cost model places it, all in buffers, and
all in textures, and keeps the fastest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from smartmem.device import Device, Memory
from smartmem.runtime.arrays import dtype_of
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram

PLACEMENTS: Sequence[Memory] = ("auto", "buffer", "texture")
WARM_UP, ROUNDS, REPEATS = 3, 5, 5
SECONDS = 0.5  # of runs at least: what else a device has to do may meet all of the 25 ms that small networks take


def fastest(
    build: Callable[[Memory], DeviceProgram],
    device: Device,
    cache: Cache,
    progress: Callable[[str, int, int], None] | None,
) -> DeviceModel:
    """The fastest of the placements; its report says what each took, in seconds (``placements``), if they differ."""
    times: dict[str, float] = {}
    seen: list[dict[str, str]] = []
    best: DeviceModel | None = None
    chosen: Memory = "auto"
    with ExitStack() as opened:  # closes them, should one fail
        for memory in PLACEMENTS:
            program = build(memory)
            if program.sources in seen:  # the same kernels: nothing to choose
                continue
            seen.append(program.sources)
            nothing = {spec.name: np.zeros(spec.shape or (), dtype_of(spec.dtype)) for spec in program.inputs}
            model = DeviceModel(program, device, cache=cache, progress=progress)
            opened.callback(model.close)
            model.bench(WARM_UP, nothing)
            if best is None:
                best, chosen = model, memory
                continue
            times[chosen], times[memory] = in_turns((best, model))
            if times[memory] < times[chosen]:
                best, chosen, model = model, memory, best
            model.close()
        opened.pop_all()
    assert best is not None
    best.program.report["placements"] = times
    return best


def in_turns(models: Sequence[DeviceModel]) -> list[float]:
    """Seconds of a run of each model on the inputs of its last call: the least of the medians of rounds.

    They take turns. What else a device has to do meets all of them then, where one after the other it would meet one.
    """
    rounds: list[list[float]] = []
    spent = 0.0
    while len(rounds) < ROUNDS or spent < SECONDS:
        runs = [model.bench(REPEATS) for model in models]
        rounds.append([statistics.median(seconds) for seconds in runs])
        spent += sum(map(sum, runs))
    return [min(times) for times in zip(*rounds, strict=True)]
