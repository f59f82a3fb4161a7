"""Reductions, running sums and the softmax family against onnx's reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.support.definitions import check, evaluate_node, make_node, random, reference, undefined

from smartmem.kernel.definitions import define
from smartmem.kernel.stage import Stage

Array = np.ndarray[Any, Any]

REDUCE = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip
AXES = [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]]


def operand_for(op: str, *shape: int, dtype: Any = np.float32) -> Array:
    return random(*shape, dtype=dtype, low=0.2 if op == "ReduceLogSum" else -2, high=2)


def reduces(op: str, x: Array, axes: list[int] | None, keepdims: int, **options: Any) -> list[Stage]:
    """Checks a Reduce* node in the canonical form: `axes` is an attribute, whatever the opset."""
    inputs = [x] if axes is None else [x, np.array(axes, np.int64)]
    results = options.pop("expected", None) or reference(op, inputs, opset=18, keepdims=keepdims)
    return check(op, [x], canonical={"axes": axes}, keepdims=keepdims, expected=results, opset=18, **options)


@pytest.mark.parametrize("op", REDUCE)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduce(op: str, axes: list[int], keepdims: int) -> None:
    reduces(op, operand_for(op, 2, 3, 4), axes, keepdims)


@pytest.mark.parametrize("op", REDUCE)
def test_reduce_all_axes_by_default(op: str) -> None:
    x = operand_for(op, 2, 3)
    reduces(op, x, None, 1)
    check(op, [x], keepdims=1, opset=18)  # no attribute at all


@pytest.mark.parametrize("op", REDUCE)
def test_reduce_over_extent_one_is_pointwise(op: str) -> None:
    stages = reduces(op, operand_for(op, 3, 1, 2), [1], 0)
    assert op == "ReduceLogSumExp" or not any(stage.reduce for stage in stages)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceSumSquare"])
def test_reduce_nothing(op: str) -> None:
    """Canonical `axes=[]` (noop_with_empty_axes): only the functions before and after the reduction remain."""
    x = random(2, 3)
    check(op, [x], canonical={"axes": []}, expected=[x * x if op == "ReduceSumSquare" else x])


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_reduce_dtypes(op: str, dtype: Any) -> None:
    reduces(op, random(2, 3, 4, dtype=dtype), [1], 1)


def test_mean_of_integers_truncates() -> None:
    x = random(4, 5, dtype=np.int32)
    expected = np.trunc(x.sum(1, keepdims=True) / 5).astype(np.int32)
    reduces("ReduceMean", x, [1], 1, expected=[expected])


@pytest.mark.parametrize("op", REDUCE)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halfs_accumulate_in_float32(op: str, dtype: Any) -> None:
    x = operand_for(op, 3, 40, dtype=dtype)
    wide = reference(op, [x.astype(np.float32), np.array([1], np.int64)], opset=18, keepdims=1)[0]
    tolerance = 2e-3 if dtype == np.float16 else 1e-2
    stages = reduces(op, x, [1], 1, expected=[wide.astype(dtype)], rtol=tolerance, atol=tolerance)
    assert all(stage.dtype == np.float32 for stage in stages if stage.reduce)


@pytest.mark.parametrize(("op", "function"), [("ReduceMax", np.any), ("ReduceMin", np.all)])
def test_extrema_of_booleans(op: str, function: Any) -> None:
    x = random(4, 3, dtype=bool)
    check(op, [x], canonical={"axes": [1]}, opset=20, expected=[function(x, axis=1, keepdims=True)])


def test_log_sum_exp_of_infinities() -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 1], [500, 501], [-np.inf, 2]], np.float32)
    expected = np.array([[-np.inf], [np.inf], [np.logaddexp(500, 501)], [2]], np.float32)
    check("ReduceLogSumExp", [x], canonical={"axes": [1]}, expected=[expected])


def test_reduce_of_nothing_runs_on_the_host() -> None:
    x = random(2, 0)
    assert undefined("ReduceSum", [x], [random(2, 1)], axes=[1])
    axes = np.array([1], np.int64)
    assert undefined("ReduceSum", [random(2, 3), axes], [random(2, 1)])


def test_one_stage_with_the_last_axis_innermost() -> None:
    (stage,) = reduces("ReduceSum", random(2, 3, 4), [0, 2], 0)
    assert (stage.shape, stage.reduce) == ((3,), (2, 4))


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_arg(op: str, axis: int, keepdims: int, last: int) -> None:
    ties = random(2, 5, 4, dtype=np.int32, low=0, high=0.3)
    for x in (ties, ties.astype(np.float32), ties.astype(np.float16), random(2, 1, 1)):
        check(op, [x], axis=axis, keepdims=keepdims, select_last_index=last)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_cumulative_sum(axis: int, exclusive: int, reverse: int, dtype: Any) -> None:
    position = np.array(axis, np.int64)
    check("CumSum", [random(3, 4, 5, dtype=dtype), position], constant=(1,), exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative_product(exclusive: int, reverse: int) -> None:
    axis = np.array(1, np.int64)
    check("CumProd", [random(3, 4), axis], constant=(1,), opset=26, exclusive=exclusive, reverse=reverse)


def test_cumulative_sum_of_halfs_and_of_one() -> None:
    axis = np.array(0, np.int64)
    x = random(30, 2, dtype=np.float16)
    expected = np.cumsum(x.astype(np.float32), axis=0).astype(np.float16)
    check("CumSum", [x, axis], constant=(1,), expected=[expected], rtol=2e-3, atol=2e-3)
    check("CumSum", [random(1, 3), axis], constant=(1,))


def test_cumulative_sum_along_an_unknown_axis_runs_on_the_host() -> None:
    assert undefined("CumSum", [random(2, 3), np.array(0, np.int64)], [random(2, 3)])


FAMILY = ["Softmax", "LogSoftmax", "Hardmax"]


@pytest.mark.parametrize("op", FAMILY)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax(op: str, axis: int) -> None:
    check(op, [random(2, 3, 4)], axis=axis)


@pytest.mark.parametrize("op", FAMILY)
def test_softmax_default_axis_is_the_last(op: str) -> None:
    check(op, [random(2, 3, 4)])


@pytest.mark.parametrize("op", FAMILY)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_softmax_before_opset_13_spans_the_trailing_axes(op: str, axis: int) -> None:
    x = random(2, 3, 4)
    flat = x.reshape(int(np.prod(x.shape[:axis])), -1)
    expected = [reference(op, [flat], axis=1)[0].reshape(x.shape)]
    check(op, [x], canonical={"flatten": True, "axis": axis}, opset=12, expected=expected)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_softmax_dtypes(op: str, dtype: Any) -> None:
    x = random(3, 7, dtype=dtype)
    expected = reference(op, [x.astype(np.float64)])[0].astype(dtype)
    tolerance = {2: 1e-2, 8: 1e-12}[np.dtype(dtype).itemsize]
    check(op, [x], expected=[expected], rtol=tolerance, atol=tolerance)


def test_hardmax_picks_the_first_of_equals_and_handles_short_rows() -> None:
    check("Hardmax", [random(4, 6, dtype=np.int32, low=0, high=0.3).astype(np.float32)])
    check("Hardmax", [random(4, 1)])
    check("Hardmax", [random(4, 5, dtype=np.float16)])


def test_softmax_is_four_primitive_stages() -> None:
    stages = check("Softmax", [random(2, 3)])
    assert [(s.name, s.shape, s.reduce, s.combine) for s in stages] == [
        ("y0.max", (2, 1), (3,), "max"),
        ("y0.exp", (2, 3), (), ""),
        ("y0.sum", (2, 1), (3,), "sum"),
        ("y0", (2, 3), (), ""),
    ]


def test_softmax_of_large_values_and_masks() -> None:
    x = np.array([[1000, 1001, -np.inf], [-np.inf, -5, -np.inf]], np.float32)
    check("Softmax", [x])
    node = make_node("Softmax", [x], [x], {"axis": 1})
    assert define(node) is not None
    (got,), _ = evaluate_node(node, [x])
    assert np.isfinite(got).all()
