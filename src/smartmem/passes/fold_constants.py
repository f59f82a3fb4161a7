"""What reads nothing but constants is computed at compile time.

    stages     in `lower` the small ones; before `fuse` all, where no schedule would compute them in a load
    kernels    after `fuse` those that no load took

In between lie large tensors made of little, such as the vectors of relative positions of every two tokens, gathered
from a table: an operand of a product computes them from the table, which stays in the caches, while what they are
would come from main memory in every call (`operand_b.is_expanded`).
"""

from __future__ import annotations

import math

import numpy as np

from smartmem.index.map import evaluate
from smartmem.kernel.evaluate import GROWTH_LIMIT, evaluate_stages
from smartmem.kernel.stage import Kernel, Stage
from smartmem.passes.module import HostOp, Module


def fold_stages(module: Module, limit: int = GROWTH_LIMIT) -> None:
    """Computes stages that read only constants and make at most `limit` bytes."""
    kept = _kept(module)
    module.steps = [step for step in module.steps if not _fold(module, step, kept, limit)]


def fold_kernels(module: Module) -> None:
    """Computes kernels that read only constants and make at most `GROWTH_LIMIT` bytes."""
    kept = _kept(module)
    module.kernels = [kernel for kernel in module.kernels if not _fold(module, kernel, kept, GROWTH_LIMIT)]


def _kept(module: Module) -> set[str]:
    """Tensors that are written in every call: outputs, and what lies in one buffer with others."""
    return {v.name for v in module.outputs} | module.sharing()


def _fold(module: Module, step: Stage | Kernel | HostOp, kept: set[str], limit: int) -> bool:
    """Makes a constant of what a step computes; False if it is to run."""
    if isinstance(step, HostOp):
        return False
    kernel = Kernel.of(step) if isinstance(step, Stage) else step
    if (
        kernel.tensor in kept
        or any(math.prod(s.domain) * s.dtype.itemsize > limit for s in kernel.stages)
        or any(name not in module.constants for name in kernel.inputs())
    ):
        return False
    read = {name: module.constants[name] for name in kernel.inputs()}
    result = evaluate_stages(kernel.stages, read)[kernel.output.name]
    if kernel.store is not None:
        values, result = result, np.zeros(kernel.shape, result.dtype)
        grid = np.ogrid[tuple(slice(n) for n in values.shape)]
        result[tuple(np.broadcast_to(evaluate(c, grid), values.shape) for c in kernel.store.coords)] = values
    module.constants[kernel.tensor] = result
    module.types[kernel.tensor] = (kernel.shape, kernel.output.dtype)
    return True
