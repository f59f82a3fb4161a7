"""Compiled models as files: what is in them, that they can be mapped, and that damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from tests.support.programs import REPORT, expected, tiny, with_host

from smartmem.errors import ModelError, RuntimeFailure
from smartmem.runtime import archive, march, package, remember, tensorfile
from smartmem.runtime.cache import Cache

X = np.linspace(-2, 2, 40, dtype=np.float32).reshape(5, 8)


@pytest.fixture
def saved(link, features, tmp_path):
    path = tmp_path / "tiny.smem"
    package.save(tiny(), link(tiny()), path, features)
    return path


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def test_round_trip(saved, cache):
    model = package.load(saved, 2, cache)
    np.testing.assert_allclose(model(X), expected(X).sum(1), rtol=1e-5)
    want = tiny()
    for name in ("name", "level", "march", "inputs", "outputs", "slots", "steps", "arena_bytes", "scratch_bytes"):
        assert getattr(model.program, name) == getattr(want, name), name
    assert model.program.report == REPORT
    assert package.load(saved, 1, cache)(X).tolist() == model(X).tolist()


def test_round_trip_of_host_steps(link, features, tmp_path, cache):
    program = with_host()
    package.save(program, link(program), tmp_path / "m.smem", features)
    model = package.load(tmp_path / "m.smem", 2, cache)
    np.testing.assert_allclose(model(X)[1], -expected(X).sum(1), rtol=1e-5)
    assert model.program.steps == program.steps


def test_saving_what_was_loaded(saved, cache, tmp_path):
    package.load(saved, 2, cache).save(tmp_path / "again.smem")
    assert (tmp_path / "again.smem").read_bytes() == saved.read_bytes()


def test_parts_lie_at_multiples_of_64_and_are_mapped(saved, cache):
    model = package.load(saved, 2, cache)
    weight = model.program.weights["w"]
    assert weight.ctypes.data % 64 == 0
    assert model._weights["w"].ctypes.data == weight.ctypes.data
    assert not weight.flags.owndata
    with zipfile.ZipFile(saved) as file:
        assert file.testzip() is None
        assert file.namelist() == ["manifest.json", "model.so", "weights.safetensors", "report.json"]


def test_loading_imports_no_onnx(saved):
    code = f"import sys, smartmem; m = smartmem.load({str(saved)!r}); print('onnx' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_importing_smartmem_is_quick():
    code = "import sys, smartmem; print([m for m in ('numpy', 'onnx', 'rich', 'typer') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def repack(path, change):
    """Rewrite the zip; `change` maps (name, bytes) to bytes."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, change(name, data))


@pytest.mark.parametrize("part", ["model.so", "weights.safetensors", "report.json"])
def test_a_changed_part_is_found(saved, cache, part):
    repack(saved, lambda name, data: data[:-1] + bytes([data[-1] ^ 1]) if name == part else data)
    with pytest.raises(ModelError, match=f"{part} does not match its SHA-256"):
        package.load(saved, 1, cache)


@pytest.mark.parametrize("settled", [0, 1 << 62])
def test_sums_are_compared_again_when_the_file_changed(saved, cache, monkeypatch, settled):
    monkeypatch.setattr(remember, "_SETTLED_NS", settled)
    compared = []
    original = archive._compared
    monkeypatch.setattr(archive, "_compared", lambda *args: compared.append(1) or original(*args))
    for _ in range(3):
        package.load(saved, 1, cache)
    assert len(compared) == (1 if settled == 0 else 3)
    data = saved.read_bytes()
    at = data.rindex(b"PK\3\4") - 1  # the last byte of the weights
    time.sleep(0.05)  # file systems' clocks tick every few milliseconds
    with saved.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    with pytest.raises(ModelError, match="does not match its SHA-256"):
        package.load(saved, 1, cache)


def test_members_with_long_sizes(saved, cache):
    with zipfile.ZipFile(saved) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(saved, "w") as file:
        for name, data in parts.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(data)
    np.testing.assert_allclose(package.load(saved, 1, cache)(X), expected(X).sum(1), rtol=1e-5)


def test_compressed_members_are_refused(saved, cache):
    with zipfile.ZipFile(saved) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in parts.items():
            file.writestr(name, data)
    with pytest.raises(ModelError, match=r"manifest\.json is compressed"):
        package.load(saved, 1, cache)


def test_a_zip_without_alignment_still_loads(saved, cache):
    repack(saved, lambda name, data: data)
    np.testing.assert_allclose(package.load(saved, 1, cache)(X), expected(X).sum(1), rtol=1e-5)


@pytest.mark.parametrize("count", [0, 10, 1000, -1])
def test_truncated(saved, cache, count):
    saved.write_bytes(saved.read_bytes()[:count])
    with pytest.raises(ModelError) as error:
        package.load(saved, 1, cache)
    assert "\n" not in str(error.value)


def edit(path, **changes):
    def change(name, data):
        return json.dumps({**json.loads(data), **changes}).encode() if name == "manifest.json" else data

    repack(path, change)


def test_other_machines(saved, cache):
    edit(saved, features=["fma", "holographic"])
    if march.host_family() == "x86_64":
        with pytest.raises(RuntimeFailure, match="this CPU lacks holographic"):
            package.load(saved, 1, cache)
    edit(saved, family="vax")
    with pytest.raises(RuntimeFailure, match="made for vax CPUs"):
        package.load(saved, 1, cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"slots": []},
        {"slots": 3},
        {"steps": [{"symbol": "scale_0"}]},
        {"arena_bytes": 8},
        {"inputs": [{"name": "z", "shape": [5, 8], "dtype": "float32"}]},
    ],
)
def test_damaged_manifests(saved, cache, changes):
    edit(saved, **changes)
    with pytest.raises(ModelError) as error:
        package.load(saved, 1, cache)
    assert "\n" not in str(error.value)


def test_no_such_file_and_no_such_folder(tmp_path, cache, link):
    with pytest.raises(ModelError, match="no such file"):
        package.load(tmp_path / "none.smem", 1, cache)
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeFailure, match="cannot be written"):
        package.save(tiny(), link(tiny()), tmp_path / "file" / "x.smem", [])


def test_other_readers_read_the_weights(tmp_path):
    from safetensors.numpy import load_file

    tensors = {
        "a": np.arange(5, dtype=np.float32),
        "b": np.ones((2, 3), np.bool_),
        "c": np.zeros((0, 4), np.int64),
        "d": np.float64(3).reshape(()),
        "e": np.arange(7, dtype=np.float16),
    }
    path = tmp_path / "w.safetensors"
    with path.open("wb") as file:
        tensorfile.write(tensors, file)
    assert path.stat().st_size == tensorfile.size(tensors)
    theirs = load_file(path)
    ours = tensorfile.read(np.fromfile(path, np.uint8), "w")
    assert list(ours) == list(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)
        assert ours[name].dtype == array.dtype
