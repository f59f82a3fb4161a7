"""Pointwise kernels that choose by an axis: it is unrolled, so choices are free and what they share is computed once.

In the transforms of a Winograd convolution each of 36 results is another sum of the same 36 loads. The definition is a
chain of choices by small axes (``i == 0: ..., i == 1: ...``). Here every value of these axes gets its expression, all
of them are computed next to each other, in vectors along the lane, and common subexpressions are computed once. Where
other guards remain (padding) there is a second copy of the lane loop without them, for the places where all hold.

Where the chosen digit does not divide its axis (tiles of 4x4 on a side of 71) the axis is taken as long as whole tiles
are, and what lies beyond its end is not stored: the body is NOWHERE there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

from smartmem.codegen.c_expr import Context, Emitter, Lane, c_guards, lane_free
from smartmem.codegen.c_index import Axes
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Digit, Lin, axis_digit
from smartmem.index.map import Guard, IndexMap
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Alu, Choose, Expr, choose, const, index_values, map_lins, operands, walk, with_operands
from smartmem.kernel.stage import Kernel, reindex
from smartmem.layout.storage import Storage
from smartmem.schedule.code import Arguments, KernelCode, Target
from smartmem.schedule.loops import Nest, build, choose_lane
from smartmem.schedule.nest import store_vector

LONGEST = 8  # extent of an axis worth unrolling
TASKS = 64
NOWHERE = const(math.nan)  # what a body is where it is not stored


def schedule(kernel: Kernel, storages: Mapping[str, Storage], target: Target) -> KernelCode | None:
    """C code of a kernel whose only stage chooses by axes, None for others."""
    if len(kernel.stages) != 1 or kernel.output.reduce:
        return None
    if not selects(kernel.output.body):
        return None
    kernel = _in_whole_tiles(kernel)
    nest = build(kernel, storages)
    chosen = _selecting(nest)
    lane = choose_lane(nest, kernel, target.lanes)
    if not chosen or lane is None or lane.axis in chosen:
        return None
    arguments, writer = Arguments(), Writer()
    pointers = arguments.tensors([*kernel.inputs(), kernel.tensor], storages)
    for line in arguments.declarations(storages[kernel.tensor].buffer):
        writer.line(line)
    names = {axis: f"i{axis}" for axis in range(nest.space)}
    flat = {name: storages[name].flat() for name in kernel.inputs()}
    streams = target.streams(storages[kernel.tensor].bytes)
    zero = storages[kernel.tensor].zero
    context = Context(Axes(names, nest.extents), flat, pointers, lane=lane, streams=streams, zero=zero)
    results = _results(nest, chosen)
    guards = tuple(
        dict.fromkeys(g for body, _ in results for n in walk(body) if isinstance(n, Choose) for g in n.guards)
    )
    if not all(lane_free((g,), lane) for g in guards):
        return None
    loops = [a for a in range(nest.space) if a not in chosen and a != lane.axis]
    outer = _outer(nest, loops)
    with writer.loop("t", "end", "begin"), ExitStack() as opened:
        inner = math.prod(nest.extents[a] for a in loops[:outer])
        for axis in loops[:outer]:
            inner //= nest.extents[axis]
            writer.line(f"const long {names[axis]} = t / {inner} % {nest.extents[axis]};")
        for axis in loops[outer:]:
            opened.enter_context(writer.loop(names[axis], nest.extents[axis]))
        if guards:
            with writer.block(f"if ({c_guards(guards, context.axes)})"):
                _lane_loop(context, [(_unguarded(body), at) for body, at in results], kernel, pointers, writer)
            with writer.block("else"):
                _lane_loop(context, results, kernel, pointers, writer)
        else:
            _lane_loop(context, results, kernel, pointers, writer)
    if streams:
        writer.line("sm_stream_end();")
    tasks = math.prod(nest.extents[a] for a in loops[:outer])
    return KernelCode(writer.text(), arguments.buffers, tasks, family="pointwise")


def _in_whole_tiles(kernel: Kernel) -> Kernel:
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


def selects(body: Expr) -> bool:
    """Whether an expression chooses by an axis."""
    return any(True for _ in _selections(body))


def _selections(body: Expr) -> Iterator[Digit]:
    """The digits of which a guard says that they have one certain value."""
    for node in walk(body):
        for guard in node.guards if isinstance(node, Choose) else ():
            if guard.ext == 1 and len(guard.lin.terms) == 1 and guard.lin.terms[0][0] == 1:
                yield guard.lin.terms[0][1]


def _selecting(nest: Nest) -> list[int]:
    """The loops by which the body chooses."""
    found: dict[int, None] = {}
    for digit in _selections(nest.bodies[0]):
        axis = digit.axis
        if isinstance(axis, int) and digit == Digit(axis, 1, nest.extents[axis]) and digit.ext <= LONGEST:
            found[axis] = None
    return list(found)


def _results(nest: Nest, chosen: Sequence[int]) -> list[tuple[Expr, Lin]]:
    """The expression and the address in the output for every value of the chosen loops."""
    results = []
    for values in itertools.product(*(range(nest.extents[a]) for a in chosen)):
        axes = [axis_digit(a, n) for a, n in enumerate(nest.extents)]
        for axis, value in zip(chosen, values, strict=True):
            axes[axis] = Lin(value)
        body = _selected(nest.bodies[0], axes, nest.extents)
        if body is NOWHERE:
            continue
        change = {v: substitute(v, axes, nest.extents) for v in index_values(body)}
        results.append((map_lins(body, change), substitute(nest.store, axes, nest.extents)))
    return results


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


def _unguarded(body: Expr) -> Expr:
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


def _outer(nest: Nest, loops: Sequence[int]) -> int:
    """How many of the loops make tasks."""
    count, tasks = 0, 1
    while count < len(loops) and tasks < TASKS:
        tasks *= nest.extents[loops[count]]
        count += 1
    return count


def _lane_loop(
    context: Context, results: list[tuple[Expr, Lin]], kernel: Kernel, pointers: Mapping[str, str], writer: Writer
) -> None:
    """All results for one vector after the other."""
    lane = context.lane
    assert lane is not None
    variable, full = context.axes.names[lane.axis], lane.extent - lane.extent % lane.width

    def chunk(lanes: Lane) -> None:
        here = replace(context, lane=lanes)
        shared = Emitter(writer, here)
        for body, at in results:
            limits: tuple[Guard, ...] = ()
            if isinstance(body, Choose) and body.otherwise is NOWHERE:
                limits, body = body.guards, body.then
            emitter = Emitter(writer, here) if limits else shared  # values of a block are not known behind it
            with writer.block(f"if ({c_guards(limits, here.axes)})") if limits else nullcontext():
                value = emitter.as_vector(emitter.value(body), kernel.output.dtype)
                store_vector(writer, here, pointers[kernel.tensor], at, value, kernel.output.dtype)

    if full:
        with writer.loop(variable, full, 0, "SM_W"):
            chunk(lane)
    if full < lane.extent:
        with writer.block(""):
            writer.line(f"const long {variable} = {full}, count = {lane.extent - full};")
            chunk(replace(lane, count="count"))
