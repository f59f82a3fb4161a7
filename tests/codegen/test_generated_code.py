"""Properties of the generated C: no division inside a reduction, equal kernels once, range proofs that can fail."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.networks import network
from tests.support.onnx_models import model

import smartmem
from smartmem.compiler import build_program
from smartmem.runtime.artifact import Program
from smartmem.schedule.code import KernelCode


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


def normalized_groups(channels: int, groups: int, side: int) -> onnx.ModelProto:
    """A group normalization between two 1x1 convolutions, which have channels side by side."""
    rng = np.random.default_rng(channels)
    weights = {name: rng.standard_normal((channels, channels, 1, 1)).astype(np.float32) for name in ("w", "v")}
    scales = {name: rng.standard_normal(channels).astype(np.float32) for name in ("scale", "shift")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("GroupNormalization", ["a", "scale", "shift"], ["n"], num_groups=groups),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Mul", ["n", "s"], ["m"]),
        helper.make_node("Conv", ["m", "v"], ["y"]),
    ]
    return model(nodes, {"x": (1, channels, side, side)}, {"y": None}, {**weights, **scales}, opset=21)


@pytest.mark.parametrize("channels, groups, times", [(64, 16, 4), (32, 16, 2), (64, 8, 8), (48, 16, 0), (36, 9, 4)])
def test_what_several_lanes_share_is_loaded_once(channels: int, groups: int, times: int) -> None:
    """The mean of a group of 2, 4, 8 channels is in as many lanes; groups of 3 are read lane by lane."""
    proto = normalized_groups(channels, groups, 20)
    text = "".join(build_program(proto, march="x86-64-v4").sources.values())
    assert (f"sm_iota() / sm_splat_i({times})" in text) == bool(times)
    x = np.random.default_rng(1).standard_normal((1, channels, 20, 20)).astype(np.float32)
    with smartmem.compile(proto, level="naive") as plain, smartmem.compile(proto, threads=2) as tuned:
        assert np.allclose(tuned(x), plain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tasks, grain", [(1, 1), (300, 1), (1000, 3), (65_536, 256)])
def test_many_tasks_are_handed_out_together(tasks: int, grain: int) -> None:
    assert KernelCode("", [], tasks).grain == grain
