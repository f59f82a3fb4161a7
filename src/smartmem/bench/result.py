"""What `smartmem bench` found: rows of numbers, the conditions they were measured under, and their JSON file.

write_json(result, "out.json")     {"rows": [{"model": "swin_t", "runner": "onnxruntime", "median_ms": …}, …], …}
read_json(Path("out.json"))        the same `Result`
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from smartmem.errors import InputError
from smartmem.runtime.march import cpu_name


@dataclass
class Row:
    """One runner's result on one network.

    Attributes:
        model, runner, version: what ran.
        level: of smartmem; None for others.
        memory: of smartmem on a device; else "".
        precision: of smartmem on a device and of GPU peers, "fp32" or "fp16"; on the CPU "bf16" or "bf16x3"; else "",
            which is fp32 too.
        median_ms, p10_ms, p90_ms, min_ms: of all measured runs; None where it failed or was only prepared.
        ratio: median over that of the best peer in the same precision: below 1 is faster than every peer. None without
            such peers.
        floor_ratio: median over that of the floor, a loop of as many multiply-adds (`--floor`).
        relative_error: largest over the outputs, against the reference.
        rounds, runs: in how many rounds it took part, and how many runs were measured in them.
        once_ms: one run during preparation, the second after loading.
        prepare_s: seconds to convert, load and answer.
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
    floor_ratio: float | None = None
    relative_error: float | None = None
    rounds: int = 0
    runs: int = 0
    once_ms: float | None = None
    prepare_s: float | None = None
    operators: int | None = None
    kernels: int | None = None
    layouts: int | None = None
    peak_bytes: int | None = None
    group: int = 0
    drift: float | None = None
    version: str = ""
    error: str = ""
    memory: str = ""
    precision: str = ""

    @property
    def label(self) -> str:
        """`smartmem full`, `smartmem full texture fp16`, `torch-cuda fp16`, `onnxruntime`."""
        return " ".join(filter(None, (self.runner, self.level, self.memory, self.precision)))

    @property
    def kind(self) -> str:
        """The precision with a name, which those have that are compared."""
        return self.precision or "fp32"


@dataclass
class Result:
    """All rows, and under which conditions they were measured.

    Attributes:
        references: by network, what relative errors are against.
        dates: by network, when it was measured.
        missing: peers that "all" left out, and why.
        machine: CPU, system, Python.
        load: how many busy processes ran beside the measured ones.
        clock: what was measured: "wall" or "cpu".
    """

    rows: list[Row]
    threads: int
    rounds: int
    references: dict[str, str] = field(default_factory=dict)
    dates: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    clock: str = "wall"
    load: int = 0

    def models(self) -> list[str]:
        """The networks, in order."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def of(self, model: str) -> list[Row]:
        """The rows of one network."""
        return [row for row in self.rows if row.model == model]


def write_json(result: Result, target: str) -> None:
    """Write a result to a file, or to standard output if `target` is "-"."""
    text = json.dumps(asdict(result), indent=1)
    if target == "-":
        print(text)
    else:
        write_text(target, text + "\n")


def read_json(source: Path) -> Result:
    """Read what `write_json` wrote.

    Raises:
        InputError: there is no such file, or it is something else.
    """
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
        return Result(**(data | {"rows": [Row(**row) for row in data["rows"]]}))
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{source}: was not written by this version of `smartmem bench --json`") from None


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
    """CPU, number of usable CPUs, system, Python."""
    return {
        "cpu": cpu_name(),
        "cpus": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def now() -> str:
    """`2026-02-28 13:45 UTC`."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
