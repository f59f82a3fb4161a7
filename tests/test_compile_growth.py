"""The compiler's work grows with the number of blocks, not with its square: counted in function calls, not seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program

PACKAGE = str(Path(smartmem.__file__).parent)
ROWS, DIM, HEADS = 49, 64, 4


def transformer(blocks: int) -> ModelProto:
    """Blocks of attention and MLP with residuals, heads split and merged by Reshape and Transpose."""
    rng = np.random.default_rng(0)
    nodes, weights = [], {}

    def add(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    def heads(x: str, order: list[int]) -> str:
        return add("Transpose", add("Reshape", add("MatMul", x, weight(DIM, DIM)), "split"), perm=order)

    weights["split"] = np.array([1, ROWS, HEADS, DIM // HEADS])
    weights["merge"] = np.array([1, ROWS, DIM])
    x = "x"
    for _ in range(blocks):
        normed = add("LayerNormalization", x, weight(DIM), weight(DIM))
        query, value = heads(normed, [0, 2, 1, 3]), heads(normed, [0, 2, 1, 3])
        scores = add("Softmax", add("MatMul", query, heads(normed, [0, 2, 3, 1])))
        attended = add("Transpose", add("MatMul", scores, value), perm=[0, 2, 1, 3])
        x = add("Add", x, add("MatMul", add("Reshape", attended, "merge"), weight(DIM, DIM)))
        hidden = add(
            "Relu", add("MatMul", add("LayerNormalization", x, weight(DIM), weight(DIM)), weight(DIM, 2 * DIM))
        )
        x = add("Add", x, add("MatMul", hidden, weight(2 * DIM, DIM)))
    return model(nodes, {"x": (1, ROWS, DIM)}, [x], weights)


def calls(blocks: int, level: str) -> int:
    """Calls of smartmem's own functions while it compiles to C."""
    proto = transformer(blocks)
    count = 0

    def see(frame: Any, event: str, argument: object) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            count += 1

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        build_program(proto, level=level)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("level", ["naive", "full"])
def test_twice_the_blocks_are_twice_the_work(level: str) -> None:
    calls(1, level)  # what is cached for the life of the process
    few, more, most = (calls(blocks, level) for blocks in (3, 6, 12))
    # Linear: 6 blocks more cost twice what 3 blocks more do. Quadratic: four times.
    assert most - more < 2.3 * (more - few), (few, more, most)
