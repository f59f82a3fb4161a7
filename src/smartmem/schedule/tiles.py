"""Contractions in register tiles: ``C[m, n] = sum over k of A[m, k] * B[k, n]`` inside a row pipeline.

A is read in place: the reduction is a sequence of *segments*, in each of which A is contiguous along the innermost
reduce axis (for a 3x3 convolution over a channels-last tensor 9 segments of C floats, for a matmul one of K). A table
of row pointers per segment replaces im2col; a pointer to zeros stands for padding. An operand without such an axis
gets a packing stage into scratch first (`pack_operand`).

B lies in panels [panel][k][NR], zero-padded: packed at compile time if it is constant, at run time into scratch, or
read in place if its columns are contiguous already. The tile function is shared by all kernels of a file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smartmem.codegen.c_expr import Context, Emitter, Lane, c_guards
from smartmem.codegen.c_index import Axes, along, c_lin
from smartmem.index.divide import divide
from smartmem.index.lin import Digit, Lin, axes_of, axis_digit, lin
from smartmem.index.map import Guard
from smartmem.index.refine import refine
from smartmem.index.substitute import substitute
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import Alu, Choose, Const, Expr, Load, alu, const, load, loads
from smartmem.kernel.expr import walk as walk_expr
from smartmem.kernel.stage import Stage, reindex, tensors_read
from smartmem.layout.storage import Storage
from smartmem.schedule.code import Target
from smartmem.schedule.flatten import B, K, M, N, Flat, flatten
from smartmem.schedule.nest import map_lins
from smartmem.schedule.roles import factors

if TYPE_CHECKING:
    from smartmem.schedule.rows import Pipeline, RowEmitter

Array = np.ndarray[Any, Any]
MAX_SEGMENTS = 256
MIN_RUN = 8  # floats of A that must be contiguous for reading it in place


def tile_columns(target: Target, columns: int) -> int:
    """Columns of the register tile: a few vectors, one where there are no more columns."""
    if columns <= target.lanes:
        return target.lanes
    return target.lanes * (4 if target.lanes == 4 and target.registers >= 32 else 2)


def tile_rows(target: Target, height: int, columns: int) -> int:
    """Rows of the register tile: as many accumulators as registers allow, in tiles of (nearly) equal height."""
    vectors = tile_columns(target, columns) // target.lanes
    most = min(14, (target.registers - vectors - 1) // vectors)
    return -(-height // -(-height // most))


@dataclass(frozen=True)
class Tiling:
    """Rows in tiles of `rows` and `rows - 1`, the taller ones first, and tiles in blocks of `group`."""

    height: int
    rows: int
    group: int

    @property
    def count(self) -> int:
        return -(-self.height // self.rows)

    @property
    def tall(self) -> int:
        """How many tiles have `rows` rows; the others have one row less."""
        return self.height - self.count * (self.rows - 1)

    @property
    def block(self) -> int:
        """Most rows of a block."""
        return self.group * self.rows

    def start(self, tile: str) -> str:
        """First row of a tile, as C."""
        if self.tall == self.count:
            return f"{tile} * {self.rows}" if self.rows > 1 else tile
        return f"({tile} * {self.rows - 1} + ({tile} < {self.tall} ? {tile} : {self.tall}))"


# ------------------------------------------------------------------------------------------------------ operand A


@dataclass(frozen=True)
class Branch:
    """One source of A: `tensor` at `address` where `guards` hold (all over the flat axes of the walk)."""

    guards: tuple[Guard, ...]
    tensor: str
    address: Lin


@dataclass(frozen=True)
class Walk:
    """How the reduction walks over A: segments, then a contiguous run.

    Attributes:
        segments: extents of the segment axes, outermost first; flat axes K, K+1, ...
        run: extent of the contiguous axis, the last flat axis.
        axes: each reduce axis of the stage as a Lin over the segment axes and the run.
        branches: where A lies, the first whose guards hold (none depends on the run); zeros where none does. Several
            branches are a Concat along the reduction that was never made.
    """

    segments: tuple[int, ...]
    run: int
    axes: tuple[Lin, ...]
    branches: tuple[Branch, ...]

    @property
    def count(self) -> int:
        return math.prod(self.segments)

    @property
    def depth(self) -> int:
        return self.count * self.run


def walk_operand(flat: Flat, branches: list[Branch]) -> Walk | None:
    """The walk over A given by `branches`, or None if it has no contiguous axis."""
    reduce = flat.extents[K:]
    asks = [_reduce_only(v) for b in branches for v in (b.address, *(g.lin for g in b.guards))]
    for branch in branches:
        for guard in branch.guards:
            asks += _cuts(guard, flat.extents)
    refined = refine((1, 1, 1, *reduce), asks)
    sub = [n for n, o in zip(refined.extents, refined.origin, strict=True) if o >= K]
    # refine numbers the sub-axes from 0 (extent-1 axes leave none): renumber them behind the flat axes
    number = {k: K + k for k in range(len(sub))}
    axes = tuple(_renumbered(a, number) for a in refined.axes[K:])
    lead = (axis_digit(B, flat.extents[B]), axis_digit(M, flat.extents[M]), axis_digit(N, flat.extents[N]))
    full = (*lead, *axes)
    for run in reversed(range(len(sub))):
        moved = _along_run(branches, full, flat.extents, K + run, sub[run])
        if moved is not None:
            break
    else:
        return None
    order = [k for k in range(len(sub)) if k != run] + [run]
    place = {K + k: K + position for position, k in enumerate(order)}
    return Walk(
        tuple(sub[k] for k in order[:-1]), sub[run],
        tuple(_renumbered(a, place) for a in axes),
        tuple(
            Branch(
                tuple(Guard(_renumbered(g.lin, place), g.ext) for g in b.guards), b.tensor, _renumbered(b.address, place)
            )
            for b in moved
        ),
    )  # fmt: skip


def _along_run(
    branches: list[Branch], axes: tuple[Lin, ...], extents: tuple[int, ...], run: int, length: int
) -> list[Branch] | None:
    """The branches over refined axes if axis `run` is contiguous in all of them and no guard depends on it."""
    moved: list[Branch] = []
    for branch in branches:
        address = substitute(branch.address, axes, extents)
        uses = [(s, d) for s, d in address.terms if run in set(axes_of(Lin(0, ((1, d),))))]
        if len(uses) != 1 or uses[0][0] != 1 or uses[0][1].axis != run or uses[0][1].lo != 1 or uses[0][1].ext != length:
            return None
        guards = []
        for guard in branch.guards:
            value, ext = substitute(guard.lin, axes, extents), guard.ext
            if run in set(axes_of(value)) and ext % length == 0:  # 0 <= length*q + r < length*e  ->  0 <= q < e
                value, ext = divide(value, length)[0], ext // length
            if run in set(axes_of(value)):
                return None
            guards.append(Guard(value, ext))
        moved.append(Branch(tuple(guards), branch.tensor, address))
    return moved


def _cuts(guard: Guard, extents: tuple[int, ...]) -> list[Lin]:
    """Cuts that make a guard on one whole reduce axis (a piece of a Concat) a guard on its upper digit."""
    terms = guard.lin.terms
    if len(terms) != 1 or terms[0][0] != 1 or not isinstance(terms[0][1].axis, int) or terms[0][1].axis < K:
        return []
    axis = terms[0][1].axis
    size = math.gcd(guard.lin.offset, guard.ext, extents[axis])
    return [lin(0, ((1, Digit(axis, 1, size)),))] if 1 < size < extents[axis] else []


def _reduce_only(value: Lin) -> Lin:
    return Lin(0, tuple((s, d) for s, d in value.terms if isinstance(d.axis, int) and d.axis >= K))


def _renumbered(value: Lin, number: Mapping[int, int]) -> Lin:
    from smartmem.schedule.nest import _renumber

    return _renumber(value, number)


def _operands(flat: Flat) -> tuple[Expr, Expr]:
    assert isinstance(flat.body, Alu)
    a, b = flat.body.args
    return a, b


def _is_zero(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value == 0


def _a_branches(
    a: Expr, storages: Mapping[str, Storage], local: Mapping[str, tuple[int, ...]], rows: int
) -> list[Branch] | None:
    """Operand A as a chain of guarded loads that ends in zero or in a load, or None if it is computed."""
    from smartmem.schedule.rows import flat_address

    branches: list[Branch] = []
    node: Expr = a
    outer: tuple[Guard, ...] = ()
    while isinstance(node, Choose) and _is_zero(node.otherwise) and isinstance(node.then, Choose):  # padding of a Concat
        outer, node = (*outer, *node.guards), node.then
    guards: tuple[Guard, ...]
    while True:
        if isinstance(node, Choose) and isinstance(node.then, Load):
            guards, access, node = node.guards, node.then, node.otherwise
        elif isinstance(node, Load):
            guards, access, node = (), node, const(0.0)
        elif _is_zero(node) and branches:
            return branches
        else:
            return None
        if access.tensor in local:
            address = flat_address(access.index[rows:], local[access.tensor])
        else:
            address = storages[access.tensor].at(access.index)
        branches.append(Branch((*outer, *guards), access.tensor, address))


def _a_walk(flat: Flat, storages: Mapping[str, Storage], local: Mapping[str, tuple[int, ...]], rows: int) -> Walk | None:
    """The walk over operand A, from memory or from a local tensor (given by its column extents)."""
    branches = _a_branches(_operands(flat)[0], storages, local, rows)
    return None if branches is None else walk_operand(flat, branches)


def pack_operand(
    stage: Stage, storages: Mapping[str, Storage], local: Mapping[str, tuple[int, ...]], batch: int, rows: int
) -> tuple[Stage, Stage] | None:
    """A packing stage for operand A and the contraction that reads it, or None if A can be read in place."""
    flat = flatten(stage, batch, rows, contraction=True)
    walk = _a_walk(flat, storages, local, rows)
    if walk is not None and walk.count <= MAX_SEGMENTS and (walk.run >= MIN_RUN or walk.count == 1):
        return None
    a, b = factors(stage) or (None, None)
    assert a is not None and b is not None
    lead, columns = stage.shape[:rows], stage.shape[rows:]
    order = _reduce_order(a, stage, {n: s for n, s in storages.items() if n not in local})
    shape = (*lead, *(stage.reduce[k] for k in order))
    axes: list[Lin] = [axis_digit(k, n) for k, n in enumerate(lead)] + [Lin()] * (len(columns) + len(stage.reduce))
    for position, k in enumerate(order):
        axes[len(stage.shape) + k] = axis_digit(rows + position, stage.reduce[k])
    packing = Stage(f"{stage.name}.a", shape, a.dtype, reindex(a, tuple(axes), stage.domain), origin=stage.origin)
    index = (
        *(axis_digit(k, n) for k, n in enumerate(lead)),
        *(axis_digit(len(stage.shape) + k, stage.reduce[k]) for k in order),
    )
    return packing, replace(stage, body=alu("mul", load(packing.name, index, a.dtype), b))


def _reduce_order(a: Expr, stage: Stage, storages: Mapping[str, Storage]) -> list[int]:
    """Reduce axes by decreasing stride in A's memory, so that packing reads forward."""
    base, strides = len(stage.shape), [0] * len(stage.reduce)
    for access in loads(a):
        if access.tensor in storages:
            for stride, digit in storages[access.tensor].at(access.index).terms:
                if isinstance(digit.axis, int) and digit.axis >= base:
                    strides[digit.axis - base] = max(strides[digit.axis - base], abs(stride))
    return sorted(range(len(stage.reduce)), key=lambda k: -strides[k])


# ------------------------------------------------------------------------------------------------------ operand B


@dataclass
class Packed:
    """Operand B of each contraction, prepared.

    Attributes:
        weights: panels of constant operands, by slot name.
        buffers: their slot names in argument order.
        replaced: tensors that the kernel no longer reads.
        slot: slot name by contraction.
    """

    weights: dict[str, Array] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    replaced: set[str] = field(default_factory=set)
    slot: dict[str, str] = field(default_factory=dict)


def b_tensors(stage: Stage) -> list[str]:
    operands = factors(stage)
    assert operands is not None
    return tensors_read(operands[1])


def is_dynamic(stage: Stage, constants: Mapping[str, Array]) -> bool:
    """Whether B is known only at run time."""
    return any(name not in constants for name in b_tensors(stage))


def local_columns(pipeline: Pipeline) -> dict[str, tuple[int, ...]]:
    return {s.name: s.shape[pipeline.rows :] for s in pipeline.stages[:-1]}


def walk_of(pipeline: Pipeline, stage: Stage) -> Walk:
    walk = _a_walk(pipeline.flats[stage.name], pipeline.storages, local_columns(pipeline), pipeline.rows)
    assert walk is not None
    return walk


def prepare_weights(pipeline: Pipeline, constants: Mapping[str, Array]) -> Packed:
    """Packs constant operands B into panels; reserves scratch for those packed at run time."""
    packed = Packed()
    still_read: set[str] = set()
    for stage in pipeline.stages:
        operands = factors(stage)
        if not pipeline.is_contraction(stage):
            still_read |= set(tensors_read(stage.body))
            continue
        assert operands is not None
        still_read |= set(tensors_read(operands[0]))
        if is_dynamic(stage, constants):
            still_read |= set(tensors_read(operands[1]))
            continue
        slot = f"{stage.name}.panels"
        packed.weights[slot] = _panels(pipeline, stage, constants)
        packed.buffers.append(slot)
        packed.slot[stage.name] = slot
        packed.replaced |= set(tensors_read(operands[1]))
    packed.replaced -= still_read
    return packed


def _panels(pipeline: Pipeline, stage: Stage, constants: Mapping[str, Array]) -> Array:
    """[batch][panel][k][NR], k in the order of A's walk, zero-padded to whole panels."""
    flat, walk = pipeline.flats[stage.name], walk_of(pipeline, stage)
    width = tile_columns(pipeline.target, flat.columns)
    b = _operands(flat)[1]
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    b = reindex(b, (*keep, *walk.axes), flat.extents)
    uses_batch = B in _axes(b)
    batches = flat.extents[B] if uses_batch else 1
    extents = (batches, *walk.segments, walk.run, flat.columns)
    values = _strided(b, extents, constants)
    if values is None:
        grid = np.ogrid[tuple(slice(n) for n in extents)]
        axes: list[Any] = [grid[0], 0, grid[-1], *grid[1:-1]]
        values = np.broadcast_to(evaluate_expr(b, axes, constants), extents)
    matrix = values.reshape(batches, walk.depth, flat.columns)
    panels = -(-flat.columns // width)
    result = np.zeros((batches, panels, walk.depth, width), np.float32)
    whole = flat.columns // width
    result[:, :whole] = matrix[:, :, : whole * width].reshape(batches, walk.depth, whole, width).transpose(0, 2, 1, 3)
    if whole < panels:
        result[:, whole, :, : flat.columns - whole * width] = matrix[:, :, whole * width :]
    return result


def _strided(b: Expr, extents: tuple[int, ...], constants: Mapping[str, Array]) -> Array | None:
    """A plain load with an affine address, as a strided view."""
    if not isinstance(b, Load):
        return None
    source = np.ascontiguousarray(constants[b.tensor])
    address = Lin()
    for value, extent in zip(b.index, source.shape, strict=True):
        address = address * extent + value
    order = [B, *range(K, K + len(extents) - 2), N]
    strides = dict.fromkeys(order, 0)
    for stride, digit in address.terms:
        if not isinstance(digit.axis, int) or digit.lo != 1 or digit.ext != extents[order.index(digit.axis)]:
            return None
        strides[digit.axis] = stride
    if any(s < 0 for s in strides.values()):
        return None
    flat = source.reshape(-1)[address.offset :]
    return np.lib.stride_tricks.as_strided(flat, extents, [strides[a] * flat.itemsize for a in order], writeable=False)


def _axes(expr: Expr) -> set[int]:
    from smartmem.schedule.roles import expr_axes

    return expr_axes(expr)


@dataclass(frozen=True)
class DirectB:
    """B read in place: its address over the flat axes, and the distance between rows."""

    tensor: str
    address: Lin
    stride: int


def direct_b(pipeline: Pipeline, stage: Stage) -> DirectB | None:
    """How a dynamic B is read in place, or None if it has to be packed."""
    flat, walk = pipeline.flats[stage.name], walk_of(pipeline, stage)
    width = tile_columns(pipeline.target, flat.columns)
    b = _operands(flat)[1]
    if not isinstance(b, Load) or walk.count != 1 or flat.columns % width:
        return None
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    address = substitute(pipeline.storages[b.tensor].at(b.index), (*keep, *walk.axes), flat.extents)
    row_stride, column = 0, False
    for stride, digit in address.terms:
        if digit.axis == N:
            if stride != 1 or digit.lo != 1 or digit.ext != flat.columns:
                return None
            column = True
        elif digit.axis == K:
            if digit.lo != 1 or digit.ext != walk.run:
                return None
            row_stride = stride
        elif not isinstance(digit.axis, int):
            if {N, K} & set(axes_of(Lin(0, ((1, digit),)))):
                return None
    if not column or row_stride <= 0:
        return None
    return DirectB(b.tensor, address, row_stride)


# ------------------------------------------------------------------------------------------------------- emission


def tile_function(rows: int, vectors: int, prefetch: int) -> tuple[str, str]:
    """Name and text of the register-tile function: c[rows][vectors*SM_W] (+)= sum over segments and k of a * b.

    It fetches `prefetch` cache lines of what comes next per four steps of k.
    """
    name = f"sm_tile_{rows}x{vectors}" + (f"_p{prefetch}" if prefetch else "")
    fetch = f"for (int j = 0; j < {prefetch}; ++j) __builtin_prefetch(next + j * 16, 0, 2);"
    ahead = f"""
#pragma GCC unroll {prefetch}
            {fetch}
            next += {16 * prefetch};""" if prefetch else ""
    step = f"""\
            {{
                f32v column[{vectors}];
#pragma GCC unroll {vectors}
                for (int j = 0; j < {vectors}; ++j) column[j] = sm_load(b + j * SM_W);
#pragma GCC unroll {rows}
                for (int i = 0; i < {rows}; ++i) {{
                    const f32v x = sm_splat(row[i][k]);
#pragma GCC unroll {vectors}
                    for (int j = 0; j < {vectors}; ++j) acc[i][j] += x * column[j];
                }}
            }}"""
    text = f"""\
/* c[{rows}][{vectors}*SM_W] (+)= sum over k of a[row][k] * b[k][column]; a: `segments` tables of row pointers, `skip`
   apart, each good for k in [from, to). */
static __attribute__((noinline)) void {name}(const float *const *a, long segments, long skip, long from, long to,
                                             const float *b, long stride, float *c, int first, const float *next) {{
    f32v acc[{rows}][{vectors}];
#pragma GCC unroll {rows}
    for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
        for (int j = 0; j < {vectors}; ++j) acc[i][j] = sm_splat(0.0f);
    (void)next;
    for (long q = 0; q < segments; ++q, a += skip) {{
        const float *row[{rows}];
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i) row[i] = a[i];
        long k = from;
        for (; k + 4 <= to; k += 4, b += 4 * stride) {{{ahead}
#pragma GCC unroll 4
            for (int u = 0; u < 4; ++u) {{
                f32v column[{vectors}];
#pragma GCC unroll {vectors}
                for (int j = 0; j < {vectors}; ++j) column[j] = sm_load(b + u * stride + j * SM_W);
#pragma GCC unroll {rows}
                for (int i = 0; i < {rows}; ++i) {{
                    const f32v x = sm_splat(row[i][k + u]);
#pragma GCC unroll {vectors}
                    for (int j = 0; j < {vectors}; ++j) acc[i][j] += x * column[j];
                }}
            }}
        }}
        for (; k < to; ++k, b += stride) {step}
    }}
    if (first) {{
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
            for (int j = 0; j < {vectors}; ++j) sm_store(c + (i * {vectors} + j) * SM_W, acc[i][j]);
    }} else {{
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
            for (int j = 0; j < {vectors}; ++j)
                sm_store(c + (i * {vectors} + j) * SM_W, acc[i][j] + sm_load(c + (i * {vectors} + j) * SM_W));
    }}
}}
"""
    return name, text


def emit_pack(e: RowEmitter, stage: Stage) -> None:
    """Packs a dynamic B of the current batch entry into panels in scratch."""
    p, w = e.pipeline, e.writer
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    width = tile_columns(p.target, flat.columns)
    lanes, columns = p.target.lanes, flat.columns
    keep = tuple(axis_digit(k, flat.extents[k]) for k in (B, M, N))
    b = reindex(_operands(flat)[1], (*keep, *walk.axes), flat.extents)
    extents = (*flat.extents[:K], *walk.segments, walk.run)
    moved = replace(flat, extents=extents)
    panels = -(-columns // width)
    offset = e.packed_offset(stage)
    if _transposes(p, b, walk, moved, lanes):
        _pack_transposed(e, b, walk, moved, offset, width)
        return
    loops = [f"k{k}" for k in range(len(walk.segments) + 1)]
    flat_k = Lin()
    for position, extent in enumerate((*walk.segments, walk.run)):
        flat_k = flat_k * extent + axis_digit(K + position, extent)
    with w.loop("n", panels * width, 0, "SM_W"):
        w.line(f"float *const panel = s + {offset} + n / {width} * {walk.depth * width} + n % {width};")
        context = e.context(moved, Lane(N, columns, lanes))
        target = f"panel + ({c_lin(flat_k, context.axes)}) * {width}"
        with ExitStack() as opened:
            for name, extent in zip(loops, (*walk.segments, walk.run), strict=True):
                opened.enter_context(w.loop(name, extent))
            _pack_chunk(e, b, context, target, columns, lanes)


def _transposes(p: Pipeline, b: Expr, walk: Walk, flat: Flat, lanes: int) -> bool:
    """Whether B is contiguous along the run instead of along its columns, so that squares of it are transposed."""
    run = K + len(walk.segments)
    if walk.run < lanes or flat.columns < lanes // 2:
        return False
    by_run, by_column = True, True
    for access in loads(b):
        address = p.storages[access.tensor].at(access.index)
        by_run &= along(address, run, walk.run, lanes).stride in (0, 1)
        by_column &= along(address, N, flat.columns, lanes).stride in (0, 1)
    guarded = any(isinstance(n, Choose) for n in walk_expr(b))
    return by_run and not by_column and not guarded


def _pack_transposed(e: RowEmitter, b: Expr, walk: Walk, flat: Flat, offset: int, width: int) -> None:
    """Panels from squares of lanes x lanes: rows of B (columns of the product) are loaded along the run, then turned."""
    w, lanes, columns = e.writer, e.pipeline.target.lanes, flat.columns
    run = K + len(walk.segments)
    whole = walk.run - walk.run % lanes
    segment = Lin()
    with ExitStack() as loops:
        for k, extent in enumerate(walk.segments):
            segment = segment * extent + axis_digit(K + k, extent)
            loops.enter_context(w.loop(f"k{k}", extent))
        loops.enter_context(w.loop("n0", -(-columns // width) * width, 0, "SM_W"))
        context = e.context(flat, Lane(run, walk.run, lanes), column="n")
        base = f"s + {offset} + n0 / {width} * {walk.depth * width} + n0 % {width}"
        w.line(f"float *const panel = {base} + ({c_lin(segment, context.axes)}) * {walk.run * width};")
        k = f"k{len(walk.segments)}"

        def square(ctx: Context, count: str) -> None:
            w.line("f32v v[SM_W];")
            with w.loop("j", "SM_W"):
                w.line("const long n = n0 + j;")
                with w.block(f"if (n < {columns})"):
                    emitter = Emitter(w, ctx)
                    w.line(f"v[j] = {emitter.as_vector(emitter.value(b), b.dtype)};")
                with w.block("else"):
                    w.line("v[j] = sm_splat(0.0f);")
            w.line("sm_transpose(v);")
            with w.loop("j", count):
                w.line(f"sm_store(panel + ({k} + j) * {width}, v[j]);")

        if whole:
            with w.loop(k, whole, 0, "SM_W"):
                square(context, "SM_W")
        if whole < walk.run:
            assert context.lane is not None
            with w.block(""):
                w.line(f"const long {k} = {whole}, count = {walk.run - whole};")
                square(replace(context, lane=replace(context.lane, count="count")), "count")


def _pack_chunk(e: RowEmitter, b: Expr, context: Context, target: str, columns: int, lanes: int) -> None:
    """One vector of a panel: whole, partial or zero, by the column it starts at."""
    w, lane = e.writer, context.lane
    assert lane is not None
    full = columns - columns % lanes

    def chunk(ctx: Context) -> None:
        emitter = Emitter(w, ctx)
        value = emitter.value(b)
        w.line(f"sm_store({target}, {emitter.as_vector(value, b.dtype)});")

    if full:
        with w.block(f"if (n < {full})"):
            chunk(context)
    if columns % lanes:
        with w.block(f"{'else ' if full else ''}if (n == {full})"):
            w.line(f"const long count = {columns - full};")
            chunk(replace(context, lane=replace(lane, count="count")))
    with w.block("else"):
        w.line(f"sm_store({target}, sm_splat(0.0f));")


K_BLOCK = 768  # steps of k that A's tile and B's panel share L1 and L2 for


def emit_contraction(e: RowEmitter, stage: Stage, epilogue: list[Stage]) -> None:
    """Row pointers, then panels x blocks of k x row tiles; the epilogue follows each tile's last block."""
    p, w = e.pipeline, e.writer
    flat, walk = p.flats[stage.name], walk_of(p, stage)
    width, tiling, columns = tile_columns(p.target, flat.columns), p.tiling, flat.columns
    with w.block(""):
        table = tiling.block
        _row_pointers(e, stage, flat, walk, table)
        source, stride, streamed = _b_pointer(e, stage, flat, walk, width)
        start, end = "0", str(columns)
        if (epilogue or [stage])[-1] is p.stages[-1] and e.task.column_chunks > 1:
            start, end = "c0", f"(c0 + {e.task.span} < {columns} ? c0 + {e.task.span} : {columns})"
        blocks = _k_blocks(walk)
        prefetch = -(-4 * (width // p.target.lanes) // tiling.group) if streamed else 0
        held = tiling.block if blocks.count > 1 else tiling.rows
        w.line(f"float *const c = s + {p.reserve(held * width)};")
        with w.loop("n0", end, start, width):
            w.line(f"const float *const bp = {source};")
            if blocks.count == 1:
                _tile_loop(e, stage, epilogue, flat, walk, blocks, stride, prefetch, width)
            else:
                with w.loop("kb", blocks.count):
                    _tile_loop(e, stage, epilogue, flat, walk, blocks, stride, prefetch, width)


@dataclass(frozen=True)
class KBlocks:
    """The reduction in blocks: either `segments` whole segments each, or each segment in `parts` parts of `length`."""

    count: int
    segments: int
    parts: int
    length: int


def _k_blocks(walk: Walk) -> KBlocks:
    if walk.depth <= K_BLOCK * 4 // 3:
        return KBlocks(1, walk.count, 1, walk.run)
    if walk.run > K_BLOCK:
        parts = -(-walk.run // K_BLOCK)
        length = -(-walk.run // parts // 4) * 4
        return KBlocks(walk.count * parts, 1, parts, length)
    segments = max(1, K_BLOCK // walk.run)
    return KBlocks(-(-walk.count // segments), segments, 1, walk.run)


def _tile_loop(
    e: RowEmitter, stage: Stage, epilogue: list[Stage], flat: Flat, walk: Walk, blocks: KBlocks, stride: int, prefetch: int,
    width: int,
) -> None:  # fmt: skip
    """All row tiles of the block with one panel and one block of k."""
    p, w = e.pipeline, e.writer
    tiling, table = p.tiling, p.tiling.block
    vectors = width // p.target.lanes
    a, b, segments, first_k, last_k, first, last = "a", "bp", str(walk.count), "0", str(walk.run), "1", ""
    if blocks.count > 1:
        first, last = "kb == 0", f"if (kb == {blocks.count - 1})"
        if blocks.parts > 1:
            segment = "0" if walk.count == 1 else f"kb / {blocks.parts}"
            part = "kb" if walk.count == 1 else f"kb % {blocks.parts}"
            w.line(f"const long k_from = {part} * {blocks.length};")
            w.line(f"const long k_to = k_from + {blocks.length} < {walk.run} ? k_from + {blocks.length} : {walk.run};")
            first_k, last_k, segments = "k_from", "k_to", "1"
            a = "a" if walk.count == 1 else f"a + {segment} * {table}"
            b = f"bp + ({segment} * {walk.run} + k_from) * {stride}" if walk.count > 1 else f"bp + k_from * {stride}"
        else:
            w.line(f"const long q_from = kb * {blocks.segments};")
            w.line(f"const long taps = {walk.count} - q_from < {blocks.segments} ? {walk.count} - q_from : {blocks.segments};")
            segments, a, b = "taps", f"a + q_from * {table}", f"bp + q_from * {walk.run * stride}"
    with w.loop("q", "h", "g"):
        w.line(f"const long i = {tiling.start('q')} - m0;")
        held = f"c + i * {width}" if blocks.count > 1 else "c"
        ahead = f"(q - g) * {-(-blocks.length * blocks.segments // 4) * prefetch * 16}"
        ahead = f"{b} + ({segments}) * ({last_k} - {first_k}) * {stride} + {ahead}" if prefetch else "bp"
        w.line(f"float *const cq = {held};")

        def call(rows: int) -> str:
            name, text = tile_function(rows, vectors, prefetch)
            p.support[name] = text
            return f"{name}({a} + i, {segments}, {table}, {first_k}, {last_k}, {b}, {stride}, cq, {first}, {ahead});"

        if tiling.tall == tiling.count:
            w.line(f"const long height = {tiling.rows};")
            w.line(call(tiling.rows))
        else:
            w.line(f"const long height = q < {tiling.tall} ? {tiling.rows} : {tiling.rows - 1};")
            w.line(f"if (q < {tiling.tall}) {call(tiling.rows)}")
            w.line(f"else {call(tiling.rows - 1)}")
        with w.block(last), w.loop("y", "height"):
            w.line("const long r = i + y, m = m0 + r;")
            w.line("(void)m;")
            _epilogue_row(e, stage, epilogue, flat, flat.columns, width)


def _row_pointers(e: RowEmitter, stage: Stage, flat: Flat, walk: Walk, table: int) -> None:
    """a[segment][row]: where each row of A starts in each segment; guarded rows start at zeros."""
    p, w = e.pipeline, e.writer
    size = walk.count * table
    offset = p.reserve(2 * size)
    w.line(f"const float **const a = (const float **)(s + {offset});")
    extents = (*flat.extents[:K], *walk.segments, walk.run)
    context = e.context(replace(flat, extents=extents), None, row="m", column="0")
    names = {**context.axes.names, K + len(walk.segments): "0"}
    axes = replace(context.axes, names=names)
    segment = Lin()
    with ExitStack() as loops:
        for k, extent in enumerate(walk.segments):
            segment = segment * extent + axis_digit(K + k, extent)
            loops.enter_context(w.loop(f"k{k}", extent))
        loops.enter_context(w.loop("r", "rows"))
        w.line("const long m = m0 + r;")
        slot = f"({c_lin(segment, axes)}) * {table} + r" if walk.segments else "r"
        w.line(f"(void)m, a[{slot}] = {_branch_pointers(e, walk, axes)};")


def _branch_pointers(e: RowEmitter, walk: Walk, axes: Axes) -> str:
    """``guards ? base + address : ... : zeros`` as a C expression."""
    p = e.pipeline
    text = ""
    for branch in walk.branches:
        if branch.tensor in {s.name for s in p.stages}:
            place = p.places[branch.tensor]
            base = f"s + {place.offset} + r * {place.width} + {c_lin(branch.address, axes)}"
        else:
            base = f"{e.pointers[branch.tensor]} + {c_lin(branch.address, axes)}"
        if not branch.guards:
            return text + base
        text += f"{c_guards(branch.guards, axes)} ? {base} : "
    p.support[f"zeros{walk.run}"] = f"static const float sm_zeros_{walk.run}[{walk.run}];\n"
    return text + f"sm_zeros_{walk.run}"


def _b_pointer(e: RowEmitter, stage: Stage, flat: Flat, walk: Walk, width: int) -> tuple[str, int, bool]:
    """C expression for panel n0 of B, the distance between its rows, and whether it streams from memory."""
    p = e.pipeline
    size = walk.depth * width
    if stage.name in e.packed.slot:
        pointer = e.arguments.pointer(e.packed.slot[stage.name], "float")
        batches = e.packed.weights[e.packed.slot[stage.name]].shape[0]
        per_batch = f"b * {-(-flat.columns // width) * size} + " if batches > 1 else ""
        return f"{pointer} + {per_batch}n0 / {width} * {size}", width, True
    direct = direct_b(p, stage)
    if direct is None:
        return f"s + {e.packed_offset(stage)} + n0 / {width} * {size}", width, False
    context = e.context(flat, None, row="0", column="n0")
    names = {**context.axes.names, K: "0"}
    address = c_lin(direct.address, replace(context.axes, names=names, extents=(*flat.extents[:K], walk.run)))
    return f"{e.pointers[direct.tensor]} + {address}", direct.stride, False


def _epilogue_row(e: RowEmitter, stage: Stage, epilogue: list[Stage], flat: Flat, columns: int, width: int) -> None:
    """One row of the tile: chunks of lanes through the epilogue stages, then stored."""
    p, w = e.pipeline, e.writer
    lanes = p.target.lanes
    lane = Lane(N, columns, lanes)
    limit = f"n0 + {width}" if columns % width == 0 else f"(n0 + {width} < {columns} ? n0 + {width} : {columns})"
    with w.loop("n", limit, "n0", "SM_W"):
        if columns % lanes == 0:
            _epilogue_chunk(e, stage, epilogue, flat, lane, width)
            return
        if columns > lanes:
            with w.block(f"if (n + SM_W <= {columns})"):
                _epilogue_chunk(e, stage, epilogue, flat, lane, width)
            header = "else"
        else:
            header = ""
        with w.block(header):
            w.line(f"const long count = {columns} - n;")
            _epilogue_chunk(e, stage, epilogue, flat, replace(lane, count="count"), width)


def _epilogue_chunk(
    e: RowEmitter, stage: Stage, epilogue: list[Stage], flat: Flat, lane: Lane, width: int
) -> None:
    from smartmem.codegen.c_expr import Value

    w = e.writer
    e.values = {}
    emitter = Emitter(w, e.context(flat, lane))
    total = emitter.name(f"sm_load(cq + y * {width} + (n - n0))", stage.dtype, True)
    e.values[stage.name] = total
    text = total.text
    for following in epilogue:
        value = emitter.value(e.pipeline.flats[following.name].body)
        e.values[following.name] = Value(emitter.as_vector(value, following.dtype), True)
        text = e.values[following.name].text
    last = (epilogue or [stage])[-1]
    e.keep_vector(last, e.pipeline.flats[last.name], emitter, text, lane)
    e.values = {}


__all__ = ["emit_contraction", "emit_pack", "map_lins", "pack_operand", "prepare_weights", "tile_columns"]
