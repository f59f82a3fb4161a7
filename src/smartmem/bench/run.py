"""Measure smartmem's levels and its peers on the same inputs, in interleaved rounds.

In: `Options`. Out: a `Result` with one row per network and runner. For each network every runner converts, loads and
answers once; a wrong answer is not timed. Then come the rounds, A B C A B C …: in its turn a runner does one unmeasured
and a few measured runs while the others are stopped. So what slows the machine for a while slows all of them.

Big networks do not fit into memory once for each runner. Runners are loaded while the memory that is left allows
another one (`NEED` times the model's size for what it may take while it loads); those form a *group*, which does all of
its rounds and ends before the next is loaded. The first runner that works is the *anchor*: it stays for every group of
its network and takes its turns in each, so `Row.drift` says how far the machine's speed changed between groups:

    groups [full, fuse, onnxruntime], [full, openvino, mnn]: anchor's medians 10.0, 10.4 ms  ->  drift 1.04
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.bench.networks import Case, of_file, of_zoo, zoo_folder
from smartmem.bench.peers import ALL, PEERS, SMARTMEM, check_known, peer_class
from smartmem.bench.process import Worker, WorkerError
from smartmem.errors import InputError
from smartmem.inputs import largest_difference, relative_error, write_npz
from smartmem.levels import LEVELS
from smartmem.report.progress import progress_bar
from smartmem.runtime.threads import default_threads

BURST_SECONDS = 0.25
BURST_RUNS = 20
MOST_SECONDS = 30.0  # of one runner; after three rounds, slow ones have their median
TOLERANCE = 1e-3  # of the relative error; above it an answer is wrong
ROUNDING = 1e-6  # unless no element is further off: of outputs that are nearly zero only rounding is left to compare
NEED = 4  # times the model's size: its weights as read, packed, and copies that come and go
SPARE = 1 << 30  # bytes of memory that stay free

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Options:
    """What to measure; see `smartmem bench --help`.

    Attributes:
        model: an ONNX file; None: networks of the zoo.
        networks: of the zoo; empty: all.
        against: peers; `ALL` stands for every one that is installed.
        zoo_dir: where the exports are; None: in the cache.
        limit: seconds that a runner may take to convert and load, and then for each turn.
        environments: folder of virtual environments, one per peer by its name, or one called "common".
        database: of tuned schedules, for TVM.
    """

    model: Path | None = None
    networks: tuple[str, ...] = ()
    against: tuple[str, ...] = ("onnxruntime",)
    levels: tuple[str, ...] = LEVELS
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    rounds: int = 10
    threads: int | None = None
    march: str = "native"
    seed: int = 0
    zoo_dir: Path | None = None
    limit: float = 300.0
    environments: Path | None = None
    database: Path | None = None


@dataclass
class Row:
    """One runner's result on one network.

    Attributes:
        model, runner, version: what ran.
        level: of smartmem; None for others.
        median_ms, p10_ms, p90_ms, min_ms: of all measured runs; None where it failed.
        ratio: median over the best peer's median: below 1 is faster than every peer. None without peers.
        relative_error: largest over the outputs, against the reference.
        runs: how many were measured.
        prepare_s: seconds to convert and load.
        operators, kernels, layouts: see `peers.base.Facts`.
        peak_bytes: most memory of the process that ran, without its converter where that is another.
        group: number of the group that it was measured in.
        drift: of the anchor: its slowest group's median over its fastest's.
        error: why it failed, else "".
    """

    model: str
    runner: str
    level: str | None = None
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    min_ms: float | None = None
    ratio: float | None = None
    relative_error: float | None = None
    runs: int = 0
    prepare_s: float | None = None
    operators: int | None = None
    kernels: int | None = None
    layouts: int | None = None
    peak_bytes: int | None = None
    group: int = 0
    drift: float | None = None
    version: str = ""
    error: str = ""


@dataclass(frozen=True)
class Result:
    """All rows, and under which conditions they were measured.

    Attributes:
        references: by network, what relative errors are against.
        missing: peers that "all" left out, and why.
        machine: CPU, system, Python and date.
    """

    rows: list[Row]
    threads: int
    rounds: int
    references: dict[str, str]
    missing: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)

    def models(self) -> list[str]:
        """The networks, in order."""
        return list(dict.fromkeys(row.model for row in self.rows))


Report = Callable[[str, int, int], None]


class _Runner:
    """A row and the process that fills it."""

    def __init__(self, row: Row, folder: Path, options: Options, threads: int) -> None:
        self.row = row
        self.folder = folder
        self.bursts: dict[int, list[float]] = {}  # seconds by group
        self._options = options
        self._threads = threads
        self._worker: Worker | None = None
        self._runs = 1
        self._warm = True

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs.npz"

    @property
    def seconds(self) -> list[float]:
        return [second for burst in self.bursts.values() for second in burst]

    def version(self) -> bool:
        """Ask for the version alone; False, and the reason in the row, if it is not installed."""
        return self._guarded(self._ask_version)

    def load(self, case: Case, inputs: Path) -> bool:
        """Convert, load, run twice; False, and the reason in the row, if that fails."""
        return self._guarded(lambda: self._load(case, inputs))

    def turn(self, number: int, group: int) -> None:
        """A burst of measured runs, unless it has enough."""
        if self._worker is None:
            return
        spent = self.bursts.setdefault(group, [])
        if (number >= 3 and sum(spent) > MOST_SECONDS) or sum(spent) > 3 * MOST_SECONDS:
            return

        def burst() -> None:
            answer = self._asked(self._options.limit, do="burst", runs=self._runs, warm=self._warm)
            spent.extend(answer["seconds"])
            self.row.peak_bytes = answer["peak"]

        self._guarded(burst)

    def stop(self, error: str = "") -> None:
        """End its process; a row that has an error keeps it."""
        self.row.error = self.row.error or error
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _guarded(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except (WorkerError, OSError) as error:
            self.stop(" ".join(str(error).split()) or type(error).__name__)
        return not self.row.error

    def _ask_version(self) -> None:
        self._start()
        self.row.version = self._asked(self._options.limit, do="version", peer=self.row.runner)["version"]
        self.stop()

    def _load(self, case: Case, inputs: Path) -> None:
        job = {
            "peer": self.row.runner,
            "model": str(case.model.absolute()),
            "inputs": str(inputs),
            "threads": self._threads,
            "folder": str(self.folder),
            "network": case.network,
            "level": self.row.level,
            "march": self._options.march,
            "database": str(self._options.database.absolute()) if self._options.database else None,
        }
        began = time.monotonic()
        facts: dict[str, int] = {}
        self._start()
        self.row.version = self._asked(self._options.limit, do="version", peer=self.row.runner)["version"]
        if peer_class(self.row.runner).converts:
            facts |= self._asked(self._options.limit, do="convert", **job)["facts"]
            self.stop()
            self._start()
        left = max(1.0, self._options.limit - (time.monotonic() - began))
        answer = self._asked(left, do="load", outputs=str(self.outputs), **job)
        self.row.prepare_s = time.monotonic() - began
        for name, value in (facts | answer["facts"]).items():
            setattr(self.row, name, value)
        self.row.peak_bytes = answer["peak"]
        seconds = answer["seconds"]
        self._runs = max(1, min(BURST_RUNS, int(BURST_SECONDS / max(seconds, 1e-6))))
        self._warm = seconds < 1.0  # long runs find their caches cold in any case

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = peer_class(self.row.runner).environment(self._threads)
        command = worker_command(_python(self.row.runner, self._options.environments))
        self._worker = Worker(command, environment, self.folder)

    def _asked(self, limit: float, **request: Any) -> dict[str, Any]:
        assert self._worker is not None
        return self._worker.ask(limit, **request)


def worker_command(python: str) -> list[str]:
    """What starts a worker with this interpreter."""
    return [python, "-m", "smartmem.bench.worker"]


def measure(options: Options) -> Result:
    """Prepare every network, check and time every runner on it.

    Raises:
        InputError: an unknown network, level or peer, or nothing to measure.
        ModelError: the model file cannot be read.
        RuntimeFailure: a package that exports the zoo's networks is missing.
    """
    names = _check(options)
    threads = options.threads or default_threads()
    rows: list[Row] = []
    references = {}
    with (
        progress_bar() as report,
        tempfile.TemporaryDirectory(prefix="smartmem-bench-", ignore_cleanup_errors=True) as name,
    ):
        folder = Path(name)
        peers, missing = _installed(options, threads, folder)
        for case in _cases(options, names):
            made = [Row(case.name, SMARTMEM, level, error=case.error) for level in _anchor_first(options.levels)]
            made += [Row(case.name, peer, error=case.error) for peer in peers]
            if not case.error:
                references[case.name] = _measure_case(case, made, options, threads, folder / f"{len(rows)}", report)
            rows += sorted(made, key=lambda row: LEVELS.index(row.level) if row.level in LEVELS else len(LEVELS))
    return Result(rows, threads, options.rounds, references, missing, machine())


def write_json(result: Result, target: str) -> None:
    """Write `{"rows": [...], "threads": …}` to a file, or to standard output if `target` is "-"."""
    text = json.dumps(asdict(result), indent=1)
    if target == "-":
        print(text)
    else:
        write_text(target, text + "\n")


def write_text(target: str, text: str) -> None:
    """Write a file by way of a temporary one.

    Raises:
        InputError: it cannot be written.
    """
    from smartmem.runtime.cache import replacing

    try:
        with replacing(Path(target)) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None


def machine() -> dict[str, str]:
    """CPU, number of usable CPUs, system, Python, date."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return {
        "cpu": cpu,
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def available_bytes() -> int:
    """Memory that processes can still get; very much where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62


def _check(options: Options) -> tuple[str, ...]:
    """The networks' names, after all names are known to be right."""
    from smartmem.zoo.registry import NETWORKS

    check_known("peer", [name for name in options.against if name != ALL], PEERS)
    check_known("level", options.levels, LEVELS)
    check_known("network", options.networks, NETWORKS)
    if not options.levels and not options.against:
        raise InputError("nothing to measure: give --levels or --against")
    if options.environments is not None and not options.environments.is_dir():
        raise InputError(f"{options.environments}: no such folder of virtual environments")
    return tuple(dict.fromkeys(options.networks)) or tuple(NETWORKS)


def _installed(options: Options, threads: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """The peers to measure; of those that only "all" names, the ones that are installed. Others and why."""
    named = [name for name in dict.fromkeys(options.against) if name != ALL]
    missing = {}
    if ALL in options.against:
        for name in PEERS:
            if name in named:
                continue
            probe = _Runner(Row("", name), folder / name, options, threads)
            if probe.version():
                named.append(name)
            else:
                missing[name] = probe.row.error
    return sorted(named, key=PEERS.index), missing


def _cases(options: Options, names: Sequence[str]) -> Iterable[Case]:
    if options.model is not None:
        yield of_file(options.model, options.shapes, options.seed)
        return
    folder = options.zoo_dir or zoo_folder()
    for name in names:
        yield of_zoo(name, folder)


def _anchor_first(levels: Sequence[str]) -> list[str]:
    """The furthest level first: it is the anchor."""
    return sorted(dict.fromkeys(levels), key=LEVELS.index, reverse=True)


def _python(peer: str, environments: Path | None) -> str:
    """The interpreter that runs a peer: of its own virtual environment, of the common one, or this one."""
    for name in (peer, "common") if environments is not None and peer != SMARTMEM else ():
        assert environments is not None
        python = environments / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if python.is_file():
            return str(python.absolute())
    return sys.executable


def _measure_case(
    case: Case, rows: list[Row], options: Options, threads: int, folder: Path, report: Report | None
) -> str:
    """Fill the rows of one network; what its relative errors are against."""
    folder.mkdir()
    inputs = folder / "inputs.npz"
    with inputs.open("wb") as file:
        write_npz(file, case.inputs)
    runners = [_Runner(row, folder / f"{i}", options, threads) for i, row in enumerate(rows)]
    judge = _Judge(case, runners)
    # Without a sample, the first peer that runs is the reference: it is asked before smartmem's levels are.
    waiting = runners if case.outputs else sorted(runners, key=lambda runner: runner.row.level is not None)
    done: list[_Runner] = []
    anchor: list[_Runner] = []
    need = NEED * case.size() + SPARE
    group = 0
    try:
        while waiting:
            group += 1
            live = list(anchor)
            while waiting and (len(live) <= len(anchor) or available_bytes() > need):
                runner, waiting = waiting[0], waiting[1:]
                if report is not None:
                    report(f"{case.name}: load", len(done), len(runners))
                if runner.load(case, inputs) and judge.right(runner):
                    runner.row.group = group
                    live.append(runner)
                done.append(runner)
            if live == anchor:
                break
            anchor = live[:1]
            for number in range(options.rounds):
                for index, runner in enumerate(live):
                    if report is not None:
                        report(f"{case.name}: rounds", number * len(live) + index, options.rounds * len(live))
                    runner.turn(number, group)
            for runner in live:
                if runner not in anchor or not waiting or runner.row.error:
                    runner.stop()
            anchor = [runner for runner in anchor if not runner.row.error]
    finally:
        for runner in runners:
            runner.stop()
    _summarize(runners)
    return judge.reference


class _Judge:
    """Says which answers are right: torch's of the sample, else the first runner's."""

    def __init__(self, case: Case, runners: Sequence[_Runner]) -> None:
        self._wanted = dict(case.outputs)
        self.reference = "torch" if case.outputs else ""

    def right(self, runner: _Runner) -> bool:
        """Fill in the relative error; a wrong runner is ended."""
        row = runner.row
        with np.load(runner.outputs, allow_pickle=False) as file:
            # Some runtimes give an output several names.
            found = {name: file[name] for name in file.files if not self._wanted or name in self._wanted}
        runner.outputs.unlink()
        if not self._wanted:
            self._wanted = found
            self.reference = row.runner if row.level is None else f"{row.runner} {row.level}"
        absent = [name for name in self._wanted if name not in found]
        if absent:
            runner.stop(f"gives no output {absent[0]}")
            return False
        row.relative_error = max((relative_error(found[name], self._wanted[name]) for name in self._wanted), default=0)
        furthest = max((largest_difference(found[name], self._wanted[name]) for name in self._wanted), default=0)
        if not (row.relative_error < TOLERANCE or furthest < ROUNDING):
            shapes = next(
                (
                    f": output {name} has the shape {list(found[name].shape)} instead of {list(array.shape)}"
                    for name, array in self._wanted.items()
                    if found[name].shape != array.shape
                ),
                f": relative error {row.relative_error:.2g}",
            )
            runner.stop(f"wrong answer{shapes}")
            if row.relative_error == float("inf"):
                row.relative_error = None  # JSON has no infinity
            return False
        return True


def _summarize(runners: Sequence[_Runner]) -> None:
    for runner in runners:
        row, seconds = runner.row, runner.seconds
        if seconds and not row.error:
            row.median_ms = statistics.median(seconds) * 1e3
            row.p10_ms, row.p90_ms = (float(value) * 1e3 for value in np.percentile(seconds, [10, 90]))
            row.min_ms = min(seconds) * 1e3
            row.runs = len(seconds)
            medians = [statistics.median(burst) for burst in runner.bursts.values() if burst]
            row.drift = max(medians) / min(medians) if len(medians) > 1 else None
    rows = [runner.row for runner in runners]
    best = min((row.median_ms for row in rows if row.level is None and row.median_ms), default=None)
    for row in rows:
        if best and row.median_ms:
            row.ratio = row.median_ms / best
