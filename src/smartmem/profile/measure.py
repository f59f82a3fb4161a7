"""Where the time of a model goes: each kernel's time beside the least that the machine would need for it.

In: a model, inputs, the machine's peak rates. Out: a `Profile`: medians over runs, with the work of each kernel as the
compiler counted it (`Program.report`). The *floor* of a kernel is the time of its operations at peak or of its bytes at
the bandwidth of that much memory, whichever is longer; its *loss* is the time above the floor, its *share* of the
roofline floor / time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smartmem.errors import InputError
from smartmem.profile.machine import Machine
from smartmem.runtime.compiled import StepTime
from smartmem.runtime.model import Model
from smartmem.runtime.peak import peak_bytes

WARM_UP = 2


@dataclass(frozen=True)
class KernelTime:
    """One step of the program.

    Attributes:
        name: the tensor that it stores; for a host step, its node.
        family: of the schedule, or "host".
        symbol: C function; equal kernels have the same one. For a host step, the operator.
        shape: of the stored tensor.
        made_of: names of the graph's nodes in it.
        flops, bytes: what the definition asks for.
        seconds, fastest: median and least over runs.
        floor: seconds; 0 for host steps.
        busy: part of `seconds` x threads in which threads worked on it; the rest they waited.
    """

    name: str
    family: str
    symbol: str
    shape: tuple[int, ...]
    made_of: tuple[str, ...]
    flops: int
    bytes: int
    seconds: float
    fastest: float
    floor: float
    busy: float

    @property
    def loss(self) -> float:
        """Seconds above the floor."""
        return self.seconds - self.floor

    @property
    def share(self) -> float:
        """Of the roofline: 1 where nothing is lost."""
        return self.floor / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        seconds = self.seconds or 1e-12
        rates = {"gflops": self.flops / seconds / 1e9, "gbs": self.bytes / seconds / 1e9}
        return {
            **{key: value for key, value in vars(self).items() if key not in ("seconds", "fastest", "floor")},
            "ms": self.seconds * 1e3,
            "min_ms": self.fastest * 1e3,
            "floor_ms": self.floor * 1e3,
            "loss_ms": self.loss * 1e3,
            "share": self.share,
            **{key: round(value, 3) for key, value in rates.items()},
        }


@dataclass(frozen=True)
class Profile:
    """A model's profile.

    Attributes:
        model, level, runs: what was measured.
        machine: its peak rates.
        call: seconds of a call without timing, median.
        steps: in execution order.
        timed: the timed run whose total is the median, for a trace.
        memory: bytes: the compiler's plan (see `report.explain`), and "peak_bytes" of this process.
    """

    model: str
    level: str
    runs: int
    machine: Machine
    call: float
    steps: tuple[KernelTime, ...]
    timed: tuple[StepTime, ...]
    memory: dict[str, int]

    @property
    def kernels(self) -> list[KernelTime]:
        """Without host steps."""
        return [step for step in self.steps if step.family != "host"]

    @property
    def fastest(self) -> float:
        """Seconds of all steps, each in the run in which it took least."""
        return sum(step.fastest for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Kernels by falling loss."""
        return {
            "model": self.model,
            "level": self.level,
            "runs": self.runs,
            "machine": self.machine.to_json(),
            "call_ms": self.call * 1e3,
            "steps_ms": sum(step.seconds for step in self.steps) * 1e3,
            "fastest_ms": self.fastest * 1e3,
            "floor_ms": sum(step.floor for step in self.steps) * 1e3,
            "memory": self.memory,
            "kernels": [step.to_json() for step in sorted(self.steps, key=lambda step: -step.loss)],
        }


def check_kernels(model: Model, name: str) -> None:
    """Refuses a model that has nothing to profile.

    Raises:
        InputError: it has no kernels, or its report does not describe them.
    """
    steps = model.program.steps
    native = sum(1 for step in steps if hasattr(step, "symbol"))
    if native == 0:
        reason = f"its {len(steps)} steps run on the host" if steps else "it computes nothing"
        raise InputError(f"{name} has no kernels to profile: {reason}; smartmem explain {name} says why")
    if len(model.program.report.get("kernels", ())) != native:
        raise InputError(f"{name} does not say what its kernels compute; compile it again with this version")


def measure(model: Model, inputs: dict[str, Any], machine: Machine, runs: int) -> Profile:
    """Runs the model `runs` times with times and as often without, in turn, so that both see the same machine."""
    check_kernels(model, model.program.name)
    for _ in range(WARM_UP):
        model.run(inputs)
    timed: list[list[StepTime]] = []
    calls: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        model.run(inputs)
        calls.append(time.perf_counter() - start)
        timed.append(model.run_timed(inputs)[1])
    by_total = sorted(timed, key=lambda run: sum(step.seconds for step in run))
    program = model.program
    return Profile(
        program.name, program.level, runs, machine, statistics.median(calls),
        tuple(_steps(program.report, timed, machine)), tuple(by_total[len(by_total) // 2]),
        {**program.report.get("memory", {}), "peak_bytes": peak_bytes()},
    )  # fmt: skip


def _steps(report: dict[str, Any], timed: Sequence[Sequence[StepTime]], machine: Machine) -> list[KernelTime]:
    rows = iter(report["kernels"])
    result = []
    for runs in zip(*timed, strict=True):
        step, seconds = runs[0], statistics.median(run.seconds for run in runs)
        fastest = min(run.seconds for run in runs)
        busy = statistics.median(_busy(run, machine.threads) for run in runs)
        if step.host:
            result.append(KernelTime(step.label, "host", step.symbol, (), (), 0, 0, seconds, fastest, 0.0, busy))
            continue
        row = next(rows)
        work, size, shape = int(row["flops"]), int(row["bytes"]), tuple(row["shape"])
        floor, origin = machine.floor(work, size), tuple(row.get("origin", ()))
        result.append(
            KernelTime(
                row["name"], row["family"], step.symbol, shape, origin, work, size, seconds, fastest, floor, busy
            )
        )
    return result


def _busy(step: StepTime, threads: int) -> float:
    worked = sum(end - begin for _, begin, end in step.spans)
    return worked / (step.seconds * threads) if step.seconds else 0.0
