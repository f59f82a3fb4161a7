"""What files were found to hold, so that unchanged ones need not be read again.

In: files, and a function that reads them to find a text. Out: that text, from the cache if the files are as they were.

As in make, git and ccache, a file counts as unchanged while its name, device, inode, size, and both times (of its
contents and of its inode, which no program can set) are the same. Two changes within one tick of the file system's
clock give equal times, so nothing is remembered of files that changed a moment ago.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from smartmem.runtime.cache import Cache

_KIND = "facts"
_MOST_BYTES = 1 << 18  # of texts, which have 64 bytes or a few kilobytes
_SETTLED_NS = 2_000_000_000  # FAT's clock ticks every two seconds


def remembered(cache: Cache | None, what: str, files: Sequence[str | Path], find: Callable[[], str]) -> str:
    """What `find()` returns, or returned when the files were the same.

    Args:
        cache: where it is remembered; None: nowhere.
        what: names the question: all that the answer follows from, except for the files.
        files: that `find` reads. If one cannot be looked at, `find` is called.
        find: finds the answer. What it raises is raised here, and nothing is remembered.
    """
    before = _looks(files) if cache is not None and cache.root is not None else None
    if cache is None or before is None:
        return find()
    key = json.dumps([what, before])
    if found := cache.find(_KIND, key, ".txt"):
        try:
            return found.read_text(encoding="utf-8")
        except (OSError, ValueError):
            pass
    now = time.time_ns()
    answer = find()
    newest = max((max(modified, changed) for *_, modified, changed in before), default=0)
    if newest + _SETTLED_NS <= now and _looks(files) == before:
        cache.add(_KIND, key, ".txt", answer.encode())
        cache.trim(_KIND, _MOST_BYTES)
    return answer


def _looks(files: Sequence[str | Path]) -> list[tuple[str, int, int, int, int, int]] | None:
    """What tells whether a file changed, for each; None where one cannot be looked at."""
    try:
        looks = []
        for file in files:
            status = os.stat(file)
            times = status.st_mtime_ns, status.st_ctime_ns
            looks.append((os.fspath(file), status.st_dev, status.st_ino, status.st_size, *times))
        return looks
    except OSError:
        return None
