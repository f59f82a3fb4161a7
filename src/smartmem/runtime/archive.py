"""The file of a compiled model: a manifest and parts, each with its SHA-256.

In: a manifest (JSON) and named parts, bytes or tensors. Out: a zip whose members are stored, not compressed, and start
at multiples of 64 bytes, so that tensors are mapped into memory where they lie:

    manifest.json         what `write` was given, the format's number, the SHA-256 of each part
    NAME                  bytes
    NAME.safetensors      tensors

The SHA-256 are there to find damage, not to prove an origin.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from smartmem.errors import ModelError, RuntimeFailure
from smartmem.runtime import tensorfile
from smartmem.runtime.arrays import ALIGNMENT, Array
from smartmem.runtime.cache import replacing

FORMAT = 1
SUFFIX = ".smem"
MANIFEST = "manifest.json"
Part = bytes | Mapping[str, Array]


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
    from smartmem.version import __version__

    sums = {name: _sha256(part) for name, part in parts.items()}
    text = json.dumps({"format": FORMAT, "smartmem": __version__, "sha256": sums, **manifest}, indent=1).encode()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, part in {MANIFEST: text, **parts}.items():
            size = len(part) if isinstance(part, bytes) else tensorfile.size(part)
            _add(archive, name, size, functools.partial(_put, part))


def read(path: Path) -> Archive:
    """Read a file that `write` wrote.

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
    for name, sha in sums.items():
        if name not in parts or hashlib.sha256(parts[name].data).hexdigest() != sha:
            raise ModelError(
                f"{path}: {name} does not match its SHA-256: the file is damaged; copy or compile it again"
            )
    return Archive(path, manifest, {name: parts[name] for name in sums}, sums, content)


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
    info = zipfile.ZipInfo(name)  # without the time: equal models give equal files
    large = size >= 1 << 30
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(name.encode()) + (20 if large else 0)
    padding = -(start + 4) % ALIGNMENT
    info.extra = struct.pack("<HH", 0xD935, padding) + b"\0" * padding
    with archive.open(info, "w", force_zip64=large) as file:
        write(file)


def _map(path: Path) -> Array:
    """The file's bytes, mapped."""
    try:
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise ModelError(f"{path}: cannot be read ({reason})") from None


def _parts(path: Path, content: Array) -> dict[str, Array]:
    """The zip's members as views of `content`."""
    try:
        with zipfile.ZipFile(os.fspath(path)) as archive:
            parts = {}
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{info.filename} is compressed")
                names = content[info.header_offset + 26 : info.header_offset + 30].tobytes()
                start = info.header_offset + 30 + sum(struct.unpack("<HH", names))
                if start + info.file_size > content.size:
                    raise ValueError(f"{info.filename} is cut off")
                parts[info.filename] = content[start : start + info.file_size]
    except (zipfile.BadZipFile, ValueError, struct.error) as error:
        raise ModelError(f"{path}: not a compiled model ({error}); make one with `smartmem compile`") from None
    if MANIFEST not in parts:
        raise ModelError(f"{path}: not a compiled model (no manifest.json); make one with `smartmem compile`")
    return parts
