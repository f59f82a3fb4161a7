"""The frontend's entry: ONNX file → `Graph`.

The steps, each in its own module: `read` the file, `bind` the input shapes, then `importer` walks the nodes once in
order (`inline` functions and branches, `infer` types, `normalise` forms, `fold` constants), then dead nodes are dropped
and the graph is verified.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import onnx

from smartmem.frontend.fold import remove_dead
from smartmem.frontend.importer import import_graph
from smartmem.frontend.read import read
from smartmem.frontend.schemas import NATIVE
from smartmem.graph.ir import Graph
from smartmem.graph.verify import verify


def load_graph(
    path: str | os.PathLike[str] | onnx.ModelProto,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    fold: bool = True,
    keep: frozenset[str] = NATIVE,
) -> Graph:
    """Import an ONNX model.

    Args:
        path: the .onnx file, or a parsed model (then without external data).
        shapes: input name → shape, for inputs with symbolic dimensions; a symbol bound by one input holds for all.
        fold: whether to replace nodes with constant operands by their results, and to drop dead nodes.
        keep: composite operators of the ONNX domain to keep whole; others become their ONNX function body.

    Returns:
        The graph in canonical form (see `normalise`), every shape static unless it depends on data.

    Raises:
        ModelError: the file is missing or malformed, or the model inconsistent, unknown or too large for the machine.
        InputError: `shapes` does not fit the model, or leaves a dimension unbound.
    """
    source = read(path)
    graph = import_graph(source, shapes or {}, fold, keep)
    if fold:
        remove_dead(graph)
    verify(graph, after="the frontend")
    return graph
