"""Small graphs, compiled at every level, against onnxruntime: named cases, and seeded random ones.

A named case builds a graph with `Builder`, returns its outputs, and says how many copies level full may leave. Each
round compiles all its graphs as one model (`support.batch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.support.batch import Batch, lowered
from tests.support.random_graphs import Array, Builder, random_graph, unused

from smartmem.frontend.load import load_graph
from smartmem.levels import LEVELS
from smartmem.runtime.cache import Cache

TOLERANCE = 1e-5


@dataclass
class Case:
    """A graph, its inputs and results; `copies` at level full (None: not known)."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Array]
    copies: int | None = None
    expected: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(self.model.SerializeToString(), options)
        self.expected = session.run(None, self.feeds)


Build = Callable[[Builder], list[str]]
NAMED: dict[str, tuple[Build, int]] = {}


def case(copies: int = 0) -> Callable[[Build], Build]:
    """Registers a named case, which level full compiles with this many copies."""

    def register(function: Build) -> Build:
        NAMED[function.__name__] = (function, copies)
        return function

    return register


@case(copies=2)
def passes_inputs_and_constants_through(g: Builder) -> list[str]:
    x = g.input(2, 3)
    return [x, g.op("Relu", [x], (2, 3)), g.op("Identity", [g.constant([1.0, 2.0], np.float32)], (2,))]


@case(copies=1)
def one_result_twice(g: Builder) -> list[str]:
    y = g.op("Sigmoid", [g.input(3, 5)], (3, 5))
    return [y, g.op("Identity", [y], (3, 5)), g.op("Neg", [y], (3, 5))]


@case(copies=2)
def views_of_an_input_are_outputs(g: Builder) -> list[str]:
    x = g.input(4, 6)
    return [g.op("Transpose", [x], (6, 4), perm=[1, 0]), g.op("Reshape", [x, g.ints(3, 8)], (3, 8))]


@case()
def an_input_is_not_used(g: Builder) -> list[str]:
    g.input(7)
    return [g.op("Exp", [g.input(2, 2)], (2, 2))]


@case()
def scalars(g: Builder) -> list[str]:
    x, y = g.input(), g.input(3)
    total = g.op("ReduceSum", [y], (), keepdims=0)
    return [
        g.op("Mul", [x, total], ()),
        g.op("Add", [y, x], (3,)),
        g.op("Unsqueeze", [g.op("Neg", [x]), g.ints(0)], (1,)),
    ]


@case()
def extents_of_one(g: Builder) -> list[str]:
    x = g.input(1, 5, 1, 4)
    y = g.op("Squeeze", [g.op("Transpose", [x], (4, 1, 5, 1), perm=[3, 2, 1, 0]), g.ints(1)], (4, 5, 1))
    return [g.op("MatMul", [y, g.weight(1, 6)], (4, 5, 6)), g.op("Softmax", [x], (1, 5, 1, 4), axis=2)]


@case()
def empty_tensors(g: Builder) -> list[str]:
    x, nothing = g.input(2, 3), g.input(0, 3)
    joined = g.op("Concat", [nothing, g.op("Neg", [x], (2, 3))], (2, 3), axis=0)
    return [
        g.op("Relu", [joined], (2, 3)),
        g.op("Relu", [nothing], (0, 3)),
        g.op("ReduceSum", [nothing, g.ints(0)], keepdims=0),
    ]


@case()
def integers(g: Builder) -> list[str]:
    x, y = g.input(3, 4, dtype=np.int64), g.input(4, dtype=np.int64)
    three = g.constant(3, np.int64)
    results = [g.op(kind, [x, y], (3, 4)) for kind in ("Add", "Mul", "Max", "Equal", "Greater")]
    small = g.hidden("Cast", [x], to=TensorProto.INT8)
    return [
        *results,
        g.op("Mod", [x, three]),
        g.op("Div", [x, three]),
        g.op("Mul", [small, small]),
        g.op("Abs", [small]),
    ]


@case()
def booleans(g: Builder) -> list[str]:
    x, y = g.input(5, 6, dtype=np.bool_), g.input(6, dtype=np.bool_)
    both = g.op("And", [x, y])
    turned = g.op("Transpose", [g.op("Or", [g.op("Not", [both]), y])], perm=[1, 0])
    return [g.op("Xor", [both, x]), turned, g.op("Where", [both, g.input(5, 6), g.constant(2.0, np.float32)])]


@case()
def half_and_double(g: Builder) -> list[str]:
    x, y = g.input(4, 8, dtype=np.float16), g.input(4, 8, dtype=np.float64)
    return [g.op("Transpose", [g.op("Relu", [x])], perm=[1, 0]), g.op("ReduceSum", [g.op("Exp", [y]), g.ints(1)])]


@case()
def indices_from_views_and_arithmetic(g: Builder) -> list[str]:
    x, at = g.input(6, 5), g.input(3, dtype=np.int64)
    column = g.op("Unsqueeze", [g.op("Abs", [at]), g.ints(1)], (3, 1))
    wide = g.op("Expand", [column, g.ints(3, 5)], (3, 5))
    taken = g.op("GatherElements", [x, wide], (3, 5), axis=0)
    shifted = g.op("Gather", [x, g.op("Add", [at, g.ints(1)], (3,))], (3, 5), axis=0)
    return [g.op("ReduceSum", [taken, g.ints(0)], (1, 5)), g.op("Mul", [shifted, shifted], (3, 5))]


@case()
def gather_from_a_concat(g: Builder) -> list[str]:
    joined = g.op("Concat", [g.input(3, 4), g.input(2, 4)], (5, 4), axis=0)
    return [g.op("Neg", [g.op("Gather", [joined, g.input(3, dtype=np.int64)], (3, 4), axis=0)], (3, 4))]


@case()
def padding_sums_but_does_not_move(g: Builder) -> list[str]:
    x = g.input(1, 2, 5, 7)
    return [g.op("AveragePool", [x], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), g.op("LpPool", [x], kernel_shape=[2, 2])]


@case()
def a_product_with_padded_operands(g: Builder) -> list[str]:
    """Guards that differ between the lanes: in the second operand, and after the product."""
    x = g.input(5, 6)
    w = g.op("Pad", [g.input(6, 13), g.ints(0, 2, 0, 3)], (6, 18))
    bias = g.op("Pad", [g.input(5, 11), g.ints(0, 4, 0, 3)], (5, 18))
    return [g.op("Add", [g.op("MatMul", [x, w], (5, 18)), bias], (5, 18))]


@case()
def attention_over_past_and_present(g: Builder) -> list[str]:
    q, past, new = g.input(2, 3, 4, 8), g.input(2, 3, 12, 8), g.input(2, 3, 6, 8)
    keys = g.op("Concat", [past, new], (2, 3, 18, 8), axis=2)
    turned = g.op("Transpose", [keys], (2, 3, 8, 18), perm=[0, 1, 3, 2])
    weights = g.op("Softmax", [g.op("MatMul", [q, turned], (2, 3, 4, 18))], (2, 3, 4, 18), axis=-1)
    return [g.op("MatMul", [weights, keys], (2, 3, 4, 8))]


@case()
def transposed_convolutions(g: Builder) -> list[str]:
    x, w = g.input(1, 2, 4, 5), g.weight(2, 3, 3, 3)
    strided = g.op("ConvTranspose", [x, w], strides=[3, 2])
    padded = g.op("ConvTranspose", [x, w], strides=[3, 2], pads=[1, 2, 1, 2])
    dilated = g.op("ConvTranspose", [x, w], dilations=[2, 2], strides=[2, 1])
    return [strided, padded, dilated]


@case()
def pieces_shared_by_two_concats(g: Builder) -> list[str]:
    x, y = g.op("Relu", [g.input(3, 4)], (3, 4)), g.op("Tanh", [g.input(3, 4)], (3, 4))
    first = g.op("Concat", [x, y], (6, 4), axis=0)
    second = g.op("Concat", [y, first], (9, 4), axis=0)
    return [g.op("Neg", [first], (6, 4)), g.op("Exp", [second], (9, 4))]


@case()
def shifted_windows(g: Builder) -> list[str]:
    """Swin: roll, partition, norm, product, and all of it back."""
    x = g.input(1, 8, 8, 12)
    rolled = x
    for axis in (1, 2):
        tail = g.op("Slice", [rolled, g.ints(2), g.ints(8), g.ints(axis)])
        head = g.op("Slice", [rolled, g.ints(0), g.ints(2), g.ints(axis)])
        rolled = g.op("Concat", [tail, head], axis=axis)
    cut = g.op("Reshape", [rolled, g.ints(1, 2, 4, 2, 4, 12)])
    tokens = g.op("Reshape", [g.op("Transpose", [cut], perm=[0, 1, 3, 2, 4, 5]), g.ints(4, 16, 12)])
    normal = g.op("LayerNormalization", [tokens, g.weight(12), g.weight(12)])
    mixed = g.op("MatMul", [normal, g.weight(12, 12)])
    back = g.op("Transpose", [g.op("Reshape", [mixed, g.ints(1, 2, 2, 4, 4, 12)])], perm=[0, 1, 3, 2, 4, 5])
    return [g.op("Add", [g.op("Reshape", [back, g.ints(1, 8, 8, 12)]), x])]


@case()
def pixel_shuffles(g: Builder) -> list[str]:
    x = g.input(1, 8, 3, 5)
    deep = g.op("SpaceToDepth", [g.op("DepthToSpace", [x], blocksize=2, mode="CRD")], blocksize=2)
    return [g.op("Conv", [deep, g.weight(4, 8, 3, 3)], pads=[1, 1, 1, 1])]


@case(copies=1)
def remainders_and_triangles(g: Builder) -> list[str]:
    x, y = g.input(20), g.input(20)
    return [g.op("Mod", [x, y], fmod=1), g.op("Trilu", [g.input(4, 4), g.constant(-1, np.int64)], upper=0)]


def named_cases() -> list[Case]:
    cases = []
    for number, (name, (build, copies)) in enumerate(NAMED.items()):
        g = Builder(number)
        outputs = build(g)
        cases.append(Case(name, g.model(outputs), g.feeds(), copies))
    return cases


def random_cases(seeds: range) -> list[Case]:
    cases = []
    for seed in seeds:
        g = random_graph(seed)
        cases.append(Case(f"seed {seed}", g.model(unused(g)), g.feeds()))
    return cases


def relative_error(got: Array, want: Array) -> float:
    """The greatest difference, relative to the greatest value; infinite where the two do not compare."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    if not want.size:
        return 0.0
    if want.dtype.kind in "biu":
        return 0.0 if np.array_equal(got, want) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    scale = np.max(np.abs(want[finite]), initial=1e-3)
    return float(np.max(np.abs(got[finite].astype(np.float64) - want[finite]), initial=0.0) / scale)


def _check(cases: list[Case], folder: Path, level: str, march: str = "native") -> None:
    batch = Batch([load_graph(case.model) for case in cases], Cache(folder), level, march)
    results = batch.run([case.feeds for case in cases])
    wrong = []
    for case, result in zip(cases, results, strict=True):
        for position, (got, want) in enumerate(zip(result, case.expected, strict=True)):
            allowed = 1e-3 if want.dtype == np.float16 else TOLERANCE
            if (error := relative_error(got, want)) > allowed:
                wrong.append(f"{case.name}, output {position}: relative error {error:.1e}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def named() -> list[Case]:
    return named_cases()


@pytest.mark.parametrize("level", LEVELS)
def test_every_level(level: str, named: list[Case], tmp_path: Path) -> None:
    start = 100 * LEVELS.index(level)
    _check([*named, *random_cases(range(start, start + (40 if level == "full" else 12)))], tmp_path, level)


@pytest.mark.parametrize("march", ["x86-64-v2", "x86-64-v3"])
def test_other_vector_widths(march: str, named: list[Case], tmp_path: Path) -> None:
    _check([*named, *random_cases(range(1000, 1010))], tmp_path, "full", march)


def test_no_copies_where_none_is_inherent(named: list[Case]) -> None:
    found = {c.name: lowered(load_graph(c.model)).report["totals"]["copies"] for c in named}
    assert found == {c.name: c.copies for c in named}
