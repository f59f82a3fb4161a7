"""What a compiled model follows from, as one text: the key under which the cache keeps whole models.

In: a model file (with its external data), options, the C compiler. Out: a text that differs whenever the compiled model
could. It is found without the onnx package, whose import alone takes longer than loading a model from the cache:
external data files are found by how their names look in the file (protobuf's bytes for the key "location"). A match
that is something else only adds a file to the key.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# StringStringEntryProto {1: "location", 2: name}: field 1, length 8, "location", field 2, length, name
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\xff])")
_LONG = 128  # lengths from here on take two bytes; such names are not looked for


def program_key(
    model: Any, shapes: Mapping[str, Sequence[int]] | None, level: str, march: str, compiler: str
) -> str | None:
    """The key of a compiled model, or None if it should not be cached.

    Args:
        model: path of a model file, or a ModelProto.
        shapes: shapes given for inputs.
        level: optimization level.
        march: instruction set.
        compiler: `cc.compiler_key` of the C compiler.
    """
    content = _proto_digest(model) if hasattr(model, "SerializeToString") else _file_digests(Path(model))
    if content is None:
        return None
    return json.dumps(
        {
            "content": content,
            "shapes": sorted((name, list(map(int, shape))) for name, shape in (shapes or {}).items()),
            "level": level,
            "march": march,
            "smartmem": source_digest(),
            "compiler": compiler,
        }
    )


@functools.cache
def source_digest() -> str:
    """SHA-256 of smartmem's own source files: a changed compiler makes other programs."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".c", ".h", ".cl"):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _proto_digest(model: Any) -> list[str] | None:
    if any(tensor.data_location == 1 for tensor in model.graph.initializer):  # EXTERNAL: relative to no known folder
        return None
    try:
        return [hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()]
    except Exception:  # protobuf cannot serialize 2 GB, and has no single type of error to say so
        return None


def _file_digests(path: Path) -> list[str] | None:
    """SHA-256 of the model file and of each external file; None where one is missing or not a plain file."""
    try:
        data = path.read_bytes()
        digests = [hashlib.sha256(data).hexdigest()]
        for name in sorted(set(_locations(data))):
            file = path.parent / os.fsdecode(name)
            # Links are the frontend's to judge. It runs only where nothing is found in the cache.
            if file.is_symlink() or file.stat().st_nlink != 1 or not file.is_file():
                return None
            if path.parent.resolve() not in file.resolve().parents:
                return None
            digests += [os.fsdecode(name), _sha256(file)]
    except (OSError, ValueError):
        return None
    return digests


def _locations(data: bytes) -> list[bytes]:
    """Names of external files.

    Raises:
        ValueError: there may be more of them than are understood here.
    """
    names = []
    if len(_LOCATION.findall(data)) != data.count(b"\x08location"):
        raise ValueError("external data that is written in an unusual way")
    for match in _LOCATION.finditer(data):
        length = match.group(1)[0]
        if length >= _LONG:
            raise ValueError("a long name of external data")
        names.append(data[match.end() : match.end() + length])
    return names


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
