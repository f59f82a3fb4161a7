"""TopK by counting, against onnx's reference: ties, NaN, both orders, every dtype, compiled too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from tests.support.definitions import check, random, reference, undefined
from tests.support.onnx_models import model

import smartmem
from smartmem.kernel.definitions.order import LONGEST

K = {"constant": (1,), "frontend": True, "outputs": 2}
SPECIAL = np.array([[np.nan, 1, np.inf, -np.inf, np.nan, 1], [2, 2, -0.0, 0.0, np.inf, np.inf]], np.float32)


def k_of(count: int) -> np.ndarray[Any, Any]:
    return np.array([count], np.int64)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis, count", [(0, 1), (1, 3), (-1, 5), (2, 2)])
def test_axes_and_orders(largest: int, axis: int, count: int) -> None:
    check("TopK", [random(3, 4, 5), k_of(count)], axis=axis, largest=largest, **K)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.int64, np.uint8])
def test_dtypes_with_ties(largest: int, dtype: Any) -> None:
    x = np.random.default_rng(0).integers(0, 4, (3, 9)).astype(dtype)
    check("TopK", [x, k_of(9)], axis=1, largest=largest, **K)


@pytest.mark.parametrize("largest", [0, 1])
def test_nan_is_the_greatest(largest: int) -> None:
    check("TopK", [SPECIAL, k_of(6)], axis=1, largest=largest, **K)


def test_what_runs_on_the_host() -> None:
    assert undefined("TopK", [random(4), k_of(2)], [random(2), k_of(2)], axis=0, largest=1)  # k depends on data
    long, one = random(LONGEST + 1), random(1)
    assert undefined("TopK", [long, k_of(1)], [one, k_of(1)], axis=0, largest=1, k=1)


@pytest.mark.parametrize("level", ["naive", "full"])
@pytest.mark.parametrize("largest", [0, 1])
def test_compiled(level: str, largest: int) -> None:
    x = np.concatenate([SPECIAL, random(5, 6)]).repeat(6, axis=1)
    for axis, count in ((0, 4), (1, 20)):
        node = helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=axis, largest=largest)
        proto = model([node], {"x": x.shape}, ["values", "indices"], {"k": k_of(count)})
        with smartmem.compile(proto, level=level, threads=2) as compiled:
            assert not compiled.program.report["host"]
            found = compiled(x)
        for mine, wanted in zip(
            found, reference("TopK", [x, k_of(count)], outputs=2, axis=axis, largest=largest), strict=True
        ):
            np.testing.assert_array_equal(mine, wanted)
