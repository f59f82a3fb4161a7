"""Modelled counters as tables and as JSON objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.text import Text

from smartmem.counters.count import Counts
from smartmem.counters.network import Network
from smartmem.counters.profiles import Cache, CounterDevice
from smartmem.report.tables import count, size, table

COLUMNS = (
    ">kernels", ">accesses", ">loaded", ">stored", ">texture req.", ">buffer req.", ">1st misses", ">shared misses",
    ">index op./el.", ">div, mod/el.",
)  # fmt: skip


def renderable(title: str, device: CounterDevice, networks: Sequence[Network], top: int) -> Group:
    """A row per level; with `top`, also the kernels of the last level that miss most often."""
    rows = [(n.level, str(len(n.kernels)), *_cells(n.counts)) for n in networks]
    parts: list[Any] = [table(f"{title}: modelled, not measured", ("level", *COLUMNS), rows)]
    last = networks[-1]
    if top:
        worst = sorted(last.kernels, key=lambda k: -k.counts.shared_misses)[:top]
        shown = [(k.family, *_cells(k.counts), k.tensor + (" (sampled)" if k.sampled else "")) for k in worst]
        parts.append(table(f"{last.level}, most misses first", ("kernel", *COLUMNS[1:], "computes"), shown))
    notes = [
        f"caches of {device.device.name}: {_cache(device.texture)} for textures, "
        f"{_cache(device.buffer) if device.buffer else 'none'} for buffers in each of {device.device.compute_units} "
        f"compute units; shared: {_cache(device.shared)}",
        "req.: lines that sub-groups ask for; 1st misses: loads that the first cache does not serve; shared misses: "
        "lines from or to memory; op.: adds, multiplies, divisions and modulos in indices, per element of an output",
        f"{last.sampled} of the {len(last.kernels)} kernels at {last.level} are sampled",
    ]
    if any(n.host_steps for n in networks):
        notes.append("not counted: " + ", ".join(f"{n.host_steps} host steps at {n.level}" for n in networks))
    silent = sorted({k.family for n in networks for k in n.kernels if not k.told})
    if silent:
        notes.append(f"not counted: schedules that do not tell their accesses: {', '.join(silent)}")
    return Group(*parts, *map(Text, notes))


def as_object(device: CounterDevice, memory: str, precision: str, networks: Sequence[Network]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "modelled": True,
        "device": device.device.name,
        "memory": memory,
        "precision": precision,
        "caches": {
            "texture": asdict(device.texture),
            "buffer": asdict(device.buffer) if device.buffer else None,
            "shared": asdict(device.shared),
            "compute_units": device.device.compute_units,
            "resident_groups": device.resident,
        },
        "levels": {
            n.level: {
                "totals": _rounded(n.counts),
                "host_steps": n.host_steps,
                "kernels": [
                    {"computes": k.tensor, "family": k.family, "sampled": k.sampled, "told": k.told}
                    | _rounded(k.counts)
                    for k in n.kernels
                ],
            }
            for n in networks
        },
    }


def _rounded(counts: Counts) -> dict[str, int]:
    return {name: round(value) for name, value in asdict(counts).items()}


def _cells(counts: Counts) -> tuple[str, ...]:
    elements = max(counts.elements, 1)
    return (
        count(counts.accesses), size(counts.loaded), size(counts.stored), count(counts.texture_requests),
        count(counts.buffer_requests), count(counts.first_misses), count(counts.shared_misses),
        f"{counts.index_operations / elements:.2f}", f"{(counts.divisions + counts.modulos) / elements:.2f}",
    )  # fmt: skip


def _cache(cache: Cache) -> str:
    return f"{size(cache.size)}, {cache.ways} ways, lines of {cache.line} bytes"
