"""The cache: hits need equal keys, writes are whole or not at all, and it may be missing altogether."""

from __future__ import annotations

import contextlib
import os
import shutil
import types
import warnings

import numpy as np
import onnx.helper
import pytest

from smartmem.runtime import cache as module
from smartmem.runtime.cache import Cache, open_cache, replacing
from smartmem.runtime.fingerprint import program_key


def test_find_what_was_added(tmp_path):
    cache = Cache(tmp_path)
    assert cache.find("objects", "key", ".o") is None
    path = cache.add("objects", "key", ".o", b"data")
    assert cache.find("objects", "key", ".o") == path
    assert path.read_bytes() == b"data"
    assert cache.find("objects", "other", ".o") is None
    assert cache.find("libraries", "key", ".o") is None
    assert cache.add("objects", "key", ".o", lambda p: p.write_bytes(b"new")) == path
    assert path.read_bytes() == b"new"


def test_equal_names_are_not_enough(tmp_path):
    cache = Cache(tmp_path)
    path = cache.add("objects", "key", ".o", b"data")
    path.with_suffix(".key").write_text("a key with the same SHA-256")
    assert cache.find("objects", "key", ".o") is None


def test_nothing_half_written(tmp_path):
    cache = Cache(tmp_path)

    def fail(path):
        path.write_bytes(b"half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        cache.add("objects", "key", ".o", fail)
    assert cache.find("objects", "key", ".o") is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_replacing_keeps_the_old_file_on_failure(tmp_path):
    target = tmp_path / "sub" / "out"
    with replacing(target) as temporary:
        temporary.write_text("old")
    with contextlib.suppress(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text("new")
        1 / 0  # noqa: B018
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == ["out"]


def test_named_and_off(tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path / "mine"))
    assert open_cache().root == tmp_path / "mine"
    monkeypatch.setenv("SMARTMEM_CACHE", "off")
    cache = open_cache()
    assert cache.root is None
    path = cache.add("objects", "key", ".o", b"data")
    assert cache.find("objects", "key", ".o") == path
    folder = cache.temporary()
    del cache
    assert not folder.exists()


def test_unwritable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="cannot be written .*: going on without it"):
        assert open_cache().root is None


def test_unwritable_later_on(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    original = module._store

    def full(path, key, write):
        if tmp_path in path.parents:
            raise OSError(28, "No space left on device")
        return original(path, key, write)

    monkeypatch.setattr(module, "_store", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        path = cache.add("objects", "key", ".o", b"data")
    assert path.read_bytes() == b"data"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once
        cache.add("objects", "key2", ".o", b"data")
    assert cache.find("objects", "key", ".o") == path


def test_clear_usage_trim(tmp_path):
    cache = Cache(tmp_path)
    for index in range(4):
        path = cache.add("models", f"key {index}", ".smem", bytes(100))
        os.utime(path.with_suffix(".key"), (index, index))
    assert cache.find("models", "key 0", ".smem")  # used: the newest now
    cache.trim("models", 250)
    assert [bool(cache.find("models", f"key {i}", ".smem")) for i in range(4)] == [True, False, False, True]
    files, size = cache.usage()
    assert (files, size) == (4, 200 + 2 * len("key 0"))
    assert cache.clear() == (files, size)
    assert cache.usage() == (0, 0)


@pytest.mark.parametrize("free, left", [(10000, 4), (200, 3), (0, 2)])
def test_a_disk_that_is_almost_full(tmp_path, monkeypatch, free, left):
    """Entries take no more than half of what would be free without them; what was used last stays."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
    cache = Cache(tmp_path)
    for index in range(4):
        path = cache.add("models", f"key {index}", ".smem", bytes(100))
        os.utime(path.with_suffix(".key"), (index, index))
    cache.trim("models", 1000)
    assert [bool(cache.find("models", f"key {i}", ".smem")) for i in range(4)] == [i >= 4 - left for i in range(4)]
    large = cache.add("large", "key", ".smem", bytes(1000))
    cache.trim("large", 100)
    assert large.is_file()


def make_model(folder, value=1.0, external=False):
    weight = onnx.helper.make_tensor("w", 1, [300], np.full(300, value, np.float32).tobytes(), raw=True)
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    info = [onnx.helper.make_tensor_value_info(name, 1, [300]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", info[:1], info[1:], [weight]))
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=external, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def key(model, shapes=None, level="full", march="native", compiler="zig"):
    return program_key(model, shapes, level, march, compiler)


@pytest.mark.parametrize("external", [False, True])
def test_program_key_follows_content(tmp_path, external):
    first = key(make_model(tmp_path / "a", external=external))
    assert first == key(make_model(tmp_path / "b", external=external))
    assert first != key(make_model(tmp_path / "c", 2.0, external=external))


def test_program_key_follows_options(tmp_path):
    model = make_model(tmp_path)
    options = [{}, {"shapes": {"x": (3,)}}, {"level": "fuse"}, {"march": "x86-64-v3"}, {"compiler": "gcc"}]
    assert len({key(model, **option) for option in options}) == len(options)
    proto = onnx.load(model)
    assert key(proto) == key(proto)


def test_unusual_external_data_has_no_key(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"", b"\x08location", b"\x0a\x08location\x12\x80\x01" + bytes(200)):
        path.write_bytes(content)
        assert key(path) is None
    path.write_bytes(b"no external data")
    assert key(path) is not None


def test_links_are_left_to_the_frontend(tmp_path):
    model = make_model(tmp_path / "a", external=True)
    data = tmp_path / "a" / "m.data"
    os.link(data, tmp_path / "hard")
    assert key(model) is None
    (tmp_path / "hard").unlink()
    assert key(model) is not None
    data.rename(tmp_path / "elsewhere")
    assert key(model) is None
    data.symlink_to(tmp_path / "elsewhere")
    assert key(model) is None
