"""Operands of products on matrix units in local memory: a ring of blocks, copied past the registers where that can be.

In: an operand (`tile.Staged`, or packed weights) and the `MatrixTile`. Out: the code that fills a part of the ring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from smartmem.codegen.c_expr import Lane, lane_free
from smartmem.codegen.cl_expr import DeviceContext, cl_guards
from smartmem.codegen.cl_memory import Bounds, LinearBuffer, checked
from smartmem.codegen.writer import Writer
from smartmem.kernel.expr import Choose, Expr, Load, is_zero, walk
from smartmem.kernel.stage import looked_up
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import K
from smartmem.schedule.gpu.matrix_tile import FLOAT, HALF, Form, MatrixTile
from smartmem.schedule.gpu.tile import Staged, Stager


@dataclass(frozen=True)
class PackedB:
    """Packed weights behind a pointer: a load of one `VECTOR` along k. Floats are `split` into halves, or not."""

    pointer: str
    batches: int
    columns: int
    depth: int
    split: bool
    bounds: Bounds | None = None


class RingStager(Stager):
    """A ring of blocks of the tile's form: ``[x][k]`` where the operand lies along k, else ``[k][x]``.

    Attributes:
        copies: whether blocks are copied without passing the registers.
        stride: values from one row of a block to the next; block_size: of a block.
        swizzled: rows of 128 bytes, whose pieces of 16 bytes lie at their number ^ (row % 8).
        split: whether floats come as two halves already; halves: whether they can be made such.
    """

    def __init__(
        self, w: Writer, tile: MatrixTile, operand: Staged | PackedB, name: str, size: int, depth: int,
        context: DeviceContext,
    ) -> None:  # fmt: skip
        self.operand, self.form = operand, tile.form
        self.copied = None if isinstance(operand, PackedB) else copied(operand, tile.form, context)
        self.copies = isinstance(operand, PackedB) or self.copied is not None
        self.split = isinstance(operand, PackedB) and operand.split
        self.halves = self.split or not isinstance(operand, PackedB)
        self.k_inner = isinstance(operand, PackedB) or operand.fast == K
        self.swizzled = tile.swizzled(name == "B")
        self.stride = tile.depth if self.swizzled else tile.stride(size, self.k_inner)
        self.block_size = self.stride * (size if self.k_inner else tile.depth)
        if isinstance(operand, PackedB):
            step, kind = tile.form.run, ""
        elif self.copied is not None:
            step, kind = self.copied.lane.width, ""
        else:
            step, kind = (LANES, "float4") if operand.along is not None else (1, "float")
        super().__init__(w, name, tile.items, size, tile.depth, depth, step, kind, context)

    def declare(self) -> None:
        if not self.copies:
            super().declare()

    def begin_copy(self, start: str, stage: str, turn: int = 0, turns: int = 1, *, ends: bool = False) -> None:
        """Starts the copies of the block from k = `start` into part `stage` of the ring, one of `turns` of them.

        Args:
            ends: whether the block may lie behind the end of k; then it is filled with zeros.
        """
        self._each(lambda: self._copy(start, stage, ends), turn, turns)

    def store_to(self, stage: str) -> None:
        """Puts the loaded block into part `stage` of the ring."""
        self._each(lambda: self._put(stage))

    def _positions(self) -> None:
        inner, outer, extent = ("at_k", "at_x", self.block) if self.k_inner else ("at_x", "at_k", self.size)
        per = extent // self.step
        within, row = f"load % {per}", f"load / {per}"
        if self.items % per == 0:  # the same in all rounds, so that what is computed from it is computed once
            within, row = f"item % {per}", f"item / {per} + u * {self.items // per}"
        self.w.line(f"const int {inner} = {within} * {self.step}, {outer} = {row};")

    def _place(self, stage: str) -> str:
        inner, outer = ("at_k", "at_x") if self.k_inner else ("at_x", "at_k")
        part = f" + {stage} * {self.block_size}" if stage != "0" else ""
        if self.swizzled:
            inner = self.piece(inner, outer)
        return f"{self.name}{part} + {outer} * {self.stride} + {inner}"

    def piece(self, k: str, row: str) -> str:
        """Where in its row the value at `k` lies."""
        run = self.form.run
        return f"(({k}) / {run} ^ {row} % 8) * {run}" + (f" + {k} % {run}" if self.step < run else "")

    def _copy(self, start: str, stage: str, ends: bool) -> None:
        w, o = self.w, self.operand
        w.line(f"const int k = {start} + at_k;")
        depth = o.depth if isinstance(o, PackedB) else self.depth  # registers of split weights are not in k's order
        inside = [f"k < {depth}"] if ends or depth % self.block else []
        if isinstance(o, PackedB):
            if o.columns % self.size:
                inside.append(f"n0 + at_x < {o.columns}")
            base = f"b * {o.columns * o.depth} + " if o.batches > 1 else ""
            source = f"{o.pointer} + {checked(o.bounds, f'{base}(n0 + at_x) * {o.depth} + k', together=self.step)}"
            pointer, bounds = o.pointer, o.bounds
        else:
            assert self.copied is not None
            # Nothing is copied beyond the last row: many groups that copied that one would wait for its cache line.
            name = "mn"[o.axis - 1]
            w.line(f"const int {name} = {name}0 + at_x;")
            if o.extent % o.size:
                inside.append(f"{name} < {o.extent}")
            source, there = self.copied.source(self.context)
            memory = self.copied.memory(self.context)
            pointer, bounds = memory.pointer, memory.bounds
            if there != "1":
                inside.append(there)
        condition = " && ".join(inside) or "1"
        if bounds is not None and inside:  # an address that is not used is not checked
            source = f"({condition} ? {source} : {pointer})"
        w.line(f"sm_copy_{self.step * self.form.bytes}({self._place(stage)}, {source}, {condition});")

    def _load(self, start: str) -> None:
        assert not isinstance(self.operand, PackedB)
        self.w.line(f"const int k = {start} + at_k;")
        self._by_definition(self.operand)

    def _store(self) -> None:
        self._put("0")

    def _put(self, stage: str) -> None:
        value, where = f"{self.register}[u]", self._place(stage)
        if self.form == FLOAT:
            self.w.line(f"*(__local {self.kind} *)({where}) = {value};")
            return
        kind = "vstorea_half4_rte" if self.step == LANES else "vstore_half_rte"
        self.w.line(f"{kind}({value}, 0, (__local half *)({where}));")


@dataclass(frozen=True)
class Copied:
    """An operand that is one load or another, or zero, as guards tell: vectors along `lane` lie together in memory."""

    body: Expr
    lane: Lane

    def source(self, context: DeviceContext, body: Expr | None = None) -> tuple[str, str]:
        """Where the vector lies, and whether there is one (else it is zero), as C expressions."""
        body = body or self.body
        if isinstance(body, Load):
            memory = context.memories[body.tensor]
            assert isinstance(memory, LinearBuffer)
            return memory.aligned(body.index, context.axes, self.lane) or "", "1"
        if not isinstance(body, Choose):
            return "", "0"
        chosen = cl_guards(body.guards, context.axes)
        (then, there), (other, also) = (self.source(context, part) for part in (body.then, body.otherwise))
        if also == "0":
            return then, chosen if there == "1" else f"{chosen} && {there}"
        if there == "0":
            return other, f"!({chosen})" if also == "1" else f"!({chosen}) && {also}"
        return f"({chosen} ? {then} : {other})", "1" if there == also == "1" else f"({chosen} ? {there} : {also})"

    def gathered(self, context: DeviceContext) -> bool:
        """Whether its addresses are more than multiples of its axes (windows, guards)."""
        places = [value for node in walk(self.body) if isinstance(node, Load) for value in node.index]
        digits = [digit for value in places for _, digit in value.terms]
        whole = all(isinstance(d.axis, int) and d.lo == 1 and d.ext == context.axes.extents[d.axis] for d in digits)
        return isinstance(self.body, Choose) or not whole

    def memory(self, context: DeviceContext) -> LinearBuffer:
        """One of those that it is loaded from."""
        found = context.memories[next(node.tensor for node in walk(self.body) if isinstance(node, Load))]
        assert isinstance(found, LinearBuffer)
        return found


def copied(operand: Staged, form: Form, context: DeviceContext) -> Copied | None:
    """How an operand is copied; None if something must be computed, or it lies otherwise."""
    if operand.body is None or operand.along is None:
        return None
    # Copies compute their addresses beyond the ends too, where an index tensor has none.
    if looked_up(operand.body) or not isinstance(operand.body, Load | Choose):
        return None
    stored = np.float16 if form == HALF else np.float32
    nodes = list(walk(operand.body))
    if not any(isinstance(node, Load) for node in nodes):
        return None
    for node in nodes:
        if isinstance(node, Load):
            memory = None if node.tensor in context.local else context.memories[node.tensor]
            if not isinstance(memory, LinearBuffer) or memory.stored != stored:
                return None
        elif not (isinstance(node, Choose) or is_zero(node)):
            return None
    for width in (form.run, LANES):
        lane = Lane(operand.along, context.axes.extents[operand.along], width)
        if lane.extent % width == 0 and all(_lies_along(node, lane, context) for node in nodes):
            return Copied(operand.body, lane)
    return None


def _lies_along(node: Expr, lane: Lane, context: DeviceContext) -> bool:
    if isinstance(node, Choose):
        return lane_free(node.guards, lane)
    if not isinstance(node, Load):
        return True
    memory = context.memories[node.tensor]
    return isinstance(memory, LinearBuffer) and memory.aligned(node.index, context.axes, lane) is not None
