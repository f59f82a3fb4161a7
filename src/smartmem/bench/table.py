"""`smartmem bench` on a screen."""

from __future__ import annotations

from rich.text import Text

from smartmem.bench.run import Result, Row
from smartmem.report.tables import console, table


def show(result: Result) -> None:
    """Print the rows as a table, and below it how they were measured."""
    rows = [
        (
            row.runner + (f" {row.level}" if row.level else f" {row.version}"),
            _number(row.median_ms, ".3f"),
            _number(row.min_ms, ".3f"),
            _number(row.ratio, ".2f"),
            _number(row.relative_error, ".2g"),
            _note(row),
        )
        for row in result.rows
    ]
    name = result.rows[0].model if result.rows else ""
    columns = ("runner", ">median ms", ">min ms", ">x best peer", ">relative error", "")
    out = console()
    out.print(table(name, columns, rows))
    out.print(f"{result.threads} threads, {result.rounds} interleaved rounds, errors against {result.reference}")


def _note(row: Row) -> Text:
    if row.error:
        return Text(f"failed: {row.error}", style="red")
    if row.relative_error is not None and not row.relative_error < 1e-3:
        return Text("wrong", style="red")
    return Text("fastest" if row.ratio is not None and row.ratio < 1 else "", style="green")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
