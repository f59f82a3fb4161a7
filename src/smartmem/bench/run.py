"""Measure smartmem's levels and its peers on the same inputs.

In: `Options`. Out: a `Result` with one row per network and runner. Each network goes through two phases:

    prepare    (`runner`, `judge`)  every runner converts, loads and answers; a wrong answer is not timed
    rounds     (`rounds`)           those that were right take turns

With `Options.work` the first phase leaves what it made on the disk, and a later call only loads and runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from smartmem.bench.judge import Judge
from smartmem.bench.networks import Case, of_file, of_zoo, zoo_folder
from smartmem.bench.options import Options, check, described, find_device
from smartmem.bench.peers import ALL, BF16_PEERS, FLOOR, GPU_PEERS, PEERS, SMARTMEM
from smartmem.bench.result import Result, Row, machine, now
from smartmem.bench.rounds import Report, busy_processes, time_runners
from smartmem.bench.runner import Runner, side_by_side
from smartmem.errors import InputError
from smartmem.inputs import write_npz
from smartmem.levels import LEVELS
from smartmem.report.progress import progress_bar
from smartmem.runtime.cache import replacing
from smartmem.runtime.threads import default_threads


def measure(
    options: Options,
    earlier: Result | None = None,
    keep: Callable[[Result], None] | None = None,
    seen: Callable[[Case], None] | None = None,
) -> Result:
    """Prepare every network, check and time every runner on it.

    Args:
        options: what to measure.
        earlier: a result to add to; its networks are not measured again.
        keep: called with the result so far after each network.
        seen: called with each network before it is measured.

    Raises:
        InputError: an unknown network, level or peer, or nothing to measure, or `earlier` is of other conditions.
        ModelError: the model file cannot be read.
        RuntimeFailure: a package that exports the zoo's networks is missing.
    """
    names = check(options)
    threads = options.threads or default_threads()
    device = find_device(options)
    here = machine() | described(options, device)
    result = earlier or Result([], threads, options.rounds, machine=here, clock=options.clock, load=options.load)
    given = (threads, options.rounds, here, options.clock, options.load)
    if (result.threads, result.rounds, result.machine, result.clock, result.load) != given:
        raise InputError(
            f"--add: the earlier rows are of {result.threads} threads, {result.rounds} rounds, {result.clock} time, "
            f"{result.load} busy processes and {', '.join(result.machine.values())}; give --json another file"
        )
    done = result.models()
    with (
        progress_bar() as report,
        tempfile.TemporaryDirectory(prefix="smartmem-bench-", ignore_cleanup_errors=True) as temporary,
    ):
        folder = options.work or Path(temporary)
        shown, result.missing = _rows(options, device is not None, threads, Path(temporary) / "versions")
        for case in _cases(options, [name for name in names if name not in done]):
            rows = [replace(row, model=case.name, error=case.error or row.error) for row in shown]
            if seen is not None:
                seen(case)
            if not case.error:
                place = folder / (case.model.stem if case.network else "model")
                result.references[case.name] = _measure_case(case, rows, options, threads, place, report)
            result.rows += sorted(rows, key=lambda row: LEVELS.index(row.level) if row.level in LEVELS else len(LEVELS))
            result.dates[case.name] = now()
            if keep is not None:
                keep(result)
    return result


def _measure_case(
    case: Case, rows: list[Row], options: Options, threads: int, folder: Path, report: Report | None
) -> str:
    """Fill the rows of one network; what its relative errors are against."""
    judge = Judge(case)
    folder.mkdir(parents=True, exist_ok=True)
    # Another process may prepare other rows of this network in the same folder.
    with replacing(folder / "inputs.npz") as temporary, temporary.open("wb") as file:
        write_npz(file, case.inputs)
    runners = []
    for row in rows:
        runners.append(Runner(row, case, folder / row.label.replace(" ", "-"), options, threads))
    # Without a sample, the first peer that runs is the reference: it is asked before smartmem's levels are.
    order = runners if case.outputs else sorted(runners, key=lambda runner: runner.row.level is not None)
    _prepare(case.name, [runner for runner in order if not runner.row.error], judge, options.jobs, report)
    if options.timed:
        with busy_processes(options.load):
            time_runners(case.name, order, options.rounds, report, options.jobs)
    return judge.reference


def _prepare(name: str, runners: list[Runner], judge: Judge, jobs: int, report: Report | None) -> None:
    """Prepare runners, `jobs` at a time as soon as there is an answer to compare the others with."""
    done = 0

    def show() -> None:
        if report is not None:
            report(f"{name}: prepare", done, len(runners))

    show()
    while done < len(runners) and not judge.reference:
        runners[done].prepare(judge)
        done += 1
        show()
    for _ in side_by_side(runners[done:], lambda runner: runner.prepare(judge), jobs):
        done += 1
        show()


def _rows(options: Options, on_device: bool, threads: int, folder: Path) -> tuple[list[Row], dict[str, str]]:
    """The rows of every network, each with its version or why it has none; and peers that "all" leaves out, and why.

    smartmem's levels come first, the furthest of them at the front (it is the anchor).
    """
    levels = sorted(dict.fromkeys(options.levels), key=LEVELS.index, reverse=True)
    everything = [name for name in PEERS if (name in GPU_PEERS) == on_device] if ALL in options.against else []
    peers = [name for name in PEERS if name in options.against or name in everything]
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for name in ([SMARTMEM] if levels else []) + ([FLOOR] if options.floor else []) + peers:
        row = Row("", name)
        Runner(row, Case("", Path()), folder / name, options, threads).version()
        if name == SMARTMEM:
            if on_device:
                placements = [(m, p) for p in options.precisions for m in options.memories]
            else:
                placements = [("", "" if p == "fp32" else p) for p in options.precisions]
            rows += [replace(row, level=each, memory=m, precision=p) for each in levels for m, p in placements]
        elif row.error and name in everything and name not in options.against:
            missing[name] = row.error
        else:
            rows += [replace(row, precision=p) for p in _precisions(name, options)]
    return rows, missing


def _precisions(peer: str, options: Options) -> Sequence[str]:
    """The precisions that a peer has a row for; fp32 is "" on the CPU."""
    if peer in GPU_PEERS:
        return options.precisions
    return ["", *(p for p in options.precisions if p == "bf16" and peer in BF16_PEERS)]


def _cases(options: Options, names: Sequence[str]) -> Iterable[Case]:
    if options.model is not None:
        yield of_file(options.model, options.shapes, options.seed)
        return
    folder = options.zoo_dir or zoo_folder()
    for name in names:
        yield of_zoo(name, folder, options.batch, options.resolution)
