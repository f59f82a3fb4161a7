"""Resize and Upsample against onnx's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.definitions import check, make_node, normalised, random, stages_of, undefined

from smartmem.index.lin import Lookup, pseudo_axes, show
from smartmem.kernel.expr import Load
from smartmem.kernel.stage import Stage

Array = np.ndarray[Any, Any]
MODES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric", "align_corners"]
# Exact in float32: with others, the reference, onnxruntime and exact arithmetic (ours) break ties differently.
SCALES = [(2.0, 2.0), (3.0, 1.0), (0.5, 0.625), (1.5, 2.5), (0.75, 1.25), (1.0, 1.0)]


def by_scales(x: Array, *scales: float) -> list[Array | None]:
    return [x, None, np.array([1.0] * (x.ndim - len(scales)) + list(scales), np.float32)]


def by_sizes(x: Array, *sizes: int) -> list[Array | None]:
    return [x, None, None, np.array([*x.shape[: x.ndim - len(sizes)], *sizes])]


def resized(inputs: list[Array | None], **attrs: Any) -> list[Stage]:
    """`check` with all parameters constant."""
    options = {"rtol": 1e-4, "atol": 1e-5, **attrs}
    return check("Resize", inputs, constant={1, 2, 3}, frontend=True, **options)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest(mode: str, rounding: str, scales: tuple[float, float]) -> None:
    x = random(1, 2, 5, 6)
    stages = resized(by_scales(x, *scales), coordinate_transformation_mode=mode, nearest_mode=rounding)
    assert len(stages) == 1
    assert stages[0].is_view


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, bool])
def test_nearest_of_any_type(dtype: Any) -> None:
    x = random(1, 1, 3, 4, dtype=dtype)
    resized(by_scales(x, 2, 3), expected=[x.repeat(2, 2).repeat(3, 3)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [2, 3])
def test_nearest_by_an_integer_is_a_plain_index(mode: str, factor: int) -> None:
    if mode == "align_corners":
        return
    rounding = "floor" if mode == "asymmetric" else "round_prefer_floor"
    (stage,) = resized(
        by_scales(random(1, 2, 4, 4), factor, factor), coordinate_transformation_mode=mode, nearest_mode=rounding
    )
    assert isinstance(stage.body, Load)
    assert show(stage.body.index[2]) == f"k//{factor}%4"
    assert show(stage.body.index[3]) == f"l//{factor}%4"


def test_a_scale_is_the_fraction_that_was_rounded() -> None:
    """o / float32(0.6) at o = 3 is 4.9999999: floor must give 5."""
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    wanted = np.arange(9) * 5 // 3
    attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    resized(by_scales(x, 0.6), expected=[x[:, wanted]], **attrs)


def test_nearest_without_a_pattern_is_looked_up() -> None:
    x = random(1, 2, 5, 6)
    (stage,) = resized(by_sizes(x, 7, 6))
    assert isinstance(stage.body, Load)
    (axis,) = pseudo_axes(stage.body.index[2])
    assert isinstance(axis, Lookup)
    assert axis.tensor == "y0.index2"


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("transformation", MODES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation(mode: str, transformation: str, scales: tuple[float, float]) -> None:
    resized(by_scales(random(1, 2, 5, 6), *scales), mode=mode, coordinate_transformation_mode=transformation)


@pytest.mark.parametrize("sizes", [(7, 8), (3, 2), (10, 12), (1, 1), (5, 9)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_sizes(mode: str, sizes: tuple[int, int]) -> None:
    resized(by_sizes(random(1, 2, 5, 6), *sizes), mode=mode)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_ranks(mode: str, rank: int) -> None:
    stages = resized(by_scales(random(1, 2, *(4, 3, 5)[:rank]), *(2.0, 1.5, 0.6)[:rank]), mode=mode)
    assert len(stages) == (rank if mode == "linear" else 1)


@pytest.mark.parametrize("attrs", [{"cubic_coeff_a": -0.5}, {"exclude_outside": 1}])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (0.8, 1.7)])
def test_cubic_variants(attrs: dict[str, Any], scales: tuple[float, float]) -> None:
    resized(by_scales(random(1, 2, 5, 6), *scales), mode="cubic", **attrs)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(0.5, 0.4), (2.0, 0.6), (1.5, 2.0)])
def test_antialias(mode: str, scales: tuple[float, float]) -> None:
    resized(by_scales(random(1, 2, 9, 10), *scales), mode=mode, antialias=1)
    resized(by_scales(random(1, 2, 9, 10), *scales), mode=mode, antialias=1, exclude_outside=1)


def test_a_long_window_is_a_contraction() -> None:
    stages = resized(by_scales(random(1, 2, 9, 4), 0.25, 1.0), mode="linear", antialias=1)
    assert [stage.combine for stage in stages] == ["sum"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("window", [(0.25, 0.5, 0.625, 0.75), (-0.25, 0.125, 1.25, 0.875), (0.125, 0.25, 1.5, 1.75)])
@pytest.mark.parametrize("sizes", [(3, 3), (7, 1)])
def test_crop_and_resize(mode: str, window: tuple[float, ...], sizes: tuple[int, int]) -> None:
    roi = np.array([0, 0, *window[:2], 1, 1, *window[2:]], np.float32)
    inputs = by_sizes(random(1, 2, 5, 6), *sizes)
    inputs[1] = roi
    resized(inputs, mode=mode, coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_aspect_ratio(policy: str, mode: str) -> None:
    x = random(1, 2, 5, 6)
    inputs = [x, None, None, np.array([7, 8])]
    resized(inputs, mode=mode, axes=[2, 3], keep_aspect_ratio_policy=policy)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_axes(mode: str) -> None:
    resized([random(1, 4, 5, 2), None, np.array([2.0, 1.5], np.float32)], mode=mode, axes=[2, 1])


def test_half_is_interpolated_in_single() -> None:
    stages = resized(by_scales(random(1, 1, 4, 4, dtype=np.float16), 2, 2), mode="linear", rtol=2e-3, atol=2e-3)
    assert [stage.dtype for stage in stages] == [np.float32, np.float16]


def test_integers_are_not_interpolated() -> None:
    x = random(1, 1, 4, 4, dtype=np.uint8)
    node = make_node("Resize", by_scales(x, 2, 2), [np.zeros((1, 1, 8, 8), np.uint8)], {"mode": "linear"}, constant={2})
    assert stages_of(normalised(node)) is None


def test_scales_by_data_have_no_definition() -> None:
    assert undefined("Resize", by_scales(random(1, 1, 2, 2), 2, 2), [random(1, 1, 4, 4)], mode="nearest")


@pytest.mark.parametrize("op, opset", [("Upsample", 9), ("Resize", 10)])
def test_old_opsets(op: str, opset: int) -> None:
    x, scales = random(1, 2, 3, 4), np.array([1, 1, 2, 3], np.float32)
    wanted = x.repeat(2, 2).repeat(3, 3)
    check(op, [x, scales], opset=opset, constant={1}, frontend=True, expected=[wanted], mode="nearest")
    position = np.arange(6) / 2
    low = np.minimum(np.floor(position).astype(int), 2)
    part = (position - low).astype(np.float32)[:, None]
    wanted = x[:, :, low] * (1 - part) + x[:, :, np.minimum(low + 1, 2)] * part
    scales = np.array([1, 1, 2, 1], np.float32)
    check(op, [x, scales], opset=opset, constant={1}, frontend=True, expected=[wanted], mode="linear")


def test_upsample_with_scales_in_an_attribute() -> None:
    x = random(1, 2, 3, 4)
    scales = [1.0, 1.0, 2.0, 2.0]
    check("Upsample", [x], opset=7, expected=[x.repeat(2, 2).repeat(2, 3)], mode="nearest", scales=scales)
