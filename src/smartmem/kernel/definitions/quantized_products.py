"""Products of quantized integers: MatMulInteger, QLinearMatMul, ConvInteger and QLinearConv.

What is multiplied are the integers less their zero points, as floats, so that these are the contractions of floats.
Weights less their zero points are constants. Worked example::

    y = MatMulInteger(a, b, za, zb)          y.a[i, k] = float(a[i, k]) - za
                                             y.b[k, j] = float(b[k, j]) - zb
                                             y.sum[i, j] = sum_k y.a[i, k] * y.b[k, j]
                                             y[i, j] = int32(y.sum[i, j])

A product of 8-bit integers less their zero points is below 2^16, and floats hold sums exactly up to 2^24: of 256 terms
whatever they are, of thousands where not all are extreme. Beyond that a sum is as exact as floats are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin
from smartmem.kernel.definitions.build import Stages, apply, broadcast, cast, coordinates, operand, present, raw
from smartmem.kernel.definitions.contraction import convolution, matrix_product
from smartmem.kernel.definitions.quantize import saturate
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, load
from smartmem.kernel.stage import Stage

FLOAT = np.dtype(np.float32)
_Place = Callable[[Value, Sequence[Lin]], tuple[Lin, ...]]  # where an element's scale or zero point is read


def _by_row(parameter: Value, space: Sequence[Lin]) -> tuple[Lin, ...]:
    """A matrix on the left has one parameter per row."""
    return (space[-2],) if len(parameter.dims) == 1 else broadcast(parameter.dims, space)


def _by_column(parameter: Value, space: Sequence[Lin]) -> tuple[Lin, ...]:
    """A matrix on the right has one parameter per column."""
    return broadcast(parameter.dims, space)


def _by_filter(parameter: Value, space: Sequence[Lin]) -> tuple[Lin, ...]:
    """The weights of a convolution have one parameter per output channel, their first axis."""
    return (space[0],)


def _parameter(value: Value, space: Sequence[Lin], place: _Place) -> Expr:
    """The scale or zero point of the element at `space`, as a float. One for all may have any rank."""
    if math.prod(value.dims) == 1:
        return cast(raw(value, (Lin(),) * len(value.dims)), FLOAT)
    return cast(load(value.name, place(value, space), value.dtype), FLOAT)


@defines("MatMulInteger")
def matmul_integer(node: Node) -> list[Stage]:
    """``y[b.., i, j] = sum_k (a[b.., i, k] - za[i]) * (b[b.., k, j] - zb[j])`` as int32."""
    stages = Stages(node)
    a = _centred(stages, "a", present(node, 0), operand(node, 2), _by_row)
    b = _centred(stages, "b", present(node, 1), operand(node, 3), _by_column)
    return stages.output(*matrix_product(a, b, node.output.dims), "sum")


@defines("ConvInteger")
def conv_integer(node: Node) -> list[Stage]:
    """``y[n, m, o..] = sum_{k.., c} (x[..] - zx) * (w[m, c, k..] - zw[m])`` as int32; padding has the value zx."""
    stages = Stages(node)
    x = _centred(stages, "x", present(node, 0), operand(node, 2), _by_row)
    w = _centred(stages, "w", present(node, 1), operand(node, 3), _by_filter)
    return stages.output(*convolution(node, x, w), "sum")


@defines("QLinearMatMul")
def qlinear_matmul(node: Node) -> list[Stage] | None:
    """``saturate(round(sum_k (a - za) * (b - zb) * (sa * sb / sy)) + zy)``, of 8-bit integers."""
    a, sa, za, b, sb, zb, _, zy = node.inputs
    if node.output.dtype.itemsize != 1 or a is None or b is None or sa is None or sb is None or zy is None:
        return None
    stages, space = Stages(node), coordinates(node.output.dims)
    body, depth = matrix_product(
        _centred(stages, "a", a, za, _by_row), _centred(stages, "b", b, zb, _by_column), node.output.dims
    )
    total = raw(stages.add("sum", node.output.dims, body, depth, "sum"), space)
    shape = node.output.dims[-1:] if math.prod(sa.dims) == 1 and len(sb.dims) < 2 else node.output.dims

    def scale(own: Sequence[Lin]) -> Expr:
        return apply("mul", _parameter(sa, own, _by_row), _parameter(sb, own, _by_column))

    return _requantized(stages, total, scale, shape, space[len(space) - len(shape) :])


@defines("QLinearConv")
def qlinear_conv(node: Node) -> list[Stage]:
    """``saturate(round((sum (x - zx) * (w - zw[m]) + b[m]) * (sx * sw[m] / sy)) + zy)``, of 8-bit integers."""
    stages, space = Stages(node), coordinates(node.output.dims)
    x = _centred(stages, "x", present(node, 0), present(node, 2), _by_row)
    w = _centred(stages, "w", present(node, 3), present(node, 5), _by_filter)
    body, taps = convolution(node, x, w)
    total = raw(stages.add("sum", node.output.dims, body, taps, "sum"), space)
    bias, channel = operand(node, 8), space[1:2]
    if bias is not None:
        total = apply("add", total, raw(_centred(stages, "b", bias, None, _by_filter), channel))

    def scale(own: Sequence[Lin]) -> Expr:
        return apply("mul", _parameter(present(node, 1), own, _by_row), _parameter(present(node, 4), own, _by_filter))

    return _requantized(stages, total, scale, node.output.dims[1:2], channel)


def _centred(stages: Stages, suffix: str, value: Value, zero: Value | None, place: _Place) -> Value:
    """Adds the stage of an operand less its zero points, as floats."""
    space = coordinates(value.dims)
    body = cast(raw(value, space), FLOAT)
    if zero is not None and (zero.data is None or zero.data.any()):
        body = apply("sub", body, _parameter(zero, space, place))
    return stages.add(suffix, value.dims, body)


def _requantized(
    stages: Stages, total: Expr, scale: Callable[[Sequence[Lin]], Expr], shape: tuple[int, ...], index: tuple[Lin, ...]
) -> list[Stage]:
    """The output: a sum times its scale over the output's scale (input 6), rounded, plus its zero point (7).

    The quotient of scales, which are constants mostly, is a tensor of `shape` that is read at `index`.
    """
    node, space, own = stages.node, coordinates(stages.node.output.dims), coordinates(shape)
    quotient = apply("div", scale(own), _parameter(present(node, 6), own, _by_row))
    factor = raw(stages.add("scale", shape, quotient), index)
    rounded = apply("round", apply("mul", total, factor))
    shifted = apply("add", rounded, _parameter(present(node, 7), space, _by_row))
    return stages.output(saturate(shifted, node.output.dtype))
