"""GridSample: any mode, padding and alignment, on images and volumes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper
from tests.support.definitions import check, random, reference, undefined
from tests.support.onnx_models import model

import smartmem

MODES = [("linear", 2), ("nearest", 2), ("cubic", 2), ("linear", 3), ("nearest", 3)]


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("mode", "rank"), MODES)
def test_as_onnx_runtime_does(mode: str, rank: int, padding: str, aligned: int) -> None:
    """Positions lie up to two sides of the image away from it."""
    x, grid = random(2, 5, *(4, 7, 6)[-rank:]), random(2, *(3, 9, 8)[-rank:], rank, low=-3.0, high=3.0)
    node = helper.make_node("GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding, align_corners=aligned)
    proto = model([node], {"x": x.shape, "g": grid.shape}, {"y": None}, opset=20)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x, "g": grid})[0]
    with smartmem.compile(proto, threads=2) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        got = compiled(x, grid)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [("bilinear", "linear"), ("bicubic", "cubic")])
def test_names_of_opset_16(old: str, new: str) -> None:
    x, grid = random(1, 2, 5, 4), random(1, 2, 2, 2)
    wanted = reference("GridSample", [x, grid], opset=20, mode=new, padding_mode="zeros", align_corners=1)
    check("GridSample", [x, grid], opset=16, expected=wanted, mode=old, padding_mode="zeros", align_corners=1)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("extent", [1, 2])
def test_short_axes(padding: str, extent: int) -> None:
    x, grid = random(1, 2, extent, 3), random(1, 4, 5, 2)
    for mode in ("linear", "nearest"):
        check("GridSample", [x, grid], opset=20, mode=mode, padding_mode=padding, align_corners=0, atol=1e-5)


def test_far_away_is_outside() -> None:
    """Positions beyond what an index holds leave the others alone."""
    x, grid = random(1, 2, 4, 4), random(1, 2, 2, 2, low=-0.7, high=0.7)
    near = reference("GridSample", [x, grid], opset=20, mode="nearest", padding_mode="zeros", align_corners=0)[0]
    grid[0, 0, 0], grid[0, 1, 1] = 1e30, -np.inf
    near[0, :, 0, 0] = near[0, :, 1, 1] = 0
    check("GridSample", [x, grid], opset=20, expected=[near], mode="nearest", padding_mode="zeros", align_corners=0)


def test_integers_are_only_picked() -> None:
    x, grid = random(1, 2, 4, 4, dtype=np.int32), random(1, 3, 3, 2, low=-1.2, high=1.2)
    attributes = {"padding_mode": "zeros", "align_corners": 0}
    check("GridSample", [x, grid], opset=20, mode="nearest", **attributes)
    assert undefined("GridSample", [x, grid], [random(1, 2, 3, 3, dtype=np.int32)], mode="linear", **attributes)
