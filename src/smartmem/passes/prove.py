"""The bounds proof: every load and store of every kernel lies inside its tensor, or the kernel is a compiler error.

And every tensor that a step reads was written by a step before it (`prove_order`).

Per coordinate, in order: the bounds of its Lin; a guard that says exactly this; the value at every coordinate of the
axes involved, under the guards (exhaustive, so still a proof).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.errors import CompilerError
from smartmem.index.lin import Digit, Lin, Lookup, Mark, axes_of, lin, pseudo_axes, show
from smartmem.index.map import Guard, evaluate
from smartmem.kernel.expr import Choose, Expr, Load, operands
from smartmem.kernel.stage import Kernel, Stage
from smartmem.passes.module import HostOp, Module

EXHAUSTIVE = 1 << 24  # coordinates that the last resort looks at


@dataclass(frozen=True)
class Facts:
    """What is known inside a branch: guards that hold, and sets of guards that do not hold together."""

    holds: tuple[Guard, ...] = ()
    fails: tuple[tuple[Guard, ...], ...] = ()

    def guards(self) -> Iterator[Guard]:
        yield from self.holds
        for group in self.fails:
            yield from group


def prove_order(module: Module) -> None:
    """Raises CompilerError unless everything that a step reads was written before it, and every output is written."""
    empty = {name for name, (shape, _) in module.types.items() if shape is not None and 0 in shape}
    written = {v.name for v in module.inputs} | set(module.constants) | empty
    missing = {parent: {n for n, w in module.windows.items() if w.parent == parent} for parent in _parents(module)}
    for step in module.kernels:
        for name in step.inputs() if isinstance(step, Kernel) else step.reads():
            if name not in written:
                raise CompilerError(f"{_title(step)} reads {name}, which nothing has computed; please report this")
        for name in [step.tensor] if isinstance(step, Kernel) else step.writes():
            written |= {name, *(words for words, of in module.words.items() if of == name)}
            while name in module.windows:  # the last piece completes the whole
                parent = module.windows[name].parent
                missing[parent].discard(name)
                if missing[parent]:
                    break
                written.add(parent)
                name = parent
    for value in module.outputs:
        if value.name not in written:
            raise CompilerError(f"nothing computes the output {value.name}; please report this")


def _parents(module: Module) -> set[str]:
    return {window.parent for window in module.windows.values()}


def _title(step: Kernel | HostOp) -> str:
    return f"kernel {step.tensor}" if isinstance(step, Kernel) else step.node.describe()


def prove(kernel: Kernel, module: Module) -> None:
    """Raises CompilerError, naming the kernel, unless all accesses are in range."""
    shapes = {stage.name: stage.shape for stage in kernel.stages[:-1]}
    for stage in kernel.stages:
        _prove_expr(stage.body, Facts(), kernel, stage, shapes, module, set())
    for value, extent in zip(kernel.store_coords(), kernel.shape, strict=True):
        if not value.within(0, extent):
            raise CompilerError(f"kernel {kernel.tensor} stores at {show(value)}, outside of 0..{extent - 1}")


def _prove_expr(
    expr: Expr,
    facts: Facts,
    kernel: Kernel,
    stage: Stage,
    shapes: dict[str, tuple[int, ...]],
    module: Module,
    seen: set[tuple[int, Facts]],
) -> None:
    if (id(expr), facts) in seen:
        return
    seen.add((id(expr), facts))
    if isinstance(expr, Choose):
        inside = Facts((*facts.holds, *expr.guards), facts.fails)
        outside = Facts(facts.holds, (*facts.fails, expr.guards))
        _prove_expr(expr.then, inside, kernel, stage, shapes, module, seen)
        _prove_expr(expr.otherwise, outside, kernel, stage, shapes, module, seen)
        return
    if isinstance(expr, Load):
        shape = shapes[expr.tensor] if expr.tensor in shapes else module.shape(expr.tensor)
        values = [*zip(expr.index, shape, strict=True)]
        for index in expr.index:
            for axis in pseudo_axes(index):
                if isinstance(axis, Lookup):
                    values += zip(axis.index, module.shape(axis.tensor), strict=True)
        for value, extent in values:
            if not proved(value, extent, facts, stage.domain):
                raise CompilerError(
                    f"kernel {kernel.tensor}: stage {stage.name} loads {expr.tensor} at {show(value)}, "
                    f"which is not proved to lie in 0..{extent - 1}"
                )
    for operand in operands(expr):
        _prove_expr(operand, facts, kernel, stage, shapes, module, seen)


def proved(value: Lin, extent: int, facts: Facts, domain: tuple[int, ...]) -> bool:
    """Whether 0 <= value < extent wherever the facts are true."""
    if value.within(0, extent):
        return True
    if any(g.lin == value and g.ext <= extent for g in facts.holds):
        return True
    entries: dict[Lookup, int] = {}  # an entry of a tensor may be anything in its range: an axis more
    value = _free(value, entries, len(domain))
    facts = Facts(
        tuple(Guard(_free(g.lin, entries, len(domain)), g.ext) for g in facts.holds),
        tuple(tuple(Guard(_free(g.lin, entries, len(domain)), g.ext) for g in group) for group in facts.fails),
    )
    domain = (*domain, *(entry.ext for entry in entries))
    involved = set(axes_of(value))
    while True:  # guards that share axes restrict one another
        more = {a for g in facts.guards() if set(axes_of(g.lin)) & involved for a in axes_of(g.lin)} | involved
        if more == involved:
            break
        involved = more
    if math.prod(domain[a] for a in involved) > EXHAUSTIVE:
        return False
    axes: list[Any] = [0] * len(domain)
    order = sorted(involved)
    for position, a in enumerate(order):
        axes[a] = np.arange(domain[a]).reshape([-1 if k == position else 1 for k in range(len(order))])
    possible: Any = True
    for guard in facts.holds:
        if set(axes_of(guard.lin)) <= involved:
            possible = possible & _holds(guard, axes)
    for group in facts.fails:
        if all(set(axes_of(g.lin)) <= involved for g in group):
            together: Any = True
            for guard in group:
                together = together & _holds(guard, axes)
            possible = possible & ~np.asarray(together)
    found = evaluate(value, axes)
    return bool(np.all(~np.asarray(possible) | ((found >= 0) & (found < extent))))


def _free(value: Lin, entries: dict[Lookup, int], first: int) -> Lin:
    """`value` with every lookup as an axis of its own, numbered from `first` on."""
    terms = []
    for stride, digit in value.terms:
        axis = digit.axis
        if isinstance(axis, Lookup):
            axis = entries.setdefault(axis, first + len(entries))
        elif isinstance(axis, Mark):
            axis = Mark(_free(axis.lin, entries, first), axis.ext)
        terms.append((stride, Digit(axis, digit.lo, digit.ext)))
    return lin(value.offset, tuple(terms))


def _holds(guard: Guard, axes: list[Any]) -> Any:
    tested = evaluate(guard.lin, axes)
    return (np.asarray(tested) >= 0) & (np.asarray(tested) < guard.ext)
