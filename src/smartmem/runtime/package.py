"""A compiled model as one file: `save` and `load`.

A `.smem` file is an `archive` of

    manifest.json         what to call with what; the CPU features the code needs
    model.so              kernels, plan and thread pool
    weights.safetensors   constants as the kernels read them
    report.json           what `explain` shows

or of a model for an OpenCL device (`opencl.package`). Nothing in it is pickled, and loading needs no onnx package
unless steps run on the host. It does hold machine code: load files only from where you would take a program.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smartmem.errors import RuntimeFailure
from smartmem.runtime import archive, tensorfile
from smartmem.runtime import march as isa
from smartmem.runtime.archive import Archive
from smartmem.runtime.arrays import Array, dtype_of
from smartmem.runtime.artifact import HostStep, NativeStep, Program, Slot, TensorSpec
from smartmem.runtime.cache import Cache, open_cache
from smartmem.runtime.model import Model

if TYPE_CHECKING:
    from smartmem.runtime.opencl.model import DeviceModel

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
    archive.save(path, _manifest(program, features), _contents(program, library))


def write(program: Program, library: Path, path: Path, features: list[str]) -> None:
    """Like `save`, with the OSError as it is."""
    archive.write(path, _manifest(program, features), _contents(program, library))


def load(path: Path, threads: int | None = None, cache: Cache | None = None) -> Model | DeviceModel:
    """Read a compiled model.

    Args:
        path: a file that `save` wrote.
        threads: size of the thread pool; None: one per usable physical core.
        cache: where the library is unpacked to, and where it is remembered that the file matches its SHA-256; None: the
            user's cache.

    Raises:
        ModelError: no such file, not a compiled model, or a part of it does not match its SHA-256.
        RuntimeFailure: this machine cannot run it.
    """
    cache = cache or open_cache()
    file = archive.read(path, cache)
    if "device" in file.manifest:
        from smartmem.runtime.opencl.package import load as load_for_device

        return load_for_device(file, cache)
    try:
        weights = tensorfile.read(file.parts["weights.safetensors"], str(path))
        program = _program(file.manifest, weights, json.loads(file.parts["report.json"].tobytes()))
        _check(program)
        family, features = str(file.manifest["family"]), [str(name) for name in file.manifest["features"]]
        library = _library(file, cache)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise file.damaged(error) from None
    _check_machine(path, program.march, family, features)
    return Model(program, library, threads, features=features, keep=(cache, file))


def _library(file: Archive, cache: Cache) -> Path:
    """The shared library, unpacked."""
    code, sha = file.parts["model.so"], file.sums["model.so"]
    library = cache.find("unpacked", sha, ".so")
    if library is None or hashlib.sha256(library.read_bytes()).hexdigest() != sha:
        library = cache.add("unpacked", sha, ".so", code.tobytes())
    return library


def _contents(program: Program, library: Path) -> dict[str, archive.Part]:
    return {
        "model.so": library.read_bytes(),
        "weights.safetensors": program.weights,
        "report.json": json.dumps(program.report).encode(),
    }


def _manifest(program: Program, features: list[str]) -> dict[str, Any]:
    return {
        "name": program.name,
        "level": program.level,
        "march": program.march,
        "family": isa.family(program.march),
        "features": features,
        "arena_bytes": program.arena_bytes,
        "scratch_bytes": program.scratch_bytes,
        "inputs": [asdict(spec) for spec in program.inputs],
        "outputs": [asdict(spec) for spec in program.outputs],
        "slots": [asdict(slot) for slot in program.slots],
        "steps": [step_out(step) for step in program.steps],
    }


def _program(manifest: dict[str, Any], weights: dict[str, Array], report: dict[str, Any]) -> Program:
    return Program(
        name=str(manifest["name"]),
        level=str(manifest["level"]),
        march=str(manifest["march"]),
        inputs=[TensorSpec(**shaped(entry)) for entry in manifest["inputs"]],
        outputs=[TensorSpec(**shaped(entry)) for entry in manifest["outputs"]],
        slots=[Slot(**shaped(entry)) for entry in manifest["slots"]],
        steps=[_step_in(entry) for entry in manifest["steps"]],
        arena_bytes=int(manifest["arena_bytes"]),
        scratch_bytes=int(manifest["scratch_bytes"]),
        weights=weights,
        sources={},
        report=report,
    )


def shaped(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a slot or a TensorSpec, from JSON."""
    shape = entry.get("shape")
    return {**entry, "shape": None if shape is None else tuple(int(extent) for extent in shape)}


def step_out(step: Any) -> dict[str, Any]:
    """A step of either kind of program as JSON."""
    entry = asdict(step)
    if isinstance(step, HostStep):
        import base64

        entry["proto"] = base64.b64encode(step.proto).decode()
        if "attrs" in entry:  # the rest of them is in `proto`
            entry["attrs"] = {name: value for name, value in entry["attrs"].items() if name in _HOST_ATTRS}
    return entry


def host_step_in(entry: dict[str, Any]) -> HostStep | None:
    """A host step from JSON; None: the step is of another kind."""
    if "proto" not in entry:
        return None
    import base64

    operands = {name: tuple(entry[name]) for name in ("inputs", "outputs")}
    return HostStep(**{**entry, **operands, "proto": base64.b64decode(entry["proto"])})


def _step_in(entry: dict[str, Any]) -> NativeStep | HostStep:
    return host_step_in(entry) or NativeStep(**{**entry, "args": tuple(entry["args"])})


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
