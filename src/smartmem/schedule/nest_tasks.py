"""How the loops of a nest become tasks that threads share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from smartmem.codegen.c_expr import Lane, step_along
from smartmem.codegen.writer import Writer
from smartmem.kernel.expr import cost
from smartmem.kernel.stage import Kernel
from smartmem.schedule.code import LINE, Target
from smartmem.schedule.loops import Jam, Nest, overlap
from smartmem.schedule.row_blocks import TALL_BLOCK

TASKS = 64  # enough for threads to balance; more only costs calls
TASK_WORK = 1 << 14  # operations below which a task is not worth handing out
BANDS = 16  # tasks wanted of bands of rows: large ones, so that rows find in the caches what the one before read
NARROW = (4, 2)  # least vectors of a block then, for it takes time to begin a run; with code of its own at borders less


@dataclass(frozen=True)
class Tasks:
    """How the space loops become tasks: the first `outer` loops, and the lane cut into blocks of `block`; or, where
    nothing else can be divided, `span` iterations each of the loop that slides (0: all in each task).

    With `bands`, the innermost of these loops is cut into as many, and a task has all iterations of one.
    """

    loops: tuple[int, ...]  # space loops other than the lane, outermost first
    outer: int
    blocks: int
    block: int
    tasks: int
    span: int = 0
    bands: int = 0

    @staticmethod
    def of(nest: Nest, kernel: Kernel, lane: Lane | None, jam: Jam | None, target: Target) -> Tasks:
        taken = {lane.axis if lane else -1, jam.axis if jam else -1}
        loops = tuple(a for a in range(nest.space) if a not in taken)
        elements = math.prod(nest.extents[: nest.space])
        per_element = sum(cost(s.body) + 1 for s in kernel.stages) * max(
            1, *(math.prod(s.reduce) for s in kernel.stages)
        )
        work = elements * per_element // (1 if lane is None else 4)
        wanted = max(1, min(TASKS, work // TASK_WORK))
        if lane is not None and jam is not None and wanted > 1:
            rows = overlap(nest, jam, lane)
            if rows is not None and rows[0] in loops:
                return _bands(nest, lane, loops, rows, NARROW[jam.edges], min(wanted, BANDS), target)
        if lane is not None and loops and 1 < wanted <= lane.vectors and _shares_lines(nest, lane, loops[0]):
            return _of_lane(loops, lane, max(wanted, nest.extents[loops[0]]))
        outer, tasks = 0, 1
        while outer < len(loops) and tasks < wanted:
            tasks *= nest.extents[loops[outer]]
            outer += 1
        blocks, block = 1, lane.extent if lane else 0
        if lane is not None and tasks < wanted:
            blocks = min(-(-wanted // tasks), -(-lane.extent // (4 * lane.width)))
            block = -(-lane.extent // (blocks * lane.width)) * lane.width
            blocks = -(-lane.extent // block)
        if jam is not None and tasks * blocks == 1 and not jam.edges:
            groups = -(-nest.extents[jam.axis] // jam.width)
            span = -(-groups // min(wanted, groups)) * jam.width
            return Tasks(loops, 0, 1, block, -(-nest.extents[jam.axis] // span), span)
        return Tasks(loops, outer, blocks, block, tasks * blocks)

    def sliding(self, extent: int) -> tuple[str, str]:
        """Where the loop that slides starts and ends, as C."""
        if self.span == 0:
            return "0", str(extent)
        last = f"(t + 1) * {self.span}"
        return f"t * {self.span}", last if extent % self.span == 0 else f"({last} < {extent} ? {last} : {extent})"

    def open(self, writer: Writer, nest: Nest, names: Mapping[int, str], loops: ExitStack) -> None:
        """Declares the outer loop variables of task t and opens the loops inside a task."""
        rest = "t"
        if self.blocks > 1:
            writer.line(f"const long part = t % {self.blocks};")
            rest = f"(t / {self.blocks})" if self.outer else rest
        counts = {a: nest.extents[a] for a in self.loops[: self.outer]}
        banded = self.loops[self.outer - 1] if self.bands else None
        if banded is not None:
            counts[banded] = self.bands
        inner = math.prod(counts.values())
        for axis, count in counts.items():
            inner //= count
            text = rest if inner == 1 else f"{rest} / {inner}"
            if axis != self.loops[0]:
                text = f"({text}) % {count}"
            if axis != banded:
                writer.line(f"const long {names[axis]} = {text};")
                continue
            low, high = "0", str(nest.extents[axis])
            if count > 1:
                writer.line(f"const long band = {text};")
                low, high = (f"{band} * {nest.extents[axis]} / {count}" for band in ("band", "(band + 1)"))
            loops.enter_context(writer.loop(names[axis], high, low))
        for axis in self.loops[self.outer :]:
            loops.enter_context(writer.loop(names[axis], nest.extents[axis]))

    def lane_range(self, lane: Lane) -> tuple[str, str]:
        if self.blocks == 1:
            return "0", str(lane.extent)
        high = f"(part + 1) * {self.block}"
        if self.blocks * self.block > lane.extent:
            high = f"(part == {self.blocks - 1} ? {lane.extent} : {high})"
        return f"part * {self.block}", high

    def has_tail(self, lane: Lane) -> bool:
        return lane.extent % lane.width != 0


def _shares_lines(nest: Nest, lane: Lane, loop: int) -> bool:
    """Whether iterations of a loop store to the same cache lines, which cores then pass to each other, and vectors of
    the lane to others."""
    step, apart = (step_along(nest.store, Lane(axis, nest.extents[axis], 1)) for axis in (loop, lane.axis))
    return step is not None and apart is not None and 0 < step < min(LINE // 4, apart)


def _of_lane(loops: tuple[int, ...], lane: Lane, wanted: int) -> Tasks:
    """Equal blocks of the lane, an even `wanted` or more of them, and all loops in each."""
    vectors = lane.vectors
    wanted = min(vectors, wanted + wanted % 2)
    block = next(size for size in range(vectors // wanted, 0, -1) if vectors % size == 0)
    return Tasks(loops, 0, vectors // block, block * lane.width, vectors // block)


def _bands(
    nest: Nest, lane: Lane, loops: tuple[int, ...], rows: tuple[int, int], least: int, wanted: int, target: Target
) -> Tasks:
    """Bands of rows (see `overlap`), and blocks of the lane of `least` vectors or more, so narrow that half of L1 keeps
    what the windows of a row read for the next.

    Images of some height go in two bands at least, the same rows as the halves of products (`row_blocks.tiling`).
    Lower ones are divided along the lane, as products divide their columns.
    """
    axis, values = rows
    loops = (*(a for a in loops if a != axis), axis)
    before = math.prod(nest.extents[a] for a in loops[:-1])
    height = math.prod(nest.extents[: nest.space]) // (lane.extent * before)
    lines = nest.extents[axis]
    vectors = lane.vectors
    blocks = -(-vectors // max(least, target.l1 // 2 // (4 * values * lane.width)))
    bands = 1 if before > 1 else 2
    if height < 2 * TALL_BLOCK:
        bands, blocks = 1, max(blocks, min(vectors, -(-wanted // before)))
    block = -(-vectors // blocks)
    blocks = -(-vectors // block)
    bands = max(bands, -(-wanted // (before * blocks)))
    bands = min(lines, bands + (bands > 1 and bands % 2))
    return Tasks(loops, len(loops), blocks, block * lane.width, before * bands * blocks, bands=bands)
