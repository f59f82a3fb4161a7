"""Layout operators: each output element is one input element (or a fill value).

All but Concat and constant Pad are views, a bare load at another index; the index maps come from `index.views`. Concat
is a chain of choices along its axis: ``choose(i < n0, a[i], choose(i - n0 < n1, b[i - n0], c[i - n0 - n1]))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from smartmem.graph.ir import Node
from smartmem.index import views
from smartmem.index.divide import divide
from smartmem.index.lin import Lin
from smartmem.index.map import Guard, IndexMap
from smartmem.kernel.definitions.access import guarded, view
from smartmem.kernel.definitions.build import coordinates, operand, present
from smartmem.kernel.definitions.registry import Defined, defines
from smartmem.kernel.definitions.tables import Tables
from smartmem.kernel.expr import Expr, choose, const, load
from smartmem.kernel.stage import Stage


@defines("Transpose")
def transpose(node: Node) -> list[Stage]:
    """``y[i..] = x[..]`` with axis k of y being axis perm[k] of x; reversed axes by default."""
    x = present(node, 0)
    perm = node.attrs.get("perm")
    return [view(node, x, views.permute(x.dims, list(reversed(range(len(x.dims)))) if perm is None else perm))]


@defines("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(node: Node) -> list[Stage]:
    """The same elements in row-major order."""
    x = present(node, 0)
    return [view(node, x, views.reshape(x.dims, node.output.dims))]


@defines("Expand")
def expand(node: Node) -> list[Stage]:
    """numpy broadcasting to the output's shape."""
    x = present(node, 0)
    return [view(node, x, views.expand(x.dims, node.output.dims))]


@defines("Tile")
def tile(node: Node) -> list[Stage]:
    """``y[i..] = x[i % n ..]``."""
    x = present(node, 0)
    index = tuple(divide(c, n)[1] for c, n in zip(coordinates(node.output.dims), x.dims, strict=True))
    return [view(node, x, IndexMap(node.output.dims, index))]


@defines("Slice")
def slice_(node: Node) -> list[Stage] | None:
    """``y[i..] = x[start + step*i ..]``; None where the bounds depend on data."""
    x = present(node, 0)
    if "starts" not in node.attrs:
        return None
    starts, steps = [0] * len(x.dims), [1] * len(x.dims)
    for axis, start, step in zip(node.attrs["axes"], node.attrs["starts"], node.attrs["steps"], strict=True):
        starts[axis], steps[axis] = start, step
    return [view(node, x, views.strided_slice(x.dims, starts, node.output.dims, steps))]


@defines("Split")
def split(node: Node) -> list[Stage]:
    """Each output is a slice of the input along `axis`, one after another."""
    x, axis = present(node, 0), int(node.attrs.get("axis", 0))
    sizes = node.attrs.get("split") or [value.dims[axis] for value in node.outputs if value is not None]
    stages, start = [], 0
    for value, size in zip(node.outputs, sizes, strict=True):
        if value is not None:
            starts = [start if a == axis else 0 for a in range(len(x.dims))]
            index = views.strided_slice(x.dims, starts, value.dims, [1] * len(x.dims))
            stages.append(view(node, x, index, value))
        start += size
    return stages


@defines("Concat")
def concat(node: Node) -> list[Stage]:
    """The pieces along `axis`: nested choices in their order, the last one unguarded."""
    axis, space = int(node.attrs["axis"]), coordinates(node.output.dims)
    axis %= len(space)
    pieces: list[tuple[Guard, Expr]] = []
    start = 0
    for value in node.inputs:
        assert value is not None, f"{node.describe()} lacks an input"
        extent = value.dims[axis]
        if extent:
            index = (*space[:axis], space[axis] - start, *space[axis + 1 :])
            pieces.append((Guard(index[axis], extent), load(value.name, index, value.dtype)))
        start += extent
    body = pieces[-1][1]
    for guard, piece in reversed(pieces[:-1]):
        body = choose((guard,), piece, body)
    return [Stage(node.output.name, node.output.dims, node.output.dtype, body, origin=(node.name,))]


_PAD_MODES: dict[str, Literal["edge", "reflect", "wrap"]] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


@defines("Pad")
def pad(node: Node) -> list[Stage] | Defined | None:
    """Padding by a value (a guard per axis) or by elements (edge, reflect and wrap: a table per axis)."""
    x, pads, mode = present(node, 0), node.attrs.get("pads"), node.attrs.get("mode") or "constant"
    if pads is None:
        return None
    before, after = pads[: len(x.dims)], pads[len(x.dims) :]
    if mode == "constant":
        index = views.pad(x.dims, before, after)
        return [_stage(node, guarded(x, index.coords, index.guards, _fill(node)))]
    if mode not in _PAD_MODES or 0 in x.dims:
        return None
    tables, coords = Tables(node.output.name), []
    for axis, (extent, coord) in enumerate(zip(x.dims, coordinates(node.output.dims), strict=True)):
        table = np.pad(np.arange(extent), (max(before[axis], 0), max(after[axis], 0)), mode=_PAD_MODES[mode])
        table = table[max(-before[axis], 0) : len(table) - max(-after[axis], 0)]
        coords.append(tables.index(f"pad{axis}", table, (coord,), extent))
    stage = view(node, x, IndexMap(node.output.dims, tuple(coords)))
    return Defined([stage], tables.constants)


def _fill(node: Node) -> Expr:
    """The value of constant padding, the second input of a canonical Pad; 0 by default."""
    x, value = present(node, 0), operand(node, 1)
    if value is None:
        return const(0, x.dtype)
    if value.data is not None:
        return const(value.data.reshape(-1)[0], x.dtype)
    return load(value.name, (Lin(),) * len(value.dims), value.dtype)


@defines("CenterCropPad")
def center_crop_pad(node: Node) -> list[Stage]:
    """Each axis cropped to the output's extent, or padded by zeros to it, about its centre (odd: less before)."""
    x, out = present(node, 0), node.output.dims
    before = [(n - m) // 2 if n > m else -((m - n) // 2) for n, m in zip(out, x.dims, strict=True)]
    after = [n - m - b for n, m, b in zip(out, x.dims, before, strict=True)]
    index = views.pad(x.dims, before, after)
    return [_stage(node, guarded(x, index.coords, index.guards))]


def _stage(node: Node, body: Expr) -> Stage:
    return Stage(node.output.name, node.output.dims, node.output.dtype, body, origin=(node.name,))


@defines("DepthToSpace")
def depth_to_space(node: Node) -> list[Stage] | None:
    """(N, C*b*b, H, W) -> (N, C, H*b, W*b): reshape, permute, reshape; DCR has the block before C, CRD after it."""
    x, size, mode = present(node, 0), int(node.attrs["blocksize"]), node.attrs.get("mode") or "DCR"
    n, c, h, w = x.dims
    if mode not in ("DCR", "CRD"):
        return None
    shape = (n, size, size, c // size**2, h, w) if mode == "DCR" else (n, c // size**2, size, size, h, w)
    perm = (0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)
    return [view(node, x, _shuffled(x.dims, shape, perm, node.output.dims))]


@defines("SpaceToDepth")
def space_to_depth(node: Node) -> list[Stage] | None:
    """(N, C, H*b, W*b) -> (N, C*b*b, H, W), the inverse of DepthToSpace in the same mode."""
    x, size, mode = present(node, 0), int(node.attrs["blocksize"]), node.attrs.get("mode") or "DCR"
    n, c, h, w = x.dims
    if mode not in ("DCR", "CRD"):
        return None
    shape = (n, c, h // size, size, w // size, size)
    perm = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return [view(node, x, _shuffled(x.dims, shape, perm, node.output.dims))]


def _shuffled(source: Sequence[int], shape: Sequence[int], perm: Sequence[int], result: Sequence[int]) -> IndexMap:
    """`source` reshaped to `shape`, permuted, and reshaped to `result`, seen from the result."""
    permuted = views.permute(shape, perm)
    return views.reshape(permuted.domain, result).then(permuted).then(views.reshape(source, shape))
