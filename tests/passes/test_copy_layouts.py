"""Redundant copies: made by their producer where they pay, never where they do not, and the numbers stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.device_batch import run_on_device
from tests.support.random_graphs import Builder, random_graph, unused
from tests.test_differential import relative_error

from smartmem.compiler import device_module
from smartmem.device import Device, DeviceOptions, MemoryCosts
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import DeviceStorage
from smartmem.passes.access_cost import access_cost
from smartmem.passes.module import Module
from smartmem.passes.walks import groups_of
from smartmem.report.explain import render
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.profiles import profile

FAR = MemoryCosts(buffer_gather=64.0, texture_gather=64.0)  # where a read out of order costs most


ORDERS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))


def read_along_every_axis(g: Builder, orders: Sequence[tuple[int, ...]] = ORDERS) -> list[str]:
    """h[64, 64, 64], reduced by batched products along the last axis of each order; its first one is the batch, which
    may not be contiguous."""
    h = g.op("Sigmoid", [g.op("MatMul", [g.input(64, 64, 12), g.weight(12, 64)], (64, 64, 64))], (64, 64, 64))
    results = []
    for order in orders:
        turned = g.op("Transpose", [h], perm=list(order))
        results.append(g.op("MatMul", [turned, g.weight(64, 64, 40)], (64, 64, 40)))
    return results


def compiled(
    builder: Builder, outputs: list[str], device: Device, **options: Any
) -> tuple[Module, dict[str, DeviceStorage]]:
    module, storages, _, _ = device_module(builder.model(outputs), None, "full", device, DeviceOptions(**options))
    return module, storages


def predicted(module: Module, storages: dict[str, DeviceStorage], device: Device) -> float:
    """The cost of all accesses, from the kernels and storages as they are."""
    total = 0.0
    for kernel in module.kernels:
        for group in groups_of(kernel, module.constants, device) if isinstance(kernel, Kernel) else ():
            total += min(
                sum(access_cost(a, group, walk, storages[a.tensor], device.costs) for a in group.accesses)
                for walk in group.walks
            )
    return total


def copied(module: Module) -> dict[str, tuple[str, ...]]:
    return {k.tensor: k.copies for k in module.kernels if isinstance(k, Kernel) and k.copies}


def test_a_third_reduction_dimension_gets_a_copy() -> None:
    g = Builder(0)
    module, storages = compiled(g, read_along_every_axis(g), Device(costs=FAR), memory="buffer")
    ((tensor, copies),) = copied(module).items()
    readers = {
        name: [k.tensor for k in module.kernels if isinstance(k, Kernel) and name in k.inputs()]
        for name in (tensor, *copies)
    }
    assert sum(map(len, readers.values())) == 3
    assert all(readers.values())
    layouts = {storages[name].address for name in readers}
    assert len(layouts) == len(readers)
    assert module.shape(copies[0]) == module.shape(tensor)
    (told,) = [entry for entry in module.layouts if entry["tensor"] == copies[0]]
    assert told["reason"].startswith(f"copy of {tensor} for {', '.join(readers[copies[0]])}, which cost")


def test_explain_says_what_copies_save() -> None:
    from smartmem.compiler import build_device_program

    g = Builder(0)
    model = g.model(read_along_every_axis(g))
    options = DeviceOptions("buffer")
    report = build_device_program(model, level="full", device=Device(costs=FAR), options=options).report
    assert "stored again in further layouts, which saves" in render(report)
    assert report["totals"]["copies"] == 0  # none is a pass over memory


def test_no_copy_where_one_layout_serves_all_or_none_is_chosen() -> None:
    g = Builder(0)
    one = read_along_every_axis(g, [(0, 1, 2), (1, 0, 2), (0, 1, 2)])
    assert not copied(compiled(g, one, Device(costs=FAR))[0])
    g = Builder(0)
    model = g.model(read_along_every_axis(g))
    assert not copied(device_module(model, None, "eliminate", Device(costs=FAR), DeviceOptions())[0])


@pytest.mark.parametrize("costs", [FAR, profile("Mali-G57"), profile("Adreno 740")], ids=["far", "mali", "adreno"])
def test_the_predicted_cost_never_rises(costs: MemoryCosts, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(costs=costs)
    builders = []
    for seed in range(10):
        g = random_graph(seed)
        builders.append((g, unused(g)))
    g = Builder(0)
    builders.append((g, read_along_every_axis(g)))
    for builder, outputs in builders:
        with_copies = compiled(builder, outputs, device)
        with monkeypatch.context() as patch:
            patch.setattr("smartmem.passes.copy_layouts._best", lambda *_: None)
            without = compiled(builder, outputs, device)
        assert not copied(without[0])
        cost = predicted(*with_copies, device)
        assert cost <= predicted(*without, device) * (1 + 1e-9)
        told = with_copies[0].assignment
        assert cost == pytest.approx(told["cost"] - told["copies"]["gain"], rel=1e-6)


@pytest.mark.parametrize(
    "memory, precision", [("buffer", "fp32"), ("texture", "fp32"), ("auto", "fp16")]
)  # fmt: skip
def test_numbers_stay_the_same(device: Device, tmp_path: Path, memory: Any, precision: Any) -> None:
    import onnxruntime

    far = replace(device, costs=replace(FAR, texture_read=0.9))
    g = Builder(0)
    model, feeds = g.model(read_along_every_axis(g)), g.feeds()
    options = DeviceOptions(memory, precision, check=True)
    if memory != "texture":
        assert copied(device_module(model, None, "full", far, options)[0])
    (results,) = run_on_device([load_graph(model)], [feeds], far, Cache(tmp_path), "full", options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for got, want in zip(results, session.run(None, feeds), strict=True):
        assert relative_error(got, want) < (1e-5 if precision == "fp32" else 2e-2)
