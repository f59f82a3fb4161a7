"""The timed phase of one network: runners that are prepared take turns, A B C A B C ….

In its turn a runner does one unmeasured and a few measured runs while the others are stopped. So what slows the machine
for a while slows all of them.

Big networks do not fit into memory once for each runner. Runners are loaded while there is room for what they took in
preparation; those form a *group*, which does all of its rounds and ends before the next is loaded. The first runner
that works is the *anchor*: it stays for every group of its network and takes its turns in each, so `Row.drift` says how
far the machine's speed changed between groups:

    groups [full, fuse, onnxruntime], [full, openvino, mnn]: anchor's medians 10.0, 10.4 ms  ->  drift 1.04
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from smartmem.bench.peers import FLOOR, SMARTMEM
from smartmem.bench.runner import Runner, side_by_side

SPARE = 1 << 30  # bytes of memory that stay free

Report = Callable[[str, int, int], None]


def time_runners(
    name: str, runners: Sequence[Runner], rounds: int, report: Report | None = None, jobs: int = 1
) -> None:
    """Time those of one network's runners that were prepared, and complete their rows; `jobs` load at a time."""
    waiting = [runner for runner in runners if not runner.row.error]
    total, loaded = len(waiting), 0
    anchor: list[Runner] = []
    group = 0
    try:
        while waiting:
            group += 1
            members = _take(waiting, available_bytes() - SPARE)
            live = list(anchor)
            if report is not None:
                report(f"{name}: load", loaded, total)
            for runner, ready in side_by_side(members, Runner.load, jobs):
                loaded += 1
                runner.row.group = group
                if ready:
                    live.append(runner)
                if report is not None:
                    report(f"{name}: load", loaded, total)
            if live != anchor:
                _do_rounds(name, live, group, rounds, report)
            anchor = [runner for runner in live[:1] if not runner.row.error]
            for runner in live:
                if runner not in anchor:
                    runner.end()
    finally:
        for runner in runners:
            runner.end()
    _summarize(runners)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that compute without end, until the block does; each would like one CPU for itself."""
    work = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            running.append(subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.DEVNULL))
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def available_bytes() -> int:
    """Memory that processes can still get; very much where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62


def _take(waiting: list[Runner], room: int) -> list[Runner]:
    """The next runners that fit into `room` together, and one in any case."""
    taken = [waiting.pop(0)]
    room -= taken[0].row.peak_bytes or 0
    while waiting and (waiting[0].row.peak_bytes or 0) <= room:
        room -= waiting[0].row.peak_bytes or 0
        taken.append(waiting.pop(0))
    return taken


def _do_rounds(name: str, live: Sequence[Runner], group: int, rounds: int, report: Report | None) -> None:
    for number in range(rounds):
        for index, runner in enumerate(live):
            if report is not None:
                report(f"{name}: rounds", number * len(live) + index, rounds * len(live))
            runner.turn(number, group)


def _summarize(runners: Sequence[Runner]) -> None:
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
    floor = next((row.median_ms for row in rows if row.runner == FLOOR), None)
    for row in rows:
        peers = [peer for peer in rows if peer.runner not in (SMARTMEM, FLOOR) and peer.kind == row.kind]
        best = min((peer.median_ms for peer in peers if peer.median_ms), default=None)
        if best and row.median_ms and row.runner != FLOOR:
            row.ratio = row.median_ms / best
        if floor and row.median_ms:
            row.floor_ratio = row.median_ms / floor
