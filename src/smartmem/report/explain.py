"""`smartmem explain`: where each layout operator of the input went, then the kernels, then the totals.

In: `Program.report`, a JSON object with the keys

    model, level
    layout    [{node, op, shape, fate: load | store | folded | copy | host, reason,
                places: [{kernel, access: load | store, tensor, before, after}]}]
    kernels   [{name, family, shape, flops, bytes, copy, origin: [node …], notes: [text …]}]
    host      [{node, op, reason}]
    apart     [{first, second, reason}]           pairs that could have been fused
    layouts   [{tensor, layout, asked_by: [kernel …]}]
    totals    {operators, layout_operators, kernels, copies, copied_bytes, host_steps}
    memory    {arena_bytes, lower_bound_bytes, weights_bytes, scratch_bytes}

Out: text, or rich renderables. Keys that are missing leave their section out.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from smartmem.report.tables import console, count, dims, size, table

TOTALS = ("operators", "layout_operators", "kernels", "copies", "copied_bytes", "host_steps")
_FATES = {
    "load": "in the loads of",
    "store": "in the stores of",
    "folded": "computed at compile time",
    "copy": "stays as a copy",
    "host": "runs on the host",
}


def render(report: Mapping[str, Any]) -> str:
    """The whole report as plain text."""
    buffer = io.StringIO()
    console(buffer).print(renderable(report))
    return buffer.getvalue()


def renderable(report: Mapping[str, Any]) -> RenderableType:
    """The whole report for a rich console."""
    return Group(*_sections(report))


def with_levels(report: Mapping[str, Any], totals: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The object of `explain --json`: the report of one level, and the totals of each."""
    chosen = {level: {name: values.get(name, 0) for name in TOTALS} for level, values in totals.items()}
    return {**report, "totals": chosen}


def _sections(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text(f"{report.get('model', 'model')}, level {report.get('level', '?')}", style="bold")
    if entries := report.get("layout"):
        yield Text(f"\nLayout operators of the input: {len(entries)}", style="bold")
        for entry in entries:
            yield _layout_operator(entry)
    if kernels := report.get("kernels"):
        yield Text()
        yield table(
            f"Kernels: {len(kernels)}",
            ("kernel", "family", "shape", ">flops", ">bytes", "made of", "notes"),
            [
                (
                    kernel["name"] + (" (copy)" if kernel.get("copy") else ""),
                    kernel.get("family", ""),
                    dims(kernel.get("shape")),
                    count(kernel.get("flops", 0)),
                    count(kernel.get("bytes", 0)),
                    ", ".join(kernel.get("origin", ())),
                    "; ".join(kernel.get("notes", ())),
                )
                for kernel in kernels
            ],
        )
    for key, title, columns in (
        ("host", "Operators on the host", ("node", "op", "reason")),
        ("apart", "Neighbours that stay apart", ("first", "second", "reason")),
        ("layouts", "Layouts chosen for consumers", ("tensor", "layout", "asked_by")),
    ):
        if entries := report.get(key):
            rows = [[_cell(entry.get(column, "")) for column in columns] for entry in entries]
            yield Text()
            yield table(f"{title}: {len(entries)}", [column.replace("_", " ") for column in columns], rows)
    if totals := report.get("totals"):
        yield Text()
        yield Text(_totals(totals))
    if memory := report.get("memory"):
        yield Text(_memory(memory))


def _layout_operator(entry: Mapping[str, Any]) -> Text:
    fate = entry.get("fate", "")
    places = entry.get("places", ())
    text = Text(f'  {entry["op"]} "{entry["node"]}" {dims(entry.get("shape"))}: ')
    where = ", ".join(dict.fromkeys(f"{place['kernel']} ({place['tensor']})" for place in places))
    style = "red" if fate in ("copy", "host") else "green"
    text.append(f"{_FATES.get(fate, fate)} {where}".rstrip(), style=style)
    if entry.get("reason"):
        text.append(f" — {entry['reason']}")
    # A load that several operators went into has one map before and one after: show each once.
    shown = dict.fromkeys((place.get("before", ""), place.get("after", "")) for place in places)
    for before, after in shown:
        if before or after:
            text.append(f"\n      before  {before}\n      after   {after}", style="dim")
    return text


def _totals(totals: Mapping[str, Any]) -> str:
    values = {name: totals.get(name, 0) for name in TOTALS}
    return (
        f"Totals: {values['operators']} operators, {values['layout_operators']} of them layout -> "
        f"{values['kernels']} kernels, {values['copies']} copies ({size(values['copied_bytes'])}), "
        f"{values['host_steps']} host steps"
    )


def _memory(memory: Mapping[str, Any]) -> str:
    return (
        f"Memory: activations {size(memory.get('arena_bytes', 0))} "
        f"(at least {size(memory.get('lower_bound_bytes', 0))} are live at once), "
        f"weights {size(memory.get('weights_bytes', 0))}, scratch {size(memory.get('scratch_bytes', 0))} per thread"
    )


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
