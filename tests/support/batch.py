"""Many small graphs as one model: one C compilation and one library instead of hundreds.

``batch([graph, graph, ...], level)`` gives a `Batch`; ``batch.run(k, inputs)`` is graph k on its inputs. The graphs go
through the frontend on their own and through all passes together. They share nothing, so each one's kernels are those
that it would have alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.codegen.target import target_of
from smartmem.graph.ir import Graph
from smartmem.passes.assemble import assemble
from smartmem.passes.fold_batch_norm import fold_batch_norm
from smartmem.passes.pipeline import run_passes
from smartmem.passes.report import fill_report, layout_fates
from smartmem.runtime import march as isa
from smartmem.runtime.artifact import Program
from smartmem.runtime.cache import Cache
from smartmem.runtime.cc import build_library, find_compiler
from smartmem.runtime.model import Model
from smartmem.runtime.plan import plan_source

Array = np.ndarray[Any, Any]


def lowered(graph: Graph, level: str = "full", march: str = "native") -> Program:
    """The program of a graph that the frontend made."""
    counts = layout_fates(graph)
    if level != "naive":
        fold_batch_norm(graph)
    module = run_passes(graph, level)
    program = assemble(module, target_of(march), level, march, None)
    fill_report(program, module, counts)
    return program


def load_alone(program: Program, cache: Cache) -> Model:
    """The compiled model of one program."""
    compiler = find_compiler()
    sources = {**program.sources, "plan.c": plan_source(program)}
    library: Path = build_library(sources, program.march, cache, compiler)
    return Model(program, library, 2, features=isa.features(compiler.macros(program.march)))


def joined(graphs: Sequence[Graph]) -> Graph:
    """All graphs as one; the names in each get its number in front."""
    for number, graph in enumerate(graphs):
        for value in graph.values():
            value.name = f"{number}/{value.name}"
        for node in graph.nodes:
            node.name = f"{number}/{node.name}"
    return Graph(
        "batch",
        [v for g in graphs for v in g.inputs],
        [v for g in graphs for v in g.outputs],
        [n for g in graphs for n in g.nodes],
    )


class Batch:
    """Graphs that were compiled as one model.

    Attributes:
        program: of all graphs together.
        model: the compiled model.
    """

    def __init__(self, graphs: Sequence[Graph], cache: Cache, level: str = "full", march: str = "native") -> None:
        self._inputs = [[v.name for v in g.inputs] for g in graphs]
        self._outputs = [len(g.outputs) for g in graphs]
        whole = joined(graphs)
        self.program = lowered(whole, level, march)
        self.model = load_alone(self.program, cache)

    def run(self, feeds: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
        """The outputs of each graph on its inputs."""
        return split(self.model, self._inputs, self._outputs, feeds)


def split(
    model: Any, inputs: Sequence[Sequence[str]], outputs: Sequence[int], feeds: Sequence[Mapping[str, Array]]
) -> list[list[Array]]:
    """The outputs of each of several graphs that were joined."""
    given = {f"{k}/{name}": feeds[k][name] for k, names in enumerate(inputs) for name in names}
    flat = iter(model.run(given))
    return [[next(flat) for _ in range(count)] for count in outputs]
