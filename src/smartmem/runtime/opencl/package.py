"""A model for an OpenCL device as a file: the parts of an `archive`.

    manifest.json         slots, steps, places; the device that it was compiled for
    sources.json          OpenCL C by file name
    weights.safetensors   constants as the kernels read them
    report.json           what `explain` shows

Kernels are kept as source: the driver of the machine that loads the file builds them, and the cache keeps the result.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smartmem.device import Device, MemoryCosts
from smartmem.errors import RuntimeFailure
from smartmem.runtime import archive, tensorfile
from smartmem.runtime.archive import Archive
from smartmem.runtime.artifact import HostStep, TensorSpec
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.build import Progress
from smartmem.runtime.opencl.devices import list_devices
from smartmem.runtime.opencl.memory import buffer_bytes
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram, DeviceSlot, LaunchStep
from smartmem.runtime.package import host_step_in, shaped, step_out

_KINDS = ("input", "output", "weight", "activation", "host", "check")


def save(program: DeviceProgram, device: Device, path: Path) -> None:
    """Write `program`, compiled for `device`, to `path`.

    Raises:
        RuntimeFailure: the file cannot be written.
    """
    archive.save(path, *_contents(program, device))


def write(program: DeviceProgram, device: Device, path: Path) -> None:
    """Like `save`, with the OSError as it is."""
    archive.write(path, *_contents(program, device))


def load(file: Archive, cache: Cache, device: Device | None = None, progress: Progress | None = None) -> DeviceModel:
    """The model in `file`.

    Args:
        file: that `save` wrote.
        cache: where built kernels are kept.
        device: where it runs; None: on the device of the name that it was compiled for.
        progress: called with ("compile", done, total).

    Raises:
        ModelError: the file is damaged.
        RuntimeFailure: there is no such device here.
    """
    try:
        weights = tensorfile.read(file.parts["weights.safetensors"], str(file.path))
        texts = [json.loads(file.parts[name].tobytes()) for name in ("sources.json", "report.json")]
        program = _program(file.manifest, weights, *texts)
        _check(program)
        costs = MemoryCosts(**file.manifest["device"].pop("costs"))
        made_for = Device(**file.manifest["device"], costs=costs)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise file.damaged(error) from None
    # The weights are views of the mapped file, which lives as long as they do.
    return DeviceModel(program, device or _here(file.path, made_for), cache=cache, progress=progress)


def _here(path: Path, made_for: Device) -> Device:
    """The device as it is now: its driver may be another one, with other limits."""
    devices = list_devices()
    same = [device for device in devices if device.name == made_for.name]
    if not same:
        names = ", ".join(repr(device.name) for device in devices)
        raise RuntimeFailure(f"{path}: made for {made_for.name!r}, here is {names}; compile the .onnx file for that")
    return min(
        same,
        key=lambda device: (
            device.platform != made_for.platform,
            device.driver != made_for.driver,
            device.index != made_for.index,
        ),
    )


def _contents(program: DeviceProgram, device: Device) -> tuple[dict[str, Any], dict[str, archive.Part]]:
    manifest = {
        "name": program.name,
        "level": program.level,
        "device": asdict(device),
        "options": program.options,
        "buffers": program.buffers,
        "images": program.images,
        "checks": program.checks,
        "inputs": [asdict(spec) for spec in program.inputs],
        "outputs": [asdict(spec) for spec in program.outputs],
        "slots": [asdict(slot) for slot in program.slots],
        "steps": [step_out(step) for step in program.steps],
    }
    parts: dict[str, archive.Part] = {
        "sources.json": json.dumps(program.sources).encode(),
        "weights.safetensors": program.weights,
        "report.json": json.dumps(program.report).encode(),
    }
    return manifest, parts


def _program(
    manifest: dict[str, Any], weights: dict[str, Any], sources: dict[str, str], report: dict[str, Any]
) -> DeviceProgram:
    return DeviceProgram(
        name=str(manifest["name"]),
        level=str(manifest["level"]),
        device=str(manifest["device"]["name"]),
        options=str(manifest["options"]),
        inputs=[TensorSpec(**shaped(entry)) for entry in manifest["inputs"]],
        outputs=[TensorSpec(**shaped(entry)) for entry in manifest["outputs"]],
        slots=[DeviceSlot(**shaped(entry)) for entry in manifest["slots"]],
        steps=[_step_in(entry) for entry in manifest["steps"]],
        buffers=[int(nbytes) for nbytes in manifest["buffers"]],
        images=[(int(width), int(height), str(stored)) for width, height, stored in manifest["images"]],
        weights=weights,
        sources={str(name): str(text) for name, text in sources.items()},
        report=report,
        checks=[str(text) for text in manifest["checks"]],
    )


def _step_in(entry: dict[str, Any]) -> LaunchStep | HostStep:
    tuples: dict[str, Any] = {
        name: tuple(entry[name]) for name in ("global_size", "local_size", "args", "writes") if name in entry
    }
    return host_step_in(entry) or LaunchStep(**(entry | tuples))


def _check(program: DeviceProgram) -> None:
    """What would otherwise make kernels read or write outside of their memory.

    Raises:
        ValueError, IndexError, KeyError: something does not fit.
    """
    names = {"input": {s.name for s in program.inputs}, "output": {s.name for s in program.outputs}}
    names["weight"] = set(program.weights)
    for slot in program.slots:
        if slot.kind not in _KINDS:
            raise ValueError(f"slot kind {slot.kind}")
        if slot.kind in names and slot.name not in names[slot.kind]:
            raise KeyError(slot.name)
        if slot.kind != "activation":
            continue
        if slot.memory == "texture":
            width, height, stored = program.images[slot.place]
            if slot.place < 0 or slot.width > width or slot.height > height or slot.stored != stored:
                raise ValueError(f"{slot.name} does not fit its image")
        elif slot.place < 0 or buffer_bytes(slot) > program.buffers[slot.place]:
            raise ValueError(f"{slot.name} does not fit its buffer")
    for step in program.steps:
        if isinstance(step, LaunchStep) and (min(step.args, default=0) < 0 or not set(step.writes) <= set(step.args)):
            raise IndexError(f"arguments of {step.kernel}")
        for at in step.args if isinstance(step, LaunchStep) else (*step.inputs, *step.outputs):
            if not -1 <= at < len(program.slots):
                raise IndexError(f"slot {at}")
