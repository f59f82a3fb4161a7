"""Layout operators against onnx's reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.support.definitions import check, make_node, normalised, random, reference, stages_of, undefined

from smartmem.index.lin import pseudo_axes
from smartmem.kernel.expr import Choose, Load
from smartmem.kernel.stage import Stage


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def assert_view(stage: Stage) -> None:
    """A bare load whose index has neither marks nor lookups."""
    assert stage.is_view
    assert isinstance(stage.body, Load)
    assert not any(list(pseudo_axes(i)) for i in stage.body.index)


@pytest.mark.parametrize("perm", [None, [0, 1, 2], [2, 0, 1], [1, 0, 2]])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, bool, np.uint64, ml_dtypes.bfloat16])
def test_transpose(perm: list[int] | None, dtype: Any) -> None:
    x = random(2, 3, 4, dtype=dtype)
    attrs = {} if perm is None else {"perm": perm}
    (stage,) = check("Transpose", [x], expected=[x.transpose(perm)], **attrs)
    assert_view(stage)


@pytest.mark.parametrize(
    "shape, target", [((2, 3, 4), (6, 4)), ((2, 12), (2, 3, -1)), ((4, 6), (3, 8)), ((6,), (1, 6))]
)
def test_reshape(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    (stage,) = check("Reshape", [random(*shape), i64(*target)], constant={1}, frontend=True)
    assert stage.is_view


def test_reshape_to_a_scalar_and_back() -> None:
    check("Reshape", [random(1, 1), i64()], constant={1}, frontend=True)
    check("Reshape", [random(), i64(1, 1)], constant={1}, frontend=True)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    (stage,) = check("Flatten", [random(2, 3, 4)], frontend=True, axis=axis)
    assert_view(stage)


def test_squeeze_and_unsqueeze() -> None:
    check("Squeeze", [random(2, 1, 3, 1), i64(1, -1)], constant={1}, frontend=True)
    check("Squeeze", [random(2, 1, 3, 1)], frontend=True)
    check("Unsqueeze", [random(2, 3), i64(0, -1)], constant={1}, frontend=True)


@pytest.mark.parametrize("shape, target", [((3, 1), (2, 3, 4)), ((3, 1), (3, 4)), ((1,), (2, 3)), ((2, 3), (1, 3))])
def test_expand(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    (stage,) = check("Expand", [random(*shape), i64(*target)], constant={1}, frontend=True)
    assert_view(stage)


@pytest.mark.parametrize("repeats", [(1, 1), (2, 1), (3, 2)])
def test_tile(repeats: tuple[int, ...]) -> None:
    (stage,) = check("Tile", [random(2, 3), i64(*repeats)], constant={1}, frontend=True)
    assert_view(stage)


SLICES: list[tuple[tuple[int, ...], ...]] = [
    ((0, 1), (2, 3), (0, 1), (1, 1)),
    ((1,), (100,), (1,), (1,)),
    ((-3,), (-1,), (2,), (1,)),
    ((0,), (8,), (2,), (3,)),
    ((7,), (0,), (2,), (-2,)),
    ((-1,), (-100,), (2,), (-1,)),
    ((4, 6), (0, 1), (1, 2), (-1, -3)),
]


@pytest.mark.parametrize("starts, ends, axes, steps", SLICES)
def test_slice(starts: tuple[int, ...], ends: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> None:
    inputs = [random(3, 5, 8), i64(*starts), i64(*ends), i64(*axes), i64(*steps)]
    (stage,) = check("Slice", inputs, constant={1, 2, 3, 4}, frontend=True)
    assert_view(stage)


def test_slice_by_data_has_no_definition() -> None:
    x = random(3, 5)
    node = make_node("Slice", [x, i64(0), i64(2)], [x[:2]], {})
    assert stages_of(normalised(node)) is None


@pytest.mark.parametrize("sizes, axis", [((2, 4), 1), ((1, 1, 4), 1), ((3,), 0), ((1, 2), -2)])
def test_split(sizes: tuple[int, ...], axis: int) -> None:
    stages = check(
        "Split", [random(3, 6), i64(*sizes)], outputs=len(sizes), constant={1}, frontend=True, axis=axis, opset=13
    )
    for stage in stages:
        assert_view(stage)


def test_split_with_an_absent_output() -> None:
    x = random(3, 6)
    node = make_node("Split", [x], [x[:, :1], None, x[:, 3:]], {"axis": 1, "split": [1, 2, 3]})
    found = stages_of(node)
    assert found is not None
    assert [stage.name for stage in found[0]] == ["y0", "y2"]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_concat(axis: int, count: int) -> None:
    pieces = [random(*(k + 1 if a == axis % 3 else n for a, n in enumerate((2, 3, 4))), seed=k) for k in range(count)]
    (stage,) = check("Concat", pieces, axis=axis)
    assert stage.is_view == (count == 1)
    depth, body = 0, stage.body
    while isinstance(body, Choose):
        depth, body = depth + 1, body.otherwise
    assert depth == count - 1
    assert isinstance(body, Load)


def test_concat_with_an_empty_piece() -> None:
    (stage,) = check("Concat", [random(2, 3), random(2, 0)], axis=1)
    assert_view(stage)


PADS = [(0, 0, 0, 0), (1, 2, 0, 1), (0, 1, 0, 0), (2, 0, 1, 3)]


@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(pads: tuple[int, ...], mode: str) -> None:
    check("Pad", [random(3, 4), i64(*pads)], constant={1}, frontend=True, mode=mode)


@pytest.mark.parametrize("constant", [{1}, {1, 2}])
def test_pad_by_a_value(constant: set[int]) -> None:
    value = np.array(-1.5, np.float32)
    check("Pad", [random(3, 4), i64(1, 2, 0, 1), value], constant=constant, frontend=True)
    check("Pad", [random(3, 4, dtype=np.int64), i64(1, 2, 0, 1), np.array(7)], constant=constant, frontend=True)


def test_pad_of_some_axes() -> None:
    inputs = [random(2, 3, 4), i64(1, 2), None, i64(-1)]
    check("Pad", inputs, constant={1, 3}, frontend=True)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad_that_crops(mode: str) -> None:
    x = random(4, 6)
    wanted = np.pad(x[1:, :-2], ((0, 2), (1, 0)), mode)  # type: ignore[call-overload]
    if mode != "constant":  # elements from outside the cropped part: padding comes before cropping
        wanted = np.pad(x, ((0, 2), (1, 0)), mode)[1:, :-2]  # type: ignore[call-overload]
    check("Pad", [x], expected=[wanted], canonical={"pads": [-1, 1, 2, -2], "mode": mode})


def test_pad_of_an_old_opset() -> None:
    check("Pad", [random(3, 4)], opset=10, frontend=True, pads=[1, 0, 2, 1], value=2.5, mode="constant")


def test_pad_by_data_has_no_definition() -> None:
    assert undefined("Pad", [random(2, 2), i64(0, 0, 1, 1)], [random(3, 3)], mode="constant")


@pytest.mark.parametrize("shape", [(10, 7), (9, 8), (12, 3), (4, 11), (10, 8)])
def test_center_crop_pad(shape: tuple[int, int]) -> None:
    check("CenterCropPad", [random(10, 7), i64(*shape)], constant={1})
    check("CenterCropPad", [random(3, 10, 7), i64(*shape)], constant={1}, axes=[1, 2])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
@pytest.mark.parametrize("size", [2, 3])
def test_depth_to_space(mode: str, size: int) -> None:
    (stage,) = check("DepthToSpace", [random(2, 2 * size * size, 3, 4)], blocksize=size, mode=mode)
    assert_view(stage)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_space_to_depth(size: int) -> None:
    (stage,) = check("SpaceToDepth", [random(2, 3, 2 * size, 3 * size)], blocksize=size)
    assert_view(stage)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_undoes_depth_to_space(mode: str) -> None:
    x = random(2, 8, 3, 4)
    (y,) = reference("DepthToSpace", [x], blocksize=2, mode=mode)
    check("SpaceToDepth", [y], expected=[x], blocksize=2, mode=mode)
