"""Text for people: tables and numbers, coloured on a terminal, plain in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160


def console(file: Any = None) -> Console:
    """Where output goes: standard output, or `file`."""
    target = file if file is not None else sys.stdout
    width = None if target.isatty() else PLAIN_WIDTH
    # Names like "[2, 3]" and ":0:" are no markup.
    return Console(file=target, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Group:
    """A table below its title; columns whose title starts with ">" are aligned to the right."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        result.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        result.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    # A rich table's own title is folded to the width of the table.
    return Group(Text(title, style="bold"), result) if title else Group(result)


def count(number: float) -> str:
    """`1234567 -> 1.23M`."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or unit == "T":
            return f"{number:.0f}{unit}" if not unit or number >= 100 else f"{number:.3g}{unit}"
        number /= 1000
    raise AssertionError


def size(number: float) -> str:
    """`1536 -> 1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(number) < 1024 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError


def dims(shape: Any) -> str:
    """`[1, 3, 8] -> 1x3x8`; None is a shape that depends on data."""
    if shape is None:
        return "?"
    return shape if isinstance(shape, str) else "x".join(map(str, shape)) or "scalar"
