"""ScatterND and ScatterElements: slices become choices, other known targets tables, unknown ones a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.support.definitions import check, random, undefined
from tests.support.onnx_models import info, model

import smartmem
from smartmem.kernel.expr import Alu, Choose, walk

REDUCTIONS = ["none", "add", "mul", "max", "min"]
Array = np.ndarray[Any, Any]


def grid(*ranges: range) -> Array:
    """The indices of an assignment to a slice, as exporters write them."""
    return np.stack(np.meshgrid(*ranges, indexing="ij"), -1).astype(np.int64)


@pytest.mark.parametrize(
    "indices",
    [
        grid(range(4), range(2, 5)),
        grid(range(4), range(1, 8, 3)),
        grid(range(4), range(8), range(-2, 0)),
        grid(range(1)),
    ],
)
def test_an_assignment_to_a_slice_is_a_choice(indices: Array) -> None:
    x = random(4, 8, 6)
    updates = random(*indices.shape[:-1], *x.shape[indices.shape[-1] :])
    (stage,) = check("ScatterND", [x, indices, updates], constant=[1])
    assert stage.is_movement or isinstance(stage.body, Choose)
    assert not any(isinstance(node, Alu) for node in walk(stage.body))


def test_a_slice_in_a_network_is_no_pass_over_memory() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("ScatterND", ["r", "i", "u"], ["s"]),
        helper.make_node("Sigmoid", ["s"], ["y"]),
    ]
    constants = {"i": grid(range(4), range(2, 5))}
    proto = model(nodes, {"x": (4, 8, 6), "u": (4, 3, 6)}, {"y": None}, constants, opset=18)
    feeds = {"x": random(4, 8, 6), "u": random(4, 3, 6)}
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]
    with smartmem.compile(proto) as compiled:
        assert len(compiled.program.report["kernels"]) == 1
        np.testing.assert_allclose(compiled(feeds["x"], feeds["u"]), wanted, rtol=1e-5)


SCATTERED = np.array([[0, 1], [3, -4], [0, 1], [2, 2], [1, 7]])


@pytest.mark.parametrize("constant", [[], [1]])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_nd(reduction: str, constant: list[int]) -> None:
    """The last of several updates of one element counts, or all of them."""
    inputs = [random(4, 8, 6), SCATTERED, random(5, 6)]
    check("ScatterND", inputs, opset=18, constant=constant, reduction=reduction)
    rows = np.array([[[0], [3], [2]], [[0], [3], [0]]])
    check("ScatterND", [random(4, 8), rows, random(2, 3, 8)], opset=18, constant=constant, reduction=reduction)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("constant", [[], [1]])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_elements(reduction: str, constant: list[int], axis: int) -> None:
    """Indices may be smaller than data along every axis."""
    indices = np.random.default_rng(0).integers(-4, 4, (3, 5, 4))
    inputs = [random(4, 8, 6), indices, random(3, 5, 4)]
    check("ScatterElements", inputs, opset=18, constant=constant, frontend=True, axis=axis, reduction=reduction)


def test_scatter_of_opset_9() -> None:
    indices = np.array([[1, 0, 2], [0, 2, 1]])
    wanted = random(3, 3)
    np.put_along_axis(wanted, indices, random(2, 3), 0)
    check("Scatter", [random(3, 3), indices, random(2, 3)], opset=10, expected=[wanted], frontend=True, axis=0)


def test_integers_and_booleans() -> None:
    check("ScatterND", [random(4, 8, dtype=np.int64), SCATTERED, random(5, dtype=np.int64)], opset=18)
    check("ScatterND", [random(4, 8, dtype=bool), SCATTERED, random(5, dtype=bool)], opset=18)
    check("ScatterND", [random(4, 8, dtype=np.int32), SCATTERED, random(5, dtype=np.int32)], opset=18, reduction="max")


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_many_unknown_targets_are_scattered_on_the_host(reduction: str) -> None:
    x, updates = random(2000, 16), random(2500, 16)
    indices = np.random.default_rng(0).integers(-2000, 2000, (2500, 1))
    assert undefined("ScatterND", [x, indices, updates], [x], opset=18, reduction=reduction)
    node = helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    inputs = [info("x", x.shape), info("i", indices.shape, TensorProto.INT64), info("u", updates.shape)]
    proto = model([node], inputs, {"y": None}, opset=18)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x, "i": indices, "u": updates})[0]
    with smartmem.compile(proto) as compiled:
        np.testing.assert_allclose(compiled(x, indices, updates), wanted, rtol=1e-5, atol=1e-6)
