"""From a model file to a `Program`: frontend, passes, assembly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from smartmem.runtime.artifact import Program

Progress = Callable[[str, int, int], None]


def build_program(
    model: str | os.PathLike[str] | Any,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    level: str = "full",
    march: str = "native",
    progress: Progress | None = None,
) -> Program:
    """Compiles an ONNX file (or ModelProto) to C sources and a plan; no C compiler is run.

    Args:
        model: path of the ONNX file, or an `onnx.ModelProto`.
        shapes: shapes of inputs that have symbolic dimensions.
        level: "naive", "fuse", "eliminate", "layout" or "full".
        march: instruction set, as the C compiler names it.
        progress: called with (phase, done, total).

    Raises:
        ModelError, InputError: see `frontend.load_graph`.
    """
    from smartmem.codegen.target import target_of
    from smartmem.frontend.load import load_graph
    from smartmem.graph.verify import verify
    from smartmem.passes.assemble import assemble
    from smartmem.passes.fold_batch_norm import fold_batch_norm
    from smartmem.passes.pipeline import run_passes
    from smartmem.passes.report import fill_report, layout_fates

    if progress:
        progress("read", 0, 1)
    graph = load_graph(model, shapes)
    verify(graph, "frontend")
    fates = layout_fates(graph)
    if level != "naive":
        fold_batch_norm(graph)
        verify(graph, "fold_batch_norm")
    if progress:
        progress("optimize", 0, 1)
    module = run_passes(graph, level)
    target = replace(target_of(march), tuned=level == "full")
    program = assemble(module, target, level, march, progress)
    fill_report(program, module, fates)
    return program
