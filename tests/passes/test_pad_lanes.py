"""Lanes of zeros: which tensors get them, that they are zeros, and that padded definitions mean what they meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.random_graphs import Array, Builder, random_graph, unused

from smartmem.device import Device, DeviceOptions
from smartmem.frontend.load import load_graph
from smartmem.index.map import evaluate
from smartmem.kernel.evaluate import evaluate_stage
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import whole_lanes
from smartmem.passes.module import Module
from smartmem.passes.pad_lanes import pad_lanes
from smartmem.passes.pipeline import run_passes
from smartmem.passes.place import place, place_padded
from smartmem.runtime.opencl.profiles import profile
from smartmem.schedule.backend import Backend
from smartmem.schedule.gpu.choose import backend_of
from smartmem.schedule.gpu.code import DeviceTarget

ADRENO = Device(costs=profile("Adreno 740"))


def lowered(builder: Builder) -> tuple[Module, Backend]:
    backend = backend_of(DeviceTarget(ADRENO))
    return run_passes(load_graph(builder.model(unused(builder))), "full", backend), backend


def run(module: Module, feeds: dict[str, Array]) -> dict[str, Array]:
    """All tensors of a module without host steps, by the numpy oracle of each stage."""
    known: dict[str, Array] = {**module.constants, **feeds}
    for kernel in module.kernels:
        assert isinstance(kernel, Kernel)
        inside = dict(known)
        for stage in kernel.stages:
            inside[stage.name] = evaluate_stage(stage, inside)
        stored = np.full(kernel.shape, np.nan, kernel.output.dtype)
        axes = np.ogrid[tuple(slice(n) for n in kernel.output.shape)]
        stored[tuple(np.broadcast_to(evaluate(c, axes), kernel.output.shape) for c in kernel.store_coords())] = inside[
            kernel.output.name
        ]
        known[kernel.tensor] = stored
    return known


def of_width(channels: int) -> Builder:
    g = Builder(1)
    h = g.op("Sigmoid", [g.op("MatMul", [g.input(5, 8), g.weight(8, channels)], (5, channels))], (5, channels))
    g.op("MatMul", [h, g.weight(channels, 4)], (5, 4))
    g.op("ReduceMax", [h, g.ints(1)], (5, 1))
    return g


@pytest.mark.parametrize("channels", [3, 5, 6, 7, 9, 30])
def test_padded_lanes_are_zero_and_the_rest_is_the_same(channels: int) -> None:
    g = of_width(channels)
    module, backend = lowered(g)
    padded = pad_lanes(module, backend)
    assert padded is not None
    (name,) = padded.padded
    assert padded.shape(name) == (5, whole_lanes(channels))
    feeds = g.feeds()
    before, after = run(module, feeds), run(padded, feeds)
    assert (after[name][:, channels:] == 0).all()
    np.testing.assert_array_equal(after[name][:, :channels], before[name])
    for output in module.outputs:
        np.testing.assert_allclose(after[output.name], before[output.name], rtol=1e-6)


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_what_texels_divide_or_hardly_fills_one_stays(channels: int) -> None:
    module, backend = lowered(of_width(channels))
    assert pad_lanes(module, backend) is None


def test_inputs_outputs_and_pieces_of_others_stay() -> None:
    g = Builder(2)
    pieces = [g.op("Relu", [g.input(4, 3)], (4, 3)), g.op("Tanh", [g.input(4, 3)], (4, 3))]
    g.op("Exp", [g.op("Concat", pieces, (4, 6), axis=1)], (4, 6))
    module, backend = lowered(g)
    assert pad_lanes(module, backend) is None


@pytest.mark.parametrize("reader", ["sum", "max", "product", "constant"])
def test_readers_of_the_first_channels_alone(reader: str) -> None:
    """A reduction over 6 of 10 channels must not run to 8: what lies there are values."""
    g = Builder(1)
    h = g.op("Sigmoid", [g.op("MatMul", [g.input(5, 8), g.weight(8, 10)], (5, 10))], (5, 10))
    g.op("MatMul", [h, g.weight(10, 4)], (5, 4))
    s = g.op("Slice", [h, g.ints(0), g.ints(6), g.ints(1)], (5, 6))
    if reader == "product":
        g.op("MatMul", [s, g.op("Transpose", [s], (6, 5), perm=[1, 0])], (5, 5))
    elif reader == "constant":
        first = g.op("Slice", [g.weight(10, 4), g.ints(0), g.ints(6), g.ints(0)], (6, 4))
        g.op("MatMul", [g.op("Relu", [s], (5, 6)), first], (5, 4))
    else:
        g.op("ReduceSum" if reader == "sum" else "ReduceMax", [s, g.ints(1)], (5, 1))
    module, backend = lowered(g)
    padded = pad_lanes(module, backend)
    assert padded is not None and padded.padded
    feeds = g.feeds()
    before, after = run(module, feeds), run(padded, feeds)
    for output in module.outputs:
        np.testing.assert_allclose(after[output.name], before[output.name], rtol=1e-6)


def test_random_graphs_mean_the_same() -> None:
    padded = 0
    for seed in range(80):
        g = random_graph(seed)
        module, backend = lowered(g)
        if module.windows or not all(isinstance(step, Kernel) for step in module.kernels):
            continue
        other = pad_lanes(module, backend)
        if other is None:
            continue
        padded += 1
        feeds = g.feeds()
        with np.errstate(all="ignore"):
            before, after = run(module, feeds), run(other, feeds)
        for output in module.outputs:
            np.testing.assert_allclose(after[output.name], before[output.name], rtol=1e-5, atol=1e-6)
        for name in other.padded:
            inside = tuple(slice(n) for n in module.shape(name))
            rest = np.ones(other.shape(name), bool)
            rest[inside] = False
            assert (after[name][rest] == 0).all()
    assert padded >= 10


@pytest.mark.parametrize("memory", ["auto", "texture"])
def test_the_predicted_cost_never_rises_but_where_textures_are_forced(memory: Any) -> None:
    for seed in range(12):
        module, backend = lowered(random_graph(seed))
        plain = place(module, ADRENO, DeviceOptions(memory), True)
        cost = module.assignment["cost"]
        chosen, storages = place_padded(module, ADRENO, DeviceOptions(memory), True, backend)
        if memory == "auto":
            assert chosen.assignment["cost"] <= cost
        else:
            assert sum(s.image is not None for s in storages.values()) >= sum(
                s.image is not None for s in plain.values()
            )
