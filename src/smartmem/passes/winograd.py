"""3x3 convolutions with fewer multiplications: Winograd's F(4x4, 3x3) and F(2x2, 3x3), as a rewriting of definitions.

In: stages, after elimination. A stage ``y[.., h, w, o] = sum over c, r, s of x[.., c, h + r, w + s] * k[o, c, r, s]``
(x perhaps guarded: padding) with constant k becomes three, over tiles of 4x4 outputs that read 6x6 inputs each::

    y.tiles[a, b, .., i, j, c]     = (Bt d B)[a, b]   with d[p, q] = x[.., c, 4*i + p, 4*j + q]     additions
    y.products[a, b, .., i, j, o]  = sum over c of y.tiles[a, b, .., i, j, c] * y.weights[a, b, c, o]
    y[.., h, w, o]                 = (At m A)[h % 4, w % 4]  with m[a, b] = y.products[a, b, .., h // 4, w // 4, o]

and ``y.weights = G k Gt`` a constant: 36 products per 16 outputs instead of 144. Tiles of 2x2 outputs take 16 per 4.
Where sides are no multiples of a tile's, the last tiles reach beyond them: they read zeros there, and what they compute
of outputs that do not exist is not stored. Of both forms the one that saves more is taken.

A body that differs by coordinate is a chain of choices by axes a and b (h % 4 and w % 4), which `schedule.unrolled`
unrolls. What must hold: every element of x that a tile reads depends on h + r and w + s alone, which is tested tap by
tap.

Groups (x depends on o // n) are an axis g of the tiles in front of c, and a and b then follow i and j::

    y.tiles[.., i, j, a, b, g, c],  y.products[.., i, j, a, b, o] = sum over c of y.tiles[.., a, b, o // n, c] * ...

so that from one (a, b, g) to the next operand A moves by as many floats as a group has inputs, and all use the same row
pointers (`Pipeline.shared_step`).

It pays where the products saved outweigh the memory that tiles and products move: `_saves` compares the two for a CPU,
`_saves_on` for another backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.index.lin import Digit, Lin, axis_digit, lin
from smartmem.index.map import Guard
from smartmem.index.refine import digits_of
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import Expr, alu, choose, const, index_values, load, one_of
from smartmem.kernel.stage import Stage, reindex, tensors_read
from smartmem.passes.module import HostOp, Module
from smartmem.passes.split_products import product_time
from smartmem.schedule.backend import Backend, Product
from smartmem.schedule.roles import expr_axes, factors, multiplies_bytes

TAPS = 3  # per axis
# Arithmetic that a core does while it moves a byte: of tiles and products, which caches hold for the most part, and of
# weights, which come from memory. From times of layers with and without, and from the bandwidth of memory, of a Xeon
# with AVX-512; only their order of magnitude matters.
TILE_BYTE, WEIGHT_BYTE = 3, 12
MARGIN = 0.85  # another backend's prediction must be at most this share of that of the convolution


Vector = list[Expr]


@dataclass(frozen=True)
class Form:
    """F(tile x tile, 3x3).

    Attributes:
        tile: outputs per axis.
        weights: G, [inputs of a tile, taps].
        input_side, output_side: the products Bt d and At m.
    """

    tile: int
    weights: np.ndarray[Any, Any]
    input_side: Callable[[Vector], Vector]
    output_side: Callable[[Vector], Vector]

    @property
    def side(self) -> int:
        """Inputs of a tile per axis."""
        return self.tile + TAPS - 1


@dataclass(frozen=True)
class _Convolution:
    """The roles of a stage's axes (numbers in its domain): h, w and their taps r, s; rest, inputs and outputs.

    A grouped convolution has its groups in an axis of the outputs: `groups` is that axis and a group's length on it.
    """

    stage: Stage
    form: Form
    x: Expr
    k: Expr
    sides: tuple[tuple[int, int], tuple[int, int]]
    rest: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: tuple[int, int] | None

    def extent(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.stage.domain[a] for a in axes)

    @property
    def count(self) -> int:
        """How many groups there are."""
        return 1 if self.groups is None else self.stage.domain[self.groups[0]] // self.groups[1]


def winograd(module: Module, backend: Backend | None = None) -> None:
    """Rewrites the convolutions for which it pays, on the CPU or another backend."""
    steps: list[Stage | HostOp] = []
    for step in module.steps:
        found = _best(step, module, backend) if isinstance(step, Stage) else None
        if found is None:
            steps.append(step)
            continue
        weights = _weights(found, module)
        name = f"{found.stage.name}.weights"
        module.constants[name] = weights
        module.types[name] = (weights.shape, weights.dtype)
        original = module.definitions.get(found.stage.name, found.stage)  # with the views that `trace` looks for
        module.definitions |= {s.name: s for s in _stages(_convolution(original, found.form, module) or found, name)}
        for stage in _stages(found, name):
            module.types[stage.name] = (stage.shape, stage.dtype)
            steps.append(stage)
    module.steps = steps


def _best(stage: Stage, module: Module, backend: Backend | None) -> _Convolution | None:
    """The stage in the form that saves most, None if it is no convolution or none pays."""
    found = [c for c in (_convolution(stage, form, module) for form in FORMS) if c is not None]
    saved = [_saves(c) if backend is None else _saves_on(backend, c) for c in found]
    best = max(range(len(found)), key=saved.__getitem__, default=None)
    return None if best is None or saved[best] <= 0 else found[best]


def _convolution(stage: Stage, form: Form, module: Module) -> _Convolution | None:
    """The stage as a 3x3 convolution of stride 1 with constant weights, None if it is something else."""
    pair = factors(stage)
    if pair is None or multiplies_bytes(stage) or stage.reduce.count(TAPS) < 2:
        return None
    x, k = pair
    if any(name not in module.constants for name in tensors_read(k)):
        x, k = k, x
    if any(name not in module.constants for name in tensors_read(k)):
        return None
    space, in_x, in_k = len(stage.shape), expr_axes(x), expr_axes(k)
    taps = [a for a in range(space, len(stage.domain)) if stage.domain[a] == TAPS and a in in_x]
    rows = [a for a in range(space) if a in in_x and a not in in_k]
    sides = [(h, r) for r in taps for h in rows if _slides(x, stage, form, h, r)]
    if len(sides) != 2 or sides[0][0] == sides[1][0] or sides[0][1] == sides[1][1]:
        return None
    used = {a for side in sides for a in side}
    rest = tuple(a for a in range(space) if a not in in_k and a not in used)
    inputs = tuple(a for a in range(space, len(stage.domain)) if a not in used)
    outputs = tuple(a for a in range(space) if a in in_k)
    if not inputs or not outputs or not set(inputs) <= in_x & in_k:
        return None
    groups = None
    if shared := in_x & set(outputs):
        groups = _groups(x, stage, min(shared))
        if len(shared) > 1 or groups is None:
            return None
    return _Convolution(stage, form, x, k, (sides[0], sides[1]), rest, inputs, outputs, groups)


def _groups(x: Expr, stage: Stage, axis: int) -> tuple[int, int] | None:
    """The outputs' axis and its part per group, if x depends on it through the number of the group alone."""
    found = {d for value in index_values(x) for d in digits_of(value) if d.axis == axis}
    if len(found) != 1 or (digit := found.pop()).lo * digit.ext != stage.shape[axis]:
        return None
    return axis, digit.lo


def _slides(x: Expr, stage: Stage, form: Form, h: int, r: int) -> bool:
    """Whether x depends on axes h and r through their sum alone."""
    tile = form.tile
    for p in range(form.side):
        found: set[Expr] = set()
        for tap in range(TAPS):
            if 0 <= p - tap < tile:
                axes = [axis_digit(a, n) for a, n in enumerate(stage.domain)]
                axes[h], axes[r] = axis_digit(h, _tiles(stage.domain[h], tile)) * tile + (p - tap), Lin(tap)
                found.add(reindex(x, tuple(axes), stage.domain))
        if len(found) != 1:
            return False
    return True


def _tiles(extent: int, tile: int) -> int:
    """How many tiles a side takes."""
    return -(-extent // tile)


@dataclass(frozen=True)
class _Work:
    """Elements of a convolution in Winograd's form: `pixels` of the result, `tiles`, `inputs` and `outputs` of each."""

    pixels: int
    tiles: int
    inputs: int
    outputs: int


def _work(found: _Convolution) -> _Work:
    rest, sides = math.prod(found.extent(found.rest)), found.extent([h for h, _ in found.sides])
    tiles = rest * math.prod(_tiles(n, found.form.tile) for n in sides)
    return _Work(
        rest * math.prod(sides), tiles, math.prod(found.extent(found.inputs)), math.prod(found.extent(found.outputs))
    )


def _saves(found: _Convolution) -> float:
    """Operations of a CPU less those that moving tiles, products and the larger weights takes the time of."""
    work, elements = _work(found), found.form.side**2
    saved = 2 * work.inputs * work.outputs * (TAPS * TAPS * work.pixels - elements * work.tiles)
    moved = 3 * elements * work.tiles * (work.inputs * found.count + work.outputs)  # a write reads it first
    larger = (elements - TAPS * TAPS) * work.inputs * work.outputs
    return saved - 4 * (TILE_BYTE * moved + WEIGHT_BYTE * larger)


def _saves_on(backend: Backend, found: _Convolution) -> float:
    """Predicted time of the convolution less that of the three kernels, and of a margin."""
    predict, moves = backend.predict, backend.moves
    if predict is None or moves is None or found.count > 1:
        return 0.0
    work, elements = _work(found), found.form.side**2
    weights = 4 * work.inputs * work.outputs
    product = Product(1, work.pixels, work.outputs, TAPS * TAPS * work.inputs, windows=True)
    direct = product_time(predict, backend.second, product)
    tiles = moves(4 * work.inputs * (work.pixels + elements * work.tiles))
    moved = elements * (weights + 4 * work.tiles * (work.inputs + work.outputs))
    products = max(predict(Product(elements, work.tiles, work.outputs, work.inputs)), moves(moved))
    results = moves(4 * work.outputs * (work.pixels + elements * work.tiles))
    return MARGIN * max(direct, moves(TAPS * TAPS * weights)) - (tiles + products + results)


def _weights(found: _Convolution, module: Module) -> np.ndarray[Any, Any]:
    """G k Gt as [a, b, inputs.., outputs..]."""
    (_, r), (_, s) = found.sides
    g, side = found.form.weights, found.form.side
    order = (*found.inputs, *found.outputs)
    axes: list[Any] = [0] * len(found.stage.domain)
    grid = np.ogrid[tuple(slice(n) for n in (TAPS, TAPS, *found.extent(order)))]
    for axis, values in zip((r, s, *order), grid, strict=True):
        axes[axis] = values
    k = np.broadcast_to(evaluate_expr(found.k, axes, module.constants), (TAPS, TAPS, *found.extent(order)))
    flat = k.reshape(TAPS * TAPS, -1)
    weights: np.ndarray[Any, Any] = (np.kron(g, g) @ flat).astype(np.float32)
    return weights.reshape(side, side, *found.extent(order))


def _stages(found: _Convolution, weights: str) -> list[Stage]:
    stage, form = found.stage, found.form
    tile, side = form.tile, form.side
    (h, _), (w, _) = found.sides
    high, wide = _tiles(stage.domain[h], tile), _tiles(stage.domain[w], tile)
    count = len(found.rest)
    places = (*found.extent(found.rest), high, wide)
    # where tiles and their elements stand among the axes of `tiles` and `products`
    if found.groups is None:
        lead, a, first = (side, side, *places), 0, 2
    else:
        lead, a, first = (*places, side, side), count + 2, 0
    group = (found.count,) if found.groups is not None else ()
    ins, outs = (*group, *found.extent(found.inputs)), found.extent(found.outputs)

    axes: list[Lin] = [Lin()] * len(stage.domain)
    for position, axis in enumerate(found.rest):
        axes[axis] = axis_digit(first + position, stage.domain[axis])
    for position, axis in enumerate(found.inputs):
        axes[axis] = axis_digit(len(lead) + len(group) + position, stage.domain[axis])
    if found.groups is not None:
        axis, per = found.groups
        axes[axis] = axis_digit(len(lead), found.count) * per

    def read(p: int, q: int) -> Expr:
        here = list(axes)
        here[h], here[w] = axis_digit(first + count, high) * tile + p, axis_digit(first + count + 1, wide) * tile + q
        x = reindex(found.x, tuple(here), stage.domain)
        guards = tuple(Guard(here[axis], stage.domain[axis] + TAPS - 1) for axis in (h, w))
        return choose(guards, x, const(0))

    elements = _both_sides([[read(p, q) for q in range(side)] for p in range(side)], form.input_side)
    body = _chosen(elements, axis_digit(a, side), axis_digit(a + 1, side))
    tiles = replace(stage, name=f"{stage.name}.tiles", shape=(*lead, *ins), body=body, reduce=(), combine="")

    shape, reduce = (*lead, *outs), found.extent(found.inputs)
    digits = [axis_digit(k, n) for k, n in enumerate((*shape, *reduce))]
    rows, columns, depth = digits[: len(lead)], digits[len(lead) : len(shape)], digits[len(shape) :]
    own: list[Lin] = []
    if found.groups is not None:
        axis, per = found.groups
        own = [lin(0, ((1, Digit(len(lead) + found.outputs.index(axis), per, found.count)),))]
    body = alu("mul", load(tiles.name, (*rows, *own, *depth)), load(weights, (*rows[a : a + 2], *depth, *columns)))
    products = replace(stage, name=f"{stage.name}.products", shape=shape, body=body, reduce=reduce)

    def product(p: int, q: int) -> Expr:
        place = [axis_digit(k, stage.shape[k]) for k in found.rest]
        place += [lin(0, ((1, Digit(k, tile, n)),)) for k, n in ((h, high), (w, wide))]
        element = [Lin(p), Lin(q)]
        index = [*element, *place] if a == 0 else [*place, *element]
        index += [axis_digit(k, stage.shape[k]) for k in found.outputs]
        return load(products.name, tuple(index))

    sums = _both_sides([[product(p, q) for q in range(side)] for p in range(side)], form.output_side)
    body = _chosen(sums, lin(0, ((1, Digit(h, 1, tile)),)), lin(0, ((1, Digit(w, 1, tile)),)))
    return [tiles, products, replace(stage, body=body, reduce=(), combine="")]


def _both_sides(matrix: list[Vector], side: Callable[[Vector], Vector]) -> list[Vector]:
    """T m Tt for the product T with a column that `side` computes."""
    columns = [side([row[q] for row in matrix]) for q in range(len(matrix[0]))]
    return [side([column[a] for column in columns]) for a in range(len(columns[0]))]


def _input_side_4(d: Vector) -> Vector:
    """Bt d of F(4x4, 3x3), with what rows share computed once."""
    even, odd = _plus(d[4], -4, d[2]), _plus(d[3], -4, d[1])
    near, far = _plus(d[4], -1, d[2]), _times(2, _plus(d[3], -1, d[1]))
    return [
        _plus(_plus(d[4], -5, d[2]), 4, d[0]), _plus(even, 1, odd), _plus(even, -1, odd), _plus(near, 1, far),
        _plus(near, -1, far), _plus(_plus(d[5], -5, d[3]), 4, d[1]),
    ]  # fmt: skip


def _output_side_4(m: Vector) -> Vector:
    """At m of F(4x4, 3x3)."""
    near, far = _plus(m[1], 1, m[2]), _plus(m[3], 1, m[4])
    inner, outer = _plus(m[1], -1, m[2]), _plus(m[3], -1, m[4])
    return [
        _plus(_plus(m[0], 1, near), 1, far), _plus(inner, 2, outer), _plus(near, 4, far),
        _plus(_plus(m[5], 1, inner), 8, outer),
    ]  # fmt: skip


def _input_side_2(d: Vector) -> Vector:
    """Bt d of F(2x2, 3x3)."""
    return [_plus(d[0], -1, d[2]), _plus(d[1], 1, d[2]), _plus(d[2], -1, d[1]), _plus(d[1], -1, d[3])]


def _output_side_2(m: Vector) -> Vector:
    """At m of F(2x2, 3x3)."""
    return [_plus(_plus(m[0], 1, m[1]), 1, m[2]), _plus(_plus(m[1], -1, m[2]), -1, m[3])]


def _times(factor: int, x: Expr) -> Expr:
    return alu("mul", x, const(factor))


def _plus(x: Expr, factor: int, y: Expr) -> Expr:
    """x + factor * y."""
    if abs(factor) == 1:
        return alu("add" if factor == 1 else "sub", x, y)
    return alu("add", x, _times(factor, y))


def _chosen(matrix: list[Vector], row: Lin, column: Lin) -> Expr:
    """The element of `matrix` at (row, column)."""
    return one_of(row, [one_of(column, values) for values in matrix])


FORMS = (
    Form(4, np.array(
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6],
         [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    ), _input_side_4, _output_side_4),
    Form(2, np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]), _input_side_2,
         _output_side_2),
)  # fmt: skip
