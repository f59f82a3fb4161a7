"""Each operator's opset variants come to one canonical form, and still compute what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import pytest
from frontend_models import check, only, random_feeds, run_graph
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

from smartmem.errors import ModelError
from smartmem.frontend import load_graph

node = helper.make_node
X = {"x": [2, 3, 4]}


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def single(op, opset, inputs=("x",), attrs=None, constants=None, x=X, outputs=("y",), **kwargs):
    """Load one node, compare with onnxruntime, and give its canonical form."""
    proto = model([node(op, list(inputs), list(outputs), **(attrs or {}))], x, outputs, constants, opset)
    graph = check(proto, **kwargs)
    assert len(graph.nodes) == 1
    return graph.nodes[0]


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
@pytest.mark.parametrize("axes", [[0, 2], [-1, 0]])
def test_squeeze(opset, axes):
    x = {"x": [1, 3, 1]}
    if opset < 13:
        got = single("Squeeze", opset, attrs={"axes": [a if opset >= 11 else a % 3 for a in axes]}, x=x)
    else:
        got = single("Squeeze", opset, ("x", "a"), constants={"a": i64(*axes)}, x=x)
    assert got.attrs["axes"] == [0, 2]
    assert len(got.inputs) == 1


def test_squeeze_without_axes_takes_all_ones():
    assert single("Squeeze", 13, x={"x": [1, 3, 1]}).attrs["axes"] == [0, 2]


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_unsqueeze(opset):
    if opset < 13:
        got = single("Unsqueeze", opset, attrs={"axes": [4, 0] if opset < 11 else [-1, 0]})
    else:
        got = single("Unsqueeze", opset, ("x", "a"), constants={"a": i64(-1, 0)})
    assert got.attrs["axes"] == [0, 4]
    assert len(got.inputs) == 1


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd", "ReduceLogSumExp"])
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize(("axes", "want"), [([-1, 0], [0, 2]), (None, [0, 1, 2])])
def test_reduce(op, opset, axes, want):
    as_input = opset >= 18 or (op == "ReduceSum" and opset >= 13)
    attrs = {"keepdims": 0}
    if axes is None:
        got = single(op, opset, attrs=attrs)
    elif as_input:
        got = single(op, opset, ("x", "a"), attrs, {"a": i64(*axes)})
    else:
        got = single(op, opset, attrs=attrs | {"axes": axes})
    assert got.attrs["axes"] == want
    assert got.attrs["keepdims"] == 0
    assert "noop_with_empty_axes" not in got.attrs
    assert len(got.inputs) == 1


@pytest.mark.parametrize(("noop", "want"), [(1, []), (0, [0, 1, 2])])
def test_reduce_with_empty_axes(noop, want):
    attrs = {"noop_with_empty_axes": noop, "keepdims": 1}
    assert single("ReduceSum", 13, ("x", "a"), attrs, {"a": i64()}).attrs["axes"] == want


def test_reduce_default_of_keepdims_is_filled():
    assert single("ReduceMax", 13, attrs={"axes": [1]}).attrs["keepdims"] == 1


@pytest.mark.parametrize("form", ["attribute", "input", "equal", "num_outputs"])
def test_split(form):
    outputs = ["y", "z"]
    if form == "attribute":
        got = single("Split", 11, attrs={"axis": -1, "split": [1, 3]}, outputs=outputs)
    elif form == "input":
        got = single("Split", 13, ("x", "s"), {"axis": -1}, {"s": i64(1, 3)}, outputs=outputs)
    elif form == "equal":
        got = single("Split", 13, attrs={"axis": -1}, outputs=outputs)
    else:
        got = single("Split", 18, attrs={"axis": -1, "num_outputs": 2}, outputs=outputs)
    assert got.attrs["axis"] == 2
    assert got.attrs["split"] == ([1, 3] if form in ("attribute", "input") else [2, 2])
    assert "num_outputs" not in got.attrs
    assert len(got.inputs) == 1


def test_slice_attributes():
    got = single("Slice", 9, attrs={"starts": [1, -3], "ends": [9, -1], "axes": [0, 2]})
    assert [got.attrs[k] for k in ("axes", "starts", "steps", "lengths", "ends")] == [
        [0, 2],
        [1, 1],
        [1, 1],
        [1, 2],
        [2, 3],
    ]


LOW, HIGH = -(2**63), 2**63 - 1


@pytest.mark.parametrize(
    ("start", "end", "step", "want"),
    [
        (0, HIGH, 1, (0, 10, 10)),
        (-3, HIGH, 1, (7, 3, 10)),
        (2, -1, 3, (2, 3, 11)),
        (-1, LOW, -1, (9, 10, -1)),
        (HIGH, LOW, -4, (9, 3, -3)),
        (-1, 0, -1, (9, 9, 0)),
        (8, 2, -2, (8, 3, 2)),
        (5, 5, 1, (0, 0, 0)),
        (LOW, 3, 1, (0, 3, 3)),
    ],
)
def test_slice_resolves_bounds(start, end, step, want):
    constants = {"s": i64(start), "e": i64(end), "a": i64(-1), "t": i64(step)}
    got = single("Slice", 13, ("x", "s", "e", "a", "t"), constants=constants, x={"x": [2, 10]})
    assert got.attrs["axes"] == [1]
    assert (got.attrs["starts"][0], got.attrs["lengths"][0], got.attrs["ends"][0]) == want
    assert got.attrs["steps"] == [step]
    assert len(got.inputs) == 1


def test_slice_without_axes():
    got = single("Slice", 11, ("x", "s", "e"), constants={"s": i64(0, 1), "e": i64(1, 3)})
    assert got.attrs["axes"] == [0, 1]


def test_slice_by_data_stays():
    inputs = [info("x", [2, 10]), info("s", [1], TensorProto.INT64)]
    graph = load_graph(model([node("Slice", ["x", "s", "e"], ["y"])], inputs, constants={"e": i64(9)}))
    assert "lengths" not in graph.nodes[0].attrs
    assert len(graph.nodes[0].inputs) == 3
    assert graph.outputs[0].shape is None
    feeds = {"x": np.arange(20, dtype=np.float32).reshape(2, 10), "s": i64(1)}
    np.testing.assert_array_equal(run_graph(graph, feeds)[0], feeds["x"][1:9])


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("opset", [9, 11, 13, 18])
def test_pad(opset, mode):
    pads = [0, 1, 2, 0, 1, 1]
    if opset < 11:
        got = single("Pad", opset, attrs={"pads": pads, "mode": mode, "value": 2.5})
    else:
        inputs = ("x", "p", "v") if mode == "constant" else ("x", "p")
        got = single("Pad", opset, inputs, {"mode": mode}, {"p": i64(*pads), "v": np.float32(2.5)})
    assert got.attrs["pads"] == pads
    assert got.attrs["mode"] == mode
    if mode == "constant":
        assert got.inputs[1].data == 2.5


def test_pad_axes():
    constants = {"p": i64(1, 2), "a": i64(-2)}
    got = single("Pad", 18, ("x", "p", "", "a"), constants=constants)
    assert got.attrs["pads"] == [0, 1, 0, 0, 2, 0]
    assert len(got.inputs) == 1


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (None, 0.5), (0.0, None)])
def test_clip(opset, low, high):
    bounds = {k: v for k, v in (("min", low), ("max", high)) if v is not None}
    if opset < 11:
        got = single("Clip", opset, attrs=bounds)
    else:
        names = ["x", "min" if low is not None else "", "max" if high is not None else ""]
        got = single("Clip", opset, names, constants={k: np.float32(v) for k, v in bounds.items()})
    assert (got.attrs["min"], got.attrs["max"]) == (low, high)
    assert len(got.inputs) == 1


def test_clip_by_data_keeps_its_inputs():
    graph = check(model([node("Clip", ["x", "", "m"], ["y"])], {"x": [3], "m": []}))
    assert [v and v.name for v in graph.nodes[0].inputs] == ["x", None, "m"]
    assert "max" not in graph.nodes[0].attrs


@pytest.mark.parametrize("opset", [10, 11, 24])
def test_topk(opset):
    got = single("TopK", opset, ("x", "k"), {"axis": -1}, {"k": i64(2)}, outputs=["y", "i"])
    assert (got.attrs["k"], got.attrs["axis"], got.attrs["largest"], got.attrs["sorted"]) == (2, 2, 1, 1)
    assert len(got.inputs) == 1


def test_topk_attribute_k():
    got = single("TopK", 9, attrs={"k": 2, "axis": -1}, outputs=["y", "i"])
    assert got.attrs["k"] == 2


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize(
    ("opset", "axis", "flatten"), [(11, 1, True), (11, 2, False), (11, None, True), (13, 1, False), (13, None, False)]
)
def test_softmax(op, opset, axis, flatten):
    got = single(op, opset, attrs={} if axis is None else {"axis": axis})
    assert got.attrs["flatten"] is flatten
    assert got.attrs["axis"] == (axis if axis is not None else 1 if opset < 13 else 2)


@pytest.mark.parametrize("opset", [9, 11, 12, 13])
def test_dropout_is_identity(opset):
    got = single("Dropout", opset, ("x", "r") if opset >= 12 else ("x",), constants={"r": np.float32(0.3)})
    assert (got.op, len(got.inputs), len(got.outputs)) == ("Identity", 1, 1)


@pytest.mark.parametrize("opset", [9, 14, 15])
def test_batch_normalization(opset):
    x = {"x": [2, 3, 4], "s": [3], "b": [3], "m": [3]}
    got = single("BatchNormalization", opset, ("x", "s", "b", "m", "v"), constants={"v": np.ones(3, np.float32)}, x=x)
    assert got.attrs["epsilon"] == pytest.approx(1e-5)
    assert len(got.outputs) == 1
    assert "momentum" not in got.attrs


def test_reshape_and_expand_lose_their_targets():
    assert len(single("Reshape", 13, ("x", "s"), constants={"s": i64(0, -1)}).inputs) == 1
    assert len(single("Expand", 13, ("x", "s"), constants={"s": i64(5, 1, 3, 1)}).inputs) == 1
    got = single("Tile", 13, ("x", "s"), constants={"s": i64(1, 2, 3)})
    assert got.attrs["repeats"] == [1, 2, 3]
    assert len(got.inputs) == 1


def test_constant_of_shape_is_an_expand_where_too_large_to_fold():
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0])
    nodes = [node("ConstantOfShape", ["s"], ["c"], value=value), node("Add", ["x", "c"], ["y"])]
    graph = load_graph(model(nodes, {"x": [1]}, constants={"s": i64(5000, 5000)}))
    expand = only(graph, "Expand")
    assert expand.inputs[0].data == 3.0
    assert expand.output.shape == (5000, 5000)


def test_transpose_perm_is_filled():
    assert single("Transpose", 13).attrs["perm"] == [2, 1, 0]


@pytest.mark.parametrize(
    ("op", "attrs"), [("Flatten", {"axis": -1}), ("ArgMax", {"axis": -2}), ("LpNormalization", {})]
)
def test_negative_axes_become_positive(op, attrs):
    opset = 11
    assert single(op, opset, attrs=attrs).attrs["axis"] >= 0


def test_gather_and_concat_axis():
    assert single("Gather", 13, ("x", "i"), {"axis": -1}, {"i": i64(0, 2)}).attrs["axis"] == 2
    assert single("Concat", 13, ("x", "x"), {"axis": -3}).attrs["axis"] == 0


def test_axis_out_of_range():
    with pytest.raises(ModelError, match="axis"):
        load_graph(model([node("Softmax", ["x"], ["y"], axis=5)], X))


def test_cumsum_trilu_onehot():
    assert single("CumSum", 14, ("x", "a"), constants={"a": i64(-1)[0]}).attrs["axis"] == 2
    assert single("Trilu", 14, ("x", "k"), {"upper": 0}, {"k": i64(1)[0]}).attrs["k"] == 1
    assert single("Trilu", 14).attrs == {"upper": 1, "k": 0}
    constants = {"i": i64(0, 2), "d": i64(4)[0]}
    got = single("OneHot", 11, ("i2", "d", "x"), {"axis": -1}, constants, x=[info("x", [2]), info("i2", [2], 7)])
    assert (got.attrs["depth"], got.attrs["axis"]) == (4, 1)
    assert [v.name for v in got.inputs] == ["i2", "x"]


def test_cast_like_is_cast():
    inputs = [info("x", [3], TensorProto.INT64), info("like", [1])]
    got = check(model([node("CastLike", ["x", "like"], ["y"])], inputs)).nodes[0]
    assert (got.op, got.attrs, len(got.inputs)) == ("Cast", {"to": TensorProto.FLOAT}, 1)


def test_einsum_blanks():
    got = single("Einsum", 12, ("x", "x"), {"equation": "bij, bkj -> bik"})
    assert got.attrs["equation"] == "bij,bkj->bik"


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", [0, 1, 1, 1]), ("SAME_LOWER", [1, 1, 0, 1])])
def test_auto_pad(mode, pads):
    attrs = {"auto_pad": mode, "strides": [2, 2]}
    w = np.ones((2, 3, 3, 3), np.float32)
    got = single("Conv", 11, ("x", "w"), attrs, {"w": w}, {"x": [1, 3, 6, 5]}, tol=1e-4)
    assert got.attrs["pads"] == pads
    assert (got.attrs["kernel_shape"], got.attrs["dilations"], got.attrs["auto_pad"]) == ([3, 3], [1, 1], "NOTSET")


def test_auto_pad_valid_and_defaults():
    w = np.ones((2, 3, 3, 1), np.float32)
    got = single("Conv", 11, ("x", "w"), {"auto_pad": "VALID"}, {"w": w}, {"x": [1, 3, 6, 5]}, tol=1e-4)
    assert (got.attrs["pads"], got.attrs["strides"], got.attrs["kernel_shape"]) == ([0, 0, 0, 0], [1, 1], [3, 1])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_conv_transpose_auto_pad(mode):
    w = np.random.default_rng(0).standard_normal((3, 2, 3, 3)).astype(np.float32)
    proto = model(
        [node("ConvTranspose", ["x", "w"], ["y"], auto_pad=mode, strides=[2, 2])],
        {"x": [1, 3, 4, 4]},
        constants={"w": w},
    )
    got = load_graph(proto).nodes[0]
    explicit = [node("ConvTranspose", ["x", "w"], ["y"], pads=got.attrs["pads"], strides=[2, 2])]
    from frontend_models import run_ort

    feeds = random_feeds(load_graph(proto))
    want = run_ort(proto, feeds)[0]
    np.testing.assert_allclose(
        run_ort(model(explicit, {"x": [1, 3, 4, 4]}, constants={"w": w}), feeds)[0], want, rtol=1e-4
    )
    assert want.shape == got.output.shape


def test_pool_auto_pad():
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    got = single("MaxPool", 12, attrs=attrs, x={"x": [1, 2, 7, 8]})
    assert got.attrs["pads"] == [1, 0, 1, 1]


S = np.array([1, 1, 2, 2], np.float32)
IMAGE = {"x": [1, 2, 3, 4]}


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_is_resize(mode):
    got = single("Upsample", 9, ("x", "s"), {"mode": mode}, {"s": S}, IMAGE)
    assert got.op == "Resize"
    assert got.attrs["scales"] == [1, 1, 2, 2]
    assert got.attrs["coordinate_transformation_mode"] == "asymmetric"
    assert len(got.inputs) == 1


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_10(mode):
    got = single("Resize", 10, ("x", "s"), {"mode": mode}, {"s": S}, IMAGE)
    assert got.attrs["scales"] == [1, 1, 2, 2]


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize(opset, by):
    if by == "scales":
        inputs, constants = ("x", "r" if opset < 13 else "", "s"), {"s": S}
    else:
        inputs, constants = ("x", "r" if opset < 13 else "", "s" if opset < 13 else "", "z"), {"z": i64(1, 2, 6, 8)}
        if opset < 13:
            constants["s"] = np.zeros(0, np.float32)
    if opset < 13:
        constants["r"] = np.zeros(0, np.float32)
    got = single("Resize", opset, inputs, {"mode": "linear"}, constants, IMAGE)
    assert got.attrs["scales"] == [1, 1, 2, 2]
    assert got.attrs["roi"] is None
    assert len(got.inputs) == 1


def test_resize_axes_and_aspect():
    attrs = {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger", "mode": "nearest"}
    got = single("Resize", 18, ("x", "", "", "z"), attrs, {"z": i64(6, 6)}, IMAGE)
    assert got.attrs["scales"] == [1, 1, 1.5, 1.5]
    assert "axes" not in got.attrs


def test_schema_defaults_are_filled():
    got = single("Gemm", 13, ("a", "b"), x={"a": [2, 3], "b": [3, 4]})
    assert got.attrs == {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def test_every_node_keeps_its_version():
    assert single("Relu", 13).version == 13
    assert single("Relu", 21).version == 21
