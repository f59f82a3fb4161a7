"""Check a `Graph`'s invariants: run after the frontend and after every pass.

In: a graph and the name of the step that made it. Out: nothing, or a `CompilerError` that names step, node and value.

What must hold (and every pass may rely on):
- a value name belongs to one `Value`, a node name to one `Node`;
- every operand is a graph input, a constant, or the output of an *earlier* node, and has one producer;
- a constant has no producer, and its data has the shape and dtype that the value states;
- every graph output is an input, a constant, or produced by a node, and every node produces something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from smartmem.errors import CompilerError
from smartmem.graph.ir import Graph, Node, Value


def verify(graph: Graph, after: str) -> None:
    """Raise unless `graph` keeps the invariants of this module's docstring.

    Args:
        graph: the graph to check.
        after: the pass that just ran, for the message.

    Raises:
        CompilerError: naming the pass, the node and the value that break an invariant.
    """

    def fail(message: str) -> NoReturn:
        raise CompilerError(f"after {after}: {message} (graph {graph.name!r}); please report this")

    _check_values(graph, fail)
    _check_order(graph, fail)


def _check_values(graph: Graph, fail: Callable[[str], NoReturn]) -> None:
    """Names are unique and constants are what they say."""
    names: dict[str, Value] = {}
    for value in graph.values():
        if not value.name:
            fail(f"a value without a name: {value!r}")
        if value.name in names:
            fail(f'two values are named "{value.name}": {names[value.name]!r} and {value!r}')
        names[value.name] = value
        if value.data is None:
            continue
        if value.shape is None or tuple(value.data.shape) != value.shape:
            fail(f'constant "{value.name}" says shape {value.shape} and its data has {tuple(value.data.shape)}')
        if value.data.dtype != value.dtype:
            fail(f'constant "{value.name}" says {value.dtype} and its data is {value.data.dtype}')


def _check_order(graph: Graph, fail: Callable[[str], NoReturn]) -> None:
    """Every operand is defined before its use, once, and every output is defined at all."""
    producer: dict[Value, Node | None] = {}
    for value in graph.inputs:
        if value.is_constant:
            fail(f'graph input "{value.name}" is a constant')
        if value in producer:
            fail(f'graph input "{value.name}" is listed twice')
        producer[value] = None
    names: dict[str, Node] = {}
    for node in graph.nodes:
        if node.name in names:
            fail(f'two nodes are named "{node.name}": {names[node.name].op} and {node.op}')
        names[node.name] = node
        for operand in node.inputs:
            if operand is not None and not operand.is_constant and operand not in producer:
                fail(f'{node.describe()} reads "{operand.name}", which nothing before it produces')
        outputs = [v for v in node.outputs if v is not None]
        if not outputs:
            fail(f"{node.describe()} produces nothing")
        for value in outputs:
            if value.is_constant:
                fail(f'{node.describe()} produces "{value.name}", which is a constant')
            if value in producer:
                other = producer[value]
                first = other.describe() if other else "the input"
                fail(f'{node.describe()} produces "{value.name}" again, after {first}')
            producer[value] = node
    if not graph.outputs:
        fail("the graph has no outputs")
    for value in graph.outputs:
        if not value.is_constant and value not in producer:
            fail(f'graph output "{value.name}" has no producer')
