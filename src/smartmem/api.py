"""The Python interface: model file → callable `Model`, through the compiler, the C compiler and the cache."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from smartmem.device import PARTS, Device, DeviceOptions, LayoutMethod, Memory, Precision
from smartmem.errors import InputError, ModelError
from smartmem.levels import LEVELS
from smartmem.runtime import march as isa
from smartmem.runtime import package
from smartmem.runtime.archive import SUFFIX
from smartmem.runtime.artifact import Program
from smartmem.runtime.cache import Cache, open_cache
from smartmem.runtime.cc import Compiler, build_library, find_compiler
from smartmem.runtime.fingerprint import known_compiler_key, program_key
from smartmem.runtime.model import Model
from smartmem.runtime.plan import plan_source

if TYPE_CHECKING:
    from smartmem.runtime.opencl.model import DeviceModel
    from smartmem.runtime.opencl.program import DeviceProgram

Progress = Callable[[str, int, int], None]
Shapes = Mapping[str, Sequence[int]]
CACHED_BYTES = 8 << 30  # whole models are kept up to this size in total


@overload
def compile(
    model: Any,
    shapes: Shapes | None = None,
    threads: int | None = None,
    level: str = "full",
    march: str = "native",
    progress: bool | Progress = False,
    *,
    device: Literal["cpu"] = "cpu",
) -> Model: ...


@overload
def compile(
    model: Any,
    shapes: Shapes | None = None,
    threads: int | None = None,
    level: str = "full",
    march: str = "native",
    progress: bool | Progress = False,
    *,
    device: str,
    memory: str = "auto",
    precision: str = "fp32",
    layout: str = "greedy",
    check: bool = False,
) -> Model | DeviceModel: ...


def compile(
    model: Any,
    shapes: Shapes | None = None,
    threads: int | None = None,
    level: str = "full",
    march: str = "native",
    progress: bool | Progress = False,
    *,
    device: str = "cpu",
    memory: str = "auto",
    precision: str = "fp32",
    layout: str = "greedy",
    check: bool = False,
) -> Model | DeviceModel:
    """Compile a model for this machine, or take it from the cache.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        shapes: shape of each input that has symbolic dimensions, by input name.
        threads: size of the CPU's thread pool; None: one per usable physical core.
        level: how far to optimize, one of `smartmem.LEVELS`.
        march: the CPU's instruction set, as the C compiler calls it; "native" is this machine's.
        progress: True shows a progress bar on a terminal; a function is called with (phase, done, total).
        device: "cpu", "opencl" (the first device), "opencl:N", or "auto" (a GPU if there is one, else the CPU).
        memory: on OpenCL devices: "auto", or all in "buffer" or "texture" memory where that is possible.
        precision: on OpenCL devices: how values lie in memory, "fp32" or "fp16". On CPUs with matrix units (AMX): what
            products take their operands for, "fp32", "bf16x3" (about 16 bits) or "bf16" (8 bits). Sums are always fp32.
        layout: on OpenCL devices: how layouts are assigned, "greedy" or "exact".
        check: on OpenCL devices: kernels check every coordinate; a call raises if one is out of range.

    Raises:
        ModelError: the file is missing, damaged, or holds what cannot be compiled.
        InputError: an option or a shape does not fit.
        RuntimeFailure: no C compiler or no OpenCL, or it does not work.
    """
    options = device_options(memory, precision, layout, check)
    target = find_device(device, options)
    if target is not None:
        with _watching(progress) as report:
            return _compile_for_device(model, shapes, level, target, options, report)
    cache = open_cache()
    with _watching(progress) as report:
        compiler = find_compiler()
        compiler_key = known_compiler_key(compiler, march, cache)
        key = program_key(model, shapes, level, march, f"{compiler_key}\n{precision}", cache)
        if key is not None and (found := cache.find("models", key, SUFFIX)):
            with contextlib.suppress(ModelError):  # damaged: make it again
                return package.load(found, threads, cache)

        def build() -> tuple[Program, Path, list[str]]:
            program = build_program(model, shapes, level, march, precision, report)
            library = link(program, compiler, cache, report)
            return program, library, _features(program, compiler)

        program, library, features = build()
        kept = None
        if key is not None and cache.root is not None:
            with contextlib.suppress(OSError):  # a disk that is full
                kept = _keep(cache, key, program, library, features)
        if kept is None:
            return Model(program, library, threads, features=features, keep=cache)
        del program  # and its weights: those of the stored model are mapped
        return package.load(kept, threads, cache)


def _keep(cache: Cache, key: str, program: Program, library: Path, features: list[str]) -> Path:
    """Store a compiled model; its file."""
    # An OSError from here is the cache's, which goes on without its folder then.
    kept = cache.add("models", key, SUFFIX, lambda path: package.write(program, library, path, features))
    cache.trim("models", CACHED_BYTES)
    return kept


def _features(program: Program, compiler: Compiler) -> list[str]:
    """CPU features that a program's code needs."""
    units = any("sm_units_begin" in text for text in program.sources.values())
    return isa.features(compiler.macros(program.march), units)


def find_device(name: str, options: DeviceOptions) -> Device | None:
    """The device that `name` means; None is the CPU.

    Raises:
        InputError: no such device, or options that the CPU does not have.
        RuntimeFailure: there is no OpenCL.
    """
    device = None
    if name != "cpu":
        from smartmem.runtime.opencl.devices import select

        device = select(name)
    if device is not None:
        if options.precision not in ("fp32", "fp16"):
            raise InputError(f"precision {options.precision} is for CPUs, this is {device.name}: choose fp32 or fp16")
        return device
    found = "the CPU" if name == "cpu" else "the CPU, as there is no GPU"
    if replace(options, precision="fp32") != DeviceOptions():
        raise InputError(f"memory, layout and check are for OpenCL devices, this is {found}: --device opencl")
    if options.precision not in PARTS:
        raise InputError(
            f"precision {options.precision} is for OpenCL devices, this is {found}: --device opencl, or one of "
            f"{', '.join(PARTS)}"
        )
    return None


def device_options(
    memory: str = "auto", precision: str = "fp32", layout: str = "greedy", check: bool = False
) -> DeviceOptions:
    """`DeviceOptions` of words.

    Raises:
        InputError: an unknown word.
    """
    for option, word, known in (
        ("memory", memory, get_args(Memory)),
        ("precision", precision, get_args(Precision)),
        ("layout", layout, get_args(LayoutMethod)),
    ):
        if word not in known:
            raise InputError(f"no {option} {word!r}; choose one of {', '.join(known)}")
    return DeviceOptions(memory, precision, layout, check)  # type: ignore[arg-type]


def load(path: str | os.PathLike[str], threads: int | None = None) -> Model | DeviceModel:
    """Load a model that `smartmem compile` (or a model's `save`) wrote.

    Args:
        path: the .smem file.
        threads: size of the CPU's thread pool; None: one per usable physical core.

    Raises:
        ModelError: no such file, not a compiled model, or damaged.
        RuntimeFailure: it was made for another machine.
    """
    return package.load(Path(path), threads)


def compile_to(
    model: Any,
    output: Path,
    shapes: Shapes | None,
    level: str,
    march: str,
    progress: bool | Progress = False,
    device: Device | None = None,
    options: DeviceOptions | None = None,
) -> Program | DeviceProgram:
    """Compile a model, for another machine too, and write it to `output`; `device` None is the CPU."""
    if device is not None:
        from smartmem.runtime.opencl.package import save

        options = options or DeviceOptions()
        with _watching(progress) as report:
            measured = _fastest(model, shapes, level, device, options, open_cache(), report)
            if measured is None:
                for_device = build_device_program(model, shapes, level, device, options, report)
            else:
                for_device = measured.program
                measured.close()
        save(for_device, device, output)
        return for_device
    cache = open_cache()
    with _watching(progress) as report:
        compiler = find_compiler()
        precision = options.precision if options else "fp32"
        program = build_program(model, shapes, level, march, precision, report)
        library = link(program, compiler, cache, report)
    package.save(program, library, output, _features(program, compiler))
    return program


def build_program(
    model: Any, shapes: Shapes | None, level: str, march: str, precision: str, progress: Progress | None = None
) -> Program:
    """Run the compiler proper, without compiling C."""
    from smartmem.compiler import build_program as build

    source, fixed = _arguments(model, shapes, level)
    return build(source, shapes=fixed, level=level, march=march, precision=precision, progress=progress)


def build_device_program(
    model: Any,
    shapes: Shapes | None,
    level: str,
    device: Device,
    options: DeviceOptions,
    progress: Progress | None = None,
) -> DeviceProgram:
    """Run the compiler proper for an OpenCL device, without building its kernels."""
    from smartmem.compiler import build_device_program as build

    half = options.precision == "fp16"
    if options.memory != "buffer" and not device.has_images(half):
        kind = "images of halves" if device.images else "images"
        warnings.warn(f"{device.name} has no {kind}: all tensors lie in buffers", RuntimeWarning, stacklevel=2)
    source, fixed = _arguments(model, shapes, level)
    return build(source, shapes=fixed, level=level, device=device, options=options, progress=progress)


def link(program: Program, compiler: Compiler, cache: Cache, progress: Progress | None = None) -> Path:
    """Compile the program's C and link it with its plan and the thread pool."""
    return build_library({**program.sources, "plan.c": plan_source(program)}, program.march, cache, compiler, progress)


def _arguments(model: Any, shapes: Shapes | None, level: str) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The model and its shapes as the compiler takes them."""
    if level not in LEVELS:
        raise InputError(f"no level {level!r}; choose one of {', '.join(LEVELS)}")
    source = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model
    return source, {name: tuple(map(int, shape)) for name, shape in (shapes or {}).items()}


def _compile_for_device(
    model: Any,
    shapes: Shapes | None,
    level: str,
    device: Device,
    options: DeviceOptions,
    progress: Progress | None,
) -> DeviceModel:
    from smartmem.runtime import archive
    from smartmem.runtime.opencl import package as device_package
    from smartmem.runtime.opencl.model import DeviceModel

    cache = open_cache()
    key = program_key(model, shapes, level, "", json.dumps([asdict(device), asdict(options)]), cache)
    if key is not None and (found := cache.find("models", key, SUFFIX)):
        with contextlib.suppress(ModelError):  # damaged: make it again
            return device_package.load(archive.read(found, cache), cache, device, progress)

    compiled = _fastest(model, shapes, level, device, options, cache, progress)
    if compiled is None:
        program = build_device_program(model, shapes, level, device, options, progress)
        compiled = DeviceModel(program, device, cache=cache, progress=progress)
    if key is not None and cache.root is not None:
        with contextlib.suppress(OSError):  # a disk that is full
            cache.add("models", key, SUFFIX, lambda path: device_package.write(compiled.program, device, path))
            cache.trim("models", CACHED_BYTES)
    return compiled


def _fastest(
    model: Any,
    shapes: Shapes | None,
    level: str,
    device: Device,
    options: DeviceOptions,
    cache: Cache,
    progress: Progress | None,
) -> DeviceModel | None:
    """The fastest placement of the model's tensors, measured; None where the cost model has the last word."""
    if options.memory != "auto" or level != "full" or device.kind != "gpu" or not device.images:
        return None
    from smartmem.runtime.opencl.tune import fastest

    def build(memory: Memory) -> DeviceProgram:
        return build_device_program(model, shapes, level, device, replace(options, memory=memory), progress)

    return fastest(build, device, cache, progress)


@contextlib.contextmanager
def _watching(progress: bool | Progress) -> Iterator[Progress | None]:
    if callable(progress):
        yield progress
    elif progress:
        from smartmem.report.progress import progress_bar

        with progress_bar() as report:
            yield report
    else:
        yield None
