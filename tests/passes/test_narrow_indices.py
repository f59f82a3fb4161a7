"""Constant indices in one or two bytes, wrapped and clamped when compiling."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import info, model

import smartmem
from smartmem.compiler import build_program


def gather(rows: int, indices: np.ndarray, also: str = "") -> onnx.ModelProto:
    """``2 x[:, indices]``, x[5, rows]; `also` is a further operator on the indices, whose result is an output."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["z"]),
        helper.make_node("Gather", ["z", "i"], ["y"], axis=1),
    ]
    inputs, outputs = [info("x", (5, rows))], ["y"]
    if also:
        nodes.append(helper.make_node(also, ["i", "n"], ["j"]))
        inputs.append(info("n", (1,), onnx.TensorProto.INT64))
        outputs.append("j")
    return model(nodes, inputs, outputs, {"i": indices})


def dtypes(proto: onnx.ModelProto, level: str = "full") -> set[str]:
    return {str(array.dtype) for array in build_program(proto, level=level).weights.values()}


@pytest.mark.parametrize(
    ("rows", "dtype"), [(2, "uint8"), (16, "uint8"), (30, "uint8"), (32, "uint8"), (33, "uint8"), (256, "uint8"),
                        (257, "uint16"), (65_536, "uint16"), (65_537, "int64")]
)  # fmt: skip
@pytest.mark.parametrize("march", ["native", "x86-64-v3"])
@pytest.mark.parametrize("count", [7, 64, 203])
def test_rows_of_a_table(rows: int, dtype: str, march: str, count: int) -> None:
    """Negative indices count from the end; 16 and 32 entries fill registers that an index permutes."""
    indices = np.random.default_rng(rows).integers(-rows, rows, count)
    indices[:2] = -rows, rows - 1
    proto = gather(rows, indices)
    assert dtypes(proto) == {dtype}
    assert dtypes(proto, "layout") == {"int64"}
    x = np.random.default_rng(1).standard_normal((5, rows)).astype(np.float32)
    with smartmem.compile(proto, march=march, threads=2) as compiled:
        np.testing.assert_array_equal(compiled(x), 2 * x[:, indices])


def test_what_is_read_as_numbers_stays() -> None:
    indices = np.array([3, -1, 2])
    proto = gather(6, indices, also="Add")
    assert "int64" in dtypes(proto)
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    with smartmem.compile(proto, threads=1) as compiled:
        y, j = compiled(x=x, n=np.array([10]))
        np.testing.assert_array_equal(y, 2 * x[:, indices])
        np.testing.assert_array_equal(j, indices + 10)


def test_two_ranges_stay() -> None:
    """-1 is the last row of either table, not the same entry."""
    indices = np.array([0, -1, 1])
    proto = gather(6, indices)
    proto.graph.input.append(info("u", (5, 4)))
    proto.graph.node.append(helper.make_node("Gather", ["u", "i"], ["v"], axis=1))
    proto.graph.output.append(info("v", None))
    assert "int64" in dtypes(proto)
    rng = np.random.default_rng(1)
    x, u = (rng.standard_normal((5, n)).astype(np.float32) for n in (6, 4))
    with smartmem.compile(proto, threads=1) as compiled:
        y, v = compiled(x=x, u=u)
        np.testing.assert_array_equal(y, 2 * x[:, indices])
        np.testing.assert_array_equal(v, u[:, indices])
