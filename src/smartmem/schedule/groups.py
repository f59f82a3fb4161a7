"""Groups side by side: a contraction with few columns per batch entry, several entries in the lanes of one vector.

A convolution with 32 groups of 4 channels has 4 columns per batch entry, which fill a quarter of a vector. Where the
entries' columns and their part of A lie beside each other in memory, the batch axis is cut, and its lower digit joins
the columns::

    y[g, m, o] = sum over k of a[m, 4*g + k] * b[g, k, o]          32 entries of 4 columns
 -> y[h, m, i, o] = ... a[m, 16*h + 4*i + k] * b[4*h + i, k, o]     8 entries of 16 columns, (i, o) in the lanes

A then depends on a column axis, but only so that lane l reads the vector of A at l - l % 4 + k: the vector is loaded
once, and `tile_functions.grouped_tile_function` turns accumulators instead of A.

Where A's parts do not lie so, B becomes a diagonal of blocks, with as many zeros as there were empty lanes::

    y[h, m, i, o] = sum over j and k of a[m, (4*h + j, k)] * (b[4*h + i, k, o] if i == j else 0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.index.lin import Digit, Lin, axes_of, axis_digit
from smartmem.index.map import Guard, IndexMap
from smartmem.kernel.expr import Expr, Iota, Load, alu, choose, const, load, rebuild
from smartmem.kernel.stage import Kernel, reindex, tensors_read
from smartmem.layout.storage import Storage
from smartmem.schedule.code import Target
from smartmem.schedule.flatten import N, flatten
from smartmem.schedule.operand_a import walk_stage
from smartmem.schedule.roles import factors, is_contraction, multiplies_bytes


@dataclass(frozen=True)
class Groups:
    """A kernel whose contraction has groups of `size` columns side by side."""

    kernel: Kernel
    size: int


def side_by_side(
    kernel: Kernel, batch: int, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, Any]
) -> Groups | None:
    """The kernel with batch entries side by side, None if its columns fill vectors or its memory forbids it."""
    rows = kernel.rows
    assert rows is not None
    count, size = _entries_of_a_vector(kernel, batch, target, constants), math.prod(kernel.stages[0].shape[rows:])
    if count < 2 or count * size != target.lanes:  # the tile loads whole vectors of A
        return None
    moved = _joined(kernel, rows, count)
    flat = flatten(moved.stages[0], 1, rows, contraction=True)
    walk = walk_stage(flat, storages, {}, rows)
    if walk is None or walk.run != size:
        return None
    for branch in walk.branches:
        along = [(s, d) for s, d in branch.address.terms if N in axes_of(Lin(0, ((1, d),)))]
        if along != [(size, Digit(N, size, count))] or any(N in axes_of(g.lin) for g in branch.guards):
            return None
    return Groups(moved, size)


def block_diagonal(kernel: Kernel, batch: int, target: Target, constants: Mapping[str, Any]) -> Kernel | None:
    """The kernel with columns of several batch entries in a vector, B with blocks of zeros; None if they fill one."""
    rows, first = kernel.rows, kernel.stages[0]
    assert rows is not None
    count = _entries_of_a_vector(kernel, batch, target, constants)
    if count < 2:
        return None
    moved = _joined(kernel, rows, count)
    joined = moved.stages[0]
    space = len(joined.shape)
    own, other = axis_digit(rows, count), axis_digit(space, count)
    inner = [axis_digit(k if k < rows else k + 1, n) for k, n in enumerate(first.shape)]
    inner += [axis_digit(space + 1 + k, n) for k, n in enumerate(first.reduce)]
    pair = factors(first)
    assert pair is not None
    a, b = (
        reindex(operand, (axis_digit(0, joined.shape[0]) * count + entry, *inner[1:]), first.domain)
        for operand, entry in zip(pair, (other, own), strict=True)
    )
    body = alu("mul", a, choose((Guard(own - other, 1),), b, const(0.0)))
    stage = replace(joined, body=body, reduce=(count, *first.reduce))
    return replace(moved, stages=[stage, *moved.stages[1:]])


def _entries_of_a_vector(kernel: Kernel, batch: int, target: Target, constants: Mapping[str, Any]) -> int:
    """How many batch entries' columns fit into a vector: of a contraction with constant B and its epilogue, else 1."""
    rows, stage = kernel.rows, kernel.stages[0]
    assert rows is not None
    pair = factors(stage)
    if batch != 1 or pair is None or not is_contraction(stage, rows) or not _is_epilogue(kernel):
        return 1
    if multiplies_bytes(stage):
        return 1
    if any(name not in constants for name in tensors_read(pair[1])):
        return 1
    most = target.lanes // max(1, math.prod(stage.shape[rows:]))
    return max((n for n in range(1, most + 1) if stage.shape[0] % n == 0), default=1)


def _is_epilogue(kernel: Kernel) -> bool:
    """Whether all stages after the first are pointwise at its coordinates."""
    first, local = kernel.stages[0], kernel.local()
    return all(
        not s.reduce and s.shape == first.shape and all(x.index == s.space() for x in s.loads() if x.tensor in local)
        for s in kernel.stages[1:]
    )


def _joined(kernel: Kernel, rows: int, count: int) -> Kernel:
    """The kernel with its batch axis cut into (entry // count, entry % count), the lower digit as first column axis."""
    local, result = kernel.local(), []
    axes: tuple[Lin, ...] = ()
    for stage in kernel.stages:
        shape = (stage.shape[0] // count, *stage.shape[1:rows], count, *stage.shape[rows:])
        domain = (*shape, *stage.reduce)
        axes = tuple(axis_digit(k if k < rows else k + 1, n) for k, n in enumerate(stage.domain))
        axes = (axis_digit(0, domain[0]) * count + axis_digit(rows, count), *axes[1:])
        body = _at_own_place(reindex(stage.body, axes, stage.domain), local, shape)
        result.append(replace(stage, shape=shape, body=body))
    old = kernel.store or IndexMap.identity(kernel.output.shape)
    store = IndexMap(result[-1].shape, axes[: len(kernel.output.shape)]).then(old)
    return Kernel(result, kernel.tensor, kernel.shape, store, rows, kernel.notes)


def _at_own_place(body: Expr, local: set[str], shape: tuple[int, ...]) -> Expr:
    """Loads of local tensors at the new coordinates."""
    space = tuple(axis_digit(k, n) for k, n in enumerate(shape))

    def leaf(node: Load | Iota) -> Expr:
        return load(node.tensor, space, node.dtype) if isinstance(node, Load) and node.tensor in local else node

    return rebuild(body, leaf)


def turned(panels: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Panels [..., k, lanes] for the grouped tile: row j of a segment has, in lane i, input i's part of output i + j.

    In the panels given, row k of a segment has in lane o the part of input k of the group that lane o belongs to.
    """
    lanes = panels.shape[-1]
    lane, step = np.arange(lanes), np.arange(size)[:, None]
    column = lane - lane % size + (lane + step) % size
    segments = panels.reshape(*panels.shape[:-2], -1, size, lanes)
    return np.ascontiguousarray(segments[..., lane % size, column]).reshape(panels.shape)
