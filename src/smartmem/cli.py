"""The command line: run, explain, compile, bench, demo, cache.

What a user can get wrong is one line on standard error and exit code 2. SMARTMEM_DEBUG=1 (or more) shows the trace.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smartmem.errors import InputError, ModelError, SmartmemError
from smartmem.levels import LEVELS
from smartmem.version import __version__
from smartmem.zoo.cli import zoo_app

if TYPE_CHECKING:
    import numpy as np

    from smartmem.runtime.model import Model

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

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a .smem file made by compile.")]
OnnxFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")]
Shape = Annotated[list[str] | None, typer.Option(metavar="NAME=1,3,48,320", help="Shape of an input; repeatable.")]
Level = Annotated[str, typer.Option(help=f"How far to optimize: {', '.join(LEVELS)}.")]
March = Annotated[str, typer.Option(help="Instruction set: native, x86-64-v3, skylake-avx512, cortex_a76 ...")]
Threads = Annotated[int | None, typer.Option(help="Threads; default: one per usable physical core.")]


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
    given: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE.npy", help="An input; repeatable. Others are random."),
    ] = None,
    shape: Shape = None,
    level: Level = "full",
    threads: Threads = None,
    march: March = "native",
    save: Annotated[Path | None, typer.Option(metavar="OUT.npz", help="Write the outputs.")] = None,
    compare: Annotated[str | None, typer.Option(metavar="onnxruntime", help="Compare the outputs.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    profile: Annotated[bool, typer.Option(help="Show the time of each kernel.")] = False,
) -> None:
    """Run a model once on given or random inputs. Exit code 1: --compare found a relative error above 1e-3."""
    from smartmem import inputs as data

    if compare not in (None, "onnxruntime"):
        raise InputError(f"--compare {compare}: only onnxruntime is known")
    if compare and model.suffix == ".smem":
        raise InputError(f"--compare onnxruntime needs the .onnx file, {model} is compiled")
    start = time.perf_counter()
    compiled = _open(model, shape, level, threads, march)
    ready = time.perf_counter()
    specs = compiled.program.inputs
    feeds = data.random_inputs(specs, seed)
    feeds.update(data.read_inputs(given or [], specs))
    began = time.perf_counter()
    outputs = compiled.run(feeds)
    spent = (time.perf_counter() - began) * 1e3
    print(f"{model}: ready in {ready - start:.2f} s, ran in {spent:.2f} ms on {compiled.threads} threads")
    for name, array in zip(compiled.output_names, outputs, strict=True):
        print(f"  {name}: {_summary(array)}")
    if save is not None:
        data.save_outputs(save, dict(zip(compiled.output_names, outputs, strict=True)))
        print(f"outputs written to {save}")
    if profile:
        _profile(compiled, feeds)
    if compare and not _compare(model, compiled, feeds, outputs):
        raise typer.Exit(1)


@app.command()
def explain(
    model: ModelFile,
    shape: Shape = None,
    level: Level = "full",
    march: March = "native",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every layout operator on its own.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with the totals of every level.")] = False,
) -> None:
    """Show where each layout operator went, the kernels, and the totals."""
    from smartmem import api
    from smartmem.inputs import parse_shapes
    from smartmem.report.explain import renderable, with_levels
    from smartmem.report.progress import progress_bar
    from smartmem.report.tables import console

    reports: dict[str, Any] = {}
    if model.suffix == ".smem":
        program = api.load(model, 1).program
        level, reports = program.level, {program.level: program.report}
    else:
        shapes = parse_shapes(shape or [])
        if level not in LEVELS:
            raise InputError(f"no level {level!r}; choose one of {', '.join(LEVELS)}")
        with progress_bar() as report:
            for each in LEVELS if as_json else (level,):
                reports[each] = api.build_program(model, shapes, each, march, report).report
    if as_json:
        print(json.dumps(with_levels(reports[level], {name: r.get("totals", {}) for name, r in reports.items()})))
    else:
        console().print(renderable(reports[level], verbose))


@app.command("compile")
def compile_command(
    model: OnnxFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.smem", help="The file to write.")],
    shape: Shape = None,
    level: Level = "full",
    march: March = "native",
) -> None:
    """Compile a model to a file that runs without the onnx package, on other machines too (--march)."""
    from smartmem import api
    from smartmem.inputs import parse_shapes

    start = time.perf_counter()
    program = api.compile_to(model, output, parse_shapes(shape or []), level, march, progress=True)
    totals = program.report.get("totals", {})
    print(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB, {totals.get('kernels', len(program.steps))} kernels, "
        f"{totals.get('copies', 0)} copies, in {time.perf_counter() - start:.1f} s"
    )


@app.command()
def bench(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="An .onnx file; or give --zoo.")] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Measure the networks of `smartmem zoo list`.")] = False,
    models: Annotated[str, typer.Option(metavar="NAME,...", help="With --zoo: only these.")] = "",
    against: Annotated[
        str, typer.Option(metavar="NAME,...|all", help="Other runtimes; empty: none; all: what is installed.")
    ] = "onnxruntime",
    shape: Shape = None,
    levels: Annotated[str, typer.Option(help="Levels to measure.")] = ",".join(LEVELS),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all runners.")] = 10,
    threads: Threads = None,
    march: March = "native",
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that a runner may take to convert and load.")] = 300.0,
    zoo_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where exported networks are, or go; default: the cache.")
    ] = None,
    environments: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Runs peer NAME with DIR/NAME/bin/python, else DIR/common/bin/python."),
    ] = None,
    database: Annotated[Path | None, typer.Option(metavar="DIR", help="TVM's tuned schedules.")] = None,
    as_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the rows as JSON.")] = None,
    as_html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a page with charts.")] = None,
) -> None:
    """Measure every level beside other runtimes, interleaved in one run."""
    from smartmem.bench.page import page
    from smartmem.bench.run import Options, measure, write_json, write_text
    from smartmem.bench.table import show
    from smartmem.inputs import parse_shapes

    if (model is None) != zoo:
        raise InputError("give one of: a MODEL to measure, or --zoo")
    if not zoo and (models or zoo_dir is not None):
        raise InputError("--models and --zoo-dir go with --zoo")
    if zoo and shape:
        raise InputError("--shape goes with a MODEL; the zoo's networks have the shapes that `smartmem zoo list` shows")
    options = Options(
        model=model,
        networks=tuple(filter(None, models.split(","))),
        against=tuple(filter(None, against.split(","))),
        levels=tuple(filter(None, levels.split(","))),
        shapes=parse_shapes(shape or []),
        rounds=rounds,
        threads=threads,
        march=march,
        seed=seed,
        zoo_dir=zoo_dir,
        limit=limit,
        environments=environments,
        database=database,
    )
    result = measure(options)
    if as_json != "-":
        show(result)
    if as_json is not None:
        write_json(result, as_json)
    if as_html is not None:
        write_text(as_html, page(result))


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


def _open(path: Path, shape: list[str] | None, level: str, threads: int | None, march: str) -> Model:
    from smartmem import api
    from smartmem.inputs import parse_shapes

    shapes = parse_shapes(shape or [])
    if path.suffix != ".smem":
        return api.compile(path, shapes, threads, level, march, progress=True)
    if shapes:
        raise InputError(f"--shape: {path} is compiled; its shapes are fixed")
    return api.load(path, threads)


def _summary(array: np.ndarray[Any, Any]) -> str:
    import numpy as np

    text = f"{array.dtype.name}{list(array.shape)}"
    if not array.size or array.dtype.kind not in "fiub":
        return text
    values = array.astype(np.float64)
    return f"{text}  min {values.min():.6g}  mean {values.mean():.6g}  max {values.max():.6g}"


def _profile(model: Model, feeds: dict[str, Any], runs: int = 10) -> None:
    from smartmem.report.tables import console, table

    timed = [model.run_timed(feeds)[1] for _ in range(runs)]
    medians = [statistics.median(run[step].seconds for run in timed) * 1e3 for step in range(len(timed[0]))]
    total = sum(medians) or 1.0
    rows = [
        (step.symbol, f"{spent:.3f}", f"{100 * spent / total:.1f}", step.label + (" (host)" if step.host else ""))
        for step, spent in zip(timed[0], medians, strict=True)
    ]
    title = f"Medians of {runs} runs, {total:.3f} ms in all"
    console().print(table(title, ("kernel", ">ms", ">%", "computes"), rows))


def _compare(path: Path, model: Model, feeds: dict[str, Any], outputs: list[np.ndarray[Any, Any]]) -> bool:
    from smartmem.bench.peers.base import Job
    from smartmem.bench.peers.onnxruntime import OnnxRuntime
    from smartmem.inputs import largest_difference, relative_error

    reference = OnnxRuntime()
    try:
        reference.load(Job(path, feeds, model.threads, path.parent))
        wanted = reference.run()
    except SmartmemError:
        raise
    except Exception as error:  # onnxruntime has no common base class of errors
        raise ModelError(f"{path}: onnxruntime cannot run it: {error}") from None
    good = True
    print("compared with onnxruntime:")
    for name, ours in zip(model.output_names, outputs, strict=True):
        relative = relative_error(ours, wanted[name])
        good = good and relative <= 1e-3
        print(
            f"  {name}: relative error {relative:.3g}, max absolute error {largest_difference(ours, wanted[name]):.3g}"
        )
    return good


if __name__ == "__main__":
    main()
