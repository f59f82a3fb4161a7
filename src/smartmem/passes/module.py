"""The state that passes work on: stages and host operators in execution order, then kernels, then storages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartmem.graph.ir import Node, Value
from smartmem.index.map import IndexMap
from smartmem.kernel.expr import DType
from smartmem.kernel.stage import Kernel, Stage, looked_up, tensors_read
from smartmem.layout.storage import Storage


@dataclass(eq=False)
class HostOp:
    """An operator that runs in Python between kernels, and why."""

    node: Node
    reason: str

    def reads(self) -> list[str]:
        return [v.name for v in self.node.inputs if v is not None]

    def writes(self) -> list[str]:
        return [v.name for v in self.node.outputs if v is not None]


@dataclass(frozen=True)
class Window:
    """A tensor that lies inside another: `map` sends its coordinates to coordinates of `parent`."""

    parent: str
    map: IndexMap


@dataclass
class Fate:
    """Where a layout operator of the input went.

    Attributes:
        op, node, shape: the operator, its node name and output shape.
        fate: "load" (in its consumers' loads), "store" (in a producer's store), "folded" (nothing is left to compute),
            "copy", "host".
        places: dicts of kernel, access ("load" or "store"), tensor, before, after; see `trace`.
        reason: why it is a copy, or a remark.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    fate: str = ""
    places: list[dict[str, str]] = field(default_factory=list)
    reason: str = ""


@dataclass
class Module:
    """A model on its way from graph to program.

    Attributes:
        name: of the graph.
        inputs, outputs: graph inputs and outputs.
        constants: contents of constant tensors by name.
        types: shape and dtype of every tensor (shape None: depends on data).
        steps: stages and host operators, in order; consumed by `fuse`.
        kernels: kernels and host operators, in order; made by `fuse`.
        windows: tensors that are stored inside others (the pieces of a Concat).
        storages: where each tensor lies; made by `select_layout`.
        words: names for the memory of tensors of bytes, four of them in the place of a float (`store_bytes`).
        nodes: operators of the input graph.
        fates: of its layout operators, by node name.
        definitions: the stages as `lower` made them, by tensor: what each operator is on its own.
        operators: operator type by node name.
        eliminated: whether `eliminate` has run.
        classes: how many operators of each class there are, and how many the pair table leaves (`classify.survey`).
        apart: pairs of kernels that stay apart, with the reason.
        layouts: what `select_layout` (on devices: `place`) chose, for the report.
        assignment: on devices, what the layouts cost together by the cost model; see `place`.
        renamed: names in the model of outputs that are called otherwise here.
        wide: tensors that stay in float when activations are stored as halves.
        padded: remarks on tensors that have lanes of zeros (`pad_lanes`).
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    constants: dict[str, np.ndarray[Any, Any]]
    types: dict[str, tuple[tuple[int, ...] | None, DType]]
    steps: list[Stage | HostOp]
    kernels: list[Kernel | HostOp] = field(default_factory=list)
    windows: dict[str, Window] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    fates: dict[str, Fate] = field(default_factory=dict)
    definitions: dict[str, Stage] = field(default_factory=dict)
    operators: dict[str, str] = field(default_factory=dict)
    eliminated: bool = False
    classes: dict[str, dict[str, int]] = field(default_factory=dict)
    apart: list[dict[str, str]] = field(default_factory=list)
    layouts: list[dict[str, Any]] = field(default_factory=list)
    assignment: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)
    padded: dict[str, str] = field(default_factory=dict)

    def shown(self, output: str) -> str:
        """What the model calls an output."""
        return self.renamed.get(output, output)

    def has_bytes(self) -> bool:
        """Whether it is a quantized network: some operator reads or makes integers of eight bits."""
        kinds = (kind for s in self.definitions.values() for kind in (s.dtype, *(access.dtype for access in s.loads())))
        return any(kind.kind in "iu" and kind.itemsize == 1 for kind in kinds)

    def pinned(self) -> set[str]:
        """Tensors that must lie in memory whatever fusion does.

        These are outputs, pieces of others, operands of host steps and tensors whose entries are part of an index.
        """
        names = {v.name for v in self.outputs} | self.sharing()
        for step in (*self.steps, *self.kernels):
            if isinstance(step, HostOp):
                names |= {*step.reads(), *step.writes()}
                continue
            for stage in step.stages if isinstance(step, Kernel) else [step]:
                names |= set(looked_up(stage.body))
        return names

    def sharing(self) -> set[str]:
        """Tensors that lie in one buffer with others: windows and what they are windows of."""
        return set(self.windows) | {window.parent for window in self.windows.values()}

    def drop_dead(self) -> None:
        """Drops stages that nothing reads any more."""
        live = {v.name for v in self.outputs}
        kept: list[Stage | HostOp] = []
        for step in reversed(self.steps):
            names = step.writes() if isinstance(step, HostOp) else [step.name]
            reached = any(n in live or (n in self.windows and self._root(n) in live) for n in names)
            if not reached and not isinstance(step, HostOp):
                continue
            kept.append(step)
            for name in step.reads() if isinstance(step, HostOp) else tensors_read(step.body):
                live.add(name)
                live.add(self._root(name))
        self.steps = kept[::-1]

    def _root(self, name: str) -> str:
        """The tensor that a window is in, after all."""
        while name in self.windows:
            name = self.windows[name].parent
        return name

    def shape(self, tensor: str) -> tuple[int, ...]:
        shape = self.types[tensor][0]
        assert shape is not None, f"{tensor} has a data-dependent shape"
        return shape
