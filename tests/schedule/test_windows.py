"""Depthwise convolutions: packed weights, iterations that run together, and which kernel a residual becomes part of."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from tests.support.onnx_models import model

import smartmem
from smartmem.codegen.target import target_of
from smartmem.compiler import build_program
from smartmem.runtime.artifact import NativeStep, Program
from smartmem.schedule.loops import _jam_width


def weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(list(shape)).standard_normal(shape) / 4).astype(np.float32)


def depthwise(channels: int, side: int, taps: int, stride: int = 1) -> onnx.ModelProto:
    """Between two 1x1 convolutions, so that channels are innermost."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node(
            "Conv", ["a", "w1"], ["b"], group=channels, pads=[taps // 2] * 4, strides=[stride] * 2, name="depthwise"
        ),
        helper.make_node("Conv", ["b", "w2"], ["y"]),
    ]
    weights = {"w0": weight(channels, 3, 1, 1), "w1": weight(channels, 1, taps, taps), "w2": weight(7, channels, 1, 1)}
    return model(nodes, {"x": (1, 3, side, side + 1)}, constants=weights)


def agrees(proto: onnx.ModelProto, level: str) -> None:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-4, atol=1e-4)


def window_of(program: Program) -> tuple[NativeStep, str]:
    """The only step that is a window, and its C function."""
    (number,) = (k for k, row in enumerate(program.report["kernels"]) if row["family"] == "window")
    step = program.steps[number]
    assert isinstance(step, NativeStep)
    (text,) = (source for source in program.sources.values() if f"void {step.symbol}" in source)
    return step, text.split(f"void {step.symbol}")[1].split("\n}\n")[0]


@pytest.mark.parametrize("level", ["naive", "layout", "full"])
@pytest.mark.parametrize(
    ("channels", "side", "taps", "stride"),
    [
        (32, 14, 3, 1),
        (32, 13, 9, 1),
        (32, 15, 5, 2),
        (20, 7, 5, 1),
        (48, 9, 7, 1),
        (16, 30, 3, 2),
        (33, 6, 3, 1),
        (64, 4, 9, 1),
        (3, 8, 3, 1),
        (200, 31, 3, 1),
        (96, 57, 7, 1),
        (130, 8, 5, 1),
    ],
)
def test_depthwise_convolutions(level: str, channels: int, side: int, taps: int, stride: int) -> None:
    agrees(depthwise(channels, side, taps, stride), level)


def test_weights_lie_along_the_lane() -> None:
    """(channel, 1, row, column) is packed as (row, column, channel), and no vector is gathered."""
    program = build_program(depthwise(32, 14, 3), level="full")
    packed = {name: data for name, data in program.weights.items() if ".lanes" in name}
    assert [data.shape for data in packed.values()] == [(3, 3, 32)]
    np.testing.assert_array_equal(next(iter(packed.values())), weight(32, 1, 3, 3)[:, 0].transpose(1, 2, 0))
    assert "w1" not in program.weights
    assert "sm_load_strided" not in window_of(program)[1]


@pytest.mark.parametrize(
    ("channels", "side", "taps"),
    [(512, 32, 3), (512, 8, 5), (32, 64, 3), (256, 14, 5)],
)
def test_rows_find_what_the_ones_above_read(channels: int, side: int, taps: int) -> None:
    """A task has several rows, and so few channels of them that their windows stay in half of L1, or four vectors of
    them. Low images are divided by channels alone."""
    program = build_program(depthwise(channels, side, taps), level="full", march="x86-64-v4")
    step, text = window_of(program)
    found = re.search(rf"= band \* {side} / (\d+);", text)
    bands = int(found[1]) if found else 1
    assert (bands == 1) == (side == 8)
    assert bands <= side // 2
    blocks = step.tasks // bands
    assert blocks * bands == step.tasks >= 16
    assert 4 * taps * (side + 1) * channels / blocks <= target_of("x86-64-v4").l1 // 2 or channels / blocks <= 64


def test_images_of_a_batch_are_apart() -> None:
    x, w = weight(3, 40, 9, 11), weight(40, 1, 3, 3)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["y"], group=40, pads=[1, 1, 1, 1]),
    ]
    proto = model(nodes, {"x": (3, 9, 11, 40)}, constants={"w": w})
    given = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    wanted = ReferenceEvaluator(proto).run(None, {"x": given})[0]
    with smartmem.compile(proto, threads=3) as compiled:
        np.testing.assert_allclose(compiled(given), wanted, rtol=1e-4, atol=1e-5)


def test_iterations_that_run_together() -> None:
    """As many as fit, but no more than leave few single ones."""
    assert [_jam_width(n, 8) for n in (2, 3, 5, 8, 12, 54)] == [0, 3, 5, 8, 6, 6]
    assert all(_jam_width(n, 4) in (3, 4) for n in range(3, 60))


@pytest.mark.parametrize(
    ("columns", "taps", "width", "groups"), [(8, 3, 8, 1), (14, 3, 7, 2), (7, 9, 7, 1), (28, 7, 7, 3)]
)
def test_columns_at_the_border_run_together(columns: int, taps: int, width: int, groups: int) -> None:
    """Groups of `width` columns: one loop inside, and code of its own for each group that a guard cuts."""
    proto = depthwise(32, columns - 1, taps)
    (text,) = (t for t in build_program(proto).sources.values() if "/* reduces */" in t)
    window = text[text.index("enum { at") :]
    assert window.count("enum { at") + window.count(f"at += {width})") == groups
    assert "step" not in window
    agrees(proto, "full")


@pytest.mark.parametrize("columns", [11, 56])  # no group divides 11; of 56 few are at the border
def test_columns_at_the_border_run_one_by_one(columns: int) -> None:
    proto = depthwise(32, columns - 1, 3)
    (text,) = (t for t in build_program(proto).sources.values() if "/* reduces */" in t)
    assert "enum { at" not in text and "step = " in text


@pytest.mark.parametrize("columns", [8, 11, 14, 30])
def test_gelu_of_columns_that_run_together(columns: int) -> None:
    """It takes the values of a group side by side, and those of single columns one by one."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["b"], group=32, pads=[1] * 4),
        helper.make_node("Add", ["b", "t"], ["d"]),
        helper.make_node("Gelu", ["d"], ["e"]),
        helper.make_node("Transpose", ["e"], ["y"], perm=[0, 2, 3, 1]),
    ]
    proto = model(nodes, {"x": (1, 9, columns, 32)}, constants={"w": weight(32, 1, 3, 3)}, opset=20)
    text = "".join(build_program(proto).sources.values())
    assert "sm_gelu_each(kept" in text
    agrees(proto, "full")


@pytest.mark.parametrize("rows", [49, 50, 13])
def test_tasks_share_the_only_outer_loop(rows: int) -> None:
    """Of TopK the lane and the rows are all loops there are: tasks have some groups of rows each."""
    nodes = [helper.make_node("TopK", ["x", "k"], ["y", "i"])]
    proto = model(nodes, {"x": (rows, 49)}, constants={"k": np.array([4])})
    assert max(step.tasks for step in build_program(proto).steps if hasattr(step, "tasks")) > 1
    agrees(proto, "full")


def windows_and_convolution() -> onnx.ModelProto:
    """Attention in windows of 4x4 tokens plus a depthwise convolution of the values, then a projection."""
    side, window, channels, heads = 16, 4, 32, 2
    count, size = side // window, channels // heads
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["v"]),
        helper.make_node("Reshape", ["v", "cut"], ["v1"]),
        helper.make_node("Transpose", ["v1"], ["v2"], perm=[0, 2, 4, 1, 3, 5]),
        helper.make_node("Reshape", ["v2", "rows"], ["v3"]),
        helper.make_node("Transpose", ["v3"], ["k"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["v3", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v3"], ["o"]),
        helper.make_node("Reshape", ["o", "split"], ["o1"]),
        helper.make_node("Transpose", ["o1"], ["o2"], perm=[2, 5, 0, 3, 1, 4]),
        helper.make_node("Reshape", ["o2", "image"], ["o3"]),
        helper.make_node("Transpose", ["v"], ["c"], perm=[2, 0, 1]),
        helper.make_node("Reshape", ["c", "image"], ["c1"]),
        helper.make_node("Conv", ["c1", "d"], ["local"], group=channels, pads=[1, 1, 1, 1], name="local"),
        helper.make_node("Add", ["o3", "local"], ["both"], name="both"),
        helper.make_node("Conv", ["both", "e"], ["y"]),
    ]
    shapes = {
        "cut": np.array([count, window, count, window, heads, size]),
        "rows": np.array([count * count, heads, window * window, size]),
        "split": np.array([count, count, heads, window, window, size]),
        "image": np.array([1, channels, side, side]),
    }
    weights = {"w": weight(channels, channels), "d": weight(channels, 1, 3, 3), "e": weight(8, channels, 1, 1)}
    return model(nodes, {"x": (side, side, channels)}, constants=weights | shapes)


@pytest.mark.parametrize("level", ["naive", "full"])
def test_a_sum_of_windows_and_a_convolution(level: str) -> None:
    agrees(windows_and_convolution(), level)


def test_the_sum_joins_the_attention_not_the_convolution() -> None:
    """Reading windows would cut the loops of the convolution; the attention has them as rows."""
    program = build_program(windows_and_convolution(), level="full")
    rows = {row["name"]: row for row in program.report["kernels"]}
    (attention,) = (row for row in rows.values() if row["family"] == "attention")
    assert "both" in attention["origin"]
    (local,) = (row for row in rows.values() if "local" in row["origin"])
    assert local["family"] == "window"
    assert "both" not in local["origin"]


def transposed_means(channels: int, side: int = 2) -> onnx.ModelProto:
    """Means over 7x7 windows of an image whose channels are innermost, as (channel, window)."""
    nodes = [
        helper.make_node("Reshape", ["x", "cut"], ["windows"]),
        helper.make_node("ReduceMean", ["windows"], ["means"], axes=[1, 3], keepdims=0),
        helper.make_node("Reshape", ["means", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["y"], perm=[1, 0]),
    ]
    shapes = {"cut": [7, side, 7, side, channels], "flat": [49, channels]}
    constants = {name: np.array(values, np.int64) for name, values in shapes.items()}
    return model(nodes, {"x": (1, 7 * side, 7 * side, channels)}, constants=constants)


@pytest.mark.parametrize(("channels", "tasks"), [(256, 8), (250, 8), (400, 25), (512, 8)])
def test_no_two_tasks_store_to_the_same_lines(channels: int, tasks: int) -> None:
    """Windows are neighbours in memory, vectors of channels are 49 elements apart: tasks are blocks of channels."""
    proto = transposed_means(channels)
    step, text = window_of(build_program(proto, level="full", march="x86-64-v4"))
    assert step.tasks == tasks
    assert re.search(r"i\d = part \* ", text)
    agrees(proto, "full")


def test_a_vector_of_channels_is_not_divided() -> None:
    """Then tasks are windows, whatever lines they share."""
    proto = transposed_means(16, side=20)
    step, _ = window_of(build_program(proto, level="full", march="x86-64-v4"))
    assert step.tasks == 49
    agrees(proto, "full")
