"""`--device` on the command line and `device=` in Python, on a fake compiler."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.support.device_programs import expected, in_buffers
from tests.support.programs import REPORT

import smartmem
import smartmem.compiler
from smartmem import api
from smartmem.device import Device, DeviceOptions
from smartmem.errors import InputError
from smartmem.runtime.model import Model
from smartmem.runtime.opencl import devices
from smartmem.runtime.opencl.model import DeviceModel

X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)


@pytest.fixture
def asked(monkeypatch):
    """What the compiler was asked for, by `build_device_program`."""
    calls = []

    def build(model, **options):
        calls.append(options)
        program = in_buffers()
        program.level, program.report = options["level"], dict(REPORT)
        return program

    monkeypatch.setattr(smartmem.compiler, "build_device_program", build)
    return calls


@pytest.fixture
def model_file(model_file, asked):
    return model_file


def test_compile_for_a_device(device, model_file, asked):
    model = smartmem.compile(
        model_file, level="layout", device="opencl", memory="texture", precision="fp16", layout="exact", check=True
    )
    assert isinstance(model, DeviceModel)
    np.testing.assert_allclose(model(X), expected(X), rtol=1e-6)
    assert asked[0]["device"] == device and asked[0]["level"] == "layout"
    assert asked[0]["options"] == DeviceOptions("texture", "fp16", "exact", True)
    assert device.name in repr(model)


def test_a_second_compile_comes_from_the_cache(device, model_file, asked, tmp_path):
    for options in ({}, {}, {"precision": "fp16"}, {"level": "naive"}):
        model = smartmem.compile(model_file, device="opencl", memory="buffer", **options)
        np.testing.assert_allclose(model(X), expected(X), rtol=1e-6)
    assert len(asked) == 3
    assert smartmem.compile(model_file, device="opencl", memory="buffer").compiled == 0
    for file in (tmp_path / "cache" / "models").rglob("*.smem"):
        file.write_bytes(b"damaged")
    model = smartmem.compile(model_file, device="opencl", memory="buffer")
    np.testing.assert_allclose(model(X), expected(X), rtol=1e-6)
    assert len(asked) == 4


def test_auto_is_the_cpu_without_a_gpu(model_file, asked, monkeypatch):
    monkeypatch.setattr(devices, "list_devices", list)
    assert isinstance(smartmem.compile(model_file, device="auto"), Model)
    with pytest.raises(InputError, match="this is the CPU, as there is no GPU"):
        smartmem.compile(model_file, device="auto", precision="fp16")
    assert not asked


def test_run_explain_and_profile(device, smartmem_cli, model_file, asked):
    code, out, err = smartmem_cli("run", model_file, "--device", "opencl:0", "--memory", "buffer")
    assert (code, err) == (0, "")
    assert f"on {device.name}" in out and "s: float32[5]" in out
    assert asked[0]["options"].memory == "buffer"
    code, out, _ = smartmem_cli("explain", model_file, "--device", "opencl", "--precision", "fp16")
    assert code == 0 and "stay as copies" in out
    assert asked[1]["options"].precision == "fp16"
    code, out, _ = smartmem_cli("profile", model_file, "--device", "opencl", "--runs", "3", "--repeat", "4")
    assert code == 0 and "2 kernels" in out and "ReduceSum 2" in out


def test_a_device_without_images_is_warned_about(model_file, asked):
    for given, options, message in (
        (Device(images=False), DeviceOptions(), "generic has no images: all tensors lie in buffers"),
        (Device(half_images=False), DeviceOptions(precision="fp16"), "generic has no images of halves"),
    ):
        with pytest.warns(RuntimeWarning, match=message):
            api.build_device_program(model_file, None, "full", given, options)
    assert len(asked) == 2


def test_compile_to_a_file(device, smartmem_cli, model_file, tmp_path):
    file = tmp_path / "m.smem"
    code, out, _ = smartmem_cli("compile", model_file, "-o", file, "--device", "opencl")
    assert code == 0 and "2 kernels" in out
    code, out, _ = smartmem_cli("run", file)
    assert code == 0 and f"on {device.name}" in out
    assert "stay as copies" in smartmem_cli("explain", file)[1]


def test_devices(device, smartmem_cli, model_file):
    code, out, _ = smartmem_cli("devices")
    assert code == 0 and "opencl:0" in out and "half images" in out
    code, out, _ = smartmem_cli("devices", "--json")
    assert json.loads(out)[0]["name"] == device.name


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "{model}", "--device", "gpu"], "no device 'gpu': give cpu, auto, opencl or opencl:N"),
        (["run", "{model}", "--device", "opencl:99"], "no device opencl:99"),
        (["run", "{model}", "--precision", "fp16"], "this is the CPU: --device opencl"),
        (["run", "{model}", "--memory", "texture"], "this is the CPU: --device opencl"),
        (["run", "{model}", "--device", "opencl", "--memory", "ram"], "no memory 'ram'; choose one of auto, buffer"),
        (["run", "{model}", "--device", "opencl", "--precision", "int8"], "no precision 'int8'"),
        (["run", "{model}", "--device", "opencl", "--layout", "best"], "no layout 'best'; choose one of greedy, exact"),
        (["run", "m.smem", "--device", "opencl"], "m.smem is compiled already; give the .onnx file"),
        (["explain", "m.smem", "--device", "opencl"], "m.smem is compiled already; give the .onnx file"),
        (["run", "{model}", "--device", "opencl", "--level", "fast"], "no level 'fast'"),
        (["compile", "{model}", "-o", "m.smem", "--precision", "fp16"], "this is the CPU: --device opencl"),
    ],
)
def test_bad_options_are_one_line(device, smartmem_cli, model_file, arguments, message):
    code, _, err = smartmem_cli(*(argument.format(model=model_file) for argument in arguments))
    assert code == 2
    assert err.startswith("smartmem: error: ") and err.count("\n") == 1
    assert message in err


def test_no_opencl_is_one_line(smartmem_cli, model_file, monkeypatch):
    pytest.importorskip("pyopencl")
    devices._found.cache_clear()
    monkeypatch.setattr("pyopencl.get_platforms", list)
    for arguments in (["devices"], ["run", model_file, "--device", "opencl"]):
        code, _, err = smartmem_cli(*arguments)
        assert code == 2 and err.count("\n") == 1
        assert "no OpenCL platform: install the driver of your GPU" in err
    devices._found.cache_clear()


def test_a_refused_kernel_is_one_line(device, smartmem_cli, model_file, monkeypatch):
    def broken(model, **options):
        program = in_buffers()
        program.sources["k.cl"] = "nonsense"
        return program

    monkeypatch.setattr(smartmem.compiler, "build_device_program", broken)
    code, _, err = smartmem_cli("run", model_file, "--device", "opencl")
    assert code == 2 and err.count("\n") == 1
    assert "refuses k.cl, kept as" in err


def test_bench(device, smartmem_cli, model_file, tmp_path):
    """Through the real compiler: runners are processes of their own."""
    pytest.importorskip("onnxruntime")
    code, out, err = smartmem_cli(
        *("bench", model_file, "--shape", "x=5,8", "--device", "opencl", "--precision", "fp16", "--memory", "buffer"),
        *("--levels", "full", "--rounds", "1", "--seconds", "0", "--json", tmp_path / "rows.json"),
    )
    assert (code, err) == (0, "")
    assert f"smartmem on {device.name} (opencl:0, driver {device.driver}), buffer memory, fp16" in " ".join(out.split())
    ours, reference = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert ours["error"] == "" and ours["relative_error"] < 2e-2
    assert reference["runner"] == "onnxruntime" and reference["error"] == ""


def test_bench_of_placements(device, smartmem_cli, model_file, tmp_path):
    """One command, a row for each memory and precision; kernels are told, and smartmem is its own reference."""
    code, out, err = smartmem_cli(
        *("bench", model_file, "--shape", "x=5,8", "--device", "opencl", "--precision", "fp32,fp16", "--against", ""),
        *("--memory", "buffer,texture", "--levels", "full", "--rounds", "1", "--seconds", "0", "--jobs", "4"),
        *("--json", tmp_path / "rows.json"),
    )
    assert (code, err) == (0, "")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["memory"], row["precision"]) for row in rows] == [
        (memory, precision) for precision in ("fp32", "fp16") for memory in ("buffer", "texture")
    ]
    assert all(row["error"] == "" and row["kernels"] >= 1 and row["median_ms"] > 0 for row in rows)
    assert "smartmem full texture fp16" in " ".join(out.split())
