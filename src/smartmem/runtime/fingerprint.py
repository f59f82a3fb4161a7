"""What a compiled model follows from, as one text: the key under which the cache keeps whole models.

In: a model file (with its external data), options, the C compiler. Out: a text that differs whenever the compiled model
could. It is found without the onnx package, whose import alone takes longer than loading a model from the cache:
external data files are found by how their names look in the file (protobuf's bytes for the key "location"). A match
that is something else only adds a file to the key.

What it takes time to find (the digests of the model, of smartmem's sources, the C compiler's version) is remembered for
as long as the files do not change.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smartmem.runtime import march as isa
from smartmem.runtime.cache import Cache
from smartmem.runtime.remember import remembered

if TYPE_CHECKING:
    from smartmem.runtime.cc import Compiler

# StringStringEntryProto {1: "location", 2: name}: field 1, length 8, "location", field 2, length, name
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x00-\xff])")
_KEY = re.compile(rb"\x08location")
_ROOT = Path(__file__).parent.parent
_LONG = 128  # lengths from here on take two bytes; such names are not looked for


def program_key(
    model: Any,
    shapes: Mapping[str, Sequence[int]] | None,
    level: str,
    march: str,
    compiler: str,
    cache: Cache | None = None,
) -> str | None:
    """The key of a compiled model, or None if it should not be cached.

    Args:
        model: path of a model file, or a ModelProto.
        shapes: shapes given for inputs.
        level: optimization level.
        march: instruction set.
        compiler: `cc.compiler_key` of the C compiler.
        cache: where digests of files are remembered; None: nowhere.
    """
    content = _proto_digest(model) if hasattr(model, "SerializeToString") else _file_digests(Path(model), cache)
    if content is None:
        return None
    return json.dumps(
        {
            "content": content,
            "shapes": sorted((name, list(map(int, shape))) for name, shape in (shapes or {}).items()),
            "level": level,
            "march": march,
            "smartmem": _known_source_digest(cache and cache.root),
            "compiler": compiler,
        }
    )


def known_compiler_key(compiler: Compiler, march: str, cache: Cache) -> str:
    """`cc.compiler_key`, which starts the compiler twice, or what it was when compiler, CPU and smartmem were the same.

    Raises:
        InputError: the compiler does not know `march`.
        RuntimeFailure: the compiler cannot be run.
    """
    from smartmem.runtime.cc import compiler_key

    cpu = isa.cpu_text()
    if compiler.binary is None or cpu is None:
        return compiler_key(compiler, march)
    what = json.dumps(["compiler", compiler.command, march, cpu, _known_source_digest(cache.root)])
    return remembered(cache, what, [compiler.binary], lambda: compiler_key(compiler, march))


@functools.cache
def source_digest() -> str:
    """SHA-256 of smartmem's own source files: a changed compiler makes other programs."""
    digest = hashlib.sha256()
    for path in map(Path, _sources()):
        digest.update(f"{path.relative_to(_ROOT).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _known_source_digest(root: Path | None) -> str:
    """`source_digest`, as the cache in `root` remembers it."""
    return remembered(Cache(root), "sources", _sources(), source_digest)


def _sources() -> tuple[str, ...]:
    """smartmem's own source files."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(_ROOT) for name in names]
    return tuple(sorted(path for path in paths if path.endswith((".py", ".c", ".h", ".cl"))))


def _proto_digest(model: Any) -> list[str] | None:
    if any(tensor.data_location == 1 for tensor in model.graph.initializer):  # EXTERNAL: relative to no known folder
        return None
    try:
        return [hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()]
    except Exception:  # protobuf cannot serialize 2 GB, and has no single type of error to say so
        return None


def _file_digests(path: Path, cache: Cache | None) -> list[str] | None:
    """SHA-256 of the model file and of each external file; None where one is missing or not a plain file."""
    try:
        digest, *names = json.loads(remembered(cache, "model", [path], lambda: _model_facts(path)))
        digests = [digest]
        for name in names:
            file = path.parent / name
            # Links are the frontend's to judge. It runs only where nothing is found in the cache.
            if file.is_symlink() or file.stat().st_nlink != 1 or not file.is_file():
                return None
            if path.parent.resolve() not in file.resolve().parents:
                return None
            digests += [name, remembered(cache, "data", [file], functools.partial(_sha256, file))]
    except (OSError, ValueError):
        return None
    return digests


def _model_facts(path: Path) -> str:
    """SHA-256 of a model file and the names of its external files, as JSON."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        names = sorted({os.fsdecode(name) for name in _locations(data)})
        return json.dumps([hashlib.sha256(data).hexdigest(), *names])


def _locations(data: mmap.mmap) -> list[bytes]:
    """Names of external files.

    Raises:
        ValueError: there may be more of them than are understood here.
    """
    names = []
    matches = list(_LOCATION.finditer(data))
    if len(matches) != len(_KEY.findall(data)):
        raise ValueError("external data that is written in an unusual way")
    for match in matches:
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
