"""A compiled model as one file: `save` and `load`.

A `.smem` file is a zip whose members are stored, not compressed, and start at multiples of 64 bytes, so that the
weights are mapped into memory where they lie:

    manifest.json         what to call with what; the SHA-256 of the other parts; the CPU features the code needs
    model.so              kernels, plan and thread pool
    weights.safetensors   constants as the kernels read them
    report.json           what `explain` shows

Nothing in it is pickled, and loading needs no onnx package unless steps run on the host. It does hold machine code:
load files only from where you would take a program. The SHA-256 are there to find damage, not to prove an origin.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from smartmem.errors import ModelError, RuntimeFailure
from smartmem.runtime import march as isa
from smartmem.runtime import tensorfile
from smartmem.runtime.arrays import ALIGNMENT, Array, dtype_of
from smartmem.runtime.artifact import HostStep, NativeStep, Program, Slot, TensorSpec
from smartmem.runtime.cache import Cache, open_cache, replacing
from smartmem.runtime.model import Model

FORMAT = 1
SUFFIX = ".smem"
_PARTS = ("model.so", "weights.safetensors", "report.json")
_HOST_ATTRS = ("captures", "flatten", "axis", "opsets")


def save(program: Program, library: Path, path: Path, features: list[str]) -> None:
    """Write `program`, linked to `library`, to `path`.

    Args:
        program: compiled model.
        library: its shared library.
        path: the file to write, by way of a temporary file beside it.
        features: CPU features that the library needs, as /proc/cpuinfo names them.

    Raises:
        RuntimeFailure: the file cannot be written.
    """
    try:
        write(program, library, path, features)
    except OSError as error:
        raise RuntimeFailure(f"{path}: cannot be written ({error.strerror or error})") from None


def write(program: Program, library: Path, path: Path, features: list[str]) -> None:
    """Like `save`, with the OSError as it is."""
    code = library.read_bytes()
    report = json.dumps(program.report).encode()
    digest = _Digest()
    tensorfile.write(program.weights, digest)  # type: ignore[arg-type]  # all that it does is write()
    sums = {
        "model.so": hashlib.sha256(code).hexdigest(),
        "weights.safetensors": digest.sha.hexdigest(),
        "report.json": hashlib.sha256(report).hexdigest(),
    }
    text = json.dumps(_manifest(program, sums, features), indent=1).encode()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "manifest.json", len(text), lambda file: file.write(text))
        _add(archive, "model.so", len(code), lambda file: file.write(code))
        weights = program.weights
        _add(archive, _PARTS[1], tensorfile.size(weights), lambda file: tensorfile.write(weights, file))
        _add(archive, "report.json", len(report), lambda file: file.write(report))


def load(path: Path, threads: int | None = None, cache: Cache | None = None) -> Model:
    """Read a compiled model.

    Args:
        path: a file that `save` wrote.
        threads: size of the thread pool; None: one per usable physical core.
        cache: where the library is unpacked to; None: the user's cache.

    Raises:
        ModelError: no such file, not a compiled model, or a part of it does not match its SHA-256.
        RuntimeFailure: this machine cannot run it.
    """
    content = _map(path)
    parts = _parts(path, content)
    try:
        manifest = json.loads(parts["manifest.json"].tobytes())
        version, sums = manifest["format"], dict(manifest["sha256"])
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a compiled model (its manifest is damaged: {error!r})") from None
    if version != FORMAT:
        raise ModelError(f"{path}: format {version}, this smartmem reads {FORMAT}; compile the model again")
    for name in _PARTS:
        if name not in parts or hashlib.sha256(parts[name].data).hexdigest() != sums.get(name):
            raise ModelError(
                f"{path}: {name} does not match its SHA-256: the file is damaged; copy or compile it again"
            )
    try:
        weights = tensorfile.read(parts["weights.safetensors"], str(path))
        program = _program(manifest, weights, json.loads(parts["report.json"].tobytes()))
        _check(program)
        family, features = str(manifest["family"]), [str(name) for name in manifest["features"]]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"{path}: not a compiled model (its manifest is damaged: {error!r})") from None
    _check_machine(path, program.march, family, features)
    cache = cache or open_cache()
    sha = sums["model.so"]
    library = cache.find("unpacked", sha, ".so")
    if library is None or hashlib.sha256(library.read_bytes()).hexdigest() != sha:
        library = cache.add("unpacked", sha, ".so", parts["model.so"].tobytes())
    return Model(program, library, threads, features=features, keep=(cache, content))


def _manifest(program: Program, sums: dict[str, str], features: list[str]) -> dict[str, Any]:
    from smartmem.version import __version__

    return {
        "format": FORMAT,
        "smartmem": __version__,
        "name": program.name,
        "level": program.level,
        "march": program.march,
        "family": isa.family(program.march),
        "features": features,
        "arena_bytes": program.arena_bytes,
        "scratch_bytes": program.scratch_bytes,
        "sha256": sums,
        "inputs": [asdict(spec) for spec in program.inputs],
        "outputs": [asdict(spec) for spec in program.outputs],
        "slots": [asdict(slot) for slot in program.slots],
        "steps": [_step_out(step) for step in program.steps],
    }


def _program(manifest: dict[str, Any], weights: dict[str, Array], report: dict[str, Any]) -> Program:
    return Program(
        name=str(manifest["name"]),
        level=str(manifest["level"]),
        march=str(manifest["march"]),
        inputs=[TensorSpec(**_shaped(entry)) for entry in manifest["inputs"]],
        outputs=[TensorSpec(**_shaped(entry)) for entry in manifest["outputs"]],
        slots=[Slot(**_shaped(entry)) for entry in manifest["slots"]],
        steps=[_step_in(entry) for entry in manifest["steps"]],
        arena_bytes=int(manifest["arena_bytes"]),
        scratch_bytes=int(manifest["scratch_bytes"]),
        weights=weights,
        sources={},
        report=report,
    )


def _shaped(entry: dict[str, Any]) -> dict[str, Any]:
    shape = entry.get("shape")
    return {**entry, "shape": None if shape is None else tuple(int(extent) for extent in shape)}


def _step_out(step: NativeStep | HostStep) -> dict[str, Any]:
    entry = asdict(step)
    if isinstance(step, HostStep):
        entry["proto"] = base64.b64encode(step.proto).decode()
        if "attrs" in entry:  # the rest of them is in `proto`
            entry["attrs"] = {name: value for name, value in entry["attrs"].items() if name in _HOST_ATTRS}
    return entry


def _step_in(entry: dict[str, Any]) -> NativeStep | HostStep:
    if "proto" not in entry:
        return NativeStep(**{**entry, "args": tuple(entry["args"])})
    operands = {name: tuple(entry[name]) for name in ("inputs", "outputs")}
    return HostStep(**{**entry, **operands, "proto": base64.b64decode(entry["proto"])})


def _check(program: Program) -> None:
    """What would otherwise make native code read or write outside of its arrays.

    Raises:
        ValueError, IndexError, KeyError: something does not fit.
    """
    names = {"input": {s.name for s in program.inputs}, "output": {s.name for s in program.outputs}}
    names["weight"] = set(program.weights)
    for slot in program.slots:
        if slot.kind not in ("input", "output", "weight", "arena", "host"):
            raise ValueError(f"slot kind {slot.kind}")
        if slot.kind in names and slot.name not in names[slot.kind]:
            raise KeyError(slot.name)
        size = math.prod(slot.shape or ()) * dtype_of(slot.dtype).itemsize
        if slot.kind == "arena" and not 0 <= slot.offset <= slot.offset + size <= program.arena_bytes:
            raise ValueError(f"{slot.name} lies outside of the arena")
    for step in program.steps:
        for at in step.args if isinstance(step, NativeStep) else (*step.inputs, *step.outputs):
            if not -1 <= at < len(program.slots):
                raise IndexError(f"slot {at}")


def _check_machine(path: Path, march: str, family: str, features: list[str]) -> None:
    if family != isa.host_family():
        raise RuntimeFailure(
            f"{path}: made for {family} CPUs ({march}), this machine is {isa.host_family()}; "
            "compile it with a --march of this machine"
        )
    if missing := isa.missing_features(features):
        raise RuntimeFailure(
            f"{path}: made for {march}, this CPU lacks {', '.join(missing)}; compile it with another --march"
        )


class _Digest:
    """A file that only takes its SHA-256."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self.sha.update(data)


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
    if "manifest.json" not in parts:
        raise ModelError(f"{path}: not a compiled model (no manifest.json); make one with `smartmem compile`")
    return parts
