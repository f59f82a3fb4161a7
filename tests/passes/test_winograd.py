"""Winograd convolutions: the same numbers as the convolution, only where the definition is one, and in few kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import onnxruntime as ort
import pytest
from tests.support.convolutions import CHANNELS, convolution, gated

import smartmem
from smartmem.frontend.load import load_graph
from smartmem.passes.lower import lower
from smartmem.passes.winograd import winograd
from smartmem.schedule.backend import Backend, Product


def rewritten(proto: onnx.ModelProto, backend: Backend | None = None) -> bool:
    module = lower(load_graph(proto, {}))
    before = len(module.steps)
    winograd(module, backend)
    return len(module.steps) > before


@pytest.mark.parametrize(
    "size, pads, options",
    [
        (32, 1, {}),
        (34, 0, {}),
        (64, 1, {}),
        (14, 1, {}),  # sides that only tiles of 2x2 divide
        (16, 0, {}),
        (28, 1, {"channels": 192, "group": 4}),
        (14, 1, {"channels": 432, "group": 9}),
        (24, 1, {"channels": 128, "group": 2, "outputs": 192}),  # other columns than inputs in a group
        (33, 1, {}),  # tiles beyond the sides: one row and column of the last exist,
        (36, 0, {}),  # two,
        (71, 1, {"channels": 48}),  # three
        (17, 1, {"channels": 256}),  # the same in tiles of 2x2
        (27, 1, {"channels": 192, "group": 4}),
    ],
)
def test_it_gives_what_the_convolution_gives(size, pads, options):
    proto = convolution(size, pads=pads, **options)
    channels = options.get("channels", CHANNELS)
    x = np.random.default_rng(size).standard_normal((1, channels, size, size)).astype(np.float32)
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto) as compiled:
        assert any(k["name"].endswith(".products") for k in compiled.program.report["kernels"])
        assert compiled.program.report["totals"]["copies"] == 0
        error = np.linalg.norm(compiled(x) - expected) / np.linalg.norm(expected)
    assert error < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"size": 5},  # most of the tiles would lie beyond the sides
        {"channels": 64, "group": 64},  # depthwise
        {"channels": 64, "group": 8},  # groups with too few channels
        {"strides": [2, 2]},
        {"dilations": [2, 2], "pads": 2},
        {"constant": False},
        {"channels": 4},  # too little to save
    ],
)
def test_what_it_leaves_alone(options):
    assert not rewritten(convolution(**options))


def test_what_it_takes():
    assert rewritten(convolution())
    assert rewritten(convolution(14))
    assert rewritten(convolution(28, channels=192, group=4))


def test_the_tile_that_saves_more():
    for size, side in ((32, 6), (14, 4), (35, 6)):
        module = lower(load_graph(convolution(size), {}))
        winograd(module)
        assert module.constants["c.sum.weights"].shape[:2] == (side, side)


def _kernels(proto: onnx.ModelProto) -> list[tuple[str, str]]:
    """Names and families of the kernels, whose numbers are right."""
    shape = tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    expected = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto) as compiled:
        assert np.linalg.norm(compiled(x) - expected) / np.linalg.norm(expected) < 1e-5
        return [(k["name"], k["family"]) for k in compiled.program.report["kernels"]]


def test_activations_between_are_computed_once():
    """An activation is the epilogue of the convolution before, not part of every tile that reads its result."""
    assert [name for name, _ in _kernels(gated(28))] == ["a", "c.sum.tiles", "c.sum.products", "y"]


def test_its_results_are_no_epilogue_of_another_product():
    """Each of them would load 36 products; where neighbours are computed together 16 share these."""
    proto = convolution()
    rng = np.random.default_rng(5)
    proto.graph.initializer.append(
        nh.from_array((rng.standard_normal((CHANNELS, CHANNELS, 1, 1)) / 8).astype("f"), "v")
    )
    proto.graph.node[1].input[0] = "sum"
    proto.graph.node.insert(1, oh.make_node("Add", ["c", "shortcut"], ["sum"]))
    proto.graph.node.insert(1, oh.make_node("Conv", ["x", "v"], ["shortcut"]))
    found = dict(_kernels(proto))
    assert found["y"] == "pointwise"
    assert set(found) == {"c.sum.tiles", "c.sum.products", "shortcut", "y"}


def test_a_product_of_two_tensors_in_front_is_stored():
    """x * sigmoid(x) in the place of its readers would take two tensors, which something else had to store."""
    proto = convolution()
    proto.graph.node[0].input[0] = "s"
    for node in (("Mul", ["t", "gate"], "s"), ("Sigmoid", ["t"], "gate"), ("Tanh", ["x"], "t")):
        proto.graph.node.insert(0, oh.make_node(node[0], node[1], [node[2]]))
    assert [name for name, _ in _kernels(proto)] == ["s", "c.sum.tiles", "c.sum.products", "y"]


def _multiplies(product: Product) -> float:
    return product.batch * product.m * product.n * product.k


def _device(per_byte: float) -> Backend:
    """A backend that takes as long for a byte as for so many products."""
    return Backend(lambda kernel, constants: "", predict=_multiplies, moves=lambda n: per_byte * n)


def test_on_a_device_it_follows_the_prediction():
    assert rewritten(convolution(), _device(0.1))
    assert not rewritten(convolution(), _device(100.0))
    assert not rewritten(convolution(28, channels=192, group=4), _device(0.0))  # no groups there
    assert not rewritten(convolution(), Backend(lambda kernel, constants: "", predict=_multiplies))


def test_on_a_device_it_is_compared_with_a_product_in_slices():
    """With few pixels a long reduction is cut into slices for all compute units; that is what must be beaten."""

    def few_groups(product: Product) -> float:
        return float(-(-product.batch // 16) * product.m * product.n * product.k)  # 16 at a time

    sliced = Backend(lambda kernel, constants: "", predict=few_groups, moves=lambda n: 4.0 * n)
    assert not rewritten(convolution(16, channels=128), sliced)
    assert rewritten(convolution(16, channels=128), _device(4.0))


def test_other_levels_have_none():
    with smartmem.compile(convolution(), level="layout") as compiled:
        assert not any("products" in k["name"] for k in compiled.program.report["kernels"])
