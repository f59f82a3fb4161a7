"""Integers that are dequantized, moved and quantized alike are the integers, moved.

    d = (float(q) - z) * s      t = Transpose(d)      r = uint8(min(max(round(t / s) + z, 0), 255))
      ->  r = Transpose(q)

Tools that quantize networks put such a pair around every operator that only moves data. Whether what follows from an
integer is that integer is found by computing it for each of the 256. Then the stage is a view, and `eliminate` makes an
index function of it.

In: stages. Out: the same with other bodies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from smartmem.index.lin import axis_digit
from smartmem.index.substitute import substitute
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import Choose, Expr, Iota, Load, load, loads, rebuild, walk
from smartmem.kernel.stage import Stage, behind_views
from smartmem.passes.module import Module

BYTES = (np.dtype(np.uint8), np.dtype(np.int8))


def requantize(module: Module) -> None:
    """Makes views of stages that quantize what was dequantized with the same numbers."""
    if not module.has_bytes():
        return
    stages: dict[str, Stage] = {}
    for position, step in enumerate(module.steps):
        if isinstance(step, Stage):
            same = _same_integers(step, stages) if step.dtype in BYTES and not step.is_view else None
            stages[step.name] = step if same is None else replace(step, body=same)
            module.steps[position] = stages[step.name]


def _same_integers(stage: Stage, stages: dict[str, Stage]) -> Expr | None:
    """The load of the integers that a stage gives again, None if it gives others."""
    access = _only_load(stage)
    if access is None:
        return None
    moved, source = behind_views(access, stages)
    held = _only_load(source) if source is not None else None
    if source is None or held is None or held.dtype != stage.dtype:
        return None
    integer = load("integer", (axis_digit(0, 256),), held.dtype)
    again = rebuild(stage.body, known={id(access): rebuild(source.body, known={id(held): integer})})
    every: np.ndarray[Any, Any] = np.arange(256, dtype=np.uint8).view(held.dtype)
    if not np.array_equal(evaluate_expr(again, [np.arange(256)], {"integer": every}), every):
        return None
    return load(held.tensor, tuple(substitute(i, moved.index, source.shape) for i in held.index), held.dtype)


def _only_load(stage: Stage) -> Load | None:
    """The one load that a stage computes each element from, with nothing but constants."""
    read = loads(stage.body)
    plain = not stage.reduce and not any(isinstance(node, (Choose, Iota)) for node in walk(stage.body))
    return read[0] if plain and len(read) == 1 else None
