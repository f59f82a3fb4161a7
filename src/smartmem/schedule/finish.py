"""What follows a contraction element by element, done by its register tiles: no sum goes through memory.

In: a contraction and its epilogue. Out: a `Finish`, the C text that each accumulator of a tile goes through before it
is stored, and the pointers that the text needs; or None where the loop over the tile's elements has to do it: where the
epilogue is long (it would need registers that hold sums), or columns of what it reads do not lie side by side. Where
rows do not lie evenly apart (windows put back in place), a table has where each starts, for a block of rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from smartmem.codegen.c_expr import Emitter, Lane, Value
from smartmem.codegen.c_index import along, c_lin, split_by
from smartmem.codegen.c_operations import load_bytes, plus, store_bytes
from smartmem.codegen.writer import Writer
from smartmem.index.lin import Lin, axes_of
from smartmem.kernel.expr import Alu, Choose, DType, Iota, Load, walk
from smartmem.kernel.stage import Stage
from smartmem.schedule.flatten import Flat, M, N, flat_address

if TYPE_CHECKING:
    from smartmem.schedule.row_emitter import RowEmitter

MOST = 12  # operations of an epilogue, each one instruction or two
CHEAP = frozenset(("add", "sub", "mul", "div", "max", "min", "neg", "abs", "round"))
LONG = frozenset(("exp", "tanh", "erf", "sigmoid", "gelu", "recip", "sqrt"))  # where sums lie in memory
OF_ROWS = CHEAP | {"recip", "sqrt"}  # of numbers that a row has one of


class Unfit(Exception):
    """The tile cannot do it."""


@dataclass(frozen=True)
class Source:
    """What the tile reads or stores: columns side by side, or one number for all of them (not `lanes`).

    Rows are `step` elements apart, or start where the table of that number says; `start` is the C pointer to the first
    of the tile, for the kernel that calls it. Elements are floats, or bytes that are `zero` more (see `Storage`). With
    `entries` it is a table of bytes, of which the tile reads what it computes.
    """

    start: str
    step: int
    lanes: bool
    table: int | None = None
    zero: int | None = None
    entries: bool = False

    @property
    def kind(self) -> str:
        """The C type of an element."""
        return "uint8_t" if self.entries or self.zero is not None else "float"

    def load(self, place: str, count: str | None) -> str:
        """A vector of its elements, or the first of one, as C."""
        if self.zero is None:
            return f"sm_load_n({place}, {count}, 0.0f)" if count else f"sm_load({place})"
        return load_bytes(place, self.zero, count)

    def store(self, place: str, value: str, count: str | None, streams: bool) -> str:
        """The statement that stores a vector, or the first of one."""
        if self.zero is not None:
            return store_bytes(place, value, self.zero, count)
        if count:
            return f"sm_store_n({place}, {value}, {count});"
        return f"{'sm_stream' if streams else 'sm_store'}({place}, {value});"

    @property
    def is_shared(self) -> bool:
        """Whether all rows have the same."""
        return self.step == 0 and self.table is None

    def row(self, name: str) -> str:
        """Where row i of the tile starts, as C, given the name of the pointer."""
        if self.table is not None:
            return f"{name} + rows{self.table}[i]"
        return name if self.step == 0 else f"{name} + i * {self.step}"


@dataclass(frozen=True)
class Step:
    """A C variable and what it is."""

    kind: str
    name: str
    text: str


@dataclass(frozen=True)
class Finish:
    """What becomes of the accumulators of a tile.

    Attributes:
        steps: what is computed of row i and vector j; `sum` is the accumulator, x0, x1, ... the sources.
        result: what they leave, a vector.
        sources: what they read.
        target: where the result goes.
        tables: where rows start that are not evenly apart, as C over the row m.
        streams: whether the result is stored past the caches.
    """

    steps: tuple[Step, ...]
    result: str
    sources: tuple[Source, ...]
    target: Source
    tables: tuple[str, ...]
    streams: bool

    def key(self) -> str:
        """The same for what finishes alike, wherever its operands lie."""
        shapes = [
            (source.step, source.lanes, source.table, source.zero, source.entries)
            for source in (*self.sources, self.target)
        ]
        facts = repr((self.steps, self.result, shapes, self.streams))
        return hashlib.sha256(facts.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Ending:
    """A `Finish` as the end of a tile function of `vectors` vectors.

    With `partial` the sums of earlier blocks of k lie in rows of `c`, so many vectors apart, and are added; with `tail`
    only the first `count` columns of the tile exist.
    """

    finish: Finish
    vectors: int
    partial: int = 0
    tail: bool = False

    @property
    def suffix(self) -> str:
        """Of the function's name."""
        partial = f"_partial{self.partial}" if self.partial else ""
        return f"_{self.finish.key()}{partial}" + ("_tail" if self.tail else "")

    @property
    def parameters(self) -> str:
        """Of the function in C, after those of every tile."""
        texts = ["const float *c"] if self.partial else []
        texts.append(f"{self.finish.target.kind} *restrict out")
        texts += [f"const {source.kind} *restrict in{k}" for k, source in enumerate(self.finish.sources)]
        texts += [f"const long *rows{k}" for k in range(len(self.finish.tables))]
        return ", ".join([*texts, "long count"] if self.tail else texts)

    def arguments(self, count: str) -> str:
        """For the parameters; sums so far are in `cq`, tables in `rows0`, `rows1`, ... for the block."""
        texts = ["cq"] if self.partial else []
        texts += [self.finish.target.start, *(source.start for source in self.finish.sources)]
        texts += [f"rows{k} + i" for k in range(len(self.finish.tables))]
        return ", ".join([*texts, count] if self.tail else texts)

    def text(self, rows: int | str, held: str = "acc[i][j]", together: int = 0) -> str:
        """C text: the sum of row i and vector j, which is `held`, goes through the statements and is stored.

        Sums in registers come one after the other. Of sums in memory so many (`together`) take each step in turn: a
        vector waits for its last step four cycles, and a processor does not look far enough ahead for others. Rows that
        the last of these do not have are the last one again.
        """
        finish, vectors = self.finish, self.vectors
        count = "left[j]" if self.tail else None
        across = (f"#pragma GCC unroll {vectors}", f"for (int j = 0; j < {vectors}; ++j)")
        lines: list[str] = []
        if self.tail:
            lines += [f"long left[{vectors}];", *across]
            lines += ["    left[j] = count < j * SM_W ? 0 : count < (j + 1) * SM_W ? count - j * SM_W : SM_W;"]
        shared = [k for k, source in enumerate(finish.sources) if source.is_shared and source.lanes]
        for k in shared:
            same = finish.sources[k].load(f"in{k} + j * SM_W", count)
            lines += [f"f32v same{k}[{vectors}];", *across, f"    same{k}[j] = {same};"]
        before = f" + sm_load(c + (i * {self.partial} + j) * SM_W)" if self.partial else ""
        steps = [Step("f32v", "sum", f"{held}{before}")]
        for k, source in enumerate(finish.sources):
            at = source.row(f"in{k}")
            if source.lanes:
                loaded = f"same{k}[j]" if k in shared else source.load(f"{at} + j * SM_W", count)
                steps.append(Step("f32v", f"x{k}", loaded))
            elif not source.entries:
                steps.append(Step("float", f"x{k}", plus(f"*({at})", -(source.zero or 0), False)))
        steps += finish.steps
        if together:
            height = max(1, together // vectors)
            lines += [f"for (int from = 0; from < {rows}; from += {height}) {{", f"    int at[{height}];"]
            lines += [f"    for (int r = 0; r < {height}; ++r) at[r] = from + r < {rows} ? from + r : {rows} - 1;"]
            lines += [f"    {line}" for line in self._in_turn(steps, height * vectors)]
            lines.append("}")
        else:
            lines += [f"#pragma GCC unroll {rows}", f"for (int i = 0; i < {rows}; ++i)", *across, "{"]
            lines += [f"    const {step.kind} {step.name} = {step.text};" for step in steps]
            lines += [f"    {self._store(finish.result)}", "}"]
        return "\n".join(line if line.startswith("#") else f"    {line}" for line in lines)

    def _in_turn(self, steps: list[Step], count: int) -> Iterator[str]:
        """Each step for all of `count` vectors, then their stores."""
        names = re.compile(rf"\b({'|'.join(step.name for step in steps)})\b")
        each = (f"#pragma GCC unroll {count}", f"for (int u = 0; u < {count}; ++u) {{")
        place = f"const int i = at[u / {self.vectors}], j = u % {self.vectors}; (void)i, (void)j;"
        for step in steps:
            yield f"{step.kind} {step.name}[{count}];"
            text = names.sub(r"\1[u]", step.text)
            yield from (*each, f"    {place} {step.name}[u] = {text};", "}")
        text = names.sub(r"\1[u]", self._store(self.finish.result))
        yield from (*each, f"    {place} {text}", "}")

    def _store(self, result: str) -> str:
        """The statement that stores row i and vector j."""
        target, at = self.finish.target, f"{self.finish.target.row('out')} + j * SM_W"
        whole = target.store(at, result, None, self.finish.streams)
        return f"if (left[j] < SM_W) {target.store(at, result, 'left[j]', False)} else {whole}" if self.tail else whole


def finish_of(e: RowEmitter, stage: Stage, epilogue: list[Stage], width: int) -> Finish | None:
    """How tiles of `width` columns finish a contraction, or None."""
    p = e.pipeline
    if p.group_size or not p.target.tuned or any(s.dtype != np.float32 for s in (stage, *epilogue)):
        return None
    operations = sum(isinstance(n, Alu) for s in epilogue for n in walk(p.flats[s.name].body))
    if operations > MOST and p.target.form is None:  # whose sums lie in memory
        return None
    flat = p.flats[stage.name]
    writer = Writer()
    emitter = _TileEmitter(e, flat, width, writer)
    last = (epilogue or [stage])[-1]
    try:
        for following in epilogue:
            value = emitter.value(p.flats[following.name].body)
            emitter.results[following.name] = Value(emitter.as_vector(value, following.dtype), True)
        target = _target(e, last, emitter)
    except Unfit:
        return None
    streams = e.streams and last is p.stages[-1]
    result = emitter.results[last.name].text
    return Finish(tuple(emitter.steps), result, tuple(emitter.sources), target, tuple(emitter.tables), streams)


def _target(e: RowEmitter, stage: Stage, emitter: _TileEmitter) -> Source:
    p = e.pipeline
    if stage is p.stages[-1]:
        storage, address = p.storages[p.kernel.tensor], e.output_address(p.flats[stage.name])
        if storage.dtype != np.float32 and storage.zero is None:
            raise Unfit
        return replace(emitter.source(e.pointers[p.kernel.tensor], address, whole=True), zero=storage.zero)
    place = p.places[stage.name]
    if place.kind != "block" or place.first:
        raise Unfit
    return Source(f"s + {place.offset} + i * {place.width} + n0", place.width, True)


class _TileEmitter(Emitter):
    """Writes what a tile does with one vector of sums; each operand becomes a `Source`."""

    def __init__(self, row_emitter: RowEmitter, flat: Flat, width: int, writer: Writer) -> None:
        lane = Lane(N, flat.columns, row_emitter.pipeline.target.lanes)
        super().__init__(writer, row_emitter.context(flat, lane, row="(m0 + i)", column="n0"))
        self.pipeline = row_emitter.pipeline
        self.width = width
        self.results = {flat.name: Value("sum", True)}
        self.sources: list[Source] = []
        self.tables: list[str] = []
        self.steps: list[Step] = []

    def _load(self, node: Load) -> Value:
        if node.tensor in self.results:
            return self.results[node.tensor]
        p = self.pipeline
        if node.dtype != np.float32:
            raise Unfit
        local = next((s for s in p.stages if s.name == node.tensor), None)
        if local is None:
            storage = self.context.storages[node.tensor]
            found = self.source(self.context.pointers[node.tensor], storage.at(node.index))
            return self._read(replace(found, zero=storage.zero))
        place = p.places[local.name]
        if place.kind == "column" and place.index == "r":
            return self._read(Source(f"s + {place.offset} + i", 1, False))
        if place.kind != "block" or place.first:
            raise Unfit
        columns = flat_address(node.index[p.rows :], local.shape[p.rows :])
        found = self.source(f"s + {place.offset} + i * {place.width}", columns)
        if not found.is_shared:
            raise Unfit
        return self._read(replace(found, step=place.width))

    def source(self, pointer: str, address: Lin, whole: bool = False) -> Source:
        """What lies at an address over the flat axes; with `whole`, for each element."""
        axes = self.context.axes
        stride = along(address, N, axes.extents[N], self.width).stride
        if stride not in ((1,) if whole else (0, 1)):
            raise Unfit
        rest, within = split_by(address, {M})
        step, table = 0, None
        if all(digit.axis == M and digit.lo == 1 and digit.ext == axes.extents[M] for _, digit in within.terms):
            step = sum(factor for factor, _ in within.terms)
        elif N in axes_of(within):
            raise Unfit
        else:
            text = c_lin(within, replace(axes, names={**axes.names, M: "m"}))
            if text not in self.tables:
                self.tables.append(text)
            table, address = self.tables.index(text), rest
        return Source(f"{pointer} + {c_lin(address, axes)}", step, stride == 1, table)

    def _read(self, source: Source) -> Value:
        if source not in self.sources:
            self.sources.append(source)
        return Value(f"x{self.sources.index(source)}", source.lanes)

    def _entry(self, node: Alu, at: Value) -> Value:
        table = node.args[0]
        assert isinstance(table, Load)
        if table.dtype != np.uint8 or not at.vector:
            raise Unfit
        found = self.source(self.context.pointers[table.tensor], self.context.storages[table.tensor].at(table.index))
        name = self._read(replace(found, entries=True)).text
        return self.name(f"sm_entry(in{name[1:]}, sm_to_int({at.text}))", node.dtype, True)

    def _alu(self, node: Alu) -> Value:
        if node.op == "entry":
            return super()._alu(node)
        vector = any(self.known[id(a)].vector for a in node.args)
        known = node.op in (CHEAP if vector else OF_ROWS)
        allowed = known or (self.pipeline.target.form is not None and node.op in LONG)
        if node.dtype != np.float32 or not allowed:
            raise Unfit
        return super()._alu(node)

    def _iota(self, node: Iota) -> Value:
        raise Unfit

    def _choose(self, node: Choose) -> Value:
        raise Unfit

    def name(self, text: str, dtype: DType, vector: bool) -> Value:
        assert dtype == np.float32
        value = super().name(text, dtype, vector)
        self.steps.append(Step("f32v" if vector else "float", value.text, text))
        return value
