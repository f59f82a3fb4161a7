"""Matrix products with a small output and a long reduction, taken in two steps on a device (split-K).

    out[m, n] = sum over k of A * B
      ->  part[s, m, n] = sum over the k of slice s of A * B
          out[m, n] = sum over s of part[s, m, n]

A device computes a product tile by tile; few tiles leave most of it idle while each of them waits for its many steps.
More slices mean more tiles. What follows the product is fused to the second step, which is a small pointwise kernel.
Partial sums stay in float whatever the precision.

On a CPU it is products of activations (K^T V of linear attention) that are split: a core then reads the rows that it
has written itself, where whole products read what all cores wrote.

In: stages, before fusion. Out: the same module with some contractions replaced by two stages.
"""

from __future__ import annotations

import math
from dataclasses import replace

from smartmem.kernel.stage import Stage, in_slices, tensors_read
from smartmem.passes.module import HostOp, Module
from smartmem.schedule.backend import Predict, Product
from smartmem.schedule.roles import align_contraction, factors, weighted_extents

SLICES = (2, 3, 4, 6, 8, 12, 16)
GAIN = 0.85  # the two steps must promise at most this share of the time
FOR_CORES = (8, 4, 2)  # slices on a CPU
LEAST = 192  # steps of k that a slice has there at least
SMALL = 1 << 15  # elements of a product that is split there, at most


def split_products(module: Module, predict: Predict, second: float) -> None:
    """Splits every contraction with constant weights for which `predict` says that it pays.

    Args:
        predict: see `Backend`.
        second: what the second step costs whatever it adds up, in the same unit.
    """
    steps: list[Stage | HostOp] = []
    constants = set(module.constants)
    for step in module.steps:
        pair = _split(step, constants, predict, second) if isinstance(step, Stage) else None
        if pair is None:
            steps.append(step)
            continue
        steps += _declared(pair, module)
        module.wide.add(pair[0].name)
    module.steps = steps


def _split(stage: Stage, constants: set[str], predict: Predict, second: float) -> tuple[Stage, Stage] | None:
    extents = weighted_extents(stage, constants)
    if extents is None:
        return None
    product = Product(*extents, windows=len(stage.reduce) > 1)
    whole = predict(product)
    best: tuple[float, int, int] | None = None
    for slices in SLICES:
        axis = next((a for a, extent in enumerate(stage.reduce) if extent % (slices * 16) == 0), None)
        if axis is None:
            continue
        time = _in_slices(predict, second, product, slices)
        if best is None or time < best[0]:
            best = (time, slices, axis)
    if best is None or best[0] > GAIN * whole:
        return None
    return in_slices(stage, best[1], best[2])


def _in_slices(predict: Predict, second: float, product: Product, slices: int) -> float:
    """Predicted time of both steps."""
    part = replace(product, batch=product.batch * slices, k=product.k // slices)
    return predict(part) + second + part.batch * part.m * part.n / 256


def product_time(predict: Predict, second: float, product: Product) -> float:
    """Predicted time of a product, in two steps where these take less."""
    return min(predict(product), *(_in_slices(predict, second, product, slices) for slices in SLICES))


def _declared(pair: tuple[Stage, Stage], module: Module) -> tuple[Stage, Stage]:
    """The pair, known to the module."""
    module.types[pair[0].name] = (pair[0].shape, pair[0].dtype)
    module.definitions |= {stage.name: stage for stage in pair}
    return pair


def split_for_cores(module: Module) -> None:
    """Splits products of activations with a small output and a long reduction: each slice reads what one core wrote.

    Not those of what follows from another product of activations: in attention both are one kernel (`schedule.online`).
    """
    steps: list[Stage | HostOp] = []
    constants = set(module.constants)
    following: set[str] = set()
    for step in module.steps:
        if not isinstance(step, Stage):
            steps.append(step)
            continue
        follows = not following.isdisjoint(tensors_read(step.body))
        product = _is_product(step, constants)
        if product if product is not None else follows:
            following.add(step.name)
        slices = _slices_for_cores(step) if product and not follows else 1
        steps += [step] if slices == 1 else _declared(in_slices(step, slices, 0), module)
    module.steps = steps


def _is_product(stage: Stage, constants: set[str]) -> bool | None:
    """Whether a contraction is one of two activations; None for other stages."""
    operands = factors(stage)
    if operands is None or align_contraction(stage, constants) is None:
        return None
    return not any(constants.issuperset(tensors_read(operand)) for operand in operands)


def _slices_for_cores(stage: Stage) -> int:
    """Into how many slices the first reduce axis of a product is cut."""
    if stage.size > SMALL:
        return 1
    depth, first = math.prod(stage.reduce), stage.reduce[0]
    return next((n for n in FOR_CORES if depth >= n * LEAST and first % n == 0), 1)
