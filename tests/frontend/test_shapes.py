"""Symbolic shapes bind, shape arithmetic becomes static, and what cannot be bound is said in one line."""

from __future__ import annotations

import numpy as np
import pytest
from frontend_models import check, only
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

from smartmem.errors import InputError, ModelError
from smartmem.frontend import load_graph

node = helper.make_node


def two_inputs():
    nodes = [node("Add", ["a", "b"], ["y"])]
    return model(nodes, {"a": ["batch", 3, "n"], "b": ["batch", 3, "n"]})


def refused(proto, shapes, *parts: str, kind=InputError):
    with pytest.raises(kind) as error:
        load_graph(proto, shapes)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_symbol_bound_by_one_input_holds_for_the_other():
    graph = load_graph(two_inputs(), {"a": (2, 3, 5)})
    assert [v.shape for v in graph.inputs] == [(2, 3, 5), (2, 3, 5)]
    assert graph.outputs[0].shape == (2, 3, 5)


def test_unbound_symbol():
    refused(two_inputs(), {}, '"a"', "(batch, 3, n)", "--shape a=1,3,128")


def test_unknown_dimension():
    proto = model([node("Relu", ["x"], ["y"])], {"x": [None, 3, None, None]})
    refused(proto, None, "(?, 3, ?, ?)", "--shape x=1,3,224,224")


def test_negative_declared_dimension_is_unknown():
    proto = model([node("Relu", ["x"], ["y"])], {"x": [-1, 3]})
    refused(proto, None, "--shape x=1,3")
    assert load_graph(proto, {"x": (4, 3)}).outputs[0].shape == (4, 3)


def test_unknown_rank():
    proto = model([node("Relu", ["x"], ["y"])], {"x": None})
    refused(proto, None, "no shape", "--shape x=")
    assert load_graph(proto, {"x": (4, 3)}).outputs[0].shape == (4, 3)


def test_symbol_with_two_values():
    refused(two_inputs(), {"a": (2, 3, 5), "b": (1, 3, 5)}, '"batch"', "2", "1", '"a"', '"b"')


def test_question_marks_are_separate_symbols():
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["?", "?"]})
    assert load_graph(proto, {"x": (4, 3)}).outputs[0].shape == (4, 3)


def test_wrong_rank():
    refused(two_inputs(), {"a": (2, 3)}, "2x3", "2 dimensions", "3: (batch, 3, n)")


def test_fixed_dimension_contradicted():
    refused(two_inputs(), {"a": (2, 4, 5)}, "4 at dimension 1", "fixes it to 3")


def test_negative_extent():
    refused(two_inputs(), {"a": (-2, 3, 5)}, "negative")


def test_unknown_input_suggests_a_near_name():
    proto = model([node("Relu", ["input_ids"], ["y"])], {"input_ids": [1, "n"]})
    refused(proto, {"inputs_id": (1, 8)}, '"inputs_id"', 'did you mean "input_ids"?')
    refused(proto, {"zzz": (1, 8)}, "input_ids")


def test_view_shape_arithmetic():
    """`x.view(x.shape[0], x.shape[1] // h, -1)` as exporters spell it."""
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "h": np.int64(4),
        "minus": np.array([-1]),
        "ax": np.array([0]),
    }
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["b"]),
        node("Gather", ["s", "one"], ["c"]),
        node("Div", ["c", "h"], ["c4"]),
        node("Unsqueeze", ["b", "ax"], ["b1"]),
        node("Unsqueeze", ["c4", "ax"], ["c1"]),
        node("Concat", ["b1", "c1", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    graph = check(model(nodes, {"x": ["b", "c", 6]}, constants=constants), {"x": (2, 8, 6)})
    assert [n.op for n in graph.nodes] == ["Reshape"]
    assert graph.outputs[0].shape == (2, 2, 24)
    assert [v.name for v in only(graph, "Reshape").inputs] == ["x"]


def test_longer_shape_arithmetic():
    """Range, Expand, ConstantOfShape, Where, Equal, Cast, Slice, Mul, ReduceProd over shapes."""
    constants = {"z": np.int64(0), "o": np.int64(1), "a": np.array([0]), "b": np.array([1]), "m": np.array([-1])}
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "a", "b"], ["first"]),
        node("Squeeze", ["first", "a"], ["n"]),
        node("Range", ["z", "n", "o"], ["ids"]),
        node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        node("ConstantOfShape", ["s"], ["zeros"]),
        node("Equal", ["s", "m"], ["dynamic"]),
        node("Where", ["dynamic", "b", "s"], ["target"]),
        node("Unsqueeze", ["f", "b"], ["col"]),
        node("Expand", ["col", "target"], ["wide"]),
        node("Add", ["wide", "zeros"], ["w0"]),
        node("Add", ["x", "w0"], ["y"]),
        node("ReduceProd", ["s"], ["total"], keepdims=0),
        node("Size", ["x"], ["count"]),
    ]
    graph = check(model(nodes, {"x": ["n", "k"]}, ["y", "total", "count"], constants), {"x": (3, 2)})
    assert [n.op for n in graph.nodes] == ["Add"]
    assert graph.outputs[1].data == graph.outputs[2].data == 6


def test_shape_of_a_computed_value_is_constant():
    nodes = [
        node("MatMul", ["x", "w"], ["t"]),
        node("Shape", ["t"], ["s"], start=-1),
        node("Expand", ["t", "s"], ["y"]),
    ]
    graph = check(model(nodes, {"x": [4, 3]}, constants={"w": np.ones((3, 5), np.float32)}))
    assert [n.op for n in graph.nodes] == ["MatMul", "Expand"]


def test_data_dependent_shape_is_none():
    nodes = [node("NonZero", ["x"], ["i"]), node("Transpose", ["i"], ["y"])]
    graph = check(model(nodes, {"x": [4, 3]}))
    assert graph.outputs[0].shape is None
    assert graph.outputs[0].dtype == np.int64


def test_reshape_to_a_shape_that_depends_on_data():
    proto = model([node("Reshape", ["x", "s"], ["y"])], [info("x", [4, 3]), info("s", [2], TensorProto.INT64)])
    graph = load_graph(proto)
    assert graph.outputs[0].shape is None
    assert len(graph.nodes[0].inputs) == 2


def test_huge_result():
    constants = {"shape": np.array([1 << 20, 1 << 20, 4])}
    proto = model([node("Expand", ["x", "shape"], ["y"])], {"x": [1]}, constants=constants)
    refused(proto, None, 'Expand "y"', "16,384.0 GiB", "this machine has", kind=ModelError)


def test_huge_constant_is_not_allocated():
    constants = {"shape": np.array([1 << 31, 1 << 31, 1 << 31])}
    proto = model(
        [node("ConstantOfShape", ["shape"], ["c"]), node("Add", ["x", "c"], ["y"])], {"x": [1]}, constants=constants
    )
    refused(proto, None, "ConstantOfShape", "GiB", kind=ModelError)


def test_huge_input():
    proto = model([node("Relu", ["x"], ["y"])], {"x": ["n"]})
    refused(proto, {"x": (1 << 50,)}, 'input "x"', "GiB", kind=ModelError)


def test_operands_that_do_not_fit():
    proto = model([node("MatMul", ["a", "b"], ["y"], name="proj")], {"a": [2, 3], "b": [4, 5]})
    refused(proto, None, 'MatMul "proj"', "2x3", "4x5", kind=ModelError)


def test_index_out_of_range_in_shape_arithmetic():
    nodes = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "i"], ["y"])]
    refused(model(nodes, {"x": [2, 3]}, constants={"i": np.int64(7)}), None, 'Gather "y"', kind=ModelError)
