"""A kernel as a row pipeline: its regions, where its local tensors live, and how its rows are tiled.

In: a `Kernel` with `rows` set and the storages of the tensors it touches. Out: a `Pipeline`, which `row_emitter`
writes as C. Regions are runs of row stages (one loop over the rows of a block) and contractions with their pointwise
epilogue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from smartmem.codegen.c_index import has_division, split_by
from smartmem.index.map import IndexMap
from smartmem.kernel.expr import Expr, Iota, Load, load, loads, rebuild
from smartmem.kernel.stage import Kernel, Stage, inline, tensors_read
from smartmem.layout.storage import Storage
from smartmem.schedule.band import Band, band_operand
from smartmem.schedule.code import Target, UnitForm
from smartmem.schedule.flatten import Flat, N, flatten
from smartmem.schedule.groups import block_diagonal, side_by_side
from smartmem.schedule.online import Softmax, divide_last, find, is_epilogue, quicken
from smartmem.schedule.operand_a import batch_step, pack_operand, walk_of
from smartmem.schedule.operand_b import is_dynamic
from smartmem.schedule.pack_rows import turns
from smartmem.schedule.read_once import reads_once
from smartmem.schedule.roles import Aligned, expr_axes, factors, is_contraction, multiplies_bytes, permuted
from smartmem.schedule.row_blocks import key_block, tiling
from smartmem.schedule.tiling import Tiling, tile_columns
from smartmem.schedule.unit_band import UnitBand, unit_band
from smartmem.schedule.units import ATTENDING, FEWEST

Array = np.ndarray[Any, Any]

WHOLE_ROWS = 512  # keys up to which rows of scores are kept whole
HELD = 16  # floats at the start of scratch, where a kernel says what the rest holds from its thread's last task


@dataclass
class Region:
    """Row stages run together (`contraction` is None), or a contraction and its pointwise epilogue stages."""

    stages: list[Stage]
    contraction: Stage | None = None


@dataclass
class Place:
    """Where a local tensor lives: in C scalars of one row, in one row of scratch, or in scratch rows of the block.

    Rows of a "band" overlap (see `band`). "across", those of a block lie side by side, for one column after the other,
    `ROWS_ACROSS` apart.

    `offset` counts floats from the start of the thread's scratch; `width` is the row length. `first` is the column that
    lies there, where a block of columns is kept; `index` the row's position in a "column" or a band, both as C.
    """

    kind: str  # "scalar", "register", "column" (one float per row of the block), "row", "block", "band", "across"
    offset: int = 0
    width: int = 0
    first: str = ""
    index: str = "r"

    @property
    def row(self) -> str:
        """Where row r of the block starts in scratch, in floats, as C."""
        if self.kind == "band":
            return f"{self.offset} + {self.index}"
        begin = f"{self.offset} - {self.first}" if self.first else f"{self.offset}"
        return f"{begin} + r * {self.width}" if self.kind == "block" else begin


@dataclass
class Pipeline:
    """Everything the emitter knows of one kernel.

    Attributes:
        contracted: names of the stages that are contractions.
        group_size: columns of one group where several batch entries lie side by side in a vector (see `groups`), or 0.
        softmax: what goes in blocks of keys, so that no row of scores is whole (see `online`), or None.
        key_block: how many keys a block has.
        bands: of the local tensors that are windows of an image which overlap (see `band`).
        shared_step: by how many floats operand A moves from one batch entry to the next where all entries use the same
            row pointers; a task then takes its rows through a range of entries. None: each entry has its own.
        unit_band: of the operand A of a convolution on matrix units, where windows overlap (see `unit_band`).
    """

    kernel: Kernel
    stages: list[Stage]
    batch: int
    rows: int
    storages: Mapping[str, Storage]
    target: Target
    regions: list[Region] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    flats: dict[str, Flat] = field(default_factory=dict)
    constants: Mapping[str, Array] = field(default_factory=dict)
    tiling: Tiling = field(default_factory=lambda: Tiling(1, 1, 1))
    contracted: frozenset[str] = frozenset()
    group_size: int = 0
    softmax: Softmax | None = None
    key_block: int = 0
    bands: dict[str, Band] = field(default_factory=dict)
    shared_step: int | None = None
    unit_band: UnitBand | None = None
    scratch: int = 0
    support: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def is_contraction(self, stage: Stage) -> bool:
        return stage.name in self.contracted

    def contractions(self) -> list[Stage]:
        return [s for s in self.stages if self.is_contraction(s)]

    def region_of(self, stage: Stage) -> Region:
        return next(r for r in self.regions if r.contraction is stage or any(s is stage for s in r.stages))

    def within_region(self, stage: Stage) -> bool:
        """Whether all that reads a local tensor is in the region that computes it."""
        users = [s for s in self.stages if stage.name in tensors_read(s.body)]
        own = self.region_of(stage)
        return all(self.region_of(user) is own for user in users)

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


def prepare(
    kernel: Kernel, storages: Mapping[str, Storage], target: Target, constants: Mapping[str, Array]
) -> Pipeline:
    rows = kernel.rows
    assert rows is not None
    kernel = batch_first(kernel, rows)
    batch = len(batch_axes(kernel, rows))
    contracted = frozenset(s.name for s in kernel.stages if is_contraction(s, rows))
    softmax, bands = None, dict[str, Band]()
    groups = side_by_side(kernel, batch, storages, target, constants)
    if groups is not None:
        kernel, stages = groups.kernel, groups.kernel.stages
    else:
        kernel = (block_diagonal(kernel, batch, target, constants) if target.tuned else None) or kernel
        stages = divide_last(_inline_single(kernel.stages, rows), rows)
        softmax = find(stages, rows)
        if softmax is not None and softmax.keys <= WHOLE_ROWS:
            softmax = None
        if softmax is None:
            stages = quicken(stages, rows)
        stages, bands = _stage_operands(stages, storages, batch, rows, target, constants)
        contracted = frozenset(s.name for s in stages if is_contraction(s, rows))
    if groups is None and softmax is None:
        target = replace(target, form=_unit_form(stages, contracted, batch, rows, target, constants))
    pipeline = Pipeline(kernel, stages, batch, rows, storages, target, contracted=contracted)
    pipeline.softmax, pipeline.bands = softmax, bands
    pipeline.group_size = groups.size if groups is not None else 0
    for stage in stages:
        pipeline.flats[stage.name] = flatten(stage, batch, rows, pipeline.is_contraction(stage))
    pipeline.regions = _regions(pipeline)
    pipeline.constants = constants
    pipeline.shared_step = _shared_step(pipeline)
    pipeline.unit_band = _unit_band(pipeline)
    note_divisions(pipeline)
    if target.form is not None:
        pipeline.notes.append(f"on matrix units, operands as {target.form}")
    if pipeline.softmax is not None:
        pipeline.key_block = key_block(pipeline)
    pipeline.tiling = tiling(pipeline)
    _place(pipeline)
    return pipeline


def _unit_form(
    stages: list[Stage], contracted: frozenset[str], batch: int, rows: int, target: Target,
    constants: Mapping[str, Array],
) -> UnitForm | None:  # fmt: skip
    """What matrix units take, if all contractions are for them: tiles that are mostly full."""
    products = [s for s in stages if s.name in contracted]
    if not (target.units and target.tuned and products):
        return None
    of_bytes = {multiplies_bytes(stage) for stage in products}
    if len(of_bytes) > 1 or not (target.parts or True in of_bytes):
        return None
    form = UnitForm(0 if True in of_bytes else target.parts)
    for stage in products:
        height, columns, depth = map(math.prod, (stage.shape[batch:rows], stage.shape[rows:], stage.reduce))
        if any(n < least for n, least in zip((height, columns, depth // form.steps), FEWEST, strict=True)):
            return None
        if is_dynamic(stage, constants) and (not form.parts or len(products) < 2 or height < ATTENDING):
            return None
    return form


def _unit_band(pipeline: Pipeline) -> UnitBand | None:
    """The band of the first region's contraction, if there is no other and it goes to matrix units."""
    form, first = pipeline.target.form, pipeline.regions[0].contraction
    if form is None or first is None or pipeline.batches > 1 or len(pipeline.contractions()) > 1:
        return None
    return unit_band(first, walk_of(pipeline, first), pipeline.storages, pipeline.rows, form)


def softmax_of(stages: list[Stage], rows: int) -> Softmax | None:
    """The softmax of a kernel that can go in blocks of keys, if it has one."""
    return find(divide_last(_inline_single(stages, rows), rows), rows)


def batch_axes(kernel: Kernel, rows: int) -> list[int]:
    """Row axes that a B operand depends on."""
    used: set[int] = set()
    for stage in kernel.stages:
        if is_contraction(stage, rows):
            operands = factors(stage)
            assert operands is not None
            used |= {axis for axis in expr_axes(operands[1]) if axis < rows}
    return sorted(used)


def batch_first(kernel: Kernel, rows: int) -> Kernel:
    """The same kernel with its batch axes before its other row axes."""
    batch = batch_axes(kernel, rows)
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
    return Kernel(stages, kernel.tensor, kernel.shape, store, rows, kernel.notes, kernel.copies)


def _permute_loads(stage: Stage, order: tuple[int, ...], rows: int, local: set[str]) -> Stage:
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
    stages: list[Stage], storages: Mapping[str, Storage], batch: int, rows: int, target: Target,
    constants: Mapping[str, Array],
) -> tuple[list[Stage], dict[str, Band]]:  # fmt: skip
    """A operands that cannot be read in place get a stage of their own, which packs them into scratch; the bands of
    those whose windows overlap."""
    result: list[Stage] = []
    bands: dict[str, Band] = {}
    local = {s.name: s.shape[rows:] for s in stages[:-1]}
    for stage in stages:
        if is_contraction(stage, rows):
            shared = None if result else band_operand(stage, storages, batch, rows, target)
            packed = pack_operand(stage, storages, local, batch, rows, constants.keys()) if shared is None else None
            if shared is not None:
                band, windows, stage = shared
                bands[windows.name] = band
                result.append(windows)
            if packed is not None:
                result.append(packed[0])
                stage = packed[1]
        result.append(stage)
    return result, bands


def _regions(pipeline: Pipeline) -> list[Region]:
    regions: list[Region] = []
    for number, stage in enumerate(pipeline.stages):
        if pipeline.is_contraction(stage):
            regions.append(Region([], stage))
            continue
        last = regions[-1] if regions else None
        joins = last is not None and (last.contraction is None or _is_epilogue(pipeline, number))
        if last is not None and joins:
            last.stages.append(stage)
        else:
            regions.append(Region([stage]))
    return regions


def _is_epilogue(pipeline: Pipeline, number: int) -> bool:
    """Whether a stage belongs to the epilogue of the contraction before it.

    The epilogue is pointwise, and only the result of its last stage is kept for what follows.
    """
    stages = pipeline.stages
    start = max(k for k in range(number) if pipeline.is_contraction(stages[k]))
    for end in range(len(stages), number, -1):
        inside = stages[start:end]
        passing = {s.name for s in inside[:-1]}
        kept = all(passing.isdisjoint(tensors_read(s.body)) for s in stages[end:])
        if kept and is_epilogue(inside[0], inside[1:]):
            return True
    return False


def _shared_step(pipeline: Pipeline) -> int | None:
    """`Pipeline.shared_step`: for one contraction with constant weights that reads A from memory, and its epilogue."""
    first = pipeline.regions[0].contraction
    if pipeline.batches == 1 or len(pipeline.regions) > 1 or first is None or is_dynamic(first, pipeline.constants):
        return None
    if pipeline.target.form is not None:
        return None
    walk = walk_of(pipeline, first)
    step = batch_step(walk, pipeline.batches)
    return step if step is not None and step <= max(walk.run, pipeline.target.lanes) else None


def _place(pipeline: Pipeline) -> None:
    """Decides where each local tensor lives."""
    if pipeline.softmax is not None:  # exponentials take the place of their scores; rows' numbers outlive the block
        width = pipeline.key_block
        block = Place("block", pipeline.reserve(width * pipeline.tiling.block), width, "j0")
        pipeline.places |= dict.fromkeys((pipeline.softmax.scores, pipeline.softmax.powers), block)
        rows = {name: Place("column", index="m - m_low") for name in (pipeline.softmax.maximum, pipeline.softmax.total)}
        pipeline.places |= rows  # the emitter knows how many rows a task has
    for stage in pipeline.stages[:-1]:
        if stage.name in pipeline.places:
            continue
        same, region = pipeline.within_region(stage), pipeline.region_of(stage)
        if not stage.shape[pipeline.rows :]:
            if same:
                pipeline.places[stage.name] = Place("scalar")
            else:
                pipeline.places[stage.name] = Place("column", pipeline.reserve(pipeline.tiling.block), 1)
            continue
        width = math.prod(stage.shape[pipeline.rows :])
        if _is_across(pipeline, stage):
            side = -(-pipeline.tiling.block // pipeline.target.lanes) * pipeline.target.lanes
            pipeline.places[stage.name] = Place("across", pipeline.reserve(side * width))
        elif stage.name in pipeline.bands:
            band = pipeline.bands[stage.name]
            offset = pipeline.reserve(band.floats(pipeline.tiling.block))
            pipeline.places[stage.name] = Place("band", offset, index=band.row)
        elif region.contraction is not None and same:
            pipeline.places[stage.name] = Place("register")
        elif same and region.contraction is None:
            pipeline.places[stage.name] = Place("row", pipeline.reserve(width + 16), width)
        else:
            stride = -(-width // 16) * 16 + (16 if width % 256 < 16 and width >= 256 else 0)
            if pipeline.is_contraction(stage):  # its tiles store whole panels
                panel = tile_columns(pipeline.target, width)
                stride = max(stride, -(-width // panel) * panel)
            pipeline.places[stage.name] = Place("block", pipeline.reserve(stride * pipeline.tiling.block + 16), stride)


def _is_across(pipeline: Pipeline, stage: Stage) -> bool:
    """Whether a stage packs an operand A whose rows lie side by side, for tiles that read it so."""
    users = [s for s in pipeline.stages if stage.name in tensors_read(s.body)]
    if (
        pipeline.target.form is not None
        or pipeline.softmax is not None
        or len(users) != 1
        or not pipeline.is_contraction(users[0])
    ):
        return False
    if reads_once(pipeline, users[0]) or not turns(pipeline, stage):
        return False
    walk = walk_of(pipeline, users[0])
    plain = [(branch.tensor, branch.guards) for branch in walk.branches] == [(stage.name, ())]
    return plain and walk.count == 1 and pipeline.region_of(stage).stages == [stage]


def note_divisions(pipeline: Pipeline) -> None:
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
