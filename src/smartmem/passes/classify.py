"""The paper's classes and pair table, and DNNFusion's mapping types, all derived from compute definitions.

Two questions about an operator. Does its speed depend on the layout of its input (ILD) or not (ILI)? It does if it
reduces, or if an access splits, merges or permutes axes. Can the layout of its output be chosen (Variable), or does its
definition give it (Fixed)? Fixed means that it only moves data::

    matmul     sum over k of a[i, k] * b[k, j]     reduces                     -> ILD & Variable
    relu       max(x[i, j], 0)                     same axes, computes         -> ILI & Variable
    transpose  x[j, i]                             permutes, a bare load       -> ILD & Fixed
    slice      x[i + 3, j]                         same axes, a bare load      -> ILI & Fixed
    add        x[i, j] + y[j, i]                   operands lie differently    -> ILD & Variable

`TABLE` says what happens to a producer and its consumer; `remaining` applies it until nothing changes. No operator name
occurs here. `eliminate` asks `classify(..).output`, `fuse` asks `mapping_of` and `legality`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from smartmem.index.lin import Digit, Lin, Lookup, Mark
from smartmem.kernel.expr import Load
from smartmem.kernel.stage import Stage, tensors_read

# ------------------------------------------------------------------------------------------------- accesses


class Mapping(enum.IntEnum):
    """How elements of an input go to elements of the output (DNNFusion), in order of complexity."""

    ONE_TO_ONE = 0
    REORGANIZE = 1
    SHUFFLE = 2
    ONE_TO_MANY = 3
    MANY_TO_MANY = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


def mapping_of_access(domain: Sequence[int], index: Sequence[Lin]) -> Mapping:
    """The mapping type of one load, from its index map over the space axes `domain`.

    An axis that the index leaves out, or a looked-up coordinate, gives an element to several outputs (one-to-many);
    digits in another than row-major order are a shuffle; digits that are split or merged, or coordinates of another
    number, a reorganization; what is left is one-to-one, slices included.
    """
    digits = [digit for coordinate in index for _, digit in coordinate.terms]
    if any(isinstance(digit.axis, Lookup) for digit in digits):
        return Mapping.ONE_TO_MANY
    whole = all(_is_whole(digit, domain) for digit in digits)
    used = {digit.axis for digit in digits}
    if whole and any(extent > 1 and axis not in used for axis, extent in enumerate(domain)):
        return Mapping.ONE_TO_MANY
    order = [(digit.axis, -digit.lo) for digit in digits if isinstance(digit.axis, int)]
    if any(first >= second for first, second in pairwise(order)):
        return Mapping.SHUFFLE
    if not whole or len(index) != len(domain) or any(len(coordinate.terms) > 1 for coordinate in index):
        return Mapping.REORGANIZE
    return Mapping.ONE_TO_ONE


def _is_whole(digit: Digit, domain: Sequence[int]) -> bool:
    return isinstance(digit.axis, int) and digit.lo == 1 and digit.ext == domain[digit.axis]


def depends_on_layout(domain: Sequence[int], index: Sequence[Lin]) -> bool:
    """Whether an access splits, merges or permutes axes. Offsets, steps, broadcasts and lookups do not."""
    last = -1
    for coordinate in index:
        if len(coordinate.terms) > 1:
            return True
        for _, digit in coordinate.terms:
            if isinstance(digit.axis, Mark):
                return True
            if isinstance(digit.axis, int):
                if not _is_whole(digit, domain) or digit.axis <= last:
                    return True
                last = digit.axis
    return False


def mapping_of(stages: Stage | Sequence[Stage]) -> Mapping:
    """The mapping type of an operator: that of its most complex access; many-to-many if it reduces."""
    several = [stages] if isinstance(stages, Stage) else stages
    if any(stage.reduce for stage in several):
        return Mapping.MANY_TO_MANY
    found = (mapping_of_access(stage.shape, access.index) for stage in several for access in _outer(stage, several))
    return max(found, default=Mapping.ONE_TO_ONE)


def _outer(stage: Stage, stages: Sequence[Stage]) -> list[Load]:
    """The loads of tensors that are not among the operator's own."""
    own = {s.name for s in stages}
    return [access for access in stage.loads() if access.tensor not in own]


# -------------------------------------------------------------------------------------------------- classes


class Layout(enum.Enum):
    """Whether speed depends on the layout of the input."""

    ILD = "ILD"
    ILI = "ILI"


class Output(enum.Enum):
    """Whether the layout of the output can be chosen."""

    VARIABLE = "Variable"
    FIXED = "Fixed"


@dataclass(frozen=True)
class Class:
    """One of the four quadrants of the paper."""

    layout: Layout
    output: Output

    def __str__(self) -> str:
        return f"{self.layout.value} & {self.output.value}"


ILD_VARIABLE = Class(Layout.ILD, Output.VARIABLE)
ILI_VARIABLE = Class(Layout.ILI, Output.VARIABLE)
ILD_FIXED = Class(Layout.ILD, Output.FIXED)
ILI_FIXED = Class(Layout.ILI, Output.FIXED)
COMPLEXITY = (ILI_FIXED, ILD_FIXED, ILI_VARIABLE, ILD_VARIABLE)  # of optimization, ascending


def classify(stages: Stage | Sequence[Stage]) -> Class:
    """The class of an operator, given by the stages of its definition."""
    several = [stages] if isinstance(stages, Stage) else stages
    reads = [(stage, access) for stage in several for access in _outer(stage, several)]
    dependent = any(stage.reduce for stage in several) or any(depends_on_layout(s.shape, x.index) for s, x in reads)
    fixed = all(stage.is_movement for stage in several)
    return Class(Layout.ILD if dependent else Layout.ILI, Output.FIXED if fixed else Output.VARIABLE)


def combined(first: Class, second: Class) -> Class:
    """The class of what a pair becomes: that of higher optimization complexity."""
    return max(first, second, key=COMPLEXITY.index)


# ---------------------------------------------------------------------------------------------------- pairs


class Action(enum.Enum):
    """What becomes of a producer (first) and its consumer (second)."""

    KEEP_BOTH = "keep both"
    FUSE = "try to fuse"
    ELIMINATE_FIRST = "eliminate first"
    ELIMINATE_SECOND = "eliminate second"
    ELIMINATE_BOTH = "eliminate both"


@dataclass(frozen=True)
class Decision:
    """An action, and whose layouts are searched for afterwards: any of "first", "second", "fused"."""

    action: Action
    search: tuple[str, ...] = ()


_FIRST, _SECOND = Decision(Action.ELIMINATE_FIRST), Decision(Action.ELIMINATE_SECOND)
_FIRST_SEARCHED, _SECOND_SEARCHED = (
    Decision(Action.ELIMINATE_FIRST, ("second",)),
    Decision(Action.ELIMINATE_SECOND, ("first",)),
)
_BOTH = Decision(Action.ELIMINATE_BOTH)

#: The paper's table: rows are the first operator, columns the second.
TABLE: dict[Class, dict[Class, Decision]] = {
    ILD_VARIABLE: {
        ILD_VARIABLE: Decision(Action.KEEP_BOTH, ("first", "second")),
        ILI_VARIABLE: Decision(Action.FUSE, ("fused",)),
        ILD_FIXED: _SECOND_SEARCHED,
        ILI_FIXED: _SECOND_SEARCHED,
    },
    ILI_VARIABLE: {
        ILD_VARIABLE: Decision(Action.FUSE, ("fused",)),
        ILI_VARIABLE: Decision(Action.FUSE),
        ILD_FIXED: _SECOND,
        ILI_FIXED: _SECOND,
    },
    ILD_FIXED: {ILD_VARIABLE: _FIRST_SEARCHED, ILI_VARIABLE: _FIRST, ILD_FIXED: _BOTH, ILI_FIXED: _BOTH},
    ILI_FIXED: {ILD_VARIABLE: _FIRST_SEARCHED, ILI_VARIABLE: _FIRST, ILD_FIXED: _BOTH, ILI_FIXED: _BOTH},
}


def decide(first: Class, second: Class) -> Decision:
    """What the paper does with a producer and its consumer."""
    return TABLE[first][second]


class Legality(enum.Enum):
    """Whether mapping types allow two operators in one kernel."""

    FUSE = "fuse"
    CHECK = "fuse if it repeats little work"
    ROWS = "fuse only where rows stay together"


def legality(first: Mapping, second: Mapping) -> Legality:
    """DNNFusion's rule for a producer and its consumer.

    A one-to-one operator joins anything, rearrangements join each other; where elements are used repeatedly, the work
    that this repeats decides. DNNFusion keeps many-to-many pairs apart; here they join if they agree on their rows.
    """
    if second is Mapping.MANY_TO_MANY and first is Mapping.MANY_TO_MANY:
        return Legality.ROWS
    if Mapping.ONE_TO_ONE in (first, second) or max(first, second) <= Mapping.SHUFFLE:
        return Legality.FUSE
    return Legality.CHECK


# ---------------------------------------------------------------------------------------------- fixed point


@dataclass(eq=False)
class Group:
    """What one operator became: its class, and the tensors whose operators went into it (its own first)."""

    members: list[str]
    kind: Class
    mapping: Mapping
    before: set[Group] = field(default_factory=set)
    after: set[Group] = field(default_factory=set)

    def merge(self, other: Group) -> None:
        """Takes `other` in."""
        self.members += other.members
        self.kind, self.mapping = combined(self.kind, other.kind), max(self.mapping, other.mapping)
        for side, opposite in (("before", "after"), ("after", "before")):
            for neighbour in getattr(other, side):
                getattr(neighbour, opposite).discard(other)
                if neighbour is not self:
                    getattr(neighbour, opposite).add(self)
                    getattr(self, side).add(neighbour)
        self.before.discard(other)
        self.after.discard(other)


def groups_of(stages: Iterable[Stage]) -> list[Group]:
    """One group per operator (the stages of one node), linked by the tensors that they read."""
    operators: dict[tuple[str, ...], list[Stage]] = {}
    for stage in stages:
        operators.setdefault(stage.origin or (stage.name,), []).append(stage)
    found: list[Group] = []
    owner: dict[str, Group] = {}
    for several in operators.values():
        group = Group([stage.name for stage in several], classify(several), mapping_of(several))
        found.append(group)
        owner.update(dict.fromkeys(group.members, group))
    for several in operators.values():
        for name in (name for stage in several for name in tensors_read(stage.body)):
            first, second = owner.get(name), owner[several[0].name]
            if first is not None and first is not second:
                first.after.add(second)
                second.before.add(first)
    return found


def remaining(stages: Iterable[Stage]) -> list[Group]:
    """The table applied to every pair until nothing changes: the operators that are left.

    A view goes into its consumers (or its producer), a pair that may fuse does so if that makes no cycle: the producer
    has no other consumer, or the consumer no other producer. What is left are ILD & Variable operators with all that
    went into them, and what could join nothing: elementwise operators whose result several operators share (the
    attention mask of all layers), and views from a graph input to a graph output.
    """
    groups = dict.fromkeys(groups_of(stages))
    work = list(groups)
    while work:
        first = work.pop()
        for second in list(first.after) if first in groups else []:
            gone, kept = _merge(first, second)
            if gone is not None:
                del groups[gone]
                work += [g for g in (*kept, *(n for k in kept for n in (*k.before, *k.after))) if g in groups]
                break
    return list(groups)


def _merge(first: Group, second: Group) -> tuple[Group | None, list[Group]]:
    """Applies the decision for a pair; the group that vanished, if any, and those that took it in."""
    action = decide(first.kind, second.kind).action
    if first.kind.output is Output.FIXED and len(first.after) > 1:  # every consumer computes the index itself
        takers = list(first.after)
        for taker in takers:
            for source in first.before:
                source.after.discard(first)
                source.after.add(taker)
                taker.before.add(source)
            taker.before.discard(first)
            taker.members += first.members
            taker.kind, taker.mapping = combined(taker.kind, first.kind), max(taker.mapping, first.mapping)
        return first, takers
    acyclic = len(first.after) == 1 or len(second.before) == 1
    if action is Action.KEEP_BOTH or not acyclic:
        return None, []
    kept, gone = (first, second) if combined(first.kind, second.kind) == first.kind else (second, first)
    kept.merge(gone)
    return gone, [kept]


def survey(stages: Sequence[Stage]) -> dict[str, dict[str, int]]:
    """How many operators of each class there are, and how many the pair table leaves."""
    return {
        name: {str(kind): number for kind in reversed(COMPLEXITY) if (number := sum(g.kind == kind for g in groups))}
        for name, groups in (("operators", groups_of(stages)), ("remaining", remaining(stages)))
    }
