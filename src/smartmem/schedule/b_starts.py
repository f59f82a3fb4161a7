"""Where rows or columns of a packed operand B start, found once: addresses that divide or look an index up.

once per row, or per column of a square     not for every vector of it
once for several batch entries              where only a digit of the entry matters (routes of a window of tokens
                                            that all heads share): a table in scratch holds the starts, without the
                                            part that moves with every entry
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from smartmem.codegen.c_expr import Context, Emitter, LocalReader, Value
from smartmem.codegen.c_index import Axes, c_lin, has_division, split_by
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Digit, Lin, axes_of, parts_of
from smartmem.kernel.expr import Choose, DType, Expr, Load, loads
from smartmem.kernel.expr import walk as walk_expr
from smartmem.schedule.flatten import B

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter

Tables = dict[int, tuple[str, Lin]]  # by access: the C name of its table of starts, and what is to be added


def takes_time(address: Lin, extents: Sequence[int]) -> bool:
    """Whether an address divides, or looks an index up."""
    return has_division(address, extents) or any(not isinstance(digit.axis, int) for _, digit in address.terms)


def _found(e: RowEmitter, b: Expr, extents: Sequence[int], inner: int) -> Iterator[tuple[int, Load, Lin, Lin]]:
    """The loads whose start along the `inner` axis takes time: their number, the start and the rest of the address."""
    accesses = loads(b)
    tensors = [access.tensor for access in accesses]
    if any(isinstance(node, Choose) for node in walk_expr(b)):  # an index may lie outside where a guard fails
        return
    for number, access in enumerate(accesses):
        start, within = split_by(e.pipeline.storages[access.tensor].at(access.index), {inner})
        if tensors.count(access.tensor) == 1 and takes_time(start, extents):
            yield number, access, start, within


def keep_starts(e: RowEmitter, b: Expr, context: Context, inner: int, axis: int, count: int) -> Tables:
    """Fills tables of the starts at each of `count` coordinates of `axis`, where several batch entries share them.

    Numbers behind the first of what scratch holds say for which entries; they count once the first is set.
    """
    w, p, tables = e.writer, e.pipeline, Tables()
    for number, _, start, _ in _found(e, b, context.axes.extents, inner):
        rest, varying = split_by(start, {axis})
        every = math.gcd(p.batches, *(digit.lo for digit in _digits(varying, B)))
        if every == 1 or not set(axes_of(varying)) <= {B, axis}:
            continue
        variable = context.axes.names[axis]
        key = f"b / {every}" if every < p.batches else "0"
        table = (_at(varying, context.axes, axis, "i"), count, key)  # keys and values of the same tokens start alike
        slot = None
        if table not in e.starts_at:
            slot = e.keep_slot()
            if slot is None:
                return tables
            e.starts_at[table] = p.reserve(2 * count)
        name = w.fresh("starts")
        w.line(f"long *const {name} = (long *)(s + {e.starts_at[table]});")
        if slot is not None:
            with w.block(f"if (*held == -1 || held[{slot}] != {key})"):
                _fill(w, name, varying, context.axes, axis, count)
                w.line(f"held[{slot}] = {key};")
        tables[number] = (f"{name}[{variable}]", rest)
    return tables


def _fill(w: Writer, name: str, starts: Lin, axes: Axes, axis: int, count: int) -> None:
    """Writes the table `name` of the starts at each of `count` coordinates of `axis`; neighbours share lookups."""
    looked_up = [(stride, digit) for stride, digit in starts.terms if not isinstance(digit.axis, int)]
    lookups = Lin(0, tuple(looked_up))
    together = math.gcd(count, *(digit.lo for digit in _digits(lookups, axis))) if looked_up else 1
    if together == 1:
        with w.loop("i", count):
            w.line(f"{name}[i] = {_at(starts, axes, axis, 'i')};")
        return
    with w.block(f"for (long i0 = 0; i0 < {count}; i0 += {together})"):
        w.line(f"const long found = {_at(lookups, axes, axis, 'i0')};")
        with w.block(f"for (long i = i0; i < i0 + {together}; ++i)"):
            w.line(f"{name}[i] = found + {_at(starts - lookups, axes, axis, 'i')};")


def _at(value: Lin, axes: Axes, axis: int, index: str) -> str:
    """The value as C where the axis has the index of that name."""
    return c_lin(value, replace(axes, names={**axes.names, axis: index}))


def _digits(value: Lin, axis: int) -> Iterator[Digit]:
    """All digits of an axis that a Lin has, inside of marks and lookups, too."""
    for _, digit in value.terms:
        if digit.axis == axis:
            yield digit
        for part in parts_of(digit.axis):
            yield from _digits(part, axis)


def find_starts(e: RowEmitter, b: Expr, context: Context, inner: int, tables: Tables, column: str = "") -> Context:
    """Finds where B starts along the `inner` axis, if that takes time: of a row, or of each column j of a square."""
    w, local = e.writer, dict(context.local)
    for number, access, start, within in _found(e, b, context.axes.extents, inner):
        kept, rest = tables.get(number, ("", start))
        name = f"from{number}"
        text = f"{e.pointers[access.tensor]} + {f'{kept} + ' if kept else ''}{c_lin(rest, context.axes)}"
        if column:
            w.line(f"const float *{name}[SM_W];")
            with w.loop("j", "SM_W"):
                w.line(f"const long n = {column};")
                w.line(f"{name}[j] = {text};")
            name += "[j]"
        else:
            w.line(f"const float *const {name} = {text};")
        local[access.tensor] = _reader(name, within, access.dtype)
    return replace(context, local=local)


def _reader(pointer: str, within: Lin, dtype: DType) -> LocalReader:
    """Reads a tensor from where a row or a column of it starts."""

    def read(emitter: Emitter, index: tuple[Lin, ...]) -> Value:
        return emitter.load_at(pointer, within, dtype)

    return read
