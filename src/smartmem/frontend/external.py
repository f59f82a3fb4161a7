"""Read tensors that a model keeps in files beside it, without trusting the paths in the model.

In: a `TensorProto` whose data lies outside of the model file. Out: a read-only numpy array over the memory-mapped file.

A model is input from elsewhere: a path in it must not make us read `/etc/passwd` into a weight. So the location must be
relative and without "..", the file is opened without following a link in its last component, and then the *opened* file
is checked (not the path, which could change in between): a regular file with one name (a hard link would be a second
name of a file that may lie anywhere), whose real path is inside of the model's folder.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from smartmem.errors import ModelError


class ExternalFiles:
    """The data files beside one model; each is opened and mapped once."""

    def __init__(self, folder: str | None) -> None:
        """`folder`: the model's folder, or None for a model that came without a file."""
        self._folder = folder
        self._maps: dict[str, memoryview] = {}

    def slice(self, tensor: str, location: str, offset: int, length: int) -> memoryview:
        """`length` bytes at `offset` of the file `location`.

        Raises:
            ModelError: the file is missing, too short, or not safely inside of the model's folder.
        """
        if self._folder is None:
            raise ModelError(
                f'tensor "{tensor}" keeps its data in {location!r}, but the model was given as an object without a '
                "folder; pass the path of the .onnx file instead"
            )
        if location not in self._maps:
            self._maps[location] = _map_file(self._folder, location, tensor)
        data = self._maps[location]
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ModelError(
                f'tensor "{tensor}" needs bytes {offset} to {offset + length} of {location!r}, which has only '
                f"{len(data)}; the file is truncated or belongs to another model, fetch it again"
            )
        return data[offset : offset + length]


def _map_file(folder: str, location: str, tensor: str) -> memoryview:
    """Open, check and map one data file."""
    where = f'external data {location!r} of tensor "{tensor}"'
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor != ""
    if not location or absolute or ".." in parts or "\0" in location:
        raise ModelError(f"{where} lies outside of the model's folder; it must be a relative path inside {folder!r}")
    path = os.path.join(folder, location)
    # O_NONBLOCK: opening a FIFO must not hang; fstat refuses it afterwards.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_CLOEXEC", 0)
    if os.path.islink(path):
        raise ModelError(f"{where} is a symbolic link, which may lead out of the model's folder; put the file there")
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise ModelError(f"{where} is missing: no file {path!r}; put it beside the model") from None
    except OSError as error:
        raise ModelError(f"{where} cannot be opened: {error.strerror} ({path!r})") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{where} is not a regular file ({path!r})")
        if status.st_nlink != 1:
            raise ModelError(
                f"{where} is a hard link (the file has {status.st_nlink} names), so it may belong to another place; "
                f"replace it by a copy: cp {path!r} to a new file and rename that"
            )
        if not _inside(folder, path, handle):
            raise ModelError(f"{where} lies outside of the model's folder {folder!r}; put the file itself there")
        if status.st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(handle, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(handle)


def _inside(folder: str, path: str, handle: int) -> bool:
    """Whether the opened file lies under `folder` once all links are resolved."""
    try:
        real = os.readlink(f"/proc/self/fd/{handle}")
    except OSError:
        real = os.path.realpath(path)
    return Path(os.path.realpath(folder)) in Path(real).parents


def location_of(entries: Any, tensor: str) -> tuple[str, int, int | None]:
    """(location, offset, length or None) from a tensor's `external_data` entries.

    Raises:
        ModelError: an entry is malformed.
    """
    table = {entry.key: entry.value for entry in entries}
    try:
        offset = int(table.get("offset") or 0)
        length = int(table["length"]) if table.get("length") else None
    except ValueError:
        raise ModelError(f'tensor "{tensor}" has a malformed external data entry: {table}') from None
    return table.get("location", ""), offset, length
