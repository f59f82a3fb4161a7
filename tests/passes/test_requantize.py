"""Integers that are dequantized, moved and quantized alike: nothing is left of it but an index function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.passes.test_store_bytes import Quantized
from tests.support.onnx_models import info, model

import smartmem
from smartmem.compiler import build_program
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.pipeline import run_passes

RANDOM = np.random.default_rng(2)


def moved(
    kind: Any, scales: tuple[float, float], zeros: tuple[int, int] = (3, 3), relu: bool = False
) -> onnx.ModelProto:
    """Integers, dequantized, transposed and sliced, quantized with other or the same numbers."""
    nodes = [helper.make_node("DequantizeLinear", ["q", "s0", "z0"], ["d"])]
    nodes += [helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0])]
    nodes += [helper.make_node("Relu", ["t"], ["r"])] if relu else []
    nodes += [helper.make_node("Slice", ["r" if relu else "t", "from", "to", "axes"], ["c"])]
    nodes += [helper.make_node("QuantizeLinear", ["c", "s1", "z1"], ["y"])]
    constants = {f"s{k}": np.float32(value) for k, value in enumerate(scales)}
    constants |= {f"z{k}": kind(value) for k, value in enumerate(zeros)}
    constants |= {"from": np.array([2]), "to": np.array([30]), "axes": np.array([0])}
    element = TensorProto.UINT8 if kind == np.uint8 else TensorProto.INT8
    return model(nodes, [info("q", (8, 40), element)], {"y": None}, constants, opset=13)


def arithmetic(proto: onnx.ModelProto) -> bool:
    """Whether anything is computed."""
    kernels = run_passes(load_graph(proto), "full").kernels
    return not all(isinstance(kernel, Kernel) and kernel.is_copy for kernel in kernels)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("scale", [0.02, 1 / 255, 3.7e-5])
def test_the_same_numbers(kind: Any, scale: float) -> None:
    proto = moved(kind, (scale, scale))
    assert not arithmetic(proto)
    q = RANDOM.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (8, 40)).astype(kind)
    with smartmem.compile(proto) as compiled:
        np.testing.assert_array_equal(compiled(q), q.T[2:30])


@pytest.mark.parametrize(
    "proto",
    [
        moved(np.uint8, (0.02, 0.021)),
        moved(np.uint8, (0.02, 0.02), (3, 4)),
        moved(np.int8, (0.02, 0.02), relu=True),
        moved(np.uint8, (3e38, 3e38)),
    ],
    ids=["scales", "zeros", "relu", "infinite"],
)
def test_other_numbers(proto: onnx.ModelProto) -> None:
    assert arithmetic(proto)
    kind = np.uint8 if proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8 else np.int8
    q = RANDOM.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (8, 40)).astype(kind)
    with smartmem.compile(proto) as compiled, smartmem.compile(proto, level="fuse") as computed:
        np.testing.assert_array_equal(compiled(q), computed(q))


def test_pieces_of_a_quantized_tensor_are_read_where_they_lie() -> None:
    """What a product takes of a Split is four bytes at a time of the whole, no copy and no kernel."""
    net = Quantized(np.uint8)
    whole = net.conv(net.activation("x"), "whole", (64, 32, 1, 1))
    net.constants |= {"sizes": np.array([32, 32])}
    net.nodes.append(helper.make_node("Split", [whole, "sizes"], ["left", "right"], axis=1))
    for side in ("left", "right"):
        net.constants |= {f"{side}.s": net.constants["whole.s"], f"{side}.z": net.constants["whole.z"]}
        net.nodes += [
            helper.make_node("QuantizeLinear", [side, f"{side}.s", f"{side}.z"], [f"{side}.q"]),
            helper.make_node("DequantizeLinear", [f"{side}.q", f"{side}.s", f"{side}.z"], [f"{side}.d"]),
        ]
    first, second = (
        net.conv("left.d", "first", (48, 32, 1, 1)),
        net.conv("right.d", "second", (48, 32, 3, 3), pads=[1] * 4),
    )
    proto = net.model((1, 32, 9, 9), net.node("Add", [first, second], "sum"))
    report = build_program(proto, march="sapphirerapids").report
    assert report["totals"]["copies"] == 0
    assert [k["name"] for k in report["kernels"] if k["family"] == "pointwise" and not k["name"].startswith("x.")] == []
    x = RANDOM.standard_normal((1, 32, 9, 9), np.float32)
    with smartmem.compile(proto, level="naive") as floats, smartmem.compile(proto) as compiled:
        wanted, got = floats(x), compiled(x)
    assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted)
