"""Malformed graphs, functions, control flow and folding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from frontend_models import check, only, random_feeds, run_graph, run_ort
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

from smartmem.errors import ModelError
from smartmem.frontend import load_graph

node = helper.make_node
X = {"x": [2, 3]}


def refused(proto, *parts: str) -> None:
    with pytest.raises(ModelError) as error:
        load_graph(proto)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


# Malformed graphs


def test_cycle():
    nodes = [node("Add", ["x", "b"], ["a"], name="first"), node("Relu", ["a"], ["b"], name="second")]
    refused(model([*nodes, node("Neg", ["b"], ["y"])], X), "cycle", 'Add "first"', 'Relu "second"')


def test_self_cycle():
    refused(model([node("Add", ["x", "y"], ["y"])], X), "cycle", 'Add "y"')


def test_dangling_input():
    refused(model([node("Add", ["x", "ghost"], ["y"], name="sum")], X), 'Add "sum"', '"ghost"')


def test_dangling_capture():
    branch = helper.make_graph([node("Neg", ["ghost"], ["o"])], "b", [], [info("o", [2, 3])])
    proto = model([node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], [info("c", [], TensorProto.BOOL)])
    refused(proto, 'If "y"', '"ghost"')


def test_missing_output():
    refused(model([node("Relu", ["x"], ["t"])], X), 'graph output "y"')


def test_value_defined_twice():
    nodes = [node("Relu", ["x"], ["y"], name="a"), node("Neg", ["x"], ["y"], name="b")]
    refused(model(nodes, X), 'Neg "b"', '"y"', 'Relu "a"')


def test_value_that_shadows_an_input():
    refused(model([node("Relu", ["x"], ["x"]), node("Relu", ["x"], ["y"])], X), '"x"')


def test_input_listed_twice():
    refused(model([node("Relu", ["x"], ["y"])], [info("x", [1]), info("x", [1])]), 'two graph inputs are named "x"')


def test_equal_node_names_are_made_unique():
    graph = load_graph(model([node("Relu", ["x"], ["t"], name="n"), node("Neg", ["t"], ["y"], name="n")], X))
    assert [n.name for n in graph.nodes] == ["n", "n_1"]


def test_unordered_nodes_are_sorted():
    graph = check(model([node("Neg", ["t"], ["y"]), node("Relu", ["x"], ["t"])], X))
    assert [n.op for n in graph.nodes] == ["Relu", "Neg"]


def test_unknown_operator():
    refused(model([node("LayerNormalisation", ["x"], ["y"], name="ln")], X), '"ln"', "LayerNormalization", "opset 17")


def test_operator_of_a_newer_opset():
    refused(model([node("Gelu", ["x"], ["y"])], X), "Gelu", "since opset 20", "opset 17")


def test_removed_operator():
    proto = model([node("Upsample", ["x", "s"], ["y"])], X, constants={"s": np.ones(2, np.float32)})
    refused(proto, "Upsample", "removed")


def test_unknown_domain():
    proto = model([node("Fancy", ["x"], ["y"], domain="my.ops", name="f")], X, domains={"my.ops": 1})
    refused(proto, 'Fancy "f"', '"my.ops"', "opset 1")


def test_unknown_contrib_operator():
    proto = model([node("MoE", ["x"], ["y"], domain="com.microsoft")], X, domains={"com.microsoft": 1})
    refused(proto, '"com.microsoft"', "MoE")


def test_wrong_arity():
    refused(model([node("Relu", ["x", "x"], ["y"])], X), 'Relu "y"', "2 inputs", "1")


def test_unknown_attribute():
    refused(model([node("Softmax", ["x"], ["y"], axes=1)], X), '"axes"', 'did you mean "axis"?')


def test_missing_attribute():
    refused(model([node("Concat", ["x", "x"], ["y"])], X), '"axis"', "missing")


# Contrib operators with an ONNX meaning


@pytest.mark.parametrize(
    ("op", "inputs", "ops"),
    [
        ("Gelu", ["x"], ["Gelu"]),
        ("FastGelu", ["x", "b"], ["Add", "Gelu"]),
        ("BiasGelu", ["x", "b"], ["Add", "Gelu"]),
        ("QuickGelu", ["x"], ["Swish"]),
        ("SkipLayerNormalization", ["x", "x", "b", "b", "b"], ["Add", "Add", "LayerNormalization"]),
        ("SkipSimplifiedLayerNormalization", ["x", "x", "b"], ["Add", "RMSNormalization"]),
    ],
)
def test_contrib(op, inputs, ops):
    bias = np.array([0.5, -1, 2], np.float32)
    nodes = [node(op, inputs, ["y"], domain="com.microsoft")]
    proto = model(nodes, [info("x", [1, 2, 3])], constants={"b": bias}, domains={"com.microsoft": 1})
    graph = check(proto, tol=1e-3)
    assert [n.op for n in graph.nodes] == ops


# Functions


def scaled() -> onnx.FunctionProto:
    """`Scaled(a) = a · k`, with k an attribute."""
    body = [node("Constant", [], ["k"]), node("Mul", ["a", "k"], ["t"]), node("Identity", ["t"], ["b"])]
    body[0].attribute.append(onnx.AttributeProto(name="value_float", ref_attr_name="k", type=onnx.AttributeProto.FLOAT))
    return helper.make_function("my", "Scaled", ["a"], ["b"], body, [helper.make_opsetid("", 13)], ["k"])


def test_function_is_inlined_at_its_own_opset():
    calls = [
        node("Scaled", ["x"], ["m"], name="one", domain="my", k=3.0),
        node("Scaled", ["m"], ["y"], name="two", domain="my", k=0.5),
    ]
    graph = check(model(calls, X, functions=[scaled()], domains={"my": 1}))
    assert [n.op for n in graph.nodes] == ["Mul", "Identity", "Mul", "Identity"]
    assert graph.nodes[0].name.startswith("one/")
    assert {n.version for n in graph.nodes} == {13}


def test_nested_function():
    outer = helper.make_function(
        "my", "Twice", ["a"], ["b"],
        [node("Scaled", ["a"], ["t"], domain="my", k=2.0), node("Scaled", ["t"], ["b"], domain="my", k=2.0)],
        [helper.make_opsetid("", 13), helper.make_opsetid("my", 1)],
    )  # fmt: skip
    check(model([node("Twice", ["x"], ["y"], domain="my")], X, functions=[scaled(), outer], domains={"my": 1}))


def test_function_that_returns_its_argument():
    same = helper.make_function(
        "my", "Both", ["a"], ["b", "c"], [node("Neg", ["a"], ["c"])], [helper.make_opsetid("", 17)]
    )
    same.output[0] = "a"
    proto = model([node("Both", ["x"], ["y", "z"], domain="my")], X, ["y", "z"], functions=[same], domains={"my": 1})
    graph = load_graph(proto)
    x = np.ones((2, 3), np.float32)
    y, z = run_graph(graph, {"x": x})
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(z, -x)


def test_recursive_function():
    loop = helper.make_function(
        "my", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="my")], [helper.make_opsetid("my", 1)]
    )
    refused(model([node("F", ["x"], ["y"], domain="my")], X, functions=[loop], domains={"my": 1}), "calls itself")


@pytest.mark.parametrize(
    ("op", "opset", "shape"), [("Shrink", 17, [2, 3]), ("MeanVarianceNormalization", 13, [2, 3, 4, 4])]
)
def test_composite_operator_without_definition_becomes_its_body(op, opset, shape):
    graph = check(model([node(op, ["x"], ["y"], name="c")], {"x": shape}, opset=opset), tol=1e-4)
    assert op not in [n.op for n in graph.nodes]
    assert all(n.name.startswith("c/") for n in graph.nodes)


def test_softmax_cross_entropy_loss_is_inlined():
    inputs = [info("x", [3, 5]), info("t", [3], TensorProto.INT64)]
    graph = check(model([node("SoftmaxCrossEntropyLoss", ["x", "t"], ["y"])], inputs), tol=1e-4)
    assert "SoftmaxCrossEntropyLoss" not in [n.op for n in graph.nodes]


def test_attention_is_inlined():
    inputs = {"q": [1, 2, 4, 8], "k": [1, 2, 4, 8], "v": [1, 2, 4, 8]}
    graph = load_graph(model([node("Attention", ["q", "k", "v"], ["y"])], inputs, opset=23))
    assert {"MatMul", "Softmax"} <= {n.op for n in graph.nodes}
    assert "Attention" not in {n.op for n in graph.nodes}
    feeds = random_feeds(graph)
    scores = feeds["q"] @ feeds["k"].transpose(0, 1, 3, 2) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(run_graph(graph, feeds)[0], weights @ feeds["v"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["Gelu", "HardSwish", "Mish", "Softplus", "LayerNormalization"])
def test_native_composites_stay_unless_told_otherwise(op):
    inputs = ["x", "s"] if op == "LayerNormalization" else ["x"]
    proto = model([node(op, inputs, ["y"])], X, constants={"s": np.ones(3, np.float32)}, opset=20)
    assert [n.op for n in load_graph(proto).nodes] == [op]
    inlined = load_graph(proto, keep=frozenset())
    assert op not in [n.op for n in inlined.nodes]
    feeds = random_feeds(inlined)
    np.testing.assert_allclose(run_graph(inlined, feeds)[0], run_ort(proto, feeds)[0], rtol=1e-4, atol=1e-5)


# Control flow


def branches(kind: str) -> onnx.ModelProto:
    then = helper.make_graph([node("Neg", ["x"], ["t"]), node("Relu", ["t"], ["o"])], "then", [], [info("o", [2, 3])])
    other = helper.make_graph([node("Add", ["x", "w"], ["o"])], "else", [], [info("o", [2, 3])])
    other.initializer.append(onnx.numpy_helper.from_array(np.full(3, 2, np.float32), "w"))
    nodes = [node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other)]
    if kind == "data":
        return model(nodes, [info("x", [2, 3]), info("c", [], TensorProto.BOOL)])
    if kind == "shape":
        constants = {"i": np.int64(0), "two": np.int64(2)}
        before = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "i"], ["n"]), node("Equal", ["n", "two"], ["c"])]
        return model(before + nodes, [info("x", ["n", 3])], constants=constants)
    return model(nodes, [info("x", [2, 3])], constants={"c": np.array(kind == "true")})


@pytest.mark.parametrize(("kind", "ops"), [("true", ["Neg", "Relu"]), ("false", ["Add"]), ("shape", ["Neg", "Relu"])])
def test_if_with_constant_condition(kind, ops):
    graph = check(branches(kind), {"x": (2, 3)} if kind == "shape" else None)
    assert [n.op for n in graph.nodes] == ops
    assert graph.outputs[0].name == "y"


def test_if_by_data_runs_on_the_host():
    graph = check(branches("data"))
    branch = only(graph, "If")
    assert branch.attrs["captures"] == ["x"]
    assert [v.name for v in branch.inputs] == ["c", "x"]
    assert graph.outputs[0].shape == (2, 3)


def test_branch_that_returns_an_outer_value():
    then = helper.make_graph([], "then", [], [info("x", [2, 3])])
    other = helper.make_graph([node("Neg", ["x"], ["o"])], "else", [], [info("o", [2, 3])])
    nodes = [node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    graph = load_graph(model(nodes, X, constants={"c": np.array(True)}))
    assert [n.op for n in graph.nodes] == ["Identity"]


def loop(trip: bool = True, functions=()) -> onnx.ModelProto:
    """`y = x; repeat n: y = y·w + x`, with w and x of the graph around."""
    scale = node("Mul", ["v", "w"], ["m"]) if not functions else node("Scaled", ["v"], ["m"], domain="my", k=0.5)
    body = helper.make_graph(
        [scale, node("Add", ["m", "x"], ["vo"]), node("Identity", ["go"], ["goo"])],
        "body",
        [info("it", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v", [2, 3])],
        [info("goo", [], TensorProto.BOOL), info("vo", [2, 3])],
    )
    constants = {"w": np.float32(0.5), "n": np.int64(4), "yes": np.array(True)}
    return model([node("Loop", ["n", "yes", "x"], ["y"], name="loop", body=body)], X, constants=constants)


def test_loop_on_host():
    graph = check(loop())
    assert only(graph, "Loop").attrs["captures"] == ["w", "x"]
    assert graph.outputs[0].shape == (2, 3)


def test_function_called_in_a_loop():
    function = scaled()
    function.opset_import[0].version = 17
    proto = loop(functions=[function])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    check(proto)


def test_function_of_another_opset_called_in_a_loop():
    function = scaled()
    proto = loop(functions=[function])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    refused(proto, "Scaled", "opset 13", "opset 17")


def test_scan():
    body = helper.make_graph(
        [node("Add", ["s", "e"], ["so"]), node("Identity", ["so"], ["eo"])],
        "body",
        [info("s", [3]), info("e", [3])],
        [info("so", [3]), info("eo", [3])],
    )
    nodes = [node("Scan", ["z", "x"], ["f", "y"], body=body, num_scan_inputs=1)]
    graph = check(model(nodes, X, ["f", "y"], {"z": np.zeros(3, np.float32)}))
    assert [v.shape for v in graph.outputs] == [(3,), (2, 3)]


# Folding


def test_constants_fold_and_dead_nodes_go():
    nodes = [
        node("Transpose", ["w"], ["wt"]),
        node("MatMul", ["x", "wt"], ["y"]),
        node("Relu", ["x"], ["unused"]),
    ]
    graph = check(model(nodes, X, constants={"w": np.ones((4, 3), np.float32)}))
    assert [n.op for n in graph.nodes] == ["MatMul"]
    weight = graph.nodes[0].inputs[1]
    assert weight.data.shape == (3, 4)
    assert weight.data.flags.c_contiguous


def test_without_folding_every_node_stays():
    nodes = [node("Transpose", ["w"], ["wt"]), node("MatMul", ["x", "wt"], ["y"]), node("Relu", ["x"], ["unused"])]
    graph = load_graph(model(nodes, X, constants={"w": np.ones((4, 3), np.float32)}), fold=False)
    assert [n.op for n in graph.nodes] == ["Transpose", "MatMul", "Relu"]


def test_random_is_not_folded():
    graph = load_graph(model([node("RandomNormal", [], ["r"], shape=[2, 3]), node("Add", ["x", "r"], ["y"])], X))
    assert [n.op for n in graph.nodes] == ["RandomNormal", "Add"]
    assert only(graph, "RandomNormal").output.shape == (2, 3)


def test_unread_results_are_forgotten():
    nodes = [node("Split", ["x"], ["a", "b", "c"], axis=1), node("Relu", ["b"], ["y"])]
    split = only(check(model(nodes, X)), "Split")
    assert [v and v.name for v in split.outputs] == ["a", "b"]


@pytest.mark.parametrize("attribute", [{"value_float": 2.0}, {"value_floats": [1.0, 2.0, 3.0]}])
def test_constant_forms(attribute):
    graph = check(model([node("Constant", [], ["c"], **attribute), node("Add", ["x", "c"], ["y"])], X))
    assert [n.op for n in graph.nodes] == ["Add"]


def test_constant_and_input_outputs():
    nodes = [node("Constant", [], ["c"], value_ints=[1, 2]), node("Relu", ["x"], ["y"])]
    graph = load_graph(model(nodes, X, ["c", "x", "y"]))
    assert graph.outputs[0].is_constant
    assert graph.outputs[1] is graph.inputs[0]


def test_initializer_that_is_also_an_input_is_a_constant():
    proto = model([node("Add", ["x", "w"], ["y"])], {"x": [3], "w": [3]}, constants={"w": np.ones(3, np.float32)})
    graph = load_graph(proto)
    assert [v.name for v in graph.inputs] == ["x"]


def test_integer_division_truncates():
    nodes = [node("Div", ["a", "b"], ["q"]), node("Identity", ["q"], ["y"]), node("Relu", ["x"], ["z"])]
    proto = model(nodes, X, ["y", "z"], {"a": np.array([-7, 7, -8]), "b": np.array([2, -2, 3])})
    np.testing.assert_array_equal(load_graph(proto).outputs[0].data, [-3, -3, -2])


def test_ml_domain_runs_on_the_host():
    nodes = [node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")]
    proto = model(nodes, X, domains={"ai.onnx.ml": 3})
    graph = check(proto)
    assert graph.nodes[0].domain == "ai.onnx.ml"


def test_sequence_operators_run_on_the_host():
    nodes = [
        node("SplitToSequence", ["x"], ["s"], axis=0),
        node("SequenceAt", ["s", "i"], ["y"]),
    ]
    check(model(nodes, X, constants={"i": np.int64(1)}))


def test_loop_that_grows_a_value_has_no_static_shape():
    body = helper.make_graph(
        [node("Concat", ["v", "x"], ["vo"], axis=0), node("Identity", ["go"], ["goo"])],
        "body",
        [info("it", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v", None)],
        [info("goo", [], TensorProto.BOOL), info("vo", None)],
    )
    nodes = [node("Loop", ["n", "", "x"], ["y"], body=body)]
    graph = load_graph(model(nodes, X, constants={"n": np.int64(2)}))
    assert graph.outputs[0].shape is None
    x = np.ones((2, 3), np.float32)
    assert run_graph(graph, {"x": x})[0].shape == (6, 3)


@pytest.mark.parametrize("shape", [[], [3], [2, 3]])
@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop_stacks_results(shape, trips):
    body = helper.make_graph(
        [node("Add", ["v", "v"], ["vo"]), node("Identity", ["v"], ["each"]), node("Identity", ["go"], ["goo"])],
        "body",
        [info("it", [], TensorProto.INT64), info("go", [], TensorProto.BOOL), info("v", shape)],
        [info("goo", [], TensorProto.BOOL), info("vo", shape), info("each", shape)],
    )
    nodes = [node("Loop", ["n", "yes", "x"], ["y", "z"], body=body)]
    graph = check(model(nodes, {"x": shape}, ["y", "z"], {"n": np.int64(trips), "yes": np.array(True)}))
    assert graph.outputs[0].shape == tuple(shape)


def test_one_hot_depth_of_another_type():
    constants = {"d": np.float32(4), "v": np.array([0, 1], np.float32)}
    graph = load_graph(model([node("OneHot", ["x", "d", "v"], ["y"], axis=0)], X, constants=constants))
    assert graph.outputs[0].shape == (4, 2, 3)


def test_model_of_another_domain_alone():
    proto = model([node("Normalizer", ["x"], ["y"], domain="ai.onnx.ml", norm="L2")], X, domains={"ai.onnx.ml": 3})
    del proto.opset_import[0]
    assert load_graph(proto).outputs[0].dtype == np.float32
