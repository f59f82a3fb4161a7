"""The file of a compiled model: a manifest and parts, each with its SHA-256.

In: a manifest (JSON) and named parts, bytes or tensors. Out: a zip whose members are stored, not compressed, and start
at multiples of 64 bytes, so that tensors are mapped into memory where they lie:

    manifest.json         what `write` was given, the format's number, the SHA-256 of each part
    NAME                  bytes
    NAME.safetensors      tensors

The SHA-256 are there to find damage, not to prove an origin. They are compared when a file is read for the first time;
`remember` says when it would be read again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from smartmem.errors import ModelError, RuntimeFailure
from smartmem.runtime import tensorfile
from smartmem.runtime.arrays import ALIGNMENT, Array, ask_for_huge_pages
from smartmem.runtime.cache import Cache, replacing
from smartmem.runtime.remember import remembered

if TYPE_CHECKING:
    import zipfile  # only writing needs it: a cached model should not wait for it

FORMAT = 1
SUFFIX = ".smem"
MANIFEST = "manifest.json"
Part = bytes | Mapping[str, Array]

# As in the zip format's specification: a member's header, and the end of the archive without a comment.
_HEADER = struct.Struct("<4sHHHHHIIIHH")
_END = struct.Struct("<4sHHHHIIH")


@dataclass(frozen=True)
class Archive:
    """A file that was read.

    Attributes:
        path: of the file.
        manifest: what it holds.
        parts: bytes of each part, as views of `content`; their SHA-256 have been compared.
        sums: SHA-256 by part.
        content: the mapped file.
    """

    path: Path
    manifest: dict[str, Any]
    parts: dict[str, Array]
    sums: dict[str, str]
    content: Array

    def damaged(self, error: Exception) -> ModelError:
        """What to raise where the manifest does not say what it should."""
        return _damaged(self.path, error)


def save(path: Path, manifest: dict[str, Any], parts: Mapping[str, Part]) -> None:
    """Like `write`, for a file that the user named.

    Raises:
        RuntimeFailure: the file cannot be written.
    """
    try:
        write(path, manifest, parts)
    except OSError as error:
        raise RuntimeFailure(f"{path}: cannot be written ({error.strerror or error})") from None


def write(path: Path, manifest: dict[str, Any], parts: Mapping[str, Part]) -> None:
    """Write `path`, by way of a temporary file beside it.

    Raises:
        OSError: the file cannot be written.
    """
    import zipfile

    from smartmem.runtime.chunks import ChunkedFile
    from smartmem.version import __version__

    sums = {name: _sha256(part) for name, part in parts.items()}
    text = json.dumps({"format": FORMAT, "smartmem": __version__, "sha256": sums, **manifest}, indent=1).encode()
    with (
        replacing(path) as temporary, ChunkedFile(temporary) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):  # fmt: skip
        for name, part in {MANIFEST: text, **parts}.items():
            size = len(part) if isinstance(part, bytes) else tensorfile.size(part)
            _add(archive, name, size, functools.partial(_put, part))


def read(path: Path, cache: Cache | None = None) -> Archive:
    """Read a file that `write` wrote.

    Args:
        path: of the file.
        cache: where it is remembered that the file matches its SHA-256; None: they are compared in any case.

    Raises:
        ModelError: no such file, not a compiled model, or a part of it does not match its SHA-256.
    """
    content = _map(path)
    parts = _parts(path, content)
    try:
        manifest = json.loads(parts[MANIFEST].tobytes())
        version, sums = manifest["format"], dict(manifest["sha256"])
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from None
    if version != FORMAT:
        raise ModelError(f"{path}: format {version}, this smartmem reads {FORMAT}; compile the model again")
    remembered(cache, "matches its SHA-256", [path], lambda: _compared(path, parts, sums))
    try:
        return Archive(path, manifest, {name: parts[name] for name in sums}, sums, content)
    except KeyError as error:
        raise _damaged(path, error) from None


def _compared(path: Path, parts: Mapping[str, Array], sums: Mapping[str, str]) -> str:
    for name, sha in sums.items():
        if name not in parts or hashlib.sha256(parts[name].data).hexdigest() != sha:
            raise ModelError(
                f"{path}: {name} does not match its SHA-256: the file is damaged; copy or compile it again"
            )
    return "yes"


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: not a compiled model (its manifest is damaged: {error!r})")


class _Digest:
    """A file that only takes its SHA-256."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.sha.update(data)


def _sha256(part: Part) -> str:
    digest = _Digest()
    _put(part, digest)  # type: ignore[arg-type]  # all that it does is write()
    return digest.sha.hexdigest()


def _put(part: Part, file: IO[bytes]) -> None:
    if isinstance(part, bytes):
        file.write(part)
    else:
        tensorfile.write(part, file)


def _add(archive: zipfile.ZipFile, name: str, size: int, write: Callable[[IO[bytes]], object]) -> None:
    """Add a member whose data starts at a multiple of 64 bytes, by padding in the header's extra field."""
    import zipfile

    info = zipfile.ZipInfo(name)  # without the time: equal models give equal files
    large = size >= 1 << 30
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(name.encode()) + (20 if large else 0)
    padding = -(start + 4) % ALIGNMENT
    info.extra = struct.pack("<HH", 0xD935, padding) + b"\0" * padding
    with archive.open(info, "w", force_zip64=large) as file:
        write(file)


def _map(path: Path) -> Array:
    """The file's bytes, mapped; in huge pages where it was written so (`chunks`) or is read from the disk now."""
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise ModelError(f"{path}: cannot be read ({reason})") from None
    ask_for_huge_pages(content)
    return np.frombuffer(content, np.uint8)


def _parts(path: Path, content: Array) -> dict[str, Array]:
    """The zip's members as views of `content`."""
    try:
        if content.size < _END.size or _END.unpack(content[-_END.size :].tobytes())[0] != b"PK\5\6":
            raise ValueError("it is no zip file, or cut off")
        parts = dict(_members(content))
    except (ValueError, struct.error) as error:
        raise ModelError(f"{path}: not a compiled model ({error}); make one with `smartmem compile`") from None
    if MANIFEST not in parts:
        raise ModelError(f"{path}: not a compiled model (no manifest.json); make one with `smartmem compile`")
    return parts


def _members(content: Array) -> Iterator[tuple[str, Array]]:
    """The members from the first header to the zip's directory, which repeats the headers.

    Raises:
        ValueError, struct.error: something that `write` does not write.
    """
    at = 0
    while content[at : at + 4].tobytes() != b"PK\1\2":
        header = _HEADER.unpack(content[at : at + _HEADER.size].tobytes())
        magic, _, flags, method, *_, size, name_size, extra_size = header
        begin = at + _HEADER.size + name_size
        name = content[at + _HEADER.size : begin].tobytes().decode()
        if magic != b"PK\3\4" or flags & 8:  # 8: the sizes follow the data
            raise ValueError(f"no header at byte {at}")
        if method != 0:
            raise ValueError(f"{name} is compressed")
        if size == 0xFFFFFFFF:
            size = _long_size(content[begin : begin + extra_size].tobytes())
        at = begin + extra_size + size
        if at > content.size:
            raise ValueError(f"{name} is cut off")
        yield name, content[begin + extra_size : at]


def _long_size(extra: bytes) -> int:
    """The size in a header's extra field, where members of 4 GiB and more have it."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            return int(struct.unpack_from("<Q", extra, at + 4)[0])
        at += 4 + length
    raise ValueError("a header without a size")
