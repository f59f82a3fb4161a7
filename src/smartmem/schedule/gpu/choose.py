"""Which device schedule computes a kernel, and which kernels fusion may make for a device.

transforms      pointwise kernels that choose by axes   (`unrolled`)
row pipelines   contraction, attention, row reduction   (`contraction`, `attention`, `rows`)
nests           pointwise, window, reduction, fallback  (`nest`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from smartmem.codegen.c_expr import Lane
from smartmem.errors import CompilerError
from smartmem.index.substitute import substitute
from smartmem.kernel.stage import Kernel, tensors_read
from smartmem.layout.memory import LANES
from smartmem.schedule import nest as cpu_nest
from smartmem.schedule import rows as cpu_rows
from smartmem.schedule.backend import Backend, Product
from smartmem.schedule.flatten import M, N, flat_space
from smartmem.schedule.gpu import attention, contraction, loops, matrix_tile, nest, rows, statistics, tile, unrolled
from smartmem.schedule.gpu.code import DeviceCode, DeviceTarget, Storages
from smartmem.schedule.operand_b import b_tensors
from smartmem.schedule.pipeline import batch_axes, batch_first
from smartmem.schedule.roles import is_contraction, weighted_extents

Array = np.ndarray[Any, Any]

MANY_UNITS = 32  # compute units from which on a launch costs more than reducing a few rows again in every tile


def schedulable(kernel: Kernel, constants: set[str], target: DeviceTarget) -> str:
    """ "" if a device schedule computes the kernel well, else the reason."""
    if kernel.rows is None:
        return "" if cpu_nest.accepts(kernel) else "the stages have different axes"
    reason = cpu_rows.accepts(kernel)
    if reason:
        return reason
    contracted = [s for s in kernel.stages if is_contraction(s, kernel.rows)]
    if not contracted:
        return ""
    last = kernel.stages.index(contracted[-1])
    constant = not set(b_tensors(contracted[-1])) - constants
    if len(contracted) == 1 and not any(s.reduce for s in kernel.stages[:last]):
        after = kernel.stages[last + 1 :]
        if any(s.reduce or s.shape != contracted[0].shape for s in after):
            return "a tile of the product does not hold whole rows"
        if any(load.index != s.space() for s in after for load in s.loads() if load.tensor in kernel.local()):
            return "a stage reads other columns of the product"
        return ""
    if constant:
        if not target.tuned or len(contracted) == 2:
            return "every column tile of the product would compute its rows again"
        after = kernel.stages[last + 1 :]
        if any(s.reduce or s.shape != contracted[0].shape for s in after):
            return "a tile of the product does not hold whole rows"
        inside = {s.name for s in kernel.stages[:last]}
        if any(inside & set(tensors_read(s.body)) for s in after):
            return "a stage behind the product reads what is before it"
        if target.device.compute_units < MANY_UNITS or target.device.graphs:
            return "every column tile of the product would reduce its rows again, which costs more than a launch"
        return statistics.refusal(kernel.stages[:last], kernel.rows)
    parts = attention.take_apart(kernel)
    if isinstance(parts, str):
        return parts
    width = math.prod(parts.scores[-1].shape[kernel.rows :]) if parts.scores else 0
    if not attention.block_rows(width, 4, target.device):
        return f"rows of {width} scores do not fit into {target.device.local_memory} bytes of local memory"
    return ""


def tiles_across(kernel: Kernel, constants: set[str], target: DeviceTarget) -> int:
    """How many tiles read the same rows of a product's operand A from memory; 1 if it may be computed on the way.

    On matrix units what lies in memory is copied ahead. What is computed is not, and each tile of columns computes it
    again: where a launch costs little, a kernel of its own for it costs less.
    """
    if kernel.rows is None or not (target.tuned and target.device.graphs):
        return 1
    contracted = [s for s in kernel.stages if is_contraction(s, kernel.rows)]
    extents = weighted_extents(contracted[0], constants) if len(contracted) == 1 else None
    if extents is None or not matrix_tile.accepts(*extents[1:], target.device):
        return 1
    form = matrix_tile.form_of(target.half, ())
    return -(-extents[2] // matrix_tile.choose_tile(*extents, form, target.device).columns)


def backend_of(target: DeviceTarget) -> Backend:
    """The device as the passes see it."""
    device = target.device

    def predict(product: Product) -> float:
        batch, m, n, k = product.batch, product.m, product.n, product.k
        if target.tuned and matrix_tile.accepts(m, n, k, device):
            form = matrix_tile.form_of(target.half, ())
            operands = matrix_tile.Operands(gathered=product.windows)
            best = matrix_tile.choose_tile(batch, m, n, k, form, device, operands)
            return matrix_tile.predicted(best, batch, m, n, k, device, operands)
        return tile.predicted(tile.choose_tile(batch, m, n, k, device), batch, m, n, k, device)

    def moves(count: int) -> float:
        return matrix_tile.FOLLOWS + count / (matrix_tile.MOVED * device.compute_units)

    gpu = device.kind == "gpu"
    return Backend(
        lambda kernel, constants: schedulable(kernel, constants, target),
        operators_first=True,
        doubles=device.fp64,
        predict=predict if gpu else None,
        second=matrix_tile.FOLLOWS if device.graphs else matrix_tile.LAUNCHED,
        moves=moves if gpu and target.tuned and device.matrix_units and device.graphs and not target.half else None,
        units=device.compute_units if gpu else 0,
        tiles=lambda kernel, constants: tiles_across(kernel, constants, target),
    )


def schedule(kernel: Kernel, storages: Storages, target: DeviceTarget, constants: Mapping[str, Array]) -> DeviceCode:
    """OpenCL C of a kernel."""
    if kernel.rows is None:
        if not cpu_nest.accepts(kernel):
            raise CompilerError(f"no schedule accepts kernel {kernel.tensor}; please report this")
        chosen = unrolled.schedule(kernel, storages, target) if target.tuned else None
        return chosen or nest.schedule(kernel, storages, target, constants)
    contracted = [s for s in kernel.stages if is_contraction(s, kernel.rows)]
    if not contracted:
        return rows.schedule(kernel, storages, target)
    last = kernel.stages.index(contracted[-1])
    constant = not set(b_tensors(contracted[-1])) - set(constants)
    if len(contracted) == 2 or (not constant and any(s.reduce for s in kernel.stages[:last])):
        return attention.schedule(kernel, storages, target)
    return contraction.schedule(kernel, storages, target, constants)


def stores_texels(kernel: Kernel, storages: Storages) -> bool:
    """Whether the kernel can store its output and the copies of it, some in textures, in whole texels."""
    if kernel.rows is None:
        return loops.choose_lane(loops.build(kernel, storages), kernel) is not None
    rows_, columns = kernel.rows, math.prod(kernel.output.shape[kernel.rows :])
    contracted = [s for s in kernel.stages if is_contraction(s, rows_)]
    if contracted:
        kernel = batch_first(kernel, rows_)
        batch = len(batch_axes(kernel, rows_))
    else:
        batch = 0
    shape = kernel.output.shape
    extents = (math.prod(shape[:batch]), math.prod(shape[batch:rows_]), columns)
    space = flat_space(shape, batch, rows_)
    coords = tuple(substitute(c, space, shape) for c in kernel.store_coords())
    places = [storages[name].access(coords) for name in kernel.written]
    for axis in (N, M) if contracted else (N,):
        lane = Lane(axis, extents[axis], LANES)
        if lane.extent % LANES == 0 and loops.ease_of_stores(places, lane) is not None:
            return True
    return False
