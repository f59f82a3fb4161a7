"""Linear quantisation: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear, to and from 8- and 16-bit integers.

Worked example: ``y = DequantizeLinear(x, s, z, axis=1)`` is ``y[n, c, h] = (x[n, c, h] - z[c]) * s[c]``. Four-bit
integers and 8-bit floats run on the host (see `define`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.divide import divide
from smartmem.index.lin import Lin
from smartmem.kernel.definitions.build import (
    Stages,
    apply,
    cast,
    coordinates,
    highest,
    lowest,
    operand,
    pointwise,
    present,
    raw,
    read,
    reduced,
    rows,
    wide,
)
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import DType, Expr
from smartmem.kernel.stage import Stage


def parameter_index(node: Node, parameter: Value, space: Sequence[Lin]) -> tuple[Lin, ...]:
    """Where a scale or zero point is read for the element at `space`: per tensor, per axis, or per block of an axis."""
    if len(parameter.dims) == 0 or parameter.dims == (1,):
        return (Lin(),) * len(parameter.dims)
    axis = node.attrs.get("axis", 1) % len(space)
    if len(parameter.dims) == 1:
        return (space[axis],)
    block = node.attrs.get("block_size", 0) or 1
    return tuple(divide(c, block)[0] if a == axis else c for a, c in enumerate(space))


def saturate(value: Expr, dtype: DType) -> Expr:
    """`value`, a float that holds an integer, clamped to the range of `dtype`."""
    return apply("min", apply("max", value, float(lowest(dtype))), float(highest(dtype)))


@defines("QuantizeLinear")
def quantize_linear(node: Node) -> list[Stage] | None:
    """``saturate(round(x / scale) + zero)``, ties to even, computed in float32 (float64 if an operand is)."""
    x, scale, zero = present(node, 0), present(node, 1), operand(node, 2)
    if node.output.dtype.kind not in "iu" or node.output.dtype.itemsize > 2 or node.attrs.get("precision", 0):
        return None
    space = coordinates(x.dims)
    divisor = read(scale, parameter_index(node, scale, space))
    if divisor.dtype.kind != "f":
        return None
    rounded = apply("round", apply("div", cast(raw(x, space), divisor.dtype), divisor))
    if zero is not None:
        rounded = apply("add", rounded, cast(raw(zero, parameter_index(node, zero, space)), divisor.dtype))
    return pointwise(node, saturate(rounded, node.output.dtype))


@defines("DequantizeLinear")
def dequantize_linear(node: Node) -> list[Stage] | None:
    """``(x - zero) * scale`` in the arithmetic type of the scale."""
    x, scale, zero = present(node, 0), present(node, 1), operand(node, 2)
    space = coordinates(x.dims)
    kind = wide(scale.dtype)
    value = cast(raw(x, space), kind)
    if zero is not None:
        value = apply("sub", value, cast(raw(zero, parameter_index(node, zero, space)), kind))
    return pointwise(node, apply("mul", value, read(scale, parameter_index(node, scale, space))))


@defines("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node) -> list[Stage] | None:
    """uint8 with the scale and zero point of the tensor's own range, which always includes 0."""
    x = present(node, 0)
    if len(node.outputs) != 3 or None in node.outputs or 0 in x.dims:
        return None
    where = rows(x.dims, range(len(x.dims)), keepdims=False)
    stages = Stages(node)
    greatest = reduced(stages, "max", "max", where, read(x, where.data))
    least = reduced(stages, "min", "min", where, read(x, where.data))
    low = apply("min", read(least, ()), 0.0)
    span = apply("sub", apply("max", read(greatest, ()), 0.0), low)
    stages.output(apply("div", span, 255.0), position=1)
    scale = node.outputs[1]
    assert scale is not None
    zero = apply("round", saturate(apply("neg", apply("div", low, read(scale, ()))), np.dtype(np.uint8)))
    stages.output(zero, position=2)
    point = node.outputs[2]
    assert point is not None
    rounded = apply("round", apply("div", read(x, where.space), read(scale, ())))
    shifted = apply("add", rounded, cast(raw(point, ()), rounded.dtype))
    return stages.output(saturate(shifted, node.output.dtype))
