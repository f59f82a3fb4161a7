"""The tile of a contraction on a device: operands staged in local memory, accumulators in registers.

A work-group computes `rows` x `columns` of the product. In steps of `depth` along k it stages a block of A and one of B
in local memory ([k][m] and [k][n]), while the loads of the next step are already under way; each work-item keeps
`height` x `width` accumulators. Where the output is small, `slices` teams of work-items share the steps of a block and
add up at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from smartmem.codegen.c_expr import Lane, lane_free
from smartmem.codegen.cl_expr import DeviceContext, DeviceEmitter
from smartmem.codegen.writer import Writer
from smartmem.device import Device
from smartmem.kernel.expr import Choose, Expr, Load, walk
from smartmem.layout.memory import LANES
from smartmem.schedule.flatten import K
from smartmem.schedule.gpu.loops import ease


@dataclass(frozen=True)
class Tile:
    """Sizes of a tile; see the module."""

    rows: int
    columns: int
    depth: int
    height: int
    width: int
    slices: int = 1

    @property
    def team(self) -> int:
        """Work-items that cover the tile once."""
        return self.rows // self.height * (self.columns // self.width)

    @property
    def items(self) -> int:
        return self.team * self.slices

    @property
    def local_bytes(self) -> int:
        staged = self.depth * (self.rows + PAD + self.columns)
        return 4 * (staged + (self.slices - 1) * self.rows * self.columns)


ALIGNED = "__attribute__((aligned(16)))"  # of local arrays that are read four values at a time
PAD = 4  # floats between the rows of the staged A, against bank conflicts

TILES = (
    Tile(128, 128, 8, 8, 8), Tile(128, 64, 16, 8, 4), Tile(64, 128, 16, 8, 4), Tile(64, 64, 16, 4, 4),
    Tile(64, 32, 16, 4, 4), Tile(32, 64, 16, 4, 4), Tile(32, 32, 16, 4, 4, 2), Tile(32, 32, 32, 4, 4, 4),
    Tile(128, 16, 16, 4, 4), Tile(128, 8, 16, 4, 4), Tile(256, 4, 16, 4, 4), Tile(16, 64, 16, 4, 4, 2),
    Tile(16, 32, 32, 4, 4, 4), Tile(4, 64, 64, 4, 4, 8), Tile(4, 32, 64, 4, 4, 16), Tile(4, 16, 64, 4, 4, 16),
)  # fmt: skip

CPU_TILE = Tile(32, 32, 64, 4, 4)  # quick to compile, and its accumulators stay in registers


def choose_tile(batch: int, m: int, n: int, k: int, device: Device) -> Tile:
    """The tile of least predicted time: padded work over the busy share of the device, plus the latency of steps."""
    if device.kind == "cpu":
        return CPU_TILE
    return min((t for t in TILES if _fits(t, device)), key=lambda t: predicted(t, batch, m, n, k, device))


def _fits(tile: Tile, device: Device) -> bool:
    return tile.items <= device.max_work_group and tile.local_bytes <= device.local_memory


def predicted(tile: Tile, batch: int, m: int, n: int, k: int, device: Device) -> float:
    """Predicted time in units of one multiply-add of a whole compute unit's lane set."""
    groups = batch * -(-m // tile.rows) * -(-n // tile.columns)
    steps = -(-k // tile.depth)
    reuse = tile.height * tile.width / (tile.height * tile.width + 2 * (tile.height + tile.width))
    resident = max(1, min(1024 // tile.items, device.local_memory // max(tile.local_bytes, 1), 16))
    waves = -(-groups // (device.compute_units * resident))
    in_wave = min(groups, device.compute_units * resident) / device.compute_units
    work = tile.rows * tile.columns * tile.depth / 128 / reuse  # cycles of one step of one group at full rate
    latency = 700 + 100 * tile.slices / 4
    step = max(latency, work * max(1.0, in_wave))
    return waves * (steps * step + 2000)


@dataclass(frozen=True)
class Staged:
    """One operand's way into local memory.

    Attributes:
        name: of the local array; axis: its free axis (M or N); extent, size: of that axis, and of the tile along it.
        stride: floats from one k to the next in local memory.
        along: the axis of vector loads (K or the free one), None for single values.
        fast: the axis along which neighbouring work-items load.
        body: the operand, with places; packed: text of a vector load from packed weights instead.
        kind: of its values in local memory: "float", or "half" for what memory holds as halves and nothing computes
            with; that loses nothing.
    """

    name: str
    axis: int
    extent: int
    size: int
    stride: int
    along: int | None
    fast: int
    body: Expr | None
    packed: Callable[[str, str], str] | None = None
    kind: str = "float"


def staged(name: str, axis: int, extents: tuple[int, ...], size: int, stride: int, body: Expr) -> Staged:
    """How an operand is loaded: by vectors along k or its free axis where memory allows, else value by value."""
    accesses = [node for node in walk(body) if isinstance(node, Load) and node.index]
    guards = [node.guards for node in walk(body) if isinstance(node, Choose)]
    best: tuple[float, int] | None = None
    for along in (K, axis):
        lane = Lane(along, extents[along], LANES)
        if lane.extent % LANES or not all(lane_free(g, lane) for g in guards):
            continue
        score = sum(ease(x.index, lane) for x in accesses) / max(1, len(accesses))
        if score >= 0.5 and (best is None or score > best[0]):
            best = (score, along)
    if best is not None:
        return Staged(name, axis, extents[axis], size, stride, best[1], best[1], body)
    single = [(sum(ease(x.index, Lane(a, extents[a], 1)) for x in accesses), a) for a in (K, axis)]
    return Staged(name, axis, extents[axis], size, stride, None, max(single)[1], body)


class Stager(ABC):
    """Writes the loads of one operand's block into registers, and from there into local memory.

    A load takes `step` values and gives one of OpenCL type `kind`; `size` is the block's extent along the operand's
    free axis, `block` its extent along k, `depth` the extent of all of k.
    """

    def __init__(
        self, w: Writer, name: str, items: int, size: int, block: int, depth: int, step: int, kind: str,
        context: DeviceContext,
    ) -> None:  # fmt: skip
        self.w, self.name, self.items, self.size, self.block, self.depth = w, name, items, size, block, depth
        self.kind, self.context, self.step = kind, context, step
        self.count = size * block // step
        self.rounds = -(-self.count // items)
        self.register = f"next_{name}"

    def declare(self) -> None:
        self.w.line(f"{self.kind} {self.register}[{self.rounds}];")

    def load(self, start: str) -> None:
        """Loads the block that starts at k = `start`."""
        self._each(lambda: self._load(start))

    def store(self) -> None:
        """Puts the loaded block into local memory."""
        self._each(self._store)

    def _each(self, body: Callable[[], None], turn: int = 0, turns: int = 1) -> None:
        """What every work-item does in each of its rounds, at its ``at_k`` and ``at_x`` in the block.

        In the first of `turns` it does the first rounds, and so on.
        """
        w = self.w
        first, end = (self.rounds * at // turns for at in (turn, turn + 1))
        if first == end:
            return
        w.line("#pragma unroll")
        with w.loop("u", end, first):
            w.line(f"const int load = item + u * {self.items};")
            with w.block(f"if (load < {self.count})") if self.count % self.items else nullcontext():
                self._positions()
                body()

    @abstractmethod
    def _positions(self) -> None: ...

    @abstractmethod
    def _load(self, start: str) -> None: ...

    @abstractmethod
    def _store(self) -> None: ...

    def _by_definition(self, o: Staged) -> None:
        """The operand's own expression at ``k`` and its free axis; zeros behind the end of k."""
        w, target = self.w, f"{self.register}[u]"
        name = "mn"[o.axis - 1]
        first = f"{name}0 + at_x"
        last = o.extent - (LANES if o.along == o.axis else 1)
        w.line(f"const int {name} = {f'min({first}, {last})' if o.extent % o.size else first};")
        tail = self.depth % self.block != 0
        if tail:
            zero = "(half4)(0.0f)" if self.kind == "half4" else "0.0f"  # vectors of halves are not made of a float
            w.line(f"{target} = {zero};")
        with w.block(f"if (k < {self.depth})") if tail else nullcontext():
            assert o.body is not None
            lane = None if o.along is None else Lane(o.along, self.context.axes.extents[o.along], LANES)
            emitter = DeviceEmitter(w, replace(self.context, lane=lane))
            value = emitter.value(o.body)
            w.line(f"{target} = {_converted(emitter.as_vector(value, o.body.dtype), self.kind)};")


def _converted(text: str, kind: str) -> str:
    """A float or float4 as a `kind`: compilers join the conversion with that of the load."""
    return f"convert_{kind}({text})" if kind.startswith("half") else text


class PlainStager(Stager):
    """Floats or halves as ``[k][x]``, for the ordinary units."""

    def __init__(self, w: Writer, operand: Staged, tile: Tile, depth: int, context: DeviceContext) -> None:
        self.operand = operand
        self.vector = operand.along is not None or operand.packed is not None
        step, kind = (LANES, f"{operand.kind}4") if self.vector else (1, operand.kind)
        super().__init__(w, operand.name, tile.items, operand.size, tile.depth, depth, step, kind, context)

    def _positions(self) -> None:
        w, o = self.w, self.operand
        k_step = LANES if o.along == K and o.packed is None else 1
        x_step = LANES if o.packed is not None or o.along == o.axis else 1
        if o.packed is not None or o.fast == o.axis:
            per = o.size // x_step
            w.line(f"const int at_x = (load % {per}) * {x_step}, at_k = (load / {per}) * {k_step};")
        else:
            per = self.block // k_step
            w.line(f"const int at_k = (load % {per}) * {k_step}, at_x = (load / {per}) * {x_step};")

    def _load(self, start: str) -> None:
        w, o = self.w, self.operand
        w.line(f"const int k = {start} + at_k;")
        if o.packed is None:
            self._by_definition(o)
            return
        text = o.packed("k", f"{'mn'[o.axis - 1]}0 + at_x")
        tail = self.depth % self.block != 0
        text = f"k < {self.depth} ? {text} : (float4)(0.0f)" if tail else text
        w.line(f"{self.register}[u] = {_converted(text, self.kind)};")

    def _store(self) -> None:
        w, o = self.w, self.operand
        if not self.vector:
            w.line(f"{o.name}[at_k * {o.stride} + at_x] = {self.register}[u];")
        elif o.packed is not None or o.along == o.axis:
            w.line(f"*(__local {self.kind} *)({o.name} + at_k * {o.stride} + at_x) = {self.register}[u];")
        else:
            for k in range(LANES):
                w.line(f"{o.name}[(at_k + {k}) * {o.stride} + at_x] = {self.register}[u].{'xyzw'[k]};")


def pipelined(w: Writer, stagers: Sequence[Stager], depth: int, block: int, compute: Callable[[], None]) -> None:
    """All blocks of k, one after the other: while one is computed with, the loads of the next are under way."""
    for stager in stagers:
        stager.declare()
    for stager in stagers:
        stager.load("0")
    with w.loop("k0", depth, 0, block, reduces=True):
        for stager in stagers:
            stager.store()
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")
        if depth > block:
            with w.block(f"if (k0 + {block} < {depth})"):
                for stager in stagers:
                    stager.load(f"k0 + {block}")
        compute()
        w.line("barrier(CLK_LOCAL_MEM_FENCE);")


def multiply(w: Writer, tile: Tile, a: Staged, b: Staged) -> None:
    """One staged block into the accumulators ``sum[height][width / 4]``, which are floats, as are the products."""
    share = tile.depth // tile.slices
    w.line("#pragma unroll")
    with w.loop("step", share):
        w.line(f"const int k = {f'slice * {share} + step' if tile.slices > 1 else 'step'};")
        for i in range(tile.height // LANES):
            where = f"{a.name} + k * {a.stride} + my_m" + (f" + {i * tile.rows * LANES // tile.height}" if i else "")
            w.line(f"const float4 a{i} = {_read(where, a.kind)};")
        for j in range(tile.width // LANES):
            where = f"{b.name} + k * {b.stride} + my_n" + (f" + {j * tile.columns * LANES // tile.width}" if j else "")
            w.line(f"const float4 b{j} = {_read(where, b.kind)};")
        for i in range(tile.height):
            for j in range(tile.width // LANES):
                w.line(f"sum[{i}][{j}] += a{i // LANES}.{'xyzw'[i % LANES]} * b{j};")


def _read(where: str, kind: str) -> str:
    """Four values of local memory as floats."""
    text = f"*(const __local {kind}4 *)({where})"
    return f"convert_float4({text})" if kind == "half" else text
