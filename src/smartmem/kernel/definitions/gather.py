"""Gathers: views whose index is an entry of an integer tensor, and OneHot.

A constant index tensor with a pattern (an arange, a stride, a broadcast, a sum of such) becomes a plain Lin, and the
gather an ordinary view; otherwise the coordinate is a `Lookup`: ``y[i, j] = x[indices[i], j]``. ONNX counts negative
entries from the end, and so does a lookup.
"""

from __future__ import annotations

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.lin import Lin
from smartmem.index.map import IndexMap
from smartmem.kernel.definitions.access import view
from smartmem.kernel.definitions.build import cast, coordinates, pointwise, present
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.definitions.tables import indexed, names
from smartmem.kernel.expr import Expr, alu, const, load
from smartmem.kernel.stage import Stage


@defines("Gather")
def gather(node: Node) -> list[Stage]:
    """``y[a.., i.., b..] = x[a.., indices[i..], b..]``, the indices taking the place of `axis`."""
    x, indices = present(node, 0), present(node, 1)
    axis = int(node.attrs.get("axis", 0)) % len(x.dims)
    space, rank = coordinates(node.output.dims), len(indices.dims)
    entry = indexed(indices, space[axis : axis + rank], x.dims[axis])
    return [_view(node, x, (*space[:axis], entry, *space[axis + rank :]))]


@defines("GatherElements")
def gather_elements(node: Node) -> list[Stage]:
    """``y[i, j] = x[indices[i, j], j]`` (axis 0)."""
    x, indices = present(node, 0), present(node, 1)
    axis, space = int(node.attrs.get("axis", 0)) % len(x.dims), coordinates(node.output.dims)
    entry = indexed(indices, space, x.dims[axis])
    return [_view(node, x, (*space[:axis], entry, *space[axis + 1 :]))]


@defines("GatherND")
def gather_nd(node: Node) -> list[Stage]:
    """``y[b.., q.., r..] = x[b.., *indices[b.., q.., :], r..]``: each last row of `indices` is a partial coordinate."""
    x, indices, batch = present(node, 0), present(node, 1), int(node.attrs.get("batch_dims", 0))
    depth, space = indices.dims[-1], coordinates(node.output.dims)
    outer = len(indices.dims) - 1
    entries = [indexed(indices, space[:outer], x.dims[batch + k], k) for k in range(depth)]
    return [_view(node, x, (*space[:batch], *entries, *space[outer:]))]


def _view(node: Node, x: Value, index: tuple[Lin, ...]) -> Stage:
    return view(node, x, IndexMap(node.output.dims, index))


@defines("OneHot")
def one_hot(node: Node) -> list[Stage]:
    """``y[.., k, ..] = on if indices[..] == k else off``; negative indices count from `depth`, the extent of `axis`."""
    indices, values = present(node, 0), present(node, -1)  # an input depth may stand between them
    space = coordinates(node.output.dims)
    axis = int(node.attrs.get("axis", -1)) % len(space)
    depth = node.output.dims[axis]
    entry = load(indices.name, (*space[:axis], *space[axis + 1 :]), indices.dtype)
    here = names(cast(entry, np.dtype(np.int64)), space[axis], depth)
    return pointwise(node, alu("where", here, _choice(values, 1), _choice(values, 0)))


def _choice(values: Value, position: int) -> Expr:
    """Off (0) or on (1) of OneHot's `values`."""
    if values.data is not None:
        return const(values.data[position], values.dtype)
    return load(values.name, (Lin(position),), values.dtype)
