"""Files written in whole chunks hold what was written, whatever the order of writing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from smartmem.runtime.arrays import HUGE_PAGE, working_memory
from smartmem.runtime.chunks import ChunkedFile


@pytest.mark.parametrize("sizes", [[10, 20], [HUGE_PAGE], [HUGE_PAGE - 1, 3, HUGE_PAGE * 2 + 5], [0, 1, 7 << 20]])
def test_what_is_written(tmp_path: Path, sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 256, size, np.uint8).tobytes() for size in sizes]
    with ChunkedFile(tmp_path / "file") as file:
        for part in parts:
            assert file.write(part) == len(part)
        assert file.tell() == sum(sizes)
    assert (tmp_path / "file").read_bytes() == b"".join(parts)


def test_going_back(tmp_path: Path) -> None:
    data = bytearray(np.random.default_rng(0).integers(0, 256, 3 * HUGE_PAGE + 11, np.uint8).tobytes())
    with ChunkedFile(tmp_path / "file") as file:
        file.write(data[: HUGE_PAGE + 5])
        assert file.seek(100) == 100
        file.write(b"header")
        assert file.seek(0, 2) == HUGE_PAGE + 5
        file.write(data[HUGE_PAGE + 5 :])
    data[100:106] = b"header"
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_what_is_reported() -> None:
    with pytest.raises(OSError, match="No space"), ChunkedFile(Path("/dev/full")) as file:
        file.write(b"x" * 100)
    assert file.closed


def test_whole_chunks_go_to_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ChunkedFile(tmp_path / "file")
    writes: list[tuple[int, int]] = []
    raw = file._file

    class Spy:
        def write(self, data: memoryview) -> int:
            writes.append((raw.tell(), len(data)))
            return raw.write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(raw, name)

    monkeypatch.setattr(file, "_file", Spy())
    for _ in range(1000):
        file.write(bytes(5000))
    file.close()
    chunk, rest = HUGE_PAGE, 5_000_000 % HUGE_PAGE
    assert writes == [(0, chunk), (chunk, chunk), (2 * chunk, rest)]


def test_a_zip(tmp_path: Path) -> None:
    with ChunkedFile(tmp_path / "file.zip") as file, zipfile.ZipFile(file, "w") as archive:
        for name in "abc":
            archive.writestr(name, name.encode() * 3_000_000)
    with zipfile.ZipFile(tmp_path / "file.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("b") == b"b" * 3_000_000


@pytest.mark.parametrize("sizes", [[100, 5, 0], [5 << 20, 1000, 3 << 20]])
def test_working_memory(sizes: list[int]) -> None:
    arrays = working_memory(sizes)
    assert [array.nbytes for array in arrays] == sizes
    for number, array in enumerate(arrays):
        assert array.size == 0 or array.ctypes.data % 64 == 0
        array[:] = number
    for number, array in enumerate(arrays):
        assert (array == number).all()
