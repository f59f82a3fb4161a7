"""Names of a model cannot leave the comments of generated C."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from smartmem.codegen.comment import comment
from smartmem.compiler import build_program
from smartmem.runtime.plan import plan_source

HOSTILE = ["*/ int evil; /*", "*\\\n/ int evil; /*", "*\\/ int evil;", "??/\n evil", "x\r\n evil", "//\u2028*/"]


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_ends_a_comment(name: str) -> None:
    assert not set(comment(name)) & set("*/\\\n\r?")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_a_model_stay_inside(name: str) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], [name], name), helper.make_node("Softmax", [name], ["y"], f"{name}2")]
    graph = helper.make_graph(
        nodes, name, [value("x", TensorProto.FLOAT, [4, 8])], [value("y", TensorProto.FLOAT, [4, 8])]
    )
    program = build_program(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), level="naive")
    for text in (*program.sources.values(), plan_source(program)):
        outside = "".join(part.split("*/")[-1] for part in text.split("/*"))
        assert "evil" not in outside
