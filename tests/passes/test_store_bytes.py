"""Quantized activations that lie in memory as bytes: which do, and that every kernel still computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.passes.test_byte_products import WITH_BYTES, agree
from tests.support.definitions import random
from tests.support.onnx_models import model
from tests.support.processors import skip_unless_it_runs

from smartmem.codegen.target import target_of
from smartmem.compiler import build_program

RANDOM = np.random.default_rng(1)
Array = np.ndarray[Any, Any]


class Quantized:
    """Writes a network as exporters do: QuantizeLinear and DequantizeLinear around every operator."""

    def __init__(self, kind: Any, per_channel: bool = True) -> None:
        self.kind, self.per_channel = kind, per_channel
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {}

    def activation(self, x: str) -> str:
        """`x` as integers, and back."""
        scale = RANDOM.uniform(0.04, 0.06)
        zero = self.kind(100 if self.kind == np.uint8 else -20)
        self.constants |= {f"{x}.s": np.float32(scale), f"{x}.z": zero}
        self.nodes += [
            helper.make_node("QuantizeLinear", [x, f"{x}.s", f"{x}.z"], [f"{x}.q"]),
            helper.make_node("DequantizeLinear", [f"{x}.q", f"{x}.s", f"{x}.z"], [f"{x}.d"]),
        ]
        return f"{x}.d"

    def conv(self, x: str, out: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """A convolution with weights of eight bits; its result as integers, and back."""
        self.constants |= {
            f"{out}.w": RANDOM.integers(-127, 128, shape).astype(np.int8),
            f"{out}.ws": RANDOM.uniform(0.001, 0.002, shape[0]).astype(np.float32),
            f"{out}.wz": np.zeros(shape[0], np.int8),
        }
        self.nodes += [
            helper.make_node("DequantizeLinear", [f"{out}.w", f"{out}.ws", f"{out}.wz"], [f"{out}.wd"], axis=0),
            helper.make_node("Conv", [x, f"{out}.wd"], [out], **attributes),
        ]
        return self.activation(out)

    def node(self, op: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        return self.activation(out)

    def silu(self, x: str) -> str:
        """x * sigmoid(x): a table of bytes."""
        return self.node("Mul", [x, self.node("Sigmoid", [x], f"{x}.sigmoid")], f"{x}.silu")

    def model(self, x: tuple[int, ...], y: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        return model(self.nodes, {"x": x}, {"y": None}, self.constants, opset=13)


def block(kind: Any, channels: int = 32, side: int = 10) -> onnx.ModelProto:
    """A residual block behind a pooling, and a classifier: who reads a tensor are products, windows and additions."""
    net = Quantized(kind)
    stem = net.conv(net.activation("x"), "stem", (channels, 8, 3, 3), pads=[1, 1, 1, 1])
    pooled = net.node("MaxPool", [stem], "pooled", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    first = net.conv(pooled, "first", (channels, channels, 1, 1))
    second = net.silu(net.conv(first, "second", (channels, channels, 3, 3), pads=[1, 1, 1, 1]))
    third = net.conv(second, "third", (2 * channels, channels, 1, 1))
    short = net.conv(pooled, "short", (2 * channels, channels, 1, 1))
    added = net.node("Add", [third, short], "added")
    relu = net.node("Relu", [added], "relu")
    fourth = net.conv(relu, "fourth", (2 * channels, 2 * channels, 3, 3), pads=[1, 1, 1, 1])
    last = net.node("Add", [fourth, relu], "last")
    mean = net.node("GlobalAveragePool", [last], "mean")
    return net.model((1, 8, side, side), mean)


def as_bytes(proto: onnx.ModelProto, march: str = WITH_BYTES) -> list[str]:
    """The activations that lie in memory as bytes."""
    return [
        slot.name for slot in build_program(proto, march=march).slots if (slot.kind, slot.dtype) == ("arena", "uint8")
    ]


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("channels", [32, 24, 12])
def test_a_residual_block(kind: Any, channels: int) -> None:
    """Whole vectors, parts of some, and both kinds of integers."""
    proto = block(kind, channels)
    assert len(as_bytes(proto)) >= 5
    agree(proto, random(1, 8, 10, 10))


@pytest.mark.parametrize("march", ["x86-64-v4", "x86-64-v3", "x86-64"])
def test_vectors_of_other_lengths(march: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The C code of loads and stores without AVX-512's, and with half of it."""
    skip_unless_it_runs(march)
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path))
    monkeypatch.setattr("smartmem.codegen.target.target_of", lambda name: replace(target_of(name), dot4=True))
    for kind in (np.uint8, np.int8):
        proto = block(kind, 12)
        assert as_bytes(proto, march)
        agree(proto, random(1, 8, 10, 10), march)


def test_no_kernel_only_packs() -> None:
    """Two products read what was pooled, and find it packed; the network's input is packed once."""
    kernels = build_program(block(np.uint8), march=WITH_BYTES).report["kernels"]
    packing = [kernel["name"] for kernel in kernels if kernel["family"] == "pointwise" and ".bytes" in kernel["name"]]
    assert [name for name in packing if not name.startswith("x.")] == []


def test_what_products_of_floats_read_stays_floats() -> None:
    """Depths of no multiple of four are multiplied as floats, and these read their operand where it lies."""
    net = Quantized(np.uint8)
    first = net.conv(net.activation("x"), "first", (30, 32, 1, 1))
    second = net.conv(first, "second", (32, 30, 1, 1))
    proto = net.model((1, 32, 9, 9), net.node("Add", [second, second], "twice"))
    assert not [name for name in as_bytes(proto) if name.startswith("first")]
    agree(proto, random(1, 32, 9, 9))


def test_outputs_and_float_networks_keep_their_types() -> None:
    net = Quantized(np.uint8)
    proto = net.model((1, 8, 6, 6), net.conv(net.activation("x"), "only", (16, 8, 1, 1)))
    assert not [name for name in as_bytes(proto) if name.startswith("only")]
    agree(proto, random(1, 8, 6, 6))
    relu = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (4, 8)}, {"y": None})
    assert not as_bytes(relu)
