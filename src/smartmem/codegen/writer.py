"""Text of generated C: lines, indentation and fresh names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Writer:
    """Collects lines of C."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._indent = 1
        self._names = 0

    def line(self, text: str) -> None:
        self.lines.append("    " * self._indent + text)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """``header {`` ... ``}``"""
        self.line(f"{header} {{".lstrip())
        self._indent += 1
        yield
        self._indent -= 1
        self.line("}")

    @contextmanager
    def loop(self, name: str, end: int | str, start: int | str = 0, step: int | str = 1) -> Iterator[None]:
        """A counting loop over a long."""
        advance = f"++{name}" if step == 1 else f"{name} += {step}"
        with self.block(f"for (long {name} = {start}; {name} < {end}; {advance})"):
            yield

    def fresh(self, stem: str = "t") -> str:
        """A name not used before in this function."""
        self._names += 1
        return f"{stem}{self._names}"

    def text(self) -> str:
        return "\n".join(self.lines)
