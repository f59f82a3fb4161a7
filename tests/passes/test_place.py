"""Layouts and memories on devices: what is chosen, why, and that the model's promises hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.support.random_graphs import Builder, random_graph, unused

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions
from smartmem.errors import InputError
from smartmem.report.explain import render
from smartmem.runtime.opencl.profiles import profile

ADRENO = Device(costs=profile("Adreno 740"))
NVIDIA = Device(costs=profile("NVIDIA"))


def report(builder: Builder, device: Device, level: str = "full", **options: Any) -> dict[str, Any]:
    model = builder.model(unused(builder))
    return build_device_program(model, level=level, device=device, options=DeviceOptions(**options)).report


def entry(builder: Builder, device: Device, level: str = "full", **options: Any) -> dict[str, Any]:
    """The entry of the one activation."""
    (found,) = report(builder, device, level, **options)["layouts"]
    return found


def reduced(channels: int = 32, twice: bool = False) -> Builder:
    """h[1, 64, channels], reduced along its channels, and with `twice` along its tokens too."""
    g = Builder(0)
    h = g.op("MatMul", [g.input(1, 64, 48), g.weight(48, channels)], (1, 64, channels))
    g.op("MatMul", [h, g.weight(channels, 16)], (1, 64, 16))
    if twice:
        turned = g.op("Transpose", [h], (1, channels, 64), perm=[0, 2, 1])
        g.op("MatMul", [turned, g.weight(64, 16)], (1, channels, 16))
    return g


def test_the_reduction_dimension_lies_in_the_lane() -> None:
    found = entry(reduced(), ADRENO)
    assert found["picture"] == {"x": "k/4:8", "y": "j:64", "lane": "k%4:4"}
    assert found["memory"] == "texture 8 x 64"
    assert found["reason"].startswith("its kernels cost")
    assert [request["axis"] for request in found["asked_by"]] == ["k"]


def test_two_reduction_dimensions_are_two_directions() -> None:
    """One in the lane, the other along an axis of the image; in a buffer it comes right above the lane."""
    found = entry(reduced(twice=True), NVIDIA, memory="texture")
    assert found["picture"] == {"x": "j:64", "y": "k/4:8", "lane": "k%4:4"}
    found = entry(reduced(twice=True), ADRENO, memory="buffer")
    assert found["picture"] == {"x": "k/4:8 j:64", "y": "", "lane": "k%4:4"}
    assert [request["axis"] for request in found["asked_by"]] == ["k", "j"]
    assert all(len(request["kernels"]) == 1 for request in found["asked_by"])


def test_below_layout_orders_stay_row_major() -> None:
    found = entry(reduced(twice=True), NVIDIA, "eliminate", memory="buffer")
    assert found["picture"]["x"].startswith("j:64")
    assert found["asked_by"] == []


@pytest.mark.parametrize(
    "builder, device, options, reason",
    [
        (reduced(), replace(ADRENO, images=False, name="thing"), {}, "thing has no images"),
        (reduced(), replace(ADRENO, half_images=False), {"precision": "fp16"}, "generic has no images of halves"),
        (reduced(), ADRENO, {"memory": "buffer"}, "--memory buffer"),
        (reduced(channels=2), ADRENO, {}, "its innermost axis has 2 values, no multiple of 4"),
        (reduced(), replace(ADRENO, image_width=4, image_height=7), {}, "512 texels are no image of generic (4 x 7)"),
        (reduced(), replace(ADRENO, max_allocation=1000), {}, "8192 bytes are more than generic allocates (1000)"),
        (reduced(), Device(costs=profile("PoCL")), {}, "from a texture"),
    ],
)
def test_buffers_and_why(builder: Builder, device: Device, options: dict[str, Any], reason: str) -> None:
    found = entry(builder, device, **options)
    assert found["memory"] == "buffer"
    assert reason in found["reason"]


def test_images_that_are_too_wide_are_cut_elsewhere() -> None:
    found = entry(reduced(), replace(ADRENO, image_width=16, image_height=32))
    assert found["memory"] == "texture 16 x 32"


def test_halves_take_the_same_places() -> None:
    assert entry(reduced(), ADRENO, precision="fp16")["memory"] == "texture 8 x 64"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 400), st.sampled_from(["Adreno 540", "Mali-G57", "NVIDIA", "PoCL"]))
@example(305, "Mali-G57")  # a graph with a copy
def test_exact_costs_at_most_greedy_and_greedy_at_most_either_memory(seed: int, costs: str) -> None:
    try:
        found = report(random_graph(seed), Device(costs=profile(costs)), layout="exact")["assignment"]
    except InputError as error:  # the few graphs with cycles need the solver
        assume("OR-tools" not in str(error))
        raise
    slack = 1 + 1e-9
    assert found["bound"] <= found["cost"] * slack
    assert found["cost"] <= found["greedy"] * slack
    assert found["greedy"] <= min(found["buffer"], found["texture"], found["requested"]) * slack


def test_explain_draws_the_layout() -> None:
    text = render(report(reduced(twice=True), NVIDIA, memory="texture"))
    for part in (
        "Layouts: 1 tensors in textures, 0 in buffers",
        "1x64x32  texture 64 x 8: --memory texture",
        " x=j:64 ->\n",
        "y=k/4:8 | k%4 | k%4 |\n",
        "asked for along k by ",
    ):
        assert part in text, part


def test_explain_compares_the_assignments() -> None:
    text = render(report(reduced(), ADRENO, layout="exact"))
    assert "all in buffers" in text
    assert "greedy is 0.00% above the exact assignment" in text
