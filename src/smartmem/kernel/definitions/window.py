"""Pooling: MaxPool, AveragePool, LpPool and their global forms; and Col2Im, which adds windows up.

A window is a reduction over its taps; the load is guarded where the window may leave the input and gives the neutral
element there. Worked example, AveragePool 3x3 with padding 1::

    y.sum[n, c, h, w] = sum_{i, j} x[n, c, h + i - 1, w + j - 1]          (0 outside)
    y[n, c, h, w]     = y.sum[n, c, h, w] / (y.count0[h] * y.count1[w])

How many taps lie inside is a product of one number per axis: a constant where no window is cut, else a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from smartmem.graph.ir import Node
from smartmem.index.divide import unflatten
from smartmem.index.lin import Lin, axis_digit, total
from smartmem.index.map import Guard
from smartmem.kernel.definitions.access import guarded, parameter, reduce_then
from smartmem.kernel.definitions.build import Stages, apply, cast, coordinates, lowest, present, wide
from smartmem.kernel.definitions.geometry import Window, window_of
from smartmem.kernel.definitions.registry import Defined, defines
from smartmem.kernel.definitions.tables import Tables, looked_up
from smartmem.kernel.expr import Expr, alu, const, iota, load
from smartmem.kernel.stage import Stage


def _window(node: Node) -> Window:
    spatial = present(node, 0).dims[2:]
    return window_of(node, spatial, tuple(node.attrs["kernel_shape"]))


def _taken(node: Node, window: Window, taps: Sequence[Lin], fill: Any) -> Expr:
    """The input under the taps at an output position, `fill` outside the input."""
    x, (n, c, *outputs) = present(node, 0), coordinates(node.output.dims)
    coords = window.coordinates(outputs, taps)
    return guarded(x, (n, c, *coords), window.guards(coords), fill)


@defines("MaxPool")
def max_pool(node: Node) -> list[Stage]:
    """``y = max`` over the taps; the optional second output is the flat position of the first maximum in the input."""
    window = _window(node)
    taps = coordinates(window.kernel, len(node.output.dims))
    body = _taken(node, window, taps, lowest(present(node, 0).dtype))
    stages = Stages(node)
    stages.output(body, window.kernel, "max")
    if len(node.outputs) > 1 and node.outputs[1] is not None:
        _positions(node, window, stages)
    return stages.list


def _positions(node: Node, window: Window, stages: Stages) -> None:
    """MaxPool's second output: which tap is the maximum, by an argmax, then that tap's position in the input."""
    x, count = present(node, 0), math.prod(window.kernel)
    body = _taken(node, window, unflatten(axis_digit(len(x.dims), count), window.kernel), lowest(x.dtype))
    best = stages.add("tap", node.output.dims, body, (count,), "argmax")
    n, c, *outputs = coordinates(node.output.dims)
    taps = unflatten(looked_up(best.name, (n, c, *outputs), count), window.kernel)
    position = list(window.coordinates(outputs, taps))
    spatial = list(window.extents)
    if node.attrs.get("storage_order"):  # column major: the first spatial axis varies fastest
        position, spatial = position[::-1], spatial[::-1]
    strides = [math.prod(spatial[a + 1 :]) for a in range(len(spatial))]
    plane = (n * x.dims[1] + c) * math.prod(spatial)
    stages.output(iota(plane + total(p * s for p, s in zip(position, strides, strict=True))), position=1)


@defines("AveragePool")
def average_pool(node: Node) -> list[Stage] | Defined:
    """``y = sum / count`` over the taps in the input, or in the padded input with count_include_pad."""
    window, tables = _window(node), Tables(node.output.name)
    taps = coordinates(window.kernel, len(node.output.dims))
    body = _taken(node, window, taps, 0)
    body = cast(body, wide(body.dtype))
    counts, whole = _counts(node, window, body.dtype, tables)

    def finish(value: Expr) -> Expr:
        divisor: Expr = const(whole, value.dtype)
        if counts:
            first, *rest = counts if whole == 1 else [*counts, divisor]
            for factor in rest:
                first = alu("mul", first, factor)
            divisor = first
        return alu("div", value, divisor)

    return Defined(reduce_then(node, "sum", body, window.kernel, finish), tables.constants)


def _counts(node: Node, window: Window, dtype: Any, tables: Tables) -> tuple[list[Expr], int]:
    """How many taps count per axis: vectors where it varies, and the product of the axes where it does not."""
    whole, varying = 1, []
    padded = bool(node.attrs.get("count_include_pad"))
    for a, extent in enumerate(node.output.dims[2:]):
        low = -window.before[a] if padded else 0
        high = window.extents[a] + (window.after[a] if padded else 0)
        starts = np.arange(extent)[:, None] * window.strides[a] - window.before[a]
        taps = starts + np.arange(window.kernel[a]) * window.dilations[a]
        count = np.maximum(np.sum((taps >= low) & (taps < high), axis=1), 1)  # an empty window is 0 / 1
        if np.all(count == count[0]):
            whole *= int(count[0])
        else:
            name = tables.add(f"count{a}", count.astype(dtype))
            varying.append(load(name, (axis_digit(2 + a, extent),), dtype))
    return varying, whole


@defines("LpPool")
def lp_pool(node: Node) -> list[Stage]:
    """``y = (sum |x|**p) ** (1/p)`` over the taps."""
    window = _window(node)
    taken = _taken(node, window, coordinates(window.kernel, len(node.output.dims)), 0)
    return _norm(node, taken, window.kernel)


def _norm(node: Node, x: Expr, reduce: Sequence[int]) -> list[Stage]:
    """The p-norm over the reduce axes."""
    power, x = int(node.attrs.get("p", 2)), cast(x, wide(x.dtype))
    if power == 1:
        return reduce_then(node, "sum", alu("abs", x), reduce)
    if power == 2:
        return reduce_then(node, "sum", alu("mul", x, x), reduce, lambda value: alu("sqrt", value))
    body = apply("pow", alu("abs", x), float(power))
    return reduce_then(node, "sum", body, reduce, lambda value: apply("pow", value, 1.0 / power))


def _whole_plane(node: Node) -> tuple[Expr, tuple[int, ...]]:
    """The input over all its spatial axes as reduce axes, and their extents."""
    x = present(node, 0)
    spatial = x.dims[2:]
    index = (*coordinates(x.dims[:2]), *coordinates(spatial, len(x.dims)))
    return load(x.name, index, x.dtype), spatial


@defines("GlobalAveragePool")
def global_average_pool(node: Node) -> list[Stage]:
    """``y[n, c, 0..] = sum of the plane * (1 / size of the plane)``."""
    x, spatial = _whole_plane(node)
    factor = 1.0 / math.prod(spatial)
    return reduce_then(node, "sum", cast(x, wide(x.dtype)), spatial, lambda value: apply("mul", value, factor))


@defines("GlobalMaxPool")
def global_max_pool(node: Node) -> list[Stage]:
    """``y[n, c, 0..] = max of the plane``."""
    x, spatial = _whole_plane(node)
    return reduce_then(node, "max", x, spatial)


@defines("GlobalLpPool")
def global_lp_pool(node: Node) -> list[Stage]:
    """``y[n, c, 0..] = (sum of |x|**p over the plane) ** (1/p)``."""
    return _norm(node, *_whole_plane(node))


@defines("Col2Im")
def col2im(node: Node) -> list[Stage] | None:
    """The sum of overlapping blocks, gathered: an output position sums the elements of the blocks that reach it.

    ``y[n, c, o] = sum_k x[n, c, k, (o + pad - k*dilation) / stride]`` over the elements k of a block for which the
    division is exact, as in ConvTranspose; see `Window.reaching`.
    """
    x, (batch, channels, *image) = present(node, 0), node.output.dims
    block = parameter(node, "block_shape", 2)
    if block is None:
        return None
    window = window_of(node, tuple(image), tuple(block))
    each = zip(image, window.before, window.after, window.dilations, block, window.strides, strict=True)
    counts = tuple((n + b + a - d * (k - 1) - 1) // s + 1 for n, b, a, d, k, s in each)
    window, steps = replace(window, extents=counts), window.steps()
    n, c, *outputs = coordinates((batch, channels, *image))
    taps, places, inside = window.reaching(outputs, coordinates(steps, 2 + len(image)))
    exists = tuple(Guard(tap, k) for tap, k in zip(taps, block, strict=True))
    element, place = c, Lin()
    for tap, k, at, count in zip(taps, block, places, counts, strict=True):
        element, place = element * k + tap, place * count + at
    body = cast(guarded(x, (n, element, place), (*inside, *exists)), wide(x.dtype))
    return reduce_then(node, "sum", body, steps)
