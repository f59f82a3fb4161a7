"""How the work of a row pipeline divides into tasks that threads share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from smartmem.kernel.expr import cost
from smartmem.schedule.operand_b import is_dynamic
from smartmem.schedule.pipeline import Pipeline
from smartmem.schedule.tiling import tile_columns

TASKS = 16  # tasks wanted at least: a few per thread
TASK_WORK = 1 << 17  # operations that are worth a task of their own
PACK_ROWS = 128  # rows that are worth packing all blocks of keys for


@dataclass(frozen=True)
class Task:
    """How tasks divide the work: ranges of `entries` batch entries x chunks of `chunk` row tiles x `span` columns."""

    batch_chunks: int
    entries: int
    row_chunks: int
    chunk: int
    column_chunks: int
    span: int

    @property
    def count(self) -> int:
        return self.batch_chunks * self.row_chunks * self.column_chunks


def divide_work(pipeline: Pipeline, width: int) -> Task:
    """The division of a pipeline whose last stage has `width` columns.

    Rows come first: a chunk of rows computes everything that is local to it once. Columns are divided only where row
    chunks are too few to share evenly, since every column chunk computes the local stages of its rows again.
    """
    tiling, batches = pipeline.tiling, pipeline.batches
    contracted = pipeline.contractions()
    dynamic = any(is_dynamic(s, pipeline.constants) for s in contracted)
    wanted = max(1, min(TASKS, _work(pipeline) // TASK_WORK))
    chunks = -(-tiling.count // tiling.group)
    if pipeline.softmax is not None:
        few = max(1, min(-(-wanted // batches), tiling.height // PACK_ROWS))
        chunks = max(few, -(-tiling.count // _tiles_with_sums(pipeline)))
        chunks = min(tiling.count, chunks + (chunks > 1 and chunks * batches % 2))
    elif dynamic and batches >= 4:  # packing B once per batch entry is worth more than more tasks
        chunks = 1
    elif dynamic:
        chunks = min(tiling.count, max(1, -(-wanted // batches)))
    elif not contracted:
        chunks = min(chunks, max(1, wanted * 2))
    chunk = -(-tiling.count // chunks)
    if not dynamic and contracted:
        chunk = -(-chunk // tiling.group) * tiling.group
    chunks = -(-tiling.count // chunk)
    columns, span = 1, width
    if pipeline.shared_step is not None:
        ranges, entries = _column_chunks(batches, _missing(chunks, wanted))
        return Task(ranges, entries, chunks, chunk, columns, span)
    if len(contracted) == 1 and is_contraction_last(pipeline) and not dynamic:
        missing = _missing(chunks * batches, wanted)
        panel = tile_columns(pipeline.target, width)
        columns, per = _column_chunks(-(-width // panel), missing)
        span = per * panel
    return Task(batches, 1, chunks, chunk, columns, span)


def _tiles_with_sums(pipeline: Pipeline) -> int:
    """Row tiles of a task whose weighted sums stay in a quarter of L2."""
    columns = pipeline.flats[pipeline.contractions()[-1].name].columns
    return max(1, pipeline.target.l2 // 16 // (columns * pipeline.tiling.rows))


def _missing(tasks: int, wanted: int) -> int:
    """By how much columns should multiply the tasks: enough of them, and an even number while they are few."""
    if tasks >= wanted or tasks >= TASKS:
        return 1
    if 2 * tasks >= TASKS:
        return 1 + tasks % 2
    return -(-wanted // tasks)


def _column_chunks(panels: int, most: int) -> tuple[int, int]:
    """An even number of chunks of nearly equal size (so that 2, 4, 8 threads share them evenly), and their panels."""
    best = (1, panels)
    for count in range(2, min(panels, most + most % 2) + 1, 2):
        per = -(-panels // count)
        wasted = per * count - panels
        if most > 1 and -(-panels // per) == count and wasted <= max(1, panels // 16) and (per >= 2 or panels <= 16):
            best = (count, per)
    return best


def is_contraction_last(pipeline: Pipeline) -> bool:
    return pipeline.regions[-1].contraction is not None


def _work(pipeline: Pipeline) -> int:
    total = 0
    for stage in pipeline.stages:
        per = 1 if pipeline.is_contraction(stage) else 2 + cost(stage.body)
        total += math.prod(stage.domain) * per
    return total
