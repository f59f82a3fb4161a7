"""Where every layout operator went: `module.fates`, read off the finished kernels.

Each kernel stage began as the definition of one operator. Its definition loads some tensors; those that no longer exist
were computed inside of it, so the trace goes on through their definitions, until it reaches tensors that do exist. Such
a chain of single-operator maps is what one load of the kernel replaces::

    MatMul [i, k] -> Transpose [j, i] -> Reshape [i//8, i%8, j]        before, each map over the previous coordinates
    x[k//8, k%8, i]                                                    after, as the kernel loads it

All layout operators of the chain went into that load; in a kernel whose last operator is a view, into its store; for
pieces of a Concat, into the stores of the kernels that compute them.

In: proved kernels. Out: a fate for each layout operator of the input; kernels that are copies get a note that says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from smartmem.index.lin import LETTERS, Lin, Lookup, axis_digit, pseudo_axes, show
from smartmem.index.map import IndexMap, evaluate
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Load, index_values
from smartmem.kernel.stage import Kernel, Stage
from smartmem.passes.module import Fate, HostOp, Module

PATHS = 64  # chains that are listed per kernel; beyond, each tensor is visited once
INNER, BEYOND = 50, 100  # reduce axes of stages further inside are numbered from INNER to BEYOND

Place: TypeAlias = dict[str, str]


@dataclass(frozen=True)
class Step:
    """One operator on a chain: `access` is the load of `stage` that the chain goes through."""

    stage: Stage
    access: Load


Path = tuple[Step, ...]


def trace(module: Module) -> None:
    """Fills `module.fates`."""
    _Tracer(module).run()


@dataclass
class _Tracer:
    module: Module
    kernels: list[Kernel] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)

    def run(self) -> None:
        module = self.module
        self.kernels = [k for k in module.kernels if isinstance(k, Kernel)]
        self.stored = {v.name for v in module.inputs} | set(module.constants) | {k.tensor for k in self.kernels}
        self.stored |= {window.parent for window in module.windows.values()}
        for kernel in self.kernels:
            self._kernel(kernel)
        for parent in dict.fromkeys(window.parent for window in module.windows.values()):
            self._concat(module.definitions[parent])
        for step in module.kernels:
            if isinstance(step, HostOp) and step.node.name in module.fates:
                fate = module.fates[step.node.name]
                fate.fate, fate.reason = "host", step.reason
        self._rest()

    # ---------------------------------------------------------------------------------------------- fates

    def _kernel(self, kernel: Kernel) -> None:
        definition = self.module.definitions[kernel.output.name]
        if kernel.is_copy:
            reason = self._why_copied(kernel)
            kernel.notes.append(reason)
            fate = self._fate(definition)
            if fate is not None:
                fate.fate, fate.reason = "copy", reason
        inner = {stage.name: stage for stage in kernel.stages}
        # Views that follow the last arithmetic are in the store.
        follows = not kernel.is_copy and (len(kernel.stages) > 1 or kernel.store is not None)
        local = inner.keys() - {kernel.output.name}
        for path in self._paths(definition):
            at = max(position for position, step in enumerate(path) if step.stage.name in inner)
            stage, tensor = inner[path[at].stage.name], path[-1].access.tensor
            load = _place(kernel, "load", tensor, self._before(path), *_after(stage, path[at:]))
            behind = 0
            while follows and behind < len(path) and path[behind].stage.is_movement:
                behind += 1
                if path[behind - 1].access.tensor in local:
                    break
            else:
                behind = 0  # what it moves is no local tensor: it is in a load
            if behind:
                before = self._before(path[:behind])
                store = _place(kernel, "store", kernel.tensor, before, _show(kernel.store_map()), kernel.output.shape)
                for step in path[:behind]:
                    self._add(step.stage, store)
            for step in path[behind:] if load["after"] else ():
                self._add(step.stage, load)

    def _concat(self, definition: Stage) -> None:
        """A tensor that several kernels store into."""
        for path in self._paths(definition):
            for kernel, where in self._stores(path[-1].access.tensor):
                place = _place(kernel, "store", definition.name, self._before(path), _show(where), where.domain)
                for step in path:
                    self._add(step.stage, place)

    def _stores(self, tensor: str) -> Iterator[tuple[Kernel, IndexMap]]:
        """The kernels that write a piece, with the coordinates of the tensor that it lies in."""
        window = self.module.windows.get(tensor)
        if window is None:
            return
        for kernel in self.kernels:
            if kernel.tensor == tensor:
                yield kernel, kernel.store_map().then(window.map)
        for piece, inner in self.module.windows.items():
            if inner.parent == tensor:
                for kernel, where in self._stores(piece):
                    yield kernel, where.then(window.map)

    def _fate(self, definition: Stage) -> Fate | None:
        """That of the layout operator which a stage is the definition of."""
        return self.module.fates.get(definition.origin[0]) if definition.origin else None

    def _add(self, definition: Stage, place: Place) -> None:
        """Notes that an operator is part of a load or store; of chains with the same end, the shortest stays."""
        fate = self._fate(definition)
        if fate is None or fate.fate == "folded":
            return
        for position, known in enumerate(fate.places):
            if {**known, "before": ""} == {**place, "before": ""}:
                if len(place["before"]) < len(known["before"]):
                    fate.places[position] = place
                return
        fate.places.append(place)

    def _rest(self) -> None:
        """Operators that do nothing, and those that no kernel mentions."""
        by_node: dict[str, list[Stage]] = {}
        for stage in self.module.definitions.values():
            for node in stage.origin:
                by_node.setdefault(node, []).append(stage)
        for name, fate in self.module.fates.items():
            stages = by_node.get(name, [])
            # What moves the data of an operator moves its weights along: that is worth no mention.
            fate.places = [p for p in fate.places if p["tensor"] not in self.module.constants] or fate.places
            if not fate.fate and fate.places:
                fate.fate = "load" if any(place["access"] == "load" for place in fate.places) else "store"
            if fate.fate in ("load", "store") and stages and all(map(self._is_noop, stages)):
                fate.fate, fate.reason, fate.places = "folded", "a no-op: its result is its operand", []
            elif not fate.fate:
                constant = stages and all(s.name in self.module.constants for s in stages)
                fate.fate = "folded"
                fate.reason = "its inputs are constant" if constant else "nothing reads its result"

    def _is_noop(self, stage: Stage) -> bool:
        body = stage.body
        same = isinstance(body, Load) and stage.is_view and body.index == stage.space()
        return same and isinstance(body, Load) and self.module.shape(body.tensor) == stage.shape

    def _why_copied(self, kernel: Kernel) -> str:
        module, tensor = self.module, kernel.tensor
        if not module.eliminated:
            return "layout operators are not eliminated at this level"
        sources = kernel.inputs()
        what = f"a rearrangement of {', '.join(sources)}" if sources else "a constant"
        if any(v.name == tensor for v in module.outputs):
            kinds = {v.name: "an input" for v in module.inputs} | dict.fromkeys(module.constants, "a constant")
            kinds |= {v.name: "another output" for v in module.outputs}
            why = {kinds.get(source, "a tensor that is needed elsewhere too") for source in sources}
            return f"an output of the model, and {what}" + (f", which is {' and '.join(sorted(why))}" if why else "")
        if tensor in module.windows:
            return f"a piece of {module.windows[tensor].parent}, and {what}"
        if any(isinstance(step, HostOp) and tensor in step.reads() for step in module.kernels):
            return f"a host operator reads it, and it is {what}"
        return f"its consumers could not take it in; it is {what}"

    # ---------------------------------------------------------------------------------------------- chains

    def _paths(self, definition: Stage) -> list[Path]:
        """The chains from a definition's loads down to tensors that lie in memory."""
        found: list[Path] = []
        visited: set[str] = set()

        def follow(stage: Stage, path: Path) -> None:
            for steps in self._leave(stage):
                tensor = steps[-1].access.tensor
                inner = None if tensor in self.stored else self.module.definitions.get(tensor)
                if inner is None:
                    found.append((*path, *steps))
                elif len(found) < PATHS or tensor not in visited:
                    visited.add(tensor)
                    follow(inner, (*path, *steps))

        follow(definition, ())
        return found

    def _leave(self, stage: Stage) -> list[Path]:
        """The shortest ways through the stages of one operator to each tensor that it reads."""
        found: dict[str, list[Path]] = {}
        seen = {stage.name}
        front: list[tuple[Stage, Path]] = [(stage, ())]
        while front:
            reached: dict[str, list[Path]] = {}
            following: list[tuple[Stage, Path]] = []
            for current, path in front:
                for access in _accesses(current):
                    longer = (*path, Step(current, access))
                    inner = self.module.definitions.get(access.tensor)
                    if inner is None or access.tensor in self.stored or inner.origin != stage.origin:
                        reached.setdefault(access.tensor, []).append(longer)
                    elif inner.name not in seen:
                        seen.add(inner.name)
                        following.append((inner, longer))
            for tensor, paths in reached.items():
                found.setdefault(tensor, paths)
            front = following
        return [path for paths in found.values() for path in paths]

    def _before(self, path: Path) -> str:
        """The maps of a chain one after the other, each over the coordinates that the one before gives."""
        parts: list[str] = []
        position = 0
        while position < len(path):
            origin = path[position].stage.origin
            end = position + 1
            while end < len(path) and origin and path[end].stage.origin == origin:
                end += 1
            # Stages of one operator are one map, unless there is a reduction between them.
            while any(step.stage.reduce for step in path[position + 1 : end]):
                end -= 1
            first = path[position].stage
            index = IndexMap(first.domain, _composed(path[position:end]))
            node = origin[0] if origin else first.name
            parts.append(f"{self.module.operators.get(node, node)} {_show(index)}")
            position = end
        return " -> ".join(parts)


def _accesses(stage: Stage) -> list[Load]:
    """The loads of a stage, and the entries of index tensors that they need."""
    found = dict.fromkeys(stage.loads())
    for value in index_values(stage.body):
        for axis in pseudo_axes(value):
            if isinstance(axis, Lookup):
                found[Load(axis.tensor, axis.index)] = None
    return list(found)


def _place(kernel: Kernel, access: str, tensor: str, before: str, after: str, axes: tuple[int, ...]) -> Place:
    over = " ".join(f"{name}<{extent}" for name, extent in zip(LETTERS, axes, strict=False) if extent > 1)
    names = {"kernel": kernel.tensor, "access": access, "tensor": tensor}
    return {**names, "before": before, "after": after, "axes": over}


def _show(index: IndexMap) -> str:
    return f"[{', '.join(show(c, LETTERS, index.domain) for c in index.coords)}]"


def _after(stage: Stage, path: Path) -> tuple[str, tuple[int, ...]]:
    """How the finished stage loads what a chain ends in, and over which axes.

    These are several maps if it has several that cannot be told apart, "" if it does not load the tensor (any more).
    """
    tensor = path[-1].access.tensor
    found = list(dict.fromkeys(x.index for x in _accesses(stage) if x.tensor == tensor))
    if len(found) > 1:
        ends = _corners(_composed(path), path[0].stage.domain)
        found = [index for index in found if _corners(index, stage.domain) == ends] or found
    return " or ".join(_show(IndexMap(stage.domain, index)) for index in found), stage.domain


def _corners(index: tuple[Lin, ...], domain: tuple[int, ...]) -> list[int]:
    """The coordinates at the first and the last point of a domain: they stay when loops are cut or reordered."""
    corners = ([0] * len(domain), [extent - 1 for extent in domain])
    return [
        int(evaluate(value, [*point, *[0] * BEYOND], lambda *_: np.array(0))) for point in corners for value in index
    ]


def _composed(path: Path) -> tuple[Lin, ...]:
    """The map of a chain over the axes of its first stage."""
    index = path[0].access.index
    for step in path[1:]:
        axes = (*index, *(axis_digit(INNER + k, n) for k, n in enumerate(step.stage.reduce)))
        index = tuple(substitute(value, axes, step.stage.domain) for value in step.access.index)
    return index
