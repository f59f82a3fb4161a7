"""Lins as C integer expressions, and what a Lin does along the vector lane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from smartmem.index.lin import Axis, Digit, Lin, Lookup, Mark, Term, axes_of, parts_of

# Renders the entry of an integer tensor as a C expression, with the given names of loop axes.
LookupRenderer = Callable[[Lookup, "Axes"], str]


@dataclass(frozen=True)
class Axes:
    """Loop axes by C variable name, with their extents; `lookup` renders entries of integer tensors."""

    names: Mapping[int, str]
    extents: Sequence[int]
    lookup: LookupRenderer | None = None


def c_lin(value: Lin, axes: Axes) -> str:
    """``32*(i/7) + j + 5``; all values are longs."""
    parts = [_term(stride, digit, axes) for stride, digit in value.terms]
    if value.offset or not parts:
        parts.append(str(value.offset))
    return " + ".join(parts).replace("+ -", "- ")


def _term(stride: int, digit: Digit, axes: Axes) -> str:
    text = c_digit(digit, axes)
    if text == "0":
        return "0"
    return text if stride == 1 else f"{stride}*{text}"


def c_digit(digit: Digit, axes: Axes) -> str:
    """One digit; the modulo of a digit that reaches the top of its axis is left out."""
    base, extent = _base(digit.axis, axes)
    if digit.lo != 1:
        base = f"({base} / {digit.lo})"
    if digit.lo * digit.ext < extent:
        base = f"({base} % {digit.ext})"
    return base


def _base(axis: Axis, axes: Axes) -> tuple[str, int]:
    if isinstance(axis, int):
        return axes.names[axis], axes.extents[axis]
    if isinstance(axis, Mark):
        return f"({c_lin(axis.lin, axes)})", axis.ext
    assert axes.lookup is not None
    return axes.lookup(axis, axes), axis.ext


@dataclass(frozen=True)
class Along:
    """How a Lin moves along the lane axis within one aligned chunk: by `stride`, or irregularly (None)."""

    stride: int | None

    @property
    def uniform(self) -> bool:
        return self.stride == 0


def along(value: Lin, lane: int, extent: int, width: int) -> Along:
    """The behaviour of `value` over chunks of `width` lanes that start at multiples of `width`."""
    stride = 0
    for factor, digit in value.terms:
        if digit.axis == lane:
            if digit.lo == 1 and (digit.ext == extent or digit.ext % width == 0):
                stride += factor
            elif digit.lo % width:
                return Along(None)
        elif any(along(part, lane, extent, width).stride != 0 for part in parts_of(digit.axis)):
            return Along(None)
    return Along(stride)


def has_division(value: Lin, extents: Sequence[int]) -> bool:
    """Whether the C text of `value` contains a division or a modulo."""
    for _, digit in value.terms:
        if digit.lo != 1:
            return True
        if isinstance(digit.axis, int):
            if digit.ext < extents[digit.axis]:
                return True
        elif isinstance(digit.axis, Mark):
            if digit.ext < digit.axis.ext or has_division(digit.axis.lin, extents):
                return True
        elif any(has_division(i, extents) for i in digit.axis.index):
            return True
    return False


def split_by(value: Lin, inner: set[int]) -> tuple[Lin, Lin]:
    """``value == outer + within``: the terms that do not depend on the `inner` axes, and those that do."""
    outer: list[Term] = []
    within: list[Term] = []
    for stride, digit in value.terms:
        single = Lin(0, ((stride, digit),))
        (within if inner & set(axes_of(single)) else outer).append((stride, digit))
    return Lin(value.offset, tuple(outer)), Lin(0, tuple(within))
