"""Contractions on matrix units: the numbers of bfloat16 and of bytes, whatever rows, columns and depth leave over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem
from smartmem import api
from smartmem.codegen.target import target_of
from smartmem.compiler import build_program
from smartmem.errors import InputError, RuntimeFailure
from smartmem.runtime import matrix_units
from smartmem.schedule.code import UnitForm
from smartmem.schedule.units import b_tiles

WITH_UNITS = "sapphirerapids"
needs_units = pytest.mark.skipif(not target_of("native").units, reason="this CPU has no matrix units")

Array = np.ndarray


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x: Array) -> Array:
    """The nearest bfloat16."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def error(got: Array, want: Array) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_same_without_units(proto: onnx.ModelProto, x: Array, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """The answer is the same, to the bit, as that of code for a processor without matrix units."""
    with smartmem.compile(proto, threads=2) as compiled:
        found = compiled(x)
    monkeypatch.setenv("SMARTMEM_CACHE", str(cache))
    monkeypatch.setattr("smartmem.codegen.target.target_of", lambda name: replace(target_of(name), units=False))
    with smartmem.compile(proto, threads=2) as compiled:
        assert np.array_equal(compiled(x), found)


def product(rows: int, depth: int, columns: int) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return model([node], {"x": (rows, depth)}, {"y": None}, {"w": normal(0, depth, columns)})


def text_of(proto: onnx.ModelProto, precision: str = "bf16", march: str = WITH_UNITS) -> str:
    return "".join(build_program(proto, march=march, precision=precision).sources.values())


@needs_units
@pytest.mark.parametrize(
    "rows, depth, columns", [(9, 32, 16), (16, 100, 40), (50, 1100, 64), (197, 1100, 40), (197, 48, 96), (600, 64, 33)]
)
def test_products_of_bfloat16(rows: int, depth: int, columns: int) -> None:
    """Row tiles alone and in pairs, panels that end within, several blocks of k: the numbers of rounded operands."""
    proto, x, w = product(rows, depth, columns), normal(1, rows, depth), normal(0, depth, columns)
    with smartmem.compile(proto, precision="bf16", threads=2) as compiled:
        assert error(compiled(x), rounded(x).astype(np.float64) @ rounded(w)) < 1e-6
    with smartmem.compile(proto, precision="bf16x3", threads=2) as compiled:
        assert error(compiled(x), x.astype(np.float64) @ w) < 1e-5


@needs_units
@pytest.mark.parametrize("channels", [8, 20, 48])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(channels: int, groups: int) -> None:
    """Taps of a whole tile, of a part of one, and that begin within a vector; padding, and an epilogue that is long."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 1], group=groups),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["y"]),
    ]
    constants = {"w": normal(0, 48, channels // groups, 3, 3), "b": normal(1, 48)}
    proto = model(nodes, {"x": (1, channels, 13, 14)}, {"y": None}, constants)
    x = normal(2, 1, channels, 13, 14)
    with smartmem.compile(proto, level="fuse") as exact:
        want = exact(x)
        constants["w"] = rounded(constants["w"])
    with smartmem.compile(model(nodes, {"x": (1, channels, 13, 14)}, {"y": None}, constants), level="fuse") as exact:
        same_numbers = exact(rounded(x))
    for precision, wanted, allowed in (("bf16x3", want, 1e-5), ("bf16", same_numbers, 1e-5)):
        assert "sm_units_begin" in text_of(proto, precision)
        with smartmem.compile(proto, precision=precision, threads=2) as compiled:
            assert error(compiled(x), wanted) < allowed, precision


@needs_units
def test_normalization_two_layers_and_a_residual() -> None:
    """What is local to a block of rows is packed once, also where tasks share rows and divide columns."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "shift"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["m"]),
        helper.make_node("Add", ["m", "x"], ["y"]),
    ]
    constants = {"scale": normal(0, 96), "shift": normal(1, 96), "w": normal(2, 96, 1056), "v": normal(3, 1056, 96)}
    proto = model(nodes, {"x": (150, 96)}, {"y": None}, constants)
    x = normal(4, 150, 96)
    with smartmem.compile(proto, level="fuse") as exact:
        want = exact(x)
    with smartmem.compile(proto, precision="bf16x3", threads=2) as compiled:
        assert error(compiled(x), want) < 1e-5
    with smartmem.compile(proto, precision="bf16", threads=2) as compiled:
        assert 1e-4 < error(compiled(x), want) < 1e-2


@needs_units
@pytest.mark.parametrize("tokens, size", [(67, 32), (130, 40)])
def test_attention(tokens: int, size: int) -> None:
    """Both operands are packed when it runs: keys that are turned, values as they lie; an odd number of them."""
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    proto = model(nodes, dict.fromkeys("qkv", (3, tokens, size)), {"y": None})
    q, k, v = (normal(seed, 3, tokens, size) for seed in range(3))
    with smartmem.compile(proto, level="fuse") as exact:
        want = exact(q, k, v)
        of_rounded = exact(rounded(q), rounded(k), v)
    assert "sm_store_panel" in text_of(proto)
    with smartmem.compile(proto, precision="bf16x3", threads=2) as compiled:
        assert error(compiled(q, k, v), want) < 3e-5
    with smartmem.compile(proto, precision="bf16", threads=2) as compiled:
        found = compiled(q, k, v)
    assert error(found, of_rounded) < 4e-3 < error(found, want) < 5e-2


@needs_units
@pytest.mark.parametrize("depth", [64, 80, 2000])
def test_products_of_bytes_are_the_same_without_them(
    depth: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "t", "z"], ["y"]),
    ]
    integers = np.random.default_rng(0).integers(-128, 128, (depth, 40)).astype(np.int8)
    scales = np.random.default_rng(1).uniform(0.01, 0.02, 40).astype(np.float32)
    constants = {"s": np.float32(0.02), "z": np.uint8(100), "w": integers, "sw": scales, "zw": np.zeros(40, np.int8)}
    proto = model(nodes, {"x": (37, depth)}, ["y"], {**constants, "t": np.float32(0.5)})
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    assert "_tile_dpbusd" in text_of(proto, "fp32") and "_tile_dpbusd" not in text_of(proto, "fp32", "znver4")
    x = normal(2, 37, depth)
    assert_same_without_units(proto, x, monkeypatch, tmp_path)


def test_floats_stay_floats_unless_they_may_not() -> None:
    proto = product(64, 64, 64)
    assert "sm_units_begin" not in text_of(proto, "fp32")
    assert "sm_units_begin" in text_of(proto, "bf16")
    few = [product(4, 64, 64), product(64, 24, 64), product(64, 64, 8)]
    assert not any("sm_units_begin" in text_of(proto, "bf16") for proto in few)
    (kernel,) = build_program(product(64, 64, 64), march=WITH_UNITS, precision="bf16x3").report["kernels"]
    assert "on matrix units, operands as 2 bfloat16 for a float" in kernel["notes"]


def test_tiles_of_operand_b() -> None:
    """Two rows of B in one of a tile, lower one first; parts add up to the float."""
    panel = normal(0, 1, 1, 40, 32)
    parts = b_tiles(panel, UnitForm(2)).view(np.uint16)
    assert parts.shape == (1, 1, 2, 2, 2, 16, 32)
    sums = (parts.astype(np.uint32) << 16).view(np.float32).sum(3)
    assert sums[0, 0, 1, 1, 3, 2 * 5] == pytest.approx(panel[0, 0, 32 + 6, 16 + 5], rel=2**-15)
    assert sums[0, 0, 1, 1, 3, 2 * 5 + 1] == pytest.approx(panel[0, 0, 32 + 7, 16 + 5], rel=2**-15)
    assert not sums[0, 0, 1, :, 4:].any()
    of_bytes = b_tiles(panel, UnitForm(0))
    assert of_bytes.shape == (1, 1, 3, 1, 2, 16, 16) and of_bytes[0, 0, 2, 0, 1, 7, 5] == panel[0, 0, 39, 21]


def test_a_processor_without_units_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"precision bf16 needs matrix units.*znver4 has none: leave it at fp32"):
        build_program(product(64, 64, 64), march="znver4", precision="bf16")
    assert [target_of(march).units for march in (WITH_UNITS, "graniterapids", "icelake-server")] == [True, True, False]


@needs_units
def test_a_file_names_the_units_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, plain = tmp_path / "units.smem", tmp_path / "plain.smem"
    with smartmem.compile(product(64, 64, 64), precision="bf16") as compiled:
        compiled.save(file)
    with smartmem.compile(product(64, 64, 64)) as compiled:
        compiled.save(plain)
    x = normal(1, 64, 64)
    with smartmem.load(file) as again:
        assert error(again(x), x @ normal(0, 64, 64)) < 1e-2
    monkeypatch.setattr(matrix_units, "permitted", lambda: False)
    api.load(plain).close()
    with pytest.raises(RuntimeFailure, match="no access to the matrix units"):
        smartmem.load(file)
