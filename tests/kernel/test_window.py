"""Pooling against onnx's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.definitions import check, evaluate_node, make_node, random, stages_of

WINDOWS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2]},
    {"kernel_shape": [3, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "strides": [2, 3]},
    {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [3, 3], "auto_pad": "VALID", "strides": [2, 2]},
]
PADDED = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}


def pooled(x: np.ndarray[Any, Any], attrs: dict[str, Any], kind: str, out: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Pooling in a loop, by the words of ONNX: padding beyond `pads` (from ceil_mode) never counts."""
    rank = x.ndim - 2
    kernel, strides = attrs["kernel_shape"], attrs.get("strides", [1] * rank)
    dilations, pads = attrs.get("dilations", [1] * rank), attrs.get("pads", [0] * 2 * rank)
    result = np.zeros((*x.shape[:2], *out), np.float64)
    for at in np.ndindex(*out):
        taken, counted = [], 0
        for tap in np.ndindex(*kernel):
            place = [o * s + k * d - p for o, s, k, d, p in zip(at, strides, tap, dilations, pads, strict=False)]
            if all(0 <= i < n for i, n in zip(place, x.shape[2:], strict=True)):
                taken.append(x[(..., *place)].astype(np.float64))
            ends = [n + p for n, p in zip(x.shape[2:], pads[rank:], strict=True)]
            counted += all(-p <= i < e for i, e, p in zip(place, ends, pads, strict=False))
        values = np.stack(taken)
        count = counted if attrs.get("count_include_pad") else len(taken)
        powers = np.abs(values) ** attrs.get("p", 2)
        result[(..., *at)] = {
            "max": values.max(axis=0),
            "average": values.sum(axis=0) / count,
            "lp": powers.sum(axis=0) ** (1 / attrs.get("p", 2)),
        }[kind]
    return result.astype(x.dtype)


def extents(x: np.ndarray[Any, Any], attrs: dict[str, Any]) -> tuple[int, ...]:
    """The spatial output shape of a pooling."""
    rank, result = x.ndim - 2, []
    for a in range(rank):
        pads, stride = attrs.get("pads", [0] * 2 * rank), attrs.get("strides", [1] * rank)[a]
        span = (attrs["kernel_shape"][a] - 1) * attrs.get("dilations", [1] * rank)[a] + 1
        room = x.shape[2 + a] + pads[a] + pads[rank + a] - span
        out = (-(-room // stride) if attrs.get("ceil_mode") else room // stride) + 1
        if attrs.get("ceil_mode") and (out - 1) * stride >= x.shape[2 + a] + pads[a]:
            out -= 1
        result.append(out)
    return tuple(result)


@pytest.mark.parametrize("attrs", WINDOWS)
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pool(op: str, attrs: dict[str, Any]) -> None:
    x = random(2, 3, 7, 8)
    kind = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}[op]
    wanted = pooled(x, attrs, kind, extents(x, attrs))
    check(op, [x], opset=22, frontend=True, expected=[wanted], **attrs)
    if "ceil_mode" not in attrs and op != "LpPool":  # the reference counts what ceil_mode adds on both sides
        check(op, [x], opset=22, frontend=True, **attrs)


@pytest.mark.parametrize("attrs", WINDOWS)
def test_average_pool_that_counts_padding(attrs: dict[str, Any]) -> None:
    x = random(2, 3, 7, 8)
    attrs = {**attrs, "count_include_pad": 1}
    wanted = pooled(x, attrs, "average", extents(x, attrs))
    check("AveragePool", [x], opset=22, frontend=True, expected=[wanted], **attrs)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_same_padding(op: str, mode: str, strides: list[int]) -> None:
    x = random(1, 2, 7, 8)
    out = tuple(-(-n // s) for n, s in zip(x.shape[2:], strides, strict=True))
    attrs: dict[str, Any] = {"kernel_shape": [3, 2], "strides": strides}
    totals = [max((o - 1) * s + k - n, 0) for o, s, k, n in zip(out, strides, [3, 2], x.shape[2:], strict=True)]
    begins = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in totals]
    ends = [t - b for t, b in zip(totals, begins, strict=True)]
    wanted = pooled(x, {**attrs, "pads": begins + ends}, "max" if op == "MaxPool" else "average", out)
    check(op, [x], opset=22, frontend=True, expected=[wanted], auto_pad=mode, **attrs)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_ranks(op: str, rank: int) -> None:
    x = random(1, 2, *(6, 5, 4)[:rank])
    check(op, [x], opset=22, kernel_shape=[3, 2, 2][:rank], strides=[2] * rank)


def test_max_pool_of_integers() -> None:
    for dtype in (np.int8, np.uint8):
        x = random(1, 2, 5, 5, dtype=dtype)
        wanted = pooled(x, PADDED, "max", (5, 5))
        check("MaxPool", [x], opset=22, expected=[wanted], **PADDED)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"])
def test_half(op: str) -> None:
    x = random(1, 2, 5, 5, dtype=np.float16)
    kind = {"MaxPool": "max", "AveragePool": "average", "LpPool": "lp"}.get(op)
    attrs = PADDED if kind else {}
    expected = [pooled(x, PADDED, kind, (5, 5))] if kind else None
    check(op, [x], opset=22, expected=expected, rtol=2e-3, atol=2e-3, **attrs)


@pytest.mark.parametrize("attrs", [w for w in WINDOWS if "auto_pad" not in w])
@pytest.mark.parametrize("order", [0, 1])
def test_max_pool_positions(attrs: dict[str, Any], order: int) -> None:
    x = random(2, 3, 7, 8)
    spread = attrs.get("strides") or attrs.get("dilations")
    options = {**attrs, "storage_order": order}
    if spread:  # the reference is right on this path only
        check("MaxPool", [x], outputs=2, opset=22, frontend=True, **options)
        return
    shape = (2, 3, *extents(x, attrs))
    node = make_node("MaxPool", [x], [np.zeros(shape, np.float32), np.zeros(shape, np.int64)], options, opset=22)
    (values, positions), _ = evaluate_node(node, [x])
    plane = x.transpose(0, 1, 3, 2) if order else x
    np.testing.assert_array_equal(plane.reshape(-1)[positions], values)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 2)])
def test_global_pool(op: str, shape: tuple[int, ...]) -> None:
    x, spatial = random(*shape), tuple(range(2, len(shape)))
    if op == "GlobalLpPool":
        for p in (1, 2, 3):
            wanted = np.sum(np.abs(x.astype(np.float64)) ** p, axis=spatial, keepdims=True) ** (1 / p)
            check(op, [x], expected=[wanted.astype(np.float32)], p=p)
        return
    wanted = x.max(axis=spatial, keepdims=True) if op == "GlobalMaxPool" else x.mean(axis=spatial, keepdims=True)
    check(op, [x], opset=22, expected=[wanted])  # the reference of GlobalMaxPool knows two spatial axes only


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool_powers(p: int) -> None:
    check("LpPool", [random(1, 2, 6, 6)], opset=22, kernel_shape=[3, 3], p=p)


def test_average_divides_by_a_constant_where_no_window_is_cut() -> None:
    x = random(1, 2, 6, 6)
    cases: list[dict[str, Any]] = [
        {"kernel_shape": [2, 2]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ]
    for attrs in cases:
        out = extents(x, attrs)
        found = stages_of(make_node("AveragePool", [x], [np.zeros((1, 2, *out), np.float32)], attrs))
        assert found is not None
        assert found[1] == {}
    found = stages_of(make_node("AveragePool", [x], [np.zeros((1, 2, 6, 6), np.float32)], PADDED))
    assert found is not None
    assert {name: list(table) for name, table in found[1].items()} == {
        "y0.count0": [2, 3, 3, 3, 3, 2],
        "y0.count1": [2, 3, 3, 3, 3, 2],
    }
