"""One self-contained HTML page of a `Result`: tables, and charts as inline SVG.

Charts, each with its numbers as text beside the marks:

    latency     bars per network: every peer and smartmem's furthest level; bars end at CLIP times the shortest
    breakdown   speed of each level over the first one, per network (the paper's "speedup over no optimization")
    counts      kernels and copies by level, per network
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from smartmem.bench.run import Result, Row
from smartmem.bench.table import number
from smartmem.levels import LEVELS
from smartmem.report.tables import size

CLIP = 5.0
_WIDTH, _LABEL, _BAR, _STEP = 720, 170, 14, 22  # px: a chart, its labels, a bar, a row

_STYLE = """
:root { --text: #1a1c20; --soft: #5c6370; --page: #ffffff; --line: #d9dce2; --ours: #c2410c; --peer: #64748b;
  --level-0: #fed7aa; --level-1: #fdba74; --level-2: #fb923c; --level-3: #ea580c; --level-4: #9a3412; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ec; --soft: #9aa2af; --page: #14161a; --line: #333843;
  --ours: #fb923c; --peer: #7c8aa0; --level-0: #7c2d12; --level-1: #9a3412; --level-2: #c2410c; --level-3: #ea580c;
  --level-4: #fdba74; --bad: #f87171; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
p, figcaption { color: var(--soft); } figure { margin: 0; overflow-x: auto; } svg { max-width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--text); } svg .soft { fill: var(--soft); }
svg .bad { fill: var(--bad); } svg .ours { fill: var(--ours); } svg .peer { fill: var(--peer); }
svg .spread { stroke: var(--text); stroke-width: 1; } svg .axis { stroke: var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.bad { color: var(--bad); text-align: left; white-space: normal; }
"""


def page(result: Result) -> str:
    """The whole page."""
    body = [
        "<h1>smartmem bench</h1>",
        f"<p>{escape(_conditions(result))}</p>",
        "<h2>Latency</h2>",
        f"<p>Medians; the thin line goes from the 10th to the 90th percentile. Bars end at {CLIP:g} times the "
        "shortest of their network.</p>",
        *(_latency(model, _of(result, model)) for model in result.models()),
    ]
    if any(row.level for row in result.rows):
        body += [
            "<h2>Breakdown by level</h2>",
            "<p>How many times as fast as the first level that ran.</p>",
            *(_breakdown(model, _of(result, model)) for model in result.models()),
            "<h2>Kernels and copies by level</h2>",
            *(_counts(model, _of(result, model)) for model in result.models()),
        ]
    body += ["<h2>All numbers</h2>", *(_table(model, result) for model in result.models())]
    if result.missing:
        body.append("<h2>Left out</h2>")
        body += [f"<p>{escape(name)}: {escape(reason)}</p>" for name, reason in result.missing.items()]
    style = "".join(f"svg .level-{i} {{ fill: var(--level-{i}); }}\n" for i in range(len(LEVELS)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>smartmem bench</title>'
        f"<style>{_STYLE}{style}</style></head><body>\n" + "\n".join(filter(None, body)) + "\n</body></html>\n"
    )


def _conditions(result: Result) -> str:
    machine = result.machine
    return (
        f"{machine.get('cpu', 'unknown CPU')}, {machine.get('cpus', '?')} CPUs, {machine.get('system', '')}, Python "
        f"{machine.get('python', '')}, {machine.get('date', '')}; {result.threads} threads, {result.rounds} "
        "interleaved rounds, float32"
    )


def _of(result: Result, model: str) -> list[Row]:
    return [row for row in result.rows if row.model == model]


def _latency(model: str, rows: Sequence[Row]) -> str:
    """Peers, and the furthest of the levels."""
    furthest = [row for row in rows if row.level][-1:]
    shown = sorted(furthest + [row for row in rows if not row.level], key=lambda row: row.median_ms or float("inf"))
    times = [row.median_ms for row in shown if row.median_ms]
    most = min(CLIP * min(times), max(row.p90_ms or row.median_ms or 0 for row in shown)) if times else 1.0
    marks = []
    for index, row in enumerate(shown):
        y = index * _STEP
        marks.append(_label(_name(row), y))
        if row.median_ms is None:
            marks.append(_text(_LABEL, y, row.error or "not measured", "bad"))
            continue
        length = _scaled(row.median_ms, most)
        marks.append(_bar(y, length, "ours" if row.level else "peer"))
        end = length
        if row.p10_ms is not None and row.p90_ms is not None and row.median_ms <= most:
            left, end = _scaled(row.p10_ms, most), max(length, _scaled(row.p90_ms, most))
            marks.append(_line(_LABEL + left, _LABEL + end, y + _BAR / 2))
        clipped = " →" if row.median_ms > most else ""
        ratio = f" ({row.ratio:.2f}x best peer)" if row.ratio is not None else ""
        marks.append(_text(_LABEL + end + 6, y, f"{row.median_ms:.2f} ms{clipped}{ratio}", "soft"))
    return _figure(f"{model}: latency", model, marks, len(shown))


def _breakdown(model: str, rows: Sequence[Row]) -> str:
    levels = [row for row in rows if row.level]
    timed = [row for row in levels if row.median_ms]
    if not timed:
        return ""
    first = timed[0].median_ms or 1.0
    most = max(first / (row.median_ms or first) for row in timed)
    marks = []
    for index, row in enumerate(levels):
        marks.append(_label(row.level or "", index * _STEP))
        if row.median_ms is None:
            marks.append(_text(_LABEL, index * _STEP, row.error or "not measured", "bad"))
            continue
        speed = first / row.median_ms
        length = _scaled(speed, most)
        marks.append(_bar(index * _STEP, length, _shade(row)))
        marks.append(_text(_LABEL + length + 6, index * _STEP, f"{speed:.2f}x", "soft"))
    return _figure(f"{model}: speed by level", model, marks, len(levels))


def _counts(model: str, rows: Sequence[Row]) -> str:
    levels = [row for row in rows if row.level and row.kernels is not None]
    if not levels:
        return ""
    most = max(row.kernels or 0 for row in levels) or 1
    marks = []
    for index, row in enumerate(levels):
        y = index * _STEP
        marks.append(_label(row.level or "", y))
        length = _scaled(row.kernels or 0, most)
        marks.append(_bar(y, length, _shade(row)))
        copies = f", {row.layouts} of them copies" if row.layouts is not None else ""
        if row.layouts:
            marks.append(_bar(y, _scaled(row.layouts, most), "peer"))
        marks.append(_text(_LABEL + length + 6, y, f"{row.kernels} kernels{copies}", "soft"))
    return _figure(f"{model}: kernels by level; the grey part are copies", model, marks, len(levels))


def _table(model: str, result: Result) -> str:
    titles = (
        "runner", "version", "median ms", "p10", "p90", "x best peer", "relative error", "prepare s", "operators",
        "kernels", "layout", "peak memory", "group", "",
    )  # fmt: skip
    lines = []
    for row in _of(result, model):
        cells = (
            _name(row),
            row.version,
            number(row.median_ms, ".3f"),
            number(row.p10_ms, ".3f"),
            number(row.p90_ms, ".3f"),
            number(row.ratio, ".2f"),
            number(row.relative_error, ".2g"),
            number(row.prepare_s, ".1f"),
            number(row.operators, "d"),
            number(row.kernels, "d"),
            number(row.layouts, "d"),
            "-" if row.peak_bytes is None else size(row.peak_bytes),
            number(row.group or None, "d"),
        )
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr>{data}<td class="bad">{escape(row.error)}</td></tr>')
    head = "".join(f"<th>{title}</th>" for title in titles)
    reference = result.references.get(model, "")
    against = f"<p>Errors against {escape(reference)}.</p>" if reference else ""
    return (
        f'<h3>{escape(model)}</h3>{against}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _name(row: Row) -> str:
    return f"{row.runner} {row.level}" if row.level else row.runner


def _shade(row: Row) -> str:
    return f"level-{LEVELS.index(row.level) if row.level in LEVELS else 0}"


def _scaled(value: float, most: float) -> float:
    """Pixels of a bar; room for the text is left."""
    return (_WIDTH - _LABEL - 190) * min(1.0, value / most)


def _label(text: str, y: float) -> str:
    return f'<text x="{_LABEL - 8}" y="{y + _BAR - 3:.0f}" text-anchor="end">{escape(text)}</text>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    short = text if len(text) <= 88 else text[:87] + "…"
    return f'<text x="{x:.1f}" y="{y + _BAR - 3:.0f}" class="{kind}">{escape(short)}</text>'


def _bar(y: float, length: float, kind: str) -> str:
    return f'<rect x="{_LABEL}" y="{y:.0f}" width="{max(length, 1):.1f}" height="{_BAR}" class="{kind}"/>'


def _line(left: float, right: float, y: float) -> str:
    return f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="spread"/>'


def _figure(title: str, heading: str, marks: Iterable[str], rows: int) -> str:
    height = max(rows, 1) * _STEP
    axis = f'<line x1="{_LABEL}" x2="{_LABEL}" y1="0" y2="{height}" class="axis"/>'
    return (
        f'<h3>{escape(heading)}</h3><figure><svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" '
        f'aria-label="{escape(title)}">{"".join(marks)}{axis}</svg></figure>'
    )
