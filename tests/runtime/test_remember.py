"""What is remembered of files holds while they are as they were."""

from __future__ import annotations

import os
import time

import pytest

from smartmem.runtime import remember
from smartmem.runtime.cache import Cache
from smartmem.runtime.remember import remembered


class Reader:
    """Reads a file, and counts how often."""

    def __init__(self, path):
        self.path, self.count = path, 0

    def __call__(self) -> str:
        self.count += 1
        return self.path.read_text()


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.setattr(remember, "_SETTLED_NS", 0)
    (tmp_path / "file").write_text("first")
    return Reader(tmp_path / "file")


def test_an_unchanged_file_is_read_once(reader, tmp_path):
    cache = Cache(tmp_path / "cache")
    assert [remembered(cache, "text", [reader.path], reader) for _ in range(3)] == ["first"] * 3
    assert reader.count == 1
    remembered(cache, "another question", [reader.path], reader)
    remembered(Cache(tmp_path / "cache"), "text", [reader.path], reader)  # another process
    assert reader.count == 2


def test_a_changed_file_is_read_again(reader, tmp_path):
    cache = Cache(tmp_path / "cache")
    status = reader.path.stat()
    remembered(cache, "text", [reader.path], reader)
    time.sleep(0.05)  # file systems' clocks tick every few milliseconds
    reader.path.write_text("other")  # as long as before
    os.utime(reader.path, ns=(status.st_atime_ns, status.st_mtime_ns))  # and as old
    assert remembered(cache, "text", [reader.path], reader) == "other"
    (tmp_path / "new").write_text("third")
    (tmp_path / "new").replace(reader.path)
    assert remembered(cache, "text", [reader.path], reader) == "third"


def test_a_file_that_changed_a_moment_ago_is_not_remembered(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(remember, "_SETTLED_NS", 1 << 62)
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        remembered(cache, "text", [reader.path], reader)
    assert reader.count == 2


def test_a_file_that_changes_meanwhile_is_not_remembered(reader, tmp_path):
    def find():
        reader.path.write_text("changed meanwhile")
        return "before"

    cache = Cache(tmp_path / "cache")
    assert remembered(cache, "text", [reader.path], find) == "before"
    assert remembered(cache, "text", [reader.path], reader) == "changed meanwhile"


def test_without_a_cache_or_a_file(reader, tmp_path):
    for cache in (None, Cache(None)):
        for _ in range(2):
            assert remembered(cache, "text", [reader.path], reader) == "first"
    assert reader.count == 4
    with pytest.raises(FileNotFoundError):
        remembered(Cache(tmp_path / "cache"), "text", [tmp_path / "none"], Reader(tmp_path / "none"))
