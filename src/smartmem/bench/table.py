"""`smartmem bench` on a screen."""

from __future__ import annotations

from rich.text import Text

from smartmem.bench.result import Result, Row
from smartmem.report.tables import console, size, table

FLOOR_COLUMN = ">x floor"
COLUMNS = (
    "runner", ">median ms", ">p10–p90", ">x best peer", FLOOR_COLUMN, ">rel. error", ">ops", ">kernels", ">layout",
    ">peak", "",
)  # fmt: skip


def show(result: Result) -> None:
    """Print a table for each network, and below them how they were measured."""
    out = console()
    for model in result.models():
        rows = result.of(model)
        floor = any(row.floor_ratio for row in rows)
        columns = [column for column in COLUMNS if floor or column != FLOOR_COLUMN]
        out.print(table(model, columns, [_cells(row, result.rounds, floor) for row in rows]))
        if reference := result.references.get(model):
            drift = next((f"; speed changed by {row.drift:.2f} between groups" for row in rows if row.drift), "")
            out.print(f"errors against {reference}{drift}\n")
    out.print(
        f"{conditions(result)}{result.threads} threads, {result.rounds} interleaved rounds, "
        f"{result.machine.get('cpu', '')} ({result.machine.get('cpus', '?')} CPUs), "
        f"{max(result.dates.values(), default='')}"
    )
    if "smartmem" in result.machine:
        out.print(f"smartmem on {result.machine['smartmem']}")
    for name, reason in result.missing.items():
        out.print(f"left out: {name}: {reason}")


def _cells(row: Row, rounds: int, floor: bool) -> tuple[object, ...]:
    return (
        row.label if row.level else f"{row.label} {row.version}".strip(),
        number(row.median_ms, ".3f"),
        "-" if row.p10_ms is None or row.p90_ms is None else f"{row.p10_ms:.3f}–{row.p90_ms:.3f}",
        number(row.ratio, ".2f"),
        *([number(row.floor_ratio, ".2f")] if floor else []),
        number(row.relative_error, ".2g"),
        number(row.operators, "d"),
        number(row.kernels, "d"),
        number(row.layouts, "d"),
        "-" if row.peak_bytes is None else size(row.peak_bytes),
        _note(row, rounds),
    )


def _note(row: Row, rounds: int) -> Text:
    if row.error:
        plain = row.error.startswith(("wrong answer", "not timed"))
        return Text(row.error if plain else f"failed: {row.error}", style="red")
    if row.median_ms is None:
        return Text("prepared" if row.once_ms is None else f"prepared: one run took {row.once_ms:.3f} ms")
    notes = ["fastest"] if row.ratio is not None and row.ratio < 1 else []
    notes += [f"{row.rounds} rounds"] if row.rounds < rounds else []
    return Text(", ".join(notes), style="green" if row.ratio is not None and row.ratio < 1 else "")


def conditions(result: Result) -> str:
    """What the milliseconds are where that is not elapsed time, and what else ran."""
    busy = f"{result.load} busy process{'es' if result.load > 1 else ''} beside them, " if result.load else ""
    return ("CPU time of all threads, " if result.clock == "cpu" else "") + busy


def number(value: float | None, form: str) -> str:
    """A number as `form` says, or "-"."""
    return "-" if value is None else format(value, form)
