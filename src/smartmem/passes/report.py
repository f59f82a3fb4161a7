"""What `explain` shows: where each layout operator went, the kernels with their work, and the totals."""

from __future__ import annotations

import math
from typing import Any

from smartmem.graph.ir import Graph
from smartmem.kernel.expr import cost
from smartmem.kernel.stage import Kernel
from smartmem.passes.lower import LAYOUT_OPERATORS, operators_of
from smartmem.passes.module import HostOp, Module
from smartmem.runtime.artifact import Program
from smartmem.schedule.roles import is_contraction


def layout_fates(graph: Graph) -> dict[str, Any]:
    """Counts of the input graph, before anything changes it."""
    return {
        "operators": len(operators_of(graph)),
        "layout_operators": sum(1 for operator in operators_of(graph) if operator.op in LAYOUT_OPERATORS),
    }


def fill_report(program: Program, module: Module, counts: dict[str, Any]) -> None:
    """Completes `program.report`."""
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    hosts = [k for k in module.kernels if isinstance(k, HostOp)]
    families = program.report.pop("families")
    notes = program.report.pop("code_notes")
    rows = []
    for kernel, family, extra in zip(kernels, families, notes, strict=True):
        rows.append(
            {
                "name": kernel.tensor,
                "family": family,
                "shape": list(kernel.shape),
                "flops": flops(kernel),
                "bytes": traffic(kernel, module),
                "copy": kernel.is_copy,
                "origin": sorted({o for s in kernel.stages for o in s.origin}),
                "notes": [*kernel.notes, *extra],
            }
        )
    copies = [k for k in kernels if k.is_copy]
    program.report.update(
        {
            "model": module.name,
            "level": program.level,
            "layout": [vars(f) | {"shape": list(f.shape)} for f in module.fates.values()],
            "kernels": rows,
            "host": [{"node": h.node.name, "op": h.node.op, "reason": h.reason} for h in hosts],
            "apart": module.apart,
            "classes": module.classes,
            "layouts": module.layouts,
            "totals": {
                **counts,
                "kernels": len(kernels),
                "copies": len(copies),
                "copied_bytes": sum(2 * k.output.nbytes for k in copies),
                "host_steps": len(hosts),
            },
        }
    )


def flops(kernel: Kernel) -> int:
    """Floating-point operations: two per multiply-add of a contraction, otherwise one per operation of each stage."""
    total = 0
    for stage in kernel.stages:
        if kernel.rows is not None and is_contraction(stage, kernel.rows):
            total += 2 * math.prod(stage.domain)
        else:
            total += math.prod(stage.domain) * (cost(stage.body) + (1 if stage.reduce else 0))
    return total


def traffic(kernel: Kernel, module: Module) -> int:
    """Bytes that the kernel must at least load and store: each tensor it touches once."""
    total = math.prod(kernel.shape) * kernel.output.dtype.itemsize
    for name in kernel.inputs():
        shape, dtype = module.types[name]
        total += math.prod(shape or ()) * dtype.itemsize
    return total
