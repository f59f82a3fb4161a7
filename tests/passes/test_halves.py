"""Models of 16-bit floats: stages of floats inside, the model's types at its borders."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

import smartmem
from smartmem.compiler import build_program
from smartmem.frontend.load import load_graph
from smartmem.inputs import allowed_error
from smartmem.kernel.stage import Stage
from smartmem.passes.lower import lower
from smartmem.passes.module import HostOp, Module
from smartmem.passes.pipeline import LEVELS

Array = np.ndarray
KINDS = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
HALVES = [TensorProto.FLOAT16, TensorProto.BFLOAT16]


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def block(kind: int) -> onnx.ModelProto:
    """A normalization, two layers, a transpose between them and a residual, with weights that halves can hold."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["u", "v"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["y"]),
    ]
    weights = {"scale": normal(0, 48), "shift": normal(1, 48), "w": normal(2, 48, 96), "v": normal(3, 96, 48)}
    coarse = {name: value.astype(ml_dtypes.bfloat16).astype(KINDS[kind]) for name, value in weights.items()}
    return model(nodes, [info("x", (2, 9, 48), kind)], [info("y", (2, 9, 48), kind)], coarse)


def halves(module: Module) -> set[str]:
    """Stages that store 16-bit floats, or read them."""
    stages = [step for step in module.steps if isinstance(step, Stage)]
    return {s.name for s in stages if any(k.itemsize == 2 for k in (s.dtype, *(x.dtype for x in s.loads())))}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("level", LEVELS)
def test_only_the_result_is_rounded(kind: int, level: str) -> None:
    x = normal(4, 2, 9, 48).astype(ml_dtypes.bfloat16)
    with smartmem.compile(block(TensorProto.FLOAT), level=level, threads=1) as floats:
        want = floats(x.astype(np.float32))
    with smartmem.compile(block(kind), level=level, threads=1) as compiled:
        found = compiled(x.astype(KINDS[kind]))
    assert found.dtype == KINDS[kind] and np.array_equal(found, want.astype(KINDS[kind]))


@pytest.mark.parametrize("kind", HALVES)
def test_conversions_are_at_the_borders(kind: int) -> None:
    module = lower(load_graph(block(kind), None))
    assert halves(module) == {"x.float", "y"}
    assert {data.dtype for data in module.constants.values()} == {np.dtype(np.float32)}
    kernels = build_program(block(kind)).report["kernels"]
    assert [k["name"] for k in kernels if k["family"] == "fallback"] == ["x.float", "y"] and len(kernels) <= 5


@pytest.mark.parametrize("level", LEVELS)
def test_a_cast_that_is_undone_rounds(level: str) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["h", "h"], ["d"]),
        helper.make_node("Cast", ["d"], ["z"], to=TensorProto.FLOAT),
    ]
    x = np.array([1e5, 2049, 0.3], np.float32)
    with np.errstate(over="ignore"):
        h = x.astype(np.float16).astype(np.float32)
    with smartmem.compile(model(nodes, {"x": (3,)}, {"y": (3,), "z": (3,)}), level=level) as compiled:
        y, z = compiled(x)
    assert np.array_equal(y, h) and np.array_equal(z, h * h)


def test_a_cast_in_front_of_operators_rounds_nothing() -> None:
    """1e5 is no half, and 2049 neither: the one would be infinite, the other 2048."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["h", "two"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": (3,)}, {"y": (3,)}, {"two": np.float16(2)})
    x = np.array([1e5, 2049, 0.3], np.float32)
    for level in LEVELS:
        with smartmem.compile(proto, level=level) as compiled:
            assert np.array_equal(compiled(x), 2 * x)


def test_host_operators_get_what_they_ask_for() -> None:
    """A host operator between kernels reads halves and gives halves; a constant that it reads is floats elsewhere."""
    nodes = [
        helper.make_node("Mul", ["x", "c"], ["d"]),
        helper.make_node("Unique", ["d"], ["u"], sorted=1),
        helper.make_node("Unique", ["c"], ["v"], sorted=1),
        helper.make_node("ReduceMax", ["u"], ["most"], keepdims=1),
        helper.make_node("ReduceMax", ["v"], ["last"], keepdims=1),
        helper.make_node("Add", ["most", "last"], ["s"]),
        helper.make_node("Sub", ["d", "s"], ["y"]),
    ]
    half = TensorProto.FLOAT16
    c = np.array([3, 1, 2, 3], np.float16)
    proto = model(nodes, [info("x", (4,), half)], [info("y", (4,), half)], {"c": c})
    x = np.array([1, 5, -2, 4], np.float16)
    module = lower(load_graph(proto, None))
    assert any(isinstance(step, HostOp) for step in module.steps)  # else the test needs another operator
    with smartmem.compile(proto) as compiled:
        assert np.array_equal(compiled(x), x * c - (x * c).max() - 3)


def test_inputs_and_constants_that_are_outputs() -> None:
    half, c = TensorProto.FLOAT16, np.array([0.1, 7], np.float16)
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Add", ["x", "c"], ["z"])]
    nodes += [helper.make_node("Identity", ["c"], ["k"])]
    proto = model(nodes, [info("x", (2,), half)], [info(name, (2,), half) for name in "yzk"], {"c": c})
    x = np.array([0.3, -5], np.float16)
    with smartmem.compile(proto) as compiled:
        for got, want in zip(compiled(x), (x, (x.astype(np.float32) + c).astype(np.float16), c), strict=True):
            assert got.dtype == np.float16 and np.array_equal(got, want)


@pytest.mark.parametrize("kind, allowed", [(TensorProto.FLOAT, 1e-3), (HALVES[0], 2e-2), (HALVES[1], 5e-2)])
def test_what_counts_as_right(kind: int, allowed: float, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(block(kind), str(path))
    assert allowed_error(path) == allowed
    assert allowed_error(path, "bf16") == 5e-2
