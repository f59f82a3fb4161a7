"""`--check`: a storage that is wrong on purpose is reported, with the tensor and the coordinate."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from tests.support.random_graphs import Array, Builder

from smartmem.compiler import device_module
from smartmem.device import Device, DeviceOptions
from smartmem.errors import CompilerError
from smartmem.layout.memory import DeviceStorage
from smartmem.passes.assemble_device import assemble_device
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram


def two_products() -> tuple[onnx.ModelProto, dict[str, Array]]:
    """relu(x @ w) @ v, twice the same kernel but for its weights."""
    g = Builder(3)
    hidden = g.op("Relu", [g.op("MatMul", [g.input(8, 8), g.weight(8, 8)], (8, 8))], (8, 8))
    other = g.op("Relu", [g.op("MatMul", [hidden, g.weight(8, 8)], (8, 8))], (8, 8))
    return g.model([g.op("Softmax", [other], (8, 8), axis=-1)]), g.feeds()


def program(model: onnx.ModelProto, device: Device, memory: str, shift: int) -> DeviceProgram:
    """The program; where activations between kernels lie is moved by `shift` columns or elements."""
    options = DeviceOptions(memory, check=True)  # type: ignore[arg-type]
    module, storages, target, _ = device_module(model, None, "full", device, options)
    ends = {v.name for v in (*module.inputs, *module.outputs)} | set(module.constants)
    inner = [k.tensor for k in module.kernels if k.tensor not in ends]
    assert inner
    return assemble_device(module, storages | {n: moved(storages[n], shift) for n in inner}, target, "full", None)


def moved(storage: DeviceStorage, shift: int) -> DeviceStorage:
    if storage.image is not None:
        return replace(storage, image=replace(storage.image, column=storage.image.column + shift))
    return replace(storage, address=storage.address + shift)


@pytest.mark.parametrize("memory, counted", [("buffer", "address"), ("texture", "column")])
@pytest.mark.parametrize("shift", [-4, 8])
def test_a_wrong_storage_is_reported(device: Device, tmp_path, memory: str, counted: str, shift: int) -> None:
    model, feeds = two_products()
    if memory == "texture" and not device.images:
        pytest.skip("the device has no images")
    wrong = DeviceModel(program(model, device, memory, shift), device, cache=Cache(tmp_path))
    with pytest.raises(
        CompilerError, match=rf"accesses out of range; the first: kernel \w+ \(\S+\), {counted} in \S+ at"
    ):
        wrong.run(feeds)
    wrong.close()


def test_what_is_right_gives_no_report(device: Device, tmp_path) -> None:
    model, feeds = two_products()
    right = DeviceModel(program(model, device, "auto", 0), device, cache=Cache(tmp_path))
    (result,) = right.run(feeds)
    np.testing.assert_allclose(result.sum(1), 1, rtol=1e-5)
    right.close()


def test_numbers_are_unique_and_equal_kernels_are_emitted_once(device: Device) -> None:
    model, _ = two_products()
    made = program(model, device, "buffer", 0)
    kernels = [step.kernel for step in made.steps]  # type: ignore[union-attr]
    assert len(set(kernels)) < len(kernels)
    assert len(set(made.checks)) == len(made.checks)
    assert any(".packed" in text for text in made.checks)  # weights are checked too
    first = [int(n) for text in made.sources.values() for n in re.findall(r"first_check = (\d+);", text)]
    assert len(set(first)) == len(first) == len(set(kernels))


def test_without_check_nothing_of_it_is_there(device: Device) -> None:
    model, _ = two_products()
    module, storages, target, _ = device_module(model, None, "full", device, DeviceOptions())
    made = assemble_device(module, storages, target, "full", None)
    assert not made.checks and all(slot.kind != "check" for slot in made.slots)
    assert all("first_check" not in text for text in made.sources.values())
