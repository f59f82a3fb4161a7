"""ScatterND and ScatterElements: a copy of a tensor with some elements replaced by others, or combined with them.

Turned round, so that nothing is scattered: each element of the result finds the update that reaches it. Update `q`, a
coordinate in the leading axes of `updates`, goes to the target ``t(q)`` in the leading axes of `data`.

- Targets that are known when compiling and fill a box (an assignment to a slice) are a choice by guards, of which no
  pass over memory is left: ``y[i] = updates[(i - start) / step] where i is in the slice, else data[i]``.
- Other known targets: a table over the elements has the update that reaches each, the last one where several do.
- Unknown ones: each element looks at the updates that may reach it, if these are few::

    y.last[i] = max over q of (t(q) == i ? q + 1 : 0)
    y[i]      = y.last[i] > 0 ? updates[y.last[i] - 1] : data[i]
    y[i]      = data[i] + sum over q of (t(q) == i ? updates[q] : 0)            with reduction "add"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.divide import divide, unflatten
from smartmem.index.lin import Lin, total
from smartmem.index.map import Guard
from smartmem.kernel.definitions.build import Stages, apply, cast, coordinates, highest, lowest, present, raw, wide
from smartmem.kernel.definitions.registry import Defined, defines
from smartmem.kernel.definitions.tables import Tables, as_lin, looked_up, names
from smartmem.kernel.expr import Expr, alu, choose, const, iota, load
from smartmem.kernel.stage import Stage

MOST_COMPARED = 1 << 22  # elements times updates: beyond that the host, which goes through the updates once, is faster
POSITION = np.dtype(np.int32)
REDUCTIONS = {"add": "sum", "mul": "prod", "max": "max", "min": "min"}  # how several updates become one

Array = np.ndarray[Any, Any]


@defines("ScatterND")
def scatter_nd(node: Node) -> list[Stage] | Defined | None:
    """``y = data; y[*indices[q.., :], r..] = updates[q.., r..]``."""
    indices = present(node, 1)
    *shape, depth = indices.dims
    return _ScatterND(node, depth, tuple(shape), indices.data).defined()


@defines("ScatterElements")
def scatter_elements(node: Node) -> list[Stage] | Defined | None:
    """``y = data; y[i.., indices[i.., u, j..], j..] = updates[i.., u, j..]``, the entries being in place of `axis`."""
    data, indices = present(node, 0), present(node, 1)
    targets = None
    if indices.data is not None:
        targets = np.moveaxis(np.indices(indices.dims), 0, -1).copy()
        targets[..., int(node.attrs.get("axis", 0))] = indices.data
    return _ScatterElements(node, len(data.dims), indices.dims, targets).defined()


@dataclass(frozen=True)
class _Reaching:
    """The updates that may reach an element: all `q` along axes of extents `reduce`, inside `guards`, where `holds`."""

    reduce: tuple[int, ...]
    q: tuple[Lin, ...]
    holds: Expr
    guards: tuple[Guard, ...] = ()

    def chosen(self, update: Expr, neutral: float) -> Expr:
        """What is combined: `update` of the updates that reach the element, `neutral` of the others."""
        return choose(self.guards, apply("where", self.holds, update, neutral), const(neutral, update.dtype))


@dataclass(frozen=True)
class _ScatterND:
    """What a node scatters.

    Attributes:
        node: its inputs are data, indices and updates.
        depth: how many leading axes of data a target has.
        shape: extents of q.
        targets: the target of each q, [*shape, depth], or None if they depend on data.
    """

    node: Node
    depth: int
    shape: tuple[int, ...]
    targets: Array | None

    @property
    def data(self) -> Value:
        return present(self.node, 0)

    @property
    def extents(self) -> tuple[int, ...]:
        """Of the axes that a target has."""
        return self.data.dims[: self.depth]

    @property
    def space(self) -> tuple[Lin, ...]:
        """The coordinate of an element of the result."""
        return coordinates(self.data.dims)

    @property
    def old(self) -> Expr:
        """The element of data."""
        return raw(self.data, self.space)

    def update(self, q: Sequence[Lin]) -> Expr:
        """The element of update `q` that belongs to the element of the result."""
        return load(present(self.node, 2).name, (*q, *self.space[self.depth :]), self.data.dtype)

    def reaching(self, first: int) -> _Reaching:
        """The updates that may reach an element; their axes are numbered from `first`."""
        indices, q = present(self.node, 1), coordinates(self.shape, first)
        holds: Expr = const(True, bool)
        for axis, extent in enumerate(self.extents):
            here = names(load(indices.name, (*q, Lin(axis)), indices.dtype), self.space[axis], extent)
            holds = here if axis == 0 else alu("and", holds, here)
        return _Reaching(self.shape, q, holds)

    def defined(self) -> list[Stage] | Defined | None:
        """The stages; None where each element would look at too many updates."""
        reduction = self.node.attrs.get("reduction") or "none"
        if 0 in self.shape or self.depth == 0 or (reduction != "none" and self.data.dtype.kind == "b"):
            return None
        if self.targets is not None:
            known = self._by_tables(reduction)
            if known is not None:
                return known
        compared = self.extents if reduction == "none" else self.data.dims
        if math.prod(compared) * math.prod(self.reaching(0).reduce) > MOST_COMPARED:
            return None
        return self._replaced() if reduction == "none" else self._combined(reduction)

    def _by_tables(self, reduction: str) -> Defined | None:
        """Where targets are known; None if an element is reached several times and all of these count."""
        assert self.targets is not None
        targets = self.targets.reshape(-1, self.depth)
        targets = np.where(targets < 0, targets + self.extents, targets)
        source = np.full(self.extents, -1, np.int32)
        np.maximum.at(source, tuple(targets.T), np.arange(len(targets), dtype=np.int32))
        if reduction != "none" and (source >= 0).sum() != len(targets):
            return None
        tables, stages = Tables(self.node.output.name), Stages(self.node)
        box = self._box(source)
        if box is not None:
            guards, q = box
            return Defined(stages.output(choose(guards, self._result(reduction, self.update(q)), self.old)))
        space = self.space[: self.depth]
        flat = looked_up(tables.add("source", np.maximum(source, 0)), space, len(targets))
        update = self._result(reduction, self.update(unflatten(flat, self.shape)))
        if (source < 0).any():
            update = alu("where", load(tables.add("reached", source >= 0), space, bool), update, self.old)
        return Defined(stages.output(update), tables.constants)

    def _box(self, source: Array) -> tuple[tuple[Guard, ...], tuple[Lin, ...]] | None:
        """Where the elements that are reached are every step-th of a range along each axis, and which update does."""
        steps: list[slice] = []
        guards: list[Guard] = []
        places: list[Lin] = []
        for axis, coordinate in enumerate(self.space[: self.depth]):
            others = tuple(a for a in range(self.depth) if a != axis)
            (reached,) = np.nonzero((source >= 0).any(axis=others))
            step = int(reached[1] - reached[0]) if len(reached) > 1 else 1
            if (np.diff(reached) != step).any():
                return None
            start, count = int(reached[0]), len(reached)
            place, rest = divide(coordinate - start, step)
            steps.append(slice(start, start + (count - 1) * step + 1, step))
            guards += [Guard(place, count), Guard(rest, 1)]
            places.append(place)
        inside = source[tuple(steps)]
        if (inside < 0).any():
            return None
        parts = [as_lin(table, places) for table in np.unravel_index(inside, self.shape)]
        q = tuple(part for part in parts if part is not None)
        return (tuple(guards), q) if len(q) == len(parts) else None

    def _result(self, reduction: str, update: Expr) -> Expr:
        """The element of the result that one update, or all of them together, reach."""
        if reduction == "none":
            return update
        kind = wide(self.data.dtype)
        return cast(alu(reduction, cast(self.old, kind), cast(update, kind)), self.data.dtype)

    def _replaced(self) -> list[Stage]:
        """Each element finds the last update that reaches it."""
        stages, reaching = Stages(self.node), self.reaching(self.depth)
        strides = [math.prod(self.shape[a + 1 :]) for a in range(len(self.shape))]
        number = total(q * stride for q, stride in zip(reaching.q, strides, strict=True))
        last = reaching.chosen(iota(number + 1, POSITION), 0)
        found = stages.add("last", self.extents, last, reaching.reduce, "max")
        space = self.space[: self.depth]
        flat = stages.add("source", self.extents, apply("max", apply("sub", raw(found, space), 1), 0))
        q = unflatten(looked_up(flat.name, space, math.prod(self.shape)), self.shape)
        reached = apply("gt", raw(found, space), 0)
        return stages.output(alu("where", reached, self.update(q), self.old))

    def _combined(self, reduction: str) -> list[Stage]:
        """Each element combines all updates that reach it."""
        stages, reaching, kind = Stages(self.node), self.reaching(len(self.data.dims)), wide(self.data.dtype)
        neutral = {"add": 0, "mul": 1, "max": lowest(kind), "min": highest(kind)}[reduction]
        body = reaching.chosen(cast(self.update(reaching.q), kind), neutral)
        combine = REDUCTIONS[reduction]
        updates = stages.add(combine, self.data.dims, body, reaching.reduce, combine)
        return stages.output(self._result(reduction, raw(updates, self.space)))


class _ScatterElements(_ScatterND):
    """Updates have the axes of data, and reach elements that differ from their own coordinate along one axis."""

    def reaching(self, first: int) -> _Reaching:
        indices, axis = present(self.node, 1), int(self.node.attrs.get("axis", 0))
        (u,) = coordinates((self.shape[axis],), first)
        q = tuple(u if a == axis else c for a, c in enumerate(self.space))
        guards = tuple(Guard(c, n) for a, (c, n) in enumerate(zip(self.space, self.shape, strict=True)) if a != axis)
        here = names(load(indices.name, q, indices.dtype), self.space[axis], self.extents[axis])
        return _Reaching((self.shape[axis],), q, here, guards)
