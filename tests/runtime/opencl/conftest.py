"""Fixtures of the OpenCL runtime's tests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smartmem.device import Device
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def queue_device(device: Device) -> Device:
    """The device with a command queue, also where it takes CUDA graphs."""
    return replace(device, bus="")


@pytest.fixture
def make(device, session_cache):
    """DeviceProgram → DeviceModel."""
    models = []

    def build(program: DeviceProgram, cache: Cache = session_cache, on: Device = device) -> DeviceModel:
        models.append(DeviceModel(program, on, cache=cache))
        return models[-1]

    yield build
    for model in models:
        model.close()
