"""Constants of a nest, stored in the order in which its loops read them.

In: a nest with its lane, and the contents of constants. Out: the nest with loads of packed copies, and the copies. A
depthwise convolution's weights (channel, row, column) with channels as lane become (row, column, channel)::

    w[9*c + 3*i + j]   ->   w.lanes[C*(3*i + j) + c]

so that a vector of weights is one load instead of one for each lane. Only loads that step over elements, or jump, are
rewritten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from smartmem.codegen.c_expr import Lane, step_along
from smartmem.index.lin import Digit, Lin, axes_of, lin
from smartmem.index.map import evaluate
from smartmem.kernel.expr import Expr, Iota, Load, load, rebuild
from smartmem.schedule.gpu import loops as device_loops
from smartmem.schedule.loops import Nest

Array = np.ndarray[Any, Any]
AnyNest = TypeVar("AnyNest", Nest, device_loops.Nest)
SMALL = 4096  # elements that a copy may have even where that is more than the constant has


def lane_weights(
    nest: AnyNest, lane: Lane, constants: Mapping[str, Array], kernel: str
) -> tuple[AnyNest, dict[str, Array]]:
    """The nest that reads packed copies of constants, and these by name (unique for the kernel that is so called)."""
    packed: dict[str, Array] = {}
    replaced: dict[tuple[str, Lin], Expr] = {}

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Iota) or node.tensor not in constants or not node.index:
            return node
        key = (node.tensor, node.index[0])
        if key not in replaced:
            replaced[key] = _packed(node, nest, lane, constants[node.tensor], f"{kernel}.lanes{len(packed)}", packed)
        return replaced[key]

    bodies = [rebuild(body, leaf) for body in nest.bodies]
    return replace(nest, bodies=bodies), packed


def _packed(
    node: Load, nest: Nest | device_loops.Nest, lane: Lane, data: Array, name: str, packed: dict[str, Array]
) -> Expr:
    """The load of a copy in loop order, which is added to `packed`; the load itself where a copy would not help."""
    address = node.index[0]
    loops = set(axes_of(address))
    step = step_along(address, lane)
    regular = all(isinstance(digit.axis, int) for _, digit in address.terms)
    size = math.prod(nest.extents[axis] for axis in loops)
    if step in (0, 1) or not regular or lane.axis not in loops or size > max(data.size, SMALL):
        return node
    # Reduce loops are innermost in the nest, but the lane runs inside of them: its elements lie side by side.
    order = sorted(loops, key=lambda axis: (axis == lane.axis, axis < nest.space, axis))
    shape = tuple(nest.extents[axis] for axis in order)
    grid = np.indices(shape, sparse=True)
    coordinate = [grid[order.index(axis)] if axis in loops else 0 for axis in range(len(nest.extents))]
    at = np.broadcast_to(evaluate(address, coordinate), shape)
    packed[name] = np.ascontiguousarray(data.reshape(-1)[np.clip(at, 0, data.size - 1)])  # guards may exclude some
    place, stride = Lin(), 1
    for axis in reversed(order):
        place, stride = place + lin(0, ((stride, Digit(axis, 1, nest.extents[axis])),)), stride * nest.extents[axis]
    return load(name, (place,), node.dtype)
