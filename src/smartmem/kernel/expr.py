"""Expressions: what one coordinate of a tensor is, in terms of loads at index expressions.

    Expr = Load(tensor, index) | Const(value) | Iota(lin) | Alu(op, args) | Choose(guards, then, otherwise)

Index expressions are `smartmem.index` Lins over the axes of the enclosing stage. A `Load` must be in bounds wherever
the guards of the `Choose`s around it hold. Expressions are interned: equal expressions are the same object, so they
form DAGs, comparison is cheap, and common subexpressions need no search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from smartmem.index.lin import Lin
from smartmem.index.map import Guard

DType: TypeAlias = "np.dtype[Any]"

# Arithmetic vocabulary. All operands of an Alu have the dtype of the result, except where noted. Integer division and
# `mod` follow ONNX (C truncation for `div` on integers, `mod` = floor modulo with the sign of the divisor, `fmod` = C).
UNARY = frozenset(
    ("neg", "abs", "exp", "log", "sqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
     "acosh", "atanh", "erf", "sigmoid", "floor", "ceil", "round", "trunc", "sign", "not", "bitwise_not", "recip",
     "isnan", "exp_below", "gelu")
)  # fmt: skip
BINARY = frozenset(
    ("add", "sub", "mul", "div", "mod", "fmod", "pow", "max", "min", "and", "or", "xor", "shl", "shr", "bitand",
     "bitor", "bitxor", "dot4")
)  # fmt: skip
COMPARE = frozenset(("lt", "le", "gt", "ge", "eq", "ne"))  # operands of one dtype, result bool
OTHER = frozenset(
    ("where", "cast", "pack4", "entry")
)  # where(bool, a, b); cast(x) to the node's dtype, saturating as in ONNX

# Combining functions of a reduction. arg* reduce one axis and give the position of the first (or last) extremum.
COMBINE = frozenset(["sum", "prod", "max", "min", "and", "or", "argmax", "argmin", "argmax_last", "argmin_last"])

# What only level `full` for CPUs writes: "exp_below" (`schedule.online`) is exp for x <= 0, less exact the lower x; the
# combination "max_ordered" is "max" that may drop NaN; "gelu" (`passes.gelus`) is x / 2 * (1 + erf(x / sqrt(2))).
# Four bytes may lie in the place of a float (`passes.byte_products`): pack4(a, b, c, d) are integers from 0 to 255, and
# dot4(x, y) is the sum of the products of the bytes of x with those of y, which have signs. "entry" (`passes.tabulate`)
# is the element of a table as far behind a load as its second operand says.


@dataclass(frozen=True, eq=False)
class _Interned:
    """Base: identity is equality, because `make` interns."""


@dataclass(frozen=True, eq=False)
class Load(_Interned):
    """The element of `tensor` at `index` (one Lin per axis of the tensor)."""

    tensor: str
    index: tuple[Lin, ...]
    dtype: DType = field(default=np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class Const(_Interned):
    """A scalar of the given dtype."""

    value: float | int | bool
    dtype: DType = field(default=np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class Iota(_Interned):
    """The value of an index expression, as a number of the given dtype."""

    lin: Lin
    dtype: DType = field(default=np.dtype(np.int64))


@dataclass(frozen=True, eq=False)
class Alu(_Interned):
    """`op` applied to `args`; `op` is in UNARY, BINARY, COMPARE or OTHER."""

    op: str
    args: tuple[Expr, ...]
    dtype: DType = field(default=np.dtype(np.float32))


@dataclass(frozen=True, eq=False)
class Choose(_Interned):
    """`then` where every guard holds, else `otherwise`; only the chosen one is evaluated."""

    guards: tuple[Guard, ...]
    then: Expr
    otherwise: Expr

    @property
    def dtype(self) -> DType:
        return self.then.dtype


Expr: TypeAlias = Load | Const | Iota | Alu | Choose

_table: WeakValueDictionary[Any, Any] = WeakValueDictionary()
_loads: WeakKeyDictionary[Expr, tuple[Load, ...]] = WeakKeyDictionary()  # what `loads` and `index_values` found
_values: WeakKeyDictionary[Expr, tuple[Lin, ...]] = WeakKeyDictionary()


def _intern(key: Any, build: Callable[[], Any]) -> Any:
    found = _table.get(key)
    if found is None:
        found = build()
        _table[key] = found
    return found


def load(tensor: str, index: tuple[Lin, ...], dtype: Any = np.float32) -> Expr:
    kind = np.dtype(dtype)
    result: Expr = _intern(("load", tensor, index, kind), lambda: Load(tensor, index, kind))
    return result


def const(value: Any, dtype: Any = np.float32) -> Expr:
    kind = np.dtype(dtype)
    scalar = kind.type(value).item()
    result: Expr = _intern(("const", repr(scalar), kind), lambda: Const(scalar, kind))
    return result


def iota(value: Lin, dtype: Any = np.int64) -> Expr:
    kind = np.dtype(dtype)
    result: Expr = _intern(("iota", value, kind), lambda: Iota(value, kind))
    return result


def alu(op: str, *args: Expr, dtype: Any = None) -> Expr:
    """`op(args)`. The dtype is bool for comparisons, else that of the last argument, unless given (cast needs it)."""
    kind = np.dtype(dtype) if dtype is not None else np.dtype(bool) if op in COMPARE else args[-1].dtype
    if op == "cast" and args[0].dtype == kind:
        return args[0]
    key = ("alu", op, tuple(map(id, args)), kind)
    result: Expr = _intern(key, lambda: Alu(op, args, kind))
    return result


def choose(guards: tuple[Guard, ...], then: Expr, otherwise: Expr) -> Expr:
    """`Choose`, with guards that bounds decide removed."""
    if any(guard.never for guard in guards):
        return otherwise
    guards = tuple(dict.fromkeys(guard for guard in guards if not guard.always))
    if not guards or then is otherwise:
        return then
    if isinstance(then, Choose) and then.otherwise is otherwise:
        return choose((*guards, *then.guards), then.then, otherwise)
    key = ("choose", guards, id(then), id(otherwise))
    result: Expr = _intern(key, lambda: Choose(guards, then, otherwise))
    return result


def one_of(position: Lin, values: Sequence[Expr]) -> Expr:
    """``values[position]``, as a chain of choices."""
    result = values[-1]
    for number in reversed(range(len(values) - 1)):
        result = choose((Guard(position - number, 1),), values[number], result)
    return result


def operands(expr: Expr) -> tuple[Expr, ...]:
    """The direct subexpressions."""
    if isinstance(expr, Alu):
        return expr.args
    if isinstance(expr, Choose):
        return (expr.then, expr.otherwise)
    return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Every distinct subexpression once, operands before their users."""
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((operand, False) for operand in reversed(operands(node)))


def loads(expr: Expr) -> list[Load]:
    """The distinct loads of an expression."""
    if isinstance(expr, Load):
        return [expr]
    if expr not in _loads:
        _loads[expr] = tuple(node for node in walk(expr) if isinstance(node, Load))
    return list(_loads[expr])


def with_operands(node: Alu, args: Sequence[Expr]) -> Expr:
    """The same operation on other operands."""
    return alu(node.op, *args, dtype=node.dtype)


def rebuild(
    expr: Expr, leaf: Callable[[Load | Iota], Expr] = lambda node: node, guard: Callable[[Guard], Guard] = lambda g: g,
    operation: Callable[[Alu, Sequence[Expr]], Expr] = with_operands, known: Mapping[int, Expr] | None = None,
) -> Expr:  # fmt: skip
    """`expr` with every Load and Iota replaced by ``leaf(it)``, every guard by ``guard(it)`` and every Alu by
    ``operation(it, operands after replacement)``; sharing is kept. `known`: what nodes become, by id."""
    done: dict[int, Expr] = dict(known or {})
    for node in walk(expr):
        if id(node) in done:
            continue
        if isinstance(node, (Load, Iota)):
            done[id(node)] = leaf(node)
        elif isinstance(node, Alu):
            done[id(node)] = operation(node, [done[id(a)] for a in node.args])
        elif isinstance(node, Choose):
            guards = tuple(guard(g) for g in node.guards)
            done[id(node)] = choose(guards, done[id(node.then)], done[id(node.otherwise)])
        else:
            done[id(node)] = node
    return done[id(expr)]


@lru_cache(maxsize=1 << 14)
def _is_cheap(op: str) -> bool:
    return op in {"add", "sub", "mul", "max", "min", "neg", "abs", "cast", "where"} or op in COMPARE


def cost(expr: Expr) -> int:
    """A rough count of machine operations per evaluation: 1 for simple arithmetic, 8 for transcendental functions."""
    return sum((1 if _is_cheap(n.op) else 8) for n in walk(expr) if isinstance(n, Alu))


def index_values(body: Expr) -> list[Lin]:
    """Every Lin in an expression."""
    known = _values.get(body)
    if known is None:
        values: list[Lin] = []
        for node in walk(body):
            if isinstance(node, Load):
                values += node.index
            elif isinstance(node, Iota):
                values.append(node.lin)
            elif isinstance(node, Choose):
                values += (g.lin for g in node.guards)
        known = _values[body] = tuple(values)
    return list(known)


def map_lins(expr: Expr, change: Mapping[Lin, Lin]) -> Expr:
    """`expr` with every Lin replaced."""

    def leaf(node: Load | Iota) -> Expr:
        if isinstance(node, Iota):
            return iota(change[node.lin], node.dtype)
        return load(node.tensor, tuple(change[i] for i in node.index), node.dtype)

    return rebuild(expr, leaf, lambda g: Guard(change[g.lin], g.ext))


def is_zero(expr: Expr) -> bool:
    """Whether an expression is the constant 0."""
    return isinstance(expr, Const) and expr.value == 0
