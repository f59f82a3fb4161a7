"""The command `smartmem bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smartmem.errors import InputError
from smartmem.levels import LEVELS
from smartmem.options import DeviceName, Layout, March, Shape, Threads


def bench(
    model: Annotated[Path | None, typer.Argument(metavar="[MODEL]", help="An .onnx file; or give --zoo.")] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Measure the networks of `smartmem zoo list`.")] = False,
    models: Annotated[str, typer.Option(metavar="NAME,...", help="With --zoo: only these.")] = "",
    against: Annotated[
        str, typer.Option(metavar="NAME,...|all", help="Other runtimes; empty: none; all: what is installed.")
    ] = "onnxruntime",
    floor: Annotated[
        bool, typer.Option("--floor", help="Also time a loop of as many multiply-adds as the network has.")
    ] = False,
    shape: Shape = None,
    levels: Annotated[str, typer.Option(help="Levels to measure.")] = ",".join(LEVELS),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds over all runners.")] = 10,
    threads: Threads = None,
    march: March = "native",
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    seconds: Annotated[
        float, typer.Option(min=0, help="Of runs per runner and network; slow ones get fewer rounds, 3 at least.")
    ] = 8.0,
    longest: Annotated[float, typer.Option(min=0, help="Seconds of one run above which a runner is not timed.")] = 30.0,
    limit: Annotated[
        float, typer.Option(min=1, help="Seconds that a runner may take to convert, and again to load and answer.")
    ] = 300.0,
    prepare: Annotated[bool, typer.Option("--prepare", help="Convert and check, time nothing; needs --work.")] = False,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --zoo: keep what was converted there for the next call.")
    ] = None,
    zoo_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where exported networks are, or go; default: the cache.")
    ] = None,
    environments: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Runs peer NAME with DIR/NAME/bin/python, else DIR/common/bin/python."),
    ] = None,
    database: Annotated[Path | None, typer.Option(metavar="DIR", help="TVM's tuned schedules.")] = None,
    as_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the rows as JSON.")] = None,
    add: Annotated[
        bool, typer.Option("--add", help="Keep the networks that are in --json FILE, and measure only the others.")
    ] = False,
    as_html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a page with charts.")] = None,
    scale: Annotated[
        str, typer.Option(metavar="AXIS=N,N,...", help="Tables of growth: batch, resolution (--zoo) or threads.")
    ] = "",
    clock: Annotated[
        str, typer.Option(help="wall: elapsed time; cpu: CPU time of all threads, for machines that are busy.")
    ] = "wall",
    load: Annotated[int, typer.Option(min=0, help="Busy processes that run beside the measured ones.")] = 0,
    device: DeviceName = "cpu",
    memory: Annotated[
        str, typer.Option("--memory", metavar="KIND,...", help="OpenCL: auto, buffer, texture; a row for each.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", metavar="fp32,bf16,...", help="As `smartmem run` takes them; a row for each.")
    ] = "fp32",
    layout: Layout = "greedy",
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Runners that prepare and load at the same time; rounds take turns in any case."),
    ] = 1,
) -> None:
    """Measure every level beside other runtimes, interleaved in one run.

    pip install 'smartmem[bench]' brings all ten of them (torch included, some gigabytes). One that should have versions
    of its own gets a virtual environment, for example

    python -m venv DIR/litert && DIR/litert/bin/pip install 'smartmem[zoo]' litert-torch ai-edge-litert

    and --environments DIR.

    With --device opencl there are peers on the GPU: torch-cuda, inductor-cuda (networks of the zoo) and ncnn-vulkan.
    """
    from smartmem.bench.options import Options
    from smartmem.bench.page import page
    from smartmem.bench.result import read_json, write_json, write_text
    from smartmem.bench.run import measure
    from smartmem.bench.scale import measure_scale, parse_scale, show_scale, write_scale
    from smartmem.bench.table import show
    from smartmem.inputs import parse_shapes

    if (model is None) != zoo:
        raise InputError("give one of: a MODEL to measure, or --zoo")
    if not zoo and (models or zoo_dir is not None or work is not None):
        raise InputError("--models, --zoo-dir and --work go with --zoo")
    if prepare and work is None:
        raise InputError("--prepare needs --work DIR, where what it makes is kept")
    file = None if as_json in (None, "-") else as_json
    if add and (file is None or not zoo):
        raise InputError("--add goes with --zoo and --json FILE, to which it adds")
    if zoo and shape:
        raise InputError("--shape goes with a MODEL; the zoo's networks have the shapes that `smartmem zoo list` shows")
    if scale and (add or prepare or as_html is not None):
        raise InputError("--scale goes without --add, --prepare and --html")
    options = Options(
        model=model,
        networks=_words(models),
        against=_words(against),
        floor=floor,
        levels=_words(levels),
        shapes=parse_shapes(shape or []),
        rounds=rounds,
        threads=threads,
        march=march,
        device=device,
        memories=_words(memory),
        precisions=_words(precision),
        layout=layout,
        jobs=jobs,
        seed=seed,
        zoo_dir=zoo_dir,
        work=work,
        timed=not prepare,
        clock=clock,
        load=load,
        limit=limit,
        seconds=seconds,
        longest=longest,
        environments=environments,
        database=database,
    )
    if scale:
        keep = None if file is None else lambda found: write_scale(found, file)
        scaling = measure_scale(options, parse_scale(scale), keep)
        if as_json != "-":
            show_scale(scaling)
        else:
            write_scale(scaling, as_json)
        return
    earlier = read_json(Path(file)) if add and file is not None and Path(file).is_file() else None
    # The file is written after each network, so that an interrupted run loses one at most.
    result = measure(options, earlier, lambda found: write_json(found, file) if file is not None else None)
    if as_json != "-":
        show(result)
    if as_json is not None:
        write_json(result, as_json)
    if as_html is not None:
        write_text(as_html, page(result))


def _words(text: str) -> tuple[str, ...]:
    """`"a,b,a" -> ("a", "b")`."""
    return tuple(dict.fromkeys(filter(None, text.split(","))))
