"""Seeded random graphs of a few operators each, and the small builder that named test graphs use too.

``random_graph(seed)`` picks steps from `STEPS`: each adds an operator (or a block such as attention) that fits a tensor
of the graph. All tensors that the graph shows are float32; shapes are tracked while it is built.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
LARGEST = 6000  # elements of a tensor


class Builder:
    """An ONNX graph under construction; methods return tensor names."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.numbers = np.random.default_rng(seed)
        self.shapes: dict[str, Shape] = {}
        self.inputs: list[tuple[str, Shape, Any]] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def input(self, *shape: int, dtype: Any = np.float32) -> str:
        name = self.name()
        self.inputs.append((name, shape, dtype))
        self.shapes[name] = shape
        return name

    def constant(self, data: Any, dtype: Any = None) -> str:
        name = self.name()
        self.initializers.append(numpy_helper.from_array(np.asarray(data, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int) -> str:
        return self.constant(self.numbers.standard_normal(shape) * 0.4, np.float32)

    def op(self, kind: str, inputs: Sequence[str], shape: Sequence[int] = (), outputs: int = 1, **attrs: Any) -> Any:
        """A node; the name of its output, or the names if there are several (their shapes are then not tracked)."""
        names = [self.name() for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"{kind}_{names[0]}", **attrs))
        if outputs > 1:
            return names
        self.shapes[names[0]] = tuple(shape)
        return names[0]

    def hidden(self, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        """A node whose result no random step may use (not a float, say)."""
        name: str = self.op(kind, inputs, **attrs)
        del self.shapes[name]
        return name

    def pick(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """A tensor whose shape fits, a recent one more often."""
        names = [n for n, shape in self.shapes.items() if fits(shape) and math.prod(shape) <= LARGEST]
        if not names:
            return None
        return self.random.choice(names[-6:] if self.random.random() < 0.7 else names)

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, shape, dtype in self.inputs
        ]
        results = [helper.make_value_info(name, onnx.TypeProto()) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", infos, results, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)

    def feeds(self) -> dict[str, Array]:
        """Random inputs: normal floats, integers in [-4, 5), bools."""
        result: dict[str, Array] = {}
        for name, shape, dtype in self.inputs:
            kind = np.dtype(dtype).kind
            drawn = self.numbers.standard_normal(shape) if kind == "f" else self.numbers.integers(-4, 5, shape)
            result[name] = np.asarray(drawn > 0 if kind == "b" else drawn).astype(dtype)
        return result


Step = Callable[[Builder, str, Shape], Any]
STEPS: list[Step] = []


def step(*, weight: int = 1) -> Callable[[Step], Step]:
    def register(function: Step) -> Step:
        STEPS.extend([function] * weight)
        return function

    return register


def random_graph(seed: int) -> Builder:
    """A builder whose graph is done; `unused` names its outputs."""
    g = Builder(seed)
    for _ in range(g.random.choice((1, 1, 2))):
        rank = g.random.choice((1, 2, 3, 3, 4, 4, 4, 5))
        extents = (1, 2, 3, 4, 5, 6, 7, 8, 8, 12, 16, 17) if rank < 4 else (1, 1, 2, 3, 4, 4, 6, 8)
        g.input(*(g.random.choice(extents) for _ in range(rank)))
    wanted = g.random.choice((3, 5, 8, 12))
    for _ in range(200):
        x = g.pick()
        assert x is not None
        wanted -= g.random.choice(STEPS)(g, x, g.shapes[x]) is not None
        if wanted <= 0:
            break
    return g


def unused(g: Builder) -> list[str]:
    """The outputs of a random graph: all tensors that nothing reads, and sometimes one that something does."""
    read = {name for node in g.nodes for name in node.input}
    inputs = {name for name, _, _ in g.inputs}
    ends = [name for name in g.shapes if name not in read and name not in inputs]
    inner = [name for name in g.shapes if name in read and name not in inputs]
    if inner and g.random.random() < 0.5:
        ends.append(g.random.choice(inner))
    return ends or [next(iter(g.shapes))]


def _with(shape: Shape, axis: int, extent: int) -> Shape:
    return (*shape[:axis], extent, *shape[axis + 1 :])


@step(weight=2)
def unary(g: Builder, x: str, shape: Shape) -> str:
    return g.op(g.random.choice(("Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Erf", "Softplus", "Elu")), [x], shape)


@step(weight=2)
def binary(g: Builder, x: str, shape: Shape) -> str:
    y = g.pick(lambda other: other == shape) or x
    return g.op(g.random.choice(("Add", "Mul", "Sub", "Max", "Min")), [x, y], shape)


@step()
def broadcast(g: Builder, x: str, shape: Shape) -> str:
    start = g.random.randrange(len(shape) + 1)
    other = [n if g.random.random() < 0.6 else 1 for n in shape][start:]
    operands = [x, g.weight(*other) if g.random.random() < 0.6 else g.input(*other)]
    g.random.shuffle(operands)
    return g.op(g.random.choice(("Add", "Mul", "Sub")), operands, shape)


@step(weight=2)
def transpose(g: Builder, x: str, shape: Shape) -> str | None:
    if not shape:
        return None
    perm = g.random.sample(range(len(shape)), len(shape))
    return g.op("Transpose", [x], [shape[p] for p in perm], perm=perm)


@step(weight=2)
def reshape(g: Builder, x: str, shape: Shape) -> str:
    left, extents = math.prod(shape), []
    while left > 1 and len(extents) < 4:
        extents.append(g.random.choice([d for d in range(1, left + 1) if left % d == 0]))
        left //= extents[-1]
    return g.op("Reshape", [x, g.ints(*extents, left)], [*extents, left])


@step(weight=2)
def strided_slice(g: Builder, x: str, shape: Shape) -> str | None:
    axis = g.random.randrange(len(shape)) if shape else 0
    if not shape or shape[axis] < 2:
        return None
    low, pace = g.random.randrange(shape[axis] - 1), g.random.choice((1, 1, 2, -1, -2))
    high = g.random.randrange(low + 1, shape[axis] + 1)
    start, end = (low, high) if pace > 0 else (high - 1, low - 1 if low else -10000)
    operands = [x, g.ints(start), g.ints(end), g.ints(axis), g.ints(pace)]
    return g.op("Slice", operands, _with(shape, axis, -(-(high - low) // abs(pace))))


@step()
def split_concat(g: Builder, x: str, shape: Shape) -> str | None:
    """Equal parts, one of them changed, in another order (a roll if none is)."""
    axis = g.random.randrange(len(shape)) if shape else 0
    count = next((n for n in (2, 3) if shape and shape[axis] % n == 0), 0)
    if not count:
        return None
    parts = g.op("Split", [x], outputs=count, axis=axis, num_outputs=count)
    part = _with(shape, axis, shape[axis] // count)
    if g.random.random() < 0.5:
        parts[0] = g.op("Sigmoid", [parts[0]], part)
    return g.op("Concat", parts[1:] + parts[:1], shape, axis=axis)


@step(weight=3)
def concat(g: Builder, x: str, shape: Shape) -> str | None:
    """Of tensors as they are or computed for it; sometimes one twice, or in two concats."""
    if not shape:
        return None
    axis = g.random.randrange(len(shape))
    y = g.pick(lambda other: len(other) == len(shape) and _with(other, axis, 1) == _with(shape, axis, 1))
    assert y is not None
    if g.random.random() < 0.5:
        y = str(g.op("Tanh", [y], g.shapes[y]))
    pieces = [x, y] if g.random.random() < 0.8 else [x, y, x]
    total = sum(g.shapes[piece][axis] for piece in pieces)
    if g.random.random() < 0.3:
        g.op("Concat", pieces[::-1], _with(shape, axis, total), axis=axis)
    return g.op("Concat", pieces, _with(shape, axis, total), axis=axis)


@step()
def pad(g: Builder, x: str, shape: Shape) -> str | None:
    if not shape:
        return None
    mode = g.random.choice(("constant", "constant", "reflect" if min(shape) > 2 else "constant", "edge"))
    amounts = [g.random.randint(0, 2) if g.random.random() < 0.4 else 0 for _ in 2 * shape]
    out = [n + b + a for n, b, a in zip(shape, amounts[: len(shape)], amounts[len(shape) :], strict=True)]
    return g.op("Pad", [x, g.ints(*amounts)], out, mode=mode)


@step()
def gather(g: Builder, x: str, shape: Shape) -> str | None:
    """By constants, or by positions that the graph computes."""
    if not shape:
        return None
    axis = g.random.randrange(len(shape))
    if g.random.random() < 0.5:
        indices = g.numbers.integers(-shape[axis], shape[axis], g.random.choice(((), (3,), (2, 2))))
        out = (*shape[:axis], *indices.shape, *shape[axis + 1 :])
        return g.op("Gather", [x, g.constant(indices, np.int64)], out, axis=axis)
    where = g.hidden("ArgMax", [x], axis=axis, keepdims=1)
    return g.op("GatherElements", [x, where], _with(shape, axis, 1), axis=axis)


@step(weight=2)
def reduce(g: Builder, x: str, shape: Shape) -> str | None:
    if not shape:
        return None
    axes = sorted(g.random.sample(range(len(shape)), g.random.randint(1, len(shape))))
    keep = g.random.randrange(2)
    out = [1 if a in axes else n for a, n in enumerate(shape) if keep or a not in axes]
    kind = g.random.choice(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceLogSumExp"))
    return g.op(kind, [x, g.ints(*axes)], out, keepdims=keep)


@step()
def softmax(g: Builder, x: str, shape: Shape) -> str | None:
    axis = g.random.randrange(len(shape)) if shape else 0
    return g.op(g.random.choice(("Softmax", "LogSoftmax")), [x], shape, axis=axis) if shape else None


@step()
def layer_norm(g: Builder, x: str, shape: Shape) -> str | None:
    if not shape or shape[-1] < 4:
        return None
    return g.op("LayerNormalization", [x, g.weight(shape[-1]), g.weight(shape[-1])], shape, axis=-1)


@step(weight=2)
def dense(g: Builder, x: str, shape: Shape) -> str | None:
    if not shape:
        return None
    columns = g.random.choice((1, 2, 3, 5, 8, 12, 16, 17, 33, 40))
    y = g.op("MatMul", [x, g.weight(shape[-1], columns)], _with(shape, len(shape) - 1, columns))
    y = g.op("Add", [y, g.weight(columns)], g.shapes[y])
    return g.op("Relu", [y], g.shapes[y]) if g.random.random() < 0.4 else y


@step()
def gram(g: Builder, x: str, shape: Shape) -> str | None:
    """``x @ x.T`` over the last two axes."""
    if len(shape) < 2:
        return None
    perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    turned = g.op("Transpose", [x], [shape[p] for p in perm], perm=perm)
    return g.op("MatMul", [x, turned], _with(shape, len(shape) - 1, shape[-2]))


@step(weight=3)
def conv(g: Builder, x: str, shape: Shape) -> str | None:
    """1-D to 3-D; dense, grouped or depthwise."""
    if not 3 <= len(shape) <= 5 or math.prod(shape) > 3000:
        return None
    rank, channels = len(shape) - 2, shape[1]
    groups = g.random.choice([1, channels, *(d for d in range(1, channels + 1) if channels % d == 0)])
    kernel, strides, dilations, before, after = (
        [g.random.choice(choices) for _ in range(rank)]
        for choices in ((1, 2, 3, 3), (1, 1, 2), (1, 1, 2), (0, 1, 1, 2), (0, 1, 1))
    )
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    padded = [n + b + a for n, b, a in zip(shape[2:], before, after, strict=True)]
    out = [(n - span) // s + 1 for n, span, s in zip(padded, spans, strides, strict=True)]
    if min(out) < 1:
        return None
    many = groups * g.random.choice((1, 2, 4))
    attrs = {"group": groups, "strides": strides, "dilations": dilations, "pads": before + after}
    y = g.op("Conv", [x, g.weight(many, channels // groups, *kernel), g.weight(many)], (shape[0], many, *out), **attrs)
    return g.op("HardSwish", [y], g.shapes[y]) if g.random.random() < 0.4 else y


@step()
def pool(g: Builder, x: str, shape: Shape) -> str | None:
    if not 3 <= len(shape) <= 4 or min(shape[2:]) < 2:
        return None
    pads = [g.random.randrange(2) for _ in range(2 * len(shape) - 4)]
    out = [n + b + a - 1 for n, b, a in zip(shape[2:], pads, pads[len(shape) - 2 :], strict=False)]
    kind = g.random.choice(("MaxPool", "AveragePool"))
    return g.op(kind, [x], (*shape[:2], *out), kernel_shape=[2] * len(out), pads=pads)


@step()
def resize(g: Builder, x: str, shape: Shape) -> str | None:
    if len(shape) != 4 or math.prod(shape) > 800:
        return None
    scales = g.constant((1, 1, 2, 3), np.float32)
    mode, where = g.random.choice((("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners")))
    out = (*shape[:2], 2 * shape[2], 3 * shape[3])
    attrs = {"nearest_mode": "floor"} if mode == "nearest" else {}
    return g.op("Resize", [x, "", scales], out, mode=mode, coordinate_transformation_mode=where, **attrs)


@step()
def select(g: Builder, x: str, shape: Shape) -> str:
    y = g.pick(lambda other: other == shape) or x
    smaller = g.hidden("Less", [x, g.constant(0.1, np.float32)])
    return g.op("Where", [smaller, x, y], shape)


@step()
def through_double(g: Builder, x: str, shape: Shape) -> str | None:
    """To float64, transposed there, and back."""
    if not shape:
        return None
    wide = g.hidden("Cast", [x], to=TensorProto.DOUBLE)
    turned = g.hidden("Transpose", [wide], perm=list(range(len(shape)))[::-1])
    return g.op("Cast", [turned], shape[::-1], to=TensorProto.FLOAT)


@step()
def windows(g: Builder, x: str, shape: Shape) -> str | None:
    """Swin's window partition."""
    if len(shape) != 4 or shape[1] % 2 or shape[2] % 2:
        return None
    b, h, w, c = shape
    cut = g.op("Reshape", [x, g.ints(b, h // 2, 2, w // 2, 2, c)], (b, h // 2, 2, w // 2, 2, c))
    turned = g.op("Transpose", [cut], (b, h // 2, w // 2, 2, 2, c), perm=[0, 1, 3, 2, 4, 5])
    return g.op("Reshape", [turned, g.ints(b * h * w // 4, 4, c)], (b * h * w // 4, 4, c))


@step(weight=2)
def attention(g: Builder, x: str, shape: Shape) -> str | None:
    """Self-attention with a fused QKV product, mask, output product and residual."""
    if len(shape) != 3 or shape[2] % 2:
        return None
    b, t, c = shape
    heads, depth = 2, c // 2
    qkv = g.op("MatMul", [x, g.weight(c, 3 * c)], (b, t, 3 * c))
    cut = g.op("Reshape", [qkv, g.ints(b, t, 3, heads, depth)], (b, t, 3, heads, depth))
    turned = g.op("Transpose", [cut], (3, b, heads, t, depth), perm=[2, 0, 3, 1, 4])
    q, k, v = (g.op("Gather", [turned, g.constant(i, np.int64)], (b, heads, t, depth), axis=0) for i in range(3))
    keys = g.op("Transpose", [k], (b, heads, depth, t), perm=[0, 1, 3, 2])
    scores = g.op("MatMul", [q, keys], (b, heads, t, t))
    masked = g.op("Add", [scores, g.weight(1, heads, t, t)], (b, heads, t, t))
    mixed = g.op("MatMul", [g.op("Softmax", [masked], (b, heads, t, t), axis=-1), v], (b, heads, t, depth))
    back = g.op("Transpose", [mixed], (b, t, heads, depth), perm=[0, 2, 1, 3])
    joined = g.op("MatMul", [g.op("Reshape", [back, g.ints(b, t, c)], shape), g.weight(c, c)], shape)
    return g.op("Add", [joined, x], shape)
