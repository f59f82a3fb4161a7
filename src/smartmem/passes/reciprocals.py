"""Division by a constant becomes multiplication by its reciprocal: a vector of quotients takes ten times as long.

At most one and a half ulp from the quotient instead of half an ulp. Only where the reciprocal of every entry is a
normal number; zeros, infinities and NaN stay divisors.

In: kernels. Out: other bodies of their stages, and constants with the reciprocals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from smartmem.kernel.expr import Alu, Const, Expr, Load, alu, const, load, rebuild
from smartmem.kernel.stage import Kernel
from smartmem.passes.module import Module

LARGEST = 2.0**126  # of numbers whose reciprocals are normal, and of reciprocals of normal numbers


def reciprocals(module: Module) -> None:
    """Replaces float32 divisions by constants in all kernels."""

    def operation(node: Alu, args: Sequence[Expr]) -> Expr:
        if node.op == "div" and node.dtype == np.float32 and (inverse := _inverse(module, args[1])) is not None:
            return alu("mul", args[0], inverse)
        return alu(node.op, *args, dtype=node.dtype)

    for kernel in module.kernels:
        if isinstance(kernel, Kernel):
            kernel.stages = [replace(stage, body=rebuild(stage.body, operation=operation)) for stage in kernel.stages]


def _inverse(module: Module, divisor: Expr) -> Expr | None:
    """``1 / divisor`` of a constant, None of anything else."""
    if isinstance(divisor, Const):
        return const(1 / divisor.value) if _is_safe(np.float32(divisor.value)) else None
    if not isinstance(divisor, Load) or divisor.tensor not in module.constants:
        return None
    name, data = f"{divisor.tensor}.reciprocal", module.constants[divisor.tensor]
    if name not in module.constants:
        if not _is_safe(data):
            return None
        module.constants[name] = (1 / data.astype(np.float64)).astype(np.float32)
        module.types[name] = (data.shape, np.dtype(np.float32))
    return load(name, divisor.index)


def _is_safe(data: np.ndarray | np.float32) -> bool:
    size = np.abs(data)
    return bool(np.all((size >= 1 / LARGEST) & (size <= LARGEST)))
