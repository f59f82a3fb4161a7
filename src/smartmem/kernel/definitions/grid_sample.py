"""GridSample: a tensor read at positions that another tensor gives, with interpolation.

Along each spatial axis a position has `T` neighbours (1 nearest, 2 linear, 4 cubic). Their indices and weights do not
depend on the channel, so they are tensors of their own, and each output element is a weighted sum of gathered elements.
Worked example, linear along one axis of 5 elements, ``y[n, c, o]`` at ``grid[n, o]`` in [-1, 1]::

    y.position0[n, o] = ((grid[n, o] + 1) * 5 - 1) / 2
    y.index0.0[n, o]  = clamp(floor(y.position0[n, o]), 0, 4)           and y.index0.1 of the next element
    y.weight0.0[n, o] = 1 - (y.position0[n, o] - floor(y.position0[n, o]))                  0 outside of the input
    y[n, c, o]        = y.weight0.0[n, o] * x[n, c, y.index0.0[n, o]]  +  the same with .1

Formulas as in the ONNX reference implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import product

import numpy as np

from smartmem.graph.ir import Node
from smartmem.index.lin import Lin
from smartmem.kernel.definitions.build import Stages, apply, cast, coordinates, is_float, present, raw, read, wide
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.definitions.tables import looked_up
from smartmem.kernel.expr import Expr, alu, load
from smartmem.kernel.stage import Stage

INDEX = np.dtype(np.int32)
SHARPNESS = -0.75  # of the cubic kernel
FARTHEST = float(2**30)  # where positions end, so that they fit into an index
MODES = {"bilinear": "linear", "bicubic": "cubic"}  # names before opset 20
NEIGHBOURS = {"nearest": (0,), "linear": (0, 1), "cubic": (-1, 0, 1, 2)}
PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class _Neighbour:
    """One neighbour along one axis: where it is read, and its weight; with `nearest` whether it is in the input."""

    index: Lin
    weight: Expr | None


@defines("GridSample")
def grid_sample(node: Node) -> list[Stage] | None:
    """``y[n, c, o..] = sum of weights * x[n, c, neighbours of grid[n, o.., :]]``; grid has the last axis first."""
    x, grid, mode, padding = present(node, 0), present(node, 1), node.attrs["mode"], node.attrs["padding_mode"]
    mode = MODES.get(mode, mode)
    if mode not in NEIGHBOURS or padding not in PADDINGS or not is_float(grid.dtype):
        return None
    if 0 in x.dims or not (is_float(x.dtype) or mode == "nearest"):
        return None
    stages, (n, c, *outputs) = Stages(node), coordinates(node.output.dims)
    axes = [_neighbours(node, stages, axis, mode, (n, *outputs)) for axis in range(len(outputs))]
    result: Expr | None = None
    for chosen in product(*axes):
        element = load(x.name, (n, c, *(neighbour.index for neighbour in chosen)), x.dtype)
        weights = [neighbour.weight for neighbour in chosen if neighbour.weight is not None]
        if mode == "nearest":
            inside = reduce(partial(alu, "and"), weights) if weights else None
            return stages.output(element if inside is None else apply("where", inside, element, 0))
        term = reduce(partial(alu, "mul"), [cast(weight, wide(x.dtype)) for weight in weights])
        term = alu("mul", cast(element, term.dtype), term)
        result = term if result is None else alu("add", result, term)
    return None if result is None else stages.output(result)


def _neighbours(node: Node, stages: Stages, axis: int, mode: str, sampled: Sequence[Lin]) -> list[_Neighbour]:
    """Adds the stages of positions, indices and weights along a spatial axis; they are read at `sampled`."""
    grid, extent = present(node, 1), present(node, 0).dims[2 + axis]
    shape, padding, aligned = grid.dims[:-1], node.attrs["padding_mode"], bool(node.attrs.get("align_corners"))
    space = coordinates(shape)
    coordinate = read(grid, (*space, Lin(grid.dims[-1] - 1 - axis)))
    here = read(stages.add(f"position{axis}", shape, _position(coordinate, extent, aligned)), space)
    first = apply("round" if mode == "nearest" else "floor", here)
    weights = {"nearest": _nearest, "linear": _linear, "cubic": _cubic}[mode](apply("sub", here, first))
    result = []
    for number, (step, weight) in enumerate(zip(NEIGHBOURS[mode], weights, strict=True)):
        place = alu("cast", apply("add", first, float(step)), dtype=INDEX)
        if padding == "zeros":
            inside = alu("and", apply("ge", place, 0), apply("lt", place, extent))
            weight = inside if weight is None else apply("where", inside, weight, 0)
        index = stages.add(f"index{axis}.{number}", shape, _inside(place, extent, padding, aligned))
        if weight is not None:
            weight = raw(stages.add(f"weight{axis}.{number}", shape, weight), sampled)
        result.append(_Neighbour(looked_up(index.name, tuple(sampled), extent), weight))
    return result


def _position(coordinate: Expr, extent: int, aligned: bool) -> Expr:
    """Where along an axis a coordinate from -1 to 1 lies: between the centres of the outer elements, or their edges."""
    moved = apply("add", coordinate, 1.0)
    if aligned:
        position = apply("mul", apply("mul", moved, 0.5), float(extent - 1))
    else:
        position = apply("mul", apply("sub", apply("mul", moved, float(extent)), 1.0), 0.5)
    return apply("min", apply("max", position, -FARTHEST), FARTHEST)


def _inside(place: Expr, extent: int, padding: str, aligned: bool) -> Expr:
    """The element that stands for the one at `place`, which may lie outside of the input."""
    if padding == "reflection" and extent > 1:  # about the centres of the outer elements, or their edges
        period = 2 * extent - 2 if aligned else 2 * extent
        place = apply("mod", place, period)
        place = apply("min", place, apply("sub", period if aligned else period - 1, place))
    return apply("min", apply("max", place, 0), extent - 1)


def _nearest(fraction: Expr) -> list[Expr | None]:
    return [None]


def _linear(fraction: Expr) -> list[Expr | None]:
    return [apply("sub", 1.0, fraction), fraction]


def _cubic(fraction: Expr) -> list[Expr | None]:
    """Keys' kernel at the distances of four neighbours."""

    def near(d: Expr) -> Expr:
        inner = apply("sub", apply("mul", d, SHARPNESS + 2), SHARPNESS + 3)
        return apply("add", apply("mul", inner, apply("mul", d, d)), 1.0)

    def far(d: Expr) -> Expr:
        inner = apply("sub", apply("mul", d, SHARPNESS), 5 * SHARPNESS)
        inner = apply("add", apply("mul", inner, d), 8 * SHARPNESS)
        return apply("sub", apply("mul", inner, d), 4 * SHARPNESS)

    other = apply("sub", 1.0, fraction)
    return [far(apply("add", fraction, 1.0)), near(fraction), near(other), far(apply("add", other, 1.0))]
