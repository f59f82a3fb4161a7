"""Large constants that are made of little: computed in a load where a product takes them, else at compile time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.pipeline import LEVELS, run_passes

TOKENS, HEADS, WIDTH, ROWS = 144, 3, 64, 23
RNG = np.random.default_rng(7)


def relative(consumer: str, tokens: int = TOKENS) -> onnx.ModelProto:
    """Positions of every two tokens, gathered from two tables; operand of a product per query that sums over their
    values ("product") or over tokens ("weighted"), in a sum ("sum"), or of an operator that runs on the host ("host").
    """
    constants = {f"table{k}": RNG.standard_normal((ROWS, WIDTH)).astype(np.float32) for k in range(2)}
    constants |= {f"index{k}": RNG.integers(0, ROWS, (tokens, tokens)) for k in range(2)}
    nodes = [helper.make_node("Gather", [f"table{k}", f"index{k}"], [f"g{k}"]) for k in range(2)]
    nodes.append(helper.make_node("Add", ["g0", "g1"], ["r"]))
    shape = [tokens, HEADS, WIDTH]
    if consumer == "product":
        nodes += [
            helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ]
    elif consumer == "weighted":
        shape = [tokens, HEADS, tokens]
        nodes.append(helper.make_node("MatMul", ["x", "r"], ["y"]))
    elif consumer == "sum":
        shape = [1, 1, WIDTH]
        nodes.append(helper.make_node("Add", ["x", "r"], ["y"]))
    else:
        shape = [tokens, tokens, 2]
        nodes += [
            helper.make_node("Slice", ["r", "zero", "two", "axis"], ["s"]),
            helper.make_node("Add", ["x", "s"], ["z"]),
            helper.make_node("Unique", ["z"], ["y"]),
        ]
        constants |= {"zero": np.array([0]), "two": np.array([2]), "axis": np.array([2])}
    return model(nodes, {"x": shape}, constants=constants)


def kernels(proto: onnx.ModelProto, level: str) -> list[Kernel]:
    return [k for k in run_passes(load_graph(proto, None), level).kernels if isinstance(k, Kernel)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("consumer", ["product", "weighted", "sum", "host"])
def test_the_answer_is_right(consumer, level):
    proto = relative(consumer)
    x = RNG.standard_normal(load_graph(proto, None).inputs[0].shape).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    (got,) = smartmem.compile(proto, level=level).run({"x": x})
    assert np.linalg.norm(got - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_a_product_computes_them_from_the_tables():
    (kernel,) = kernels(relative("weighted"), "full")
    assert {"table0", "table1", "x"} <= set(kernel.inputs())
    for consumer in ("product", "weighted"):
        program = build_program(relative(consumer))
        held = sum(weight.nbytes for weight in program.weights.values())
        assert held < 4 * TOKENS * TOKENS * WIDTH / 4, f"{held} bytes: the gathered matrices are in the model"


def test_what_no_load_computes_is_computed_when_compiling():
    for level in LEVELS[:4]:
        (kernel,) = kernels(relative("product"), level)[-1:]
        assert "table0" not in kernel.inputs(), level
    # Twelve tokens: 37 KiB are worth keeping as they are.
    (kernel,) = kernels(relative("weighted", tokens=12), "full")
    assert "table0" not in kernel.inputs()
