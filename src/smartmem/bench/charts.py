"""Bar charts of one network as inline SVG, each with its numbers as text beside the bars.

latency      every peer and smartmem's furthest level; bars end at CLIP times the shortest
breakdown    speed of each level over the first one (the paper's "speedup over no optimization")
counts       kernels and copies by level

On a device, the latter two are drawn once for each memory and precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from smartmem.bench.result import Row
from smartmem.levels import LEVELS

CLIP = 5.0
_BAR, _STEP = 14, 22  # px: a bar, and from one to the next
_LETTER = 6.6  # px: wider than most letters at the charts' size


@dataclass(frozen=True)
class _Frame:
    """Widths in px: of the whole chart, of the labels on its left, of the numbers on its right."""

    width: int
    label: int
    number: int

    def scaled(self, share: float) -> float:
        """Length of a bar."""
        return max(1.0, (self.width - self.label - self.number) * min(1.0, share))


_WIDE = _Frame(660, 110, 210)
_NARROW = _Frame(440, 80, 150)


def latency(rows: Sequence[Row]) -> str:
    """Peers, and the furthest of the levels, the fastest first."""
    shown = furthest(rows) + [row for row in rows if not row.level]
    shown.sort(key=lambda row: row.median_ms or float("inf"))
    widest = max((len(row.label) for row in shown), default=0)
    frame = replace(_WIDE, label=max(_WIDE.label, int(widest * _LETTER)))
    times = [row.median_ms for row in shown if row.median_ms]
    most = min(CLIP * min(times), max(row.p90_ms or row.median_ms or 0 for row in shown)) if times else 1.0
    marks = []
    for index, row in enumerate(shown):
        y = index * _STEP
        marks.append(_label(frame, row.label, y))
        if row.median_ms is None:
            marks.append(_reason(frame, row, y))
            continue
        end = frame.scaled(row.median_ms / most)
        marks.append(_bar(frame, y, end, "ours" if row.level else "peer"))
        if row.p10_ms is not None and row.p90_ms is not None and row.median_ms <= most:
            left, right = (frame.scaled(value / most) for value in (row.p10_ms, row.p90_ms))
            marks.append(_line(frame.label + left, frame.label + right, y + _BAR / 2))
            end = max(end, right)
        clipped = "→ " if row.median_ms > most else ""
        ratio = f", {row.ratio:.2f}x best peer" if row.ratio is not None else ""
        marks.append(_text(frame.label + end + 6, y, f"{clipped}{milliseconds(row.median_ms)} ms{ratio}", "soft"))
    return _figure(frame, "Latency", marks, len(shown))


def furthest(rows: Sequence[Row]) -> list[Row]:
    """smartmem's rows of the furthest level; on a device, one for each memory and precision."""
    last = [row.level for row in rows if row.level][-1:]
    return [row for row in rows if row.level in last]


def by_placement(rows: Sequence[Row]) -> list[list[Row]]:
    """smartmem's rows, those of one memory and precision together."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.level:
            groups.setdefault((row.memory, row.precision), []).append(row)
    return list(groups.values())


def breakdown(levels: Sequence[Row]) -> str:
    """How many times as fast as the first level that ran each level is."""
    timed = [row for row in levels if row.median_ms]
    if not timed:
        return ""
    first = timed[0].median_ms or 1.0
    most = max(first / (row.median_ms or first) for row in timed)
    marks = []
    for index, row in enumerate(levels):
        y = index * _STEP
        marks.append(_label(_NARROW, row.level or "", y))
        if row.median_ms is None:
            marks.append(_reason(_NARROW, row, y))
            continue
        length = _NARROW.scaled(first / row.median_ms / most)
        marks.append(_bar(_NARROW, y, length, _shade(row)))
        marks.append(_text(_NARROW.label + length + 6, y, f"{first / row.median_ms:.2f}x", "soft"))
    return _figure(_NARROW, f"Speed by level{_placement(levels[0])}", marks, len(levels))


def counts(rows: Sequence[Row]) -> str:
    """Kernels by level; the part of a bar that is copies is grey."""
    levels = [row for row in rows if row.kernels is not None]
    if not levels:
        return ""
    most = max(row.kernels or 0 for row in levels) or 1
    marks = []
    for index, row in enumerate(levels):
        y = index * _STEP
        length = _NARROW.scaled((row.kernels or 0) / most)
        marks += [_label(_NARROW, row.level or "", y), _bar(_NARROW, y, length, _shade(row))]
        copies = "" if row.layouts is None else f", {row.layouts} copies" if row.layouts != 1 else ", 1 copy"
        if row.layouts:
            marks.append(_bar(_NARROW, y, _NARROW.scaled(row.layouts / most), "peer"))
        marks.append(_text(_NARROW.label + length + 6, y, f"{row.kernels}{copies}", "soft"))
    return _figure(_NARROW, f"Kernels by level{_placement(levels[0])}", marks, len(levels))


def milliseconds(value: float) -> str:
    """Three digits, as far as they lie behind the point: `0.594`, `7.51`, `34.8`, `1362`."""
    return f"{value:.{3 if value < 1 else max(0, 3 - len(str(int(value))))}f}"


def _placement(row: Row) -> str:
    """`, texture fp16`."""
    return f", {row.memory} {row.precision}" if row.memory else ""


def _shade(row: Row) -> str:
    return f"level-{LEVELS.index(row.level) if row.level in LEVELS else 0}"


def _label(frame: _Frame, text: str, y: float) -> str:
    return f'<text x="{frame.label - 8}" y="{y + _BAR - 3:.0f}" text-anchor="end">{escape(text)}</text>'


def _reason(frame: _Frame, row: Row, y: float) -> str:
    """Why there is no bar; what does not fit is shown when the pointer rests on it."""
    text = row.error or "not timed"
    most = int((frame.width - frame.label) / _LETTER)
    short = text if len(text) <= most else text[: most - 1] + "…"
    return _text(frame.label + 6, y, short, "bad" if row.error else "soft", text)


def _text(x: float, y: float, text: str, kind: str, hint: str = "") -> str:
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<text x="{x:.1f}" y="{y + _BAR - 3:.0f}" class="{kind}">{title}{escape(text)}</text>'


def _bar(frame: _Frame, y: float, length: float, kind: str) -> str:
    return f'<rect x="{frame.label}" y="{y:.0f}" width="{length:.1f}" height="{_BAR}" class="{kind}"/>'


def _line(left: float, right: float, y: float) -> str:
    return f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="spread"/>'


def _figure(frame: _Frame, title: str, marks: Sequence[str], rows: int) -> str:
    height = max(rows, 1) * _STEP
    axis = f'<line x1="{frame.label}" x2="{frame.label}" y1="0" y2="{height}" class="axis"/>'
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {frame.width} {height}" '
        f'width="{frame.width}" role="img" aria-label="{escape(title)}">{"".join(marks)}{axis}</svg></figure>'
    )
