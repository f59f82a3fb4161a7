"""Evaluate nodes whose operands are constant, and drop what nobody reads.

Shape arithmetic (Gather, Concat, Add … over a few integers) is evaluated directly in numpy on the canonical node
form; everything else goes through `runtime.host`. A result that would grow the model by more than `GROWTH_LIMIT` bytes
stays a node: an Expand of a scalar to a gigabyte is cheap as an operator and not as a constant. So does what a Gather,
Expand or Tile makes large (`EXPANSION` times): passes decide whether loads compute it (`passes.fold_constants`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from smartmem.errors import ModelError, RuntimeFailure
from smartmem.frontend.schemas import is_deterministic
from smartmem.graph.ir import Graph, Node, Value
from smartmem.kernel.evaluate import EXPANSION, GROWTH_LIMIT, LARGE
from smartmem.runtime.host import run_node

Array = np.ndarray[Any, Any]


def size_of(value: Value) -> int:
    """Bytes of a value with a static shape, 0 where the shape is unknown."""
    # Python integers: an extent product may exceed int64.
    total = value.dtype.itemsize
    for extent in value.shape or (() if value.shape is not None else (0,)):
        total *= extent
    return total


def static_result(node: Node) -> Array | None:
    """`Shape(x) -> x.shape`, `Size(x)`, `EyeLike(x)`: known from the operand's shape alone, even if its data is not."""
    x = node.inputs[0] if node.inputs else None
    if node.domain != "" or x is None or x.shape is None:
        return None
    if node.op == "Shape":
        start, end = node.attrs.get("start", 0), node.attrs.get("end", len(x.shape))
        return np.asarray(x.shape[slice(start, end)], np.int64)
    if node.op == "Size":
        return np.asarray(int(np.prod(x.shape, dtype=np.int64)), np.int64)
    if node.op == "EyeLike" and size_of(node.output) <= GROWTH_LIMIT:
        rows, columns = x.shape
        return np.eye(rows, columns, k=int(node.attrs.get("k", 0)), dtype=node.output.dtype)
    return None


def evaluate(node: Node, operands: Sequence[Array | None]) -> list[Array] | None:
    """The node's results for constant `operands`, or None where it should stay a node.

    Raises:
        ModelError: the operands are invalid, such as an index out of range.
    """
    if not is_deterministic(node.op, node.domain) or not worth_folding(node, operands):
        return None
    direct = _DIRECT.get(node.op) if node.domain == "" else None
    results: list[Array] | None = None
    if direct is not None and all(a is None or a.dtype.kind in "iufb" for a in operands):
        try:
            with np.errstate(all="ignore"):
                found = direct(node, *operands)
        except (IndexError, ValueError) as error:
            raise ModelError(
                f"{node.describe()}: invalid constant operands of shapes "
                f"{', '.join(str(a.shape) for a in operands if a is not None)}: {error}"
            ) from None
        results = found if isinstance(found, list) or found is None else [found]
    if results is None:
        try:
            results = run_node(node, list(operands))
        except RuntimeFailure:
            return None  # it stays a node; running it will say why
    if any(not isinstance(r, np.ndarray | np.generic) for r in results):
        return None  # sequences are no constants
    return [_as_value(np.asarray(r), v) for r, v in zip(results, node.outputs, strict=False)]


def worth_folding(node: Node, operands: Sequence[Array | None]) -> bool:
    """Whether the results are not much larger than the operands, and no load should compute them instead."""
    given = sum(a.nbytes for a in operands if a is not None)
    made = sum(size_of(v) for v in node.outputs if v is not None)
    if node.op == "DequantizeLinear":  # passes want to see integers and scales
        return False
    if node.op in ("Gather", "Expand", "Tile") and made > max(LARGE, EXPANSION * given):
        return False
    return made <= given + GROWTH_LIMIT


def remove_dead(graph: Graph) -> None:
    """Drop nodes whose results nobody reads, and forget unread results (the first of a node stays)."""
    live: set[Value] = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not any(v in live for v in node.outputs if v is not None):
            continue
        node.outputs = [v if i == 0 or v in live else None for i, v in enumerate(node.outputs)]
        while node.outputs[-1] is None and len(node.outputs) > 1:
            node.outputs.pop()
        live.update(v for v in node.inputs if v is not None)
        kept.append(node)
    graph.nodes = kept[::-1]
    names = {node.name for node in kept}
    for operator in graph.operators:
        if not operator.removed and operator.name not in names:
            operator.removed = "nothing reads its result"


def _as_value(array: Array, value: Value | None) -> Array:
    """In the type that inference promised (reference operators are lax with scalars), and contiguous."""
    if value is not None and array.dtype != value.dtype and value.dtype != np.dtype(object):
        array = array.astype(value.dtype)
    # `ascontiguousarray` would turn a scalar into a vector.
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _divide(node: Node, a: Array, b: Array) -> Array | None:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not np.all(b):
        return None
    quotient = np.abs(a) // np.abs(b)  # integer division truncates towards zero
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient))


def _cast(node: Node, x: Array) -> Array | None:
    return x.astype(node.output.dtype) if node.output.dtype.kind in "iufb" else None


def _slice(node: Node, x: Array, *rest: Array) -> Array | None:
    if "lengths" not in node.attrs:
        return None
    index = [slice(None)] * x.ndim
    columns = (node.attrs[k] for k in ("axes", "starts", "ends", "steps"))
    for axis, start, end, step in zip(*columns, strict=True):
        index[axis] = slice(start, end if end >= 0 else None, step)
    if 0 in node.attrs["lengths"]:
        return np.zeros(node.output.dims, x.dtype)
    return x[tuple(index)]


def _split(node: Node, x: Array, *rest: Array) -> list[Array] | None:
    if "split" not in node.attrs:
        return None
    return list(np.split(x, np.cumsum(node.attrs["split"])[:-1], axis=node.attrs["axis"]))


def _shaped(node: Node, x: Array, *rest: Array | None) -> Array | None:
    return x.reshape(node.output.shape) if node.output.shape is not None else None


def _range(node: Node, start: Array, limit: Array, delta: Array) -> Array | None:
    if node.output.shape is None:
        return None
    steps = np.arange(node.output.shape[0], dtype=node.output.dtype)
    return np.asarray(start.reshape(()) + steps * delta.reshape(()))


def _reduction(ufunc: Any) -> Callable[..., Array | None]:
    def run(node: Node, x: Array, *rest: Array) -> Array | None:
        if "axes" not in node.attrs:
            return None
        return np.asarray(ufunc(x, axis=tuple(node.attrs["axes"]), keepdims=bool(node.attrs["keepdims"])))

    return run


def _plain(ufunc: Any) -> Callable[..., Array]:
    return lambda node, *operands: np.asarray(ufunc(*operands))


def _variadic(ufunc: Any) -> Callable[..., Array]:
    def run(node: Node, first: Array, *rest: Array) -> Array:
        for other in rest:
            first = ufunc(first, other)
        return first

    return run


#: Operator → evaluation on the canonical form; a function may decline with None.
_DIRECT: dict[str, Callable[..., Array | list[Array] | None]] = {
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _divide,
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Floor": _plain(np.floor),
    "Ceil": _plain(np.ceil),
    "Sqrt": _plain(np.sqrt),
    "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Equal": _plain(np.equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Where": _plain(np.where),
    "Min": _variadic(np.minimum),
    "Max": _variadic(np.maximum),
    "Identity": lambda node, x: x,
    "Cast": _cast,
    "Gather": lambda node, x, index: np.take(x, index, axis=node.attrs["axis"]),
    "Concat": lambda node, *parts: np.concatenate(parts, axis=node.attrs["axis"]),
    "Slice": _slice,
    "Split": _split,
    "Reshape": _shaped,
    "Squeeze": _shaped,
    "Unsqueeze": _shaped,
    "Flatten": _shaped,
    "Transpose": lambda node, x: np.transpose(x, node.attrs["perm"]),
    "Expand": lambda node, x, *rest: None if node.output.shape is None else np.broadcast_to(x, node.output.shape),
    "Tile": lambda node, x, *rest: np.tile(x, node.attrs["repeats"]) if "repeats" in node.attrs else None,
    "Range": _range,
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
}
