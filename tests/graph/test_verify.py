"""`verify` accepts a good graph and names step, node and value for each broken invariant."""

from __future__ import annotations

import numpy as np
import pytest

from smartmem.errors import CompilerError
from smartmem.graph.ir import Graph, Node, Value
from smartmem.graph.verify import verify

F32 = np.dtype(np.float32)


def value(name: str, shape: tuple[int, ...] | None = (2, 3)) -> Value:
    return Value(name, shape, F32)


def chain() -> tuple[Graph, Value, Value, Value]:
    x, t, y = value("x"), value("t"), value("y")
    weight = Value("w", (3,), F32, np.zeros(3, np.float32))
    nodes = [Node("Add", "", "add", [x, weight], [t]), Node("Relu", "", "relu", [t, None], [y, None])]
    return Graph("g", [x], [y], nodes), x, t, y


def broken(graph: Graph) -> str:
    with pytest.raises(CompilerError) as error:
        verify(graph, after="fuse")
    assert str(error.value).startswith("after fuse: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_graph_passes():
    verify(chain()[0], after="import")


def test_graph_output_may_be_an_input_or_a_constant():
    x = value("x")
    constant = Value("c", (), F32, np.zeros((), np.float32))
    verify(Graph("g", [x], [x, constant], []), after="import")


def test_use_before_definition():
    graph, *_ = chain()
    graph.nodes.reverse()
    message = broken(graph)
    assert 'Relu "relu" reads "t"' in message


def test_undefined_operand():
    graph, *_ = chain()
    graph.nodes[1].inputs[0] = value("ghost")
    assert '"ghost"' in broken(graph)


def test_missing_output():
    graph, *_ = chain()
    graph.outputs.append(value("nowhere"))
    assert 'graph output "nowhere" has no producer' in broken(graph)


def test_no_outputs():
    graph, *_ = chain()
    graph.outputs.clear()
    assert "no outputs" in broken(graph)


def test_duplicate_value_name():
    graph, _, t, _ = chain()
    t.name = "x"
    assert 'two values are named "x"' in broken(graph)


def test_duplicate_node_name():
    graph, *_ = chain()
    graph.nodes[1].name = "add"
    assert 'two nodes are named "add": Add and Relu' in broken(graph)


def test_two_producers():
    graph, x, t, _ = chain()
    graph.nodes.insert(1, Node("Neg", "", "again", [x], [t]))
    assert 'Neg "again" produces "t" again, after Add "add"' in broken(graph)


def test_node_that_writes_an_input():
    graph, x, t, _ = chain()
    graph.nodes.append(Node("Neg", "", "bad", [t], [x]))
    assert "after the input" in broken(graph)


def test_node_without_results():
    graph, x, *_ = chain()
    graph.nodes.append(Node("Neg", "", "mute", [x], [None]))
    assert 'Neg "mute" produces nothing' in broken(graph)


def test_produced_constant():
    graph, _, t, _ = chain()
    t.data = np.zeros((2, 3), np.float32)
    assert "which is a constant" in broken(graph)


def test_constant_input():
    graph, x, *_ = chain()
    x.data = np.zeros((2, 3), np.float32)
    assert 'graph input "x" is a constant' in broken(graph)


@pytest.mark.parametrize(
    ("data", "what"),
    [(np.zeros(4, np.float32), "says shape (3,)"), (np.zeros(3), "says float32 and its data is float64")],
)
def test_constant_data_must_match(data, what):
    graph, *_ = chain()
    graph.nodes[0].inputs[1].data = data
    assert what in broken(graph)


def test_nameless_value():
    graph, _, t, _ = chain()
    t.name = ""
    assert "without a name" in broken(graph)
