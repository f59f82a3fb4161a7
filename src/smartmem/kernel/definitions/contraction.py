"""Contractions: MatMul, Gemm, Conv and ConvTranspose (Einsum is in `einsum`).

Each is one stage that sums products of an operand and a weight, ``sum_k a[.., k] * b[k, ..]``, and, where there is a
bias or a narrower result type, a pointwise stage after it. The last reduce axis is the channels (K), the innermost one.

Worked example: ``y = Conv(x, w, b)``, 3x3 with padding 1, is two stages, the load of x guarded at the padding::

    y.sum[n, m, h, w] = sum_{i, j, c} x[n, c, h + i - 1, w + j - 1] * w[m, c, i, j]
    y[n, m, h, w]     = y.sum[n, m, h, w] + b[m]
"""

from __future__ import annotations

from smartmem.graph.ir import Node, Value
from smartmem.index.divide import divide
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.definitions.access import guarded, product, reduce_then
from smartmem.kernel.definitions.build import broadcast, cast, coordinates, is_float, operand, present, read
from smartmem.kernel.definitions.geometry import window_of
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, alu, const, load
from smartmem.kernel.stage import Stage


@defines("MatMul")
def matmul(node: Node) -> list[Stage]:
    """``y[b.., i, j] = sum_k a[b.., i, k] * b[b.., k, j]``; operands of rank 1 lack i or j."""
    body, depth = matrix_product(present(node, 0), present(node, 1), node.output.dims)
    return reduce_then(node, "sum", body, depth)


def matrix_product(a: Value, b: Value, out: tuple[int, ...]) -> tuple[Expr, tuple[int, ...]]:
    """What a MatMul with a result of shape `out` sums, and the extent of k."""
    depth = a.dims[-1]
    space, k = coordinates(out), axis_digit(len(out), depth)
    row = space[-1 if len(b.dims) == 1 else -2 :][:1] if len(a.dims) > 1 else ()
    column = space[-1:] if len(b.dims) > 1 else ()
    batch = space[: len(out) - len(row) - len(column)]
    left = (*broadcast(a.dims[:-2], batch), *row, k)
    right = (*broadcast(b.dims[:-2], batch), k, *column)
    return product(load(a.name, left, a.dtype), load(b.name, right, b.dtype)), (depth,)


@defines("Gemm")
def gemm(node: Node) -> list[Stage] | None:
    """``y[i, j] = alpha * sum_k a[i, k] * b[k, j] + beta * c[i, j]``, a or b read transposed."""
    a, b, c = present(node, 0), present(node, 1), operand(node, 2)
    depth = a.dims[0] if node.attrs.get("transA") else a.dims[1]
    (i, j), k = coordinates(node.output.dims), axis_digit(2, depth)
    left = (k, i) if node.attrs.get("transA") else (i, k)
    right = (j, k) if node.attrs.get("transB") else (k, j)
    body = product(load(a.name, left, a.dtype), load(b.name, right, b.dtype))
    alpha, beta = float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0))
    if not is_float(body.dtype) and not (alpha.is_integer() and beta.is_integer()):
        return None

    def finish(total: Expr) -> Expr:
        result = _scaled(total, alpha)
        if c is None or beta == 0.0:
            return result
        return alu("add", result, _scaled(read(c, (i, j)), beta))

    plain = alpha == 1.0 and (c is None or beta == 0.0)
    return reduce_then(node, "sum", body, (depth,), None if plain else finish)


def _scaled(value: Expr, factor: float) -> Expr:
    return value if factor == 1.0 else alu("mul", value, const(factor, value.dtype))


@defines("Conv")
def conv(node: Node) -> list[Stage]:
    """``y[n, m, o..] = sum_{k.., c} x[n, group(m)*C/g + c, o*stride + k*dilation - pad] * w[m, c, k] + b[m]``."""
    body, taps = convolution(node, present(node, 0), present(node, 1))
    return _with_bias(node, body, taps, coordinates(node.output.dims)[1])


def convolution(node: Node, x: Value, w: Value) -> tuple[Expr, tuple[int, ...]]:
    """What a convolution with the attributes of `node` sums, and the extents of its taps and channels."""
    out = node.output.dims
    groups, kernel, depth = int(node.attrs.get("group", 1)), w.dims[2:], w.dims[1]
    n, m, *outputs = coordinates(out)
    *taps, c = coordinates((*kernel, depth), len(out))
    window = window_of(node, x.dims[2:], kernel)
    coords = window.coordinates(outputs, taps)
    channel = divide(m, out[1] // groups)[0] * depth + c
    data = guarded(x, (n, channel, *coords), window.guards(coords))
    weight = load(w.name, (m, c, *taps), w.dtype)
    return product(data, weight), (*kernel, depth)


@defines("ConvTranspose")
def conv_transpose(node: Node) -> list[Stage]:
    """The gradient of a convolution, gathered: an output position sums over the taps that reach it.

    ``y[o] = sum_k x[(o + pad - k*dilation) / stride] * w[k]`` over the taps k for which the division is exact; see
    `Window.reaching`.
    """
    x, w, out = present(node, 0), present(node, 1), node.output.dims
    groups, kernel = int(node.attrs.get("group", 1)), w.dims[2:]
    depth, width = x.dims[1] // groups, w.dims[1]
    window = window_of(node, x.dims[2:], kernel)
    steps = window.steps()
    n, m, *outputs = coordinates(out)
    *counters, c = coordinates((*steps, depth), len(out))
    taps, coords, inside = window.reaching(outputs, counters)
    group, column = divide(m, width)
    channel = group * depth + c
    data = guarded(x, (n, channel, *coords), inside)
    exists = tuple(Guard(tap, k) for tap, k in zip(taps, kernel, strict=True))
    weight = guarded(w, (channel, column, *taps), exists)
    return _with_bias(node, product(data, weight), (*steps, depth), m)


def _with_bias(node: Node, body: Expr, reduce: tuple[int, ...], channel: Lin) -> list[Stage]:
    bias = operand(node, 2)
    if bias is None:
        return reduce_then(node, "sum", body, reduce)
    addend = cast(load(bias.name, (channel,), bias.dtype), body.dtype)
    return reduce_then(node, "sum", body, reduce, lambda total: alu("add", total, addend))
