"""One runner on one network: its row, its folder, and the process that works for it.

    prepare    convert, load, answer twice; the answer is judged. What it leaves in the folder serves later runs:
                   files/           what the converter wrote
                   prepared.json    the row so far, and what it follows from: model, versions, options
    load       load what was converted and run once
    turn       a burst of measured runs

A failure ends the process and is the row's error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from smartmem.bench.networks import Case
from smartmem.bench.options import Options
from smartmem.bench.peers import FLOOR, SMARTMEM, peer_class
from smartmem.bench.process import Worker, WorkerError
from smartmem.bench.result import Row
from smartmem.runtime.fingerprint import source_digest

BURST_SECONDS = 0.25
BURST_RUNS = 20
LEAST_ROUNDS = 3  # whatever they take: a median of fewer is none
SLACK = 3  # times the longest run that is timed: what took longer in preparation is not loaded to see
SPARE_DISK = 6 << 30  # bytes; with less than that left, converted files are deleted and made again when they are timed

Judge = Callable[["Runner"], None]
T = TypeVar("T")


class Runner:
    """A row and what fills it.

    Attributes:
        row: its numbers.
        bursts: seconds of its measured runs, by group.
    """

    def __init__(self, row: Row, case: Case, folder: Path, options: Options, threads: int) -> None:
        self.row = row
        self.bursts: dict[int, list[float]] = {}
        self._case = case
        self._folder = folder
        self._options = options
        self._threads = threads
        self._worker: Worker | None = None
        self._interrupted = False

    @property
    def outputs(self) -> Path:
        """Its answer, until the judge has seen it."""
        return self._folder / "outputs.npz"

    @property
    def seconds(self) -> list[float]:
        """Of all measured runs."""
        return [second for burst in self.bursts.values() for second in burst]

    def prepare(self, judge: Judge) -> None:
        """Convert, load, answer (if it does) and be judged, unless the folder says how that went."""
        key = self._key()
        if self._case.outputs and self._recall(key):
            if not self._files.is_dir() and self._has_disk() and not self.row.error:
                self._guarded(self._convert)
            return

        def work() -> None:
            began = time.monotonic()
            facts = self._convert()
            self._start()
            answers = peer_class(self.row.runner).answers
            answer = self._asked(do="load", outputs=str(self.outputs) if answers else "", **self._job())
            self.row.prepare_s = time.monotonic() - began
            for name, value in (facts | answer["facts"]).items():
                setattr(self.row, name, value)
            self.row.peak_bytes, self.row.once_ms = answer["peak"], answer["seconds"] * 1e3
            if answers:
                judge(self)

        self._guarded(work)
        if self._interrupted:
            return
        self._record.write_text(json.dumps({"key": key, "limit": self._options.limit, "row": asdict(self.row)}))
        self.end()

    def load(self) -> bool:
        """Be ready for turns; False, and the reason in the row, if that fails."""
        if self._worker is not None:
            return True

        def work() -> None:
            if not self._files.is_dir():
                self._convert()
            self._start()
            answer = self._asked(do="load", outputs="", **self._job())
            self.row.once_ms = answer["seconds"] * 1e3  # the machine may have been busy during preparation
            if answer["seconds"] > self._options.longest:
                self.stop(f"not timed: one run takes {answer['seconds']:.0f} s")

        if (self.row.once_ms or 0) > SLACK * 1e3 * self._options.longest:
            self.stop(f"not timed: one run took {(self.row.once_ms or 0) / 1e3:.0f} s in preparation")
            return False
        return self._guarded(work)

    def turn(self, number: int, group: int) -> None:
        """A burst of measured runs, where it takes part in round `number`."""
        count, runs, warm = self._plan()
        if self._worker is None or not takes_part(number, count, self._options.rounds):
            return

        def burst() -> None:
            answer = self._asked(do="burst", runs=runs, warm=warm, clock=self._options.clock)
            self.bursts.setdefault(group, []).extend(answer["seconds"])
            self.row.peak_bytes = answer["peak"]
            # Others may have loaded while it told how long one run takes.
            self.row.once_ms = min(self.row.once_ms or float("inf"), 1e3 * min(answer["seconds"]))

        self.row.rounds += self._guarded(burst)

    def stop(self, error: str = "") -> None:
        """End its process; a row that has an error keeps it."""
        self.row.error = self.row.error or error
        if self._worker is not None:
            self._worker.close()
            self._worker = None
            shutil.rmtree(self._temporary, ignore_errors=True)  # a process that is ended cleans nothing up

    def interrupt(self) -> None:
        """End what another thread does with it, which waits for an answer of its process; nothing of that is kept."""
        self._interrupted = True
        if self._worker is not None:
            self._worker.kill()

    def end(self) -> None:
        """Stop; where the disk is nearly full, what was converted goes."""
        self.stop()
        if self._files.is_dir() and not self._has_disk():
            shutil.rmtree(self._files, ignore_errors=True)

    def version(self) -> bool:
        """Ask for the version alone; False, and the reason in the row, if it is not installed."""

        def work() -> None:
            self._start()
            self.row.version = self._asked(do="version", peer=self.row.runner)["version"]

        known = self._guarded(work)
        self.stop()
        return known

    @property
    def _files(self) -> Path:
        return self._folder / "files"

    @property
    def _temporary(self) -> Path:
        return self._folder / "tmp"

    @property
    def _record(self) -> Path:
        return self._folder / "prepared.json"

    def _has_disk(self) -> bool:
        return shutil.disk_usage(self._folder).free > SPARE_DISK

    def _plan(self) -> tuple[int, int, bool]:
        """Rounds to take part in, measured runs in each, and whether an unmeasured one comes first."""
        seconds = (self.row.once_ms or 0) / 1e3
        runs = max(1, min(BURST_RUNS, int(BURST_SECONDS / max(seconds, 1e-6))))
        warm = seconds < 1.0  # long runs find their caches cold in any case
        turn = seconds * (runs + warm)
        return max(LEAST_ROUNDS, int(self._options.seconds / max(turn, 1e-6))), runs, warm

    def _guarded(self, action: Callable[[], object]) -> bool:
        try:
            action()
        except (WorkerError, OSError) as error:
            self.stop(" ".join(str(error).split()) or type(error).__name__)
        return not self.row.error

    def _convert(self) -> dict[str, int]:
        shutil.rmtree(self._files, ignore_errors=True)
        self._files.mkdir(parents=True)
        if not peer_class(self.row.runner).converts:
            return {}
        self._start()
        facts: dict[str, int] = self._asked(do="convert", **self._job())["facts"]
        self.stop()
        return facts

    def _key(self) -> dict[str, Any]:
        """What a preparation follows from; a changed adapter (or compiler, which is ours) makes another one."""
        adapter = sys.modules[peer_class(self.row.runner).__module__].__file__ or ""
        model = self._case.model.stat() if self._case.model.is_file() else None
        ours = self.row.runner in (SMARTMEM, FLOOR)
        return {
            "model": [str(self._case.model.absolute()), model and model.st_size, model and model.st_mtime_ns],
            "version": self.row.version,
            "source": source_digest() if ours else _digest(adapter),
            "threads": self._threads,
            "march": self._options.march,
            "database": str(self._options.database),
            **({"target": self._target()} if self.row.precision else {}),
        }

    def _recall(self, key: dict[str, Any]) -> bool:
        """Take the row from the last preparation, if that had the same key; one that ran out of time may get more."""
        try:
            saved = json.loads(self._record.read_text())
            if saved["key"] != key or (saved["row"]["error"] and saved["limit"] < self._options.limit):
                return False
            for name, value in saved["row"].items():
                setattr(self.row, name, value)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return True

    def _job(self) -> dict[str, Any]:
        database = self._options.database
        return {
            "peer": self.row.runner,
            "model": str(self._case.model.absolute()),
            "inputs": str(self._folder.parent / "inputs.npz"),
            "threads": self._threads,
            "folder": str(self._files),
            "network": self._case.network,
            "resolution": self._case.resolution,
            "level": self.row.level,
            "march": self._options.march,
            "target": self._target(),
            "database": str(database.absolute()) if database else None,
        }

    def _target(self) -> dict[str, str]:
        if not self.row.precision:
            return {"device": "cpu"}
        options = self._options
        words = {"device": options.device, "precision": self.row.precision}
        return words | {"memory": self.row.memory, "layout": options.layout} if self.row.memory else words

    def _start(self) -> None:
        if self._interrupted:
            raise WorkerError("interrupted")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._temporary.mkdir(exist_ok=True)
        environment = peer_class(self.row.runner).environment(self._threads) | {
            "TMPDIR": str(self._temporary.absolute())
        }
        command = worker_command(_python(self.row.runner, self._options.environments))
        self._worker = Worker(command, environment, self._folder)

    def _asked(self, **request: Any) -> dict[str, Any]:
        assert self._worker is not None
        return self._worker.ask(self._options.limit, **request)


def side_by_side(runners: Sequence[Runner], action: Callable[[Runner], T], jobs: int) -> Iterator[tuple[Runner, T]]:
    """Each runner and what `action` gives for it, in order, `jobs` at a time. What interrupts that ends the others."""
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from zip(runners, pool.map(action, runners), strict=True)
        except BaseException:  # Ctrl-C, too: the pool waits for what it has begun
            pool.shutdown(wait=False, cancel_futures=True)
            for runner in runners:
                runner.interrupt()
            raise


def takes_part(number: int, count: int, rounds: int) -> bool:
    """Whether round `number` is one of `count` that lie evenly in all: `0..9, 3, 10 -> 0, 4, 7`."""
    return count >= rounds or number * count % rounds < count


def worker_command(python: str) -> list[str]:
    """What starts a worker with this interpreter."""
    return [python, "-m", "smartmem.bench.worker"]


def _python(peer: str, environments: Path | None) -> str:
    """The interpreter that runs a peer: of its own virtual environment, of the common one, or this one."""
    for name in (peer, "common") if environments is not None and peer != SMARTMEM else ():
        assert environments is not None
        python = environments / name / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if python.is_file():
            return str(python.absolute())
    return sys.executable


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
