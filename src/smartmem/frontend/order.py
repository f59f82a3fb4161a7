"""Order nodes so that each follows what it reads: list of NodeProto → the same list, sorted.

ONNX demands this order, but exporters and hand-made graphs do not always keep it. The sort is stable: an ordered graph
stays as it is. What cannot be ordered (a cycle, a name nobody defines, a name defined twice) is a `ModelError`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence

import onnx

from smartmem.errors import ModelError


def describe(node: onnx.NodeProto) -> str:
    """`MatMul "/block/MatMul"`, or by its first output where the node has no name."""
    name = node.name or next((o for o in node.output if o), "?")
    return f'{node.op_type} "{name}"'


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes (If, Loop, Scan, SequenceMap)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def defined_in(graph: onnx.GraphProto) -> set[str]:
    """Names that `graph` itself defines (not those of graphs within it)."""
    names = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    names |= {t.values.name for t in graph.sparse_initializer}
    return names | {o for node in graph.node for o in node.output if o}


def captures(node: onnx.NodeProto) -> list[str]:
    """Outer names that the node's subgraphs read, in order of first use."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        local = defined_in(graph)
        for inner in graph.node:
            for name in (*inner.input, *captures(inner)):
                if name and name not in local:
                    found[name] = None
        for output in graph.output:
            if output.name not in local:
                found[output.name] = None
    return list(found)


def sort_nodes(nodes: Sequence[onnx.NodeProto], known: Iterable[str]) -> list[onnx.NodeProto]:
    """`nodes` in an order in which each follows the producers of its inputs.

    Args:
        nodes: the graph's nodes.
        known: names defined without a node (graph inputs and initializers).

    Raises:
        ModelError: a cycle, an undefined name, or a name defined twice.
    """
    known = set(known)
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if not name:
                continue
            if name in producer or name in known:
                other = describe(nodes[producer[name]]) if name in producer else "a graph input or initializer"
                raise ModelError(
                    f'{describe(node)} defines "{name}" again, after {other}; each name may be defined only once, '
                    "export the model again or rename one"
                )
            producer[name] = index

    waiting: list[int] = []
    readers: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        needs = set()
        for name in (*node.input, *captures(node)):
            if not name or name in known:
                continue
            if name not in producer:
                raise ModelError(
                    f'{describe(node)} reads "{name}", which no node, input or initializer defines; '
                    "the model is incomplete, export it again"
                )
            needs.add(producer[name])
        waiting.append(len(needs))
        for source in needs:
            readers[source].append(index)

    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        stuck = _cycle(nodes, producer, set(range(len(nodes))) - set(order))
        path = " -> ".join(describe(nodes[i]) for i in stuck)
        raise ModelError(f"the graph has a cycle: {path}; a model must be acyclic, export it again")
    return [nodes[index] for index in order]


def _cycle(nodes: Sequence[onnx.NodeProto], producer: dict[str, int], stuck: set[int]) -> list[int]:
    """One cycle among the nodes that never became ready, in reading order; at most a few of its nodes."""
    path = [min(stuck)]
    while True:
        node = nodes[path[-1]]
        sources = [producer[n] for n in (*node.input, *captures(node)) if n in producer]
        before = next(s for s in sources if s in stuck)
        if before in path:
            cycle = path[path.index(before) :]
            return list(reversed(cycle[:6]))
        path.append(before)
