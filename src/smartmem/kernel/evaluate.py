"""The oracle: stages evaluated by numpy at every coordinate. Slow, obviously right, used by tests and for constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smartmem.index.map import evaluate
from smartmem.kernel.expr import Alu, Choose, Const, Expr, Iota, Load, walk
from smartmem.kernel.stage import Stage

Array = np.ndarray[Any, Any]

GROWTH_LIMIT = 64 << 20  # bytes by which what is computed at compile time may exceed what it is made of
LARGE, EXPANSION = 4 << 20, 4  # bytes, and times its source: more than both, and a load may compute it instead


def _erf(x: Array) -> Array:
    from math import erf

    return np.vectorize(erf, otypes=[np.float64])(x) if x.size else x


def _trunc_div(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):
        quotient = np.abs(a) // np.maximum(np.abs(b), 1)
        return np.where((a < 0) != (b < 0), -quotient, quotient) if np.issubdtype(a.dtype, np.signedinteger) else a // b
    return np.divide(a, b)


def _pack4(*parts: Array) -> Array:
    packed = np.ascontiguousarray(np.stack(np.broadcast_arrays(*parts), -1).astype(np.uint8)).view(np.float32)
    return np.asarray(packed[..., 0])


def _dot4(a: Array, b: Array) -> Array:
    x = np.ascontiguousarray(a)[..., None].view(np.uint8).astype(np.int32)
    y = np.ascontiguousarray(b)[..., None].view(np.int8).astype(np.int32)
    return np.asarray((x * y).sum(-1))


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos,
    "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh,
    "tanh": np.tanh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "erf": _erf,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc,
    "sign": np.sign, "not": np.logical_not, "bitwise_not": np.invert, "recip": lambda x: 1 / x, "isnan": np.isnan,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _trunc_div, "mod": np.mod, "fmod": np.fmod,
    "pow": np.power, "max": np.maximum, "min": np.minimum, "and": np.logical_and, "or": np.logical_or,
    "xor": np.logical_xor, "shl": np.left_shift, "shr": np.right_shift, "bitand": np.bitwise_and,
    "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "where": np.where, "pack4": _pack4, "dot4": _dot4,
}  # fmt: skip

_COMBINE: dict[str, Callable[..., Array]] = {
    "sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min, "and": np.all, "or": np.any,
}  # fmt: skip


def evaluate_expr(expr: Expr, axes: Sequence[Any], tensors: Mapping[str, Array]) -> Array:
    """`expr` at coordinates `axes` (one broadcastable array per axis)."""

    def lookup(name: str, index: tuple[Any, ...]) -> Any:
        return tensors[name][tuple(np.clip(i, 0, n - 1) for i, n in zip(index, tensors[name].shape, strict=True))]

    done: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for node in walk(expr):
            if isinstance(node, Const):
                done[id(node)] = np.asarray(node.value, dtype=node.dtype)
            elif isinstance(node, Iota):
                done[id(node)] = np.asarray(evaluate(node.lin, axes, lookup)).astype(node.dtype)
            elif isinstance(node, Load):
                # a load that guards exclude may lie outside; its value is then not used
                done[id(node)] = lookup(node.tensor, tuple(evaluate(i, axes, lookup) for i in node.index))
            elif isinstance(node, Choose):
                holds: Any = True
                for guard in node.guards:
                    value = evaluate(guard.lin, axes, lookup)
                    holds = holds & (np.asarray(value) >= 0) & (np.asarray(value) < guard.ext)
                done[id(node)] = np.where(holds, done[id(node.then)], done[id(node.otherwise)])
            else:
                done[id(node)] = _apply(node, [done[id(a)] for a in node.args])
    result: Array = np.asarray(done[id(expr)])
    return result


def _apply(node: Alu, args: list[Any]) -> Array:
    if node.op == "cast":
        return np.asarray(args[0]).astype(node.dtype)
    return np.asarray(_FUNCTIONS[node.op](*args)).astype(node.dtype)


def evaluate_stage(stage: Stage, tensors: Mapping[str, Array]) -> Array:
    """The whole tensor that `stage` defines, in float64 accumulation for float sums; row-major, stage's dtype."""
    rank = len(stage.domain)
    axes = [np.arange(n).reshape([-1 if a == k else 1 for k in range(rank)]) for a, n in enumerate(stage.domain)]
    values = np.broadcast_to(evaluate_expr(stage.body, axes, tensors), stage.domain)
    if stage.reduce:
        over = tuple(range(len(stage.shape), rank))
        if stage.combine.startswith("arg"):
            values = _arg(stage.combine, values)
        else:
            wide = np.float64 if np.issubdtype(values.dtype, np.floating) and stage.combine in ("sum", "prod") else None
            values = _COMBINE[stage.combine](values.astype(wide) if wide else values, axis=over)
    return np.array(values, order="C").astype(stage.dtype)


def _arg(combine: str, values: Array) -> Array:
    pick = np.argmax if "argmax" in combine else np.argmin
    if combine.endswith("_last"):
        return np.asarray(values.shape[-1] - 1 - pick(values[..., ::-1], axis=-1))
    return np.asarray(pick(values, axis=-1))


def evaluate_stages(stages: Sequence[Stage], tensors: Mapping[str, Array]) -> dict[str, Array]:
    """All tensors that `stages` define, in order, given the tensors they read."""
    known = dict(tensors)
    for stage in stages:
        known[stage.name] = evaluate_stage(stage, known)
    return {stage.name: known[stage.name] for stage in stages}
