"""Listing and choosing devices, profiles and measured costs, without a device where one is not needed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from smartmem.device import Device, MemoryCosts
from smartmem.errors import InputError, RuntimeFailure
from smartmem.report.devices import as_objects, as_table
from smartmem.report.tables import console
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl import devices, loader, probe, profiles


def test_what_is_listed(device):
    found = devices.list_devices()
    assert [each.index for each in found] == list(range(len(found)))
    assert [each.kind for each in found] == sorted(
        (each.kind for each in found), key=("gpu", "accelerator", "cpu").index
    )
    assert device.name == found[0].name
    for each in found:
        assert each.max_work_group > 0 and each.memory >= each.max_allocation > 0 and each.base_alignment > 0
        assert not each.images or each.image_width >= 2048
    shown = console()
    with shown.capture() as text:
        shown.print(as_table(found))
    assert "opencl:0" in text.get() and "pitch alignment" in text.get()
    assert json.loads(json.dumps(as_objects(found)))[0]["name"] == device.name


def test_selection(device):
    assert devices.select("cpu") is None
    assert devices.select("opencl") == devices.select("opencl:0") == device
    count = len(devices.list_devices())
    with pytest.raises(InputError, match=f"no device opencl:{count}: {count} are here"):
        devices.select(f"opencl:{count}")
    picked = devices.select("auto")
    assert picked is None or picked.kind == "gpu"


@pytest.mark.parametrize("name", ["gpu", "opencl:", "opencl:x", "opencl:-1", ""])
def test_names_of_no_device(name):
    with pytest.raises(InputError, match="give cpu, auto, opencl or opencl:N"):
        devices.select(name)


def test_newer_drivers_first():
    old, new = Device(driver="3.0-rc2"), Device(driver="3.1+debian")
    assert sorted([old, new], key=devices._age) == [new, old]


@pytest.fixture
def elsewhere(monkeypatch):
    """A machine where nothing was listed yet."""
    for function in (devices._found, loader.pyopencl):
        function.cache_clear()
    yield monkeypatch
    for function in (devices._found, loader.pyopencl):
        function.cache_clear()


def test_without_pyopencl(elsewhere):
    elsewhere.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(RuntimeFailure, match=r"pip install 'smartmem\[opencl\]'"):
        devices.select("opencl")
    assert devices.select("auto") is None


def test_without_a_platform(elsewhere):
    cl = pytest.importorskip("pyopencl")

    def none() -> list[object]:
        raise cl.LogicError("clGetPlatformIDs", -1001, "")

    elsewhere.setattr(cl, "get_platforms", none)
    with pytest.raises(RuntimeFailure, match=r"no OpenCL platform: install the driver .* pocl-binary-distribution"):
        devices.list_devices()
    assert devices.select("auto") is None


@pytest.mark.parametrize(
    "given, name",
    [
        (Device(name="QUALCOMM Adreno(TM)", version="OpenCL 2.0 Adreno(TM) 540"), "Adreno 540"),
        (Device(name="QUALCOMM Adreno(TM) 740"), "Adreno 740"),
        (Device(name="QUALCOMM Adreno(TM) 640"), "Adreno 540"),
        (Device(name="Mali-G57", vendor="ARM"), "Mali-G57"),
        (Device(name="NVIDIA H200", vendor="NVIDIA Corporation", platform="NVIDIA CUDA"), "NVIDIA"),
        (Device(name="pthread-x", platform="Portable Computing Language"), "PoCL"),
    ],
)
def test_profiles(given, name):
    assert profiles.known(given) == profiles.profile(name)
    assert profiles.profile(name).source == f"profile {name}"


def test_unknown_devices_are_measured_once(device, tmp_path, monkeypatch):
    assert profiles.known(Device(name="Voodoo")) is None
    cache = Cache(tmp_path)
    costs = probe.measured(device, cache)
    assert costs.source == "measured" and costs.buffer_read == 1.0
    assert all(value > 0 for value in (costs.texture_read, costs.buffer_gather, costs.texture_write))
    monkeypatch.setattr(probe, "measure", lambda device: pytest.fail("measured twice"))
    assert probe.measured(device, cache) == costs


def test_a_device_without_images_is_measured(device):
    costs = probe.measure(replace(device, images=False))
    assert costs.texture_read == MemoryCosts.texture_read


def test_a_device_that_cannot_be_measured(tmp_path):
    pytest.importorskip("pyopencl")
    with pytest.warns(RuntimeWarning, match="memories of Voodoo cannot be measured"):
        assert probe.measured(Device(name="Voodoo"), Cache(tmp_path)) == MemoryCosts()


def test_importing_smartmem_imports_no_pyopencl():
    code = (
        "import sys, smartmem, smartmem.api, smartmem.cli, smartmem.runtime.model; smartmem.compile; "
        "print({'pyopencl', 'onnx', 'rich'} & {*sys.modules})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() in ("set()", "{'rich'}")  # typer may import rich
