"""Schedule families, tried in order: the first that accepts a kernel computes it, the fallback is last.

row pipelines   contraction, attention, row reduction   (`rows`)
transforms      pointwise kernels that choose by axes   (`unrolled`)
nests           window, pointwise, fallback             (`nest`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from smartmem.errors import CompilerError
from smartmem.kernel.stage import Kernel
from smartmem.layout.storage import Storage
from smartmem.schedule import nest, rows, unrolled
from smartmem.schedule.backend import Backend
from smartmem.schedule.code import KernelCode, Target
from smartmem.schedule.loops import build, choose_lane, reduces_across
from smartmem.schedule.operand_b import b_tensors
from smartmem.schedule.pipeline import softmax_of
from smartmem.schedule.roles import is_contraction
from smartmem.schedule.tasks import column_tasks

LOCAL_FLOATS = 8192  # widest local tensor that a pipeline may hold per row


def schedule(
    kernel: Kernel, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, np.ndarray[Any, Any]]
) -> KernelCode:
    """C code of a kernel."""
    if kernel.rows is None:
        as_rows = _row_reduction(kernel, storages, target)
        if as_rows is None:
            if not nest.accepts(kernel):
                raise CompilerError(f"no schedule accepts kernel {kernel.tensor}; please report this")
            return unrolled.schedule(kernel, storages, target) or nest.schedule(kernel, storages, target, constants)
        kernel = as_rows
    reason = rows.accepts(kernel)
    if reason:
        raise CompilerError(f"no schedule accepts kernel {kernel.tensor}: {reason}; please report this")
    return rows.schedule(kernel, storages, target, constants)


def _row_reduction(kernel: Kernel, storages: Mapping[str, Storage], target: Target) -> Kernel | None:
    """A reduction along contiguous memory as a row pipeline: no space axis would serve as lane as well."""
    if not any(stage.reduce for stage in kernel.stages) or not nest.accepts(kernel):
        return None
    loops = build(kernel, storages)
    lane = choose_lane(loops, kernel, target.lanes)
    if lane is not None and not (target.tuned and reduces_across(loops, lane)):
        return None
    candidate = Kernel(kernel.stages, kernel.tensor, kernel.shape, kernel.store, len(kernel.output.shape), kernel.notes)
    return candidate if rows.accepts(candidate) == "" else None


def schedulable(kernel: Kernel, constants: set[str]) -> str:
    """ "" if some schedule of the CPU computes the kernel well, else the reason."""
    if kernel.rows is None:
        return "" if nest.accepts(kernel) else "the stages have different axes"
    reason = rows.accepts(kernel)
    if reason:
        return reason
    if undivided := column_tasks(kernel, constants):
        return undivided
    contracted = [s for s in kernel.stages if is_contraction(s, kernel.rows)]
    if len(contracted) == 2:
        first, second = contracted
        if not set(b_tensors(second)) - constants:
            return "two matrix products with constant weights: the second would lose its column tasks"
        widest = math.prod(first.shape[kernel.rows :])
        if widest > LOCAL_FLOATS and softmax_of(kernel.stages, kernel.rows) is None:
            return f"a row of {widest} floats between two contractions does not stay in cache"
    return ""


CPU = Backend(schedulable)
