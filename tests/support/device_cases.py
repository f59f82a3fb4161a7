"""Small graphs for every device schedule, with the sizes at which one goes wrong: odd widths, tails, one of everything.

`cases()` gives them with inputs and the results of the onnx package's reference, which follows numpy where runtimes
differ (a NaN in a maximum). Each says which families must compute it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from tests.support.random_graphs import Array, Builder

Build = Callable[[Builder], list[str]]


@dataclass
class DeviceCase:
    """A graph and what it must give.

    Attributes:
        families: schedules of which each must have made a kernel of it at level full.
        exact: results are integers, or fall on either side of a step: halves may change them.
    """

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Array]
    expected: list[Array]
    families: frozenset[str]
    exact: bool


_BUILDERS: list[tuple[Build, frozenset[str], bool]] = []


def case(*families: str, exact: bool = False) -> Callable[[Build], Build]:
    def register(function: Build) -> Build:
        _BUILDERS.append((function, frozenset(families), exact))
        return function

    return register


def cases() -> list[DeviceCase]:
    result = []
    for number, (build, families, exact) in enumerate(_BUILDERS):
        g = Builder(number)
        model = g.model(build(g))
        feeds = g.feeds()
        for name, values in SPECIAL.get(build.__name__, {}).items():
            feeds[name] = values
        with np.errstate(all="ignore"):
            expected = ReferenceEvaluator(model).run(None, feeds)
        result.append(DeviceCase(build.__name__, model, feeds, expected, families, exact))
    return result


SPECIAL: dict[str, dict[str, Array]] = {}
"""Inputs that a case does not want at random, by case and tensor."""


@case("pointwise")
def functions_of_one_value(g: Builder) -> list[str]:
    x = g.input(3, 8)
    inside = g.op("Tanh", [g.op("Mul", [x, g.constant(0.5, np.float32)], (3, 8))], (3, 8))  # in (-1, 1)
    above = g.op("Add", [g.op("Abs", [x], (3, 8)), g.constant(1.5, np.float32)], (3, 8))
    anywhere = (
        "Abs", "Neg", "Exp", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Sigmoid", "Softplus", "Softsign",
        "Elu", "Selu", "Celu", "HardSwish", "HardSigmoid", "LeakyRelu", "Gelu", "Mish", "Erf", "Relu",
    )  # fmt: skip
    results = [g.op(kind, [x], (3, 8)) for kind in anywhere]
    results += [g.op(kind, [inside], (3, 8)) for kind in ("Tan", "Asin", "Acos", "Atanh")]
    return results + [g.op(kind, [above], (3, 8)) for kind in ("Log", "Sqrt", "Reciprocal", "Acosh")]


@case(exact=True)
def steps_of_one_value(g: Builder) -> list[str]:
    x = g.input(5, 7)
    twice = g.op("Mul", [x, g.constant(2.0, np.float32)], (5, 7))
    return [g.op(kind, [twice], (5, 7)) for kind in ("Floor", "Ceil", "Round", "Sign", "IsNaN", "IsInf")]


@case("pointwise")
def functions_of_two_values(g: Builder) -> list[str]:
    x, y = g.input(4, 12), g.input(12)
    above = g.op("Add", [g.op("Abs", [y], (12,)), g.constant(1.0, np.float32)], (12,))
    results = [g.op(kind, [x, y], (4, 12)) for kind in ("Add", "Sub", "Mul", "Max", "Min", "PRelu")]
    results += [g.op("Div", [x, above], (4, 12)), g.op("Pow", [above, x], (4, 12))]
    clipped = g.op("Clip", [x, g.constant(-0.5, np.float32), g.constant(0.7, np.float32)], (4, 12))
    return [*results, clipped, g.op("Mean", [x, y], (4, 12)), g.op("Sum", [x, y, x], (4, 12))]


@case(exact=True)
def remainders(g: Builder) -> list[str]:
    x, y = g.input(3, 8), g.input(8)
    i, j = g.input(5, 6, dtype=np.int64), g.constant([3, -3, 2, 5, -1, 4], np.int64)
    return [
        g.op("Mod", [x, y], fmod=1), g.op("Mod", [i, j]), g.op("Mod", [i, j], fmod=1), g.op("Div", [i, j]),
    ]  # fmt: skip


@case(exact=True)
def integers(g: Builder) -> list[str]:
    results = []
    for dtype in (np.int64, np.int32, np.int16, np.int8, np.uint8):
        x, y = g.input(3, 8, dtype=dtype), g.input(8, dtype=dtype)
        results += [g.op(kind, [x, y]) for kind in ("Add", "Mul", "Sub")]
    x, y = g.input(4, 5, dtype=np.int64), g.input(5, dtype=np.int64)
    results += [g.op(kind, [x, y]) for kind in ("Max", "Min", "Equal", "Less", "GreaterOrEqual", "BitwiseAnd")]
    large = g.op("Mul", [x, g.constant(1 << 40, np.int64)])
    return [
        *results,
        g.op("Add", [large, y]),
        g.op("Abs", [x]),
        g.op("Neg", [x]),
        g.op("ReduceSum", [large, g.ints(1)]),
    ]


@case(exact=True)
def truths(g: Builder) -> list[str]:
    x, y = g.input(5, 8, dtype=np.bool_), g.input(8, dtype=np.bool_)
    a, b = g.input(5, 8), g.input(5, 8)
    results = [g.op(kind, [x, y]) for kind in ("And", "Or", "Xor", "Equal")]
    results += [g.op(kind, [a, b]) for kind in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal")]
    turned = g.op("Transpose", [g.op("Not", [g.op("Less", [a, b])])], perm=[1, 0])
    return [*results, turned, g.op("Where", [g.op("And", [x, y]), a, b])]


@case(exact=True)
def casts(g: Builder) -> list[str]:
    x, i, b = g.input(3, 8), g.input(3, 8, dtype=np.int64), g.input(3, 8, dtype=np.bool_)
    tripled = g.op("Mul", [x, g.constant(3.0, np.float32)], (3, 8))
    kinds = [TensorProto.INT64, TensorProto.INT32, TensorProto.INT8, TensorProto.BOOL, TensorProto.DOUBLE]
    results = [g.op("Cast", [tripled], to=kind) for kind in kinds]
    results += [g.op("Cast", [i], to=kind) for kind in (TensorProto.FLOAT, TensorProto.UINT8, TensorProto.BOOL)]
    return [*results, g.op("Cast", [b], to=TensorProto.FLOAT), g.op("Cast", [b], to=TensorProto.INT64)]


@case(exact=True)
def halves_inside_of_a_kernel(g: Builder) -> list[str]:
    """Rounded though they are never in memory: ties, halves below 2^-14, what is too large."""
    x = g.input(4, 8)
    odd = [1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-24, 1.5 * 2.0**-25, 2.0**-25, 5.97e-8, 3.1e-5, 6.1e-5]
    large = [65504, 65519.9, 65520, 1e30, np.inf, -np.inf, np.nan, -0.0]
    SPECIAL["halves_inside_of_a_kernel"] = {
        x: np.array([odd, large, np.negative(odd), np.linspace(-3, 3, 8)], np.float32)
    }
    half = g.hidden("Cast", [x], to=TensorProto.FLOAT16)
    brain = g.hidden("Cast", [x], to=TensorProto.BFLOAT16)
    return [g.op("Cast", [half], to=TensorProto.FLOAT), g.op("Cast", [brain], to=TensorProto.FLOAT)]


@case(exact=True)
def extrema_keep_a_nan(g: Builder) -> list[str]:
    x, y = g.input(4, 8), g.input(4, 8)
    odd = np.array([np.nan, np.inf, -np.inf, 1.0, 0.0, -0.0, 2.0, np.nan], np.float32)
    SPECIAL["extrema_keep_a_nan"] = {
        x: np.stack([odd, np.roll(odd, 1), np.arange(8, dtype=np.float32), odd[::-1]]),
        y: np.stack([np.roll(odd, 3), odd, np.full(8, np.nan, np.float32), np.ones(8, np.float32)]),
    }
    results = [g.op(kind, [x, y], (4, 8)) for kind in ("Max", "Min")]
    for axis in (0, 1):
        results += [g.op(kind, [x, g.ints(axis)], keepdims=0) for kind in ("ReduceMax", "ReduceMin")]
    return [*results, g.op("Exp", [x], (4, 8)), g.op("Add", [x, y], (4, 8)), g.op("IsNaN", [x]), g.op("IsInf", [x])]


@case(exact=True)
def positions_of_extrema(g: Builder) -> list[str]:
    x, i = g.input(5, 7, 8), g.input(5, 8, dtype=np.int64)
    results = [
        g.op(kind, [x], axis=axis, keepdims=0, select_last_index=last)
        for kind in ("ArgMax", "ArgMin") for axis in (0, 1, 2) for last in (0, 1)
    ]  # fmt: skip
    return [*results, g.op("ArgMax", [i], axis=1), g.op("ArgMin", [i], axis=0, select_last_index=1)]


@case("row reduction")
def rows_of_awkward_widths(g: Builder) -> list[str]:
    results = []
    for width in (1, 3, 4, 5, 49, 197, 1000):
        x = g.input(3, width)
        results.append(g.op("Softmax", [x], (3, width), axis=-1))
        if width > 1:
            results.append(g.op("LayerNormalization", [x, g.weight(width), g.weight(width)], (3, width), axis=-1))
    return results


@case("row reduction")
def rows_across_memory(g: Builder) -> list[str]:
    x, y = g.input(2, 12, 7), g.input(2, 49, 8)
    return [
        g.op("Softmax", [x], (2, 12, 7), axis=1), g.op("LogSoftmax", [y], (2, 49, 8), axis=1),
        g.op("LayerNormalization", [g.op("Transpose", [x], (2, 7, 12), perm=[0, 2, 1]), g.weight(12)], (2, 7, 12)),
    ]  # fmt: skip


@case()
def reductions_of_every_kind(g: Builder) -> list[str]:
    x, y = g.input(6, 5, 8), g.input(2, 33, 7)
    kinds = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
             "ReduceSumSquare")  # fmt: skip
    results = [g.op(kind, [x, g.ints(axis)], keepdims=0) for kind in kinds for axis in (1, 2)]
    results.append(g.op("ReduceProd", [g.op("Sigmoid", [x], (6, 5, 8)), g.ints(1)]))
    return [*results, g.op("ReduceSum", [y, g.ints(0, 1, 2)], keepdims=0), g.op("ReduceMax", [y, g.ints(0, 2)])]


@case("reduction")
def a_reduction_that_a_group_shares(g: Builder) -> list[str]:
    x, y = g.input(1, 8, 23, 29), g.input(1, 3, 40, 40)
    pooled = g.op("GlobalAveragePool", [x], (1, 8, 1, 1))
    return [g.op("Sigmoid", [pooled], (1, 8, 1, 1)), g.op("GlobalMaxPool", [x]), g.op("ReduceMean", [y, g.ints(2, 3)])]


@case("contraction")
def products_of_awkward_sizes(g: Builder) -> list[str]:
    results = []
    sizes = ((1, 1, 1), (3, 5, 7), (5, 40, 3), (17, 33, 65), (49, 32, 49), (66, 70, 130), (1, 64, 300), (130, 12, 17))
    for m, n, k in sizes:
        results.append(g.op("MatMul", [g.input(m, k), g.weight(k, n)], (m, n)))
    for m, n, k in sizes[1:5]:
        results.append(g.op("MatMul", [g.input(m, k), g.input(k, n)], (m, n)))
    return results


@case("contraction")
def products_in_batches_and_turned(g: Builder) -> list[str]:
    x, y = g.input(3, 2, 9, 12), g.input(3, 2, 9, 12)
    turned = g.op("Transpose", [y], (3, 2, 12, 9), perm=[0, 1, 3, 2])
    other = g.op("Transpose", [x], (3, 2, 12, 9), perm=[0, 1, 3, 2])
    heads = g.op("Transpose", [x], (3, 9, 2, 12), perm=[0, 2, 1, 3])
    flat = g.op("Reshape", [heads, g.ints(3, 9, 24)], (3, 9, 24))
    gemm = g.op("Gemm", [g.input(7, 5), g.weight(6, 7), g.weight(6)], (5, 6), transA=1, transB=1, alpha=0.5, beta=2.0)
    mixed = g.op("Gelu", [g.op("Add", [g.op("MatMul", [flat, g.weight(24, 10)]), g.weight(10)])])
    return [
        g.op("MatMul", [x, turned], (3, 2, 9, 9)), g.op("MatMul", [other, y], (3, 2, 12, 12)), gemm, mixed,
        g.op("Einsum", [x, y], equation="abcd,abed->acbe"),
    ]  # fmt: skip


@case("contraction")
def a_product_whose_results_are_stored_turned(g: Builder) -> list[str]:
    x = g.op("MatMul", [g.input(8, 20), g.weight(20, 12)], (8, 12))
    bias = g.op("Add", [x, g.weight(12)], (8, 12))
    return [g.op("Transpose", [g.op("Relu", [bias], (8, 12))], (12, 8), perm=[1, 0])]


@case("contraction")
def convolutions(g: Builder) -> list[str]:
    x, y = g.input(1, 3, 13, 11), g.op("Relu", [g.input(2, 8, 9, 10)], (2, 8, 9, 10))
    return [
        g.op("Conv", [x, g.weight(8, 3, 3, 3), g.weight(8)], pads=[1, 1, 1, 1]),
        g.op("Conv", [x, g.weight(5, 3, 4, 4)], strides=[4, 4]),
        g.op("Conv", [y, g.weight(6, 8, 3, 3)], dilations=[2, 2], pads=[2, 2, 2, 2]),
        g.op("Conv", [y, g.weight(16, 8, 1, 1)], strides=[2, 2]),
        g.op("Conv", [y, g.weight(12, 2, 3, 3)], group=4, pads=[1, 0, 2, 1]),
        g.op("Conv", [y, g.weight(7, 8, 1, 5)], pads=[0, 2, 0, 2]),
        g.op("Conv", [g.input(1, 6, 20), g.weight(4, 6, 5)], pads=[2, 2], strides=[3]),
        g.op("ConvTranspose", [y, g.weight(8, 4, 3, 3)], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]


@case("window")
def windows_over_channels(g: Builder) -> list[str]:
    x, y = g.op("Relu", [g.input(1, 12, 10, 9)], (1, 12, 10, 9)), g.input(1, 5, 8, 8)
    return [
        g.op("Conv", [x, g.weight(12, 1, 3, 3), g.weight(12)], group=12, pads=[1, 1, 1, 1]),
        g.op("Conv", [x, g.weight(12, 1, 7, 7)], group=12, pads=[3, 3, 3, 3]),
        g.op("Conv", [y, g.weight(5, 1, 3, 3)], group=5, strides=[2, 2]),
        g.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        g.op("AveragePool", [y], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]


def _attend(g: Builder, shape: tuple[int, ...], keys: int, mask: str = "", causal: bool = False) -> str:
    *lead, queries, depth = shape
    q, k, v = g.input(*shape), g.input(*lead, keys, depth), g.input(*lead, keys, depth)
    turned = g.op("Transpose", [k], perm=[*range(len(lead)), len(lead) + 1, len(lead)])
    scores = g.op("MatMul", [q, turned])
    scores = g.op("Mul", [scores, g.constant(depth**-0.5, np.float32)])
    if mask:
        scores = g.op("Add", [scores, mask])
    if causal:
        allowed = g.constant(np.tril(np.ones((queries, keys), bool)))
        scores = g.op("Where", [allowed, scores, g.constant(-np.inf, np.float32)])
    return str(g.op("MatMul", [g.op("Softmax", [scores], axis=-1), v]))


@case("attention")
def attention_of_every_length(g: Builder) -> list[str]:
    return [
        _attend(g, (2, 49, 32), 49), _attend(g, (1, 3, 7, 8), 7), _attend(g, (3, 18, 16), 65),
        _attend(g, (1, 5), 3), _attend(g, (2, 1, 12), 197),
    ]  # fmt: skip


@case("attention")
def attention_with_masks(g: Builder) -> list[str]:
    return [
        _attend(g, (2, 3, 9, 8), 9, mask=g.weight(3, 9, 9)), _attend(g, (2, 10, 12), 10, mask=g.input(2, 1, 10)),
        _attend(g, (2, 16, 8), 16, causal=True),
    ]  # fmt: skip


@case("attention")
def attention_whose_heads_are_cut_out_of_a_product(g: Builder) -> list[str]:
    tokens, heads, depth = 10, 3, 8
    qkv = g.op("MatMul", [g.input(tokens, 24), g.weight(24, 3 * heads * depth)])
    cut = g.op("Transpose", [g.op("Reshape", [qkv, g.ints(tokens, 3, heads, depth)])], perm=[1, 2, 0, 3])
    q, k, v = (g.op("Gather", [cut, g.constant(part, np.int64)], axis=0) for part in range(3))
    weights = g.op("Softmax", [g.op("MatMul", [q, g.op("Transpose", [k], perm=[0, 2, 1])])], axis=-1)
    mixed = g.op("Transpose", [g.op("MatMul", [weights, v])], perm=[1, 0, 2])
    joined = g.op("Reshape", [mixed, g.ints(tokens, heads * depth)])
    return [g.op("MatMul", [joined, g.weight(heads * depth, 24)])]


@case()
def rows_too_long_for_local_memory(g: Builder) -> list[str]:
    return [_attend(g, (4, 4), 20000)]


@case()
def pieces_of_a_concat(g: Builder) -> list[str]:
    x, y = g.op("Relu", [g.input(1, 8, 5, 6)], (1, 8, 5, 6)), g.op("Tanh", [g.input(1, 4, 5, 6)], (1, 4, 5, 6))
    joined = g.op("Concat", [x, y, g.op("Neg", [y], (1, 4, 5, 6))], (1, 16, 5, 6), axis=1)
    deep = g.op("Conv", [joined, g.weight(8, 16, 1, 1)])
    odd = g.op("Concat", [g.op("Exp", [g.input(3, 5)], (3, 5)), g.op("Abs", [g.input(3, 2)], (3, 2))], (3, 7), axis=1)
    return [deep, g.op("Sigmoid", [joined], (1, 16, 5, 6)), odd]


@case()
def padding_and_slices(g: Builder) -> list[str]:
    x = g.op("Relu", [g.input(2, 6, 8)], (2, 6, 8))
    padded = g.op("Pad", [x, g.ints(0, 1, 2, 0, 2, 1)], (2, 9, 11))
    reflected = g.op("Pad", [x, g.ints(0, 2, 1, 0, 1, 2)], (2, 9, 11), mode="reflect")
    back = g.op("Slice", [x, g.ints(7), g.ints(-9), g.ints(2), g.ints(-2)], (2, 6, 4))
    grown = g.op("Resize", [g.op("Unsqueeze", [x, g.ints(0)]), "", g.constant((1, 1, 2, 2), np.float32)], mode="linear")
    return [g.op("Neg", [padded]), g.op("Exp", [reflected]), back, g.op("Tile", [x, g.ints(1, 2, 1)]), grown]


@case()
def entries_by_data(g: Builder) -> list[str]:
    x, at = g.input(7, 8), g.input(5, dtype=np.int64)
    hidden = g.op("Relu", [x], (7, 8))
    taken = g.op("Gather", [hidden, at], (5, 8), axis=0)
    column = g.op("Gather", [hidden, at], (7, 5), axis=1)
    where = g.hidden("ArgMax", [x], axis=1, keepdims=1)
    return [taken, g.op("Softmax", [column], (7, 5), axis=-1), g.op("GatherElements", [x, where], axis=1)]


@case(exact=True)
def a_host_step_between(g: Builder) -> list[str]:
    x = g.op("Relu", [g.input(4, 6)], (4, 6))
    where = g.op("NonZero", [x])
    square = g.op("MatMul", [x, g.op("Transpose", [x], (6, 4), perm=[1, 0])], (4, 4))
    return [where, g.op("Neg", [g.op("Det", [square])]), g.op("Exp", [x], (4, 6))]


@case()
def scalars_and_ones(g: Builder) -> list[str]:
    x, y = g.input(), g.input(1, 1, 1)
    return [g.op("Exp", [x], ()), g.op("Mul", [y, x], (1, 1, 1)), g.op("Softmax", [y], (1, 1, 1))]


@case("contraction", "window")
def channels_that_texels_do_not_divide(g: Builder) -> list[str]:
    x = g.op("Relu", [g.input(1, 6, 9, 10)], (1, 6, 9, 10))
    mixed = g.op("Conv", [x, g.weight(10, 6, 1, 1), g.weight(10)], (1, 10, 9, 10))
    first = g.op("Sigmoid", [mixed], (1, 10, 9, 10))  # which is not zero at zero
    deep = g.op("Conv", [first, g.weight(10, 1, 3, 3), g.weight(10)], (1, 10, 9, 10), group=10, pads=[1, 1, 1, 1])
    second = g.op("Add", [g.op("Exp", [deep], (1, 10, 9, 10)), first], (1, 10, 9, 10))
    wide = g.op("Conv", [second, g.weight(7, 10, 3, 3)], (1, 7, 9, 10), pads=[1, 1, 1, 1])
    pooled = g.op("MaxPool", [wide], (1, 7, 4, 5), kernel_shape=[2, 2], strides=[2, 2])
    return [g.op("Conv", [pooled, g.weight(8, 7, 1, 1)], (1, 8, 4, 5)), g.op("ReduceMean", [second, g.ints(1)])]


@case("contraction", "row reduction")
def rows_that_texels_do_not_divide(g: Builder) -> list[str]:
    x = g.op("MatMul", [g.input(5, 12), g.weight(12, 10)], (5, 10))
    normal = g.op("LayerNormalization", [x, g.weight(10), g.weight(10)], (5, 10))
    scores = g.op("MatMul", [normal, g.weight(10, 49)], (5, 49))
    soft = g.op("Softmax", [scores], (5, 49), axis=-1)
    powers = g.op("Exp", [soft], (5, 49))  # one where the lanes of padding are zero
    extremes = [g.op(kind, [powers, g.ints(1)]) for kind in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum")]
    logs = g.op("Log", [soft], (5, 49))  # minus infinity there
    return [*extremes, *(g.op("MatMul", [each, g.weight(49, 6)], (5, 6)) for each in (powers, logs))]
