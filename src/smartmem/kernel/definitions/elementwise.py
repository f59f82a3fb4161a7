"""Elementwise operators: arithmetic, comparison, logic, bits, casts, selection. Activations are in `activation`.

Worked example: ``y = Add(x, b)`` with x (2, 3) and b (3,) is the stage ``y[i, j] = x[i, j] + b[j]``.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.kernel.definitions.build import (
    apply,
    cast,
    coordinates,
    is_float,
    operand,
    operands,
    pointwise,
    present,
    raw,
    read,
    scalar,
)
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr, alu, const
from smartmem.kernel.stage import Stage

# ONNX operator -> arithmetic vocabulary
FLOAT_UNARY = {
    "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin",
    "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh",
    "Atanh": "atanh", "Erf": "erf", "Sigmoid": "sigmoid", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Reciprocal": "recip",
}  # fmt: skip
UNARY = {"Neg": "neg", "Abs": "abs", "Sign": "sign", "Not": "not", "BitwiseNot": "bitwise_not"}
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "And": "and", "Or": "or", "Xor": "xor",
    "BitwiseAnd": "bitand", "BitwiseOr": "bitor", "BitwiseXor": "bitxor", "Equal": "eq", "Less": "lt",
    "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge",
}  # fmt: skip
VARIADIC = {"Sum": "add", "Max": "max", "Min": "min", "Mean": "add"}


@defines(*FLOAT_UNARY)
def float_unary(node: Node) -> list[Stage] | None:
    """One function of one float operand. Integers (Erf allows them) run on the host."""
    if not is_float(present(node, 0).dtype):
        return None
    return pointwise(node, apply(FLOAT_UNARY[node.op], *operands(node)))


@defines(*UNARY)
def unary(node: Node) -> list[Stage] | None:
    """One function of one operand of any dtype that the operator allows."""
    x = present(node, 0)
    if node.op == "Abs" and x.dtype.kind in "ub":
        return pointwise(node, raw(x, coordinates(x.dims)))
    return pointwise(node, apply(UNARY[node.op], *operands(node)))


@defines(*BINARY)
def binary(node: Node) -> list[Stage] | None:
    """One function of two operands, broadcast. Opset 6 and older align by an attribute, which has no definition."""
    if node.attrs.get("broadcast") and present(node, 0).dims != present(node, 1).dims:
        return None
    return pointwise(node, apply(BINARY[node.op], *operands(node)))


@defines(*VARIADIC)
def variadic(node: Node) -> list[Stage] | None:
    """Sum, Mean, Max or Min of one or more operands, broadcast."""
    values = operands(node)
    body = reduce(lambda a, b: apply(VARIADIC[node.op], a, b), values)
    if node.op == "Mean" and len(values) > 1:
        body = apply("mul", body, 1 / len(values))
    return pointwise(node, body)


@defines("Identity")
def identity(node: Node) -> list[Stage] | None:
    """A view."""
    return pointwise(node, raw(present(node, 0), coordinates(node.output.dims)))


@defines("Cast", "CastLike")
def cast_to(node: Node) -> list[Stage] | None:
    """The dtype comes from the output. To bool: x != 0."""
    return pointwise(node, read(present(node, 0), coordinates(node.output.dims)))


@defines("Where")
def where(node: Node) -> list[Stage] | None:
    """``condition ? a : b``."""
    return pointwise(node, apply("where", *operands(node)))


@defines("Pow")
def power(node: Node) -> list[Stage] | None:
    """``x ** y`` in the type of x. Small constant exponents become products or a root: they are the common ones."""
    base, exponent = present(node, 0), present(node, 1)
    space = coordinates(node.output.dims)
    x, number = read(base, space), scalar(exponent)
    if number in (1, 2, 3):
        return pointwise(node, reduce(lambda a, b: apply("mul", a, b), [x] * int(number)))
    if not is_float(base.dtype):
        if is_float(exponent.dtype):  # int ** float is computed in floats and truncated
            kind = np.dtype(np.float64)
            return pointwise(node, alu("pow", cast(x, kind), cast(read(exponent, space), kind)))
        if exponent.dtype.kind == "i" and (number is None or number < 0):
            return None  # a negative exponent: the vocabulary's integer power has none
        return pointwise(node, alu("pow", x, cast(read(exponent, space), x.dtype)))
    if number == 0.5:  # differs from pow at -inf only, as in C's library under -fno-math-errno
        return pointwise(node, apply("sqrt", x))
    if number == -1:
        return pointwise(node, apply("recip", x))
    return pointwise(node, alu("pow", x, cast(read(exponent, space), x.dtype)))


@defines("Mod")
def modulo(node: Node) -> list[Stage] | None:
    """``fmod=1``: the sign of the dividend (C); else integers with the sign of the divisor."""
    return pointwise(node, apply("fmod" if node.attrs.get("fmod", 0) else "mod", *operands(node)))


@defines("BitShift")
def bit_shift(node: Node) -> list[Stage] | None:
    """``x << y`` or ``x >> y`` of unsigned integers."""
    return pointwise(node, apply("shl" if node.attrs["direction"] in ("LEFT", b"LEFT") else "shr", *operands(node)))


@defines("Clip")
def clip(node: Node) -> list[Stage] | None:
    """``min(max(x, low), high)``; bounds are inputs (attributes before opset 11), either may be absent."""
    space = coordinates(node.output.dims)
    body = read(present(node, 0), space)
    for position, (name, op) in enumerate((("min", "max"), ("max", "min")), start=1):
        bound: Value | None = operand(node, position)
        if bound is not None:
            # the bound is a scalar, but some exporters write shape (1,): it broadcasts either way
            body = apply(op, body, read(bound, space))
        elif node.attrs.get(name) is not None:
            body = apply(op, body, float(node.attrs[name]))
    return pointwise(node, body)


@defines("IsNaN")
def is_nan(node: Node) -> list[Stage] | None:
    """Whether an element is not a number."""
    return pointwise(node, alu("isnan", *operands(node), dtype=bool))


@defines("IsInf")
def is_inf(node: Node) -> list[Stage] | None:
    """Whether an element is infinite, of the signs that the attributes ask for."""
    (x,) = operands(node)
    if not is_float(x.dtype):
        return None
    negative, positive = node.attrs.get("detect_negative", 1), node.attrs.get("detect_positive", 1)
    body: Expr
    if negative and positive:
        body = apply("eq", apply("abs", x), math.inf)
    elif positive or negative:
        body = apply("eq", x, math.inf if positive else -math.inf)
    else:
        body = const(False, bool)
    return pointwise(node, body)
