"""How times grow with the batch, the resolution or the threads: `smartmem bench --scale AXIS=VALUE,...`.

    --scale batch=1,2,4,8     the zoo's networks exported with these batches
    --scale resolution=128,256    with these sizes: pixels, tokens, latent pixels, as `smartmem zoo list` counts them
    --scale threads=1,2,4     the same network with these numbers of threads

Each value is a measurement of its own (`run.measure`), with all runners in turns. Growth is from the first value:
*x ideal* is how the multiply-adds grow, divided by how the threads do; *time / ideal* above 1 is time that neither
explains.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

from rich.text import Text

from smartmem.bench.networks import Case
from smartmem.bench.options import Options
from smartmem.bench.result import Result, Row, write_text
from smartmem.bench.run import measure
from smartmem.bench.table import conditions, number
from smartmem.errors import InputError, SmartmemError
from smartmem.report.tables import console, table

AXES = ("batch", "resolution", "threads")


@dataclass(frozen=True)
class Scale:
    """An axis, and its values in the order in which they are measured."""

    axis: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Scaling:
    """What was measured at each value of an axis.

    Attributes:
        scale: the axis and its values.
        results: one for each value.
        macs: multiply-accumulates of one run, by value and model.
    """

    scale: Scale
    results: list[Result] = field(default_factory=list)
    macs: list[dict[str, int]] = field(default_factory=list)

    def models(self) -> list[str]:
        return list(dict.fromkeys(model for result in self.results for model in result.models()))


def parse_scale(text: str) -> Scale:
    """`"batch=1,2,4" -> Scale("batch", (1, 2, 4))`.

    Raises:
        InputError: an unknown axis, or values that are no positive numbers or too few.
    """
    axis, equals, values = text.partition("=")
    if axis not in AXES or not equals:
        raise InputError(f"--scale {text}: give AXIS=VALUE,VALUE,... with one of the axes {', '.join(AXES)}")
    try:
        found = tuple(int(value) for value in values.split(","))
    except ValueError:
        raise InputError(f"--scale {text}: values are whole numbers, as in {axis}=1,2,4") from None
    if min(found) < 1 or len(set(found)) < max(2, len(found)):
        raise InputError(f"--scale {text}: give at least two different positive numbers")
    return Scale(axis, found)


def measure_scale(options: Options, scale: Scale, keep: Callable[[Scaling], None] | None = None) -> Scaling:
    """Measure everything that `options` asks for at every value of the axis; `keep` is called after each.

    Raises:
        InputError: as `measure` does, or a network cannot have such a batch or resolution.
    """
    scaling = Scaling(scale)
    points = list(_points(options, scale))
    for point in points:
        cases: list[Case] = []
        scaling.results.append(measure(point, seen=cases.append))
        scaling.macs.append({case.name: _macs(case) for case in cases})
        if keep is not None:
            keep(scaling)
    return scaling


def _points(options: Options, scale: Scale) -> Iterator[Options]:
    """The options of each value, all of them checked before the first is measured."""
    if scale.axis != "threads" and options.model is not None:
        raise InputError(f"--scale {scale.axis} goes with --zoo: a file has one {scale.axis}")
    for value in scale.values:
        if scale.axis == "threads":
            point = replace(options, threads=value)
        elif scale.axis == "batch":
            point = replace(options, batch=value)
        else:
            from smartmem.zoo.registry import NETWORKS, find

            for name in options.networks or NETWORKS:
                find(name).resolve(value)
            point = replace(options, resolution=value)
        yield point


def _macs(case: Case) -> int:
    """Multiply-accumulates of the model; 0 where they cannot be counted."""
    from smartmem.zoo.count import macs

    try:
        return macs(case.model)
    except SmartmemError:
        return 0


@dataclass(frozen=True)
class Growth:
    """One runner at one value, relative to the first value at which it ran."""

    time: float
    ideal: float

    @property
    def beyond(self) -> float:
        return self.time / self.ideal


def growth(scaling: Scaling, model: str, runner: str, level: str | None, at: int) -> Growth | None:
    """How a runner's median grew from the first value to value number `at`; None where one of them is missing."""
    first, here = (_row(scaling.results[k], model, runner, level) for k in (0, at))
    works = scaling.macs[0].get(model, 0), scaling.macs[at].get(model, 0)
    if first is None or here is None or not first.median_ms or not here.median_ms or not all(works):
        return None
    threads = scaling.results[at].threads / scaling.results[0].threads
    return Growth(here.median_ms / first.median_ms, works[1] / works[0] / threads)


def _row(result: Result, model: str, runner: str, level: str | None) -> Row | None:
    return next((row for row in result.of(model) if (row.runner, row.level) == (runner, level)), None)


def show_scale(scaling: Scaling) -> None:
    """Print a table for each network, and below them how they were measured."""
    out = console()
    axis = scaling.scale.axis
    columns = ("runner", f">{axis}", ">median ms", ">p10–p90", ">ms / GMAC", ">x time", ">x ideal", ">time / ideal", "")
    for model in scaling.models():
        runners = dict.fromkeys((row.runner, row.level) for result in scaling.results for row in result.of(model))
        rows = [
            _cells(scaling, model, runner, level, at) for runner, level in runners for at in range(len(scaling.results))
        ]
        out.print(table(model, columns, rows))
    result = scaling.results[-1]
    threads = "" if axis == "threads" else f"{result.threads} threads, "
    out.print(
        f"{conditions(result)}{threads}{result.rounds} interleaved rounds for each {axis}, "
        f"{result.machine.get('cpu', '')} ({result.machine.get('cpus', '?')} CPUs), "
        f"{max(result.dates.values(), default='')}"
    )


def _cells(scaling: Scaling, model: str, runner: str, level: str | None, at: int) -> tuple[object, ...]:
    result, value = scaling.results[at], scaling.scale.values[at]
    row = _row(result, model, runner, level)
    name = f"{runner} {level or (row.version if row is not None else '')}"
    if row is None or row.median_ms is None:
        return name, value, "-", "-", "-", "-", "-", "-", Text(row.error if row is not None else "", style="red")
    work, grown = scaling.macs[at].get(model, 0), growth(scaling, model, runner, level, at)
    cores = int(result.machine.get("cpus", "0"))
    beyond = scaling.scale.axis == "threads" and 0 < cores < value
    return (
        name,
        value,
        number(row.median_ms, ".3f"),
        "-" if row.p10_ms is None or row.p90_ms is None else f"{row.p10_ms:.3f}–{row.p90_ms:.3f}",
        number(row.median_ms / work * 1e9 if work else None, ".3f"),
        number(grown.time if grown else None, ".2f"),
        number(grown.ideal if grown else None, ".2f"),
        number(grown.beyond if grown else None, ".2f"),
        Text(f"more than the {cores} CPUs" if beyond else "", style="yellow"),
    )


def write_scale(scaling: Scaling, target: str) -> None:
    """Write the results of all values as JSON to a file, or to standard output if `target` is "-".

    Raises:
        InputError: the file cannot be written.
    """
    points = [
        {"value": value, "macs": work, "result": asdict(result)}
        for value, work, result in zip(scaling.scale.values, scaling.macs, scaling.results, strict=False)
    ]
    text = json.dumps({"axis": scaling.scale.axis, "points": points}, indent=1)
    if target == "-":
        print(text)
    else:
        write_text(target, text + "\n")
