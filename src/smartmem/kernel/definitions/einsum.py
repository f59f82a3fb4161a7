"""Einsum: sums of products of operands whose axes are named by letters.

One operand is a view or a plain sum, two are one contraction, more are a chain of contractions from left to right whose
intermediate results keep just the letters that are still needed: ``ij,jk,kl->il`` is ``y.0[i, k]``, then ``y[i, l]``.
An ellipsis stands for as many axes as are left, aligned at the right and broadcast; they get the letters "0", "1", …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smartmem.graph.ir import Node
from smartmem.index.lin import Lin
from smartmem.kernel.definitions.access import product
from smartmem.kernel.definitions.build import cast, coordinates, wide
from smartmem.kernel.definitions.registry import defines
from smartmem.kernel.expr import DType, Expr, load
from smartmem.kernel.stage import Stage


@dataclass(frozen=True)
class _Operand:
    name: str
    labels: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: DType

    def at(self, coordinate: dict[str, Lin]) -> Expr:
        index = tuple(Lin() if n == 1 else coordinate[s] for s, n in zip(self.labels, self.shape, strict=True))
        return load(self.name, index, self.dtype)


@defines("Einsum")
def einsum(node: Node) -> list[Stage] | None:
    """Any einsum of one or more operands, repeated letters (diagonals) and letters summed in one operand included."""
    if any(v is None for v in node.inputs):
        return None
    values = [v for v in node.inputs if v is not None]
    inputs, result = _parse(str(node.attrs["equation"]), [len(v.dims) for v in values])
    operands = [_Operand(v.name, s, v.dims, v.dtype) for v, s in zip(values, inputs, strict=True)]
    extents: dict[str, int] = {}
    for item in operands:
        for label, extent in zip(item.labels, item.shape, strict=True):
            extents[label] = max(extents.get(label, 1), extent)

    stages: list[Stage] = []
    left = operands[0]
    for position, right in enumerate(operands[1:-1]):
        needed = {*result, *(s for later in operands[position + 2 :] for s in later.labels)}
        kept = tuple(s for s in dict.fromkeys((*left.labels, *right.labels)) if s in needed)
        name = f"{node.output.name}.{position}"
        stage = _stage(name, kept, [left, right], extents, wide(left.dtype), node)
        stages.append(stage)
        left = _Operand(name, kept, stage.shape, stage.dtype)
    rest = [left, *operands[1:][-1:]]
    kind = wide(node.output.dtype)
    is_copy = len(rest) == 1 and set(rest[0].labels) == set(result)
    if kind == node.output.dtype or is_copy:
        return [*stages, _stage(node.output.name, result, rest, extents, node.output.dtype, node)]
    total = _stage(f"{node.output.name}.sum", result, rest, extents, kind, node)
    body = cast(load(total.name, total.space(), kind), node.output.dtype)
    return [*stages, total, Stage(node.output.name, total.shape, node.output.dtype, body, origin=(node.name,))]


def _stage(
    name: str, result: Sequence[str], operands: list[_Operand], extents: dict[str, int], dtype: DType, node: Node
) -> Stage:
    """``name[result] = sum of the operands' product`` over the letters that `result` lacks."""
    labels = dict.fromkeys(s for item in operands for s in item.labels)
    summed = [s for s in labels if s not in result]
    shape, reduce = tuple(extents[s] for s in result), tuple(extents[s] for s in summed)
    coordinate = dict(zip((*result, *summed), coordinates((*shape, *reduce)), strict=True))
    terms = [item.at(coordinate) for item in operands]
    body = product(*terms) if len(terms) == 2 else cast(terms[0], dtype)
    return Stage(name, shape, dtype, body, reduce, "sum" if reduce else "", (node.name,))


def _parse(equation: str, ranks: list[int]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """The letters of each operand's axes and of the result's."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spread = max((r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True) if "..." in t), default=0)
    inputs = [_letters(t, r - len(t.replace("...", "")), spread) for t, r in zip(terms, ranks, strict=True)]
    if arrow:
        return inputs, _letters(right, spread, spread)
    flat = [s for t in inputs for s in t if s.isalpha()]
    dots = tuple(str(k) for k in range(spread)) if "..." in left else ()
    return inputs, (*dots, *sorted(s for s in set(flat) if flat.count(s) == 1))


def _letters(term: str, count: int, spread: int) -> tuple[str, ...]:
    """``a...b`` with `count` axes in the ellipsis -> a, the last `count` of "0" … str(spread - 1), b."""
    head, dots, tail = term.partition("...")
    middle = [str(k) for k in range(spread - count, spread)] if dots else []
    return (*head, *middle, *tail)
