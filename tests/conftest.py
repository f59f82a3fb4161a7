"""What tests of every folder share: the first OpenCL device (PoCL in CI), whether golden files are rewritten, and the
command line on a fake compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support import fake_compiler

import smartmem.api
import smartmem.compiler
from smartmem import cli
from smartmem.device import Device
from smartmem.errors import SmartmemError
from smartmem.passes import assemble_device
from smartmem.runtime.opencl.build import TOO_OLD, UNKNOWN_CPU
from smartmem.runtime.opencl.devices import opencl_device, select
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.schedule.backend import Backend
from smartmem.schedule.gpu.choose import backend_of
from smartmem.schedule.gpu.code import DeviceTarget


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")
    parser.addoption("--all-node-tests", action="store_true", help="all node tests of onnx on the device")


@pytest.fixture(scope="session", autouse=True)
def small_cache() -> Iterator[None]:
    """Tests compile every network at every level, and few of these again: the cache keeps the last of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smartmem.api, "CACHED_BYTES", 1 << 30)
        yield


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def device() -> Device:
    """The first OpenCL device, or a reason why there is none, or none that compiles for this machine."""
    try:
        found = select("opencl")
    except SmartmemError as error:
        pytest.skip(str(error))
    assert found is not None
    handle, cl = opencl_device(found), pyopencl()
    try:
        cl.Program(cl.Context([handle]), "__kernel void nothing(__global float *a) { a[0] = 0; }").build()
    except cl.Error as error:
        if UNKNOWN_CPU in str(error):
            pytest.skip(f"{found.name}: {found.platform} {found.driver} {TOO_OLD}")
        raise
    return found


@pytest.fixture
def built_quickly(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """PoCL does not optimize, which takes most of the time of tests with many kernels. Those of networks let it."""
    if device.kind == "cpu":
        options = f"{assemble_device.BUILD_OPTIONS} -cl-opt-disable"
        monkeypatch.setattr(assemble_device, "BUILD_OPTIONS", options)


@pytest.fixture
def winograd_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device takes all convolutions that it can in Winograd's form, as if memory cost nothing."""

    def free(target: DeviceTarget) -> Backend:
        return replace(backend_of(target), predict=lambda p: p.batch * p.m * p.n * p.k, moves=lambda n: 0.0)

    monkeypatch.setattr("smartmem.schedule.gpu.choose.backend_of", free)


@pytest.fixture
def model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that a fake compiler compiles."""
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SMARTMEM_DEBUG", raising=False)
    monkeypatch.setattr(smartmem.compiler, "build_program", fake_compiler.build_program)
    return fake_compiler.write_model(tmp_path / "tiny.onnx")


@pytest.fixture
def smartmem_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line; (exit code, standard output, standard error)."""

    def call(*arguments: Any) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["smartmem", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        text = capsys.readouterr()
        return stop.value.code or 0, text.out, text.err

    return call
