"""Layouts on a device change nothing but time: random graphs in every kind of memory, greedy and exact, against ORT.

The layouts are those for another device, whose memories favour textures or buffers, so that all kinds are met.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from tests.support.batch import joined
from tests.support.random_graphs import Array, Builder, random_graph, unused

from smartmem.device import Device, DeviceOptions
from smartmem.frontend.load import load_graph
from smartmem.passes.assemble_device import assemble_device
from smartmem.passes.module import Module
from smartmem.passes.pipeline import run_passes
from smartmem.passes.place import place
from smartmem.runtime.opencl.profiles import profile
from smartmem.runtime.opencl.program import DeviceProgram
from smartmem.schedule.gpu.choose import backend_of
from smartmem.schedule.gpu.code import DeviceTarget


def two_directions() -> Builder:
    """A tensor that one product reduces along its columns, another along its rows, and softmax in between."""
    g = Builder(0)
    x = g.input(2, 24, 16)
    h = g.op("MatMul", [x, g.weight(16, 32)], (2, 24, 32))
    g.op("MatMul", [h, g.weight(32, 12)], (2, 24, 12))
    turned = g.op("Transpose", [h], (2, 32, 24), perm=[0, 2, 1])
    g.op("MatMul", [turned, g.weight(24, 20)], (2, 32, 20))
    g.op("Softmax", [turned], (2, 32, 24), axis=-1)
    return g


@dataclass
class Case:
    """A model, its inputs, and what ONNX Runtime makes of them."""

    model: onnx.ModelProto
    feeds: dict[str, Array]
    expected: list[Array]


def case(builder: Builder) -> Case:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, feeds = builder.model(unused(builder)), builder.feeds()
    return Case(model, feeds, onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds))


def compiled(cases: list[Case], device: Device, options: DeviceOptions) -> tuple[DeviceProgram, Module]:
    """All models as one program."""
    target = DeviceTarget(device)
    module = run_passes(joined([load_graph(each.model) for each in cases]), "full", backend_of(target))
    storages = place(module, device, options, True)
    return assemble_device(module, storages, target, "full", None), module


@pytest.mark.parametrize(
    "memory, layout, costs",
    [("texture", "greedy", "Adreno 740"), ("auto", "exact", "Mali-G57"), ("buffer", "exact", "NVIDIA")],
)
def test_the_answers_stay_the_same(device, make, memory: str, layout: str, costs: str) -> None:
    if layout == "exact":
        pytest.importorskip("ortools")
    if not device.images and memory != "buffer":
        pytest.skip(f"{device.name} has no images")
    cases = [case(two_directions()), *(case(random_graph(seed)) for seed in range(40, 45))]
    options = DeviceOptions(memory=memory, layout=layout)  # type: ignore[arg-type]
    program, module = compiled(cases, replace(device, costs=profile(costs)), options)
    kinds = {str(entry["memory"]).split()[0] for entry in module.layouts}
    assert kinds == {"texture": {"texture", "buffer"}, "auto": {"texture", "buffer"}, "buffer": {"buffer"}}[memory]
    feeds = {f"{number}/{name}": value for number, each in enumerate(cases) for name, value in each.feeds.items()}
    results = iter(make(program).run(feeds))
    wrong = []
    for number, each in enumerate(cases):
        for position, want in enumerate(each.expected):
            got = next(results)
            error = np.linalg.norm((got - want).ravel()) / (np.linalg.norm(want.ravel()) + 1e-20)
            if not error < 1e-4:
                wrong.append(f"graph {number}, output {position}: relative error {error:.1e}")
    assert not wrong, "\n".join(wrong)
