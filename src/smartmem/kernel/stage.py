"""Stages and kernels: compute definitions, alone and fused.

A `Stage` defines one tensor: for every coordinate of `shape`, the body, combined over the `reduce` axes if there are
any. Axes are numbered 0..len(shape)-1 for the space axes, then the reduce axes::

    matmul   Stage("y", (m, n), reduce=(k,), combine="sum", body=load("a", (i, k)) * load("b", (k, j)))
    softmax  four stages: max over the row, exp of the difference, its sum, the quotient

A `Kernel` is a list of stages that one loop nest computes together; the last one is stored, the others are local.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from smartmem.index.lin import Lin, Lookup, axis_digit, pseudo_axes
from smartmem.index.map import Guard, IndexMap
from smartmem.index.substitute import redirect, substitute
from smartmem.kernel.expr import Alu, Choose, DType, Expr, Iota, Load, index_values, iota, load, loads, rebuild, walk


@dataclass(frozen=True, eq=False)
class Stage:
    """The compute definition of the tensor `name`.

    Attributes:
        name: the tensor that it defines.
        shape: extents of the space axes; the shape of the tensor.
        dtype: its element type.
        body: the expression, over space axes then reduce axes.
        reduce: extents of the reduce axes.
        combine: how values along reduce axes are combined (see `expr.COMBINE`), "" without reduce axes.
        origin: names of the graph nodes that it came from.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    body: Expr
    reduce: tuple[int, ...] = ()
    combine: str = ""
    origin: tuple[str, ...] = ()

    @property
    def domain(self) -> tuple[int, ...]:
        """Extents of all axes: space, then reduce."""
        return self.shape + self.reduce

    @property
    def is_view(self) -> bool:
        """Whether the body is a bare load: a layout operator."""
        return not self.reduce and isinstance(self.body, Load) and self.body.dtype == self.dtype

    @property
    def is_movement(self) -> bool:
        """Whether it only moves data: a view, or loads and constants chosen by guards (Concat, Pad)."""
        if self.is_view:
            return True
        chosen = isinstance(self.body, Choose) and not self.reduce
        return chosen and not any(isinstance(node, (Alu, Iota)) for node in walk(self.body))

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * np.dtype(self.dtype).itemsize

    def space(self) -> tuple[Lin, ...]:
        """Identity coordinates of the space axes."""
        return tuple(axis_digit(a, n) for a, n in enumerate(self.shape))

    def loads(self) -> list[Load]:
        return loads(self.body)


@dataclass(eq=False)
class Kernel:
    """Stages computed together. The last one is stored; the others exist only inside the kernel.

    Attributes:
        stages: in execution order. Loads of local stages agree with the loop nest on the shared axes.
        tensor: name of the tensor that is stored.
        shape: its shape; differs from the last stage's where a view was fused into the store.
        store: coordinates of the stored tensor over the last stage's axes; None: the identity.
        rows: leading axes that all stages share (a row pipeline), None for a plain nest.
        notes: what passes want `explain` to say.
        copies: further tensors that get the same values, each in a layout of its own (devices).
    """

    stages: list[Stage]
    tensor: str
    shape: tuple[int, ...]
    store: IndexMap | None = None
    rows: int | None = None
    notes: list[str] = field(default_factory=list)
    copies: tuple[str, ...] = ()

    @property
    def written(self) -> tuple[str, ...]:
        """The tensors that it stores."""
        return (self.tensor, *self.copies)

    @staticmethod
    def of(stage: Stage) -> Kernel:
        """A kernel of one stage."""
        return Kernel([stage], stage.name, stage.shape)

    @property
    def output(self) -> Stage:
        return self.stages[-1]

    def store_coords(self) -> tuple[Lin, ...]:
        """Where in the stored tensor each coordinate of the last stage goes."""
        return self.output.space() if self.store is None else self.store.coords

    def store_map(self) -> IndexMap:
        """`store_coords` as a map."""
        return IndexMap(self.output.shape, self.store_coords())

    def local(self) -> set[str]:
        """Names of the tensors that never leave the kernel."""
        return {stage.name for stage in self.stages[:-1]}

    def inputs(self) -> list[str]:
        """Names of the tensors that are read from memory, lookups included, each once."""
        local = self.local()
        names: dict[str, None] = {}
        for stage in self.stages:
            for tensor in tensors_read(stage.body):
                if tensor not in local:
                    names[tensor] = None
        return list(names)

    @property
    def is_copy(self) -> bool:
        """Whether the kernel only moves data."""
        return all(stage.is_movement for stage in self.stages)


def tensors_read(body: Expr) -> list[str]:
    """Names of the tensors that an expression reads, in loads and in lookups of its indices, each once."""
    return list(dict.fromkeys([*(access.tensor for access in loads(body)), *looked_up(body)]))


def looked_up(body: Expr) -> list[str]:
    """Names of the integer tensors whose entries are part of an index, each once."""
    found = (axis.tensor for value in index_values(body) for axis in pseudo_axes(value) if isinstance(axis, Lookup))
    return list(dict.fromkeys(found))


def reindex(body: Expr, axes: tuple[Lin, ...], extents: tuple[int, ...]) -> Expr:
    """`body` with axis k (of extent ``extents[k]``) replaced by ``axes[k]``: a definition read at other coordinates."""

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Iota):
            return iota(substitute(node.lin, axes, extents), node.dtype)
        return load(node.tensor, tuple(substitute(i, axes, extents) for i in node.index), node.dtype)

    return rebuild(body, leaf, lambda g: Guard(substitute(g.lin, axes, extents), g.ext))


def sliced(stage: Stage, axis: int, slices: int) -> Stage:
    """The parts of a reduction: reduce axis number `axis` cut into `slices`, which are the first space axis."""
    short = stage.reduce[axis] // slices
    reduce = tuple(short if k == axis else extent for k, extent in enumerate(stage.reduce))
    axes = [axis_digit(1 + a, extent) for a, extent in enumerate((*stage.shape, *reduce))]
    axes[len(stage.shape) + axis] += axis_digit(0, slices) * short
    body = reindex(stage.body, tuple(axes), stage.domain)
    return replace(stage, shape=(slices, *stage.shape), reduce=reduce, body=body)


def in_slices(stage: Stage, slices: int, axis: int) -> tuple[Stage, Stage]:
    """A reduction in two steps: `sliced` parts of it, and what combines them."""
    part = replace(sliced(stage, axis, slices), name=f"{stage.name}.part")
    index = (axis_digit(len(stage.shape), slices), *stage.space())
    return part, replace(stage, reduce=(slices,), body=load(part.name, index, stage.dtype))


def inline(stage: Stage, producer: Stage) -> Stage:
    """`stage` with every load of `producer` replaced by the producer's body: elimination and fusion in one operation.

    Lookups in the producer (indices of a gather) follow it only if it is a view; others still need it in memory. The
    producer must have no reduce axes.
    """
    assert not producer.reduce, f"{producer.name} has a reduction and cannot be inlined"

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Load) and node.tensor == producer.name:
            return reindex(producer.body, node.index, producer.shape)
        return node

    origin = tuple(dict.fromkeys((*producer.origin, *stage.origin)))
    body = _follow_view(stage.body, producer) if producer.name in looked_up(stage.body) else stage.body
    return replace(stage, body=rebuild(body, leaf), origin=origin)


def behind_views(access: Load, stages: Mapping[str, Stage]) -> tuple[Load, Stage | None]:
    """What a load reads through the views among `stages`, and the stage that computes it, if it is one of them."""
    stage = stages.get(access.tensor)
    while stage is not None and stage.is_view and isinstance(stage.body, Load):
        access = replace(stage.body, index=tuple(substitute(i, access.index, stage.shape) for i in stage.body.index))
        stage = stages.get(access.tensor)
    return access, stage


def _follow_view(body: Expr, view: Stage) -> Expr:
    """`body` with lookups in a view made in what it views."""
    if not view.is_view:
        return body
    assert isinstance(view.body, Load)
    source, index = view.body.tensor, view.body.index

    def follow(value: Lin) -> Lin:
        return redirect(value, view.name, source, index, view.shape)

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Iota):
            return iota(follow(node.lin), node.dtype)
        return load(node.tensor, tuple(follow(i) for i in node.index), node.dtype)

    return rebuild(body, leaf, lambda g: Guard(follow(g.lin), g.ext))


def without(stages: Sequence[Stage], names: Iterable[str]) -> list[Stage]:
    """The stages without those of the given names, whose bodies are computed in the loads of their readers."""
    result = list(stages)
    for name in names:
        gone = next(s for s in result if s.name == name)
        result = [inline(s, gone) if name in tensors_read(s.body) else s for s in result if s is not gone]
    return result
