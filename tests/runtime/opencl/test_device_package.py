"""Files of models for OpenCL devices: what is written is what is read, and damage is found."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from tests.support.device_programs import checked, expected, in_buffers, in_images, with_host

import smartmem
from smartmem.errors import ModelError, RuntimeFailure
from smartmem.runtime import archive
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl import package
from smartmem.runtime.opencl.model import DeviceModel

X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("program", [in_buffers(), in_images("float16"), with_host(), checked(0)])
def test_what_is_written_is_read(make, tmp_path, program):
    program.report = {"model": "tiny"}
    model = make(program)
    model.save(tmp_path / "m.smem")
    loaded = smartmem.load(tmp_path / "m.smem")
    assert isinstance(loaded, DeviceModel)
    for name in ("name", "level", "options", "inputs", "outputs", "slots", "steps", "buffers", "images", "sources"):
        assert getattr(loaded.program, name) == getattr(program, name), name
    assert loaded.program.report == program.report and loaded.program.checks == program.checks
    for first, second in zip(model.run({"x": X}), loaded.run({"x": X}), strict=True):
        np.testing.assert_array_equal(first, second)
    loaded.close()


@pytest.fixture
def saved(device, tmp_path):
    package.save(in_buffers(), device, tmp_path / "m.smem")
    return tmp_path / "m.smem"


def changed(path, **changes):
    """The same file with other entries in its manifest."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(parts.pop("manifest.json"))
    del manifest["sha256"], manifest["format"]
    archive.write(path, {**manifest, **changes}, parts)
    return path


def test_a_changed_manifest_runs_as_it_says(saved, device):
    slots = json.loads(zipfile.ZipFile(saved).read("manifest.json"))["slots"]
    slots[2]["place"] = 0
    model = smartmem.load(changed(saved, slots=slots))
    np.testing.assert_allclose(model(X), expected(X), rtol=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"slots": []}, "IndexError"),
        ({"buffers": [8, 8]}, "h does not fit its buffer"),
        ({"steps": [{"kernel": "scale"}]}, "TypeError"),
        ({"device": {"name": "x"}}, "costs"),
        ({"images": 3}, "TypeError"),
    ],
)
def test_a_damaged_manifest(saved, changes, message):
    with pytest.raises(ModelError, match=f"its manifest is damaged: .*{message}"):
        smartmem.load(changed(saved, **changes))


def test_a_damaged_source(saved):
    data = bytearray(saved.read_bytes())
    data[data.index(b"get_global_id")] ^= 1
    saved.write_bytes(data)
    with pytest.raises(ModelError, match=r"sources\.json does not match its SHA-256"):
        smartmem.load(saved)


def test_made_for_another_device(device, tmp_path):
    package.save(in_buffers(), replace(device, name="Voodoo"), tmp_path / "m.smem")
    with pytest.raises(RuntimeFailure, match=r"made for 'Voodoo', here is '.*; compile the .onnx file for that"):
        smartmem.load(tmp_path / "m.smem")


def test_another_driver_builds_again(device, tmp_path):
    package.save(in_buffers(), replace(device, driver="0.1"), tmp_path / "m.smem")
    model = package.load(archive.read(tmp_path / "m.smem"), Cache(tmp_path))
    assert model.device.driver == device.driver and model.compiled == 1


def test_a_file_that_cannot_be_written(device, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeFailure, match="cannot be written"):
        package.save(in_buffers(), device, tmp_path / "file" / "m.smem")
