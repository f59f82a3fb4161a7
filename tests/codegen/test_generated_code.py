"""Properties of the generated C: no division inside a reduction, equal kernels once, range proofs that can fail."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.networks import network
from tests.support.onnx_models import model

from smartmem.compiler import build_program
from smartmem.runtime.artifact import Program


def functions(program: Program) -> dict[str, str]:
    """Comment and body of every kernel function, by symbol."""
    found = {}
    for source in program.sources.values():
        for match in re.finditer(r"/\* (?:(?!\*/).)*\*/\nvoid (\w+)\(.*?\n}\n", source, re.DOTALL):
            found[match.group(1)] = match.group(0)
    return found


def reductions(text: str) -> list[str]:
    """The bodies of the loops that reduce, and of the register tiles."""
    bodies = []
    for match in re.finditer(r"/\* reduces \*/ \{", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        bodies.append(text[match.end() : end])
    return bodies


def divides(body: str) -> bool:
    """Whether C text divides integers outside of comments; a quotient of vectors is arithmetic, not an index."""
    code = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    return any(
        re.search(r"[\w)] [/%] \w", index)
        for index in re.findall(r"[\w)]+ \+ [^;]*|\[[^\]]*\]", code)
        if "f32v" not in index
    )


@pytest.mark.parametrize(
    "name", ["swin_t_dynamo", "swin_t_script", "vit_b16_dynamo", "convnext_t_script", "minilm_script"]
)
def test_no_division_inside_a_reduction(name: str) -> None:
    program = build_program(network(name))
    checked = 0
    for symbol, text in functions(program).items():
        if "divi" in text.split("*/")[0]:  # logged: a Mark that no refinement removes
            continue
        for body in reductions(text):
            checked += 1
            assert not divides(body), f"{symbol} divides inside a reduction:\n{body}"
    assert checked > 0


def test_the_check_itself_sees_a_division() -> None:
    text = "for (long i = 0; i < 3; ++i) /* reduces */ {\n const float t1 = p0[3*(i / 2) + 1];\n}"
    (body,) = reductions(text)
    assert divides(body)


def test_equal_kernels_are_emitted_once() -> None:
    program = build_program(network("vit_b16_dynamo"))
    symbols = [step.symbol for step in program.steps]
    assert len(set(symbols)) < len(symbols) // 4
    assert sum(text.count(f"void {symbol}(") for symbol in set(symbols) for text in program.sources.values()) == len(
        set(symbols)
    )


def pixel_shuffle() -> onnx.ModelProto:
    """DepthToSpace followed by an addition."""
    nodes = [
        helper.make_node("DepthToSpace", ["x"], ["d"], blocksize=2, mode="CRD"),
        helper.make_node("Add", ["d", "b"], ["y"]),
    ]
    return model(nodes, {"x": (1, 16, 8, 8), "b": (1, 4, 16, 16)})


def test_refinement_leaves_pixel_shuffle_without_division() -> None:
    (text,) = functions(build_program(pixel_shuffle())).values()
    loops = [line for line in text.splitlines() if "sm_load" in line or "sm_store" in line or "p0[" in line]
    assert loops
    assert not any(" / " in line or " % " in line for line in loops)


@pytest.mark.parametrize("march, width", [("x86-64-v4", 16), ("x86-64-v3", 8), ("cortex_a76", 4)])
def test_every_instruction_set_has_its_tiles(march: str, width: int) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = model([node], {"x": (24, 32)}, constants={"w": np.ones((32, 64), np.float32)})
    program = build_program(proto, march=march)
    (panels,) = program.weights.values()
    assert panels.shape[-1] % width == 0
    assert "sm_tile_" in next(iter(program.sources.values()))
