"""Long functions of one quantized number become a table of their values.

    q = min(max(round(x / s) + z, 0), 255)          y = quantize(dequantize(q) * quantize(sigmoid(dequantize(q))))
      ->  y = table[q]

What follows from an integer from 0 to 255 (or from -128 to 127) alone takes one load instead of fifty operations. Which
numbers an expression may be is known from interval arithmetic (`exact_casts.Integers`). A table of such integers has
bytes, which four registers hold (`sm_entry`): that pays earlier than a gathered load of floats does.

In: kernels. Out: other bodies of their stages, and constants.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from smartmem.index.lin import Lin, axis_digit
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import Alu, Const, Expr, Load, alu, const, load, operands, rebuild, walk
from smartmem.kernel.stage import Kernel, Stage
from smartmem.passes.exact_casts import Integers, Range
from smartmem.passes.module import Module
from smartmem.schedule.roles import factors

OF_BYTES, OF_FLOATS = 20, 44  # operations that an entry of a table is worth
SHORT = frozenset(("add", "sub", "mul", "max", "min", "neg", "abs", "round", "floor", "ceil", "trunc"))  # one operation
DIVISION, LONG = 2, 20  # operations of a division by a number, and of any other function
COUNT = 256  # entries of a table
BEYOND = 4  # bytes after those of a table that may be loaded with the last one
FLOAT = np.dtype(np.float32)

Array = np.ndarray[Any, Any]


def tabulate(module: Module) -> None:
    """Finds such functions in the kernels of quantized networks."""
    if not module.has_bytes():
        return
    held = Integers(module)
    for kernel in module.kernels:
        if isinstance(kernel, Kernel):
            for position, stage in enumerate(kernel.stages):
                if factors(stage) is None:
                    of_bytes = _tabulated(module, held, stage, True)
                    kernel.stages[position] = _tabulated(module, held, of_bytes, False)
                held.add(kernel.stages[position])


def _tabulated(module: Module, held: Integers, stage: Stage, of_bytes: bool) -> Stage:
    """The stage with its longest functions of one number in tables, those that give bytes or all others."""
    ranges = held.ranges(stage.body)
    sources = _sources(stage.body, ranges)
    wanted = _longest(stage.body, sources, ranges if of_bytes else None)
    if not wanted:
        return stage
    made: dict[int, Expr] = {}
    for node in walk(stage.body):
        source = sources[id(node)]
        if id(node) in wanted and source is not None:
            low = ranges[id(source)].low
            values, least = _values(node, source, low), min(ranges[id(node)].low, 0) if of_bytes else 0
            if of_bytes:  # beyond the source's range there may be others: nobody reads them
                values = np.pad(np.clip(values - least, 0, 255).astype(np.uint8), (0, BEYOND))
            name = f"{stage.name}.table{len(module.constants)}"
            module.constants[name], module.types[name] = values, (values.shape, values.dtype)
            at = rebuild(source, known=made)
            table = load(name, (Lin(),), values.dtype)
            entry = alu("entry", table, at if low == 0 else alu("sub", at, const(low)))
            made[id(node)] = entry if least == 0 else alu("add", entry, const(least))
    return replace(stage, body=rebuild(stage.body, known=made))


def _sources(body: Expr, ranges: dict[int, Range]) -> dict[int, Expr | None]:
    """For each node the one byte that it is a function of, itself if it is one; None: constants and all others."""
    found: dict[int, Expr | None] = {}
    for node in walk(body):
        of = [found[id(arg)] for arg in operands(node) if not isinstance(arg, Const)]
        same = isinstance(node, Alu) and bool(of) and all(source is of[0] for source in of)
        held = ranges[id(node)]
        is_byte = node.dtype == FLOAT and not held.nan and held.whole and held.high - held.low < COUNT
        found[id(node)] = of[0] if same and of[0] is not None else node if is_byte and of else None
        if isinstance(node, Load) and is_byte:
            found[id(node)] = node
    return found


def _longest(body: Expr, sources: dict[int, Expr | None], ranges: dict[int, Range] | None) -> set[int]:
    """The nodes that are long functions of one byte, where nothing further is; with `ranges`, that are bytes too."""
    users: dict[int, list[Expr]] = {}
    for node in walk(body):
        for operand in operands(node):
            users.setdefault(id(operand), []).append(node)
    wanted, least = set(), OF_FLOATS if ranges is None else OF_BYTES
    further: set[int] = set()  # nodes that another one, which may be in a table, follows from
    for node in reversed(list(walk(body))):
        source = sources[id(node)]
        fits = ranges is None or ranges[id(node)].is_byte
        for user in users.get(id(node), []):
            if sources[id(user)] is source and (id(user) in further or ranges is None or ranges[id(user)].is_byte):
                further.add(id(node))
        follows = source is not None and source is not node and _work(node) - _work(source) >= least
        if follows and fits and id(node) not in further and node.dtype == FLOAT:
            wanted.add(id(node))
    return wanted


def _work(expr: Expr) -> int:
    """Vector operations per evaluation, about."""
    return sum(
        1 if node.op in SHORT else DIVISION if node.op == "div" else LONG
        for node in walk(expr)
        if isinstance(node, Alu)
    )


def _values(node: Expr, source: Expr, low: float) -> Array:
    """The function's values from `low` on."""
    of_byte = rebuild(node, known={id(source): load("byte", (axis_digit(0, COUNT),))})
    every = {"byte": np.arange(low, low + COUNT, dtype=np.float32)}
    return evaluate_expr(of_byte, [np.arange(COUNT)], every).astype(np.float32)
