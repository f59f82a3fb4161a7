"""Grouped reductions, and those to a few numbers, in two steps: channels become lanes, and threads share the work.

    s[n, g] = sum over c, h, w of f(x[n, C*g + c, h, w])
        ->  part[n, g, c] = sum over h, w of f(x[n, C*g + c, h, w]),   s[n, g] = sum over c of part[n, g, c]

A group normalization reduces a few neighbouring channels together with all pixels. With channels contiguous (which its
neighbours, convolutions, ask for) the few channels of one group fill no vector, but those of all groups do. The other
way round, with pixels contiguous, the first step is an ordinary row reduction.

A device with many compute units also cuts the pixels into slices, so that there are parts enough for all of them:

        ->  part[s, n, g, c] = sum over the h, w of slice s,   s[n, g] = sum over s, c of part[s, n, g, c]

A reduction to a few numbers (a group normalization with one group, the norm of a whole tensor) would be the work of one
thread. It keeps one of its axes in the first step, or as many equal parts of its only axis, and is cut into slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from operator import or_

from smartmem.index.lin import Axis, Lin, axes_of, axis_digit, renumber
from smartmem.index.refine import refine
from smartmem.kernel.expr import cost, index_values, load
from smartmem.kernel.stage import Stage, in_slices, inline, reindex, sliced, tensors_read
from smartmem.passes.module import HostOp, Module
from smartmem.schedule.roles import factors

COMBINES = ("sum", "max", "min", "prod")
CHEAP = 3
LONG = 4096  # elements of a reduction from which on the extra step costs nothing
GROUP = 512  # partial results (on a device a group of work-items computes four) that keep a compute unit busy
SLICE = 1024  # elements that a slice has at least
FEW = 8  # results that are too few for threads to share
MOST = 1024  # results of the first step
SHARE = 1 << 14  # elements of a reduction that are worth a thread's while


def split_reductions(module: Module, units: int = 0) -> None:
    """Splits every long reduction over an axis that shares a coordinate with a space axis.

    Args:
        units: compute units of a device that is to have work for all of them; 0: one slice is enough.
    """
    steps: list[Stage | HostOp] = []
    cheap: dict[str, Stage] = {}
    epilogues = Epilogues()
    for step in module.steps:
        if isinstance(step, Stage) and not epilogues.stored(step) and cost(step.body) <= CHEAP:
            cheap[step.name] = step
        refined = _refined(_computed(step, cheap)) if isinstance(step, Stage) and _is_long(step) else None
        axis = _shared_axis(refined) if refined is not None else None
        if refined is not None and axis is not None:
            part, rest = _split(refined, axis)
            if (slices := _slices(part, _most(part, units))) > 1:
                part, rest = _cut(part, rest, slices)
        elif refined is not None and (shared := _shared(refined, units)) is not None:
            part, rest = shared
        else:
            steps.append(step)
            continue
        module.types[part.name] = (part.shape, part.dtype)
        module.definitions |= {part.name: part, rest.name: rest}
        steps += [part, rest]
    module.steps = steps


class Epilogues:
    """Which stages follow a reduction (a convolution) element by element, so that its kernel stores them.

    What also reads statistics of that reduction (``x - mean(x)``) does not: they are known when all of it is done.
    """

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._after: dict[str, int] = {}  # a bit for each reduction that a tensor depends on
        self._chains: dict[str, int] = {}  # the bit of the reduction that a tensor is, or follows
        self._count = 0

    def stored(self, stage: Stage) -> bool:
        """Whether a stage is a reduction, or follows one; to be asked of all stages, in order."""
        read = tensors_read(stage.body)
        same = [name for name in read if self._sizes.get(name) == stage.size]
        if stage.reduce:
            chain = 1 << self._count
            self._count += 1
        else:
            others = self._all_after(name for name in read if name not in same)
            chains = (self._chains.get(name, 0) for name in reversed(same))
            chain = next((bit for bit in chains if bit and not bit & others), 0)
        self._sizes[stage.name] = stage.size
        self._after[stage.name] = self._all_after(read) | chain
        self._chains[stage.name] = chain
        return bool(chain)

    def _all_after(self, names: Iterable[str]) -> int:
        return reduce(or_, (self._after.get(name, 0) for name in names), 0)


def _computed(stage: Stage, cheap: dict[str, Stage]) -> Stage:
    """The reduction with cheap pointwise operands (the centered values of a variance) computed in its loads."""
    for name in tensors_read(stage.body):
        if name in cheap:
            stage = inline(stage, cheap[name])
    return stage


def _is_long(stage: Stage) -> bool:
    """Whether a stage is a long reduction other than a contraction."""
    if stage.combine not in COMBINES or math.prod(stage.reduce) < LONG:
        return False
    return factors(stage) is None or len({x.tensor for x in stage.loads()}) == 1


def _refined(stage: Stage) -> Stage:
    """The stage with its reduce axes cut into the digits that its loads use."""
    space = len(stage.shape)
    values = [Lin(0, tuple(t for t in v.terms if _reduces(t[1].axis, space))) for v in index_values(stage.body)]
    cut = refine([1] * space + list(stage.reduce), values)
    axes = [axis_digit(a, n) for a, n in enumerate(stage.shape)]
    axes += [renumber(a, {k: space + k for k in range(len(cut.extents))}) for a in cut.axes[space:]]
    return replace(stage, body=reindex(stage.body, tuple(axes), stage.domain), reduce=cut.extents)


def _reduces(axis: Axis, space: int) -> bool:
    return isinstance(axis, int) and axis >= space


def _shared_axis(stage: Stage) -> int | None:
    """The reduce axis (as an axis of the domain) that is a digit beside a space axis, None if there is none."""
    space = len(stage.shape)
    if len(stage.reduce) < 2:
        return None
    found: set[int] = set()
    for access in stage.loads():
        for coordinate in access.index:
            used = set(axes_of(coordinate))
            inner = {a for a in used if a >= space}
            if len(inner) == 1 and used - inner:
                found |= inner
    candidates = [a for a in found if stage.domain[a] > 1]
    return candidates[0] if len(candidates) == 1 else None


def _shared(stage: Stage, units: int) -> tuple[Stage, Stage] | None:
    """A long reduction to a few numbers in two steps, if it is one: along an axis and in slices, or in slices alone."""
    if stage.size > FEW or math.prod(stage.reduce) < 2 * SHARE:
        return None
    if len(stage.reduce) == 1:
        count = max(n for n in range(1, GROUP + 1) if stage.reduce[0] % n == 0)
        return in_slices(stage, count, 0) if count >= FEW else None
    kept = next((k for k, n in enumerate(stage.reduce) if n >= FEW), 0)
    part, rest = _split(stage, len(stage.shape) + kept)
    shares = min(math.prod(part.domain) // SHARE, MOST // part.size)
    slices = _slices(part, _most(part, units) if units else shares)
    return _cut(part, rest, slices) if slices > 1 else (part, rest)


def _most(part: Stage, units: int) -> int:
    """Slices that give the compute units of a device enough to do."""
    return min(units * GROUP // part.size, math.prod(part.reduce) // SLICE)


def _slices(part: Stage, most: int) -> int:
    """How many slices the reduce axes of `part` are cut into, a divisor of the first."""
    return max((n for n in range(1, most + 1) if part.reduce[0] % n == 0), default=1)


def _cut(part: Stage, rest: Stage, slices: int) -> tuple[Stage, Stage]:
    """`part` with a slice axis in front, and `rest`, which reduces along it, too."""
    cut, space = sliced(part, 0, slices), len(rest.shape)
    index = (axis_digit(space, slices), *rest.space(), axis_digit(space + 1, rest.reduce[0]))
    return cut, replace(rest, body=load(part.name, index, part.dtype), reduce=(slices, *rest.reduce))


def _split(stage: Stage, axis: int) -> tuple[Stage, Stage]:
    space, extent = len(stage.shape), stage.domain[axis]
    others = [a for a in range(space, len(stage.domain)) if a != axis]
    shape = (*stage.shape, extent)
    axes = [axis_digit(a, n) for a, n in enumerate(stage.domain)]
    axes[axis] = axis_digit(space, extent)
    for position, a in enumerate(others):
        axes[a] = axis_digit(space + 1 + position, stage.domain[a])
    body = reindex(stage.body, tuple(axes), stage.domain)
    part = replace(
        stage, name=f"{stage.name}.part", shape=shape, body=body, reduce=tuple(stage.domain[a] for a in others)
    )
    index = tuple(axis_digit(a, n) for a, n in enumerate(shape))
    return part, replace(stage, body=load(part.name, index, stage.dtype), reduce=(extent,))
