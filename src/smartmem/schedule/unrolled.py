"""Pointwise kernels that choose by an axis: it is unrolled, so choices are free and what they share is computed once.

Every value of the axes by which the body chooses (`choices`) gets its expression; all of them are computed next to each
other, in vectors along the lane. Where other guards remain (padding) there is a second copy of the lane loop without
them, for the places where all hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace

from smartmem.codegen.c_expr import Context, Emitter, Lane, c_guards, lane_free
from smartmem.codegen.c_index import Axes
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin
from smartmem.kernel.expr import Expr
from smartmem.kernel.stage import Kernel
from smartmem.layout.storage import Storage
from smartmem.schedule.choices import choices, choosing_axes, guards_in, in_whole_tiles, limits_of, selects, unguarded
from smartmem.schedule.code import Arguments, KernelCode, Target
from smartmem.schedule.loops import Nest, build, choose_lane
from smartmem.schedule.nest import store_vector

TASKS = 64


def schedule(kernel: Kernel, storages: Mapping[str, Storage], target: Target) -> KernelCode | None:
    """C code of a kernel whose only stage chooses by axes, None for others."""
    if len(kernel.stages) != 1 or kernel.output.reduce or not selects(kernel.output.body):
        return None
    kernel = in_whole_tiles(kernel)
    nest = build(kernel, storages)
    chosen = choosing_axes(nest.bodies[0], nest.extents)
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
    results = [(body, at) for body, ((at,),) in choices(nest.bodies[0], [(nest.store,)], nest.extents, chosen)]
    guards = guards_in(body for body, _ in results)
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
                _lane_loop(context, [(unguarded(body), at) for body, at in results], kernel, pointers, writer)
            with writer.block("else"):
                _lane_loop(context, results, kernel, pointers, writer)
        else:
            _lane_loop(context, results, kernel, pointers, writer)
    if streams:
        writer.line("sm_stream_end();")
    tasks = math.prod(nest.extents[a] for a in loops[:outer])
    return KernelCode(writer.text(), arguments.buffers, tasks, family="pointwise")


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
            limits, body = limits_of(body)
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
