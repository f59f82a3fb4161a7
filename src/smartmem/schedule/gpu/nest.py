"""Loop nests on a device: pointwise kernels, windows and strided reductions, the fallback for everything else.

A work-item computes four values along the lane (or one, without a lane) at one coordinate. Where there are few outputs
and long reductions, the work-items of a group share each of them: every one takes a part, a tree in local memory adds
the parts up.

    pointwise   no reduction
    window      a reduction in one work-item (depthwise convolution, pooling)
    reduction   a reduction shared by a group (a mean over all pixels)
    fallback    no lane: single values, right for any definition
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import Lane, LocalReader, Value, lane_free
from smartmem.codegen.c_index import Axes
from smartmem.codegen.c_operations import C_TYPES
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter, cl_guards
from smartmem.codegen.cl_memory import CL_TYPES, LinearBuffer, MemoryAccess, shifted
from smartmem.codegen.writer import Writer
from smartmem.kernel.expr import Choose, DType, Expr, is_zero
from smartmem.kernel.stage import Kernel, tensors_read
from smartmem.layout.memory import LANES, SMALL_CONSTANT, DeviceStorage
from smartmem.layout.storage import dense
from smartmem.schedule.gpu import window
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
from smartmem.schedule.gpu.loops import Nest, build, choose_lane, ordered
from smartmem.schedule.gpu.product import to_half
from smartmem.schedule.gpu.sweeps import of_nest
from smartmem.schedule.gpu.window import Row
from smartmem.schedule.lane_weights import lane_weights
from smartmem.schedule.nest import combined, initial

Array = np.ndarray[Any, Any]

GROUP = 128
LONG_SUM = 1024  # terms from which on a sum is a sum of partial sums
UNROLLED = 16  # iterations of the innermost loop of a window whose loads may be under way together
SHARED = 24  # terms of a reduction from which on a group may share it
FOR_TERMS, FOR_ROWS = 256, 512  # work-items for each compute unit, up to which they share reductions, and windows


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget, constants: Mapping[str, Array]) -> DeviceCode:
    """OpenCL C of a kernel whose stages share the axes of its output."""
    nest = build(kernel, storages)
    arguments, writer = Arguments(storages, target.check), new_writer()
    lane = choose_lane(nest, kernel)
    weights: dict[str, Array] = {}
    if lane is not None:
        fixed = {name: constants[name] for name in kernel.inputs() if name in constants}
        nest, weights = lane_weights(nest, lane, fixed, kernel.tensor)
    on_gpu = target.tuned and target.device.kind == "gpu"
    if on_gpu:
        nest, lane = ordered(nest, lane, target.device.sub_group)
    read = list(dict.fromkeys(name for body in nest.bodies for name in tensors_read(body)))
    memories = memories_of(kernel, arguments, [n for n in read if n not in weights and n not in kernel.local()])
    for name, data in weights.items():
        stored = to_half(data) if target.half and data.size > SMALL_CONSTANT else data
        weights[name] = stored.reshape(-1)
        pointer = arguments.buffer(name, CL_TYPES[stored.dtype.name])
        memories[name] = LinearBuffer(pointer, stored.dtype, arguments.bounds(name, address=data.size))
        flat = dense(name, (data.size,), np.dtype(np.float32))
        place = DeviceStorage(name, flat.shape, flat.dtype, flat.address, flat.elements, stored.dtype)
        storages = {**storages, name: place}
    items = math.prod(nest.extents[: nest.space]) // (LANES if lane else 1)
    rows = _rows(kernel, nest, {**constants, **weights} if on_gpu else {})
    share = _share(kernel, nest, rows, items, target)
    group = power_of_two(min(GROUP, target.device.max_work_group))
    columns = group // share if share > 1 else min(group, max(1, items))
    axes = Axes({axis: f"i{axis}" for axis in range(len(nest.extents))}, nest.extents)
    context = replace(context_of(axes, memories, storages), lane=lane)
    emit = _Emit(kernel, nest, context, writer, memories, share, columns, items, rows)
    emit.function()
    groups = -(-items // columns)
    family = "fallback" if lane is None else "pointwise" if not any(nest.reduces) else "window"
    family = "reduction" if share > 1 else family
    vector = kernel.output.dtype == np.float32
    sweeps = of_nest(nest, rows, lane, share, columns, groups, storages, kernel.local(), kernel.written, vector)
    local = columns * share
    return DeviceCode(
        writer.text(), arguments.parameters, arguments.slots, (groups * local,), (local,), weights, family,
        sweeps=sweeps, checks=arguments.checks,
    )  # fmt: skip


def _rows(kernel: Kernel, nest: Nest, constants: Mapping[str, Array]) -> list[Row | None]:
    """Of each stage, the row of taps that is its innermost reduction."""
    return [
        window.find(body, reduces[-1], nest.extents[reduces[-1]], constants)
        if reduces and stage.combine == "sum" and stage.dtype == np.float32
        else None
        for stage, body, reduces in zip(kernel.stages, nest.bodies, nest.reduces, strict=True)
    ]


def _share(kernel: Kernel, nest: Nest, rows: Sequence[Row | None], items: int, target: DeviceTarget) -> int:
    """How many work-items share a reduction, or the rows of a window."""
    floats = all(s.dtype == np.float32 and not s.combine.startswith("arg") for s in kernel.stages if s.reduce)
    device = target.device
    if not target.tuned or not floats:
        return 1
    terms, most = 0, 1
    for reduces, row in zip(nest.reduces, rows, strict=True):
        count = math.prod(nest.extents[a] for a in reduces)
        if row is not None:
            most = max(most, min(2 * (count // row.taps) - 1, device.compute_units * FOR_ROWS // max(items, 1)))
        elif reduces:
            terms = max(terms, count)
    wanted = device.compute_units * FOR_TERMS
    if terms >= SHARED and items < wanted:
        most = max(most, min(terms // 8, wanted // max(items, 1)))
    return power_of_two(min(GROUP, device.max_work_group, most))


@dataclass
class _Emit:
    kernel: Kernel
    nest: Nest
    context: DeviceContext
    writer: Writer
    memories: dict[str, MemoryAccess]
    share: int
    columns: int
    items: int
    rows: Sequence[Row | None]

    def function(self) -> None:
        w, lane = self.writer, self.context.lane
        kind = "float4" if lane else "float"
        if self.share > 1:
            w.line(f"__local {kind} parts[{self.share * self.columns}];")
            w.line(f"const int self = get_local_id(0) % {self.columns}, part = get_local_id(0) / {self.columns};")
            w.line(f"const int item = min((int)get_group_id(0) * {self.columns} + self, {self.items - 1});")
        else:
            w.line("const int item = get_global_id(0);")
            w.line(f"if (item >= {self.items}) return;")
        coordinates(w, self.nest.extents, range(self.nest.space), lane, self.items)
        values: dict[str, Value] = {}
        context = replace(self.context, local={n: reader(values, n) for n in self.kernel.local()})
        emitter = DeviceEmitter(w, context)
        loops = zip(self.kernel.stages, self.nest.bodies, self.nest.reduces, self.rows, strict=True)
        for stage, body, reduces, row in loops:
            if not stage.reduce:
                values[stage.name] = emitter.value(body)
            elif stage.combine.startswith("arg"):
                values[stage.name] = self._arg_reduction(stage.combine, body, reduces, context)
            else:
                values[stage.name] = self._reduction(stage.combine, body, stage.dtype, reduces, row, context)
        if self.share > 1:
            w.line(f"if (part != 0 || (int)get_group_id(0) * {self.columns} + self >= {self.items}) return;")
        destinations = tuple(
            Destination(name, self.memories[name], place)
            for name, place in zip(self.kernel.written, self.nest.stores, strict=True)
        )
        store(w, context, destinations, values[self.kernel.output.name], emitter, self.kernel.output.dtype)

    def _reduction(
        self, combine: str, body: Expr, dtype: DType, reduces: tuple[int, ...], row: Row | None, context: DeviceContext
    ) -> Value:
        w, vector = self.writer, context.lane is not None
        start = initial(combine, dtype)
        total = w.fresh("total")
        kind = "float4" if vector else C_TYPES[("float32" if dtype == np.float16 else dtype.name)]
        first = f"({kind})({start})" if vector else start
        w.line(f"{kind} {total} = {first};")
        outside = reduces if row is None else reduces[:-1]
        if self.share > 1:
            return self._shared(combine, body, dtype, outside, row, context, total)
        outer = total
        blocked = combine == "sum" and math.prod(self.nest.extents[a] for a in reduces) > LONG_SUM
        with ExitStack() as loops:
            for axis in outside:
                if axis == reduces[-1] and self.nest.extents[axis] <= UNROLLED:
                    w.line("#pragma unroll")
                loops.enter_context(w.loop(f"i{axis}", self.nest.extents[axis], reduces=True))
                if blocked and axis == reduces[0] and len(reduces) > 1:  # sums of sums: rounding errors stay small
                    total = w.fresh("part")
                    w.line(f"{kind} {total} = {first};")
                    loops.callback(w.line, f"{outer} += {total};")
            self._accumulate(combine, body, dtype, row, context, total, loops)
        return Value(outer, vector)

    def _accumulate(
        self, combine: str, body: Expr, dtype: DType, row: Row | None, context: DeviceContext, total: str,
        loops: ExitStack,
    ) -> None:  # fmt: skip
        if row is not None:
            window.add(self.writer, row, context, total)
            return
        if isinstance(body, Choose) and combine == "sum" and is_zero(body.otherwise):
            condition = cl_guards(body.guards, context.axes)
            if context.lane is None or lane_free(body.guards, context.lane):
                loops.enter_context(self.writer.block(f"if ({condition})"))
                body = body.then
        inner = DeviceEmitter(self.writer, context)
        value = inner.as_vector(inner.value(body), body.dtype)
        self.writer.line(f"{total} = {combined(combine, total, value, context.lane is not None, dtype)};")

    def _shared(
        self, combine: str, body: Expr, dtype: DType, reduces: tuple[int, ...], row: Row | None,
        context: DeviceContext, total: str,
    ) -> Value:  # fmt: skip
        """Every work-item of a column takes each `share`-th term or row; a tree in local memory combines the parts."""
        w, vector = self.writer, context.lane is not None
        terms = math.prod(self.nest.extents[a] for a in reduces)
        with w.block(f"for (int term = part; term < {terms}; term += {self.share})"), ExitStack() as loops:
            below = terms
            for axis in reduces:
                below //= self.nest.extents[axis]
                text = "term" if below == 1 else f"(term / {below})"
                if axis != reduces[0]:
                    text = f"{text} % {self.nest.extents[axis]}"
                w.line(f"const int i{axis} = {text};")
            self._accumulate(combine, body, dtype, row, context, total, loops)
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        w.line(f"parts[part * {self.columns} + self] = {total};")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        here, there = f"parts[part * {self.columns} + self]", f"parts[(part + half_) * {self.columns} + self]"
        tree(w, self.share, "part", here, there, combine, dtype, vector)
        return Value(w_name(w, "parts[self]", vector), vector)

    def _arg_reduction(self, combine: str, body: Expr, reduces: tuple[int, ...], context: DeviceContext) -> Value:
        """The position of the extremum; a NaN counts as one, as in numpy."""
        w = self.writer
        best, where, position = w.fresh("best"), w.fresh("where"), w.fresh("position")
        w.line(f"{C_TYPES[body.dtype.name]} {best} = 0;")
        w.line(f"long {where} = 0, {position} = 0;")
        with ExitStack() as loops:
            for axis in reduces:
                loops.enter_context(w.loop(f"i{axis}", self.nest.extents[axis], reduces=True))
            value = DeviceEmitter(w, context).value(body).text
            comparison = ">" if "argmax" in combine else "<"
            better = f"{value} {comparison}{'=' if combine.endswith('_last') else ''} {best}"
            with w.block(f"if ({position} == 0 || {better} || ({value} != {value} && {best} == {best}))"):
                w.line(f"{best} = {value};")
                w.line(f"{where} = {position};")
            w.line(f"++{position};")
        return Value(where)


def coordinates(writer: Writer, extents: Sequence[int], axes: Sequence[int], lane: Lane | None, items: int) -> None:
    """Loop variables of `axes` from ``item``, the number of the work-item among `items`, the last loop fastest."""
    below = 1
    lines = []
    for axis in reversed(axes):
        extent = extents[axis] // (LANES if lane and lane.axis == axis else 1)
        text = "item" if below == 1 else f"(item / {below})"
        if below * extent < items:
            text = f"{text} % {extent}"
        if lane and lane.axis == axis:
            text = f"{text} * {LANES}"
        lines.append(f"const int i{axis} = {text};")
        below *= extent
    for text in reversed(lines):
        writer.line(text)


def tree(
    w: Writer, count: int, number: str, here: str, there: str, combine: str, dtype: DType, vector: bool = False
) -> None:
    """Combines `count` parts in local memory into the first: `here` is that of work-item `number`, `there` the one
    ``half_`` further on."""
    with w.block(f"for (int half_ = {count // 2}; half_ > 0; half_ /= 2)"):
        w.line(f"if ({number} < half_) {here} = {combined(combine, here, there, vector, dtype)};")
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")


def w_name(writer: Writer, text: str, vector: bool) -> str:
    """A fresh constant float (vector) with the given value."""
    name = writer.fresh()
    writer.line(f"const {'float4' if vector else 'float'} {name} = {text};")
    return name


def reader(values: dict[str, Value], name: str) -> LocalReader:
    """Reads a local tensor of which the kernel holds one value at a time."""
    return lambda _, __: values[name]


def store(
    writer: Writer, context: DeviceContext, destinations: Sequence[Destination], value: Value, emitter: DeviceEmitter,
    dtype: DType,
) -> None:  # fmt: skip
    """Stores a value, or four of them along the lane, in every destination."""
    lane, axes = context.lane, context.axes
    for to in destinations:
        if lane is None:
            writer.line(to.memory.store(to.place, axes, value.text))
            continue
        text = emitter.as_vector(value, dtype)
        whole = to.memory.store_vector(to.place, axes, lane, text) if dtype == np.float32 else None
        if whole is not None:
            writer.line(whole)
            continue
        for k in range(lane.width):
            part = f"{text}.{'xyzw'[k]}"
            part = f"({part} & 1)" if dtype == np.bool_ else part
            writer.line(to.memory.store(to.place, shifted(axes, lane, k), part))
