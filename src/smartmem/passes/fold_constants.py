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
from smartmem.kernel.evaluate import GROWTH_LIMIT, evaluate_stage, evaluate_stages
from smartmem.kernel.stage import Kernel, Stage, tensors_read
from smartmem.passes.module import HostOp, Module


def fold_stages(module: Module, limit: int = GROWTH_LIMIT) -> None:
    """Computes stages that read only constants and make at most `limit` bytes."""
    outputs = {v.name for v in module.outputs} | module.sharing()
    kept: list[Stage | HostOp] = []
    for step in module.steps:
        if (
            isinstance(step, Stage)
            and step.name not in outputs
            and math.prod(step.domain) * step.dtype.itemsize <= limit
            and all(name in module.constants for name in tensors_read(step.body))
        ):
            module.constants[step.name] = evaluate_stage(step, module.constants)
            module.types[step.name] = (step.shape, step.dtype)
        else:
            kept.append(step)
    module.steps = kept


def fold_kernels(module: Module) -> None:
    """Computes kernels that read only constants and make at most `GROWTH_LIMIT` bytes."""
    outputs = {v.name for v in module.outputs} | module.sharing()
    kept: list[Kernel | HostOp] = []
    for kernel in module.kernels:
        if (
            isinstance(kernel, Kernel)
            and kernel.tensor not in outputs
            and all(math.prod(s.domain) * s.dtype.itemsize <= GROWTH_LIMIT for s in kernel.stages)
            and all(name in module.constants for name in kernel.inputs())
        ):
            read = {name: module.constants[name] for name in kernel.inputs()}
            values = evaluate_stages(kernel.stages, read)[kernel.output.name]
            result = np.zeros(kernel.shape, values.dtype)
            grid = np.ogrid[tuple(slice(n) for n in values.shape)]
            result[tuple(np.broadcast_to(evaluate(c, grid), values.shape) for c in kernel.store_coords())] = values
            module.constants[kernel.tensor] = result
        else:
            kept.append(kernel)
    module.kernels = kept
