"""Normalisations: layer, RMS, group, instance and batch normalisation, LpNormalization, MeanVarianceNormalization, LRN.

Most are the same few primitive stages over `Rows`. Worked example, LayerNormalization of x (2, 3)::

    y.sum[i, 0]     = sum_j x[i, j]                   y.mean     = y.sum * (1/3)
    y.centered[i,j] = x[i, j] - y.mean[i, 0]          y.squares  = sum_j y.centered ** 2
    y.rstd          = 1 / sqrt(y.squares * (1/3) + eps)
    y               = y.centered * y.rstd * scale + bias
"""

from __future__ import annotations

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.definitions.build import (
    Rows,
    Stages,
    apply,
    coordinates,
    group_rows,
    is_float,
    operand,
    present,
    raw,
    read,
    reduced,
    rows,
)
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, choose, const
from smartmem.kernel.stage import Stage


def centre(stages: Stages, x: Value, where: Rows) -> tuple[Value, Value]:
    """Adds the row mean (shape ``where.stat``) and x minus it (shape of x)."""
    total = reduced(stages, "sum", "sum", where, read(x, where.data))
    mean = stages.add("mean", where.stat, apply("mul", read(total, coordinates(where.stat)), 1 / where.length))
    return mean, stages.add("centered", x.dims, apply("sub", read(x, where.space), read(mean, where.back)))


def mean_square(stages: Stages, x: Value, where: Rows) -> Expr:
    """Adds the row sum of squares; the expression of their mean over the axes of ``where.stat``."""
    element = read(x, where.data)
    squares = reduced(stages, "squares", "sum", where, apply("mul", element, element))
    return apply("mul", read(squares, coordinates(where.stat)), 1 / where.length)


def reciprocal_root(stages: Stages, square: Expr, where: Rows, epsilon: float) -> Value:
    """Adds ``1 / sqrt(square + epsilon)`` per row."""
    return stages.add("rstd", where.stat, apply("recip", apply("sqrt", apply("add", square, epsilon))))


def scaled(x: Expr, scale: Expr | None, bias: Expr | None) -> Expr:
    """``x * scale + bias``, either absent."""
    if scale is not None:
        x = apply("mul", x, scale)
    return apply("add", x, bias) if bias is not None else x


@defines("LayerNormalization")
def layer_normalization(node: Node) -> list[Stage] | None:
    """Rows are the axes from `axis` on; outputs 1 and 2 are the rows' mean and reciprocal standard deviation."""
    x, scale, bias = present(node, 0), present(node, 1), operand(node, 2)
    where = trailing_rows(node, x)
    stages = Stages(node)
    mean, centered = centre(stages, x, where)
    rstd = reciprocal_root(stages, mean_square(stages, centered, where), where, node.attrs.get("epsilon", 1e-5))
    for position, statistic in ((1, mean), (2, rstd)):
        if position < len(node.outputs) and node.outputs[position] is not None:
            stages.output(raw(statistic, coordinates(where.stat)), position=position)
    space = where.space
    normal = apply("mul", read(centered, space), read(rstd, where.back))
    shift = read(bias, space, centered.dtype) if bias is not None else None
    return stages.output(scaled(normal, read(scale, space, centered.dtype), shift))


@defines("RMSNormalization")
def rms_normalization(node: Node) -> list[Stage] | None:
    """``x / sqrt(mean(x ** 2) + eps) * scale`` over the axes from `axis` on."""
    x, scale = present(node, 0), present(node, 1)
    where = trailing_rows(node, x)
    stages = Stages(node)
    rstd = reciprocal_root(stages, mean_square(stages, x, where), where, node.attrs.get("epsilon", 1e-5))
    normal = apply("mul", read(x, where.space), read(rstd, where.back))
    return stages.output(scaled(normal, read(scale, where.space, normal.dtype), None))


def trailing_rows(node: Node, x: Value) -> Rows:
    """The rows of a normalisation over all axes from `axis` (default: the last) on."""
    rank = len(x.dims)
    return rows(x.dims, range(node.attrs.get("axis", -1) % rank, rank))


@defines("GroupNormalization")
def group_normalization(node: Node) -> list[Stage] | None:
    """Rows are (channels of a group, spatial axes); scale and bias per channel, before opset 21 per group."""
    x, scale, bias = present(node, 0), present(node, 1), present(node, 2)
    where = group_rows(x.dims, node.attrs["num_groups"])
    per_channel = node.version >= 21 or not node.version
    return _standardised(node, x, where, scale, bias, where.space[1] if per_channel else where.back[1])


@defines("InstanceNormalization")
def instance_normalization(node: Node) -> list[Stage] | None:
    """Rows are the spatial axes; scale and bias per channel."""
    x, scale, bias = present(node, 0), present(node, 1), present(node, 2)
    where = rows(x.dims, range(2, len(x.dims)))
    return _standardised(node, x, where, scale, bias, where.space[1])


def _standardised(node: Node, x: Value, where: Rows, scale: Value, bias: Value, index: Lin) -> list[Stage]:
    """Mean 0 and variance 1 per row, then the scale and bias at `index`."""
    stages = Stages(node)
    _, centered = centre(stages, x, where)
    rstd = reciprocal_root(stages, mean_square(stages, centered, where), where, node.attrs.get("epsilon", 1e-5))
    normal = apply("mul", read(centered, where.space), read(rstd, where.back))
    kind = centered.dtype
    return stages.output(scaled(normal, read(scale, (index,), kind), read(bias, (index,), kind)))


@defines("BatchNormalization")
def batch_normalization(node: Node) -> list[Stage] | None:
    """``x * s + b`` with s and b small per-channel stages, so that they can be folded into a Conv before it."""
    legacy = 0 < node.version < 7
    training = not node.attrs.get("is_test", 0) if legacy else node.attrs.get("training_mode", 0)
    x = present(node, 0)
    if training or not node.attrs.get("spatial", 1) or len(x.dims) < 2:
        return None
    stages = Stages(node)
    channels, kind = present(node, 1).dims, read(x, coordinates(x.dims)).dtype
    scale, bias, mean, variance = (read(present(node, k), coordinates(channels), kind) for k in range(1, 5))
    root = apply("sqrt", apply("add", variance, node.attrs.get("epsilon", 1e-5)))
    factor = stages.add("scale", channels, apply("div", scale, root))
    offset = apply("sub", bias, apply("mul", mean, read(factor, coordinates(channels))))
    shift = stages.add("shift", channels, offset)
    space = coordinates(x.dims)
    return stages.output(scaled(read(x, space), read(factor, space[1:2]), read(shift, space[1:2])))


@defines("MeanVarianceNormalization")
def mean_variance_normalization(node: Node) -> list[Stage] | None:
    """``(x - mean) / (std + 1e-9)`` over `axes`, as the operator's function body has it."""
    x = present(node, 0)
    where = rows(x.dims, [a % len(x.dims) for a in node.attrs.get("axes", [0, 2, 3])])
    stages = Stages(node)
    _, centered = centre(stages, x, where)
    deviation = apply("add", apply("sqrt", mean_square(stages, centered, where)), 1e-9)
    spread = stages.add("std", where.stat, deviation)
    return stages.output(apply("div", read(centered, where.space), read(spread, where.back)))


@defines("LpNormalization")
def lp_normalization(node: Node) -> list[Stage] | None:
    """``x / norm`` along one axis, the norm being L1 or L2; 0 where the norm is 0."""
    x, order = present(node, 0), node.attrs.get("p", 2)
    if order not in (1, 2) or not is_float(x.dtype):
        return None
    where = rows(x.dims, [node.attrs.get("axis", -1) % len(x.dims)])
    stages = Stages(node)
    element = read(x, where.data)
    element = apply("abs", element) if order == 1 else apply("mul", element, element)
    norm = reduced(stages, "sum", "sum", where, element)
    if order == 2:
        norm = stages.add("norm", where.stat, apply("sqrt", read(norm, coordinates(where.stat))))
    length = read(norm, where.back)
    quotient = apply("div", read(x, where.space), length)
    return stages.output(apply("where", apply("eq", length, 0.0), 0.0, quotient))


@defines("LRN")
def local_response_normalization(node: Node) -> list[Stage] | None:
    """``x / (bias + alpha / size * sum of squares over a window of channels) ** beta``."""
    x, size = present(node, 0), int(node.attrs["size"])
    space = coordinates(x.dims)
    channel = space[1] + axis_digit(len(x.dims), size) - (size - 1) // 2
    element = read(x, (space[0], channel, *space[2:]))
    body = choose((Guard(channel, x.dims[1]),), apply("mul", element, element), const(0, element.dtype))
    stages = Stages(node)
    squares = read(stages.add("squares", x.dims, body, [size], "sum"), space)
    base = apply("add", apply("mul", squares, node.attrs.get("alpha", 1e-4) / size), node.attrs.get("bias", 1.0))
    return stages.output(apply("div", read(x, space), apply("pow", base, node.attrs.get("beta", 0.75))))
