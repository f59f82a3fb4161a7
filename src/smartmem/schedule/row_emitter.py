"""The C function of a row pipeline: tasks, blocks of rows, and the regions one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

from smartmem.codegen.c_expr import (
    Context,
    Emitter,
    Lane,
    LocalReader,
    Value,
    c_guards,
    lane_free,
    lookup_renderer,
    vector_lookup,
)
from smartmem.codegen.c_index import Axes, c_lin
from smartmem.codegen.writer import REDUCES, Writer
from smartmem.index.lin import Lin, axes_of
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import Choose, cost, loads, walk
from smartmem.kernel.stage import Stage, tensors_read
from smartmem.schedule.b_starts import Tables
from smartmem.schedule.band import emit_band
from smartmem.schedule.code import Arguments
from smartmem.schedule.contraction import emit_contraction
from smartmem.schedule.flatten import B, Flat, M, N, flat_address
from smartmem.schedule.key_blocks import emit_key_blocks
from smartmem.schedule.nest import combined, initial, store_vector
from smartmem.schedule.operand_a import walk_of
from smartmem.schedule.operand_b import Packed, direct_b, emit_pack, held_of, is_dynamic
from smartmem.schedule.pack_rows import is_packing, pack_across, pack_row, pack_turned, turns
from smartmem.schedule.pipeline import HELD, Pipeline, Region
from smartmem.schedule.read_once import emit_once, keep_tables, reads_once
from smartmem.schedule.tasks import Task
from smartmem.schedule.tiling import tile_columns
from smartmem.schedule.unit_loop import pack_tiles
from smartmem.schedule.units import b_floats

BLOCK = 4096  # columns of a partial sum
TOGETHER, SHORT = 8, 512  # rows that go through their stages together, and the columns that they have at most
LIGHT = 4  # operations per element that do not hide how long an addition takes

Groups = list[list[Stage]]  # stages that share a loop over columns, group by group


def after_sums(stages: list[Stage]) -> set[str]:
    """The stages that are sums, or computed from sums."""
    found: set[str] = set()
    for stage in stages:
        if (stage.reduce and stage.combine == "sum") or not found.isdisjoint(tensors_read(stage.body)):
            found.add(stage.name)
    return found


class RowEmitter:
    """Writes the C function of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        writer: Writer,
        pointers: dict[str, str],
        arguments: Arguments,
        packed: Packed,
        task: Task,
    ) -> None:
        self.pipeline = pipeline
        self.writer = writer
        self.pointers = pointers
        self.arguments = arguments
        self.packed = packed
        self.task = task
        self.streams = pipeline.target.streams(pipeline.storages[pipeline.kernel.tensor].bytes)
        self.rounded = frozenset(after_sums(pipeline.stages))
        self.values: dict[str, Value] = {}
        self.starts: dict[str, Tables] = {}  # of the contractions whose B is not packed
        self.tiles_at: dict[str, int] = {}  # of contractions whose operand A is packed for matrix units
        self.starts_at: dict[tuple[str, int, str], int] = {}  # where tables of starts lie, by what they hold
        self._packed_at: dict[str, int] = {}
        self._tiles_at: dict[str, int] = {}
        self._slots = 1  # in use, of what scratch holds
        self.mark = self.once = writer.mark()

    def packed_offset(self, stage: Stage) -> int:
        """Where in scratch the run-time panels of a contraction's B lie."""
        if stage.name not in self._packed_at:
            flat, walk = self.pipeline.flats[stage.name], walk_of(self.pipeline, stage)
            held = held_of(self.pipeline, stage, walk)
            width = tile_columns(self.pipeline.target, flat.columns)
            self._packed_at[stage.name] = self.pipeline.reserve(-(-held.columns // width) * width * held.depth)
        return self._packed_at[stage.name]

    def tiles_offset(self, stage: Stage) -> int:
        """Where in scratch these panels lie as tiles for matrix units."""
        if stage.name not in self._tiles_at:
            p, flat = self.pipeline, self.pipeline.flats[stage.name]
            assert p.target.form is not None
            width = tile_columns(p.target, flat.columns)
            size = b_floats(walk_of(p, stage).depth, width, p.target.form)
            self._tiles_at[stage.name] = p.reserve(-(-flat.columns // width) * size)
        return self._tiles_at[stage.name]

    def keep_slot(self) -> int | None:
        """A new number of what scratch holds from one task to the next (see `HELD`), None if there is no more room."""
        self._slots += 1
        return self._slots - 1 if 2 * self._slots <= HELD else None

    # -- structure

    def function(self) -> None:
        p, w, task = self.pipeline, self.writer, self.task
        w.line("long *const held = scratch;")
        w.line(f"float *const s = (float *)scratch + {HELD};")
        w.line("(void)s, (void)held;")
        dynamic = [s for s in p.contractions() if is_dynamic(s, p.constants) and direct_b(p, s) is None]
        if p.target.form is not None:
            w.line("sm_units_begin();")
        with w.loop("t", "end", "begin"):
            rows = rest = "t"
            if task.column_chunks > 1:  # the inner digit: a thread's tasks share rows, and what is local to them
                w.line(f"const long c0 = t % {task.column_chunks} * {task.span};")
                rows = rest = f"t / {task.column_chunks}"
            if p.batches > 1:
                self._entries(rest if task.row_chunks == 1 else f"{rest} / {task.row_chunks}")
                rest = f"{rest} % {task.row_chunks}"
            self._tiles(rest)
            if p.softmax is not None:
                emit_key_blocks(self, dynamic)
            else:
                self.starts = {stage.name: keep_tables(self, stage) for stage in dynamic if reads_once(p, stage)}
                if dynamic:
                    with self._once("b" if p.batches > 1 else "0"):
                        for stage in dynamic:
                            if stage.name not in self.starts:
                                emit_pack(self, stage)
                shared = task.column_chunks > 1 and task.chunk <= p.tiling.group
                kept = len(p.regions) - 1 if shared else 0
                with self.blocks():
                    last = p.regions[-1].contraction if shared and p.target.form is not None else None
                    if kept or last is not None:
                        with self._once(rows):
                            self.regions(p.regions[:kept])
                            if last is not None:
                                self.tiles_at[last.name] = pack_tiles(self, last)
                    self.regions(p.regions[kept:])
        if p.target.form is not None:
            w.line("sm_units_end();")
        if self.streams:
            w.line("sm_stream_end();")

    @contextmanager
    def _once(self, what: str) -> Iterator[None]:
        """Code that a thread runs once for all its tasks with the same number `what`: scratch keeps what it leaves."""
        w = self.writer
        with w.block(f"if (*held != {what})"):
            yield
            w.line(f"*held = {what};")

    def _tiles(self, chunk: str) -> None:
        """Declares the row tiles [low, high) of a chunk of rows."""
        w, count, chunks = self.writer, self.pipeline.tiling.count, self.task.row_chunks
        if chunks == 1:
            w.line(f"const long low = 0, high = {count};")
        elif count % chunks == 0:
            w.line(f"const long low = {chunk} * {self.task.chunk}, high = low + {self.task.chunk};")
        else:
            w.line(f"const long chunk = {chunk};")
            w.line(f"const long low = chunk * {count} / {chunks}, high = (chunk + 1) * {count} / {chunks};")

    @contextmanager
    def blocks(self) -> Iterator[None]:
        """A loop over the task's blocks of rows."""
        tiling, w = self.pipeline.tiling, self.writer
        with w.loop("g", "high", "low", tiling.group):
            w.line(f"const long h = g + {tiling.group} < high ? g + {tiling.group} : high;")
            w.line(f"const long m0 = {tiling.start('g')}, rows = {tiling.start('h')} - m0;")
            yield

    def regions(self, regions: list[Region]) -> None:
        """Regions of one block of rows."""
        for region in regions:
            if region.contraction is not None and region.contraction.name in self.starts:
                emit_once(self, region.contraction, region.stages, self.starts[region.contraction.name])
            elif region.contraction is not None:
                emit_contraction(self, region.contraction, region.stages)
            else:
                self.row_region(region.stages)

    def _entries(self, chunk: str) -> None:
        """Declares the batch entry of the task, or its range [b0, b1) of entries that share row pointers."""
        batches, entries, w = self.pipeline.batches, self.task.entries, self.writer
        if self.pipeline.shared_step is None:
            w.line(f"const long b = {chunk};")
            return
        w.line(f"const long b0 = {'0' if entries == batches else f'({chunk}) * {entries}'};")
        w.line(f"const long b1 = b0 + {entries} < {batches} ? b0 + {entries} : {batches};")

    def context(self, flat: Flat, lane: Lane | None, row: str = "m", column: str = "n") -> Context:
        """Names for a flat stage; local tensors are read from where `place` put them."""
        names = {B: "b" if self.pipeline.batches > 1 else "0", M: row, N: column}
        for k in range(3, len(flat.extents)):
            names[k] = f"k{k - 3}"
        axes = Axes(names, flat.extents)
        axes = replace(axes, lookup=lookup_renderer(self.pipeline.storages, self.pointers))
        local = {s.name: self._reader(s) for s in self.pipeline.stages[:-1]}
        lookup = vector_lookup(self.pipeline.storages, self.pointers)
        zero = self.pipeline.storages[self.pipeline.kernel.tensor].zero
        return Context(
            axes, self.pipeline.storages, self.pointers, local, lane, lookup, once=self.once, streams=self.streams,
            zero=zero, rounded=self.rounded,
        )  # fmt: skip

    def _reader(self, stage: Stage) -> LocalReader:
        place = self.pipeline.places[stage.name]
        rows = self.pipeline.rows

        def read(emitter: Emitter, index: tuple[Lin, ...]) -> Value:
            if stage.name in self.values:
                return self.values[stage.name]
            if place.kind == "column":
                return emitter.name(f"s[{place.offset} + {place.index}]", stage.dtype, False)
            columns = flat_address(index[rows:], stage.shape[rows:])
            base = f"s + {place.row}"
            return emitter.load_at(f"({base})", columns, stage.dtype)

        return read

    # -- row stages

    def row_region(self, stages: list[Stage]) -> None:
        """One loop over the rows of the block; inside, the loops over columns that the stages need.

        A stage that chooses by the batch entry has one such loop for each choice: a loop then finds only the addresses
        that its own choice reads.
        """
        w, flats = self.writer, self.pipeline.flats
        flat = flats[stages[0].name]
        body = flat.body
        if len(stages) == 1 and isinstance(body, Choose) and {a for g in body.guards for a in axes_of(g.lin)} <= {B}:
            axes = self.context(flat, None).axes
            for header, choice in ((f"if ({c_guards(body.guards, axes)})", body.then), ("else", body.otherwise)):
                with w.block(header):
                    flats[stages[0].name] = replace(flat, body=choice)
                    self.row_region(stages)
            flats[stages[0].name] = flat
            return
        if stages[0].name in self.pipeline.bands:
            emit_band(self, stages[0])
            return
        place = self.pipeline.places.get(stages[0].name)
        if place is not None and place.kind == "across":
            pack_across(self, stages[0])
            return
        if len(stages) == 1 and turns(self.pipeline, stages[0]):
            pack_turned(self, stages[0])
            return
        passes = self._passes(self._groups(stages))
        if len(passes) == 1:
            self._rows(passes[0], [], "0", "rows")
            return
        with w.loop("r0", "rows", 0, TOGETHER):
            w.line(f"const long r1 = r0 + {TOGETHER} < rows ? r0 + {TOGETHER} : rows;")
            before: list[Stage] = []
            for groups in passes:
                self._rows(groups, before, "r0", "r1")
                before += chain.from_iterable(groups)

    def _rows(self, groups: Groups, before: list[Stage], first: str, last: str) -> None:
        """Groups of stages in one loop over rows; stages `before` had loops of their own over the same rows."""
        w, p = self.writer, self.pipeline
        read = {name for stage in chain.from_iterable(groups) for name in tensors_read(stage.body)}
        with w.loop("r", last, first):
            w.line("const long m = m0 + r;")
            self.values = {}
            for stage in before:
                if stage.name in read and p.places[stage.name].kind == "column":
                    self.values[stage.name] = Value(w.fresh("row"))
                    number = f"s[{p.places[stage.name].offset} + r]"
                    w.line(f"const float {self.values[stage.name].text} = {number};")
            for group in groups:
                self._group(group)
            self.values = {}

    def _passes(self, groups: Groups) -> list[Groups]:
        """Groups of stages that a few rows go through before they go through the next.

        A number of a row is not there at once when its last value has been read, and short rows are read in less time.
        Where more is kept of a row than numbers, it is for one row at a time.
        """
        p = self.pipeline
        passes: list[Groups] = [[]]
        for k, group in enumerate(groups):
            done = list(chain.from_iterable(passes[-1]))
            later = {name for stage in chain.from_iterable(groups[k:]) for name in tensors_read(stage.body)}
            kept = {p.places[stage.name].kind for stage in done if stage.name in later}
            short = all(p.flats[stage.name].columns <= SHORT for stage in done)
            numbers = any(stage.reduce for stage in done) and kept <= {"scalar", "column", "block"}
            loops = any(self._has_loop(after[0]) for after in groups[k:])
            if p.target.tuned and p.softmax is None and p.tiling.block > 1 and short and numbers and loops:
                passes.append([])
            passes[-1].append(group)
        for stage in chain.from_iterable(chain.from_iterable(passes[:-1])):
            if p.places[stage.name].kind == "scalar":
                p.places[stage.name] = replace(p.places[stage.name], kind="column", offset=p.reserve(p.tiling.block))
        return passes

    def _groups(self, stages: list[Stage]) -> Groups:
        """Consecutive stages that share one column loop: the same columns, and no result of a reduction in between."""
        groups: Groups = []
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
            if len(group) == 1 and is_packing(self.pipeline, group[0]):
                pack_row(self, group[0])
                return
            with w.loop("n", columns, reduces=bool(totals)):
                self._element(group, totals)
            for stage in group:
                if stage.reduce:
                    self._keep_scalar(stage, Value(f"sm_h{stage.combine}({totals[stage.name]})"))
            return
        full = columns - columns % lane.width
        if full > 2 * BLOCK and totals:  # sums of sums: rounding errors stay small
            with w.loop("n1", full, 0, BLOCK):
                parts = {name: w.fresh("part") for name in totals}
                for stage in group:
                    if stage.reduce:
                        start = initial(stage.combine, stage.dtype)
                        w.line(f"f32v {parts[stage.name]} = sm_splat({start});")
                w.line(f"const long n2 = n1 + {BLOCK} < {full} ? n1 + {BLOCK} : {full};")
                self._chunks(group, lane, parts, "n1", "n2")
                for stage in group:
                    if stage.reduce:
                        total = totals[stage.name]
                        w.line(f"{total} = {combined(stage.combine, total, parts[stage.name], True, stage.dtype)};")
        elif full:
            self._chunks(group, lane, totals, "0", str(full))
        if columns % lane.width:
            with w.block(""):
                w.line(f"const long n = {full}, count = {columns - full};")
                self._chunk(group, replace(lane, count="count"), totals)
        for stage in group:
            if stage.reduce:
                self._keep_scalar(stage, Value(f"sm_h{stage.combine}({totals[stage.name]})"))

    def _chunks(self, group: list[Stage], lane: Lane, totals: dict[str, str], start: str, end: str) -> None:
        """Whole vectors of columns; in long rows of which little is computed four have their own accumulators."""
        w, flats, wide = self.writer, self.pipeline.flats, 4 * lane.width
        light = all(stage.reduce and cost(flats[stage.name].body) <= LIGHT for stage in group)
        if not light or lane.extent < 4 * wide or not self.pipeline.target.tuned:
            with w.loop("n", end, start, "SM_W", reduces=bool(totals)):
                self._chunk(group, lane, totals)
            return
        sums = [totals, *({name: w.fresh("part") for name in totals} for _ in range(3))]
        for stage in group:
            w.line("f32v " + ", ".join(f"{part[stage.name]} = {totals[stage.name]}" for part in sums[1:]) + ";")
        with w.block(""):
            w.line(f"long at = {start};")
            with w.block(f"for (; at + {wide} <= {end}; at += {wide}){REDUCES}"):
                for number, part in enumerate(sums):
                    with w.block(""):
                        w.line(f"const long n = at + {number * lane.width};")
                        self._chunk(group, lane, part)
            with w.loop("n", end, "at", "SM_W", reduces=True):
                self._chunk(group, lane, totals)
        for stage in group:
            first, second, third, fourth = (part[stage.name] for part in sums)
            pairs = [combined(stage.combine, a, b, True, stage.dtype) for a, b in ((first, second), (third, fourth))]
            w.line(f"{first} = {combined(stage.combine, pairs[0], f'({pairs[1]})', True, stage.dtype)};")

    def _lane_free(self, stage: Stage, lane: Lane) -> bool:
        body = self.pipeline.flats[stage.name].body
        return all(lane_free(n.guards, lane) for n in walk(body) if isinstance(n, Choose))

    def _in_columns(self, group: list[Stage], lane: Lane | None) -> Context:
        """Names inside the column loop of a group; what divides per row is hoisted out of it."""
        context = self.context(self.pipeline.flats[group[0].name], lane)
        return replace(context, hoist=self.mark, inner=frozenset((N,)))

    def _element(self, group: list[Stage], totals: dict[str, str]) -> None:
        """One column with scalars, for stages whose guards change along the lane; reductions use lane 0."""
        w, kept = self.writer, dict(self.values)
        emitter = Emitter(w, self._in_columns(group, None))
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
                stored = emitter.context.stored(value.text, False)
                w.line(f"{self.pointers[self.pipeline.kernel.tensor]}[{where}] = {stored};")
            else:
                w.line(f"s[{self.pipeline.places[stage.name].row} + n] = {value.text};")
            self.values[stage.name] = value
        self.values = kept

    def _chunk(self, group: list[Stage], lane: Lane, totals: dict[str, str]) -> None:
        w, kept = self.writer, dict(self.values)
        emitter = Emitter(w, self._in_columns(group, lane))
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
            where, stored = c_lin(self.output_address(flat), context.axes), context.stored(value.text, False)
            w.line(f"{self.pointers[self.pipeline.kernel.tensor]}[{where}] = {stored};")
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
        base = f"s + {place.row}"
        count = f", {lane.count}" if lane.count else ""
        self.writer.line(f"sm_store{'_n' if lane.count else ''}({base} + n, {text}{count});")

    def output_address(self, flat: Flat) -> Lin:
        """Element address of the kernel's result over the flat axes of its last stage."""
        kernel = self.pipeline.kernel
        address = self.pipeline.storages[kernel.tensor].at(kernel.store_coords())
        return substitute(address, flat.space, flat.stage.shape)
