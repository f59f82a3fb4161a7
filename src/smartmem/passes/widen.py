"""Which tensors stay in float when activations are stored as halves: sums that nothing bounds.

Halves end at 65504. A product with weights, a normalization, an average weighted by a softmax stay near the size of
what goes in; a product of activations with activations or a long sum over them (linear attention, a plain sum over
pixels) does not. Every kernel accumulates in float; what such a kernel stores, it stores in float too, and so does a
pointwise kernel whose results are as large as what it reads, until something divides.

In: fused kernels. Out: names added to `module.wide`.
"""

from __future__ import annotations

import math

from smartmem.kernel.expr import Alu, walk
from smartmem.kernel.stage import Kernel, Stage, tensors_read
from smartmem.passes.module import Module
from smartmem.schedule.roles import is_contraction

KEEPING = frozenset(("add", "sub", "mul", "neg", "abs", "max", "min", "where", "cast"))
LONG = 64  # terms of a sum from which on it may leave the range


def widen(module: Module) -> None:
    """Marks the outputs of unbounded sums, and what is as large."""
    for kernel in module.kernels:
        if isinstance(kernel, Kernel) and (_unbounded(kernel, set(module.constants)) or _as_large(kernel, module.wide)):
            module.wide.add(kernel.tensor)


def _as_large(kernel: Kernel, wide: set[str]) -> bool:
    """Whether a kernel only moves, adds or scales elements, some of them of wide tensors."""
    if wide.isdisjoint(kernel.inputs()) or any(stage.reduce for stage in kernel.stages):
        return False
    return all(n.op in KEEPING for s in kernel.stages for n in walk(s.body) if isinstance(n, Alu))


def _unbounded(kernel: Kernel, constants: set[str]) -> bool:
    summed = [s for s in kernel.stages if s.combine == "sum"]
    if kernel.rows is None:
        return any(_only_activations(s, constants) for s in summed if math.prod(s.reduce) >= LONG)
    products = [s for s in summed if is_contraction(s, kernel.rows)]
    normalized = any(s.reduce for s in kernel.stages if s not in products)
    return not normalized and any(_only_activations(s, constants) for s in products)


def _only_activations(stage: Stage, constants: set[str]) -> bool:
    return not set(tensors_read(stage.body)) & constants
