"""GELU is found whatever the order of its operators, and nothing else is taken for it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program

Step = tuple[str, list[str], str]

AS_TORCH: list[Step] = [
    ("Div", ["x", "root"], "a"), ("Erf", ["a"], "b"), ("Add", ["b", "one"], "c"), ("Mul", ["x", "c"], "d"),
    ("Mul", ["d", "half"], "y"),
]  # fmt: skip
AS_KERAS: list[Step] = [
    ("Mul", ["half", "x"], "a"), ("Mul", ["x", "inverse"], "b"), ("Erf", ["b"], "c"), ("Add", ["one", "c"], "d"),
    ("Mul", ["a", "d"], "y"),
]  # fmt: skip
WITHOUT_HALF = [*AS_KERAS[1:4], ("Mul", ["x", "d"], "y")]
OF_ANOTHER = [("Relu", ["x"], "z"), *AS_KERAS[:1], ("Mul", ["z", "inverse"], "b"), *AS_KERAS[2:]]


def gelu(steps: list[Step]) -> onnx.ModelProto:
    """y[5, 37] of x and the numbers that steps name."""
    numbers = {"root": math.sqrt(2), "inverse": math.sqrt(0.5), "half": 0.5, "one": 1.0}
    nodes = [helper.make_node(operator, inputs, [output]) for operator, inputs, output in steps]
    return model(nodes, {"x": (5, 37)}, constants={name: np.float32(n) for name, n in numbers.items()}, opset=20)


@pytest.mark.parametrize(
    ("steps", "found"),
    [(AS_TORCH, True), (AS_KERAS, True), ([("Gelu", ["x"], "y")], True), (WITHOUT_HALF, False), (OF_ANOTHER, False)],
)
def test_gelu(steps: list[Step], found: bool) -> None:
    proto = gelu(steps)
    text = "".join(build_program(proto).sources.values())
    assert ("sm_geluv(" in text) == found
    assert "sm_geluv(" not in "".join(build_program(proto, level="layout").sources.values())
    x = np.random.default_rng(0).normal(0, 2, (5, 37)).astype(np.float32)
    (want,) = ReferenceEvaluator(proto).run(None, {"x": x})
    with smartmem.compile(proto, threads=1) as compiled:
        np.testing.assert_allclose(compiled(x), want, rtol=1e-6, atol=3e-7)


def test_many_squares() -> None:
    """x to the power of 2^40 by 40 products has 2^40 factors, which nobody lists."""
    names = ["x", *(f"t{k}" for k in range(39)), "y"]
    steps: list[Step] = [("Mul", [a, a], b) for a, b in pairwise(names)]
    with smartmem.compile(gelu(steps), threads=1) as compiled:
        assert (compiled(np.ones((5, 37), np.float32)) == 1).all()
