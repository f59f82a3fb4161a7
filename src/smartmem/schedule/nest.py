"""The loop-nest schedules: pointwise, window and fallback.

One nest computes a kernel whose stages all have the space axes of its output: reductions run inside the lane loop
(depthwise convolution, pooling, a mean over strided axes), pointwise stages follow in registers. Axes are refined
until accesses are affine, merged where nothing separates them, and the axis along which stores and loads are
contiguous becomes the vector lane; the outer loops are the tasks that threads share.

    pointwise   no reduction;           lane loop over the merged contiguous axis
    window      reductions, a lane;     the accumulator is a vector along the lane
    fallback    no usable lane or dtype: the same nest with scalars, right for any definition
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import (
    Context,
    Emitter,
    Lane,
    Value,
    c_guards,
    lookup_renderer,
    step_along,
)
from smartmem.codegen.c_index import Axes, c_lin, has_division
from smartmem.codegen.c_operations import C_TYPES, c_const, store_bytes
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin, axes_of
from smartmem.kernel.expr import (
    Alu,
    Choose,
    DType,
    Expr,
    Load,
    choose,
    is_zero,
    loads,
    walk,
)
from smartmem.kernel.stage import Kernel, looked_up
from smartmem.layout.storage import Storage, dense
from smartmem.schedule.code import Arguments, KernelCode, Target
from smartmem.schedule.lane_weights import lane_weights
from smartmem.schedule.loops import LONG_SUM, UNROLLED, Jam, Nest, build, choose_lane, find_jam, is_long_sum, rounded
from smartmem.schedule.nest_tasks import Tasks

EACH = frozenset(("gelu",))  # functions that several vectors take together (`sm_<name>_each`)
VECTORS = 4  # that a long reduction takes together


def accepts(kernel: Kernel) -> bool:
    """Whether every stage has the space axes of the output and reads local stages at its own coordinate."""
    shape = kernel.output.shape
    local = kernel.local()
    if any(stage.shape != shape for stage in kernel.stages):
        return False
    return all(
        access.index == stage.space() for stage in kernel.stages for access in stage.loads() if access.tensor in local
    )


def initial(combine: str, dtype: DType) -> str:
    """The neutral element of a combination, as a C literal."""
    if combine in ("sum", "or"):
        return "0"
    if combine in ("prod", "and"):
        return "1"
    low = combine in ("max", "max_ordered", "argmax", "argmax_last")
    if dtype.kind == "f":
        return "-INFINITY" if low else "INFINITY"
    if dtype.kind == "b":
        return "0" if low else "1"
    info = np.iinfo(dtype)
    return c_const(info.min if low else info.max, dtype)


def combined(combine: str, total: str, value: str, vector: bool, dtype: DType) -> str:
    """The C expression that adds one value to an accumulator."""
    if combine in ("sum", "prod"):
        return f"{total} {'+' if combine == 'sum' else '*'} {value}"
    if combine in ("and", "or"):
        return f"({total} != 0) {'&' if combine == 'and' else '|'} ({value} != 0)"
    if vector:
        return f"sm_{combine}({total}, {value})"
    if dtype.kind == "f":
        return f"sm_{combine}{'d' if dtype.itemsize == 8 else 's'}({total}, {value})"
    return f"{value} {'>' if combine == 'max' else '<'} {total} ? {value} : {total}"


def schedule(
    kernel: Kernel, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, np.ndarray[Any, Any]]
) -> KernelCode:
    """C code of a kernel that `accepts` admits. `constants` gives the contents of constant tensors, for packing."""
    nest = build(kernel, storages)
    lane = choose_lane(nest, kernel, target.lanes)
    weights: dict[str, np.ndarray[Any, Any]] = {}
    if lane is not None:
        nest, weights = lane_weights(nest, lane, constants, kernel.tensor)
        packed = {name: dense(name, data.shape, data.dtype) for name, data in weights.items()}
        storages = {**storages, **packed}
    arguments = Arguments()
    inputs = [*kernel.inputs(), *weights]
    pointers = arguments.tensors([*(n for n in inputs if n in _read(kernel, nest)), kernel.tensor], storages)
    writer = Writer()
    for line in arguments.declarations(storages[kernel.tensor].buffer):
        writer.line(line)
    names = {axis: f"i{axis}" for axis in range(len(nest.extents))}
    axes = Axes(names, nest.extents)
    axes = replace(axes, lookup=lookup_renderer(storages, pointers))
    flat = {name: storages[name].flat() for name in inputs}
    streams = target.streams(storages[kernel.tensor].bytes)
    # Loads of the nest are addresses already.
    zero = storages[kernel.tensor].zero
    context = Context(axes, flat, pointers, lane=lane, streams=streams, zero=zero, once=writer.mark())
    jam = find_jam(nest, kernel, lane, target)
    plan = Tasks.of(nest, kernel, lane, jam, target)
    with writer.loop("t", "end", "begin"), ExitStack() as loops:
        plan.open(writer, nest, names, loops)
        if lane is None:
            _body(kernel, nest, context, writer, pointers)
        elif jam is None:
            several = (
                partial(_sums_of_vectors, kernel, nest, writer, pointers)
                if target.tuned and is_long_sum(kernel)
                else None
            )
            _lane_loop(lane, plan, context, writer, lambda ctx: _body(kernel, nest, ctx, writer, pointers), several)
        else:
            _jam_loop(kernel, nest, jam, lane, plan, context, writer, pointers)
    if streams:
        writer.line("sm_stream_end();")
    family = "fallback" if lane is None else "window" if any(nest.reduces) else "pointwise"
    notes = []
    if any(has_division(v, nest.extents) for v in nest.lins()):
        notes.append("an index keeps a division: its digits have no common refinement")
    return KernelCode(writer.text(), arguments.buffers, plan.tasks, weights=weights, family=family, notes=notes)


def _read(kernel: Kernel, nest: Nest) -> set[str]:
    """Names of the tensors that the nest reads: those of the kernel but for constants that were packed."""
    looked = (name for stage in kernel.stages for name in looked_up(stage.body))
    return {*looked, *(access.tensor for body in nest.bodies for access in loads(body))}


def _lane_loop(
    lane: Lane, plan: Tasks, context: Context, writer: Writer, body: Callable[[Context], None],
    several: Callable[[Context], None] | None = None,
) -> None:  # fmt: skip
    """Full vectors along the lane, `VECTORS` of them together where there is code for that; what is left of one."""
    variable = context.axes.names[lane.axis]
    low, high = plan.lane_range(lane)
    writer.line(f"long {variable} = {low};")
    if several is not None and lane.extent >= VECTORS * lane.width:
        step = f"{VECTORS} * SM_W"
        with writer.block(f"for (; {variable} + {step} <= {high}; {variable} += {step})"):
            several(context)
    with writer.block(f"for (; {variable} + SM_W <= {high}; {variable} += SM_W)"):
        body(context)
    if plan.has_tail(lane):
        with writer.block(f"if ({variable} < {high})"):
            writer.line(f"const long count = {high} - {variable};")
            body(replace(context, lane=replace(lane, count="count")))


def _jam_loop(
    kernel: Kernel, nest: Nest, jam: Jam, lane: Lane, plan: Tasks, context: Context, writer: Writer,
    pointers: Mapping[str, str],
) -> None:  # fmt: skip
    """The sliding loop: `jam.width` iterations together where no guard fails, single or guarded ones at the borders."""
    name, extent = context.axes.names[jam.axis], nest.extents[jam.axis]
    if jam.edges:
        starts = range(0, extent, jam.width)
        inner = [at for at in starts if at >= jam.low and at + jam.width <= jam.high]
        for at in starts:
            if at in inner[1:]:
                continue
            edge = at not in inner
            with writer.block("" if edge else f"for (long at = {at}; at <= {inner[-1]}; at += {jam.width})"):
                if edge:
                    writer.line(f"enum {{ at = {at} }};")
                jammed = partial(_jammed, kernel, nest, jam, writer, pointers, edge)
                _lane_loop(lane, plan, context, writer, jammed)
        return
    first, last = plan.sliding(extent)
    with writer.block(f"for (long at = {first}, step; at < {last}; at += step)"):
        end = str(jam.high) if plan.span == 0 else f"({last} < {jam.high} ? {last} : {jam.high})"
        inside = f"at + {jam.width} <= {end}" if jam.low == 0 else f"at >= {jam.low} && at + {jam.width} <= {end}"
        writer.line(f"step = {inside} ? {jam.width} : 1;")
        with writer.block(f"if (step == {jam.width})"):
            _lane_loop(lane, plan, context, writer, partial(_jammed, kernel, nest, jam, writer, pointers, False))
        with writer.block("else"):
            writer.line(f"const long {name} = at;")
            _lane_loop(lane, plan, context, writer, lambda ctx: _body(kernel, nest, ctx, writer, pointers))


def _jammed(
    kernel: Kernel, nest: Nest, jam: Jam, writer: Writer, pointers: Mapping[str, str], edge: bool, context: Context
) -> None:
    """`jam.width` accumulators side by side; stages before and after the reduction one iteration at a time.

    At an `edge` terms are guarded; the group's place is constant and the loop of taps unrolled, so nothing is tested.
    """
    name = context.axes.names[jam.axis]
    number = next(k for k, reduces in enumerate(nest.reduces) if reduces)
    stage, body, reduces = kernel.stages[number], nest.bodies[number], nest.reduces[number]
    start = initial(stage.combine, stage.dtype)
    totals = [writer.fresh("total") for _ in range(jam.width)]
    writer.line(f"f32v {', '.join(f'{t} = sm_splat({start})' for t in totals)};")
    context = replace(context, hoist=writer.mark(), inner=frozenset(reduces))
    with ExitStack() as loops:
        every = body.guards if isinstance(body, Choose) else ()
        guards = tuple(g for g in every if jam.axis not in set(axes_of(g.lin)))
        moving = tuple(g for g in every if g not in guards) if edge else ()
        pending = list(guards)
        inner = body.then if isinstance(body, Choose) else body
        skip = isinstance(body, Choose) and stage.combine == "sum" and is_zero(body.otherwise)
        bound = set(range(nest.space))
        for axis in reduces:
            if axis == reduces[-1] and nest.extents[axis] <= UNROLLED:
                writer.line(f"#pragma GCC unroll {nest.extents[axis]}")
            loops.enter_context(writer.loop(context.axes.names[axis], nest.extents[axis], reduces=True))
            bound.add(axis)
            ready = tuple(g for g in pending if set(axes_of(g.lin)) <= bound)
            pending = [g for g in pending if g not in ready]
            if ready and skip:
                loops.enter_context(writer.block(f"if ({c_guards(ready, context.axes)})"))
        shared = Emitter(writer, context)
        for node in walk(inner):
            if isinstance(node, Load) and node.index and jam.axis not in set(axes_of(node.index[0])):
                shared.value(node)
        for u, total in enumerate(totals):
            names = {**context.axes.names, jam.axis: f"(at + {u})"}
            emitter = Emitter(writer, replace(context, axes=replace(context.axes, names=names)), shared.known)
            value = inner if skip or not guards else choose(guards, inner, body.otherwise)  # type: ignore[union-attr]
            tested = writer.block(f"if ({c_guards(moving, emitter.context.axes)})") if moving else nullcontext()
            with tested:
                text = emitter.as_vector(emitter.value(value), inner.dtype)
                writer.line(f"{total} = {combined(stage.combine, total, text, True, stage.dtype)};")
    kept = writer.fresh("kept")
    known = {stage.name: Value(f"{kept}[u]", True)}
    each = _each(kernel, nest)
    writer.line(f"{'const ' if each is None else ''}f32v {kept}[{jam.width}] = {{{', '.join(totals)}}};")
    if each is not None:
        argument = replace(nest, bodies=[*nest.bodies[:-1], each.args[0]])
        with writer.loop("u", jam.width):
            writer.line(f"const long {name} = at + u;")
            emitter, operand = _value(kernel, argument, context, writer, known)
            writer.line(f"{kept}[u] = {emitter.as_vector(operand, each.dtype)};")
        writer.line(f"sm_{each.op}_each({kept}, {jam.width});")
    with writer.loop("u", jam.width):
        writer.line(f"const long {name} = at + u;")
        if each is None:
            _body(kernel, nest, context, writer, pointers, known)
        else:
            _store(kernel, nest, context, writer, Emitter(writer, context), known[stage.name], pointers[kernel.tensor])


def _each(kernel: Kernel, nest: Nest) -> Alu | None:
    """The last operation, if iterations that run together take it together, too."""
    last = nest.bodies[-1]
    fits = kernel.stages[-1] is kernel.output and not kernel.output.reduce
    return last if fits and isinstance(last, Alu) and last.op in EACH and last.dtype == np.float32 else None


def _body(
    kernel: Kernel, nest: Nest, context: Context, writer: Writer, pointers: Mapping[str, str],
    known: Mapping[str, Value] = MappingProxyType({}),
) -> None:  # fmt: skip
    """All stages at one coordinate (or one chunk of lanes) but those whose values are `known`, then the store."""
    emitter, value = _value(kernel, nest, context, writer, known)
    _store(kernel, nest, context, writer, emitter, value, pointers[kernel.tensor])


def _value(
    kernel: Kernel, nest: Nest, context: Context, writer: Writer, known: Mapping[str, Value]
) -> tuple[Emitter, Value]:
    """The output at one coordinate, after all stages before it whose values are not `known`."""
    values: dict[str, Value] = dict(known)
    local = {name: (lambda _, __, name=name: values[name]) for name in kernel.local()}
    context = replace(context, local=local)
    emitter = Emitter(writer, context)
    for stage, body, reduces in zip(kernel.stages, nest.bodies, nest.reduces, strict=True):
        if stage.name in known:
            continue
        if not stage.reduce:
            as_float = rounded(body) if context.lane is not None and stage is kernel.output else None
            values[stage.name] = emitter.value(body if as_float is None else as_float)
        elif stage.combine.startswith("arg"):
            values[stage.name] = _arg_reduction(stage.combine, body, reduces, nest, context, writer)
        else:
            values[stage.name] = _reduction(stage.combine, body, stage.dtype, reduces, nest, context, writer)
    return emitter, values[kernel.output.name]


def _reduction(
    combine: str, body: Expr, dtype: DType, reduces: tuple[int, ...], nest: Nest, context: Context, writer: Writer
) -> Value:
    """A reduction at one coordinate, or for one chunk of lanes."""
    return _reductions(combine, body, dtype, reduces, nest, context, [context.axes], writer)[0]


def _reductions(
    combine: str, body: Expr, dtype: DType, reduces: tuple[int, ...], nest: Nest, context: Context,
    places: Sequence[Axes], writer: Writer,
) -> list[Value]:  # fmt: skip
    """The same reduction at several places, in one pass."""
    vector = context.lane is not None
    start = f"sm_splat({initial(combine, dtype)})" if vector else initial(combine, dtype)
    kind = "f32v" if vector else C_TYPES[(dtype if dtype != np.float16 else np.dtype(np.float32)).name]

    def accumulators(stem: str) -> list[str]:
        names = [writer.fresh(stem) for _ in places]
        writer.line(f"{kind} {', '.join(f'{name} = {start}' for name in names)};")
        return names

    results = totals = accumulators("total")
    context = replace(context, hoist=writer.mark(), inner=frozenset(reduces))
    contexts = [replace(context, axes=axes) for axes in places]
    known = [_invariant(body, reduces, here, writer) for here in contexts]
    blocked = combine == "sum" and math.prod(nest.extents[a] for a in reduces) > LONG_SUM
    with ExitStack() as loops:
        for axis in reduces:
            loops.enter_context(writer.loop(context.axes.names[axis], nest.extents[axis], reduces=True))
            if blocked and axis == reduces[0] and len(reduces) > 1:  # sums of sums: rounding errors stay small
                totals = accumulators("part")
                loops.callback(writer.line, " ".join(f"{a} += {b};" for a, b in zip(results, totals, strict=True)))
        if isinstance(body, Choose) and combine == "sum" and is_zero(body.otherwise):
            loops.enter_context(writer.block(f"if ({c_guards(body.guards, context.axes)})"))
            body = body.then
        for here, values, total in zip(contexts, known, totals, strict=True):
            inner = Emitter(writer, here, values)
            value = inner.as_vector(inner.value(body), body.dtype)
            writer.line(f"{total} = {combined(combine, total, value, vector, dtype)};")
    return [Value(result, vector) for result in results]


def _sums_of_vectors(kernel: Kernel, nest: Nest, writer: Writer, pointers: Mapping[str, str], context: Context) -> None:
    """The only reduction of a kernel for `VECTORS` vectors that lie side by side."""
    (stage,), (body,), (reduces,), lane = kernel.stages, nest.bodies, nest.reduces, context.lane
    assert lane is not None
    names, variable = context.axes.names, context.axes.names[lane.axis]
    places = [replace(context.axes, names={**names, lane.axis: f"({variable} + {k} * SM_W)"}) for k in range(VECTORS)]
    values = _reductions(stage.combine, body, stage.dtype, reduces, nest, context, places, writer)
    for axes, value in zip(places, values, strict=True):
        here = replace(context, axes=axes)
        _store(kernel, nest, here, writer, Emitter(writer, here), value, pointers[kernel.tensor])


def _invariant(body: Expr, reduces: tuple[int, ...], context: Context, writer: Writer) -> dict[int, Value]:
    """Values of the loads that do not change in the reduction, computed before its loops."""
    if isinstance(body, Choose) or context.lane is None:
        return {}
    before = Emitter(writer, replace(context, hoist=None))
    guarded = {id(n) for c in walk(body) if isinstance(c, Choose) for e in (c.then, c.otherwise) for n in walk(e)}
    for node in walk(body):
        free = isinstance(node, Load) and node.index and id(node) not in guarded
        if isinstance(node, Load) and free and not set(axes_of(node.index[0])) & set(reduces):
            before.value(node)
    return before.known


def _arg_reduction(
    combine: str, body: Expr, reduces: tuple[int, ...], nest: Nest, context: Context, writer: Writer
) -> Value:
    """The position of the extremum; a NaN counts as one, as in numpy."""
    best, where, position = writer.fresh("best"), writer.fresh("where"), writer.fresh("position")
    kind = C_TYPES[body.dtype.name]
    writer.line(f"{kind} {best} = 0;")
    writer.line(f"int64_t {where} = 0, {position} = 0;")
    context = replace(context, hoist=writer.mark(), inner=frozenset(reduces))
    with ExitStack() as loops:
        for axis in reduces:
            loops.enter_context(writer.loop(context.axes.names[axis], nest.extents[axis], reduces=True))
        inner = Emitter(writer, context)
        value = inner.value(body).text
        comparison = ">" if "argmax" in combine else "<"
        better = f"{value} {comparison}{'=' if combine.endswith('_last') else ''} {best}"
        better = f"{position} == 0 || {better} || ({value} != {value} && {best} == {best})"
        with writer.block(f"if ({better})"):
            writer.line(f"{best} = {value};")
            writer.line(f"{where} = {position};")
        writer.line(f"++{position};")
    return Value(where)


def _store(
    kernel: Kernel, nest: Nest, context: Context, writer: Writer, emitter: Emitter, value: Value, pointer: str
) -> None:
    lane, dtype = context.lane, kernel.output.dtype
    where = c_lin(nest.store, context.axes)
    if lane is None:
        writer.line(f"{pointer}[{where}] = {context.stored(value.text, False)};")
        return
    store_vector(writer, context, pointer, nest.store, emitter.as_vector(value, dtype), dtype)


def store_vector(writer: Writer, context: Context, pointer: str, address: Lin, value: str, dtype: DType) -> None:
    """Stores a chunk of lanes at an address over the loop axes."""
    lane = context.lane
    assert lane is not None
    step = step_along(address, lane)
    where = c_lin(address, context.axes)
    count = f", {lane.count}" if lane.count else ""
    suffix = "_n" if lane.count else ""
    kind = "bool" if dtype == np.bool_ else ""
    integral = dtype.kind in "iu"  # of lanes that are floats until here
    if context.zero is not None and step == 1:
        writer.line(store_bytes(f"{pointer} + {where}", value, context.zero, lane.count))
        return
    if context.zero is not None:
        text, value = context.stored(value, True), writer.fresh()
        writer.line(f"const f32v {value} = {text};")
    if step == 1 and context.streams and dtype == np.float32 and not count:
        writer.line(f"sm_stream({pointer} + {where}, {value});")
    elif step == 1 and not integral:
        writer.line(f"sm_store{'_' + kind if kind else ''}{suffix}({pointer} + {where}, {value}{count});")
    elif step is not None and not kind and not integral and context.zero is None:
        writer.line(f"sm_store_strided{suffix}({pointer} + {where}, {step}, {value}{count});")
    else:
        index = writer.fresh("l")
        with writer.loop(index, lane.count or "SM_W"):
            names = {**context.axes.names, lane.axis: f"({context.axes.names[lane.axis]} + {index})"}
            element = f"({value}[{index}] & 1)" if kind else f"{value}[{index}]"
            element = f"({C_TYPES[dtype.name]})sm_to_i64({element})" if integral else element
            writer.line(f"{pointer}[{c_lin(address, replace(context.axes, names=names))}] = {element};")
