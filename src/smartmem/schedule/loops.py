"""The loops of a nest: refined and merged over the addresses of all accesses; which is the lane, and which slides.

In: a kernel whose stages share the space axes of its output, and the storages of its tensors. Out: a `Nest`, every
stage rewritten over its loops with loads as element addresses; `choose_lane` and `find_jam` say how `nest` runs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from smartmem.codegen.c_expr import (
    Lane,
    lane_free,
    vectorizable,
)
from smartmem.codegen.c_index import along
from smartmem.index.lin import Lin, axes_of, renumber
from smartmem.index.refine import merge, refine
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import (
    Alu,
    Choose,
    Expr,
    Iota,
    Load,
    alu,
    choose,
    const,
    index_values,
    is_zero,
    load,
    loads,
    map_lins,
    rebuild,
    walk,
)
from smartmem.kernel.stage import Kernel
from smartmem.layout.storage import Storage
from smartmem.schedule.code import Target

SMALL = 64  # how many times larger the output is than a tensor that asks for nothing
SINGLE = 3  # iterations of a group that a single one costs, about
EDGES = 1.1  # what groups at the borders must save to be worth their code: with long rows they cost time
UNROLLED = 16  # taps up to which a loop over them is unrolled
LONG_SUM = 1024  # terms from which on a sum is a sum of partial sums
_ACCUMULATE = frozenset(("sum", "prod", "max", "min"))


@dataclass
class Nest:
    """A kernel over refined loops.

    Attributes:
        extents: of all loops: space loops in order, then reduce loops.
        space: number of space loops.
        bodies: of the stages, over the loops; loads from memory have one index, the element address.
        reduces: the reduce loops of each stage.
        store: element address of the output.
    """

    extents: tuple[int, ...]
    space: int
    bodies: list[Expr]
    reduces: list[tuple[int, ...]]
    store: Lin

    def lins(self) -> list[Lin]:
        return list(dict.fromkeys([self.store, *(v for body in self.bodies for v in index_values(body))]))


def addressed(expr: Expr, storages: Mapping[str, Storage], local: set[str]) -> Expr:
    """Loads from memory rewritten to their element address; loads of local stages lose their index."""

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Iota):
            return node
        if node.tensor in local:
            return load(node.tensor, (), node.dtype)
        return load(node.tensor, (storages[node.tensor].at(node.index),), node.dtype)

    return rebuild(expr, leaf)


def hoist_padding(body: Expr) -> Expr:
    """choose(g: x, 0) * w  ->  choose(g: x * w, 0): padding adds nothing, so the whole term can be skipped."""
    if isinstance(body, Alu) and body.op == "mul":
        for this, other in ((0, 1), (1, 0)):
            factor = body.args[this]
            if isinstance(factor, Choose) and is_zero(factor.otherwise) and body.dtype.kind == "f":
                args = (factor.then, body.args[other]) if this == 0 else (body.args[other], factor.then)
                return choose(factor.guards, alu("mul", *args), const(0, body.dtype))
    return body


def build(kernel: Kernel, storages: Mapping[str, Storage]) -> Nest:
    """Gives each stage reduce axes of its own, then refines and merges all loops over the addresses of the accesses."""
    local, rank = kernel.local(), len(kernel.output.shape)
    extents = list(kernel.output.shape)
    bodies: list[Expr] = []
    owner: list[int] = [-1] * rank
    for number, stage in enumerate(kernel.stages):
        moved = {rank + k: len(extents) + k for k in range(len(stage.reduce))}
        body = addressed(hoist_padding(stage.body) if stage.combine == "sum" else stage.body, storages, local)
        change = {v: renumber(v, moved) for v in index_values(body)}
        bodies.append(map_lins(body, change))
        extents += stage.reduce
        owner += [number] * len(stage.reduce)
    store = storages[kernel.tensor].at(kernel.store_coords())
    nest = Nest(tuple(extents), rank, bodies, [], store)
    old = nest.lins()
    small = _small_addresses(kernel, bodies, storages)
    refined = refine(extents, [store, *(v for v in old if v != store and v not in small)])
    refined = replace(refined, lins=tuple(substitute(v, refined.axes, extents) for v in old))
    strides = {d.axis: s for s, d in refined.lins[0].terms if isinstance(d.axis, int)}
    reducing = [a for a, o in enumerate(refined.origin) if o >= rank]
    order = sorted((a for a, o in enumerate(refined.origin) if o < rank), key=lambda a: (-abs(strides.get(a, 0)), a))
    # a mean of each group is read by lanes of several groups
    cut = [k for k, v in enumerate(old) if v in small] if is_long_sum(kernel) else []
    merged = merge(refined.extents, order + reducing, refined.lins, keep=reducing, cut=cut)
    change = dict(zip(old, merged.lins, strict=True))
    space = len(merged.extents) - len(reducing)
    loops = [
        tuple(space + k for k, axis in enumerate(reducing) if owner[refined.origin[axis]] == number)
        for number in range(len(kernel.stages))
    ]
    return Nest(merged.extents, space, [map_lins(b, change) for b in bodies], loops, change[store])


def is_long_sum(kernel: Kernel) -> bool:
    """Whether a kernel is one long reduction, as the statistics of group normalizations are."""
    alone = len(kernel.stages) == 1 and not kernel.output.combine.startswith("arg")
    return alone and math.prod(kernel.output.reduce) > LONG_SUM


def _small_addresses(kernel: Kernel, bodies: list[Expr], storages: Mapping[str, Storage]) -> set[Lin]:
    """Addresses in tensors so small beside the output, or what a long reduction reads, that they may ask for no cuts:
    short lanes would cost more."""
    small: set[Lin] = set()
    large: set[Lin] = set()
    size = math.prod(kernel.output.domain if is_long_sum(kernel) else kernel.shape)
    for body in bodies:
        for node in walk(body):
            if isinstance(node, Load) and node.index:
                few = storages[node.tensor].elements * SMALL <= size
                (small if few else large).add(node.index[0])
    return small - large


def choose_lane(nest: Nest, kernel: Kernel, width: int) -> Lane | None:
    """The space loop along which the store and the loads move by one or not at all, None if scalar code is better."""
    for body, stage in zip(nest.bodies, kernel.stages, strict=True):
        value = rounded(body) if stage is kernel.output and not stage.reduce else None
        fits = vectorizable(body, stage.dtype) if value is None else vectorizable(value, value.dtype)
        if not fits or stage.combine not in _ACCUMULATE | {""}:
            return None
    best: tuple[float, Lane] | None = None
    for axis in range(nest.space):
        lane = Lane(axis, nest.extents[axis], width)
        guards = (n.guards for body in nest.bodies for n in walk(body) if isinstance(n, Choose))
        if lane.extent < 4 or not all(lane_free(g, lane) for g in guards):
            continue
        values = [n.index[0] for body in nest.bodies for n in walk(body) if isinstance(n, Load) and n.index]
        score = 2.0 * _ease(nest.store, lane) + sum(_ease(v, lane) for v in values)
        score *= lane.extent / (math.ceil(lane.extent / width) * width)
        if best is None or score > best[0]:
            best = (score, lane)
    if best is None or best[0] < 0.3 * (2 + len(values)):
        return None
    return best[1]


def reduces_across(nest: Nest, lane: Lane) -> bool:
    """Whether what reductions read for each lane and step lies side by side along a reduce axis, not along the lane."""

    def stride(address: Lin, axis: int) -> int | None:
        return along(address, axis, nest.extents[axis], lane.width).stride

    found = False
    for body, reduce in zip(nest.bodies, nest.reduces, strict=True):
        for access in loads(body) if reduce else ():
            if not access.index:
                continue
            across, beside = stride(access.index[0], lane.axis), [stride(access.index[0], axis) for axis in reduce]
            if across != 0 and any(beside):
                if across == 1 or 1 not in beside:
                    return False
                found = True
    return found


def rounded(body: Expr) -> Expr | None:
    """The float32 expression that `body` casts to an integer, or None: lanes hold floats until they are stored."""
    casts = isinstance(body, Alu) and body.op == "cast" and body.dtype.kind in "iu"
    return body.args[0] if isinstance(body, Alu) and casts and body.args[0].dtype == np.float32 else None


def _ease(address: Lin, lane: Lane) -> float:
    """How well an access suits the lane: 1 for contiguous or uniform, less for strided and irregular."""
    step = along(address, lane.axis, lane.extent, lane.width).stride
    return 1.0 if step in (0, 1) else 0.25 if step is None or step < lane.width else 0.05


@dataclass(frozen=True)
class Jam:
    """A space loop whose iterations run `width` at a time, so that they share the loads that do not depend on it.

    In [low, high) no guard on this axis can fail. Outside iterations run one by one, guarded; or, with `edges`, `width`
    at a time, too, in code of their own for each such group, whose guards the C compiler can tell.
    """

    axis: int
    width: int
    low: int
    high: int
    edges: bool = False


def find_jam(nest: Nest, kernel: Kernel, lane: Lane | None, target: Target) -> Jam | None:
    """The space loop along which a window slides, if the kernel has one reduction over a window."""
    windows = [(b, s) for b, s, r in zip(nest.bodies, kernel.stages, nest.reduces, strict=True) if r]
    if lane is None or not target.tuned or len(windows) != 1 or windows[0][1].combine.startswith("arg"):
        return None
    body = windows[0][0]
    guards = body.guards if isinstance(body, Choose) else ()
    inner = body.then if isinstance(body, Choose) else body
    if any(isinstance(n, Choose) for n in walk(inner)) or math.prod(windows[0][1].reduce) > 256:
        return None
    most = 8 if target.registers >= 32 else 4
    reducing = set(range(nest.space, len(nest.extents)))
    last = max(axis for reduces in nest.reduces for axis in reduces)
    best: tuple[int, Jam] | None = None
    for axis in range(nest.space):
        strides = [
            s for n in walk(inner) if isinstance(n, Load) and n.index for s, d in n.index[0].terms if d.axis == axis
        ]
        if axis == lane.axis or not strides:
            continue
        low, high = 0, nest.extents[axis]
        for guard in guards:
            used = set(axes_of(guard.lin))
            if axis not in used:
                continue
            step = along(guard.lin, axis, nest.extents[axis], 1).stride
            if not used <= {axis} | reducing or step is None or step <= 0:
                break
            rest = Lin(guard.lin.offset, tuple(t for t in guard.lin.terms if t[1].axis != axis))
            low = max(low, -(rest.min // step))
            high = min(high, (guard.ext - 1 - rest.max) // step + 1)
        else:
            plain = windows[0][1].combine == "sum" and isinstance(body, Choose) and is_zero(body.otherwise)
            known = all(used <= {axis, last} for used in (set(axes_of(g.lin)) for g in guards) if axis in used)
            edges = plain and known and nest.extents[last] <= UNROLLED
            jam = _jam(axis, nest.extents[axis], low, high, most, edges)
            if jam is not None and (best is None or min(map(abs, strides)) < best[0]):
                best = (min(map(abs, strides)), jam)
    return best[1] if best else None


def overlap(nest: Nest, jam: Jam, lane: Lane) -> tuple[int, int] | None:
    """The space loop, other than the jam's, from one iteration of which to the next windows overlap: rows of pixels,
    where the jam slides along them. And how many values for each lane the windows of one iteration read.
    """
    best: tuple[int, int] | None = None
    for body, reduce in zip(nest.bodies, nest.reduces, strict=True):
        for access in loads(body) if len(reduce) > 1 else ():
            if not access.index:
                continue
            steps = {a: along(access.index[0], a, nest.extents[a], 1).stride or 0 for a in range(len(nest.extents))}
            taps = [a for a in reduce if steps[a] > 0]
            if not taps or steps[jam.axis] <= 0 or not steps[lane.axis]:
                continue
            beside = min(steps[a] for a in taps)
            for axis in set(range(nest.space)) - {jam.axis, lane.axis}:
                rows = [a for a in taps if steps[a] > beside and 0 < steps[axis] < nest.extents[a] * steps[a]]
                if rows and steps[axis] % steps[rows[0]] == 0:
                    values = nest.extents[rows[0]] * -(-steps[rows[0]] // beside)
                    best = (axis, max(values, best[1] if best else 0))
    return best


def _jam(axis: int, extent: int, low: int, high: int, most: int, edges: bool) -> Jam | None:
    """Groups of iterations of [0, extent), where no guard fails in [low, high); with `edges` also at the borders."""
    inside = max(0, high - low)
    width = _jam_width(inside, most)
    work = (_work(inside, width) if width else SINGLE * inside) + SINGLE * (extent - inside)
    wide = next((w for w in range(most, 3, -1) if extent % w == 0), 0)
    if edges and wide and inside < extent and _work(extent, wide) * EDGES < work:
        return Jam(axis, wide, low, high, edges=True)
    return Jam(axis, width, low, high) if width else None


def _jam_width(iterations: int, most: int) -> int:
    """How many iterations to run together, 0 for none: few groups, few single ones left."""
    return min(range(most, 2, -1), key=lambda width: _work(iterations, width)) if iterations > 2 else 0


def _work(iterations: int, width: int) -> int:
    """What iterations in groups of `width` cost, and single ones that are left."""
    return iterations // width * (width + 1) + iterations % width * SINGLE
