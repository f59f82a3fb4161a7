"""The Python interface: model file → callable `Model`, through the compiler, the C compiler and the cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smartmem.errors import InputError, ModelError
from smartmem.levels import LEVELS
from smartmem.runtime import march as isa
from smartmem.runtime import package
from smartmem.runtime.artifact import Program
from smartmem.runtime.cache import Cache, open_cache
from smartmem.runtime.cc import Compiler, build_library, compiler_key, find_compiler
from smartmem.runtime.fingerprint import program_key
from smartmem.runtime.model import Model
from smartmem.runtime.plan import plan_source

Progress = Callable[[str, int, int], None]
Shapes = Mapping[str, Sequence[int]]
CACHED_BYTES = 8 << 30  # whole models are kept up to this size in total


def compile(
    model: Any,
    shapes: Shapes | None = None,
    threads: int | None = None,
    level: str = "full",
    march: str = "native",
    progress: bool | Progress = False,
) -> Model:
    """Compile a model for this machine, or take it from the cache.

    Args:
        model: path of an ONNX file, or an `onnx.ModelProto`.
        shapes: shape of each input that has symbolic dimensions, by input name.
        threads: size of the thread pool; None: one per usable physical core.
        level: how far to optimize, one of `smartmem.LEVELS`.
        march: instruction set, as the C compiler calls it; "native" is this machine's.
        progress: True shows a progress bar on a terminal; a function is called with (phase, done, total).

    Raises:
        ModelError: the file is missing, damaged, or holds what cannot be compiled.
        InputError: an option or a shape does not fit.
        RuntimeFailure: no C compiler, or it does not work.
    """
    cache = open_cache()
    with _watching(progress) as report:
        compiler = find_compiler()
        key = _key(model, shapes, level, march, compiler)
        if key is not None and (found := cache.find("models", key, package.SUFFIX)):
            with contextlib.suppress(ModelError):  # damaged: make it again
                return package.load(found, threads, cache)
        program = build_program(model, shapes, level, march, report)
        library = link(program, compiler, cache, report)
        features = isa.features(compiler.macros(march))
        if key is not None and cache.root is not None:
            # An OSError from here is the cache's, which goes on without its folder then.
            cache.add("models", key, package.SUFFIX, lambda path: package.write(program, library, path, features))
            cache.trim("models", CACHED_BYTES)
    return Model(program, library, threads, features=features, keep=cache)


def load(path: str | os.PathLike[str], threads: int | None = None) -> Model:
    """Load a model that `smartmem compile` (or `Model.save`) wrote.

    Args:
        path: the .smem file.
        threads: size of the thread pool; None: one per usable physical core.

    Raises:
        ModelError: no such file, not a compiled model, or damaged.
        RuntimeFailure: it was made for another machine.
    """
    return package.load(Path(path), threads)


def compile_to(
    model: Any, output: Path, shapes: Shapes | None, level: str, march: str, progress: bool | Progress = False
) -> Program:
    """Compile a model, for another machine too, and write it to `output`."""
    cache = open_cache()
    with _watching(progress) as report:
        compiler = find_compiler()
        program = build_program(model, shapes, level, march, report)
        library = link(program, compiler, cache, report)
    package.save(program, library, output, isa.features(compiler.macros(march)))
    return program


def build_program(
    model: Any, shapes: Shapes | None, level: str, march: str, progress: Progress | None = None
) -> Program:
    """Run the compiler proper, without compiling C."""
    if level not in LEVELS:
        raise InputError(f"no level {level!r}; choose one of {', '.join(LEVELS)}")
    from smartmem.compiler import build_program as build

    source = os.fspath(model) if isinstance(model, (str, os.PathLike)) else model
    fixed = {name: tuple(map(int, shape)) for name, shape in (shapes or {}).items()}
    return build(source, shapes=fixed, level=level, march=march, progress=progress)


def link(program: Program, compiler: Compiler, cache: Cache, progress: Progress | None = None) -> Path:
    """Compile the program's C and link it with its plan and the thread pool."""
    return build_library({**program.sources, "plan.c": plan_source(program)}, program.march, cache, compiler, progress)


def _key(model: Any, shapes: Shapes | None, level: str, march: str, compiler: Compiler) -> str | None:
    return program_key(model, shapes, level, march, compiler_key(compiler, march))


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
