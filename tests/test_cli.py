"""The command line on a fake compiler: what is printed, exit codes, and that nothing is left half-written."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tests.support.programs import expected

import smartmem.compiler
from smartmem import cli
from smartmem.levels import LEVELS
from smartmem.runtime.model import Model

X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)


def test_run(smartmem_cli, model_file, tmp_path):
    np.save(tmp_path / "x.npy", X)
    code, out, err = smartmem_cli("run", model_file, "--input", f"x={tmp_path}/x.npy", "--save", tmp_path / "o.npz")
    assert (code, err) == (0, "")
    assert "s: float32[5]" in out
    with np.load(tmp_path / "o.npz") as outputs:
        np.testing.assert_allclose(outputs["s"], expected(X).sum(1), rtol=1e-5)


def test_run_compare(smartmem_cli, model_file, monkeypatch):
    pytest.importorskip("onnxruntime")
    code, out, _ = smartmem_cli("run", model_file, "--shape", "x=7,8", "--compare", "onnxruntime")
    assert code == 0
    assert "s: relative error" in out
    original = Model.run
    monkeypatch.setattr(Model, "run", lambda *args: [array * 1.01 for array in original(*args)])
    assert smartmem_cli("run", model_file, "--compare", "onnxruntime")[0] == 1


def test_profile(smartmem_cli, model_file, tmp_path, monkeypatch):
    monkeypatch.setattr("smartmem.profile.machine.REPEATS", 1)
    files = tmp_path / "trace.json", tmp_path / "profile.json"
    code, out, err = smartmem_cli("profile", model_file, "--runs", 2, "--trace", files[0], "--json", files[1])
    assert (code, err) == (0, "")
    assert "scale_0" in out
    assert "roofline" in out
    assert json.loads(files[0].read_text())["traceEvents"]
    assert {row["symbol"] for row in json.loads(files[1].read_text())["kernels"]} == {"scale_0", "sum_0"}
    code, out, _ = smartmem_cli("profile", model_file, "--runs", 1, "--json", "-")
    assert json.loads(out)["runs"] == 1
    code, _, err = smartmem_cli("profile", model_file, "--runs", 1, "--trace", model_file / "t.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be written" in err


def test_compile_and_run_the_file(smartmem_cli, model_file, tmp_path):
    code, out, _ = smartmem_cli("compile", model_file, "-o", tmp_path / "m.smem")
    assert code == 0
    assert "2 kernels, 1 copies" in out
    code, out, _ = smartmem_cli("run", tmp_path / "m.smem")
    assert code == 0
    assert "s: float32[5]" in out
    assert "Transpose" in smartmem_cli("explain", tmp_path / "m.smem")[1]


def test_explain(smartmem_cli, model_file):
    code, out, _ = smartmem_cli("explain", model_file)
    assert code == 0
    assert "stay as copies" in out
    code, out, _ = smartmem_cli("explain", model_file, "--json")
    report = json.loads(out)
    assert list(report["totals"]) == list(LEVELS)
    assert report["totals"]["fuse"]["operators"] == 4


def test_cache(smartmem_cli, model_file, tmp_path):
    smartmem_cli("run", model_file)
    assert "files" in smartmem_cli("cache", "info")[1]
    assert "deleted" in smartmem_cli("cache", "clear")[1]
    assert "0 files" in smartmem_cli("cache", "info")[1]


def test_version(smartmem_cli):
    assert smartmem_cli("--version")[:2] == (0, f"smartmem {smartmem.__version__}\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "none.onnx"], "none.onnx: no such file"),
        (["run", "none.smem"], "none.smem: no such file"),
        (["run", "{model}", "--shape", "x"], "--shape x: expected name=1,3,48,320"),
        (["run", "{model}", "--level", "fast"], "no level 'fast'"),
        (["run", "{model}", "--threads", "0"], "threads is 0"),
        (["run", "{model}", "--march", "nonsense"], "--march nonsense"),
        (["run", "{model}", "--compare", "tensorrt"], "--compare tensorrt: only onnxruntime is known"),
        (["run", "{model}", "--input", "x"], "--input x: no such file x"),
        (["run", "{model}", "--input", "x=none.npy"], "no such file none.npy"),
        (["run", "{model}", "--input", "z={x}"], "no input is called 'z'; the model's inputs are 'x'"),
        (["run", "{model}", "--input", "x={double}"], "input 'x' has dtype float64"),
        (["run", "{model}", "--input", "x={wide}"], "input 'x' has shape [5, 9], expected x: float32[5, 8]"),
        (["run", "{model}", "--input", "x={flat}"], "input 'x' has rank 1"),
        (["run", "{model}", "--save", "{model}/o.npz"], "cannot be written"),
        (["profile", "none.onnx"], "none.onnx: no such file"),
        (["profile", "{model}", "--shape", "x"], "--shape x: expected name=1,3,48,320"),
        (["profile", "{model}", "--input", "x={wide}"], "input 'x' has shape [5, 9], expected x: float32[5, 8]"),
        (["compile", "{model}", "-o", "{model}/m.smem"], "cannot be written"),
        (["explain", "{model}", "--level", "fast"], "no level 'fast'"),
        (["bench", "{model}", "--against", "onnxrutime"], "no peer 'onnxrutime': did you mean onnxruntime?"),
        (["bench", "--zoo", "--prepare"], "--prepare needs --work DIR"),
        (["bench", "{model}", "--json", "-", "--add"], "--add goes with --zoo and --json FILE"),
        (["bench", "{model}", "--work", "w"], "--models, --zoo-dir and --work go with --zoo"),
        (["bench", "{model}", "--levels", "eliminated"], "no level 'eliminated': did you mean eliminate?"),
        (["demo", "none.png"], "none.png: no such file"),
    ],
)
def test_bad_input_is_one_line(smartmem_cli, model_file, tmp_path, arguments, message):
    arrays = {"x": X, "double": X.astype(float), "wide": np.zeros((5, 9), "f4"), "flat": X.ravel()}
    paths = {"model": model_file}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        paths[name] = tmp_path / f"{name}.npy"
    before = sorted(tmp_path.iterdir())
    code, _, err = smartmem_cli(*(argument.format(**paths) for argument in arguments))
    assert code == 2
    assert err.startswith("smartmem: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "cache"] == before


def test_demo_of_something_else_than_a_picture(smartmem_cli, model_file):
    pytest.importorskip("cv2")
    code, _, err = smartmem_cli("demo", str(model_file))
    assert code == 2
    assert "not a picture" in err
    assert err.count("\n") == 1


def test_a_damaged_package(smartmem_cli, model_file, tmp_path):
    file = tmp_path / "m.smem"
    smartmem_cli("compile", model_file, "-o", file)
    data = bytearray(file.read_bytes())
    at = data.index(b"\x7fELF")
    data[at + 100] ^= 1
    file.write_bytes(data)
    code, _, err = smartmem_cli("run", file)
    assert code == 2
    assert "model.so does not match its SHA-256" in err
    assert err.count("\n") == 1


def test_a_failed_compile_keeps_the_old_file(smartmem_cli, model_file, tmp_path, monkeypatch):
    target = tmp_path / "m.smem"
    target.write_text("old")
    monkeypatch.setenv("SMARTMEM_CC", "false")
    code, _, err = smartmem_cli("compile", model_file, "-o", target)
    assert code == 2
    assert "does not work as a C compiler" in err
    assert target.read_text() == "old"


def test_wrong_usage(smartmem_cli):
    assert smartmem_cli("run")[0] == 2
    assert smartmem_cli("fly")[0] == 2


def test_bugs_ask_for_a_report(smartmem_cli, model_file, monkeypatch):
    monkeypatch.setattr(smartmem.compiler, "build_program", lambda *args, **options: 1 // 0)
    code, _, err = smartmem_cli("run", model_file)
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "SMARTMEM_DEBUG=1" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("SMARTMEM_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["smartmem", "run", str(model_file)])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_an_unwritable_cache_is_one_warning(smartmem_cli, model_file, monkeypatch, recwarn):
    monkeypatch.setenv("SMARTMEM_CACHE", str(model_file / "cache"))
    code, _, err = smartmem_cli("run", model_file)
    assert code == 0
    shown = [str(warning.message) for warning in recwarn] or [err]
    assert len(shown) == 1
    assert "going on without it" in shown[0]
