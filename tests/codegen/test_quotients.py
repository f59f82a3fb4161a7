"""Rows divided by what comes from a sum are multiplied by its reciprocal; all other quotients are IEEE's."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program


@pytest.mark.parametrize("number", [3.0, -7e-39, 2.5e38, 0.0, np.inf, np.nan])
def test_rows_over_their_sums(number: float) -> None:
    """Sums may be any numbers: where the reciprocal is not a normal one, the quotient is taken."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Div", ["x", "sum"], ["y"]),
    ]
    proto = model(nodes, {"x": (4, 40)}, constants={"axes": np.array([1])})
    assert "sm_over(" in "".join(build_program(proto).sources.values())
    x = np.random.default_rng(1).integers(1, 9, (4, 40)).astype(np.float32)
    x[1] = 0
    x[1, 5] = number
    with smartmem.compile(proto, threads=1) as compiled, np.errstate(all="ignore"):
        got, want = compiled(x), x / x.sum(axis=1, keepdims=True)
    finite = np.isfinite(want)
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True)
    assert (np.abs(got[finite].astype(np.float64) - want[finite]) <= 1.5 * np.spacing(np.abs(want[finite]))).all()


@pytest.mark.parametrize("divisor", [np.float32(41).reshape(()), np.arange(1, 41, dtype=np.float32)])
def test_exact_quotients_stay_exact(divisor: np.ndarray) -> None:
    """``floor(i / n)`` of multiples of n: a product with the reciprocal may be less."""
    nodes = [helper.make_node("Div", ["x", "d"], ["z"]), helper.make_node("Floor", ["z"], ["y"])]
    proto = model(nodes, {"x": (4, 40)}, constants={"d": divisor})
    wanted = np.arange(160, dtype=np.float32).reshape(4, 40) * 3
    for level in smartmem.LEVELS:
        with smartmem.compile(proto, threads=1, level=level) as compiled:
            assert np.array_equal(compiled(wanted * divisor), wanted)
