"""Products with rows that an index takes from small tables, as entries of a product with the tables themselves.

    out[i, m, j] = sum over k of a[i, m, k] * (t[row[i, j], k] + u[column[i, j], k])
      ->  all[i, m, r] = sum over k of a[i, m, k] * both[r, k]            both: the rows of t, then those of u
          out[i, m, j] = all[i, m, row[i, j]] + all[i, m, T + column[i, j]]

So attention asks for relative positions: with 30 rows in each table, 197 columns j become 60 products, and the matrix
of rows that each i would need for itself is never made. What follows reads the entries, in its own loads.

In: stages, before fusion. Out: the same module with such stages replaced by two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.index.lin import Digit, Lin, Lookup, axes_of, axis_digit, lin
from smartmem.index.map import evaluate
from smartmem.kernel.expr import Alu, Expr, Load, alu, load
from smartmem.kernel.stage import Stage, inline, reindex, tensors_read
from smartmem.passes.module import HostOp, Module
from smartmem.schedule.roles import expr_axes, factors

FEWER = 2  # times fewer products than there were, at least: each of them left costs a gathered load


@dataclass(frozen=True)
class _Entry:
    """A load of the row `lookup` of a constant table; the row's number is coordinate `at`."""

    load: Load
    at: int
    lookup: Lookup


def table_products(module: Module) -> None:
    """Rewrites the products for which it pays."""
    given = [s for s in module.steps if isinstance(s, Stage) and not s.reduce]
    sums = {s.name: s for s in given if all(x.tensor in module.constants for x in s.loads())}
    steps: list[Stage | HostOp] = []
    for step in module.steps:
        found = _rewritten(step, sums, module) if isinstance(step, Stage) else None
        if found is None:
            steps.append(step)
            continue
        name, table, stages = found
        module.constants[name] = table
        module.types[name] = (table.shape, table.dtype)
        module.types[stages[0].name] = (stages[0].shape, stages[0].dtype)
        module.definitions |= {stage.name: stage for stage in stages}
        steps += stages
    module.steps = steps
    module.drop_dead()


def _rewritten(
    stage: Stage, sums: Mapping[str, Stage], module: Module
) -> tuple[str, np.ndarray[Any, Any], list[Stage]] | None:
    """The table of all rows, its name, and the two stages; None if this is no such product or saves too little.

    `sums` are the stages that load nothing but constants.
    """
    for name in tensors_read(stage.body):
        if name in sums:
            stage = inline(stage, sums[name])
    pair = factors(stage)
    entries = _entries(pair[1], stage, module) if pair is not None else None
    if pair is None or not entries:
        return None
    a, b = pair
    space = range(len(stage.shape))
    in_a, in_b = expr_axes(a), expr_axes(b)
    rows = sum(entry.lookup.ext for entry in entries)
    columns = math.prod(stage.shape[k] for k in space if k in in_b and k not in in_a)
    if not in_a & in_b & set(space) or rows * FEWER > columns:
        return None
    table = np.concatenate([_rows(entry, stage, module) for entry in entries])
    name, kept = f"{stage.name}.rows", [k for k in space if k in in_a]
    shape = (*(stage.shape[k] for k in kept), rows)
    axes: list[Lin] = [Lin()] * len(space)
    for position, k in enumerate(kept):
        axes[k] = axis_digit(position, stage.shape[k])
    steps = tuple(axis_digit(len(shape) + k, n) for k, n in enumerate(stage.reduce))
    every = load(name, (axis_digit(len(kept), rows), *steps), stage.dtype)
    body = alu("mul", reindex(a, (*axes, *steps), stage.domain), every)
    first = replace(stage, name=f"{stage.name}.all", shape=shape, body=body)
    return name, table, [first, replace(stage, reduce=(), combine="", body=_taken(first, entries, kept, stage))]


def _entries(b: Expr, stage: Stage, module: Module) -> list[_Entry] | None:
    """The rows that `b` adds up, None if it is anything else."""
    if isinstance(b, Alu) and b.op == "add":
        parts = [_entries(arg, stage, module) for arg in b.args]
        return None if any(part is None for part in parts) else [entry for part in parts for entry in part or []]
    if not isinstance(b, Load) or b.tensor not in module.constants:
        return None
    found: list[_Entry] = []
    space = set(range(len(stage.shape)))
    for at, coordinate in enumerate(b.index):
        (_, digit) = coordinate.terms[0] if coordinate.terms else (0, None)
        if digit is not None and isinstance(digit.axis, Lookup):
            whole = lin(0, ((1, Digit(digit.axis, 1, digit.axis.ext)),))
            if coordinate != whole or not set(axes_of(coordinate)) <= space:
                return None
            found.append(_Entry(b, at, digit.axis))
        elif set(axes_of(coordinate)) & space or any(not isinstance(d.axis, int) for _, d in coordinate.terms):
            return None
    return found if len(found) == 1 else None


def _rows(entry: _Entry, stage: Stage, module: Module) -> np.ndarray[Any, Any]:
    """All rows of a table, [row, *reduce axes]."""
    extents = (entry.lookup.ext, *stage.reduce)
    row, *steps = np.ogrid[tuple(slice(n) for n in extents)]
    axes = [*(0 for _ in stage.shape), *steps]
    index = tuple(row if k == entry.at else evaluate(c, axes) for k, c in enumerate(entry.load.index))
    return np.broadcast_to(module.constants[entry.load.tensor][index], extents)


def _taken(first: Stage, entries: list[_Entry], kept: list[int], stage: Stage) -> Expr:
    """The entries of `first` that the indices name, added up."""
    total: Expr | None = None
    offset = 0
    for entry in entries:
        place = lin(offset, ((1, Digit(entry.lookup, 1, entry.lookup.ext)),))
        taken = load(first.name, (*(axis_digit(k, stage.shape[k]) for k in kept), place), stage.dtype)
        total = taken if total is None else alu("add", total, taken)
        offset += entry.lookup.ext
    assert total is not None
    return total
