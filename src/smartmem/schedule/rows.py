"""The row-pipeline schedule: row reductions, contractions, attention, and what is fused around them.

All stages share their row axes. A task takes a block of rows through the stages one after the other; what passes
between stages stays in thread-private scratch, so neither normalised activations nor attention scores reach memory:

    row reduction   LayerNorm, Softmax:      loops over the columns of one row at a time
    contraction     A * B:                   register tiles (`tiles`), A read in place or from scratch
    attention       Q*K -> softmax -> *V:    contraction, row loops, contraction
    fused           LayerNorm -> matmul -> bias, activation, residual

In: a `Kernel` with `rows` set. Out: C code. The steps of a task are *regions*: runs of row stages (one loop over the
rows of the block) and contractions with their pointwise epilogue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from smartmem.codegen.c_expr import Context, Emitter, Lane, Value, c_guards, lane_free, lookup_renderer, vectorizable
from smartmem.codegen.c_index import Axes, c_lin, has_division, split_by
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin, axes_of, axis_digit
from smartmem.index.map import Guard
from smartmem.kernel.expr import Choose, Const, Load, loads, walk
from smartmem.kernel.stage import Kernel, Stage, inline, reindex, tensors_read
from smartmem.layout.storage import Storage
from smartmem.schedule import tiles
from smartmem.schedule.code import Arguments, KernelCode, Target
from smartmem.schedule.flatten import B, M, N, Flat, flatten
from smartmem.schedule.nest import combined, initial, store_vector
from smartmem.schedule.roles import expr_axes, factors

_FLOAT = np.dtype(np.float32)
TASKS = 16  # tasks wanted at least: a few per thread
TASK_WORK = 1 << 17  # operations that are worth a task of their own


def accepts(kernel: Kernel) -> str:
    """"" if a row pipeline can compute the kernel, else the reason why not."""
    rows = kernel.rows
    if rows is None:
        return "its stages have no common rows"
    lead = kernel.output.space()[:rows]
    local = kernel.local()
    contracted = [s for s in kernel.stages if is_contraction(s, rows)]
    if len(contracted) > 2:
        return "more than two contractions"
    for stage in kernel.stages:
        if not vectorizable(stage.body, stage.dtype):
            return f"{stage.name} is not float arithmetic"
        if stage.shape[:rows] != kernel.output.shape[:rows]:
            return f"{stage.name} has other rows"
        if any(load.index[:rows] != lead for load in stage.loads() if load.tensor in local):
            return f"{stage.name} reads other rows of a local tensor"
        if stage in contracted:
            a, b = factors(stage) or (None, None)
            assert a is not None and b is not None
            if any(name in local for name in tensors_read(b)):
                return f"the second operand of {stage.name} is local"
        elif stage.reduce and stage.combine not in ("sum", "prod", "max", "min"):
            return f"{stage.combine} is no row reduction"
        elif stage.reduce and len(stage.shape) > rows:
            return f"{stage.name} reduces within its columns"
    if len(contracted) == 2 and not _feeds(kernel, contracted[0], contracted[1]):
        return "the first contraction does not feed the second"
    return ""


def is_contraction(stage: Stage, rows: int) -> bool:
    """Whether a stage of a row pipeline is a contraction: a product summed, with columns that only B has."""
    operands = factors(stage)
    if operands is None or len(stage.shape) == rows:
        return False
    columns = set(range(rows, len(stage.shape)))
    return not columns & expr_axes(operands[0])


def _feeds(kernel: Kernel, first: Stage, second: Stage) -> bool:
    """Whether `second` reads, in its A operand, something computed from `first`, and nothing later bypasses it."""
    reached = {first.name}
    for stage in kernel.stages[kernel.stages.index(first) + 1 :]:
        if reached & set(tensors_read(stage.body)):
            if stage is second:
                a, _ = factors(stage) or (None, None)
                return a is not None and bool(reached & set(tensors_read(a)))
            reached.add(stage.name)
    return False


@dataclass
class _Region:
    """Row stages run together (`contraction` is None), or a contraction and its pointwise epilogue stages."""

    stages: list[Stage]
    contraction: Stage | None = None


@dataclass
class Place:
    """Where a local tensor lives: in C scalars of one row, in one row of scratch, or in scratch rows of the block.

    `offset` counts floats from the start of the thread's scratch; `width` is the row length.
    """

    kind: str  # "scalar", "column" (one float per row of the block), "row", "block"
    offset: int = 0
    width: int = 0


@dataclass
class Pipeline:
    """Everything the emitter knows of one kernel."""

    kernel: Kernel
    stages: list[Stage]
    batch: int
    rows: int
    storages: Mapping[str, Storage]
    target: Target
    regions: list[_Region] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    flats: dict[str, Flat] = field(default_factory=dict)
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)  # type: ignore[type-arg]
    tiling: tiles.Tiling = field(default_factory=lambda: tiles.Tiling(1, 1, 1))
    scratch: int = 0
    support: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def is_contraction(self, stage: Stage) -> bool:
        return is_contraction(stage, self.rows)

    def contractions(self) -> list[Stage]:
        return [s for s in self.stages if self.is_contraction(s)]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.output.shape

    @property
    def batches(self) -> int:
        return math.prod(self.shape[: self.batch])

    @property
    def height(self) -> int:
        return math.prod(self.shape[self.batch : self.rows])

    def reserve(self, floats: int) -> int:
        """Offset of new scratch, in floats; 64-byte aligned."""
        offset = self.scratch
        self.scratch += -(-floats // 16) * 16
        return offset


def schedule(
    kernel: Kernel, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, np.ndarray]  # type: ignore[type-arg]
) -> KernelCode:
    """C code of a kernel that `accepts` admits. `constants` gives the contents of constant tensors, for packing."""
    return _emit(_prepare(kernel, storages, target, constants))


# ------------------------------------------------------------------------------------------------------- analysis


def _prepare(
    kernel: Kernel, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, np.ndarray]  # type: ignore[type-arg]
) -> Pipeline:
    rows = kernel.rows
    assert rows is not None
    kernel = _batch_first(kernel, rows)
    batch = len(_batch_axes(kernel, rows))
    stages = _stage_operands(_inline_single(kernel.stages, rows), storages, batch, rows)
    pipeline = Pipeline(kernel, stages, batch, rows, storages, target)
    for stage in stages:
        pipeline.flats[stage.name] = flatten(stage, batch, rows, pipeline.is_contraction(stage))
    pipeline.regions = _regions(pipeline)
    pipeline.constants = constants
    _note_divisions(pipeline)
    pipeline.tiling = _tiling(pipeline)
    _place(pipeline)
    return pipeline


def _batch_axes(kernel: Kernel, rows: int) -> list[int]:
    """Row axes that a B operand depends on."""
    used: set[int] = set()
    for stage in kernel.stages:
        if is_contraction(stage, rows):
            operands = factors(stage)
            assert operands is not None
            used |= {axis for axis in expr_axes(operands[1]) if axis < rows}
    return sorted(used)


def _batch_first(kernel: Kernel, rows: int) -> Kernel:
    """The same kernel with its batch axes before its other row axes."""
    from smartmem.index.map import IndexMap
    from smartmem.schedule.roles import Aligned, permuted

    batch = _batch_axes(kernel, rows)
    order = (*batch, *(k for k in range(rows) if k not in batch))
    if order == tuple(range(rows)):
        return kernel
    stages, store = [], kernel.store or IndexMap.identity(kernel.output.shape)
    for stage in kernel.stages:
        full = (*order, *range(rows, len(stage.shape)))
        moved = permuted(Aligned(stage, rows, IndexMap.identity(stage.shape)), full, rows)
        stages.append(moved.stage)
        if stage is kernel.output:
            store = moved.store.then(store)
    local = kernel.local()
    stages = [_permute_loads(s, order, rows, local) for s in stages]
    return Kernel(stages, kernel.tensor, kernel.shape, store, rows, kernel.notes)


def _permute_loads(stage: Stage, order: tuple[int, ...], rows: int, local: set[str]) -> Stage:
    from smartmem.kernel.expr import Expr, Iota, load, rebuild

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Load) and node.tensor in local:
            return load(node.tensor, (*(node.index[k] for k in order), *node.index[rows:]), node.dtype)
        return node

    return replace(stage, body=rebuild(stage.body, leaf))


def _inline_single(stages: list[Stage], rows: int) -> list[Stage]:
    """Pointwise local stages that one later row stage reads are computed there, in registers."""
    result = list(stages)
    for stage in stages[:-1]:
        current = next(s for s in result if s.name == stage.name)
        users = [s for s in result if stage.name in tensors_read(s.body)]
        if current.reduce or len(users) != 1 or is_contraction(users[0], rows):
            continue
        result = [inline(s, current) if s is users[0] else s for s in result if s is not current]
    return result


def _stage_operands(
    stages: list[Stage], storages: Mapping[str, Storage], batch: int, rows: int
) -> list[Stage]:
    """A operands that cannot be read in place get a stage of their own, which packs them into scratch."""
    result: list[Stage] = []
    local = {s.name: s.shape[rows:] for s in stages[:-1]}
    for stage in stages:
        if is_contraction(stage, rows):
            packed = tiles.pack_operand(stage, storages, local, batch, rows)
            if packed is not None:
                result.append(packed[0])
                stage = packed[1]
        result.append(stage)
    return result


def _regions(pipeline: Pipeline) -> list[_Region]:
    regions: list[_Region] = []
    for number, stage in enumerate(pipeline.stages):
        if pipeline.is_contraction(stage):
            regions.append(_Region([], stage))
            continue
        last = regions[-1] if regions else None
        joins = last is not None and (last.contraction is None or _is_epilogue(pipeline, number))
        if last is not None and joins:
            last.stages.append(stage)
        else:
            regions.append(_Region([stage]))
    return regions


def _is_epilogue(pipeline: Pipeline, number: int) -> bool:
    """Whether all stages from the last contraction up to the next one (or the end) are pointwise."""
    stages = pipeline.stages
    marks = [k for k, s in enumerate(stages) if pipeline.is_contraction(s)]
    start = max(k for k in marks if k < number)
    end = min((k for k in marks if k > number), default=len(stages))
    own = {s.name for s in stages[start:end]}
    space = stages[start].space()
    return all(
        not s.reduce and s.shape == stages[start].shape and all(x.index == space for x in s.loads() if x.tensor in own)
        for s in stages[start + 1 : end]
    )


def _tiling(pipeline: Pipeline) -> tiles.Tiling:
    """Rows per tile and tiles per block: a block's A operands and local tensors stay in half of L2.

    Tall problems go in blocks of about 56 rows through all panels; low ones keep all rows together, and columns are
    divided among tasks instead.
    """
    contracted = pipeline.contractions()
    height = pipeline.height
    if not contracted:
        return tiles.Tiling(height, 1, min(32, height))
    rows = tiles.tile_rows(pipeline.target, height, max(pipeline.flats[s.name].columns for s in contracted))
    count = -(-height // rows)
    depth = max(math.prod(s.reduce) for s in contracted)
    local = sum(pipeline.flats[s.name].columns for s in pipeline.stages[:-1] if s.shape[pipeline.rows :])
    fitting = pipeline.target.l2 // 2 // (4 * (depth + local)) // rows
    wanted = -(-TALL_BLOCK // rows) if height >= TALL and not _is_attention(pipeline) else count
    return tiles.Tiling(height, rows, max(1, min(fitting, wanted, count)))


TALL, TALL_BLOCK = 512, 56


def _is_attention(pipeline: Pipeline) -> bool:
    return len(pipeline.contractions()) == 2


def _place(pipeline: Pipeline) -> None:
    """Decides where each local tensor lives."""
    region_of = {s.name: k for k, r in enumerate(pipeline.regions) for s in [*r.stages, *([r.contraction] if r.contraction else [])]}
    for stage in pipeline.stages[:-1]:
        users = [s for s in pipeline.stages if stage.name in tensors_read(s.body)]
        same = all(region_of[u.name] == region_of[stage.name] for u in users)
        region = pipeline.regions[region_of[stage.name]]
        if not stage.shape[pipeline.rows :]:
            if same:
                pipeline.places[stage.name] = Place("scalar")
            else:
                pipeline.places[stage.name] = Place("column", pipeline.reserve(pipeline.tiling.block), 1)
            continue
        width = math.prod(stage.shape[pipeline.rows :])
        if region.contraction is not None and same:
            pipeline.places[stage.name] = Place("register")
        elif same and region.contraction is None:
            pipeline.places[stage.name] = Place("row", pipeline.reserve(width + 16), width)
        else:
            stride = -(-width // 16) * 16 + (16 if width % 256 < 16 and width >= 256 else 0)
            pipeline.places[stage.name] = Place("block", pipeline.reserve(stride * pipeline.tiling.block + 16), stride)


# ------------------------------------------------------------------------------------------------------- emission


@dataclass(frozen=True)
class Task:
    """How tasks divide the work: batch entries x chunks of `chunk` row tiles x chunks of `span` columns."""

    row_chunks: int
    chunk: int
    column_chunks: int
    span: int


def _tasks(pipeline: Pipeline, width: int) -> Task:
    tiling, batches = pipeline.tiling, pipeline.batches
    contracted = pipeline.contractions()
    dynamic = any(tiles.is_dynamic(s, pipeline.constants) for s in contracted)
    wanted = max(1, min(TASKS, _work(pipeline) // TASK_WORK))
    chunks = -(-tiling.count // tiling.group)
    if dynamic and batches >= 4:  # packing B once per batch entry is worth more than more tasks
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
    if len(contracted) == 1 and is_contraction_last(pipeline) and not dynamic and chunks * batches < wanted:
        panel = tiles.tile_columns(pipeline.target, width)
        columns, per = _column_chunks(-(-width // panel), -(-wanted // (chunks * batches)))
        span = per * panel
    return Task(chunks, chunk, columns, span)


def _column_chunks(panels: int, most: int) -> tuple[int, int]:
    """An even number of chunks of nearly equal size (so that 2, 4, 8 threads share them evenly), and their panels."""
    best = (1, panels)
    for count in range(2, min(panels, max(most, 2)) + 1, 2):
        per = -(-panels // count)
        if -(-panels // per) == count and per * count <= best_waste(panels, best) and (per >= 2 or panels <= 16):
            best = (count, per)
    return best


def best_waste(panels: int, best: tuple[int, int]) -> int:
    """Most panels' worth of slots that a split may use: 1/16 more than there are panels."""
    del best
    return panels + max(1, panels // 16)


def is_contraction_last(pipeline: Pipeline) -> bool:
    return pipeline.regions[-1].contraction is not None


def _work(pipeline: Pipeline) -> int:
    from smartmem.kernel.expr import cost

    total = 0
    for stage in pipeline.stages:
        per = 1 if pipeline.is_contraction(stage) else 2 + cost(stage.body)
        total += math.prod(stage.domain) * per
    return total


def _emit(pipeline: Pipeline) -> KernelCode:
    kernel, storages = pipeline.kernel, pipeline.storages
    arguments, writer = Arguments(), Writer()
    packed = tiles.prepare_weights(pipeline, pipeline.constants)
    names = [n for n in _memory_inputs(pipeline) if n not in packed.replaced]
    pointers = arguments.tensors(names, storages)
    for buffer in packed.buffers:
        arguments.pointer(buffer, "float")
    pointers[kernel.tensor] = arguments.pointer(storages[kernel.tensor].buffer, "float" if kernel.output.dtype == _FLOAT else "uint8_t")
    for line in arguments.declarations(storages[kernel.tensor].buffer):
        writer.line(line)
    task = _tasks(pipeline, pipeline.flats[pipeline.stages[-1].name].columns)
    emitter = RowEmitter(pipeline, writer, pointers, arguments, packed, task)
    emitter.function()
    family = _family(pipeline)
    tasks = pipeline.batches * task.row_chunks * task.column_chunks
    return KernelCode(
        writer.text(), arguments.buffers, tasks, 1, 4 * pipeline.scratch, packed.weights, family,
        pipeline.notes, pipeline.support,
    )  # fmt: skip


def _note_divisions(pipeline: Pipeline) -> None:
    """Logs the stages whose reductions divide along their columns: their digits have no common refinement."""
    local = {stage.name for stage in pipeline.stages}
    for stage in pipeline.stages:
        if not stage.reduce or pipeline.is_contraction(stage):
            continue
        flat = pipeline.flats[stage.name]
        for access in loads(flat.body):
            if access.tensor in local:
                continue
            _, within = split_by(pipeline.storages[access.tensor].at(access.index), {N})
            if has_division(within, flat.extents):
                pipeline.notes.append(f"{stage.name} divides along its reduction to read {access.tensor}")


def _memory_inputs(pipeline: Pipeline) -> list[str]:
    local = {s.name for s in pipeline.stages}
    names: dict[str, None] = {}
    for stage in pipeline.stages:
        for tensor in tensors_read(stage.body):
            if tensor not in local:
                names[tensor] = None
    return list(names)


def _family(pipeline: Pipeline) -> str:
    contracted = pipeline.contractions()
    if len(contracted) == 2:
        return "attention" if any(s.reduce and not pipeline.is_contraction(s) for s in pipeline.stages) else "contraction"
    return "contraction" if contracted else "row reduction"


class RowEmitter:
    """Writes the C function of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        writer: Writer,
        pointers: dict[str, str],
        arguments: Arguments,
        packed: tiles.Packed,
        task: Task,
    ) -> None:
        self.pipeline = pipeline
        self.writer = writer
        self.pointers = pointers
        self.arguments = arguments
        self.packed = packed
        self.task = task
        self.values: dict[str, Value] = {}
        self._packed_at: dict[str, int] = {}
        self.mark = writer.mark()

    def packed_offset(self, stage: Stage) -> int:
        """Where in scratch the run-time panels of a contraction's B lie."""
        if stage.name not in self._packed_at:
            flat, walk = self.pipeline.flats[stage.name], tiles.walk_of(self.pipeline, stage)
            width = tiles.tile_columns(self.pipeline.target, flat.columns)
            self._packed_at[stage.name] = self.pipeline.reserve(-(-flat.columns // width) * width * walk.depth)
        return self._packed_at[stage.name]

    # -- structure

    def function(self) -> None:
        p, w, task = self.pipeline, self.writer, self.task
        w.line("float *const s = scratch;")
        w.line("(void)s;")
        dynamic = [s for s in p.contractions() if tiles.is_dynamic(s, p.constants) and tiles.direct_b(p, s) is None]
        if dynamic:
            w.line("long packed = -1;")
        with w.loop("t", "end", "begin"):
            rest = "t"
            if task.column_chunks > 1:
                w.line(f"const long c0 = t % {task.column_chunks} * {task.span};")
                rest = f"t / {task.column_chunks}"
            if p.batches > 1:
                inner = f"({rest})" if "/" in rest else rest
                w.line(f"const long b = {inner if task.row_chunks == 1 else f'{inner} / {task.row_chunks}'};")
            chunk = "0" if task.row_chunks == 1 else f"{f'({rest})' if '/' in rest else rest} % {task.row_chunks}"
            tiling = p.tiling
            w.line(f"const long low = {chunk if chunk == '0' else f'{chunk} * {task.chunk}'};")
            w.line(f"const long high = low + {task.chunk} < {tiling.count} ? low + {task.chunk} : {tiling.count};")
            if dynamic:
                with w.block(f"if (packed != {'b' if p.batches > 1 else '0'})"):
                    for stage in dynamic:
                        tiles.emit_pack(self, stage)
                    w.line(f"packed = {'b' if p.batches > 1 else '0'};")
            with w.loop("g", "high", "low", tiling.group):
                w.line(f"const long h = g + {tiling.group} < high ? g + {tiling.group} : high;")
                w.line(f"const long m0 = {tiling.start('g')}, rows = {tiling.start('h')} - m0;")
                for region in p.regions:
                    if region.contraction is not None:
                        tiles.emit_contraction(self, region.contraction, region.stages)
                    else:
                        self.row_region(region.stages)

    def context(self, flat: Flat, lane: Lane | None, row: str = "m", column: str = "n") -> Context:
        """Names for a flat stage; local tensors are read from where `place` put them."""
        names = {B: "b" if self.pipeline.batches > 1 else "0", M: row, N: column}
        for k in range(3, len(flat.extents)):
            names[k] = f"k{k - 3}"
        axes = Axes(names, flat.extents)
        axes = replace(axes, lookup=lookup_renderer(self.pipeline.storages, self.pointers))
        local = {s.name: self._reader(s) for s in self.pipeline.stages[:-1]}
        return Context(axes, self.pipeline.storages, self.pointers, local, lane)

    def _reader(self, stage: Stage):  # type: ignore[no-untyped-def]
        place = self.pipeline.places[stage.name]
        rows = self.pipeline.rows

        def read(emitter: Emitter, index: tuple[Lin, ...]) -> Value:
            if stage.name in self.values:
                return self.values[stage.name]
            if place.kind == "column":
                return emitter.name(f"s[{place.offset} + r]", stage.dtype, False)
            columns = flat_address(index[rows:], stage.shape[rows:])
            base = f"s + {place.offset}" + (f" + r * {place.width}" if place.kind == "block" else "")
            return emitter.load_at(f"({base})", columns, stage.dtype)

        return read

    # -- row stages

    def row_region(self, stages: list[Stage]) -> None:
        """One loop over the rows of the block; inside, the loops over columns that the stages need."""
        w = self.writer
        with w.loop("r", "rows"):
            w.line("const long m = m0 + r;")
            self.values = {}
            for group in self._groups(stages):
                self._group(group)
            self.values = {}

    def _groups(self, stages: list[Stage]) -> list[list[Stage]]:
        """Consecutive stages that share one column loop: the same columns, and no result of a reduction in between."""
        groups: list[list[Stage]] = []
        for stage in stages:
            flat = self.pipeline.flats[stage.name]
            loop = self._has_loop(stage)
            if groups and loop and self._has_loop(groups[-1][0]) and self._joins(stage, groups[-1]):
                groups[-1].append(stage)
            else:
                groups.append([stage])
            del flat
        return groups

    def _has_loop(self, stage: Stage) -> bool:
        return bool(stage.reduce or stage.shape[self.pipeline.rows :])

    def _joins(self, stage: Stage, group: list[Stage]) -> bool:
        flats = self.pipeline.flats
        mine = flats[stage.name]
        for other in group:
            theirs = flats[other.name]
            if theirs.columns != mine.columns:
                return False
            for load in loads(mine.body):
                if load.tensor == other.name:
                    if other.reduce:
                        return False
                    if load.index != theirs.space:
                        return False
        return True

    def _group(self, group: list[Stage]) -> None:
        w, flats = self.writer, self.pipeline.flats
        if not self._has_loop(group[0]):
            (stage,) = group
            flat = flats[stage.name]
            value = Emitter(w, self.context(flat, None)).value(flat.body)
            self._keep_scalar(stage, value)
            return
        columns = flats[group[0].name].columns
        totals = {}
        for stage in group:
            if stage.reduce:
                totals[stage.name] = w.fresh("total")
                w.line(f"f32v {totals[stage.name]} = sm_splat({initial(stage.combine, stage.dtype)});")
        lane = Lane(N, columns, self.pipeline.target.lanes)
        self.mark = w.mark()
        if not all(self._lane_free(stage, lane) for stage in group):
            if len(group) == 1 and self._is_packing(group[0]):
                self._pack_row(group[0])
                return
            with w.loop("n", columns, reduces=bool(totals)):
                self._element(group, totals)
            for stage in group:
                if stage.reduce:
                    self._keep_scalar(stage, Value(f"sm_h{stage.combine}({totals[stage.name]})"))
            return
        full = columns - columns % lane.width
        if full:
            with w.loop("n", full, 0, "SM_W", reduces=bool(totals)):
                self._chunk(group, lane, totals)
        if columns % lane.width:
            with w.block(""):
                w.line(f"const long n = {full}, count = {columns - full};")
                self._chunk(group, replace(lane, count="count"), totals)
        for stage in group:
            if stage.reduce:
                self._keep_scalar(stage, Value(f"sm_h{stage.combine}({totals[stage.name]})"))

    def _is_packing(self, stage: Stage) -> bool:
        """A padded operand copied into scratch: its guards depend on rows and columns, outside lie zeros."""
        body = stage.body
        zero = isinstance(body, Choose) and isinstance(body.otherwise, Const) and body.otherwise.value == 0
        return zero and not stage.reduce and stage is not self.pipeline.stages[-1]

    def _pack_row(self, stage: Stage) -> None:
        """Loops over the column axes, guards tested as soon as their axes are known."""
        p, w = self.pipeline, self.writer
        place, flat = p.places[stage.name], p.flats[stage.name]
        columns = stage.shape[p.rows :]
        first = len(flat.extents)
        axes = (*flat.space[: p.rows], *(axis_digit(first + k, n) for k, n in enumerate(columns)))
        body = reindex(stage.body, axes, stage.domain)
        assert isinstance(body, Choose)
        base = f"{place.offset}" + (f" + r * {place.width}" if place.kind == "block" else "")
        context = self.context(replace(flat, extents=(*flat.extents, *columns)), None)
        names = {**context.axes.names, **{first + k: f"x{k}" for k in range(len(columns))}}
        context = replace(context, axes=replace(context.axes, names=names))
        with w.loop("n", math.prod(columns)):
            w.line(f"s[{base} + n] = 0.0f;")
        pending, bound = list(body.guards), set(range(first))
        where = flat_address(axes[p.rows :], columns)
        with ExitStack() as loops:
            self._test(pending, bound, context, loops)
            for k, extent in enumerate(columns):
                if k == len(columns) - 1 and extent <= 8:
                    w.line(f"#pragma GCC unroll {extent}")
                loops.enter_context(w.loop(f"x{k}", extent))
                bound.add(first + k)
                self._test(pending, bound, context, loops)
            value = Emitter(w, context).value(body.then)
            w.line(f"s[{base} + {c_lin(where, context.axes)}] = {value.text};")

    def _test(self, pending: list[Guard], bound: set[int], context: Context, loops: ExitStack) -> None:
        ready = tuple(g for g in pending if set(axes_of(g.lin)) <= bound)
        if ready:
            pending[:] = [g for g in pending if g not in ready]
            loops.enter_context(self.writer.block(f"if ({c_guards(ready, context.axes)})"))

    def _lane_free(self, stage: Stage, lane: Lane) -> bool:
        body = self.pipeline.flats[stage.name].body
        return all(lane_free(n.guards, lane) for n in walk(body) if isinstance(n, Choose))

    def _element(self, group: list[Stage], totals: dict[str, str]) -> None:
        """One column with scalars, for stages whose guards change along the lane; reductions use lane 0."""
        w, kept = self.writer, dict(self.values)
        context = replace(self.context(self.pipeline.flats[group[0].name], None), hoist=self.mark, inner=frozenset((N,)))
        emitter = Emitter(w, context)
        for stage in group:
            flat = self.pipeline.flats[stage.name]
            value = emitter.value(flat.body)
            if stage.reduce:
                total = totals[stage.name]
                scalar = combined(stage.combine, f"{total}[0]", value.text, False, stage.dtype)
                w.line(f"{total}[0] = {scalar};")
                continue
            if stage is self.pipeline.stages[-1]:
                where = c_lin(self.output_address(flat), emitter.context.axes)
                w.line(f"{self.pointers[self.pipeline.kernel.tensor]}[{where}] = {value.text};")
            else:
                place = self.pipeline.places[stage.name]
                base = f"{place.offset}" + (f" + r * {place.width}" if place.kind == "block" else "")
                w.line(f"s[{base} + n] = {value.text};")
            self.values[stage.name] = value
        self.values = kept

    def _chunk(self, group: list[Stage], lane: Lane, totals: dict[str, str]) -> None:
        w, kept = self.writer, dict(self.values)
        context = replace(self.context(self.pipeline.flats[group[0].name], lane), hoist=self.mark, inner=frozenset((N,)))
        emitter = Emitter(w, context)
        for stage in group:
            flat = self.pipeline.flats[stage.name]
            value = emitter.value(flat.body)
            text = emitter.as_vector(value, flat.body.dtype)
            if stage.reduce:
                total = totals[stage.name]
                update = combined(stage.combine, total, text, True, stage.dtype)
                if lane.count:
                    update = f"sm_select(sm_first({lane.count}), {update}, {total})"
                w.line(f"{total} = {update};")
            else:
                self.keep_vector(stage, flat, emitter, text, lane)
                self.values[stage.name] = value
        self.values = kept

    def _keep_scalar(self, stage: Stage, value: Value) -> None:
        w = self.writer
        if stage is self.pipeline.stages[-1]:
            flat = self.pipeline.flats[stage.name]
            context = self.context(flat, None)
            address = self.output_address(flat)
            w.line(f"{self.pointers[self.pipeline.kernel.tensor]}[{c_lin(address, context.axes)}] = {value.text};")
            return
        place = self.pipeline.places[stage.name]
        name = w.fresh("row")
        w.line(f"const float {name} = {value.text};")
        self.values[stage.name] = Value(name)
        if place.kind == "column":
            w.line(f"s[{place.offset} + r] = {name};")

    def keep_vector(self, stage: Stage, flat: Flat, emitter: Emitter, text: str, lane: Lane) -> None:
        if stage is self.pipeline.stages[-1]:
            pointer = self.pointers[self.pipeline.kernel.tensor]
            store_vector(self.writer, emitter.context, pointer, self.output_address(flat), text, stage.dtype)
            return
        place = self.pipeline.places[stage.name]
        base = f"s + {place.offset}" + (f" + r * {place.width}" if place.kind == "block" else "")
        count = f", {lane.count}" if lane.count else ""
        self.writer.line(f"sm_store{'_n' if lane.count else ''}({base} + n, {text}{count});")

    def output_address(self, flat: Flat) -> Lin:
        """Element address of the kernel's result over the flat axes of its last stage."""
        from smartmem.index.substitute import substitute

        kernel = self.pipeline.kernel
        address = self.pipeline.storages[kernel.tensor].at(kernel.store_coords())
        return substitute(address, flat.space, flat.stage.shape)


def flat_address(index: tuple[Lin, ...], shape: tuple[int, ...]) -> Lin:
    """Row-major offset of a column coordinate."""
    address = Lin()
    for value, extent in zip(index, shape, strict=True):
        address = address * extent + value
    return address


__all__ = ["Pipeline", "RowEmitter", "accepts", "axes_of", "is_contraction", "schedule"]
