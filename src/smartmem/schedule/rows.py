"""The row-pipeline schedule: row reductions, contractions, attention, and what is fused around them.

All stages share their row axes. A task takes a block of rows through the stages one after the other; what passes
between stages stays in thread-private scratch, so neither normalised activations nor attention scores reach memory:

    row reduction   LayerNorm, Softmax:      loops over the columns of one row at a time
    contraction     A * B:                   register tiles (`tiles`), A read in place or from scratch
    attention       Q*K -> softmax -> *V:    contraction, row loops, contraction
    fused           LayerNorm -> matmul -> bias, activation, residual

In: a `Kernel` with `rows` set. Out: C code. The steps of a task are *regions*: runs of row stages (one loop over the
rows of the block) and contractions with their pointwise epilogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import vectorizable
from smartmem.codegen.c_operations import C_TYPES
from smartmem.codegen.writer import Writer
from smartmem.kernel.stage import Kernel, Stage, tensors_read
from smartmem.layout.storage import Storage
from smartmem.schedule.code import Arguments, KernelCode, Target
from smartmem.schedule.operand_b import prepare_weights
from smartmem.schedule.pipeline import HELD, Pipeline, prepare
from smartmem.schedule.roles import factors, is_contraction
from smartmem.schedule.row_emitter import RowEmitter
from smartmem.schedule.tasks import divide_work

Array = np.ndarray[Any, Any]


def accepts(kernel: Kernel) -> str:
    """ "" if a row pipeline can compute the kernel, else the reason why not."""
    rows = kernel.rows
    if rows is None:
        return "its stages have no common rows"
    lead = kernel.output.space()[:rows]
    local = kernel.local()
    contracted = [s for s in kernel.stages if is_contraction(s, rows)]
    if len(contracted) > 2:
        return "more than two contractions"
    for stage in kernel.stages:
        if not vectorizable(stage.body, stage.dtype):
            return f"{stage.name} is not float arithmetic"
        if stage.shape[:rows] != kernel.output.shape[:rows]:
            return f"{stage.name} has other rows"
        if any(load.index[:rows] != lead for load in stage.loads() if load.tensor in local):
            return f"{stage.name} reads other rows of a local tensor"
        if stage in contracted:
            pair = factors(stage)
            assert pair is not None
            if any(name in local for name in tensors_read(pair[1])):
                return f"the second operand of {stage.name} is local"
        elif stage.reduce and stage.combine not in ("sum", "prod", "max", "min"):
            return f"{stage.combine} is no row reduction"
        elif stage.reduce and len(stage.shape) > rows:
            return f"{stage.name} reduces within its columns"
    if len(contracted) == 2 and not _feeds(kernel, contracted[0], contracted[1]):
        return "the first contraction does not feed the second"
    return ""


def _feeds(kernel: Kernel, first: Stage, second: Stage) -> bool:
    """Whether `second` reads, in its A operand, something computed from `first`, and nothing later bypasses it."""
    reached = {first.name}
    for stage in kernel.stages[kernel.stages.index(first) + 1 :]:
        if reached & set(tensors_read(stage.body)):
            if stage is second:
                a, _ = factors(stage) or (None, None)
                return a is not None and bool(reached & set(tensors_read(a)))
            reached.add(stage.name)
    return False


def schedule(
    kernel: Kernel, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, Array]
) -> KernelCode:
    """C code of a kernel that `accepts` admits. `constants` gives the contents of constant tensors, for packing."""
    return _emit(prepare(kernel, storages, target, constants))


def _emit(pipeline: Pipeline) -> KernelCode:
    kernel, storages = pipeline.kernel, pipeline.storages
    arguments, writer = Arguments(), Writer()
    packed = prepare_weights(pipeline, pipeline.constants)
    names = [n for n in _memory_inputs(pipeline) if n not in packed.replaced]
    pointers = arguments.tensors(names, storages)
    for buffer in packed.buffers:
        arguments.pointer(buffer, "float")
    written = storages[kernel.tensor].buffer
    pointers[kernel.tensor] = arguments.pointer(written, C_TYPES[storages[kernel.tensor].dtype.name])
    for line in arguments.declarations(written):
        writer.line(line)
    task = divide_work(pipeline, pipeline.flats[pipeline.stages[-1].name].columns)
    emitter = RowEmitter(pipeline, writer, pointers, arguments, packed, task)
    emitter.function()
    family = _family(pipeline)
    return KernelCode(
        writer.text(), arguments.buffers, task.count, 4 * (HELD + pipeline.scratch), packed.weights, family,
        pipeline.notes, pipeline.support,
    )  # fmt: skip


def _memory_inputs(pipeline: Pipeline) -> list[str]:
    local = {s.name for s in pipeline.stages}
    names: dict[str, None] = {}
    for stage in pipeline.stages:
        for tensor in tensors_read(stage.body):
            if tensor not in local:
                names[tensor] = None
    return list(names)


def _family(pipeline: Pipeline) -> str:
    contracted = pipeline.contractions()
    if len(contracted) == 2:
        return (
            "attention" if any(s.reduce and not pipeline.is_contraction(s) for s in pipeline.stages) else "contraction"
        )
    return "contraction" if contracted else "row reduction"
