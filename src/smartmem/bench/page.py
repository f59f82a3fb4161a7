"""One self-contained HTML page of a `Result`: an overview of all networks, then charts and numbers of each.

overview    medians, a row per network and a column per level and peer (on a device: for each memory and precision);
            the fastest of smartmem's furthest level over the best peer of the same precision
network     `charts`, and a table of everything that is known
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from smartmem.bench.charts import CLIP, breakdown, by_placement, counts, furthest, latency, milliseconds
from smartmem.bench.peers import FLOOR, SMARTMEM
from smartmem.bench.result import Result, Row
from smartmem.bench.table import conditions, number
from smartmem.levels import LEVELS
from smartmem.report.tables import size

_STYLE = """
:root { color-scheme: light dark; --text: #1a1c20; --soft: #5c6370; --page: #ffffff; --line: #d9dce2; --ours: #c2410c;
  --peer: #64748b; --bad: #b91c1c; --tint: #ffedd5;
  --level-0: #fed7aa; --level-1: #fdba74; --level-2: #fb923c; --level-3: #ea580c; --level-4: #9a3412; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ec; --soft: #9aa2af; --page: #14161a; --line: #333843;
  --ours: #fb923c; --peer: #7c8aa0; --bad: #f87171; --tint: #3b2314;
  --level-0: #7c2d12; --level-1: #9a3412; --level-2: #c2410c; --level-3: #ea580c; --level-4: #fdba74; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; } h3 { font-size: 1rem; margin: 0 0 .3rem; }
p, figcaption, summary { color: var(--soft); } figure { margin: 0 0 .8rem; }
figcaption { font-size: .85rem; margin-bottom: .2rem; }
section { border-top: 1px solid var(--line); padding: 1rem 0; } details { margin-top: .5rem; }
.charts { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 0 1.5rem; }
@media (max-width: 50rem) { .charts { grid-template-columns: minmax(0, 1fr); } }
svg { max-width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--text); } svg .soft { fill: var(--soft); }
svg .bad { fill: var(--bad); } svg .ours { fill: var(--ours); } svg .peer { fill: var(--peer); }
svg .spread { stroke: var(--text); stroke-width: 1; } svg .axis { stroke: var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .45rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page); }
thead th { vertical-align: bottom; } td.bad { color: var(--bad); } td.best { font-weight: 700; }
td.ours { background: var(--tint); } td.reason { text-align: left; white-space: normal; min-width: 14rem; }
"""


def page(result: Result) -> str:
    """The whole page."""
    body = [
        "<h1>smartmem bench</h1>",
        f"<p>{escape(_conditions(result))}</p>",
        "<h2>Overview</h2>",
        "<p>Medians in milliseconds; a network's shortest is bold. Where there is a word instead, its reason shows "
        "when the pointer rests on it, and in the network's own table.</p>",
        _overview(result),
        "<h2>Networks</h2>",
        "<p>Latency is the median; the thin line goes from the 10th to the 90th percentile, and bars end at "
        f"{CLIP:g} times the shortest. Speed is relative to the first level that ran. The grey part of a bar of "
        "kernels is copies.</p>",
        *(_network(model, result) for model in result.models()),
    ]
    if result.missing:
        body.append("<h2>Left out</h2>")
        body += [f"<p>{escape(peer)}: {escape(reason)}</p>" for peer, reason in result.missing.items()]
    style = "".join(f"svg .level-{i} {{ fill: var(--level-{i}); }}\n" for i in range(len(LEVELS)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>smartmem bench</title>'
        f"<style>{_STYLE}{style}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _conditions(result: Result) -> str:
    machine = result.machine
    days = sorted({date.partition(" ")[0] for date in result.dates.values()})
    return (
        f"{machine.get('cpu', 'unknown CPU')}, {machine.get('cpus', '?')} CPUs, {machine.get('system', '')}, Python "
        f"{machine.get('python', '')}, {' to '.join(days[:1] + days[1:][-1:])}; {conditions(result)}"
        f"{result.threads} threads, {result.rounds} interleaved rounds, "
        + (f"smartmem on {machine['smartmem']}" if "smartmem" in machine else "float32")
    )


def _overview(result: Result) -> str:
    columns = list(dict.fromkeys((row.level, row.label) for row in result.rows))
    columns.sort(key=lambda column: (column[0] is None, LEVELS.index(column[0]) if column[0] in LEVELS else 0))
    last = next((level for level, _ in reversed(columns) if level), "")
    precisions = list(dict.fromkeys(row.precision for row in result.rows if row.level))
    lines = []
    ratios: dict[str, list[float]] = {precision: [] for precision in precisions}
    for model in result.models():
        rows = {row.label: row for row in result.of(model)}
        best = min((row.median_ms for row in rows.values() if row.median_ms and row.runner != FLOOR), default=None)
        cells = "".join(_median(rows.get(label), best) for _, label in columns)
        for precision, found in ratios.items():
            ours = [row.ratio for row in furthest(list(rows.values())) if row.ratio and row.precision == precision]
            cells += f"<td>{number(min(ours, default=None), '.2f')}</td>"
            found += [min(ours)] if ours else []
        lines.append(f"<tr><td>{escape(model)}</td>{cells}</tr>")
    titles = "".join(f"<th>{escape(label.removeprefix(f'{SMARTMEM} '))}</th>" for _, label in columns)
    titles += "".join(f"<th>{escape(f'{last} {precision}')} ÷<br>best peer</th>" for precision in precisions)
    return (
        f'<div class="scroll"><table><thead><tr><th>network</th>{titles}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
        + "".join(_mean(last, precision, found) for precision, found in ratios.items() if found)
    )


def _mean(level: str, precision: str, ratios: list[float]) -> str:
    value = math.exp(sum(map(math.log, ratios)) / len(ratios))
    networks = f"{len(ratios)} networks" if len(ratios) > 1 else "1 network"
    name = " ".join(filter(None, (level, precision)))
    return f"<p>Geometric mean of {escape(name)} ÷ best peer over {networks}: {value:.2f}.</p>"


def _median(row: Row | None, best: float | None) -> str:
    if row is None:
        return "<td></td>"
    if row.median_ms is None:
        words = {"wrong answer": "wrong", "no answer within": "time", "not timed": "slow"}
        word = next((word for start, word in words.items() if row.error.startswith(start)), "fails")
        return f'<td class="bad" title="{escape(row.error)}">{word if row.error else "-"}</td>'
    kinds = ["ours"] if row.level else []
    kinds += ["best"] if row.median_ms == best else []
    return f'<td class="{" ".join(kinds)}">{milliseconds(row.median_ms)}</td>'


def _network(model: str, result: Result) -> str:
    rows = result.of(model)
    by_level = "".join(breakdown(levels) + counts(levels) for levels in by_placement(rows))
    charts = latency(rows) + (f"<div>{by_level}</div>" if by_level else "")
    reference = result.references.get(model, "")
    against = f", errors against {escape(reference)}" if reference else ""
    return (
        f'<section><h3>{escape(model)}</h3><div class="charts">{charts}</div>'
        f"<details><summary>All numbers{against}</summary>{_table(rows)}</details></section>"
    )


def _table(rows: Sequence[Row]) -> str:
    titles = (
        "runner", "version", "median ms", "p10", "p90", "x best peer", "x floor", "relative error", "rounds", "runs",
        "prepare s", "operators", "kernels", "layout", "peak memory", "group", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        cells = (
            row.label,
            row.version,
            number(row.median_ms, ".3f"),
            number(row.p10_ms, ".3f"),
            number(row.p90_ms, ".3f"),
            number(row.ratio, ".2f"),
            number(row.floor_ratio, ".2f"),
            number(row.relative_error, ".2g"),
            number(row.rounds or None, "d"),
            number(row.runs or None, "d"),
            number(row.prepare_s, ".1f"),
            number(row.operators, "d"),
            number(row.kernels, "d"),
            number(row.layouts, "d"),
            "-" if row.peak_bytes is None else size(row.peak_bytes),
            number(row.group or None, "d"),
        )
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr>{data}<td class="bad reason">{escape(row.error)}</td></tr>')
    head = "".join(f"<th>{title}</th>" for title in titles)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )
