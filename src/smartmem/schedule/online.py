"""Softmax between two contractions: what its definitions allow a row pipeline to do differently.

    t = A * K, scaled, masked     m = max over t     e = exp(t - m)     l = sum over e     o = sum over (e / l) * V

`divide_last`: every e of a row is divided by the same l, so the weighted sum can be divided instead::

    o.weighted = sum over e * V     o = o.weighted / l

`find`: e, l and o.weighted can be accumulated over blocks of keys (the online softmax of Milakov and Gimelshein, 2018,
as in FlashAttention, Dao et al., 2022). With m' = max(m, maximum of the block), what was summed so far takes the factor
exp(m - m')::

    l <- l * exp(m - m') + sum over the block of exp(t - m')           the same for each column of o.weighted

so no row of t or e is ever whole.

Some exporters write ``where(isnan(e / l), 0, e / l)``, which makes rows that see nothing zeros. Of a softmax either all
quotients of a row are NaN or none is; where they are, l is not above 0 (it is NaN, or 0 in blocks), so the choice moves
behind the sum, too. (The weighted sum of such a row is then 0 even where V is infinite.)

`quicken`: where a softmax is divided like that, NaN among a row's t reaches the sum l and with it the whole row, so m
may miss it; and t - m is never above 0.

All are found by comparing definitions; operator names play no part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from smartmem.index.lin import axis_digit
from smartmem.kernel.expr import Alu, Expr, Load, alu, const, is_zero, load
from smartmem.kernel.stage import Stage, tensors_read
from smartmem.schedule.flatten import flat_address
from smartmem.schedule.roles import factors, is_contraction


@dataclass(frozen=True)
class Softmax:
    """The names of the stages between two contractions that can go in blocks of keys.

    Attributes:
        first: the contraction that computes scores.
        scores: the last stage of its pointwise epilogue, or itself.
        maximum, powers, total: the row stages m, e and l.
        second: the contraction that sums e * V.
        keys: how many scores a row has.
    """

    first: str
    scores: str
    maximum: str
    powers: str
    total: str
    second: str
    keys: int


def divide_last(stages: Sequence[Stage], rows: int) -> list[Stage]:
    """The same stages, with the quotient of a softmax taken after the contraction that sums it.

    It is a product with the reciprocal, one number per row, also where it is a result of its own. (Sums of exponentials
    are 0 or no less than 2^-126, the least result of `sm_expv`, so that reciprocals are finite where quotients are.)
    """
    result: list[Stage] = []
    local = {stage.name: stage for stage in stages}
    for stage in stages:
        pair = factors(stage) if is_contraction(stage, rows) else None
        quotient = _quotient(stage.body if pair is None else pair[0])
        if pair is None and quotient is not None and not quotient.zero_for_nan and _of_softmax(quotient, local, rows):
            stage = replace(stage, body=alu("mul", quotient.dividend, alu("recip", quotient.divisor)))
        if pair is None or quotient is None or not _of_softmax(quotient, local, rows):
            result.append(stage)
            continue
        weighted = replace(stage, name=f"{stage.name}.weighted", body=alu("mul", quotient.dividend, pair[1]))
        value = alu("mul", load(weighted.name, stage.space(), stage.dtype), alu("recip", quotient.divisor))
        if quotient.zero_for_nan:
            zero = const(0.0, stage.dtype)
            value = alu("where", alu("gt", quotient.divisor, zero, dtype=np.dtype(bool)), value, zero)
        result += [weighted, replace(stage, body=value, reduce=(), combine="")]
    return result


@dataclass(frozen=True)
class _Quotient:
    """``dividend / divisor``, perhaps with 0 instead of NaN."""

    dividend: Load
    divisor: Load
    zero_for_nan: bool


def _quotient(expr: Expr) -> _Quotient | None:
    zero_for_nan = False
    if isinstance(expr, Alu) and expr.op == "where" and is_zero(expr.args[1]):
        test, _, value = expr.args
        if not isinstance(test, Alu) or test.op != "isnan" or test.args[0] is not value:
            return None
        expr, zero_for_nan = value, True
    if not isinstance(expr, Alu) or expr.op != "div":
        return None
    dividend, divisor = expr.args
    loads = isinstance(dividend, Load) and isinstance(divisor, Load)
    return _Quotient(dividend, divisor, zero_for_nan) if loads else None  # type: ignore[arg-type]


def _of_softmax(quotient: _Quotient, local: Mapping[str, Stage], rows: int) -> bool:
    """Whether it is of a softmax: no dividend is above 1 then, and sums of them are as finite as sums of quotients."""
    powers, total = local.get(quotient.dividend.tensor), local.get(quotient.divisor.tensor)
    if powers is None or total is None:
        return False
    difference = _exponent(powers)
    if difference is None or _row_load(powers, rows, total, "sum") is None:
        return False
    scores, maximum = (local.get(x.tensor) for x in difference)
    return (
        scores is not None
        and maximum is not None
        and _row_load(scores, rows, maximum, "max") is not None
        and _same(difference[0], scores, powers, rows, powers.shape[rows:])
    )


def _exponent(powers: Stage) -> tuple[Load, Load] | None:
    """Of a stage ``exp(a - b)``, what it loads as a and b."""
    raised = powers.body
    if not isinstance(raised, Alu) or raised.op != "exp" or powers.reduce:
        return None
    (difference,) = raised.args
    if not isinstance(difference, Alu) or difference.op != "sub":
        return None
    a, b = difference.args
    return (a, b) if isinstance(a, Load) and isinstance(b, Load) else None


def find(stages: Sequence[Stage], rows: int) -> Softmax | None:
    """The softmax between the two contractions of a row pipeline, or None if there is no such thing."""
    marks = [k for k, stage in enumerate(stages) if is_contraction(stage, rows)]
    if len(marks) != 2 or marks[1] - marks[0] < 4:
        return None
    scores, maximum, powers, total = stages[marks[1] - 4 : marks[1]]
    first, second = stages[marks[0]], stages[marks[1]]
    pair = factors(second)
    assert pair is not None
    t, e = _row_load(scores, rows, maximum, "max"), _row_load(powers, rows, total, "sum")
    if t is None or e is None or not _same(pair[0], powers, second, rows, second.reduce):
        return None
    difference = _exponent(powers)
    if difference is None or difference[1].tensor != maximum.name:
        return None
    if not _same(difference[0], scores, powers, rows, powers.shape[rows:]):
        return None
    epilogue = stages[marks[0] + 1 : marks[1] - 3]
    if not is_epilogue(first, epilogue):
        return None
    readers = {scores.name: {maximum.name, powers.name}, maximum.name: {powers.name}}
    readers[powers.name] = {total.name, second.name}
    readers |= {stage.name: {s.name for s in epilogue} for stage in (first, *epilogue) if stage is not scores}
    readers[total.name] = {stage.name for stage in stages[marks[1] + 1 :]}
    # What comes before the scores is computed again for each block of keys, and not once more after the last one.
    readers |= {stage.name: {s.name for s in stages[: marks[1]]} for stage in stages[: marks[0]]}
    if any(s.name not in readers.get(name, {s.name}) for s in stages for name in tensors_read(s.body)):
        return None
    keys = math.prod(scores.shape[rows:])
    return Softmax(first.name, scores.name, maximum.name, powers.name, total.name, second.name, keys)


def quicken(stages: Sequence[Stage], rows: int) -> list[Stage]:
    """The stages that `divide_last` made, with the maximum and the exponentials of a softmax as its sum allows them."""
    local = {stage.name: stage for stage in stages}
    readers = {name: [s for s in stages if name in tensors_read(s.body)] for name in local}
    changed: dict[str, Stage] = {}
    for powers in stages:
        difference = _exponent(powers)
        maximum = local.get(difference[1].tensor) if difference is not None else None
        if difference is None or maximum is None or readers[maximum.name] != [powers]:
            continue
        scores = local.get(difference[0].tensor)
        total = next((s for s in readers[powers.name] if _row_load(powers, rows, s, "sum") is not None), None)
        if scores is None or total is None or _row_load(scores, rows, maximum, "max") is None:
            continue
        if not _same(difference[0], scores, powers, rows, powers.shape[rows:]):
            continue
        divided = readers[total.name]
        sums = [s for s in readers[powers.name] if s is not total and s not in divided]
        if all(_takes_reciprocal(s, total) for s in divided) and all(
            is_contraction(s, rows) and all(user in divided for user in readers[s.name]) for s in sums
        ):
            assert isinstance(powers.body, Alu)
            changed[maximum.name] = replace(maximum, combine="max_ordered")
            changed[powers.name] = replace(powers, body=alu("exp_below", *powers.body.args))
    return [changed.get(stage.name, stage) for stage in stages]


def _takes_reciprocal(stage: Stage, total: Stage) -> bool:
    """Whether a stage is ``x / total`` as `divide_last` writes it, for some x."""
    value = stage.body
    if isinstance(value, Alu) and value.op == "where":
        value = value.args[1]
    if not isinstance(value, Alu) or value.op != "mul" or not isinstance(value.args[1], Alu):
        return False
    reciprocal = value.args[1]
    return reciprocal.op == "recip" and isinstance(reciprocal.args[0], Load) and reciprocal.args[0].tensor == total.name


def is_epilogue(contraction: Stage, following: Sequence[Stage]) -> bool:
    """Whether stages that follow a contraction are pointwise and read it and one another at their own coordinates."""
    own = {contraction.name, *(stage.name for stage in following)}
    space = contraction.space()
    return all(
        not s.reduce and s.shape == contraction.shape and all(x.index == space for x in s.loads() if x.tensor in own)
        for s in following
    )


def _row_load(source: Stage, rows: int, reduction: Stage, combine: str) -> Expr | None:
    """The body of a row reduction of all of `source` by `combine`, or None if it is something else."""
    plain = reduction.combine == combine and len(reduction.shape) == rows
    return reduction.body if plain and _same(reduction.body, source, reduction, rows, reduction.reduce) else None


def _same(body: Expr, source: Stage, reader: Stage, rows: int, columns: Sequence[int]) -> bool:
    """Whether a stage reads column n of the same row of `source`; n counts its `columns`, its last axes, row-major."""
    if not isinstance(body, Load) or body.tensor != source.name:
        return False
    start = len(reader.domain) - len(columns)
    own = flat_address(tuple(axis_digit(start + k, n) for k, n in enumerate(columns)), tuple(columns))
    there = flat_address(body.index[rows:], source.shape[rows:])
    return own == there and math.prod(columns) == math.prod(source.shape[rows:])
