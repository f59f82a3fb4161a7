"""Operator fusion: stages become kernels, and kernels absorb their producers wherever a schedule can run the result.

Merges, in this order (each only when all consumers of the producer's result are in the one consumer)::

    pointwise -> pointwise        the producer is computed in the consumer's loads
    anything  -> pointwise        epilogue: the consumer follows in registers, at the producer's coordinates
    pointwise -> anything         prologue: computed in the consumer's loads
    rows      -> rows             row pipeline: LayerNorm -> matmul, scores -> softmax -> weighted sum

Legality follows DNNFusion's mapping types, which are derived here from index maps: an epilogue needs a bijection
(one-to-one, reorganize, shuffle), a prologue may also broadcast (one-to-many) if that repeats little work, and
many-to-many producers join only row pipelines that keep their rows. Whether the fused kernel can be scheduled is asked
of the schedule itself. Every pair that stays apart is recorded with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from smartmem.index.lin import axes_of
from smartmem.index.map import IndexMap
from smartmem.kernel.expr import Alu, Choose, Expr, Iota, Load, cost, load, loads, operands, rebuild, walk
from smartmem.kernel.stage import Kernel, Stage, inline, reindex, tensors_read
from smartmem.passes.byte_products import TOGETHER
from smartmem.passes.classify import Legality, Mapping, legality, mapping_of
from smartmem.passes.exact_casts import Integers
from smartmem.passes.join_rows import join_rows
from smartmem.passes.module import HostOp, Module
from smartmem.schedule import rows
from smartmem.schedule.backend import Backend
from smartmem.schedule.choices import selects
from smartmem.schedule.choose import CPU
from smartmem.schedule.roles import align_contraction, factors

MAX_REPEAT = 4  # a prologue may be evaluated this many times per element if it is not cheap
CHEAP = 2
HEAVY = 128  # operations per element that no other kernel computes on the way
LANES = 16  # of what is packed side by side, that a row of a pipeline is worth
MOST_LOADS = 4  # per element of a choice by axes: with more it is computed where neighbours share loads (`unrolled`)


def fuse(
    module: Module, within_operators: bool = False, keep_layouts: bool = False, backend: Backend | None = None
) -> None:
    """Turns `module.steps` into `module.kernels`, for the CPU or another backend.

    With `within_operators` only stages of one node are merged. With `keep_layouts` rearrangements and many-to-many
    operators stay apart, as in compilers that fuse but do not eliminate.
    """
    fuser = _Fuser(module, within_operators, keep_layouts, backend or CPU)
    fuser.run()
    module.kernels = fuser.in_order()
    module.steps = []


@dataclass
class _Fuser:
    module: Module
    within: bool
    keep_layouts: bool
    backend: Backend
    kernels: list[Kernel | HostOp] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    constants: set[str] = field(default_factory=set)
    consumers: dict[str, list[Kernel | HostOp]] = field(default_factory=dict)
    integers: Integers | None = None

    def run(self) -> None:
        self.pinned = self.module.pinned()
        self.constants = set(self.module.constants)
        if self.module.has_bytes():
            self.integers = Integers(self.module)
            for step in self.module.steps:
                if isinstance(step, Stage):
                    self.integers.add(step)
        for step in self.module.steps:
            self.kernels.append(step if isinstance(step, HostOp) else _kernel(step, self.constants))
        for kernel in self.kernels:
            for name in _reads(kernel):
                self.consumers.setdefault(name, []).append(kernel)
        if self.backend.operators_first and not self.within:
            self.within = True
            self._merge()
            self.within = False
        self._merge()
        if not self.within:
            self._recompute_cheap()
        self._record_apart()

    def _merge(self) -> None:
        self._sweep(self._pointwise_into_pointwise, backwards=True)
        self._sweep(self._epilogue, backwards=False)
        self._sweep(self._prologue_or_rows, backwards=True)

    def in_order(self) -> list[Kernel | HostOp]:
        """Kernels sorted so that producers come first (merging may have moved a kernel's inputs behind it)."""
        producer = {name: k for k in self.kernels for name in _writes(k)}
        ordered: list[Kernel | HostOp] = []
        state: dict[int, int] = {}
        pieces: dict[str, list[str]] = {}
        for name, window in self.module.windows.items():
            pieces.setdefault(window.parent, []).append(name)

        def needed(kernel: Kernel | HostOp) -> list[Kernel | HostOp]:
            names = list(_reads(kernel))
            found = []
            while names:
                name = names.pop()
                if name in producer:
                    found.append(producer[name])
                names += pieces.get(name, [])
            return found

        for start in self.kernels:
            stack = [(start, iter(needed(start)))] if id(start) not in state else []
            if stack:
                state[id(start)] = 1
            while stack:
                kernel, rest = stack[-1]
                for other in rest:
                    if id(other) not in state:
                        state[id(other)] = 1
                        stack.append((other, iter(needed(other))))
                        break
                else:
                    ordered.append(kernel)
                    stack.pop()
        return ordered

    # ------------------------------------------------------------------------------------------------ machinery

    def _sweep(self, attempt, backwards: bool) -> None:  # type: ignore[no-untyped-def]
        """Offers every kernel to `attempt(producer, consumer)` until nothing merges any more."""
        for kernel in list(reversed(self.kernels)) if backwards else list(self.kernels):
            current: Kernel | HostOp | None = kernel
            while isinstance(current, Kernel) and current in self.kernels:
                consumer = self._only_consumer(current)
                if consumer is None or not self._allowed(current, consumer):
                    break
                merged = attempt(current, consumer)
                if merged is None:
                    break
                self._replace(current, consumer, merged)
                current = merged if not backwards else None

    def _only_consumer(self, kernel: Kernel) -> Kernel | None:
        if kernel.tensor in self.pinned:
            return None
        users = self.consumers.get(kernel.tensor, [])
        if len(users) != 1 or isinstance(users[0], HostOp):
            return None
        return users[0]

    def _allowed(self, producer: Kernel, consumer: Kernel) -> bool:
        if not self.within:
            return not (self.keep_layouts and _is_rearranged_product(producer, consumer))
        origins = {o for k in (producer, consumer) for s in k.stages for o in s.origin}
        return len(origins) == 1

    def _replace(self, producer: Kernel, consumer: Kernel, merged: Kernel) -> None:
        self._swap(consumer, merged)
        self._swap(producer, None)

    def _recompute_cheap(self) -> None:
        """A cheap pointwise kernel with several consumers is computed in each of them instead of being stored."""
        for producer in list(reversed(self.kernels)):
            if not isinstance(producer, Kernel) or not _is_pointwise(producer) or producer.tensor in self.pinned:
                continue
            stage, users = producer.output, self.consumers.get(producer.tensor, [])
            if len(users) < 2 or cost(stage.body) > CHEAP or any(isinstance(u, HostOp) for u in users):
                continue
            merged = [self._absorb(stage, user) for user in users if isinstance(user, Kernel)]
            if all(m is not None for m in merged):
                for user, kernel in zip(list(users), merged, strict=True):
                    assert isinstance(user, Kernel) and kernel is not None
                    self._swap(user, kernel)
                self._swap(producer, None)

    def _absorb(self, stage: Stage, consumer: Kernel) -> Kernel | None:
        """The consumer with `stage` computed in its loads, unless that repeats it often."""
        readers = [s for s in consumer.stages if stage.name in tensors_read(s.body)]
        if any(_repeats(stage, s) > 1 for s in readers) or self._tiles_compute(stage, consumer):
            return None
        stages = [inline(s, stage) if s in readers else s for s in consumer.stages]
        merged = Kernel(stages, consumer.tensor, consumer.shape, consumer.store, consumer.rows)
        return merged if self._schedulable(merged) else None

    def _swap(self, old: Kernel, new: Kernel | None) -> None:
        """Puts a kernel in the place of another, or removes it."""
        for name in _reads(old):
            self.consumers[name] = [k for k in self.consumers[name] if k is not old]
        position = self.kernels.index(old)
        if new is None:
            del self.kernels[position]
            return
        for name in _reads(new):
            self.consumers.setdefault(name, []).append(new)
        self.kernels[position] = new

    # --------------------------------------------------------------------------------------------------- merges

    def _pointwise_into_pointwise(self, producer: Kernel, consumer: Kernel) -> Kernel | None:
        if not _is_pointwise(producer) or not _is_pointwise(consumer):
            return None
        stage, user = producer.output, consumer.output
        if _repeats(stage, user) > MAX_REPEAT and cost(stage.body) > CHEAP:
            return None
        if self._narrows(stage) and len(set(consumer.inputs()) - self.constants) > 1 and self._can_follow(producer):
            return None  # two products meet: what one of them stores for the other is a byte
        if _packs(user) and self._narrows(stage):
            return None  # bytes lie in memory as such
        if (_repeats(stage, user) > 1 or _packs(user)) and (
            _is_heavy(producer)
            or (_is_heavy(consumer) and (cost(stage.body) > CHEAP or self._joins(stage)))
            or (cost(stage.body) and self._can_follow(producer))
        ):
            return None
        return Kernel.of(inline(user, stage))

    def _joins(self, stage: Stage) -> bool:
        """Whether it reads several tensors of its size: in its place each of its readers would."""
        shapes = [self.module.types[name][0] for name in tensors_read(stage.body)]
        return sum(shape is not None and math.prod(shape) >= stage.size for shape in shapes) > 1

    def _narrows(self, stage: Stage) -> bool:
        """Whether all that a stage computes are integers of eight bits (see `store_bytes`)."""
        return self.integers is not None and self.integers.range(stage.body).is_byte

    def _can_follow(self, kernel: Kernel) -> bool:
        """Whether a pointwise kernel can be the epilogue of one that computes an operand for it alone.

        There it is evaluated once per element, in the loads of a consumer perhaps more often.
        """
        for other in self.kernels:
            if not isinstance(other, Kernel) or other.tensor not in kernel.inputs() or other.tensor in self.pinned:
                continue
            alone = all(self._ends_in(user, kernel) for user in self.consumers.get(other.tensor, []))
            computes = not _is_pointwise(other) or _is_heavy(other)
            if alone and other.shape == kernel.shape and (computes or self._can_follow(other)):
                return True
        return False

    def _ends_in(self, first: Kernel | HostOp, last: Kernel) -> bool:
        """Whether a kernel is another one, or all that comes of it goes there."""
        current: Kernel | HostOp | None = first
        while current is not last and isinstance(current, Kernel) and _is_pointwise(current):
            current = self._only_consumer(current)
        return current is last

    def _epilogue(self, producer: Kernel, consumer: Kernel) -> Kernel | None:
        if _is_pointwise(producer) or not _is_pointwise(consumer) or _shares_loads(consumer.output.body):
            return None
        stage = consumer.output
        accesses = [x for x in stage.loads() if x.tensor == producer.tensor]
        if len({x.index for x in accesses}) != 1 or _under_guard(stage.body, producer.tensor):
            return None
        access = IndexMap(stage.shape, accesses[0].index)
        back = access.inverse(producer.shape)  # tensor coordinate -> consumer coordinate
        if back is None:
            return None
        here = (producer.store or IndexMap.identity(producer.output.shape)).then(back)
        body = reindex(stage.body, here.coords, stage.shape)
        if producer.rows is None and self._follows_rows(body, producer, consumer):
            return None
        body = _read_local(body, producer.tensor, producer.output)
        follow = replace(stage, shape=producer.output.shape, body=body)
        store = here.then(consumer.store) if consumer.store else here
        merged = Kernel([*producer.stages, follow], consumer.tensor, consumer.shape, store, producer.rows)
        return merged if self._schedulable(merged) else None

    def _follows_rows(self, body: Expr, producer: Kernel, consumer: Kernel) -> bool:
        """Whether an epilogue of a window reads a row pipeline's result by parts of axes, and that one can take it.

        The parts (windows, heads) would cut the loops of the window; a row pipeline has them as axes anyway.
        """
        for other in self.kernels:
            if not isinstance(other, Kernel) or other.rows is None or self._only_consumer(other) is not consumer:
                continue
            read = [x for x in loads(body) if x.tensor == other.tensor]
            digits = {d for x in read for value in x.index for _, d in value.terms if isinstance(d.axis, int)}
            cut = any(d.ext != producer.output.shape[d.axis] for d in digits)  # type: ignore[index]
            if cut and self._allowed(other, consumer) and self._epilogue(other, consumer) is not None:
                return True
        return False

    def _prologue_or_rows(self, producer: Kernel, consumer: Kernel) -> Kernel | None:
        if _is_heavy(producer) or _is_heavy(consumer):
            return None
        if _is_pointwise(producer):
            stage = producer.output
            if self._tiles_compute(stage, consumer):
                return None
            users = [s for s in consumer.stages if stage.name in tensors_read(s.body)]
            repeats = max(_repeats(stage, user) for user in users)
            if len(users) == 1 and (repeats <= 1 or (repeats <= 16 and cost(stage.body) <= CHEAP)):
                stages = [inline(s, stage) if s is users[0] else s for s in consumer.stages]
                merged = Kernel(stages, consumer.tensor, consumer.shape, consumer.store, consumer.rows)
                if self._schedulable(merged):
                    return merged
        return self._join_rows(producer, consumer)

    def _tiles_compute(self, stage: Stage, consumer: Kernel) -> bool:
        """Whether several tiles of a product would compute `stage` anew, and it is not cheap."""
        return cost(stage.body) > CHEAP and self.backend.tiles(consumer, self.constants) > 1

    def _join_rows(self, producer: Kernel, consumer: Kernel) -> Kernel | None:
        """The producer's stages as local stages of the consumer, at the consumer's rows."""
        if _packs(consumer.output) and _packed_columns(consumer.output) < LANES:
            return None
        joined = join_rows(producer, consumer)
        if isinstance(joined, str):
            return None
        return joined if self._schedulable(joined) else None

    def _schedulable(self, kernel: Kernel) -> bool:
        return self.backend.schedulable(kernel, self.constants) == ""

    def _record_apart(self) -> None:
        """Why each remaining producer and consumer pair was not fused."""
        if self.within:
            return
        for kernel in self.kernels:
            for user in self.consumers.get(kernel.tensor, []) if isinstance(kernel, Kernel) else []:
                first, second = _mapping(kernel), _mapping(user)
                self.module.apart.append(
                    {
                        "first": _title(kernel),
                        "second": _title(user),
                        "reason": self._why(kernel, user),
                        "mapping": f"{first} -> {second}",
                    }
                )

    def _why(self, producer: Kernel | HostOp, consumer: Kernel | HostOp) -> str:
        if isinstance(producer, HostOp) or isinstance(consumer, HostOp):
            return "one of them runs on the host"
        if producer.tensor in self.pinned:
            return f"its result must lie in memory: {self._why_pinned(producer.tensor)}"
        if len(readers := self.consumers.get(producer.tensor, [])) > 1:
            return f"its result is read by {len(readers)} kernels"
        if self.keep_layouts and _is_rearranged_product(producer, consumer):
            return "a rearrangement and a many-to-many operator: level `eliminate` joins them"
        if _is_heavy(producer) or _is_heavy(consumer):
            return "one of them computes so much per element that it has a kernel of its own"
        if _is_pointwise(producer) and self._tiles_compute(producer.output, consumer):
            return "each tile of columns would compute it again, which costs more than a launch"
        joined = join_rows(producer, consumer)
        reason = joined if isinstance(joined, str) else self.backend.schedulable(joined, self.constants)
        if legality(mapping_of(producer.stages), mapping_of(consumer.stages)) is Legality.ROWS:
            return f"both are many-to-many: {reason or 'no schedule takes the row pipeline'}"
        return reason or "fusing would repeat work"

    def _why_pinned(self, tensor: str) -> str:
        if any(value.name == tensor for value in self.module.outputs):
            return "it is an output of the model"
        if tensor in self.module.windows:
            return f"it is a piece of {self.module.windows[tensor].parent}"
        if any(window.parent == tensor for window in self.module.windows.values()):
            return "several kernels store into it"
        if any(isinstance(reader, HostOp) for reader in self.consumers.get(tensor, [])):
            return "a host operator reads it"
        return "its entries are indices"


# ------------------------------------------------------------------------------------------------------- helpers


def _kernel(stage: Stage, constants: set[str]) -> Kernel:
    """A kernel of one stage; contractions are aligned (rows first)."""
    aligned = align_contraction(stage, constants)
    if aligned is not None:
        kernel = Kernel([aligned.stage], stage.name, stage.shape, aligned.store, aligned.rows)
        if rows.accepts(kernel) == "":
            return kernel
    return Kernel.of(stage)


def _is_pointwise(kernel: Kernel) -> bool:
    """One stage of any mapping type but many-to-many: it can be computed wherever its result is loaded."""
    single = len(kernel.stages) == 1 and kernel.store is None
    return single and mapping_of(kernel.output) is not Mapping.MANY_TO_MANY


def _packs(stage: Stage) -> bool:
    """Whether four elements of its operand become one (`passes.byte_products`)."""
    return isinstance(stage.body, Alu) and stage.body.op == "pack4"


def _packed_columns(stage: Stage) -> int:
    """How many such elements lie side by side."""
    terms = (term for access in stage.loads() for value in access.index for term in value.terms)
    return next((digit.ext for stride, digit in terms if stride == TOGETHER), 1)


def _is_heavy(kernel: Kernel) -> bool:
    """Whether it is a pointwise kernel that needs a schedule of its own, because it computes so much per element."""
    return _is_pointwise(kernel) and (cost(kernel.output.body) > HEAVY or _shares_loads(kernel.output.body))


def _shares_loads(body: Expr) -> bool:
    """Whether results next to each other load so much in common that only a schedule for that computes them well."""
    return selects(body) and _most_loads(body) > MOST_LOADS


def _most_loads(body: Expr) -> int:
    """Loads per element, where a choice takes its longest branch."""
    counts: dict[int, frozenset[Load]] = {}
    for node in walk(body):
        if isinstance(node, Load):
            counts[id(node)] = frozenset((node,))
        elif isinstance(node, Choose):
            counts[id(node)] = max(counts[id(node.then)], counts[id(node.otherwise)], key=len)
        else:
            counts[id(node)] = frozenset().union(*(counts[id(part)] for part in operands(node)))
    return len(counts[id(body)])


def _reads(step: Kernel | HostOp) -> list[str]:
    return step.inputs() if isinstance(step, Kernel) else step.reads()


def _writes(step: Kernel | HostOp) -> list[str]:
    return [step.tensor] if isinstance(step, Kernel) else step.writes()


def _mapping(step: Kernel | HostOp) -> str:
    return str(mapping_of(step.stages)) if isinstance(step, Kernel) else "host"


def _title(step: Kernel | HostOp) -> str:
    return step.tensor if isinstance(step, Kernel) else step.node.describe()


def _is_rearranged_product(producer: Kernel, consumer: Kernel) -> bool:
    """Whether one of a pair is many-to-many and the other rearranges elements."""
    kinds = {mapping_of(producer.stages), mapping_of(consumer.stages)}
    return Mapping.MANY_TO_MANY in kinds and bool(kinds & {Mapping.REORGANIZE, Mapping.SHUFFLE})


def _repeats(stage: Stage, user: Stage) -> float:
    """How often each element of `stage` would be computed inside `user`.

    A contraction evaluates an operand once per coordinate that it depends on; other stages once per loop iteration.
    """
    if factors(user) is None:
        return math.prod(user.domain) / max(1, stage.size)
    evaluations = 0
    for access in user.loads():
        if access.tensor == stage.name:
            used = {a for value in access.index for a in axes_of(value)}
            evaluations += math.prod(user.domain[a] for a in used)
    return evaluations / max(1, stage.size)


def _under_guard(body: Expr, tensor: str) -> bool:
    """Whether some load of the tensor happens only under a guard."""
    for node in walk(body):
        if isinstance(node, Choose) and any(tensor in tensors_read(e) for e in (node.then, node.otherwise)):
            return True
    return False


def _read_local(body: Expr, tensor: str, output: Stage) -> Expr:
    """Loads of the stored tensor become loads of the producer's last stage at the same coordinate."""

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Load) and node.tensor == tensor:
            return load(output.name, output.space(), node.dtype)
        return node

    return rebuild(body, leaf)
