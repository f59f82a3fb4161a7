"""A progress bar on standard error, only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """`with progress_bar() as report:` shows `report(phase, done, total)`; None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        phase = ""

        def report(name: str, done: int, total: int) -> None:
            nonlocal phase
            if name != phase:
                phase = name
                bar.reset(task, description=name, total=total, completed=done)
            bar.update(task, total=total, completed=done)

        yield report
