"""Bring nodes to one canonical form, whatever opset they are from: Node → the same Node, changed in place.

ONNX moved axes, sizes and bounds between attributes and inputs over the years. After this step an operator has one
form, and its definition need not know the others. An input that became an attribute leaves `Node.inputs` and is kept
in `Node.baked` for the host. Where such an input is *not* constant, the node keeps it and the attribute is absent: it
can only run on the host.

| operator | inputs | attributes (beside the schema's, whose defaults are always filled in) |
|---|---|---|
| any with `axis` | | `axis` ≥ 0 |
| Squeeze, Unsqueeze | x | `axes` (sorted, ≥ 0; Squeeze without axes: all of extent 1; Unsqueeze: of the output) |
| Reduce* | x | `axes` (sorted, ≥ 0; every axis where ONNX gives none, [] where `noop_with_empty_axes`), `keepdims` |
| Split | x | `axis`, `split` (one size per output) |
| Slice | x | `axes`, `starts` (in range, ≥ 0), `steps` (≠ 0), `lengths` (of the result), `ends` = start + length·step |
| Pad | x [, value] | `pads` (all begins, then all ends; full rank; negative crops), `mode`; absent value: 0 |
| Clip | x | `min`, `max` (number or None); with non-constant bounds: x, min, max and neither attribute |
| TopK | x | `k`, `axis`, `largest`, `sorted` |
| Reshape, Expand, Tile | x | `repeats` for Tile; the rest is in the output's shape (also Flatten) |
| ConstantOfShape | | is Expand of a scalar constant |
| Transpose | x | `perm`, always |
| Resize (and Upsample) | x | `scales` (a float per axis), `roi` (2·rank floats or None), the modes of Resize 11 on |
| Softmax, LogSoftmax, Hardmax | x | `axis`, `flatten`: below opset 13 the axes from `axis` on are one |
| Conv*, *Pool with a window | | `kernel_shape`, `strides`, `dilations`, `pads`, `auto_pad` resolved to "NOTSET" |
| CumSum, CumProd | x | `axis` |
| Trilu | x | `k`, `upper` |
| OneHot | indices, values | `axis`, `depth` |
| CastLike | x | is Cast with `to` |
| Dropout (inference) | x | is Identity |
| BatchNormalization (inference) | x, scale, B, mean, var | `epsilon`; one output |
| Einsum | | `equation` without blanks |
| Scatter | | is ScatterElements |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartmem.errors import ModelError
from smartmem.frontend import windows
from smartmem.frontend.resize import normalise_resize
from smartmem.frontend.spell import bake, respell
from smartmem.frontend.tensors import elem_type_of
from smartmem.graph.ir import Node, Value

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Context:
    """What a rule may ask: `known` contents of constants, and `constant(hint, array)` to make a new one."""

    known: Mapping[Value, Array]
    constant: Callable[[str, Array], Value]

    def of(self, node: Node, index: int) -> Array | None:
        """The contents of input `index`, None where it is absent or not constant."""
        value = operand(node, index)
        return None if value is None else self.known.get(value)


def normalise(node: Node, context: Context) -> None:
    """Bring `node` to the canonical form of the table above.

    Raises:
        ModelError: an axis or size does not fit the operands.
    """
    if node.domain != "":
        return
    if "axis" in node.attrs:
        _normalise_axis(node)
    rule = _RULES.get(node.op)
    if rule is not None:
        rule(node, context)
    elif node.op.startswith("Reduce"):
        _reduce(node, context)


def operand(node: Node, index: int) -> Value | None:
    """Input `index`, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def _shape(value: Value | None) -> tuple[int, ...] | None:
    return None if value is None else value.shape


def _in_shape(node: Node) -> tuple[int, ...] | None:
    return _shape(operand(node, 0))


def _out_shape(node: Node) -> tuple[int, ...] | None:
    return _shape(next((v for v in node.outputs if v is not None), None))


def _wrap(axis: int, rank: int, node: Node) -> int:
    """`axis` counted from the front."""
    if not -rank <= axis < max(rank, 1):
        raise ModelError(f"{node.describe()}: axis {axis} is out of range for rank {rank}; export the model again")
    return axis + rank if axis < 0 else axis


def _normalise_axis(node: Node) -> None:
    axis = node.attrs["axis"]
    shape = _out_shape(node) if node.op in ("OneHot", "ConcatFromSequence") else _in_shape(node)
    if node.op in ("Compress", "Unique") and axis is None:
        return
    if shape is None or not isinstance(axis, int):
        return
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        scale = _shape(operand(node, 1))
        if scale is None or scale in ((), (1,)):  # one scale for all: the axis means nothing
            return
    if node.op in ("Flatten", "Softmax", "LogSoftmax", "Hardmax") and axis == len(shape):
        return
    node.attrs["axis"] = _wrap(axis, len(shape), node)


def _axes(node: Node, context: Context, index: int) -> list[int] | bool | None:
    """The axes as written: from the attribute or input `index`. None where absent, False where not constant."""
    if operand(node, index) is not None:
        array = context.of(node, index)
        if array is None:
            return False
        bake(node, {index: array})
        return [int(a) for a in array.reshape(-1)]
    written = node.attrs.get("axes")
    return None if written is None else [int(a) for a in written]


def _squeeze(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    axes = _axes(node, context, 1)
    if shape is None or axes is False:
        return
    if axes is None:
        axes = [i for i, extent in enumerate(shape) if extent == 1]
    assert isinstance(axes, list)
    _respell_axes(node, sorted(_wrap(a, len(shape), node) for a in axes))


def _unsqueeze(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    axes = _axes(node, context, 1)
    if shape is not None and isinstance(axes, list):
        _respell_axes(node, sorted(_wrap(a, len(shape) + len(axes), node) for a in axes))


def _respell_axes(node: Node, axes: list[int]) -> None:
    """To opset 13: the reference's older forms depend on the order of the axes."""
    node.baked = {}
    respell(node, node.op, 13, [node.inputs[0], None], {})
    bake(node, {1: np.asarray(axes, np.int64)})
    node.attrs["axes"] = axes


def _reduce(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    axes = _axes(node, context, 1)
    noop = bool(node.attrs.pop("noop_with_empty_axes", 0))
    node.attrs.pop("axes", None)
    if shape is None or axes is False:
        return
    if not axes:
        axes = [] if noop else list(range(len(shape)))
    assert isinstance(axes, list)
    node.attrs["axes"] = sorted({_wrap(a, len(shape), node) for a in axes})


def _split(node: Node, context: Context) -> None:
    node.attrs.pop("num_outputs", None)
    if any(v is None or v.shape is None for v in node.outputs):
        return
    if operand(node, 1) is not None:
        sizes = context.of(node, 1)
        if sizes is None:
            return
        bake(node, {1: sizes})
    axis = node.attrs["axis"]
    node.attrs["split"] = [v.dims[axis] for v in node.outputs if v is not None]


def _slice(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    if node.version < 10:
        starts, ends, axes = (node.attrs.get(k) for k in ("starts", "ends", "axes"))
        steps = None
    else:
        given = [context.of(node, i) for i in range(1, 5)]
        if any(a is None and operand(node, i + 1) is not None for i, a in enumerate(given)):
            return
        starts, ends, axes, steps = (None if a is None else [int(v) for v in a.reshape(-1)] for a in given)
    if shape is None or starts is None or ends is None:
        return
    axes = list(range(len(starts))) if axes is None else [_wrap(int(a), len(shape), node) for a in axes]
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ModelError(f"{node.describe()}: starts, ends, axes and steps differ in length; export the model again")
    rows = []
    for axis, start, end, step in sorted(zip(axes, starts, ends, steps, strict=True)):
        if step == 0:
            raise ModelError(f"{node.describe()}: step 0 along axis {axis}; export the model again")
        span = range(*slice(_finite(start), _finite(end), step).indices(shape[axis]))
        if step < 0 and end < -shape[axis]:  # Python reads a very negative end as "through index 0", as ONNX does
            span = range(span.start, -1, step)
        begin = span.start if len(span) else 0
        rows.append((axis, begin, step, len(span), begin + len(span) * step))
    node.attrs["axes"], node.attrs["starts"], node.attrs["steps"], node.attrs["lengths"], node.attrs["ends"] = (
        [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], [], []]
    )
    if node.version >= 10:
        bake(node, {i: a for i, a in enumerate(given, 1) if a is not None})


def _finite(bound: int) -> int:
    """Bounds such as INT64_MIN mean "to the end"."""
    return max(-(2**62), min(2**62, bound))


def _pad(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    if node.version < 11:
        value = node.attrs.pop("value", 0.0)
        pads = node.attrs["pads"]
        fill = context.constant(f"{node.name}/value", np.asarray(value, node.output.dtype))
        respell(node, "Pad", 13, [node.inputs[0], None, fill], {"mode": node.attrs["mode"]})
        bake(node, {1: np.asarray(pads, np.int64)})
        node.attrs["pads"] = [int(p) for p in pads]
        return
    given, axes = context.of(node, 1), context.of(node, 3)
    if given is None or shape is None or (axes is None and operand(node, 3) is not None):
        return
    pads = [int(p) for p in given.reshape(-1)]
    if axes is not None:
        full = [0] * (2 * len(shape))
        for i, axis in enumerate(axes.reshape(-1)):
            at = _wrap(int(axis), len(shape), node)
            full[at], full[at + len(shape)] = pads[i], pads[i + len(axes)]
        pads = full
    if len(pads) != 2 * len(shape):
        raise ModelError(f"{node.describe()}: {len(pads)} pads for rank {len(shape)}; export the model again")
    node.attrs["pads"] = pads
    bake(node, {1: given} if axes is None else {1: given, 3: axes})


def _clip(node: Node, context: Context) -> None:
    if node.version < 11:
        node.attrs["min"], node.attrs["max"] = (_bound(node.attrs.get(k)) for k in ("min", "max"))
        return
    low, high = context.of(node, 1), context.of(node, 2)
    for index, array in ((1, low), (2, high)):
        if array is None and operand(node, index) is not None:
            return
    node.attrs["min"], node.attrs["max"] = (None if a is None else a.reshape(-1)[0].item() for a in (low, high))
    bake(node, {i: a for i, a in ((1, low), (2, high)) if a is not None})


def _bound(value: float | None) -> float | None:
    """Clip below opset 11 spells "no bound" as the largest float."""
    return None if value is None or abs(value) >= float(np.finfo(np.float32).max) else value


def _topk(node: Node, context: Context) -> None:
    k = context.of(node, 1)
    if k is not None:
        node.attrs["k"] = int(k.reshape(-1)[0])
        bake(node, {1: k})
    node.attrs.setdefault("largest", 1)
    node.attrs.setdefault("sorted", 1)


def _to_output_shape(node: Node, context: Context) -> None:
    """Reshape, Expand: the target is the output's shape."""
    shape = _out_shape(node)
    if shape is not None and operand(node, 1) is not None:
        # Fed to the host as resolved, so that 0 and -1 need no second reading; Reshape's 0 would mean "copy".
        resolved = np.asarray(shape, np.int64)
        bake(node, {1: context.of(node, 1) if 0 in shape and context.of(node, 1) is not None else resolved})


def _tile(node: Node, context: Context) -> None:
    repeats = context.of(node, 1)
    if repeats is not None:
        node.attrs["repeats"] = [int(r) for r in repeats.reshape(-1)]
        bake(node, {1: repeats})


def _constant_of_shape(node: Node, context: Context) -> None:
    shape = _out_shape(node)
    if shape is None:
        return
    value = node.attrs.get("value")
    scalar = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    respell(node, "Expand", 13, [context.constant(f"{node.name}/value", scalar), None], {})
    bake(node, {1: np.asarray(shape, np.int64)})


def _transpose(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    if shape is not None and "perm" not in node.attrs:
        node.attrs["perm"] = list(reversed(range(len(shape))))


def _softmax(node: Node, context: Context) -> None:
    shape = _in_shape(node)
    axis = node.attrs["axis"]
    # Flattening the last axis alone is no flattening.
    node.attrs["flatten"] = node.version < 13 and (shape is None or axis != len(shape) - 1)


def _axis_input(node: Node, context: Context) -> None:
    """CumSum, CumProd: the axis is an input."""
    array, shape = context.of(node, 1), _in_shape(node)
    if array is not None and shape is not None:
        node.attrs["axis"] = _wrap(int(array.reshape(-1)[0]), len(shape), node)
        bake(node, {1: array})


def _trilu(node: Node, context: Context) -> None:
    k = context.of(node, 1)
    if k is not None or operand(node, 1) is None:
        node.attrs["k"] = 0 if k is None else int(k.reshape(-1)[0])
        bake(node, {} if k is None else {1: k})


def _one_hot(node: Node, context: Context) -> None:
    depth = context.of(node, 1)
    if depth is not None:
        node.attrs["depth"] = int(depth.reshape(-1)[0])
        bake(node, {1: depth})


def _cast_like(node: Node, context: Context) -> None:
    to = elem_type_of(node.output.dtype)
    saturate = {"saturate": node.attrs["saturate"]} if "saturate" in node.attrs else {}
    respell(node, "Cast", 19 if saturate else 13, [node.inputs[0]], {"to": to, **saturate})


def _dropout(node: Node, context: Context) -> None:
    training = context.of(node, 2)
    if operand(node, 2) is not None and (training is None or bool(training.reshape(-1)[0])):
        return
    if len(node.outputs) == 1 or node.outputs[1] is None:
        respell(node, "Identity", 13, [node.inputs[0]], {})
        del node.outputs[1:]


def _batch_norm(node: Node, context: Context) -> None:
    if not node.attrs.get("training_mode", 0) and all(v is None for v in node.outputs[1:]):
        # To opset 15: the reference's older forms update the statistics.
        del node.outputs[1:]
        respell(node, "BatchNormalization", 15, node.inputs, {"epsilon": node.attrs["epsilon"]})


def _einsum(node: Node, context: Context) -> None:
    node.attrs["equation"] = node.attrs["equation"].replace(" ", "")


def _scatter(node: Node, context: Context) -> None:
    """Scatter (9, 10) is ScatterElements."""
    respell(node, "ScatterElements", 13, node.inputs, {"axis": node.attrs["axis"]})
    node.attrs["reduction"] = "none"


def _gather_nd(node: Node, context: Context) -> None:
    node.attrs.setdefault("batch_dims", 0)


def _window(node: Node, context: Context) -> None:
    windows.normalise_window(node)


def _resize(node: Node, context: Context) -> None:
    normalise_resize(node, context.known)


Rule = Callable[[Node, Context], None]
_RULES: dict[str, Rule] = {
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Clip": _clip,
    "TopK": _topk,
    "Reshape": _to_output_shape,
    "Expand": _to_output_shape,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Hardmax": _softmax,
    "CumSum": _axis_input,
    "CumProd": _axis_input,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "CastLike": _cast_like,
    "Dropout": _dropout,
    "BatchNormalization": _batch_norm,
    "Einsum": _einsum,
    "GatherND": _gather_nd,
    "Scatter": _scatter,
    "Resize": _resize,
    "Upsample": _resize,
    **dict.fromkeys(windows.WINDOWED, _window),
}
