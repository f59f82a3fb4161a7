"""The layouts of a model, for `explain`: on the CPU a table, on devices a picture per tensor.

In: the report's `layouts` and `assignment` (see `passes.tell_layouts` and `passes.place`). Out: rich renderables.
Tensors of equal shape and picture, those of equal blocks of a network, are shown once.

                x = k:56 l/4:24 ->
               +-----+-----+--
        y=j:56 | l%4 | l%4 |
               +-----+-----+--

is a texture of 56 rows with 24 texels of four channels for each of 56 pixels in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from smartmem.report.tables import dims, table

SHOWN = 3  # names of a list


def layouts(report: Mapping[str, Any], verbose: bool) -> Iterator[RenderableType]:
    """The section of the layouts; nothing without any."""
    entries = report.get("layouts") or []
    if not entries:
        return
    if "picture" not in entries[0]:
        columns = ("tensor", "layout", "asked_by")
        rows = [[_listed(entry.get(column, "")) for column in columns] for entry in entries]
        yield Text()
        yield table(f"Layouts chosen for consumers: {len(entries)}", [c.replace("_", " ") for c in columns], rows)
        return
    textures = sum(entry["memory"] != "buffer" for entry in entries)
    yield Text(f"\nLayouts: {textures} tensors in textures, {len(entries) - textures} in buffers", style="bold")
    if assignment := report.get("assignment"):
        yield Text(_assignment(assignment))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for number, entry in enumerate(entries):
        key = str(number) if verbose else str((entry["shape"], entry["memory"], entry["picture"], entry["reason"]))
        groups.setdefault(key, []).append(entry)
    for group in groups.values():
        yield from _drawn(group)


def _assignment(found: Mapping[str, Any]) -> str:
    """What the model predicts, in coalesced reads of 16 bytes."""
    text = f"  Predicted cost {found['cost']:.4g}"
    if "buffer" in found:
        text += f" (all in buffers {found['buffer']:.4g}, all that can be in textures {found['texture']:.4g})"
    if found["method"] == "exact":
        text += f"; greedy is {_above(found['greedy'], found['cost'])} above the exact assignment"
        if found["cost"] > found["bound"] * 1.0001:
            text += f", which is at most {_above(found['cost'], found['bound'])} above the least possible"
    if (copies := found.get("copies")) and copies["tensors"]:
        text += f"\n  {copies['tensors']} tensors are stored again in further layouts, which saves "
        text += f"{100 * copies['gain'] / found['cost']:.2g}% of it"
    return text


def _above(value: float, least: float) -> str:
    return f"{100 * (value / least - 1):.2f}%" if least else "0%"


def _drawn(group: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    first = group[0]
    names = _some([entry["tensor"] for entry in group])
    yield Text(f"  {names}  {dims(first['shape'])}  {first['memory']}: {first['reason']}")
    x, y, lane = (first["picture"][direction] for direction in ("x", "y", "lane"))
    cell = lane.rpartition(":")[0] or "."
    left = f"y={y} |" if y else "|"
    margin, line = " " * (8 + len(left) - 1), f"+-{'-' * len(cell)}-" * 2 + "+--"
    drawing = f"{margin} x={x or '1'} ->\n{margin}{line}\n        {left} {cell} | {cell} |\n{margin}{line}"
    yield Text(drawing, style="dim")
    if first["asked_by"]:
        asked = "; ".join(f"{request['axis']} by {_some(request['kernels'])}" for request in first["asked_by"])
        yield Text(f"        asked for along {asked}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
