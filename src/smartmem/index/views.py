"""Every view (layout operator) as an index map from its output coordinate back to its input coordinate.

These few functions are all that smartmem knows of layout operators; compositions come from `IndexMap.then`.
Shapes are static; arguments are what `frontend` leaves after normalisation (non-negative axes and starts).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from smartmem.index.divide import divide, unflatten
from smartmem.index.lin import Lin, axis_digit
from smartmem.index.map import Guard, IndexMap, live_guards


def permute(shape: Sequence[int], perm: Sequence[int]) -> IndexMap:
    """``out[i...] = in[...]`` with out axis k being input axis perm[k] (ONNX Transpose)."""
    out = tuple(shape[p] for p in perm)
    coords = [Lin()] * len(perm)
    for position, source in enumerate(perm):
        coords[source] = axis_digit(position, out[position])
    return IndexMap(out, tuple(coords))


def strided_slice(
    shape: Sequence[int], starts: Sequence[int], lengths: Sequence[int], steps: Sequence[int]
) -> IndexMap:
    """``out[k] = in[start + step*k]`` on every axis; negative steps reverse."""
    coords = tuple(
        axis_digit(a, n) * step + start for a, (n, start, step) in enumerate(zip(lengths, starts, steps, strict=True))
    )
    return IndexMap(tuple(lengths), coords)


def expand(shape: Sequence[int], out_shape: Sequence[int]) -> IndexMap:
    """numpy broadcasting of `shape` to `out_shape`: an expanded axis is not read from."""
    lead = len(out_shape) - len(shape)
    coords = tuple(axis_digit(lead + a, n) if n == out_shape[lead + a] else Lin() for a, n in enumerate(shape))
    return IndexMap(tuple(out_shape), coords)


def pad(shape: Sequence[int], before: Sequence[int], after: Sequence[int]) -> IndexMap:
    """Padding by a fill value: a guard per padded axis. Negative amounts crop."""
    out = tuple(n + b + a for n, b, a in zip(shape, before, after, strict=True))
    coords = tuple(axis_digit(axis, n) - b for axis, (n, b) in enumerate(zip(out, before, strict=True)))
    guards = live_guards(Guard(c, n) for c, n in zip(coords, shape, strict=True))
    return IndexMap(out, coords, guards)


def roll(shape: Sequence[int], axis: int, shift: int) -> IndexMap:
    """``out[k] = in[(k + shift) % n]`` on `axis` (Slice and Concat of one tensor)."""
    coords = [axis_digit(a, n) for a, n in enumerate(shape)]
    coords[axis] = divide(coords[axis] + shift % shape[axis], shape[axis])[1]
    return IndexMap(tuple(shape), tuple(coords))


def reshape(shape: Sequence[int], out_shape: Sequence[int]) -> IndexMap:
    """Row-major reinterpretation, factor group by factor group.

    Groups of output and input axes with equal products are converted on their own, which keeps the Lins short:
    (2, 3, 4) -> (6, 4) is the two groups (2, 3) -> (6) and (4) -> (4).
    """
    if math.prod(shape) == 0:
        return IndexMap(tuple(out_shape), (Lin(),) * len(shape))
    coords: list[Lin] = []
    for outs, ins in factor_groups(out_shape, shape):
        flat = Lin()
        for axis in outs:
            flat = flat * out_shape[axis] + axis_digit(axis, out_shape[axis])
        if ins:
            coords += unflatten(flat, [shape[axis] for axis in ins])
    return IndexMap(tuple(out_shape), tuple(coords))


def factor_groups(a: Sequence[int], b: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of `a` and of `b`, grouped minimally so that each pair of groups has equal products."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        left: list[int] = []
        right: list[int] = []
        pa = pb = 1
        while True:
            if pa == pb and (left or right):
                break
            if i < len(a) and (pa <= pb or j == len(b)):
                pa *= a[i]
                left.append(i)
                i += 1
            else:
                pb *= b[j]
                right.append(j)
                j += 1
        groups.append((left, right))
    return groups
