"""Winograd's transforms on a device: the numbers of the convolution, with every coordinate checked."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from tests.support.convolutions import convolution, gated

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions, Memory
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.schedule.gpu import unrolled

pytestmark = pytest.mark.usefixtures("built_quickly", "winograd_pays")
KERNELS = ["c.sum.tiles", "c.sum.products", "y"]


def run(proto: onnx.ModelProto, device: Device, memory: Memory, cache: Cache, check: bool = True) -> list[str]:
    """Compares with ONNX Runtime; the names of the kernels."""
    shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(shape[-1]).standard_normal(shape).astype(np.float32)
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    program = build_device_program(proto, level="full", device=device, options=DeviceOptions(memory, check=check))
    with DeviceModel(program, device, cache=cache) as model:
        (result,) = model.run({"x": x})
    assert np.linalg.norm(result - expected) / np.linalg.norm(expected) < 1e-5
    return [kernel["name"] for kernel in program.report["kernels"]]


@pytest.mark.parametrize("memory", ["buffer", "texture"])
@pytest.mark.parametrize(
    "size, pads, options",
    [
        (32, 1, {}),
        (34, 0, {}),  # nothing is guarded
        (33, 1, {}),  # tiles beyond the sides: one row and column of the last exist,
        (36, 0, {}),  # two,
        (35, 1, {"channels": 48}),  # three
        (18, 1, {"outputs": 30}),  # results that four do not divide
    ],
)
def test_it_gives_what_the_convolution_gives(size, pads, options, memory, device, tmp_path):
    assert run(convolution(size, pads=pads, **options), device, memory, Cache(tmp_path)) == KERNELS


@pytest.mark.parametrize("memory", ["buffer", "texture"])
def test_four_values_where_there_is_enough_to_do(memory, device, tmp_path, monkeypatch):
    """Small tests have so little to do that a work-item takes one value."""
    monkeypatch.setattr(unrolled, "BUSY", 0)
    assert run(convolution(33, channels=32), device, memory, Cache(tmp_path)) == KERNELS


def test_the_image_is_read_along_its_channels(device):
    """Transforms reduce nothing, but what they load has to lie as they store it: along the axis that products ask for.

    Else each work-item reads a cache line for every value: 2 ms instead of 0.06 for 256x256x256 on an H200.
    """
    program = build_device_program(gated(), level="full", device=device, options=DeviceOptions("buffer"))
    pictures = {entry["tensor"]: entry["picture"]["lane"] for entry in program.report["layouts"]}
    assert pictures["a"] == "j%4:4"
    assert all(k["family"] != "fallback" for k in program.report["kernels"])
