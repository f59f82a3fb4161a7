"""Products of bytes: found in both forms of quantized networks, and the same numbers as those of floats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.support.definitions import random
from tests.support.onnx_models import info, model
from tests.support.processors import skip_unless_it_runs

import smartmem
from smartmem.codegen.target import target_of
from smartmem.compiler import build_program
from smartmem.index.lin import axis_digit
from smartmem.kernel.evaluate import evaluate_expr
from smartmem.kernel.expr import alu, load
from smartmem.runtime.march import host_family, missing_features

WITH_BYTES = "sapphirerapids"
RANDOM = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def integers(dtype: Any, *shape: int) -> Array:
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, int(limits.max) + 1, shape).astype(dtype)


def scales(*shape: int) -> Array:
    return RANDOM.uniform(0.01, 0.02, shape).astype(np.float32)


def multiplies_bytes(proto: onnx.ModelProto, march: str = WITH_BYTES) -> bool:
    """Whether the code for a processor with products of bytes has some."""
    sources = build_program(proto, march=march).sources.values()
    return any("sm_dot4" in text or "_tile_dpbusd" in text for text in sources)


def agree(proto: onnx.ModelProto, x: Array, march: str = "native") -> None:
    """Level `full`, in bytes if the processor has their products, and `fuse` in floats give the same."""
    with smartmem.compile(proto, level="fuse") as floats, smartmem.compile(proto, threads=2, march=march) as compiled:
        wanted, got = floats(x), compiled(x)
    assert np.linalg.norm(wanted) > 0
    assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)


def quantized(
    op: str, x: tuple[int, ...], w: Array, scale: Array, zeros: tuple[Any, Any], axis: int = 0, **attributes: Any
) -> onnx.ModelProto:
    """An operator on a quantized activation and dequantized weights, as exporters write it."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=axis),
        helper.make_node(op, ["dx", "dw"], ["y"], **attributes),
    ]
    constants = {"sx": np.float32(0.02), "zx": zeros[0], "w": w, "sw": scale, "zw": zeros[1]}
    return model(nodes, {"x": x}, {"y": None}, constants, opset=13)


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(120), np.uint8(255), np.int8(-5)])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0)])
@pytest.mark.parametrize("channels", [3, 4, 16, 32])
def test_convolutions(zero: Any, pads: tuple[int, ...], channels: int) -> None:
    """Whatever stands for zero beyond the sides, for pixels of few and of many channels."""
    w = integers(np.int8, 24, channels, 3, 3)
    zeros = (zero, np.zeros(24, np.int8))
    proto = quantized("Conv", (1, channels, 9, 10), w, scales(24), zeros, pads=pads, strides=(2, 1))
    assert multiplies_bytes(proto)
    agree(proto, random(1, channels, 9, 10))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_matrix_products(transposed: bool, kind: Any) -> None:
    """Weights of either type, with a scale per column, perhaps behind a Transpose."""
    w = integers(kind, 40, 64) if transposed else integers(kind, 64, 40)
    zero = np.full(40, 128 if kind == np.uint8 else 0, kind)
    proto = quantized("MatMul", (2, 13, 64), w, scales(40), (np.uint8(99), zero), axis=0 if transposed else 1)
    if transposed:
        proto.graph.node[3].input[1] = "dwt"
        proto.graph.node.insert(3, helper.make_node("Transpose", ["dw"], ["dwt"], perm=[1, 0]))
    assert multiplies_bytes(proto)
    agree(proto, random(2, 13, 64))


def test_dynamic_quantization() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["m"]),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    proto = model(nodes, {"x": (10, 64)}, {"y": None}, {"w": integers(np.int8, 64, 32)})
    assert multiplies_bytes(proto)
    agree(proto, random(10, 64))


def test_long_reductions() -> None:
    """Blocks of k are sums of integers each, added as floats."""
    w = integers(np.int8, 4096, 48)
    proto = quantized("MatMul", (7, 4096), w, scales(48), (np.uint8(3), np.zeros(48, np.int8)), axis=1)
    assert multiplies_bytes(proto)
    agree(proto, random(7, 4096))


def test_what_cannot_be_bytes_stays_floats() -> None:
    """Depths of no multiple of four, groups, sixteen bits, weights that depend on data, one column."""
    few = quantized("MatMul", (7, 33), integers(np.int8, 33, 8), scales(8), (np.uint8(3), np.zeros(8, np.int8)), axis=1)
    groups = quantized(
        "Conv", (1, 16, 8, 8), integers(np.int8, 16, 8, 3, 3), scales(16), (np.uint8(3), np.zeros(16, np.int8)), group=2
    )
    column = quantized(
        "MatMul", (7, 64), integers(np.int8, 64, 1), scales(1), (np.uint8(3), np.zeros(1, np.int8)), axis=1
    )
    for proto, x in ((few, random(7, 33)), (groups, random(1, 16, 8, 8)), (column, random(7, 64))):
        assert not multiplies_bytes(proto)
        agree(proto, x)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    wide = model(
        nodes, [info("x", (8, 64), TensorProto.INT16)], {"y": None}, {"w": integers(np.int8, 64, 32).astype(np.float32)}
    )
    assert not multiplies_bytes(wide)
    both = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["d", "d"], ["y"]),
    ]
    square = model(both, {"x": (32, 32)}, {"y": None}, {"s": np.float32(0.1), "z": np.uint8(9)}, opset=13)
    assert not multiplies_bytes(square)
    agree(square, random(32, 32))


def test_processors_without_the_instruction_multiply_floats() -> None:
    proto = quantized(
        "MatMul", (7, 64), integers(np.int8, 64, 40), scales(40), (np.uint8(3), np.zeros(40, np.int8)), axis=1
    )
    assert target_of(WITH_BYTES).dot4
    assert not target_of("x86-64-v4").dot4
    assert not target_of("haswell").dot4
    assert not multiplies_bytes(proto, "x86-64-v4")


def test_vectors_of_eight() -> None:
    """AVX-VNNI, on processors without AVX-512."""
    if host_family() != "x86_64" or missing_features(["avx_vnni", "avx2"]):
        pytest.skip("this machine has no AVX-VNNI")
    w = integers(np.int8, 64, 40)
    proto = quantized("MatMul", (7, 64), w, scales(40), (np.uint8(3), np.zeros(40, np.int8)), axis=1)
    assert multiplies_bytes(proto, "alderlake")
    agree(proto, random(7, 64), march="alderlake")


@pytest.mark.parametrize("march", ["x86-64-v4", "x86-64-v3", "x86-64"])
def test_without_the_instruction_the_numbers_are_the_same(
    march: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The C code spells out what it does, should it be compiled for another processor."""
    skip_unless_it_runs(march)
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path))
    monkeypatch.setattr("smartmem.codegen.target.target_of", lambda name: replace(target_of(name), dot4=True))
    w = integers(np.int8, 64, 40)
    proto = quantized("MatMul", (7, 64), w, scales(40), (np.uint8(3), np.zeros(40, np.int8)), axis=1)
    assert multiplies_bytes(proto, march)
    agree(proto, random(7, 64), march=march)


def test_numbers_of_bytes() -> None:
    """What numpy takes the two operations for."""
    index = (axis_digit(0, 2),)
    bytes_, signed = np.array([[255, 0, 7, 128], [1, 2, 3, 4]], np.uint8), np.array([[-128, 1, 1, -1]] * 2, np.int8)
    tensors = {"a": bytes_.view(np.float32)[:, 0], "b": signed.view(np.float32)[:, 0]}
    product = evaluate_expr(alu("dot4", load("a", index), load("b", index)), [np.arange(2)], tensors)
    assert product.tolist() == (bytes_.astype(int) * signed).sum(-1).tolist()
    columns = {str(k): bytes_[:, k].astype(np.float32) for k in range(4)}
    packed = evaluate_expr(alu("pack4", *(load(name, index) for name in columns)), [np.arange(2)], columns)
    assert packed.view(np.uint32).tolist() == tensors["a"].view(np.uint32).tolist()
