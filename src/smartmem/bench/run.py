"""Measure smartmem's levels and other runtimes on the same inputs, interleaved in one run.

In: `Options`. Out: a `Result` with one row per runner. First every runner answers once and the answers are compared;
then come the rounds, A B C A B C …: in its turn a runner does one unmeasured and a few measured runs while the others
sleep. So what slows the machine for a while slows all of them.
"""

from __future__ import annotations

import difflib
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from smartmem.bench.runners import PEERS, Smartmem
from smartmem.errors import InputError, ModelError, SmartmemError
from smartmem.inputs import random_inputs, relative_error, write_npz
from smartmem.levels import LEVELS
from smartmem.report.progress import progress_bar
from smartmem.runtime.threads import default_threads

BURST_SECONDS = 0.25
BURST_RUNS = 20
MOST_SECONDS = 30.0  # of one runner; after three rounds, slow ones have their median


@dataclass(frozen=True)
class Options:
    """What to measure; see `smartmem bench --help`."""

    model: Path
    against: tuple[str, ...] = ("onnxruntime",)
    levels: tuple[str, ...] = LEVELS
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rounds: int = 10
    threads: int | None = None
    march: str = "native"
    seed: int = 0


@dataclass
class Row:
    """One runner's result.

    Attributes:
        model, runner, version: what ran.
        level: of smartmem; None for others.
        median_ms, min_ms: of all measured runs; None where it failed.
        ratio: median over the best peer's median: below 1 is faster than every peer. None without peers.
        relative_error: largest over the outputs, against the reference.
        runs: how many were measured.
        error: why it failed, else "".
    """

    model: str
    runner: str
    level: str | None = None
    median_ms: float | None = None
    min_ms: float | None = None
    ratio: float | None = None
    relative_error: float | None = None
    runs: int = 0
    version: str = ""
    error: str = ""


@dataclass(frozen=True)
class Result:
    """All rows, and under which conditions they were measured. `reference` is what relative errors are against."""

    rows: list[Row]
    threads: int
    rounds: int
    reference: str


class _Process:
    """A worker process and its row."""

    def __init__(self, row: Row, folder: Path, index: int) -> None:
        self.row = row
        self.outputs = folder / f"outputs-{index}.npz"
        self.seconds: list[float] = []
        self.runs = 1
        self._log: IO[bytes] = (folder / f"log-{index}").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "smartmem.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any] | None:
        """Send a request; None (and the reason in the row) if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
            self.row.error = f"its process ended with status {self._process.wait()} {' '.join(last)}".strip()
            return None
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            self.row.error = answer["error"]
            return None
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


def measure(options: Options) -> Result:
    """Compile every level, start every runner, check their answers, measure.

    Raises:
        InputError: an unknown level or peer.
        ModelError: the model cannot be compiled at all.
    """
    _check(options)
    threads = options.threads or default_threads()
    with progress_bar() as report, tempfile.TemporaryDirectory(prefix="smartmem-bench-") as name:
        folder = Path(name)
        failures, inputs = _compile_levels(options, threads, report)
        with (folder / "inputs.npz").open("wb") as file:
            write_npz(file, inputs)
        rows = [
            Row(str(options.model), Smartmem.name, level, error=failures.get(level, "")) for level in options.levels
        ]
        rows += [Row(str(options.model), peer) for peer in options.against]
        processes = [_Process(row, folder, index) for index, row in enumerate(rows) if not row.error]
        try:
            running = []
            for index, process in enumerate(processes):
                if report is not None:
                    report("start", index, len(processes))
                if _load(process, options, threads, folder):
                    running.append(process)
            reference = _compare(running)
            for turn in range(options.rounds):
                for index, process in enumerate(running):
                    if report is not None:
                        report("measure", turn * len(running) + index, options.rounds * len(running))
                    _turn(process, turn)
        finally:
            for process in processes:
                process.stop()
    _summarize(processes, rows)
    return Result(rows, threads, options.rounds, reference)


def write_json(result: Result, target: str) -> None:
    """Write `{"rows": [...], "threads": …}` to a file, or to standard output if `target` is "-"."""
    text = json.dumps(asdict(result), indent=1)
    if target == "-":
        print(text)
        return
    from smartmem.runtime.cache import replacing

    try:
        with replacing(Path(target)) as temporary:
            temporary.write_text(text + "\n")
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None


def _check(options: Options) -> None:
    for kind, names, known in (("peer", options.against, tuple(PEERS)), ("level", options.levels, LEVELS)):
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise InputError(f"no {kind} {name!r}: {hint}")
    if not options.levels and not options.against:
        raise InputError("nothing to measure: give --levels or --against")


def _compile_levels(
    options: Options, threads: int, report: Any
) -> tuple[dict[str, str], dict[str, np.ndarray[Any, Any]]]:
    """Compile every level into the cache, from where the workers take it; failures by level, and inputs."""
    from smartmem import api

    failures, inputs = {}, None
    for level in options.levels or ("full",):
        try:
            with api.compile(options.model, options.shapes, threads, level, options.march, report or False) as model:
                inputs = inputs or random_inputs(model.program.inputs, options.seed)
        except (ModelError, InputError):
            raise  # the fault of the model or the options: no level would do
        except SmartmemError as error:
            failures[level] = str(error)
            failure = error
    if inputs is None:
        raise failure
    return failures, inputs


def _load(process: _Process, options: Options, threads: int, folder: Path) -> bool:
    answer = process.ask(
        do="load",
        runner=process.row.runner,
        level=process.row.level,
        threads=threads,
        march=options.march,
        model=str(options.model),
        inputs=str(folder / "inputs.npz"),
        outputs=str(process.outputs),
    )
    if answer is None:
        return False
    process.row.version = answer["version"]
    process.runs = max(1, min(BURST_RUNS, int(BURST_SECONDS / max(answer["seconds"], 1e-6))))
    return True


def _compare(running: list[_Process]) -> str:
    """Fill in the relative errors, against the first peer that runs, else the first level."""
    peers = [process for process in running if process.row.level is None]
    chosen = (peers or running)[:1]
    if not chosen:
        return ""
    with np.load(chosen[0].outputs, allow_pickle=False) as file:
        wanted = {name: file[name] for name in file.files}
    for process in running:
        with np.load(process.outputs, allow_pickle=False) as file:
            # Some runtimes give an output several names.
            shared = [name for name in wanted if name in file.files]
            errors = [relative_error(file[name], wanted[name]) for name in shared]
        process.row.relative_error = max(errors) if errors else None
    row = chosen[0].row
    return row.runner if row.level is None else f"{row.runner} {row.level}"


def _turn(process: _Process, turn: int) -> None:
    if process.row.error or (turn >= 3 and sum(process.seconds) > MOST_SECONDS):
        return
    answer = process.ask(do="burst", runs=process.runs)
    if answer is not None:
        process.seconds += answer["seconds"]


def _summarize(processes: list[_Process], rows: list[Row]) -> None:
    for process in processes:
        if process.seconds and not process.row.error:
            process.row.median_ms = statistics.median(process.seconds) * 1e3
            process.row.min_ms = min(process.seconds) * 1e3
            process.row.runs = len(process.seconds)
    best = min((row.median_ms for row in rows if row.level is None and row.median_ms), default=None)
    for row in rows:
        if best and row.median_ms:
            row.ratio = row.median_ms / best
