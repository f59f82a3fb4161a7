"""A contraction on a device, flattened: b (batch), m (row), n (column) and one reduce axis k.

The order of k follows operand A's memory, innermost last, so that work-items read runs of it. For a 3x3 convolution
over a channels-last tensor k counts channels inside of taps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.index.lin import Lin, Mark, axis_digit, renumber
from smartmem.index.refine import refine
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import Alu, Choose, Expr, loads, walk
from smartmem.kernel.stage import Stage, reindex, tensors_read
from smartmem.schedule.flatten import B, Flat, K, M, N, digits, flatten
from smartmem.schedule.gpu.code import Storages, placed
from smartmem.schedule.operand_b import strided_constant
from smartmem.schedule.roles import expr_axes

Array = np.ndarray[Any, Any]
PANEL = 4  # columns of a packed operand B are padded to this


@dataclass(frozen=True)
class Product:
    """out[b, m, n] = sum over k of a[b, m, k] * b[b, k, n].

    Attributes:
        flat: the stage over (b, m, n, reduce axes).
        extents: of b, m, n, k.
        a, b: operands over (b, m, n, k); loads carry coordinates (`placed_a`, `placed_b` give places).
        segments: extents of the reduce axes that k counts, outermost first.
        split_b: operand B over (b, m, n, segments...), for packing.
    """

    flat: Flat
    extents: tuple[int, ...]
    a: Expr
    b: Expr
    segments: tuple[int, ...]
    split_b: Expr

    def placed(self, operand: Expr, storages: Storages, local: set[str]) -> Expr:
        return placed(operand, storages, local)


def flatten_product(stage: Stage, batch: int, rows: int, storages: Storages, local: set[str]) -> Product:
    """A contraction stage over flat axes."""
    flat = flatten(stage, batch, rows, True)
    assert isinstance(flat.body, Alu)
    a, b = flat.body.args
    reduce = flat.extents[K:]
    asks: list[Lin] = []
    for access in (*loads(a), *loads(b)):
        if access.tensor in local:
            asks += [_reduce_only(i) for i in access.index]
        else:
            asks.append(_reduce_only(storages[access.tensor].at(access.index)))
    for node in walk(flat.body):
        if isinstance(node, Choose):
            asks += [_reduce_only(g.lin) for g in node.guards]
    refined = refine((1, 1, 1, *reduce), asks)
    sub = [n for n, o in zip(refined.extents, refined.origin, strict=True) if o >= K]
    axes = tuple(renumber(x, {k: K + k for k in range(len(sub))}) for x in refined.axes[K:])
    lead = tuple(axis_digit(x, flat.extents[x]) for x in (B, M, N))
    strides = _strides(a, (*lead, *axes), flat.extents, storages, local)
    order = sorted(range(len(sub)), key=lambda k: (-abs(strides.get(K + k, 0)), k))
    place = {K + k: K + position for position, k in enumerate(order)}
    axes = tuple(renumber(x, place) for x in axes)
    segments = tuple(sub[k] for k in order)
    split = reindex(b, (*lead, *axes), flat.extents)
    over_k = (*lead, *digits(K, segments))
    inner = (*flat.extents[:K], *segments)
    depth = math.prod(segments)
    return Product(
        flat, (*flat.extents[:K], depth),
        reindex(reindex(a, (*lead, *axes), flat.extents), over_k, inner), reindex(split, over_k, inner),
        segments, split,
    )  # fmt: skip


def _reduce_only(value: Lin) -> Lin:
    return Lin(0, tuple((s, d) for s, d in value.terms if isinstance(d.axis, int) and d.axis >= K))


def _strides(
    a: Expr, axes: tuple[Lin, ...], extents: tuple[int, ...], storages: Storages, local: set[str]
) -> dict[int, float]:
    """How far operand A moves in memory along each reduce axis (its largest load decides)."""
    best: dict[int, float] = {}
    for access in loads(reindex(a, axes, extents)):
        if access.tensor in local:
            address = Lin()
            for value in access.index:
                address = address * 4096 + value
        else:
            address = storages[access.tensor].at(access.index)
        found = _steps(address, {})
        if len(found) > len(best):
            best = found
    return best


def _steps(address: Lin, found: dict[int, float], scale: float = 1.0) -> dict[int, float]:
    """What an address moves by along each reduce axis, inside of divisions too (upsampling: ``(h + kh) // 2``)."""
    for stride, digit in address.terms:
        step = scale * stride / digit.lo
        if isinstance(digit.axis, Mark):
            _steps(digit.axis.lin, found, step)
        elif isinstance(digit.axis, int) and digit.axis >= K:
            found.setdefault(digit.axis, step)
    return found


def to_half(values: Array) -> Array:
    """Halves; finite values beyond their range (the masks of attention) become the largest of them."""
    with np.errstate(over="ignore"):
        halves = np.asarray(values).astype(np.float16)
    beyond = np.isinf(halves) & np.isfinite(values)
    return np.where(beyond, np.copysign(np.float16(65504), halves), halves) if beyond.any() else halves


def is_constant(product: Product, constants: Mapping[str, Array]) -> bool:
    """Whether operand B is known at compile time."""
    return all(name in constants for name in tensors_read(product.b))


def pack(product: Product, constants: Mapping[str, Array]) -> Array:
    """A constant operand B as [batch][k][columns], columns zero-padded to `PANEL`."""
    b = product.split_b
    batches = product.extents[B] if B in expr_axes(b) else 1
    extents = (batches, *product.segments, product.extents[N])
    values = strided_constant(b, extents, constants)
    if values is None:
        grid = np.ogrid[tuple(slice(n) for n in extents)]
        axes: list[Any] = [grid[0], 0, grid[-1], *grid[1:-1]]
        values = np.broadcast_to(evaluate_expr(b, axes, constants), extents)
    matrix = np.asarray(values, np.float32).reshape(batches, product.extents[K], product.extents[N])
    width = -(-product.extents[N] // PANEL) * PANEL
    result = np.zeros((batches, product.extents[K], width), np.float32)
    result[:, :, : product.extents[N]] = matrix
    return result
