"""What `explain` shows: where each layout operator went, the kernels with their work, and the totals."""

from __future__ import annotations

from typing import Any

from smartmem.graph.ir import Graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.count_work import count_bytes, count_flops
from smartmem.passes.lower import LAYOUT_OPERATORS, operators_of
from smartmem.passes.module import HostOp, Module
from smartmem.runtime.artifact import Program
from smartmem.runtime.opencl.program import DeviceProgram


def layout_fates(graph: Graph) -> dict[str, Any]:
    """Counts of the input graph, before anything changes it."""
    return {
        "operators": len(operators_of(graph)),
        "layout_operators": sum(1 for operator in operators_of(graph) if operator.op in LAYOUT_OPERATORS),
    }


def fill_report(program: Program | DeviceProgram, module: Module, counts: dict[str, Any]) -> None:
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
                "flops": count_flops(kernel),
                "bytes": count_bytes(kernel, module.types),
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
            "assignment": module.assignment,
            "totals": {
                **counts,
                "kernels": len(kernels),
                "copies": len(copies),
                "copied_bytes": sum(2 * k.output.nbytes for k in copies),
                "host_steps": len(hosts),
            },
        }
    )
