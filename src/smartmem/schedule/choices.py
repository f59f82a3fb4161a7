"""Bodies that choose by small axes (``i == 0: ..., i == 1: ...``), and what they are at each value of these axes.

In the transforms of a Winograd convolution each of 36 results is another sum of the same 36 loads, and its definition a
chain of choices by two axes. Schedules that give every value of these axes its expression (`unrolled`, of CPUs and of
devices) compute all of them next to each other, and what they share once.

Where the chosen digit does not divide its axis (tiles of 4x4 on a side of 71) the axis is taken as long as whole tiles
are, and what lies beyond its end is not stored: the body is NOWHERE there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from smartmem.index.lin import Digit, Lin, axis_digit, lin
from smartmem.index.map import Guard, IndexMap
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Alu, Choose, Expr, choose, const, index_values, map_lins, operands, walk, with_operands
from smartmem.kernel.stage import Kernel, reindex

LONGEST = 8  # extent of an axis worth unrolling
NOWHERE = const(math.nan)  # what a body is where it is not stored

Result = tuple[Expr, tuple[tuple[Lin, ...], ...]]
"""A body, and the places where it is stored: one Lin of a buffer each, or those of a texture."""


def selects(body: Expr) -> bool:
    """Whether an expression chooses by an axis."""
    return any(True for _ in _selections(body))


def count_choices(body: Expr) -> int:
    """How many results with loads in common lie next to each other."""
    return math.prod(digit.ext for digit in set(_selections(body)))


def _selections(body: Expr) -> Iterator[Digit]:
    """The digits of which a guard says that they have one certain value."""
    for node in walk(body):
        for guard in node.guards if isinstance(node, Choose) else ():
            if guard.ext == 1 and len(guard.lin.terms) == 1 and guard.lin.terms[0][0] == 1:
                yield guard.lin.terms[0][1]


def in_whole_tiles(kernel: Kernel) -> Kernel:
    """The kernel over axes that the digits by which it chooses divide."""
    stage = kernel.output
    shape, wide = stage.shape, list(stage.shape)
    for digit in _selections(stage.body):
        if isinstance(digit.axis, int) and digit.lo == 1:
            wide[digit.axis] = -(-shape[digit.axis] // digit.ext) * digit.ext
    limits = [(axis, n) for axis, n in enumerate(shape) if wide[axis] > n]
    if not limits:
        return kernel
    axes = tuple(axis_digit(axis, n) for axis, n in enumerate(wide))
    guards = tuple(Guard(axes[axis], n) for axis, n in limits)
    body = choose(guards, reindex(stage.body, axes, shape), NOWHERE)
    coords = tuple(substitute(value, axes, shape) for value in kernel.store_coords())
    stage = replace(stage, shape=tuple(wide), body=body)
    return replace(kernel, stages=[stage], store=IndexMap(tuple(wide), coords))


def choosing_axes(body: Expr, extents: Sequence[int]) -> list[int]:
    """The loop axes by which a body chooses, if they are short."""
    found: dict[int, None] = {}
    for digit in _selections(body):
        axis = digit.axis
        if isinstance(axis, int) and digit == Digit(axis, 1, extents[axis]) and digit.ext <= LONGEST:
            found[axis] = None
    return list(found)


def choices(
    body: Expr, stores: Sequence[tuple[Lin, ...]], extents: Sequence[int], chosen: Sequence[int]
) -> list[Result]:
    """The body and the places of its stores at every value of the chosen axes; not where nothing is stored."""
    results = []
    for values in itertools.product(*(range(extents[a]) for a in chosen)):
        axes = [axis_digit(a, n) for a, n in enumerate(extents)]
        for axis, value in zip(chosen, values, strict=True):
            axes[axis] = Lin(value)
        here = _selected(body, axes, extents)
        if here is NOWHERE:
            continue
        change = {v: substitute(v, axes, extents) for v in index_values(here)}
        places = tuple(tuple(substitute(part, axes, extents) for part in place) for place in stores)
        results.append((map_lins(here, change), places))
    return results


def limits_of(body: Expr) -> tuple[tuple[Guard, ...], Expr]:
    """The guards beyond which nothing is stored, and the body inside."""
    if isinstance(body, Choose) and body.otherwise is NOWHERE:
        return tuple(_limit(guard) for guard in body.guards), body.then
    return (), body


def _limit(guard: Guard) -> Guard:
    """``4*i + 2 < 33`` as ``i < 8``, so that results which end together have the same limits."""
    terms, offset = guard.lin.terms, guard.lin.offset
    if len(terms) != 1 or terms[0][0] <= 0 or offset < 0:
        return guard
    ((stride, digit),) = terms
    return Guard(lin(0, ((1, digit),)), -(-(guard.ext - offset) // stride))


def guards_in(bodies: Iterable[Expr]) -> tuple[Guard, ...]:
    """All guards of bodies."""
    return tuple(dict.fromkeys(g for body in bodies for n in walk(body) if isinstance(n, Choose) for g in n.guards))


def _selected(body: Expr, axes: Sequence[Lin], extents: Sequence[int]) -> Expr:
    """The body with the choices made that `axes` decide; only what they leave is looked at."""
    done: dict[int, Expr] = {}
    stack = [body]
    while stack:
        node = stack[-1]
        needs: tuple[Expr, ...] = operands(node)
        if isinstance(node, Choose):
            guards = [Guard(substitute(g.lin, axes, extents), g.ext) for g in node.guards]
            if any(g.never for g in guards):
                needs = (node.otherwise,)
            elif all(g.always for g in guards):
                needs = (node.then,)
        missing = [e for e in needs if id(e) not in done]
        if missing:
            stack += missing
            continue
        parts = [done[id(e)] for e in needs]
        if isinstance(node, Choose):
            done[id(node)] = parts[0] if len(needs) == 1 else choose(node.guards, *parts)
        else:
            done[id(node)] = with_operands(node, parts) if isinstance(node, Alu) else node
        stack.pop()
    return done[id(body)]


def unguarded(body: Expr) -> Expr:
    """The body where all its guards hold."""
    done: dict[int, Expr] = {}
    for node in walk(body):
        if isinstance(node, Choose):
            done[id(node)] = done[id(node.then)]
        elif isinstance(node, Alu):
            done[id(node)] = with_operands(node, [done[id(a)] for a in node.args])
        else:
            done[id(node)] = node
    return done[id(body)]
