"""Tensors of 16-bit floats become float32 inside of a model; its inputs, outputs and host operators keep theirs.

    y: float16 = cast(cast(x: float16, float32) * 2, float16)      ->      y: float32 = x.float * 2

Definitions compute in float32 anyway (`kernel.definitions.build`) and only round what they store. Processors have
vectors of floats, and nothing needs what a rounding takes away: results are nearer to those of exact arithmetic, and
what would leave the range of halves does not. A Cast in front of operators on halves is such a rounding, too; one that
another Cast undoes is there for the rounding, which stays.

In: stages as `lower` makes them, host operators. Out: the same with stages that convert at the borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeGuard

import numpy as np

from smartmem.kernel.definitions.build import coordinates, is_float, wide
from smartmem.kernel.expr import Alu, Const, DType, Expr, Iota, Load, alu, const, iota, load, rebuild, walk
from smartmem.kernel.stage import Stage
from smartmem.passes.module import HostOp, Module

FLOAT = np.dtype(np.float32)


def without_halves(module: Module) -> None:
    """Makes the stages of `module` compute and store float32 wherever they had 16-bit floats."""
    halves = {name for name, (_, dtype) in module.types.items() if _is_half(dtype)}
    halves |= {step.name for step in module.steps if isinstance(step, Stage) and _is_half(step.dtype)}
    if not halves:
        return
    bordering = {value.name for value in (*module.inputs, *module.outputs)}
    for step in module.steps:
        bordering |= {*step.reads(), *step.writes()} if isinstance(step, HostOp) else set()
    floats = {name: f"{name}.float" if name in bordering else name for name in halves}
    rounded = _rounded(module)
    read = {access.tensor for step in module.steps if isinstance(step, Stage) for access in step.loads()} & halves
    for name in read & module.constants.keys():
        module.constants[floats[name]] = module.constants[name].astype(np.float32)
        module.types[floats[name]] = (module.constants[name].shape, FLOAT)

    def widened(name: str) -> list[Stage]:
        """The floats of a tensor at the border, if a stage reads them."""
        shape, dtype = module.types[name]
        if name not in read or shape is None:
            return []
        body = load(name, coordinates(shape), dtype)
        return [Stage(floats[name], shape, FLOAT, alu("cast", body, dtype=FLOAT))]

    steps: list[Stage | HostOp] = []
    for value in module.inputs:
        steps += widened(value.name)
    for step in module.steps:
        if isinstance(step, HostOp):
            steps.append(step)
            for name in step.writes():
                steps += widened(name)
            continue
        steps.append(_of_floats(step, floats, keep=step.name in rounded))
        if step.name in halves:
            module.types[floats[step.name]] = (step.shape, FLOAT)
            if step.name in bordering:
                body = load(floats[step.name], step.space())
                narrowed = alu("cast", body, dtype=step.dtype)
                steps.append(replace(step, body=narrowed, reduce=(), combine=""))
    module.steps = steps


def _rounded(module: Module) -> set[str]:
    """The tensors that come from a Cast of wider floats and go to a Cast to wider floats."""
    casts = [(s.name, s.body) for s in module.steps if isinstance(s, Stage) and not s.reduce]
    moves = [(n, b, b.args[0]) for n, b in casts if isinstance(b, Alu) and b.op == "cast"]
    loads = [(n, b.dtype, a) for n, b, a in moves if isinstance(a, Load) and is_float(a.dtype) and is_float(b.dtype)]
    narrowed = {name for name, dtype, access in loads if _is_half(dtype) and not _is_half(access.dtype)}
    return narrowed & {access.tensor for _, dtype, access in loads if not _is_half(dtype)}


def _of_floats(stage: Stage, floats: dict[str, str], keep: bool) -> Stage:
    """The stage with float32 in the place of 16-bit floats; `floats`: what those tensors are called now.

    With `keep` its values are rounded to what the stage had.
    """

    def leaf(node: Load | Iota) -> Expr:
        if not _is_half(node.dtype):
            return node
        return load(floats[node.tensor], node.index) if isinstance(node, Load) else iota(node.lin, FLOAT)

    def operation(node: Alu, args: Sequence[Expr]) -> Expr:
        return alu(node.op, *args, dtype=wide(node.dtype))

    numbers = {id(node): const(node.value, FLOAT) for node in walk(stage.body) if _is_number(node)}
    body = rebuild(stage.body, leaf, operation=operation, known=numbers)
    body = alu("cast", alu("cast", body, dtype=stage.dtype), dtype=FLOAT) if keep else body
    return replace(stage, name=floats.get(stage.name, stage.name), body=body, dtype=wide(stage.dtype))


def _is_half(dtype: DType) -> bool:
    return wide(dtype) != dtype


def _is_number(node: Expr) -> TypeGuard[Const]:
    return isinstance(node, Const) and _is_half(node.dtype)
