"""How much a kernel computes and moves, from its definition: the floor of what it costs on any machine.

In: a `Kernel` and the shapes of the tensors that it reads. Out: floating-point operations, and the bytes that it must
at least load and store: each element that it touches once. Of a tensor of which it reads a part (q and k, not v) only
that part counts::

    s[i, j] = sum over [32] (d[i, k] * d[j, k + 32])      d: 49 x 96 floats, of which 49 x 64 are read
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from smartmem.index.lin import Digit, Lin, Lookup
from smartmem.kernel.expr import Load, cost
from smartmem.kernel.stage import Kernel, looked_up
from smartmem.schedule.roles import is_contraction, multiplies_bytes

Types = Mapping[str, tuple[tuple[int, ...] | None, "np.dtype[Any]"]]


def count_flops(kernel: Kernel) -> int:
    """Two per multiply-add of a contraction; otherwise `cost` of each stage, and one for combining."""
    total = 0
    for stage in kernel.stages:
        if kernel.rows is not None and is_contraction(stage, kernel.rows):
            total += 2 * math.prod(stage.domain) * (4 if multiplies_bytes(stage) else 1)
        else:
            total += math.prod(stage.domain) * (cost(stage.body) + (1 if stage.reduce else 0))
    return total


def count_bytes(kernel: Kernel, types: Types) -> int:
    """Bytes that the kernel must at least load and store, given what the tensors that it touches are in memory."""
    total = kernel.output.size * types[kernel.tensor][1].itemsize
    local, accesses = kernel.local(), {access for stage in kernel.stages for access in stage.loads()}
    whole = {name for stage in kernel.stages for name in looked_up(stage.body)}
    for name in kernel.inputs():
        shape, dtype = types[name]
        size = math.prod(shape or ())
        if name not in whole and name not in local:
            read = (_elements(access, shape or ()) for access in accesses if access.tensor == name)
            size = min(size, sum(read))
        total += size * dtype.itemsize
    return total


def _elements(access: Load, shape: tuple[int, ...]) -> int:
    """A bound on how many elements a load touches: by the range of each index, and by the loops that it depends on."""
    box = math.prod(_values(index, extent) for index, extent in zip(access.index, shape, strict=True))
    digits = {digit for index in access.index for _, digit in index.terms}
    return min(box, math.prod(map(_choices, digits)))


def _values(index: Lin, extent: int) -> int:
    """A bound on how many values an index has inside [0, extent); guards exclude the others."""
    inside = min(index.max, extent - 1) - max(index.min, 0) + 1
    return max(0, min(inside, math.prod(_choices(digit) for _, digit in index.terms)))


def _choices(digit: Digit) -> int:
    """How many values a digit takes: an entry of a table no more than the entries that are looked up."""
    if isinstance(digit.axis, Lookup):
        entries = math.prod(_choices(inner) for index in digit.axis.index for _, inner in index.terms)
        return min(digit.ext, entries)
    return digit.ext
