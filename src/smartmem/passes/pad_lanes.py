"""Lanes padded with zeros: activations whose lane axis is no multiple of four values become ones whose lane axis is.

Schedules know nothing of it, for it is a rewriting of definitions. With six channels n (and k where they are reduced):

    y[m, n<6] = f(x[m, n])                  ->  y[m, n<8] = where(n < 6, f(x[m, n%6]), 0)
    z[m, j]   = sum over k<6 y[m, k]*w[k, j]  ->  sum over k<8 y[m, k]*w'[k, j],  w' with two rows of zeros
    z[m]      = max over k<6 y[m, k]        ->  max over k<8 where(k < 6, y[m, k], -inf)

Where a tensor is padded along the axis too, the index stays n (so pointwise chains and constants keep whole vectors);
elsewhere it wraps around, n%6. Both are in range, so the bounds proof stays exact, and what a wrapped index reads is
masked. A sum relies on zeros only where it reads nothing but padded tensors; everything else is masked.

In: fused kernels. Out: another module (the given one stays as it is), or None if there is nothing to pad.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import IndexMap
from smartmem.kernel.expr import Alu, Expr, Iota, Load, alu, const, iota, load, rebuild
from smartmem.kernel.stage import Kernel, Stage
from smartmem.layout.memory import LANES, whole_lanes
from smartmem.passes.module import Module
from smartmem.passes.prove import prove
from smartmem.passes.select_layout import requests, row_major
from smartmem.schedule.backend import Backend
from smartmem.schedule.roles import factors, is_contraction

FEWEST = 3  # values of a lane axis from which on lanes of zeros are worth their memory
IDENTITY = {"sum": 0.0, "prod": 1.0, "max": -np.inf, "min": np.inf}
Padded = Mapping[str, int]  # the padded axis of a tensor
Grown = dict[str, set[int]]  # the axes of each stage that run to the next multiple of four


def pad_lanes(module: Module, backend: Backend) -> Module | None:
    """The module with the lane axes of its activations rounded up to a multiple of four, None if all are one."""
    padded = _candidates(module)
    while padded:
        result = replace(
            module, constants=dict(module.constants), types=dict(module.types), storages={}, layouts=[], kernels=[],
            padded={},
        )  # fmt: skip
        refused = _rewrite_all(module, result, padded, backend)
        if not refused:
            return result
        padded = {name: axis for name, axis in padded.items() if name not in refused}
    return None


def _candidates(module: Module) -> dict[str, int]:
    """Float activations that one kernel writes and nobody outside sees, with a lane axis that texels do not divide."""
    wishes, fixed = requests(module), row_major(module)
    fixed |= module.sharing()
    found = {}
    for kernel in module.kernels:
        if not isinstance(kernel, Kernel) or kernel.tensor in fixed or module.types[kernel.tensor][1] != np.float32:
            continue
        shape = module.shape(kernel.tensor)
        live = [axis for axis, n in enumerate(shape) if n > 1]
        asked = wishes[kernel.tensor].axes(shape) if kernel.tensor in wishes else []
        axis = next(iter(asked), live[-1] if live else None)
        if axis is None or shape[axis] < FEWEST or shape[axis] % LANES == 0:
            continue
        if _stored_axis(kernel, axis) is not None:
            found[kernel.tensor] = axis
    return found


def _stored_axis(kernel: Kernel, axis: int) -> int | None:
    """The axis of the kernel's last stage that is the given axis of the stored tensor, if one is, whole and alone."""
    coords = kernel.store_coords()
    found = _whole(coords[axis], kernel.output.shape)
    others = {a for k, value in enumerate(coords) if k != axis for a in axes_of(value)}
    return None if found in others or found is None or kernel.output.shape[found] != kernel.shape[axis] else found


def _whole(value: Lin, extents: tuple[int, ...]) -> int | None:
    """The loop axis that a coordinate is, None if it is anything else."""
    axes = list(axes_of(value))
    return axes[0] if len(axes) == 1 and value == axis_digit(axes[0], extents[axes[0]]) else None


def _rewrite_all(module: Module, result: Module, padded: Padded, backend: Backend) -> set[str]:
    """Fills `result`; the tensors whose kernels no schedule would take."""
    refused = set()
    for name, axis in padded.items():
        shape = list(module.shape(name))
        result.padded[name] = (
            f"{shape[axis]} values in the lane and {whole_lanes(shape[axis]) - shape[axis]} of padding"
        )
        shape[axis] = whole_lanes(shape[axis])
        result.types[name] = (tuple(shape), module.types[name][1])
    for step in module.kernels:
        kernel = step
        if isinstance(step, Kernel):
            kernel = _Rewriter(step, padded, module, result).kernel()
            if kernel is not step and backend.schedulable(kernel, set(result.constants)):
                refused |= {step.tensor} & set(padded)
                kernel = step  # which reads padded tensors as they were
            if not refused:
                prove(kernel, result)
        result.kernels.append(kernel)
    return refused


class _Rewriter:
    """One kernel, with the axes that walk along padded lanes grown."""

    def __init__(self, kernel: Kernel, padded: Padded, before: Module, module: Module) -> None:
        self.old, self.padded, self.before, self.module = kernel, padded, before, module
        self.local = {stage.name: stage.shape for stage in kernel.stages[:-1]}
        self.grown = self._grown()

    def kernel(self) -> Kernel:
        """The kernel of the padded tensors; the given one if nothing changes."""
        old = self.old
        if not any(self.grown.values()):
            return old
        stages = [self._stage(stage) for stage in old.stages]
        axis = self.padded.get(old.tensor)
        if axis is None:
            return Kernel(stages, old.tensor, old.shape, self._store(stages[-1]), old.rows, list(old.notes))
        last = stages[-1]
        if last.reduce:  # what follows a reduction is a stage of its own
            stages[-1] = replace(last, name=f"{last.name}.values")
            last = Stage(last.name, last.shape, last.dtype, load(stages[-1].name, last.space()), origin=last.origin)
            stages.append(last)
        stored = _stored_axis(old, axis)
        assert stored is not None
        inside = _inside(stored, old.output.shape[stored])
        stages[-1] = replace(last, body=alu("where", inside, last.body, const(0.0)))
        shape = self.module.shape(old.tensor)
        return Kernel(stages, old.tensor, shape, self._store(stages[-1]), old.rows, list(old.notes))

    def _store(self, output: Stage) -> IndexMap | None:
        old = self.old
        if old.store is None:
            return None
        axes = [_whole(value, old.output.shape) for value in old.store.coords]
        coords = [
            axis_digit(axis, output.shape[axis]) if axis is not None and k == self.padded.get(old.tensor) else value
            for k, (value, axis) in enumerate(zip(old.store.coords, axes, strict=True))
        ]
        return IndexMap(output.shape, tuple(coords))

    def _grown(self) -> Grown:
        """Which axes grow: that of a padded result, those that all stages share with it, those that walk along padded
        lanes in a reduction, and those of local tensors that grown axes walk along."""
        kernel, grown = self.old, Grown()
        for stage in kernel.stages:
            grown[stage.name] = set()
        if kernel.tensor in self.padded:
            axis = _stored_axis(kernel, self.padded[kernel.tensor])
            assert axis is not None
            grown[kernel.output.name].add(axis)
        shared = len(kernel.output.shape) if kernel.rows is None else kernel.rows
        while True:
            before = sum(map(len, grown.values()))
            lead = {axis for axes in grown.values() for axis in axes if axis < shared}
            for stage in kernel.stages:
                grown[stage.name] |= lead
                self._grow(stage, grown)
            if sum(map(len, grown.values())) == before:
                return grown

    def _grow(self, stage: Stage, grown: Grown) -> None:
        mine, space = grown[stage.name], len(stage.shape)
        reducible = range(space, len(stage.domain)) if stage.combine in IDENTITY else range(0)
        for access in stage.loads():
            for axis, value in enumerate(access.index):
                loop = self._along(access.tensor, axis, value, stage)
                if loop is None:
                    continue
                if access.tensor in self.local and loop in mine:
                    grown[access.tensor].add(axis)
                elif loop in reducible and self._has_lanes(access.tensor, axis, grown):
                    mine.add(loop)
        rows = self.old.rows
        if rows is not None and not is_contraction(stage, rows):  # columns of a row are reduced as they are stored
            columns = {self.old.output.shape[k] for k in grown[self.old.output.name] if k >= rows}
            mine |= {loop for loop in reducible if stage.domain[loop] in columns}

    def _along(self, tensor: str, axis: int, value: Lin, stage: Stage) -> int | None:
        """The loop that walks along all of a tensor's axis, if one does.

        A loop along a part of it (a slice) may grow no further: what lies behind its end are values.
        """
        loop = _whole(value, stage.domain)
        shape = self.local[tensor] if tensor in self.local else self.before.shape(tensor)
        return loop if loop is not None and stage.domain[loop] == shape[axis] else None

    def _has_lanes(self, tensor: str, axis: int, grown: Grown) -> bool:
        """Whether a tensor is padded along an axis."""
        return axis in grown[tensor] if tensor in self.local else self.padded.get(tensor) == axis

    def _stage(self, stage: Stage) -> Stage:
        grown = self.grown[stage.name]
        domain = tuple(whole_lanes(n) if k in grown else n for k, n in enumerate(stage.domain))
        space = len(stage.shape)

        def leaf(node: Load | Iota) -> Expr:
            if isinstance(node, Iota):
                return node
            tensor, index = node.tensor, list(node.index)
            for axis, value in enumerate(node.index):
                loop = self._along(node.tensor, axis, value, stage)
                if loop is None or loop not in grown:
                    continue
                if tensor in self.module.constants:
                    tensor = self._constant(tensor, axis)
                elif not self._has_lanes(tensor, axis, self.grown):
                    continue
                index[axis] = axis_digit(loop, domain[loop])
            return load(tensor, tuple(index), node.dtype)

        body = rebuild(stage.body, leaf)
        for loop in sorted(k for k in grown if k >= space):
            body = self._masked(stage, body, loop, domain)
        return replace(stage, shape=domain[:space], reduce=domain[space:], body=body)

    def _constant(self, name: str, axis: int) -> str:
        """A constant with zeros behind the end of an axis."""
        data: np.ndarray[Any, Any] = self.module.constants[name]
        padding = [(0, whole_lanes(n) - n if k == axis else 0) for k, n in enumerate(data.shape)]
        result = f"{name}.padded{axis}"
        if result not in self.module.constants:
            self.module.constants[result] = np.pad(data, padding)
            self.module.types[result] = (self.module.constants[result].shape, data.dtype)
        return result

    def _masked(self, stage: Stage, body: Expr, loop: int, domain: tuple[int, ...]) -> Expr:
        """The body of a reduction so that nothing behind the old end of a reduce axis counts."""
        inside = _inside(loop, stage.domain[loop])

        def zero(expr: Expr) -> Expr:
            return expr if self._is_zero_behind(expr, loop, domain) else alu("where", inside, expr, const(0.0))

        if factors(stage) is not None:
            assert isinstance(body, Alu)
            return alu("mul", *(zero(operand) for operand in body.args))
        if stage.combine == "sum":
            return zero(body)
        return alu("where", inside, body, const(IDENTITY[stage.combine]))

    def _is_zero_behind(self, expr: Expr, loop: int, domain: tuple[int, ...]) -> bool:
        """Whether an expression is a load of memory that has zeros where `loop` is behind its old end."""
        if not isinstance(expr, Load) or expr.tensor in self.local:
            return False
        whole = axis_digit(loop, domain[loop])
        known = expr.tensor in self.module.constants
        return any(
            value == whole and (known or self.padded.get(expr.tensor) == k) for k, value in enumerate(expr.index)
        )


def _inside(loop: int, extent: int) -> Expr:
    """Whether a loop is before its old end; a float comparison, so that vectors have it."""
    return alu("lt", iota(axis_digit(loop, whole_lanes(extent)), np.float32), const(float(extent)))
