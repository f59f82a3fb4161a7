"""Resize and Upsample: nearest, linear and cubic, for static scales or sizes.

Resampling is separable, so each resized axis is a stage of its own, the one that shrinks its tensor most first. Along
an axis an output position reads `T` neighbours (1 nearest, 2 linear, 4 cubic, more with antialiasing):
``y[o] = sum_t weight[t, o] * x[index[t, o]]``. Both tables are computed here in exact rational arithmetic. Indices
become a Lin where they have a pattern (nearest, factor 2: ``x[o // 2]``), otherwise a constant that is looked up.
Nearest is a view of all axes at once.

Coordinate transformations: the formulas of the ONNX documentation of Resize.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard, IndexMap
from smartmem.kernel.definitions.access import guarded, view
from smartmem.kernel.definitions.build import Stages, cast, coordinates, is_float, present, wide
from smartmem.kernel.definitions.registry import Defined, defines
from smartmem.kernel.definitions.tables import Tables
from smartmem.kernel.expr import Expr, alu, const, load

HALF = Fraction(1, 2)
WHOLE = (Fraction(0), Fraction(1))  # the crop window that is all of the input
UNROLLED_TAPS = 4  # up to here neighbours are written out; a longer window is a reduce axis

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Axis:
    """One resized axis.

    Attributes:
        axis: its number.
        extent: in the input.
        result: in the output.
        scale: result / extent, or the scale that was given where rounding makes these differ.
        positions: where in the input each output position lies.
    """

    axis: int
    extent: int
    result: int
    scale: Fraction
    positions: tuple[Fraction, ...]

    @property
    def valid(self) -> tuple[int, int]:
        """First and past-the-last output position that lies in the input."""
        inside = [o for o, p in enumerate(self.positions) if 0 <= p <= self.extent - 1]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)


_Kernel = Callable[[_Axis], tuple[Array, Array]]  # the (taps, result) tables of indices and of weights of an axis


@defines("Resize", "Upsample")
def resize(node: Node) -> Defined | None:
    """``y = x`` resampled; None where scales, sizes or roi depend on data, or integers would be interpolated."""
    resized = _axes(node)
    if resized is None:
        return None
    x, mode = present(node, 0), node.attrs.get("mode") or "nearest"
    if mode == "nearest":
        return None if node.attrs.get("antialias") else _nearest(node, resized)
    if mode not in ("linear", "bilinear", "cubic") or not is_float(x.dtype):
        return None
    return _interpolated(node, resized, _kernel(node, "cubic" if mode == "cubic" else "linear"))


def _axes(node: Node) -> list[_Axis] | None:
    """The axes that are really resized, or None where a parameter is missing or unknown."""
    x, out, scales = present(node, 0), node.output.dims, node.attrs.get("scales")
    transformation = node.attrs.get("coordinate_transformation_mode") or "half_pixel"
    if node.op == "Upsample":  # below opset 9
        transformation = "asymmetric"
    roi = node.attrs.get("roi") if transformation == "tf_crop_and_resize" else [0.0] * len(out) + [1.0] * len(out)
    if scales is None or roi is None:
        return None
    result = []
    for a, extent in enumerate(x.dims):
        scale, crop = _exact(scales[a], Fraction(out[a], extent)), (Fraction(roi[a]), Fraction(roi[len(out) + a]))
        if scale == 1 and extent == out[a] and crop == WHOLE:
            continue
        positions = _positions(transformation, extent, out[a], scale, crop)
        if positions is None:
            return None
        result.append(_Axis(a, extent, out[a], scale, positions))
    return result


def _exact(scale: float, ratio: Fraction) -> Fraction:
    """A scale from the file, rounded to float32: the ratio of the extents, or the simple fraction, that was rounded."""
    for candidate in (ratio, Fraction(scale).limit_denominator(1024)):
        if np.float32(float(candidate)) == np.float32(scale):
            return candidate
    return Fraction(scale)


def _positions(
    transformation: str, extent: int, result: int, scale: Fraction, crop: tuple[Fraction, Fraction]
) -> tuple[Fraction, ...] | None:
    """The input position of each output position under a coordinate transformation mode, None if it is unknown."""
    length = scale * extent  # ONNX's length_resized, not rounded
    centre = Fraction(extent, 2) * (1 - result / length)
    first, last = crop[0] * (extent - 1), crop[1] * (extent - 1)
    formulas: dict[str, Callable[[int], Fraction]] = {
        "half_pixel": lambda o: (o + HALF) / scale - HALF,
        "half_pixel_symmetric": lambda o: centre + (o + HALF) / scale - HALF,
        "pytorch_half_pixel": lambda o: (o + HALF) / scale - HALF if length > 1 else Fraction(0),
        "asymmetric": lambda o: o / scale,
        "align_corners": lambda o: Fraction(o * (extent - 1)) / (length - 1) if length != 1 else Fraction(0),
        "tf_crop_and_resize": lambda o: (
            first + o * (last - first) / (length - 1) if length != 1 else (first + last) / 2
        ),
    }
    formula = formulas.get(transformation)
    return None if formula is None else tuple(formula(o) for o in range(result))


def _nearest(node: Node, resized: list[_Axis]) -> Defined | None:
    """A view: every axis at the rounded position; outside a crop window, the extrapolation value."""
    rounding = "floor" if node.op == "Upsample" else node.attrs.get("nearest_mode") or "round_prefer_floor"
    functions: dict[str, Callable[[Fraction], int]] = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda p: math.ceil(p - HALF),
        "round_prefer_ceil": lambda p: math.floor(p + HALF),
    }
    if rounding not in functions:
        return None
    x, tables = present(node, 0), Tables(node.output.name)
    coords = list(coordinates(node.output.dims))
    for item in resized:
        nearest = [min(max(functions[rounding](p), 0), item.extent - 1) for p in item.positions]
        coords[item.axis] = tables.index(f"index{item.axis}", np.array(nearest), (coords[item.axis],), item.extent)
    guards, fill = _extrapolated(node, resized)
    if guards:
        body = guarded(x, tuple(coords), guards, const(fill, x.dtype))
        return Defined(Stages(node).output(body), tables.constants)
    return Defined([view(node, x, IndexMap(node.output.dims, tuple(coords)))], tables.constants)


def _extrapolated(node: Node, resized: list[_Axis]) -> tuple[tuple[Guard, ...], float]:
    """tf_crop_and_resize: guards for the output positions that lie in the input, and the value of the others."""
    if node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return (), 0.0
    guards = []
    for item in resized:
        first, last = item.valid
        guards.append(Guard(axis_digit(item.axis, item.result) - first, last - first))
    return tuple(g for g in guards if not g.always), float(node.attrs.get("extrapolation_value", 0.0))


def _kernel(node: Node, mode: str) -> _Kernel:
    """How neighbours and their weights are found: the triangle or cubic kernel, as the attributes vary it."""
    sharpness = float(node.attrs.get("cubic_coeff_a", -0.75))
    antialias, exclude = bool(node.attrs.get("antialias")), bool(node.attrs.get("exclude_outside"))
    radius = 1 if mode == "linear" else 2

    def profile(distance: Array) -> Array:
        d = np.abs(distance)
        if mode == "linear":
            return np.asarray(np.maximum(1 - d, 0))
        near = ((sharpness + 2) * d - (sharpness + 3)) * d * d + 1
        far = ((sharpness * d - 5 * sharpness) * d + 8 * sharpness) * d - 4 * sharpness
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))

    def tables(item: _Axis) -> tuple[Array, Array]:
        stretch = min(item.scale, Fraction(1)) if antialias else Fraction(1)
        before = -math.floor(-radius / stretch) - 1  # neighbours before the one at the floor of the position
        taps = 2 * before + 2
        # an exact position counts as the end of its interval, as in ONNX: neighbours i-1 and i, not i and i+1
        floors = np.array([math.ceil(p) - 1 for p in item.positions])
        fractions = np.array([float(p - math.ceil(p) + 1) for p in item.positions])
        offsets = np.arange(-before, -before + taps)[:, None]
        weights = profile((offsets - fractions) * float(stretch))
        indices = floors + offsets
        if exclude:
            weights = np.where((indices < 0) | (indices >= item.extent), 0.0, weights)
        if exclude or antialias:
            sums = weights.sum(axis=0)
            weights = weights / np.where(sums == 0, 1.0, sums)
        return np.clip(indices, 0, item.extent - 1), weights

    return tables


def _interpolated(node: Node, resized: list[_Axis], kernel: _Kernel) -> Defined:
    """One stage per axis, then the extrapolation value where a crop window leaves the input."""
    stages, tables, value = Stages(node), Tables(node.output.name), present(node, 0)
    guards, fill = _extrapolated(node, resized)
    ordered = sorted(resized, key=lambda item: Fraction(item.result, item.extent))
    for position, item in enumerate(ordered):
        shape = tuple(item.result if a == item.axis else n for a, n in enumerate(value.dims))
        body, reduce = _along(value, item, shape, kernel, tables)
        if position + 1 == len(ordered) and not guards:
            return Defined(stages.output(body, reduce, "sum" if reduce else ""), tables.constants)
        value = stages.add(f"axis{item.axis}", shape, body, reduce, "sum" if reduce else "")
    space = coordinates(node.output.dims)
    body = guarded(value, space, guards, const(fill, value.dtype))
    return Defined(stages.output(body), tables.constants)


def _along(
    value: Value,
    item: _Axis,
    shape: tuple[int, ...],
    kernel: _Kernel,
    tables: Tables,
) -> tuple[Expr, tuple[int, ...]]:
    """The weighted sum of neighbours along one axis: an expression, or a contraction body and its reduce axis."""
    indices, weights = kernel(item)
    kind, space = wide(value.dtype), coordinates(shape)
    own = space[item.axis]

    def read(index: Lin) -> Expr:
        place = (*space[: item.axis], index, *space[item.axis + 1 :])
        return cast(load(value.name, place, value.dtype), kind)

    if len(weights) > UNROLLED_TAPS:
        tap = axis_digit(len(shape), len(weights))
        index = tables.index(f"index{item.axis}", indices, (tap, own), item.extent)
        name = tables.add(f"weight{item.axis}", weights.astype(kind))
        return alu("mul", read(index), load(name, (tap, own), kind)), (len(weights),)
    result: Expr | None = None
    for t, row in enumerate(weights.astype(kind)):
        if not row.any():
            continue
        term = read(tables.index(f"index{item.axis}.{t}", indices[t], (own,), item.extent))
        if not np.all(row == row[0]):
            term = alu("mul", term, load(tables.add(f"weight{item.axis}.{t}", row), (own,), kind))
        elif row[0] != 1:
            term = alu("mul", term, const(row[0], kind))
        result = term if result is None else alu("add", result, term)
    return result if result is not None else const(0, kind), ()
