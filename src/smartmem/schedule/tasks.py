"""How the work of a row pipeline divides into tasks that threads share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from smartmem.kernel.expr import cost
from smartmem.kernel.stage import Kernel, Stage
from smartmem.schedule.online import is_epilogue
from smartmem.schedule.operand_b import b_tensors, is_dynamic
from smartmem.schedule.pipeline import Pipeline, batch_axes
from smartmem.schedule.roles import factors, is_contraction
from smartmem.schedule.row_blocks import TALL_BLOCK, divides
from smartmem.schedule.tiling import tile_columns

TASKS = 16  # tasks wanted at least: a few per thread
FEWEST = 8  # tasks that a product has at least, unless it is small
MOST_AGAIN = 1 / 16  # of a kernel's operations, that tasks may compute again rather than load
LARGE_WEIGHTS = 1 << 20  # floats that not every task should read
TASK_WORK = 1 << 17  # operations that are worth a task of their own
PACK_ROWS = 128  # rows that are worth packing all blocks of keys for


@dataclass(frozen=True)
class Task:
    """How tasks divide the work: ranges of `entries` batch entries x chunks of row tiles x `span` columns.

    Chunks of rows have `chunk` tiles or one less, mixed so that any number of threads gets nearly the same.
    """

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

    Rows come first. Columns are divided where row chunks are too few to share evenly; a thread that takes several
    columns of the same rows computes the local stages of these once.
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
    elif dynamic and batches >= 4:  # packing B once per batch entry is worth more than many tasks
        chunks = 1 if batches >= TASKS or batches % 8 == 0 else min(2, tiling.count)
    elif dynamic:
        chunks = min(tiling.count, max(1, -(-wanted // batches)))
    elif not contracted:
        chunks = min(chunks, max(1, wanted * 2))
    chunk = -(-tiling.count // chunks)
    if not dynamic and contracted:
        chunk = -(-chunk // tiling.group) * tiling.group
    chunks = -(-tiling.count // chunk)
    by_columns = divides(pipeline)
    if batches == 1 and wanted > 1 and not (dynamic or by_columns):
        chunks = _shared(chunks, tiling.count)
    batch_chunks, entries, columns, span = batches, 1, 1, width
    if pipeline.shared_step is not None:
        batch_chunks, entries = _column_chunks(batches, _missing(chunks, wanted))
    elif by_columns:
        missing = _missing(chunks * batches, wanted)
        panel = tile_columns(pipeline.target, width)
        columns, per = _column_chunks(-(-width // panel), missing)
        span = per * panel
        if batches == 1 and columns == 1 and wanted > 1:
            chunks = _even(chunks, tiling.count)
    return Task(batch_chunks, entries, chunks, -(-tiling.count // chunks), columns, span)


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


def _even(chunks: int, tiles: int) -> int:
    """An even number of chunks, if there are tiles enough."""
    return min(chunks + chunks % 2, tiles)


def _shared(chunks: int, tiles: int) -> int:
    """Chunks of rows that 2, 4, 8 threads share evenly, with two tiles each while they are few."""
    fits = (count for count in (2, 4, 8) if chunks <= count and 2 * count <= tiles)
    return next(fits, _even(chunks, tiles))


def _column_chunks(panels: int, most: int) -> tuple[int, int]:
    """An even number of chunks of nearly equal size (so that 2, 4, 8 threads share them evenly), and their panels."""
    best = (1, panels)
    for count in range(2, min(panels, most + most % 2) + 1, 2):
        per = -(-panels // count)
        wasted = per * count - panels
        if most > 1 and -(-panels // per) == count and wasted <= max(1, panels // 16) and (per >= 2 or panels <= 16):
            best = (count, per)
    return best


def column_tasks(kernel: Kernel, constants: set[str]) -> str:
    """ "" if a matrix product with few rows can be divided by columns and is worth it, else the reason."""
    rows = kernel.rows
    assert rows is not None
    contracted = [s for s in kernel.stages if is_contraction(s, rows)]
    if len(contracted) != 1 or batch_axes(kernel, rows) or set(b_tensors(contracted[0])) - constants:
        return ""
    (product,) = contracted
    height = math.prod(kernel.output.shape[:rows])
    row_chunks = -(-height // TALL_BLOCK) if height >= 2 * TALL_BLOCK else 1
    wanted = min(FEWEST, sum(_operations(s, s is product) for s in kernel.stages) // TASK_WORK)
    if wanted <= row_chunks:
        return ""
    again = _share_before(kernel.stages, frozenset({product.name}), rows) * (-(-wanted // row_chunks) - 1)
    if again > MOST_AGAIN:
        return f"tasks of columns would compute what comes before the product again, {again:.0%} of its work"
    weights = math.prod(product.shape[rows:]) * math.prod(product.reduce)
    if weights > LARGE_WEIGHTS and not is_epilogue(product, kernel.stages[kernel.stages.index(product) + 1 :]):
        return "a product with few rows and large weights would lose its column tasks"
    return ""


def _share_before(stages: list[Stage], contracted: frozenset[str], rows: int) -> float:
    """Operations up to the last contraction's operand A, as a part of all."""
    last = max(k for k, s in enumerate(stages) if s.name in contracted)
    work = [_operations(s, s.name in contracted) for s in stages]
    pair = factors(stages[last])
    assert pair is not None
    operand = cost(pair[0]) * math.prod(stages[last].shape[:rows]) * math.prod(stages[last].reduce)
    return (sum(work[:last]) + operand) / (sum(work) + operand)


def _work(pipeline: Pipeline) -> int:
    return sum(_operations(s, pipeline.is_contraction(s)) for s in pipeline.stages)


def _operations(stage: Stage, contraction: bool) -> int:
    return math.prod(stage.domain) * (1 if contraction else 2 + cost(stage.body))
