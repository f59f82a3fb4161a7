"""`smartmem explain`: where each layout operator of the input went, then the kernels, then the totals.

In: `Program.report`, a JSON object with the keys

    model, level, precision
    layout    [{node, op, shape, fate: load | store | folded | copy | host, reason,
                places: [{kernel, access: load | store, tensor, before, after, axes}]}]
    kernels   [{name, family, shape, flops, bytes, copy, origin: [node …], notes: [text …]}]
    host      [{node, op, reason}]
    apart     [{first, second, reason, mapping}]  pairs that were not fused, with their mapping types
    classes   {operators, remaining}: {class: number}
    layouts   [{tensor, layout, asked_by: [kernel …]}], on devices with pictures; assignment: see `report.layouts`
    totals    {operators, layout_operators, kernels, copies, copied_bytes, host_steps}
    memory    {arena_bytes, lower_bound_bytes, weights_bytes, scratch_bytes}

`before` is a chain of index maps from a consumer down to a tensor in memory, each over the coordinates (i, j, k, ...)
that the one before gives; `after` is the one map that the kernel uses, over its own `axes`.

Out: text, or rich renderables. Keys that are missing leave their section out.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from smartmem.report.layouts import layouts
from smartmem.report.tables import console, count, dims, size, table

TOTALS = ("operators", "layout_operators", "kernels", "copies", "copied_bytes", "host_steps")
SPOTS = 3  # examples per group
_FATES = {
    "load": "became part of loads",
    "store": "became part of stores",
    "folded": "need nothing at run time",
    "copy": "stay as copies",
    "host": "run on the host",
}
_ONE = {**_FATES, "folded": "needs nothing at run time", "copy": "stays as a copy", "host": "runs on the host"}


def render(report: Mapping[str, Any], verbose: bool = False) -> str:
    """The whole report as plain text."""
    buffer = io.StringIO()
    console(buffer).print(renderable(report, verbose))
    return buffer.getvalue()


def renderable(report: Mapping[str, Any], verbose: bool = False) -> RenderableType:
    """The whole report for a rich console; with `verbose`, every layout operator on its own."""
    return Group(*_sections(report, verbose))


def with_levels(report: Mapping[str, Any], totals: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The object of `explain --json`: the report of one level, and the totals of each."""
    chosen = {level: {name: values.get(name, 0) for name in TOTALS} for level, values in totals.items()}
    return {**report, "totals": chosen}


def _sections(report: Mapping[str, Any], verbose: bool) -> Iterator[RenderableType]:
    precision = report.get("precision", "fp32")
    words = [str(report.get("model", "model")), f"level {report.get('level', '?')}", precision]
    yield Text(", ".join(words if precision != "fp32" else words[:-1]), style="bold")
    if entries := report.get("layout"):
        yield Text(f"\nLayout operators of the input: {len(entries)}", style="bold")
        if verbose:
            yield from map(_layout_operator, entries)
        else:
            yield from _grouped(entries)
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
    if entries := report.get("host"):
        columns = ("node", "op", "reason")
        rows = [[entry.get(column, "") for column in columns] for entry in entries]
        yield Text()
        yield table(f"Operators on the host: {len(entries)}", columns, rows)
    yield from layouts(report, verbose)
    if entries := report.get("apart"):
        yield from _apart(entries)
    if classes := report.get("classes"):
        yield Text()
        yield Text(_classes(classes))
    if totals := report.get("totals"):
        yield Text()
        yield Text(_totals(totals))
    if memory := report.get("memory"):
        yield Text(memory_line(memory))


def _grouped(entries: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """Layout operators by what became of them; loads and stores by kernel, equal ones (of equal blocks) once."""
    for fate in ("copy", "host", "folded", "load", "store"):
        same = [entry for entry in entries if entry.get("fate") == fate]
        if not same:
            continue
        yield Text(f"  {len(same)} {_FATES[fate]}:", style="red" if fate in ("copy", "host") else "green")
        if fate in ("load", "store"):
            yield from _by_place(same)
        elif fate == "folded":
            for reason in dict.fromkeys(entry.get("reason", "") for entry in same):
                kinds = Counter(entry["op"] for entry in same if entry.get("reason", "") == reason)
                yield Text(f"    {sum(kinds.values())}, {reason}: {_kinds(kinds)}")
        else:
            for entry in same:
                yield Text(
                    f'    {entry["op"]} "{entry["node"]}" {dims(entry.get("shape"))} — {entry.get("reason", "")}'
                )


def _by_place(entries: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """What went into each load or store. Equal blocks of a network have equal maps, which are shown once."""
    where: dict[tuple[str, str, str], dict[str, Counter[str]]] = {}
    longest: dict[tuple[str, str, str, str], str] = {}
    for place in (place for entry in entries for place in entry.get("places", ())):
        end = (place["kernel"], place["access"], place["tensor"], place["after"])
        longest[end] = max(longest.get(end, ""), place["before"], key=len)
    for entry in entries:
        for place in entry.get("places", ()):
            end = (place["kernel"], place["access"], place["tensor"], place["after"])
            key = (longest[end], place["after"], place.get("axes", ""))
            spot = f"{place['kernel']} loads {place['tensor']}"
            if place["access"] == "store":
                spot = f"{place['kernel']} stores to {place['tensor']}"
            where.setdefault(key, {}).setdefault(spot, Counter())[entry["op"]] += 1
    for key, found in where.items():
        before, after, axes = key
        spots = list(found)
        more = f", and {len(spots) - SPOTS} more like it" if len(spots) > SPOTS else ""
        text = Text(
            f"    {', '.join(spots[:SPOTS])}{more}: {_kinds(found[spots[0]])}" + (" each" if len(spots) > 1 else "")
        )
        text.append(f"\n        before  {before}\n        after   {after}", style="dim")
        text.append(f"   {axes}" if axes else "", style="dim")
        yield text


def _kinds(found: Mapping[str, int]) -> str:
    """`2 Reshape, Transpose`."""
    return ", ".join(f"{number} {op}" if number > 1 else op for op, number in found.items())


def _layout_operator(entry: Mapping[str, Any]) -> Text:
    fate = entry.get("fate", "")
    text = Text(f'  {entry["op"]} "{entry["node"]}" {dims(entry.get("shape"))}: ')
    style = "red" if fate in ("copy", "host") else "green"
    text.append(_ONE.get(fate, fate), style=style)
    if entry.get("reason"):
        text.append(f" — {entry['reason']}")
    for place in entry.get("places", ()):
        text.append(f"\n      {place['kernel']} {place['access']}s {place['tensor']}")
        text.append(f"\n          before  {place['before']}\n          after   {place['after']}", style="dim")
        text.append(f"   {place['axes']}" if place.get("axes") else "", style="dim")
    return text


def _apart(entries: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Pairs of kernels by the reason that keeps them apart."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        key = (entry.get("mapping", ""), entry.get("reason", ""))
        reasons.setdefault(key, []).append(f"{entry['first']} -> {entry['second']}")
    rows = [
        (len(pairs), mapping, reason, ", ".join(pairs[:SPOTS]) + (" ..." if len(pairs) > SPOTS else ""))
        for (mapping, reason), pairs in sorted(reasons.items(), key=lambda item: -len(item[1]))
    ]
    yield Text()
    yield table(
        f"Neighbours that stay apart: {len(entries)}", (">pairs", "mapping types", "reason", "for example"), rows
    )


def _classes(classes: Mapping[str, Mapping[str, int]]) -> str:
    """The operators by the paper's classes, and what its pair table leaves of them."""

    def listed(found: Mapping[str, int]) -> str:
        return ", ".join(f"{number} {kind}" for kind, number in found.items()) or "none"

    return f"Classes: {listed(classes['operators'])}; the pair table leaves {listed(classes['remaining'])}"


def _totals(totals: Mapping[str, Any]) -> str:
    values = {name: totals.get(name, 0) for name in TOTALS}
    return (
        f"Totals: {values['operators']} operators, {values['layout_operators']} of them layout -> "
        f"{values['kernels']} kernels, {values['copies']} copies ({size(values['copied_bytes'])}), "
        f"{values['host_steps']} host steps"
    )


def memory_line(planned: Mapping[str, Any]) -> str:
    """The compiler's memory plan in one line."""
    return (
        f"Memory: activations {size(planned.get('arena_bytes', 0))} "
        f"(at least {size(planned.get('lower_bound_bytes', 0))} are live at once), "
        f"weights {size(planned.get('weights_bytes', 0))}, scratch {size(planned.get('scratch_bytes', 0))} per thread"
    )
