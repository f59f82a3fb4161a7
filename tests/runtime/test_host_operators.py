"""Operators that the host computes with numpy of its own: as ONNX Runtime gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

import smartmem

Array = np.ndarray[Any, Any]


def run_both(node: onnx.NodeProto, feeds: dict[str, Array], constants: dict[str, Any], output: Any) -> list[Array]:
    inputs = [info(name, x.shape, helper.np_dtype_to_tensor_dtype(x.dtype)) for name, x in feeds.items()]
    proto = model([node], inputs, [output], constants, opset=18)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]
    with smartmem.compile(proto) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 1
        return [compiled(*feeds.values()), wanted]


def boxes_of(count: int, centred: bool) -> Array:
    """Boxes on a unit square; if not `centred`, every other one has its corners exchanged."""
    random = np.random.default_rng(0)
    places, sizes = random.random((2, count, 2)), random.uniform(0.02, 0.3, (2, count, 2))
    if centred:
        return np.concatenate([places, sizes], -1).astype(np.float32)
    corners = np.concatenate([places, places + sizes], -1).astype(np.float32)
    corners[:, ::2] = corners[:, ::2, [2, 3, 0, 1]]
    return corners


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("most", [0, 7, 1000])
def test_non_max_suppression(centred: bool, most: int) -> None:
    """More boxes than are compared together, and equal scores among them."""
    scores = np.random.default_rng(1).random((2, 3, 300)).astype(np.float32).round(2)
    node = helper.make_node("NonMaxSuppression", ["b", "s", "m", "i", "t"], ["y"], center_point_box=int(centred))
    constants = {"m": np.array([most]), "i": np.array([0.3], np.float32), "t": np.array([0.2], np.float32)}
    feeds = {"b": boxes_of(300, centred), "s": scores}
    got, wanted = run_both(node, feeds, constants, info("y", (None, 3), TensorProto.INT64))
    assert most == 0 or len(wanted) > 40
    np.testing.assert_array_equal(got, wanted)


def test_non_max_suppression_without_thresholds() -> None:
    """Nothing that overlaps stays, and no score is too low."""
    scores = np.random.default_rng(1).standard_normal((2, 1, 100)).astype(np.float32)
    node = helper.make_node("NonMaxSuppression", ["b", "s", "m"], ["y"])
    feeds = {"b": boxes_of(100, False), "s": scores}
    got, wanted = run_both(node, feeds, {"m": np.array([100])}, info("y", (None, 3), TensorProto.INT64))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transformation", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [0, 1, 3])
def test_roi_align(mode: str, transformation: str, samples: int) -> None:
    """Regions of any size, which may leave the image."""
    if mode == "max" and samples != 1:
        pytest.skip("ONNX Runtime's maximum over several samples is not ONNX's, as it says")
    random = np.random.default_rng(0)
    corners = random.uniform(-20, 110, (20, 2))
    feeds = {
        "x": random.standard_normal((2, 3, 25, 30)).astype(np.float32),
        "r": np.concatenate([corners, corners + random.uniform(0, 60, (20, 2))], 1).astype(np.float32),
        "b": random.integers(0, 2, 20),
    }
    node = helper.make_node(
        "RoiAlign", list(feeds), ["y"], mode=mode, coordinate_transformation_mode=transformation,
        sampling_ratio=samples, output_height=7, output_width=5, spatial_scale=0.25,
    )  # fmt: skip
    got, wanted = run_both(node, feeds, {}, info("y", (20, 3, 7, 5)))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements(reduction: str) -> None:
    """The last of several updates of one element counts, or all of them."""
    random = np.random.default_rng(0)
    feeds = {
        "x": random.standard_normal((1500, 64)).astype(np.float32),
        "i": random.integers(-1500, 1500, (100, 60)),
        "u": random.standard_normal((100, 60)).astype(np.float32),
    }
    node = helper.make_node("ScatterElements", list(feeds), ["y"], axis=0, reduction=reduction)
    got, wanted = run_both(node, feeds, {}, info("y", (1500, 64)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
