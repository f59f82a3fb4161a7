"""Arithmetic that does nothing disappears: constants that hold one value are that value, x * 1, x + 0 and x - 0 are x.

Exporters write normalizations without scale and shift as if they had them, by tensors of ones and zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smartmem.kernel.evaluate import LARGE
from smartmem.kernel.expr import Alu, Const, DType, Expr, Iota, Load, const, rebuild, with_operands
from smartmem.kernel.stage import Stage
from smartmem.passes.module import Module
from smartmem.schedule.roles import factors


def simplify(module: Module) -> None:
    """Loads of constants with the same value everywhere become that value (the ones and zeros of a decomposed norm)."""
    values: dict[str, Expr] = {}
    for name, data in module.constants.items():
        if 0 < data.nbytes <= LARGE and _is_exact(data.dtype) and (data == data.flat[0]).all():
            values[name] = const(data.flat[0].item(), data.dtype)

    def leaf(node: Load | Iota) -> Expr:
        return values.get(node.tensor, node) if isinstance(node, Load) else node

    for position, step in enumerate(module.steps):
        if isinstance(step, Stage) and factors(step) is None:
            module.steps[position] = replace(step, body=rebuild(step.body, leaf, operation=_without_neutral))


def _is_exact(dtype: DType) -> bool:
    """Whether x * 1 and x + 0 are x in the arithmetic of `dtype`, and constants of it are worth finding."""
    return dtype == np.float32 or dtype.kind in "iu"


def _without_neutral(node: Alu, args: Sequence[Expr]) -> Expr:
    """x * 1 -> x, x + 0 -> x, x - 0 -> x."""
    neutral = {"mul": 1.0, "add": 0.0, "sub": 0.0}.get(node.op)
    first = args[:1] if node.op == "sub" else []  # 0 - x is another thing
    rest = [*first, *(a for a in args[len(first) :] if not (isinstance(a, Const) and a.value == neutral))]
    keeps = neutral is not None and len(rest) == 1 and _is_exact(node.dtype)
    return rest[0] if keeps else with_operands(node, args)
