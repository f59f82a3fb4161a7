"""Pointwise kernels that choose by axes, on a device: a work-item computes all that neighbours share loads of.

    tiles of a Winograd convolution   36 loads -> 36 stores of four channels each
    its results                       36 loads -> 16 stores

Every value of the axes by which the body chooses (`choices`) gets its expression, and a work-item computes all of them,
for four values along the lane or, where that would leave compute units idle, for one. Where other guards remain, those
of padding, there is a second copy without them, for the places where all hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

from smartmem.codegen.c_expr import lane_free
from smartmem.codegen.c_index import Axes
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter, cl_guards
from smartmem.codegen.writer import Writer
from smartmem.index.map import Guard
from smartmem.kernel.expr import Expr, loads
from smartmem.kernel.stage import Kernel, tensors_read
from smartmem.layout.memory import LANES
from smartmem.schedule.choices import (
    Result,
    choices,
    choosing_axes,
    guards_in,
    in_whole_tiles,
    limits_of,
    selects,
    unguarded,
)
from smartmem.schedule.gpu.code import (
    Arguments,
    Destination,
    DeviceCode,
    DeviceTarget,
    Storages,
    context_of,
    memories_of,
    new_writer,
    power_of_two,
)
from smartmem.schedule.gpu.loops import build, choose_lane
from smartmem.schedule.gpu.nest import coordinates, store
from smartmem.schedule.gpu.sweeps import of_choices

GROUP = 128
SMALL_GROUP = 32
BUSY = 128  # work-items per compute unit from which on each takes four values
MOST = 64  # results of a work-item


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget) -> DeviceCode | None:
    """OpenCL C of a kernel whose only stage chooses by axes between results that share loads, None for others."""
    if len(kernel.stages) != 1 or kernel.output.reduce or not selects(kernel.output.body):
        return None
    kernel = in_whole_tiles(kernel)
    nest = build(kernel, storages)
    body, device = nest.bodies[0], target.device
    chosen = choosing_axes(body, nest.extents)
    lane = choose_lane(nest, kernel)
    if not chosen or lane is None or lane.axis in chosen:
        return None
    results = choices(body, nest.stores, nest.extents, chosen)
    if len(results) > MOST or not _share_loads([body for body, _ in results]):
        return None
    guards = guards_in(body for body, _ in results)
    if not all(lane_free((g,), lane) for g in guards):
        return None
    loops = [a for a in range(nest.space) if a not in chosen]
    values = math.prod(nest.extents[a] for a in loops)
    if values // LANES < BUSY * device.compute_units and all(len(store) == 1 for store in nest.stores):
        lane = None
    items = values // (LANES if lane else 1)
    group = GROUP if items >= GROUP * device.compute_units else SMALL_GROUP
    group = power_of_two(min(group, device.max_work_group, max(1, items)))
    arguments, w = Arguments(storages, target.check), new_writer()
    memories = memories_of(kernel, arguments, list(dict.fromkeys(n for body, _ in results for n in tensors_read(body))))
    axes = Axes({axis: f"i{axis}" for axis in loops}, nest.extents)
    context = replace(context_of(axes, memories, storages), lane=lane)
    w.line("const int item = get_global_id(0);")
    w.line(f"if (item >= {items}) return;")
    coordinates(w, nest.extents, loops, lane, items)
    if guards:
        with w.block(f"if ({cl_guards(guards, context.axes)})"):
            _compute(w, context, kernel, [(unguarded(body), places) for body, places in results])
        with w.block("else"):
            _compute(w, context, kernel, results)
    else:
        _compute(w, context, kernel, results)
    groups = -(-items // group)
    sweeps = of_choices(results, nest.extents, loops, lane, group, groups, storages, kernel.written)
    return DeviceCode(
        w.text(), arguments.parameters, arguments.slots, (groups * group,), (group,), {}, "pointwise",
        sweeps=sweeps, checks=arguments.checks,
    )  # fmt: skip


def _share_loads(bodies: Sequence[Expr]) -> bool:
    """Whether most values are loaded for several results. (The pieces of a Concat have none in common.)"""
    each = [frozenset(loads(body)) for body in bodies]
    return sum(map(len, each)) >= 2 * len(frozenset().union(*each))


def _compute(w: Writer, context: DeviceContext, kernel: Kernel, results: Sequence[Result]) -> None:
    """All results that end at the same place, and then their stores, which no load has to wait for."""
    together: dict[tuple[Guard, ...], list[Result]] = {}
    for whole, places in results:
        limits, body = limits_of(whole)
        together.setdefault(limits, []).append((body, places))
    dtype = kernel.output.dtype
    for limits, found in together.items():
        with w.block(f"if ({cl_guards(limits, context.axes)})") if limits else nullcontext():
            emitter = DeviceEmitter(w, context)
            values = [emitter.value(body) for body, _ in found]
            for value, (_, places) in zip(values, found, strict=True):
                destinations = tuple(
                    Destination(name, context.memories[name], place)
                    for name, place in zip(kernel.written, places, strict=True)
                )
                store(w, context, destinations, value, emitter, dtype)
