"""3x3 convolutions with a quarter of the multiplications: Winograd's F(4x4, 3x3), as a rewriting of definitions.

In: stages, after elimination. A stage ``y[.., h, w, o] = sum over c, r, s of x[.., c, h + r, w + s] * k[o, c, r, s]``
(x perhaps guarded: padding) with constant k becomes three, over tiles of 4x4 outputs that read 6x6 inputs each::

    y.tiles[a, b, .., i, j, c]     = (Bt d B)[a, b]   with d[p, q] = x[.., c, 4*i + p, 4*j + q]     additions
    y.products[a, b, .., i, j, o]  = sum over c of y.tiles[a, b, .., i, j, c] * y.weights[a, b, c, o]
    y[.., h, w, o]                 = (At m A)[h % 4, w % 4]  with m[a, b] = y.products[a, b, .., h // 4, w // 4, o]

and ``y.weights = G k Gt`` a constant. A body that differs by coordinate is a chain of choices by axes a and b (h % 4
and w % 4), which `schedule.unrolled` unrolls. What must hold: every element of x that a tile reads depends on h + r and
w + s alone, which is tested tap by tap. It pays where the products saved outweigh the memory that tiles and products
move; `_pays` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.index.lin import Digit, Lin, axis_digit, lin
from smartmem.index.map import Guard
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import Expr, alu, choose, const, load
from smartmem.kernel.stage import Stage, reindex, tensors_read
from smartmem.passes.module import HostOp, Module
from smartmem.schedule.roles import expr_axes, factors

TILE, TAPS, SIDE = 4, 3, 6  # outputs and taps per axis; inputs per axis: TILE + TAPS - 1
G = np.array(
    [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
)  # fmt: skip
# Arithmetic that cores do while they move a byte: of tiles and products, which caches hold for the most part, and of
# weights, which come from memory. Both measured on a Xeon with AVX-512; only their order of magnitude matters.
TILE_BYTE, WEIGHT_BYTE = 6, 40


@dataclass(frozen=True)
class _Convolution:
    """The roles of a stage's axes (numbers in its domain): h, w and their taps r, s; rest, inputs and outputs."""

    stage: Stage
    x: Expr
    k: Expr
    sides: tuple[tuple[int, int], tuple[int, int]]
    rest: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def extent(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.stage.domain[a] for a in axes)


def winograd(module: Module) -> None:
    """Rewrites the convolutions for which it pays."""
    steps: list[Stage | HostOp] = []
    for step in module.steps:
        found = _convolution(step, module) if isinstance(step, Stage) else None
        if found is None or not _pays(found):
            steps.append(step)
            continue
        weights = _weights(found, module)
        name = f"{found.stage.name}.weights"
        module.constants[name] = weights
        module.types[name] = (weights.shape, weights.dtype)
        original = module.definitions.get(found.stage.name, found.stage)  # with the views that `trace` looks for
        module.definitions |= {s.name: s for s in _stages(_convolution(original, module) or found, name)}
        for stage in _stages(found, name):
            module.types[stage.name] = (stage.shape, stage.dtype)
            steps.append(stage)
    module.steps = steps


def _convolution(stage: Stage, module: Module) -> _Convolution | None:
    """The stage as a 3x3 convolution of stride 1 with constant weights, None if it is something else."""
    pair = factors(stage)
    if pair is None or stage.reduce.count(TAPS) < 2:
        return None
    x, k = pair
    if any(name not in module.constants for name in tensors_read(k)):
        x, k = k, x
    if any(name not in module.constants for name in tensors_read(k)):
        return None
    space, in_x, in_k = len(stage.shape), expr_axes(x), expr_axes(k)
    taps = [a for a in range(space, len(stage.domain)) if stage.domain[a] == TAPS and a in in_x]
    rows = [a for a in range(space) if a in in_x and a not in in_k]
    sides = [(h, r) for r in taps for h in rows if stage.shape[h] % TILE == 0 and _slides(x, stage, h, r)]
    if len(sides) != 2 or sides[0][0] == sides[1][0] or sides[0][1] == sides[1][1]:
        return None
    used = {a for side in sides for a in side}
    rest = tuple(a for a in range(space) if a not in in_k and a not in used)
    inputs = tuple(a for a in range(space, len(stage.domain)) if a not in used)
    outputs = tuple(a for a in range(space) if a in in_k)
    if not inputs or not outputs or in_x & set(outputs) or not set(inputs) <= in_x & in_k:
        return None
    return _Convolution(stage, x, k, (sides[0], sides[1]), rest, inputs, outputs)


def _slides(x: Expr, stage: Stage, h: int, r: int) -> bool:
    """Whether x depends on axes h and r through their sum alone."""
    for p in range(SIDE):
        found: set[Expr] = set()
        for tap in range(TAPS):
            if 0 <= p - tap < TILE:
                axes = [axis_digit(a, n) for a, n in enumerate(stage.domain)]
                axes[h], axes[r] = axis_digit(h, stage.domain[h] // TILE) * TILE + (p - tap), Lin(tap)
                found.add(reindex(x, tuple(axes), stage.domain))
        if len(found) != 1:
            return False
    return True


def _pays(found: _Convolution) -> bool:
    """Whether the multiplications saved take longer than moving tiles, products and the larger weights."""
    pixels = math.prod(found.extent([*found.rest, *(h for h, _ in found.sides)]))
    inputs, outputs = math.prod(found.extent(found.inputs)), math.prod(found.extent(found.outputs))
    grown = SIDE * SIDE / TILE / TILE
    saved = 2 * pixels * inputs * outputs * (TAPS * TAPS - grown)
    moved = 4 * 3 * grown * pixels * (inputs + outputs)  # each value is written (which reads it first) and read
    larger = 4 * (SIDE * SIDE - TAPS * TAPS) * inputs * outputs
    return saved > TILE_BYTE * moved + WEIGHT_BYTE * larger


def _weights(found: _Convolution, module: Module) -> np.ndarray[Any, Any]:
    """G k Gt as [a, b, inputs.., outputs..]."""
    (_, r), (_, s) = found.sides
    order = (*found.inputs, *found.outputs)
    axes: list[Any] = [0] * len(found.stage.domain)
    grid = np.ogrid[tuple(slice(n) for n in (TAPS, TAPS, *found.extent(order)))]
    for axis, values in zip((r, s, *order), grid, strict=True):
        axes[axis] = values
    k = np.broadcast_to(evaluate_expr(found.k, axes, module.constants), (TAPS, TAPS, *found.extent(order)))
    flat = k.reshape(TAPS * TAPS, -1)
    weights: np.ndarray[Any, Any] = (np.kron(G, G) @ flat).astype(np.float32)
    return weights.reshape(SIDE, SIDE, *found.extent(order))


def _stages(found: _Convolution, weights: str) -> list[Stage]:
    stage = found.stage
    (h, _), (w, _) = found.sides
    high, wide = stage.domain[h] // TILE, stage.domain[w] // TILE
    lead = (SIDE, SIDE, *found.extent(found.rest), high, wide)
    first = 2 + len(found.rest)  # axis of the tile's row in lead
    ins, outs = found.extent(found.inputs), found.extent(found.outputs)

    axes: list[Lin] = [Lin()] * len(stage.domain)
    for position, axis in enumerate(found.rest):
        axes[axis] = axis_digit(2 + position, stage.domain[axis])
    for position, axis in enumerate(found.inputs):
        axes[axis] = axis_digit(len(lead) + position, stage.domain[axis])

    def read(p: int, q: int) -> Expr:
        here = list(axes)
        here[h], here[w] = axis_digit(first, high) * TILE + p, axis_digit(first + 1, wide) * TILE + q
        return reindex(found.x, tuple(here), stage.domain)

    tile = _both_sides([[read(p, q) for q in range(SIDE)] for p in range(SIDE)], _input_side)
    body = _chosen(tile, axis_digit(0, SIDE), axis_digit(1, SIDE))
    tiles = replace(stage, name=f"{stage.name}.tiles", shape=(*lead, *ins), body=body, reduce=(), combine="")

    shape = (*lead, *outs)
    digits = [axis_digit(a, n) for a, n in enumerate((*shape, *ins))]
    rows, columns, depth = digits[: len(lead)], digits[len(lead) : len(shape)], digits[len(shape) :]
    body = alu("mul", load(tiles.name, (*rows, *depth)), load(weights, (*rows[:2], *depth, *columns)))
    products = replace(stage, name=f"{stage.name}.products", shape=shape, body=body, reduce=ins)

    def product(a: int, b: int) -> Expr:
        index = [Lin(a), Lin(b), *(axis_digit(k, stage.shape[k]) for k in found.rest)]
        index += [lin(0, ((1, Digit(k, TILE, n)),)) for k, n in ((h, high), (w, wide))]
        index += [axis_digit(k, stage.shape[k]) for k in found.outputs]
        return load(products.name, tuple(index))

    sums = _both_sides([[product(a, b) for b in range(SIDE)] for a in range(SIDE)], _output_side)
    body = _chosen(sums, lin(0, ((1, Digit(h, 1, TILE)),)), lin(0, ((1, Digit(w, 1, TILE)),)))
    return [tiles, products, replace(stage, body=body, reduce=(), combine="")]


Vector = list[Expr]


def _both_sides(matrix: list[Vector], side: Callable[[Vector], Vector]) -> list[Vector]:
    """T m Tt for the product T with a column that `side` computes."""
    columns = [side([row[q] for row in matrix]) for q in range(len(matrix[0]))]
    return [side([column[a] for column in columns]) for a in range(len(columns[0]))]


def _input_side(d: Vector) -> Vector:
    """Bt d, with what rows share computed once."""
    even, odd = _plus(d[4], -4, d[2]), _plus(d[3], -4, d[1])
    near, far = _plus(d[4], -1, d[2]), _times(2, _plus(d[3], -1, d[1]))
    return [
        _plus(_plus(d[4], -5, d[2]), 4, d[0]), _plus(even, 1, odd), _plus(even, -1, odd), _plus(near, 1, far),
        _plus(near, -1, far), _plus(_plus(d[5], -5, d[3]), 4, d[1]),
    ]  # fmt: skip


def _output_side(m: Vector) -> Vector:
    """At m."""
    near, far = _plus(m[1], 1, m[2]), _plus(m[3], 1, m[4])
    inner, outer = _plus(m[1], -1, m[2]), _plus(m[3], -1, m[4])
    return [
        _plus(_plus(m[0], 1, near), 1, far), _plus(inner, 2, outer), _plus(near, 4, far),
        _plus(_plus(m[5], 1, inner), 8, outer),
    ]  # fmt: skip


def _times(factor: int, x: Expr) -> Expr:
    return alu("mul", x, const(factor))


def _plus(x: Expr, factor: int, y: Expr) -> Expr:
    """x + factor * y."""
    if abs(factor) == 1:
        return alu("add" if factor == 1 else "sub", x, y)
    return alu("add", x, _times(factor, y))


def _chosen(matrix: list[Vector], row: Lin, column: Lin) -> Expr:
    """The element of `matrix` at (row, column)."""
    return _choice([_choice(values, column) for values in matrix], row)


def _choice(values: Vector, position: Lin) -> Expr:
    result = values[-1]
    for number in reversed(range(len(values) - 1)):
        result = choose((Guard(position - number, 1),), values[number], result)
    return result
