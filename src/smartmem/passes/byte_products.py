"""Products of quantized integers as products of bytes: four multiplications and additions per lane in one instruction.

    y[m, n] = sum over k of (q[m, k] - z) * s * w[k, n]        q: integers from 0 to 255, or from -128 to 127 (+ 128)
                                                               w[k, n] = v[k, n] * t[n], v from -128 to 127

    y.bytes[m, j]   = pack4(q[m, 4*j], q[m, 4*j + 1], q[m, 4*j + 2], q[m, 4*j + 3])      in the place of one float
    y.weights[j, n] = the same of v, made here
    y.dots[m, n]    = sum over j of dot4(y.bytes[m, j], y.weights[j, n])
    y[m, n]         = (y.dots[m, n] - z * (sum over k of v[k, n])) * s * t[n]

All that schedules know of contractions (row pointers, panels, blocks, epilogues) holds for the shorter K. The sums are
exact, and the same as those of the floats as long as these are (`definitions.quantized_products`).

Both forms of quantized networks come here: integer operators, and DequantizeLinear in front of operators on floats.
In: stages, after `exact_casts`. Out: other stages. For targets that have the instruction (`Target.dot4`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.definitions.build import coordinates
from smartmem.kernel.evaluate import evaluate_stage
from smartmem.kernel.expr import Alu, Choose, Const, Expr, Load, alu, choose, const, is_zero, load
from smartmem.kernel.stage import Stage, behind_views, reindex, tensors_read
from smartmem.passes.exact_casts import Integers, Range
from smartmem.passes.module import HostOp, Module
from smartmem.schedule.roles import align_contraction, expr_axes, factors

TOGETHER = 4  # bytes in the place of a float
SHORTEST = 4  # floats of a pixel that are read where they lie
DEEPEST = 1 << 15  # steps of k of which no sum leaves 32 bits
FLOAT = np.dtype(np.float32)

T = TypeVar("T")

Array = np.ndarray[Any, Any]


def byte_products(module: Module) -> None:
    """Rewrites the contractions of quantized activations with quantized constants."""
    if not module.has_bytes():
        return
    rewriter = _Rewriter(module)
    steps: list[Stage | HostOp] = []
    for step in module.steps:
        steps += rewriter.rewritten(step) if isinstance(step, Stage) else [step]
    module.steps = steps
    module.drop_dead()


@dataclass(frozen=True)
class _Quantized:
    """``(integers - zero) * scale``: `integers` over the axes of a tensor, the others the same for all of it."""

    integers: Expr
    zero: Expr
    scale: Expr | None


@dataclass(frozen=True)
class _Weights:
    """A constant that is ``integers * scale``, read by `access`.

    Attributes:
        access: at the coordinate of the contraction.
        integers: from -128 to 127.
        scale: broadcast to the same shape; None: 1.
        varying: the axes along which the scale is not the same.
    """

    access: Load
    integers: Array
    scale: Array | None = None
    varying: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Axis:
    """A reduce axis, by its number in the contraction's domain, and where the operands have it."""

    number: int
    extent: int
    of_data: int
    of_weights: int

    @property
    def length(self) -> int:
        """Floats that its bytes take the place of."""
        return -(-self.extent // TOGETHER)


@dataclass(frozen=True)
class _Side:
    """How far beyond the first and the last element of an axis a window goes: `low` <= 0 <= `high`."""

    low: int = 0
    high: int = 0


class _Rewriter:
    """Goes through the stages in order."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.stages: dict[str, Stage] = {}
        self.held = Integers(module)

    def rewritten(self, stage: Stage) -> list[Stage]:
        """The stages that take the place of one."""
        found = self._product(stage) or [stage]
        for new in found:
            self.stages[new.name] = new
            self.held.add(new)
            self.module.types[new.name] = (new.shape, new.dtype)
            self.module.definitions.setdefault(new.name, new)
        return found

    def _product(self, stage: Stage) -> list[Stage] | None:
        pair = factors(stage)
        if pair is None or math.prod(stage.reduce) > DEEPEST:
            return None
        for data, other in (pair, pair[::-1]):
            access = data.then if isinstance(data, Choose) and is_zero(data.otherwise) else data
            if not isinstance(access, Load) or not isinstance(other, Load):
                continue
            quantized = self._quantized(access)
            weights = self._weights(other) if quantized is not None else None  # else nobody need look at them all
            axis = _shared_axis(stage, data, access, weights) if weights is not None else None
            if quantized is not None and weights is not None and axis is not None:
                return self._of_bytes(stage, data, access, quantized, weights, axis)
        return None

    def _quantized(self, access: Load) -> _Quantized | None:
        stage = self.stages.get(access.tensor)
        if stage is None or stage.reduce:
            return None
        core, scale = _scaled(stage.body)
        integers, zero = core, const(0.0)
        if isinstance(core, Alu) and core.op == "sub" and not expr_axes(core.args[1]):
            integers, zero = core.args
        held = self.held.range(integers)
        if held.within(np.dtype(np.int8)):
            return _Quantized(alu("add", integers, const(128.0)), _plus(zero, 128.0), scale)
        return _Quantized(integers, zero, scale) if held.within(np.dtype(np.uint8)) else None

    def _weights(self, access: Load) -> _Weights | None:
        """The constant that a load reads, through views."""
        constants = self.module.constants
        access, stage = behind_views(access, self.module.definitions)
        if stage is None:
            integers, scale, varying = constants.get(access.tensor), None, set[int]()
        elif stage.reduce or not constants.keys() >= set(tensors_read(stage.body)):
            return None
        else:
            core, factor = _scaled(stage.body, uniform=False)
            integers = evaluate_stage(replace(stage, body=core), constants)
            scale = None if factor is None else evaluate_stage(replace(stage, body=factor), constants)
            varying = set() if factor is None else expr_axes(factor)
        if integers is None or (integers != np.rint(integers)).any() or np.abs(integers + 0.5).max() > 127.5:
            return None
        return _Weights(access, integers, scale, frozenset(varying))

    def _of_bytes(
        self, stage: Stage, data: Expr, access: Load, quantized: _Quantized, weights: _Weights, axis: _Axis
    ) -> list[Stage] | None:
        packed = self._packed(access.tensor, quantized.integers, axis)
        reduced = _reduced_axes(stage, weights)
        if reduced is None:
            return None
        step = axis_digit(axis.number, axis.length)
        guards = data.guards if isinstance(data, Choose) else ()
        read = load(packed.name, with_entry(access.index, axis.of_data, step))
        outside = _four(quantized.zero) if axis.length >= SHORTEST else None
        if guards and outside is not None:  # beyond the sides there are zeros: the zero point
            read = choose(guards, read, outside)
        elif guards:  # the same, as part of what is packed
            sides = _sides(access.index, guards, self.stages[access.tensor].shape)
            if sides is None:
                return None
            packed = self._with_sides(packed, sides, alu("pack4", *([quantized.zero] * TOGETHER)))
            index = tuple(c - side.low for c, side in zip(access.index, sides, strict=True))
            read = load(packed.name, with_entry(index, axis.of_data, step))
        table = f"{stage.name}.weights"
        product = alu("dot4", read, load(table, with_entry(weights.access.index, axis.of_weights, step)))
        reduce = tuple(axis.length if len(stage.shape) + k == axis.number else n for k, n in enumerate(stage.reduce))
        dots = replace(stage, name=f"{stage.name}.dots", body=product, reduce=reduce)
        if align_contraction(dots, {table}) is None:
            return None
        self._constant(table, _bytes(weights.integers, axis))
        value = load(dots.name, stage.space())
        columns = tuple(c for k, c in enumerate(weights.access.index) if k not in reduced)
        if not is_zero(quantized.zero):
            sums = weights.integers.sum(axis=tuple(reduced), dtype=np.float64)
            shift = alu("mul", quantized.zero, load(self._constant(f"{stage.name}.sums", sums), columns))
            value = alu("sub", value, shift)
        if quantized.scale is not None:
            value = alu("mul", value, quantized.scale)
        if weights.scale is not None:
            first = tuple(0 if k in reduced else slice(None) for k in range(weights.scale.ndim))
            value = alu("mul", value, load(self._constant(f"{stage.name}.scales", weights.scale[first]), columns))
        result = replace(stage, body=value, reduce=(), combine="")
        return [dots, result] if packed.name in self.stages else [packed, dots, result]

    def _packed(self, tensor: str, integers: Expr, axis: _Axis) -> Stage:
        """The stage of a tensor's integers, four in the place of one float."""
        source, length = self.stages[tensor], axis.length
        name = f"{tensor}.bytes{axis.of_data}.{axis.extent}"
        if name in self.stages:
            return self.stages[name]
        shape = tuple(length if k == axis.of_data else n for k, n in enumerate(source.shape))
        parts: list[Expr] = []
        for number in range(min(axis.extent, TOGETHER)):
            at = axis_digit(axis.of_data, length) * TOGETHER + number
            parts.append(reindex(integers, with_entry(coordinates(shape), axis.of_data, at), source.shape))
        parts += [const(0.0)] * (TOGETHER - len(parts))
        return Stage(name, shape, FLOAT, alu("pack4", *parts), origin=source.origin)

    def _with_sides(self, packed: Stage, sides: list[_Side], outside: Expr) -> Stage:
        """The same with what lies beyond the sides of the tensor, all of it `outside`."""
        name = f"{packed.name}.sides" + "".join(f".{side.low}.{side.high}" for side in sides)
        if name in self.stages:
            return self.stages[name]
        shape = tuple(n + side.high - side.low for n, side in zip(packed.shape, sides, strict=True))
        axes = tuple(c + side.low for c, side in zip(coordinates(shape), sides, strict=True))
        inside = tuple(Guard(c, n) for c, n in zip(axes, packed.shape, strict=True))
        body = choose(inside, reindex(packed.body, axes, packed.shape), outside)
        return replace(packed, name=name, shape=shape, body=body)

    def _constant(self, name: str, data: Array) -> str:
        self.module.constants[name] = np.ascontiguousarray(data, np.float32)
        self.module.types[name] = (data.shape, FLOAT)
        self.held.tensors[name] = Range()
        return name


def _scaled(body: Expr, uniform: bool = True) -> tuple[Expr, Expr | None]:
    """``x * scale`` as its factors; with `uniform` the scale is the same for all elements."""
    if isinstance(body, Alu) and body.op == "mul":
        x, scale = body.args
        if not uniform or not expr_axes(scale):
            return x, scale
    return body, None


def _four(value: Expr) -> Expr | None:
    """Four times a constant in the place of a float, None if that is no number."""
    packed = np.full(TOGETHER, value.value, np.uint8).view(np.float32)[0] if isinstance(value, Const) else np.nan
    return None if np.isnan(packed) else const(float(packed))


def _plus(value: Expr, number: float) -> Expr:
    return const(value.value + number) if isinstance(value, Const) else alu("add", value, const(number))


def with_entry(values: tuple[T, ...], at: int, value: T) -> tuple[T, ...]:
    """The same but for one entry."""
    return (*values[:at], value, *values[at + 1 :])


def _shared_axis(stage: Stage, data: Expr, access: Load, weights: _Weights) -> _Axis | None:
    """The last reduce axis of both operands with a multiple of four steps (or three, the channels of an image)."""
    guards = data.guards if isinstance(data, Choose) else ()
    for number in reversed(range(len(stage.shape), len(stage.domain))):
        whole = axis_digit(number, stage.domain[number])
        places = [
            [k for k, c in enumerate(index) if number in axes_of(c)] for index in (access.index, weights.access.index)
        ]
        if any(len(p) != 1 for p in places) or any(number in axes_of(g.lin) for g in guards):
            continue
        (of_data,), (of_weights,) = places
        axis = _Axis(number, stage.domain[number], of_data, of_weights)
        fits = axis.extent % TOGETHER == 0 or axis.extent == TOGETHER - 1
        if fits and access.index[of_data] == whole == weights.access.index[of_weights]:
            return axis
    return None


def _sides(index: tuple[Lin, ...], guards: tuple[Guard, ...], shape: tuple[int, ...]) -> list[_Side] | None:
    """The sides of each axis, if guards say nothing but that coordinates are inside of the tensor."""
    sides = [_Side() for _ in shape]
    for guard in guards:
        axis = next((k for k, c in enumerate(index) if c == guard.lin and shape[k] == guard.ext), None)
        if axis is None:
            return None
        sides[axis] = _Side(min(0, guard.lin.min), max(0, guard.lin.max + 1 - guard.ext))
    return sides


def _reduced_axes(stage: Stage, weights: _Weights) -> list[int] | None:
    """The axes of weights that the contraction reduces along, whole; None if it goes along them in another way."""
    reduced = []
    for k, coordinate in enumerate(weights.access.index):
        axes = set(axes_of(coordinate))
        if all(axis < len(stage.shape) for axis in axes):
            continue
        extent = weights.integers.shape[k]
        if len(axes) > 1 or coordinate != axis_digit(axes.pop(), extent) or k in weights.varying:
            return None
        reduced.append(k)
    return reduced


def _bytes(integers: Array, along: _Axis) -> Array:
    """Four integers along an axis in the place of one float, zeros beyond its end."""
    axis, length = along.of_weights, along.length
    moved = np.moveaxis(integers.astype(np.int8), axis, -1)
    moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], TOGETHER * length - along.extent), np.int8)], -1)
    return np.moveaxis(np.ascontiguousarray(moved).view(np.float32), -1, axis)
