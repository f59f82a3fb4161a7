"""GELU as one function: ``x / 2 * (1 + erf(x / sqrt(2)))``, however its factors are ordered.

Exporters write five operators. As one function (`sm_geluv`) it takes fifteen instructions instead of twenty.

In: kernels. Out: other bodies of their stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from smartmem.kernel.expr import Alu, Const, Expr, alu, rebuild, with_operands
from smartmem.kernel.stage import Kernel
from smartmem.passes.module import Module

MOST = 4  # factors of a GELU: x, 1 + erf, a half or two constants that make it; of x * x * ... there are 2^n


def gelus(module: Module) -> None:
    """Finds GELU in float32 in all kernels."""
    for kernel in module.kernels:
        if isinstance(kernel, Kernel):
            kernel.stages = [replace(stage, body=rebuild(stage.body, operation=_operation)) for stage in kernel.stages]


def _operation(node: Alu, args: Sequence[Expr]) -> Expr:
    same = with_operands(node, args)
    if node.op == "mul" and node.dtype == np.float32:
        factors = list(islice(_factors(same), MOST + 1))
        return (_gelu(factors) if len(factors) <= MOST else None) or same
    return same


def _gelu(factors: list[Expr]) -> Expr | None:
    """The GELU that is the product of some factors, if it is one."""
    for factor in factors:
        x = _argument(factor)
        others = [f for f in factors if f is not factor and f is not x]
        scale = math.prod(f.value for f in others if isinstance(f, Const))
        if x is not None and factors.count(x) == 1 and all(isinstance(f, Const) for f in others) and scale == 0.5:
            return alu("gelu", x)
    return None


def _argument(factor: Expr) -> Expr | None:
    """The x of ``1 + erf(x / sqrt(2))``."""
    if not isinstance(factor, Alu) or factor.op != "add" or not any(_is(arg, 1.0) for arg in factor.args):
        return None
    erf = next((arg for arg in factor.args if isinstance(arg, Alu) and arg.op == "erf"), None)
    scaled = erf.args[0] if erf is not None else None
    if not isinstance(scaled, Alu):
        return None
    if scaled.op == "div":
        return scaled.args[0] if _is(scaled.args[1], math.sqrt(2)) else None
    if scaled.op != "mul":
        return None
    return next((x for x, by in (scaled.args, scaled.args[::-1]) if _is(by, math.sqrt(0.5))), None)


def _is(expr: Expr, value: float) -> bool:
    return isinstance(expr, Const) and math.isclose(expr.value, value, rel_tol=1e-6)


def _factors(product: Expr) -> Iterator[Expr]:
    if isinstance(product, Alu) and product.op == "mul":
        for arg in product.args:
            yield from _factors(arg)
    else:
        yield product
