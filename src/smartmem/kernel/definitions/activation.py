"""Activations: elementwise functions with parameters, as formulas in the arithmetic vocabulary.

Formulas are those of the ONNX operator documentation, rearranged only where it says why. Worked example:
``HardSwish(x) = x * max(0, min(1, x/6 + 1/2))``. Parameters are attributes with ONNX's defaults. All are for floats;
other dtypes run on the host, but for Relu, LeakyRelu and PRelu.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from smartmem.graph.ir import Node
from smartmem.kernel.definitions.build import apply, coordinates, is_float, operands, pointwise, present, read
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import Expr
from smartmem.kernel.stage import Stage

Attrs = Mapping[str, Any]


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return apply("max", apply("min", apply("add", apply("mul", x, alpha), beta), 1.0), 0.0)


def _gelu(x: Expr, attrs: Attrs) -> Expr:
    if attrs.get("approximate", "none") in ("tanh", b"tanh"):
        cube = apply("mul", apply("mul", x, x), x)
        inner = apply("mul", apply("add", x, apply("mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        gate = apply("tanh", inner)
    else:
        gate = apply("erf", apply("mul", x, math.sqrt(0.5)))
    return apply("mul", apply("mul", x, 0.5), apply("add", gate, 1.0))


def _elu(x: Expr, attrs: Attrs) -> Expr:
    curve = apply("mul", apply("sub", apply("exp", x), 1.0), attrs.get("alpha", 1.0))
    return apply("where", apply("lt", x, 0.0), curve, x)


def _selu(x: Expr, attrs: Attrs) -> Expr:
    alpha, gamma = attrs.get("alpha", 1.67326319217681884765625), attrs.get("gamma", 1.05070102214813232421875)
    curve = apply("mul", apply("sub", apply("exp", x), 1.0), alpha)
    return apply("mul", apply("where", apply("le", x, 0.0), curve, x), gamma)


def _celu(x: Expr, attrs: Attrs) -> Expr:
    alpha = attrs.get("alpha", 1.0)
    curve = apply("mul", apply("sub", apply("exp", apply("mul", x, 1 / alpha)), 1.0), alpha)
    return apply("add", apply("max", x, 0.0), apply("min", curve, 0.0))


def softplus(x: Expr) -> Expr:
    """``log(1 + exp(x))`` as ``max(x, 0) + log(1 + exp(-|x|))``, which does not overflow."""
    tail = apply("log", apply("add", apply("exp", apply("neg", apply("abs", x))), 1.0))
    return apply("add", apply("max", x, 0.0), tail)


def _swish(x: Expr, attrs: Attrs) -> Expr:
    alpha = attrs.get("alpha", 1.0)
    return apply("mul", x, apply("sigmoid", x if alpha == 1.0 else apply("mul", x, alpha)))


def _shrink(x: Expr, attrs: Attrs) -> Expr:
    bias, limit = attrs.get("bias", 0.0), attrs.get("lambd", 0.5)
    zero = apply("where", apply("gt", x, limit), apply("sub", x, bias), 0.0)
    return apply("where", apply("lt", x, -limit), apply("add", x, bias), zero)


FORMULAS: dict[str, Callable[[Expr, Attrs], Expr]] = {
    "HardSigmoid": lambda x, attrs: _hard_sigmoid(x, attrs.get("alpha", 0.2), attrs.get("beta", 0.5)),
    "HardSwish": lambda x, attrs: apply("mul", x, _hard_sigmoid(x, 1 / 6, 0.5)),
    "Gelu": _gelu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "Softplus": lambda x, attrs: softplus(x),
    "Softsign": lambda x, attrs: apply("div", x, apply("add", apply("abs", x), 1.0)),
    "Mish": lambda x, attrs: apply("mul", x, apply("tanh", softplus(x))),
    "Swish": _swish,
    "ThresholdedRelu": lambda x, attrs: apply("where", apply("gt", x, attrs.get("alpha", 1.0)), x, 0.0),
    "Shrink": _shrink,
}


@defines(*FORMULAS)
def activation(node: Node) -> list[Stage] | None:
    """A formula of one float operand."""
    if not is_float(present(node, 0).dtype):
        return None
    return pointwise(node, FORMULAS[node.op](operands(node)[0], node.attrs))


@defines("Relu")
def relu(node: Node) -> list[Stage] | None:
    """``max(x, 0)``; integers too."""
    return pointwise(node, apply("max", *operands(node), 0))


@defines("LeakyRelu")
def leaky_relu(node: Node) -> list[Stage] | None:
    """``x < 0 ? alpha * x : x``."""
    (x,) = operands(node)
    return pointwise(node, _leaky(x, node.attrs.get("alpha", 0.01))) if is_float(x.dtype) else None


@defines("PRelu")
def prelu(node: Node) -> list[Stage] | None:
    """LeakyRelu with a slope that is broadcast; before opset 7 one slope per channel (axis 1)."""
    x, slope = present(node, 0), present(node, 1)
    space = coordinates(node.output.dims)
    if node.version < 7 and len(slope.dims) == 1 and len(space) > 1:
        return pointwise(node, _leaky(read(x, space), read(slope, space[1:2])))
    return pointwise(node, _leaky(read(x, space), read(slope, space)))


def _leaky(x: Expr, slope: Expr | float) -> Expr:
    return apply("where", apply("lt", x, 0), apply("mul", x, slope), x)


@defines("SwiGLU")
def swiglu(node: Node) -> list[Stage] | None:
    """``Swish(a) * b``."""
    gate, value = operands(node)
    return pointwise(node, apply("mul", _swish(gate, node.attrs), value))
