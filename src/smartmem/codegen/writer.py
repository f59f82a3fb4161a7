"""Text of generated C: lines, indentation, fresh names, and places that later lines can be hoisted to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Mark:
    """A place in the text (before a loop) where loop-invariant values go; `names` holds those already there."""

    position: int
    indent: int
    names: dict[str, str] = field(default_factory=dict)


REDUCES = " /* reduces */"


class Writer:
    """Collects lines of C; loop variables and hoisted addresses have the type `index`."""

    def __init__(self, index: str = "long") -> None:
        self.index = index
        self.lines: list[str] = []
        self._indent = 1
        self._names = 0
        self._marks: list[Mark] = []

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
    def loop(
        self, name: str, end: int | str, start: int | str = 0, step: int | str = 1, reduces: bool = False
    ) -> Iterator[None]:
        """A counting loop; a loop that `reduces` says so in a comment."""
        advance = f"++{name}" if step == 1 else f"{name} += {step}"
        with self.block(f"for ({self.index} {name} = {start}; {name} < {end}; {advance}){REDUCES if reduces else ''}"):
            yield

    def mark(self) -> Mark:
        """The current place."""
        self._marks.append(Mark(len(self.lines), self._indent))
        return self._marks[-1]

    def hoist(self, mark: Mark, text: str, kind: str = "") -> str:
        """The name of a value of C type `kind` (an index, unless given), defined at `mark`."""
        if text not in mark.names:
            mark.names[text] = self.fresh("o")
            line = f"const {kind or self.index} {mark.names[text]} = {text};"
            self.lines.insert(mark.position, "    " * mark.indent + line)
            for other in self._marks:
                if other.position >= mark.position:
                    other.position += 1
        return mark.names[text]

    def fresh(self, stem: str = "t") -> str:
        """A name not used before in this function."""
        self._names += 1
        return f"{stem}{self._names}"

    def text(self) -> str:
        return "\n".join(self.lines)
