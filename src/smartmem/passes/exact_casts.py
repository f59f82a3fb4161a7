"""Integers stay floats where they came from floats and go to floats, as the operators of quantized networks have it.

    q = uint8(min(max(round(x / s) + z, 0), 255))        y = (float(q) - z) * s

`q` holds the float before the cast, if that always is an integer that the type has: the same numbers, and what reads
them is arithmetic on floats, which fuses and runs in vectors. Sums of products of quantized integers are another case
(int32). Which integers a tensor may hold is found by interval arithmetic over the stages.

In: stages. Out: the same with other types.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeGuard

import numpy as np

from smartmem.kernel.definitions.build import cast, highest, is_float, lowest
from smartmem.kernel.expr import (
    Alu,
    Choose,
    Const,
    DType,
    Expr,
    Iota,
    Load,
    alu,
    choose,
    const,
    load,
    operands,
    rebuild,
    walk,
)
from smartmem.kernel.stage import Stage, looked_up
from smartmem.passes.module import Module

FLOAT = np.dtype(np.float32)
LONGEST, SLACK = 1 << 13, 1 + 2.0**-10  # sums of so many floats are rounded by less than this factor


def exact_casts(module: Module) -> None:
    """Makes floats of tensors of integers that come from floats, if nothing but casts to floats reads them.

    What only moves such integers, or takes the greatest (a pooling), is one of them.
    """
    stages = [step for step in module.steps if isinstance(step, Stage)]
    passing = {stage.name for stage in stages if _passes(stage)}
    free = passing - module.pinned()
    casts = {stage.name for stage in stages if _source(stage) is not None} - module.pinned()
    casts &= _read_by_casts(stages, casts | free, passing)
    if not casts:  # then nothing asks which numbers tensors hold
        return
    sources = _exact(module, stages, casts)
    found = _read_by_casts(stages, sources.keys() | free, passing)
    for position, step in enumerate(module.steps):
        if isinstance(step, Stage):
            module.steps[position] = _retyped(step, found, sources)
    module.types.update((name, (module.types[name][0], FLOAT)) for name in found)


def _source(stage: Stage) -> Expr | None:
    """The float32 that a stage casts to integers, None if it does something else."""
    source = stage.body.args[0] if _is_cast(stage.body, to_float=False) and not stage.reduce else None
    return source if source is not None and source.dtype == FLOAT else None


def _exact(module: Module, stages: list[Stage], casts: set[str]) -> dict[str, Expr]:
    """The floats that `casts` are cast from, where these always are integers that the type has."""
    held, found = Integers(module), dict[str, Expr]()
    for stage in stages:
        held.add(stage)
        source = _source(stage) if stage.name in casts else None
        if source is not None and (numbers := held.range(source)).within(stage.dtype):
            found[stage.name] = _number(source) if numbers.nan else source
    return found


def _number(x: Expr) -> Expr:
    """What is no number becomes zero, as in a cast to an integer."""
    return alu("where", alu("isnan", x, dtype=bool), const(0, x.dtype), x)


def _is_cast(expr: Expr, to_float: bool) -> TypeGuard[Alu]:
    if not isinstance(expr, Alu) or expr.op != "cast":
        return False
    return is_float(expr.dtype) if to_float else expr.dtype.kind in "iu"


def _passes(stage: Stage) -> bool:
    """Whether a stage has no other integers than those that it reads, and constants."""
    leaves = [node for node in walk(stage.body) if not isinstance(node, Choose)]
    moves = all(isinstance(node, (Load, Const)) and node.dtype == stage.dtype for node in leaves)
    return stage.dtype.kind in "iu" and stage.combine in ("", "max", "min") and moves and bool(stage.loads())


def _read_by_casts(stages: list[Stage], tensors: set[str], passing: set[str]) -> set[str]:
    """Those of `tensors` that are read by casts, and by what passes them on to casts."""
    while True:
        dropped: set[str] = set()
        for stage in stages:
            if stage.name in passing & tensors:
                read = {access.tensor for access in stage.loads()}
                dropped |= set(looked_up(stage.body)) | (set() if read <= tensors else {stage.name})
            else:
                dropped |= _read_as_integers(stage)
        if not dropped & tensors:
            return tensors
        tensors = tensors - dropped


def _read_as_integers(stage: Stage) -> set[str]:
    """The tensors that a stage reads as what they are, or as indices."""
    users = [node for node in walk(stage.body) if not _is_cast(node, to_float=True)]
    plain = {o.tensor for node in users for o in operands(node) if isinstance(o, Load)}
    return plain | set(looked_up(stage.body)) | ({stage.body.tensor} if isinstance(stage.body, Load) else set())


def _retyped(stage: Stage, tensors: set[str], sources: dict[str, Expr]) -> Stage:
    """The stage as it is if `tensors` are floats."""

    def leaf(node: Load | Iota) -> Expr:
        return load(node.tensor, node.index) if isinstance(node, Load) and node.tensor in tensors else node

    if stage.name not in tensors:
        return replace(stage, body=rebuild(stage.body, leaf))
    body = rebuild(sources[stage.name], leaf) if stage.name in sources else _as_floats(stage.body)
    return replace(stage, body=body, dtype=FLOAT)


def _as_floats(body: Expr) -> Expr:
    """Loads, constants and choices of them, as floats."""
    if isinstance(body, Choose):
        return choose(body.guards, _as_floats(body.then), _as_floats(body.otherwise))
    return load(body.tensor, body.index) if isinstance(body, Load) else cast(body, FLOAT)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, either of which may be infinite; `whole`: only integers; `nan`: or no number."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    nan: bool = True

    @property
    def finite(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def is_byte(self) -> bool:
        """Whether these are integers of eight bits, with a sign or without."""
        return not self.nan and (self.within(np.dtype(np.uint8)) or self.within(np.dtype(np.int8)))

    def __or__(self, other: Range) -> Range:
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Range(low, high, self.whole and other.whole, self.nan or other.nan)

    def within(self, dtype: DType) -> bool:
        """Whether these are integers that `dtype` has."""
        limits = _of_type(dtype)
        return self.whole and limits.whole and limits.low <= self.low and self.high <= limits.high


def _of_type(dtype: DType) -> Range:
    """All numbers of a type."""
    if dtype.kind == "b":
        return Range(0, 1, True, False)
    return Range(float(lowest(dtype)), float(highest(dtype)), True, False) if dtype.kind in "iu" else Range()


@dataclass
class Integers:
    """Which numbers tensors may hold, whatever their type."""

    module: Module
    tensors: dict[str, Range] = field(default_factory=dict)

    def add(self, stage: Stage) -> None:
        """Finds what a stage holds; those before it are known."""
        each, terms = self.range(stage.body), math.prod(stage.reduce)
        if stage.combine in ("", "max", "min"):
            self.tensors[stage.name] = each
        elif stage.combine == "sum" and is_float(stage.dtype) and terms <= LONGEST:
            low, high = min(each.low * terms * SLACK, each.low), max(each.high * terms * SLACK, each.high)
            self.tensors[stage.name] = replace(each, low=low, high=high)
        else:
            self.tensors[stage.name] = _of_type(stage.dtype)

    def range(self, body: Expr) -> Range:
        """The numbers that an expression may be."""
        return self.ranges(body)[id(body)]

    def ranges(self, body: Expr) -> dict[int, Range]:
        """The numbers that an expression and each of its parts, by id, may be."""
        known: dict[int, Range] = {}
        for node in walk(body):
            if isinstance(node, Const):
                value = float(node.value)
                known[id(node)] = Range(value, value, value.is_integer(), math.isnan(value))
            elif isinstance(node, Iota):
                known[id(node)] = Range(node.lin.min, node.lin.max, True, False)
            elif isinstance(node, Load):
                known[id(node)] = self._tensor(node)
            elif isinstance(node, Choose):
                known[id(node)] = known[id(node.then)] | known[id(node.otherwise)]
            else:
                known[id(node)] = _computed(node, [known[id(arg)] for arg in node.args])
        return known

    def _tensor(self, access: Load) -> Range:
        if access.tensor not in self.tensors:
            held, data = _of_type(access.dtype), self.module.constants.get(access.tensor)
            if data is not None and data.size and data.dtype.kind == "f":
                with np.errstate(invalid="ignore"):  # bytes may lie in the place of floats
                    whole, nan = bool((data == np.rint(data)).all()), bool(np.isnan(data).any())
                held = Range() if nan else Range(float(data.min()), float(data.max()), whole, False)
            self.tensors[access.tensor] = held
        return self.tensors[access.tensor]


def _computed(node: Alu, args: list[Range]) -> Range:
    """What an operation gives of such operands."""
    limits, nan, whole = _of_type(node.dtype), any(arg.nan for arg in args), all(arg.whole for arg in args)
    if node.op == "cast" and limits.whole:
        return replace(args[0], nan=False) if args[0].within(node.dtype) else limits
    if node.op == "cast":
        return args[0]
    if node.op == "where":
        return args[1] | (replace(args[2], nan=False) if _tests(node.args[0], node.args[2]) else args[2])
    if node.op in ("round", "floor", "ceil", "trunc"):
        return Range(np.floor(args[0].low), np.ceil(args[0].high), True, nan)
    if node.op == "dot4":
        return Range(-4 * 255 * 128, 4 * 255 * 127, True, False)
    if node.op == "entry":  # of a table, whose entries are known
        return args[0]
    if node.op in _BOUNDED:
        return Range(*_BOUNDED[node.op], False, nan)
    if node.op == "div" and is_float(node.dtype) and args[1].low == args[1].high != 0:
        ends = args[0].low / args[1].low, args[0].high / args[1].low
        return Range(min(ends), max(ends), False, nan)
    if node.op not in _BOUNDS:
        return limits
    low, high = _BOUNDS[node.op](*args)
    if node.op in ("add", "sub", "mul"):  # of infinite numbers
        nan = nan or not all(arg.finite for arg in args)
    found = Range(low, high, whole, nan)
    return found if not limits.whole or found.within(node.dtype) else limits


def _tests(condition: Expr, x: Expr) -> bool:
    """Whether a condition holds where `x` is no number."""
    return isinstance(condition, Alu) and condition.op == "isnan" and condition.args[0] is x


def _product(a: Range, b: Range) -> tuple[float, float]:
    ends = [x * y if x and y else 0.0 for x in (a.low, a.high) for y in (b.low, b.high)]
    return min(ends), max(ends)


_BOUNDED = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "erf": (-1.0, 1.0)}
_BOUNDS: dict[str, Callable[..., tuple[float, float]]] = {
    "add": lambda a, b: (a.low + b.low, a.high + b.high),
    "sub": lambda a, b: (a.low - b.high, a.high - b.low),
    "mul": _product,
    "neg": lambda a: (-a.high, -a.low),
    "min": lambda a, b: (min(a.low, b.low), min(a.high, b.high)),
    "max": lambda a, b: (max(a.low, b.low), max(a.high, b.high)),
}
