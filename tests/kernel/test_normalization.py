"""Normalisations against onnx's reference, or the operator's formula in float64 where the reference lacks it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.definitions import check, make_node, random, reference, undefined

from smartmem.kernel.definitions import define
from smartmem.kernel.expr import Const, walk

Array = np.ndarray[Any, Any]


def standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """(x - mean) / sqrt(variance + epsilon) over `axes`, in float64."""
    wide = x.astype(np.float64)
    mean = wide.mean(axes, keepdims=True)
    result: Array = (wide - mean) / np.sqrt(wide.var(axes, keepdims=True) + epsilon)
    return result


@pytest.mark.parametrize("axis", [-1, -2, 0, 1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization(axis: int, bias: bool, outputs: int) -> None:
    x = random(2, 3, 4)
    scale = random(*x.shape[axis:], seed=1)
    inputs = [x, scale, random(*x.shape[axis:], seed=2)] if bias else [x, scale]
    check("LayerNormalization", inputs, outputs=outputs, axis=axis, epsilon=1e-3, constant=(1, 2))


def test_layer_normalization_stages() -> None:
    stages = check("LayerNormalization", [random(2, 3), random(3), random(3, seed=1)])
    assert [(s.name, s.shape, s.reduce) for s in stages] == [
        ("y0.sum", (2, 1), (3,)),
        ("y0.mean", (2, 1), ()),
        ("y0.centered", (2, 3), ()),
        ("y0.squares", (2, 1), (3,)),
        ("y0.rstd", (2, 1), ()),
        ("y0", (2, 3), ()),
    ]


def test_layer_normalization_broadcasts_scale() -> None:
    check("LayerNormalization", [random(2, 3, 4), random(1, 4, seed=1), random(1)], axis=1)
    stages = check("LayerNormalization", [random(2, 4), random(1), random(1, seed=1)], constant=(1, 2))
    assert {load.tensor for load in stages[-1].loads()} == {"y0.centered", "y0.rstd"}


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_layer_normalization_dtypes(dtype: Any) -> None:
    x, scale, bias = random(3, 9, dtype=dtype), random(9, dtype=dtype), random(9, dtype=dtype, seed=1)
    expected = (standardised(x, (1,), 1e-5) * scale + bias).astype(dtype)
    tolerance = {2: 3e-3, 8: 1e-9}[np.dtype(dtype).itemsize]
    stages = check("LayerNormalization", [x, scale, bias], expected=[expected], rtol=tolerance, atol=tolerance)
    assert all(stage.dtype == (np.float32 if dtype == np.float16 else dtype) for stage in stages[:-1])


def test_layer_normalization_statistics_of_halfs_are_float32() -> None:
    x, scale = random(3, 9, dtype=np.float16), random(9, dtype=np.float16)
    wide = x.astype(np.float64)
    mean = wide.mean(1, keepdims=True).astype(np.float32)
    deviation = (1 / np.sqrt(wide.var(1, keepdims=True) + 1e-5)).astype(np.float32)
    expected = [(standardised(x, (1,), 1e-5) * scale).astype(np.float16), mean, deviation]
    check("LayerNormalization", [x, scale], outputs=3, expected=expected, rtol=3e-3, atol=3e-3)


def test_layer_normalization_of_one_element() -> None:
    check("LayerNormalization", [random(3, 1), random(1), random(1, seed=1)])


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rms_normalization(axis: int, dtype: Any) -> None:
    x = random(2, 3, 4, dtype=dtype)
    scale = random(*x.shape[axis:], seed=1, dtype=dtype)
    wide = x.astype(np.float64)
    over = tuple(range(axis % 3, 3))
    expected = (wide / np.sqrt((wide**2).mean(over, keepdims=True) + 1e-3) * scale).astype(dtype)
    tolerance = 3e-3 if dtype == np.float16 else 1e-5
    check("RMSNormalization", [x, scale], axis=axis, epsilon=1e-3, opset=23, expected=[expected], rtol=tolerance)
    if dtype == np.float32:
        check("RMSNormalization", [x, scale], axis=axis, opset=23)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("version", [18, 21])
@pytest.mark.parametrize("spatial", [(), (5,), (2, 3), (1, 4)])
def test_group_normalization(groups: int, version: int, spatial: tuple[int, ...]) -> None:
    x = random(2, 6, *spatial)
    size = 6 if version == 21 else groups
    scale, bias = random(size, seed=1), random(size, seed=2)
    grouped = x.reshape(2, groups, -1)
    normal = standardised(grouped, (2,), 1e-3).reshape(x.shape)
    channel = (1, 6, *(1 for _ in spatial))
    scales, biases = (np.repeat(p, 6 // size).reshape(channel) for p in (scale, bias))
    check(
        "GroupNormalization",
        [x, scale, bias],
        opset=version,
        num_groups=groups,
        epsilon=1e-3,
        expected=[(normal * scales + biases).astype(np.float32)],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("spatial", [(5,), (3, 4), (2, 3, 2)])
def test_instance_normalization(spatial: tuple[int, ...]) -> None:
    check("InstanceNormalization", [random(2, 3, *spatial), random(3), random(3, seed=1)], epsilon=1e-3, atol=1e-5)


@pytest.mark.parametrize("spatial", [(), (5,), (3, 4)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("constant", [(), (1, 2, 3, 4)])
def test_batch_normalization(spatial: tuple[int, ...], channels: int, constant: tuple[int, ...]) -> None:
    parameters = [random(channels, seed=k) for k in range(3)]
    variance = random(channels, seed=4, low=0.2)
    inputs = [random(2, channels, *spatial), *parameters, variance]
    check("BatchNormalization", inputs, epsilon=1e-3, constant=constant, opset=15, atol=1e-5)


def test_batch_normalization_is_a_scale_and_a_shift() -> None:
    x, parameter = random(2, 3, 4), random(3, low=0.2)
    stages = check("BatchNormalization", [x, *[parameter] * 4], opset=15, constant=(1, 2, 3, 4))
    assert [(s.name, s.shape) for s in stages] == [("y0.scale", (3,)), ("y0.shift", (3,)), ("y0", (2, 3, 4))]
    assert not any(isinstance(node, Const) for node in walk(stages[-1].body))


def test_batch_normalization_of_halfs() -> None:
    inputs = [random(2, 3, 4, dtype=np.float16), *(random(3, seed=k, low=0.2) for k in range(4))]
    expected = reference("BatchNormalization", [x.astype(np.float32) for x in inputs], opset=15)[0].astype(np.float16)
    check("BatchNormalization", inputs, opset=15, expected=[expected], rtol=3e-3, atol=3e-3)


def test_training_runs_on_the_host() -> None:
    x, parameter = random(2, 3, 4), random(3, low=0.2)
    inputs = [x, *[parameter] * 4]
    assert undefined("BatchNormalization", inputs, [x], training_mode=1, opset=15)
    assert define(make_node("BatchNormalization", inputs, [x, parameter, parameter], {}, opset=13)) is None


@pytest.mark.parametrize("axes", [None, [1], [0, 2, 3], [2, 3]])
def test_mean_variance_normalization(axes: list[int] | None) -> None:
    x = random(2, 3, 4, 2)
    over = tuple([0, 2, 3] if axes is None else axes)
    attrs = {} if axes is None else {"axes": axes}
    expected = standardised(x, over, 0.0).astype(np.float32)
    check("MeanVarianceNormalization", [x], expected=[expected], atol=1e-5, **attrs)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_lp_normalization(p: int, axis: int) -> None:
    x = random(2, 3, 4)
    norm = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    check("LpNormalization", [x], opset=22, p=p, axis=axis, expected=[x / norm])


def test_lp_normalization_of_a_zero_row_is_zero() -> None:
    x = np.array([[0, 0], [3, 4]], np.float32)
    check("LpNormalization", [x], opset=22, expected=[np.array([[0, 0], [0.6, 0.8]], np.float32)])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(5, 5, 3, 2), (2, 5, 3, 2), (3, 4, 3)])
def test_local_response_normalization(size: int, shape: tuple[int, ...]) -> None:
    x = random(*shape)
    squares = np.zeros_like(x)
    for c in range(shape[1]):
        window = slice(max(0, c - (size - 1) // 2), c + -(-(size - 1) // 2) + 1)
        squares[:, c] = (x[:, window] ** 2).sum(1)
    expected = (x / (1.5 + 0.3 / size * squares) ** 0.6).astype(np.float32)
    check("LRN", [x], size=size, alpha=0.3, beta=0.6, bias=1.5, expected=[expected])
