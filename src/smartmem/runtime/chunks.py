"""A file written in chunks of a huge page, so that the system can keep it in huge pages and map them as such.

Linux's page cache takes pages as large as a write is (with filesystems that support it): one of 2 MiB at a multiple of
2 MiB becomes a huge page, many small writes stay small pages, whose addresses the processor then has to look up one by
one when the file is mapped.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from smartmem.runtime.arrays import HUGE_PAGE


class ChunkedFile(io.RawIOBase):
    """A new file for writing; data are held until a chunk is whole, or the place changes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = io.FileIO(path, "w")
        self._held = bytearray()
        self._place = 0  # in the file, of what is held

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place + len(self._held)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            part = view[done : done + HUGE_PAGE - self.tell() % HUGE_PAGE]
            self._held += part
            done += len(part)
            if self.tell() % HUGE_PAGE == 0:
                self.flush()
        return done

    def flush(self) -> None:
        if self._held:
            self._file.seek(self._place)
            written = 0
            with memoryview(self._held) as held:
                while written < len(held):
                    with held[written:] as rest:
                        written += self._file.write(rest)
            self._place += written
            self._held.clear()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.flush()
        self._file.seek(self._place)
        self._place = self._file.seek(offset, whence)
        return self._place

    def close(self) -> None:
        if not self.closed:
            try:
                self.flush()
            finally:
                self._held.clear()  # what a full disk did not take; closing flushes again
                self._file.close()
                super().close()
