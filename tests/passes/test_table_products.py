"""Products with rows that an index takes from tables: they become entries of a product with the tables."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import info, model

import smartmem
from smartmem.compiler import build_program
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.pipeline import LEVELS, run_passes

HEADS, WIDTH = 3, 32  # enough that the rows of all tokens are not computed when compiling


def positions(tokens: int, rows: tuple[int, ...], given: bool = False, after: str = "") -> onnx.ModelProto:
    """x[tokens, heads, width] times, for each token, a row per token from each of the tables, added up.

    The indices are constants, or inputs (`given`); `after` is an operator on the result.
    """
    rng = np.random.default_rng([tokens, *rows])
    index, integer = (tokens, tokens), onnx.TensorProto.INT64
    constants = {f"t{n}": rng.standard_normal((n, WIDTH)).astype(np.float32) for n in rows}
    inputs = [info("x", (tokens, HEADS, WIDTH))]
    nodes, total = [], ""
    for n in rows:
        if given:
            inputs.append(info(f"i{n}", index, integer))
        else:
            constants[f"i{n}"] = rng.integers(-n, n, index)
        nodes.append(helper.make_node("Gather", [f"t{n}", f"i{n}"], [f"g{n}"]))
        if total:
            nodes.append(helper.make_node("Add", [total, f"g{n}"], [f"s{n}"]))
        total = f"s{n}" if total else f"g{n}"
    nodes += [
        helper.make_node("Transpose", [total], ["r"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "r"], ["p"]),
        helper.make_node(after or "Identity", ["p"], ["y"]),
    ]
    return model(nodes, inputs, constants=constants)


def products(proto: onnx.ModelProto) -> set[tuple[int, ...]]:
    """Shapes of what sums over the width of the heads."""
    kernels = [k for k in run_passes(load_graph(proto, None), "full").kernels if isinstance(k, Kernel)]
    return {s.shape for k in kernels for s in k.stages if s.reduce == (WIDTH,)}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("tokens", "rows", "after"), [(197, (13, 9), ""), (197, (11,), "Softmax"), (192, (5, 6, 7), "Relu"), (9, (2,), "")]
)
def test_the_answer_is_right(tokens: int, rows: tuple[int, ...], after: str, given: bool, level: str) -> None:
    proto, rng = positions(tokens, rows, given, after), np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((tokens, HEADS, WIDTH)).astype(np.float32)}
    feeds |= {f"i{n}": rng.integers(-n, n, (tokens, tokens)) for n in rows if given}
    (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        np.testing.assert_allclose(compiled(**feeds), wanted, rtol=1e-5, atol=1e-5)


def test_columns_are_rows_of_the_tables() -> None:
    assert products(positions(197, (13, 9))) == {(197, HEADS, 22)}
    assert products(positions(197, (13, 9), given=True)) == {(197, HEADS, 22)}


def test_more_rows_than_it_pays_for() -> None:
    """60 of 197 columns are left with one table, 121 with two: those are fewer, but each takes two loads."""
    assert products(positions(197, (60,))) == {(197, HEADS, 60)}
    assert products(positions(197, (60, 61))) == {(197, HEADS, 197)}


def test_entries_are_gathered_in_vectors() -> None:
    (text,) = build_program(positions(197, (13, 9), after="Softmax"), march="x86-64-v4").sources.values()
    assert text.count("sm_lookup(") >= 2
    assert "lanes" not in text
