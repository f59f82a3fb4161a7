"""The command line: run, explain, profile, compile, bench, counters, devices, demo, cache.

What a user can get wrong is one line on standard error and exit code 2. SMARTMEM_DEBUG=1 (or more) shows the trace.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smartmem.bench.cli import bench
from smartmem.counters.cli import counters
from smartmem.errors import InputError, ModelError, SmartmemError
from smartmem.levels import LEVELS
from smartmem.options import (
    Check,
    DeviceName,
    Given,
    Layout,
    Level,
    March,
    MemoryKind,
    ModelFile,
    OnnxFile,
    Precision,
    Shape,
    Threads,
)
from smartmem.version import __version__
from smartmem.zoo.cli import zoo_app

if TYPE_CHECKING:
    import numpy as np

    from smartmem.device import Device, DeviceOptions
    from smartmem.runtime.compiled import CompiledModel

app = typer.Typer(
    name="smartmem",
    help="Compile neural networks so that no layout transformation is left, and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="What is kept between runs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")
app.add_typer(zoo_app, name="zoo")
app.command()(counters)


@app.callback(invoke_without_command=True)
def version_option(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"smartmem {__version__}")
        raise typer.Exit()


@app.command()
def run(
    model: ModelFile,
    given: Given = None,
    shape: Shape = None,
    level: Level = "full",
    threads: Threads = None,
    march: March = "native",
    save: Annotated[Path | None, typer.Option(metavar="OUT.npz", help="Write the outputs.")] = None,
    compare: Annotated[str | None, typer.Option(metavar="onnxruntime", help="Compare the outputs.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    device: DeviceName = "cpu",
    memory: MemoryKind = "auto",
    precision: Precision = "fp32",
    layout: Layout = "greedy",
    check: Check = False,
) -> None:
    """Run a model once on given or random inputs.

    Exit code 1: --compare found a relative error above 1e-3 (2e-2 with --precision fp16, 5e-2 with bf16), or above 0.2
    if the model quantizes activations, where a rounding that falls the other way is a whole step.
    """
    from smartmem import api
    from smartmem import inputs as data

    if compare not in (None, "onnxruntime"):
        raise InputError(f"--compare {compare}: only onnxruntime is known")
    if compare and model.suffix == ".smem":
        raise InputError(f"--compare onnxruntime needs the .onnx file, {model} is compiled")
    options = api.device_options(memory, precision, layout, check)
    start = time.perf_counter()
    compiled = _open(model, shape, level, threads, march, device, options)
    ready = time.perf_counter()
    specs = compiled.program.inputs
    feeds = data.random_inputs(specs, seed)
    feeds.update(data.read_inputs(given or [], specs))
    began = time.perf_counter()
    outputs = compiled.run(feeds)
    spent = (time.perf_counter() - began) * 1e3
    print(f"{model}: ready in {ready - start:.2f} s, ran in {spent:.2f} ms on {compiled.where}")
    for name, array in zip(compiled.output_names, outputs, strict=True):
        print(f"  {name}: {_summary(array)}")
    if save is not None:
        data.save_outputs(save, dict(zip(compiled.output_names, outputs, strict=True)))
        print(f"outputs written to {save}")
    if compare and not _compare(model, compiled, feeds, outputs, precision):
        raise typer.Exit(1)


@app.command()
def explain(
    model: ModelFile,
    shape: Shape = None,
    level: Level = "full",
    march: March = "native",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every layout operator on its own.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with the totals of every level.")] = False,
    device: DeviceName = "cpu",
    memory: MemoryKind = "auto",
    precision: Precision = "fp32",
    layout: Layout = "greedy",
) -> None:
    """Show where each layout operator went, the kernels, and the totals."""
    from smartmem import api
    from smartmem.inputs import parse_shapes
    from smartmem.report.explain import renderable, with_levels
    from smartmem.report.progress import progress_bar
    from smartmem.report.tables import console

    reports: dict[str, Any] = {}
    options = api.device_options(memory, precision, layout)
    target = _device(model, device, options)
    if model.suffix == ".smem":
        program = api.load(model, 1).program
        level, reports = program.level, {program.level: program.report}
    else:
        shapes = parse_shapes(shape or [])
        if level not in LEVELS:
            raise InputError(f"no level {level!r}; choose one of {', '.join(LEVELS)}")
        with progress_bar() as report:
            for each in LEVELS if as_json else (level,):
                reports[each] = (
                    api.build_program(model, shapes, each, march, precision, report)
                    if target is None
                    else api.build_device_program(model, shapes, each, target, options, report)
                ).report
    if as_json:
        print(json.dumps(with_levels(reports[level], {name: r.get("totals", {}) for name, r in reports.items()})))
    else:
        console().print(renderable(reports[level], verbose))


@app.command()
def profile(
    model: ModelFile,
    given: Given = None,
    shape: Shape = None,
    level: Level = "full",
    threads: Threads = None,
    march: March = "native",
    runs: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 30,
    top: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 25,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Chrome (Perfetto) trace.")] = None,
    as_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write every kernel as JSON.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Measure the peak rates once more.")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="OpenCL: runs of each kernel in a row, each after the last.")] = 1,
    device: DeviceName = "cpu",
    memory: MemoryKind = "auto",
    precision: Precision = "fp32",
    layout: Layout = "greedy",
) -> None:
    """Show each kernel's time beside the least that this machine would need for it, largest loss first.

    With --device: each kernel's time by the device's clock. What starting a kernel takes is not in it, unless
    --repeat has each run many times, as kernels of a network do that wait for each other.
    """
    from smartmem import api
    from smartmem import inputs as data
    from smartmem.bench.result import write_text
    from smartmem.profile.machine import machine
    from smartmem.profile.measure import check_kernels, measure
    from smartmem.profile.show import renderable
    from smartmem.profile.trace import trace as trace_of
    from smartmem.report.devices import kernel_times
    from smartmem.report.tables import console
    from smartmem.runtime.cache import open_cache
    from smartmem.runtime.cc import find_compiler
    from smartmem.runtime.model import Model
    from smartmem.runtime.opencl.model import DeviceModel

    compiled = _open(model, shape, level, threads, march, device, api.device_options(memory, precision, layout))
    specs = compiled.program.inputs
    feeds = {**data.random_inputs(specs, seed), **data.read_inputs(given or [], specs)}
    if isinstance(compiled, DeviceModel):
        if as_json is not None or trace is not None:
            raise InputError("--json and --trace are for the CPU so far")
        console().print(kernel_times(compiled, feeds, runs, top, repeat))
        return
    assert isinstance(compiled, Model)
    check_kernels(compiled, str(model))
    found = measure(compiled, feeds, machine(compiled.threads, open_cache(), find_compiler(), again), runs)
    if as_json != "-":
        console().print(renderable(found, top))
    if trace is not None:
        write_text(str(trace), json.dumps(trace_of(found)))
    if as_json == "-":
        print(json.dumps(found.to_json()))
    elif as_json is not None:
        write_text(as_json, json.dumps(found.to_json(), indent=1))


@app.command("compile")
def compile_command(
    model: OnnxFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.smem", help="The file to write.")],
    shape: Shape = None,
    level: Level = "full",
    march: March = "native",
    device: DeviceName = "cpu",
    memory: MemoryKind = "auto",
    precision: Precision = "fp32",
    layout: Layout = "greedy",
) -> None:
    """Compile a model to a file that runs without the onnx package, on other machines too (--march)."""
    from smartmem import api
    from smartmem.inputs import parse_shapes

    options = api.device_options(memory, precision, layout)
    target = api.find_device(device, options)
    start = time.perf_counter()
    program = api.compile_to(model, output, parse_shapes(shape or []), level, march, True, target, options)
    totals = program.report.get("totals", {})
    print(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB, {totals.get('kernels', len(program.steps))} kernels, "
        f"{totals.get('copies', 0)} copies, in {time.perf_counter() - start:.1f} s"
    )


app.command()(bench)


@app.command()
def devices(as_json: Annotated[bool, typer.Option("--json", help="A list of JSON objects.")] = False) -> None:
    """Show the OpenCL devices with their limits; N of opencl:N is their number here."""
    from dataclasses import replace

    from smartmem.report.devices import as_objects, as_table
    from smartmem.report.tables import console
    from smartmem.runtime.opencl.devices import list_devices
    from smartmem.runtime.opencl.profiles import costs_of

    found = [replace(device, costs=costs_of(device)) for device in list_devices()]
    if as_json:
        print(json.dumps(as_objects(found)))
    else:
        console().print(as_table(found))


@app.command()
def demo(
    image: Annotated[Path | None, typer.Argument(help="A picture with text; default: the sample.")] = None,
    threads: Threads = None,
    level: Level = "full",
) -> None:
    """Read the text in a picture with PP-OCRv4, all three models run by smartmem."""
    from smartmem.demo import show

    show(image, threads, level)


@cache_app.command("info")
def cache_info() -> None:
    """Show where the cache is and how much it holds."""
    from smartmem.report.tables import size
    from smartmem.runtime.cache import open_cache

    cache = open_cache()
    files, total = cache.usage()
    print(f"{cache.root}: {files} files, {size(total)}" if cache.root else "no cache")


@cache_app.command("clear")
def cache_clear() -> None:
    """Delete all that is in the cache."""
    from smartmem.report.tables import size
    from smartmem.runtime.cache import open_cache

    cache = open_cache()
    files, total = cache.clear()
    print(f"{cache.root}: deleted {files} files, {size(total)}" if cache.root else "no cache")


def main() -> None:
    """Entry point: run a command, and say in one line what went wrong."""
    warnings.showwarning = _show_warning
    debug = os.environ.get("SMARTMEM_DEBUG", "0") not in ("", "0")
    try:
        app()
    except SmartmemError as error:
        if debug:
            raise
        sys.exit(_complain("error", error, 2))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `smartmem explain m.onnx | head`
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        hint = "this is a bug of smartmem; please report it with what SMARTMEM_DEBUG=1 shows"
        sys.exit(_complain("internal error", f"{type(error).__name__}: {error} ({hint})", 1))


def _complain(kind: str, message: object, code: int) -> int:
    print(f"smartmem: {kind}: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"smartmem: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _open(
    path: Path,
    shape: list[str] | None,
    level: str,
    threads: int | None,
    march: str,
    device: str,
    options: DeviceOptions,
) -> CompiledModel:
    from smartmem import api
    from smartmem.inputs import parse_shapes

    shapes = parse_shapes(shape or [])
    if path.suffix != ".smem":
        return api.compile(
            path,
            shapes,
            threads,
            level,
            march,
            progress=True,
            device=device,
            memory=options.memory,
            precision=options.precision,
            layout=options.layout,
            check=options.check,
        )
    if shapes:
        raise InputError(f"--shape: {path} is compiled; its shapes are fixed")
    _device(path, device, options)
    return api.load(path, threads)


def _device(path: Path, name: str, options: DeviceOptions) -> Device | None:
    """The device to compile for; None: the CPU."""
    from smartmem import api

    if path.suffix == ".smem" and name != "cpu":
        raise InputError(f"--device {name}: {path} is compiled already; give the .onnx file")
    return api.find_device(name, options)


def _summary(array: np.ndarray[Any, Any]) -> str:
    import numpy as np

    text = f"{array.dtype.name}{list(array.shape)}"
    if not array.size or array.dtype.kind not in "fiub":
        return text
    values = array.astype(np.float64)
    return f"{text}  min {values.min():.6g}  mean {values.mean():.6g}  max {values.max():.6g}"


def _compare(
    path: Path, model: CompiledModel, feeds: dict[str, Any], outputs: list[np.ndarray[Any, Any]], precision: str
) -> bool:
    from smartmem.bench.peers.base import Job
    from smartmem.bench.peers.onnxruntime import OnnxRuntime
    from smartmem.inputs import allowed_error, largest_difference, relative_error, usual_error
    from smartmem.runtime.threads import default_threads

    reference = OnnxRuntime()
    try:
        reference.load(Job(path, feeds, default_threads(), path.parent))
        wanted = reference.run()
    except SmartmemError:
        raise
    except Exception as error:  # onnxruntime has no common base class of errors
        raise ModelError(f"{path}: onnxruntime cannot run it: {error}") from None
    good = True
    print("compared with onnxruntime:")
    for name, ours in zip(model.output_names, outputs, strict=True):
        relative = relative_error(ours, wanted[name])
        good = good and (relative <= usual_error(precision) or relative <= allowed_error(path, precision))
        print(
            f"  {name}: relative error {relative:.3g}, max absolute error {largest_difference(ours, wanted[name]):.3g}"
        )
    return good


if __name__ == "__main__":
    main()
