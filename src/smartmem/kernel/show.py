"""Stages and kernels in readable notation, for dumps and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smartmem.index.lin import show
from smartmem.kernel.expr import Alu, Choose, Const, Expr, Iota, Load
from smartmem.kernel.stage import Kernel, Stage

if TYPE_CHECKING:
    from smartmem.passes.module import Module

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def show_expr(expr: Expr, depth: int = 12) -> str:
    """One line; very deep expressions are cut."""
    if isinstance(expr, Load):
        return f"{expr.tensor}[{', '.join(show(i) for i in expr.index)}]"
    if isinstance(expr, Const):
        return str(expr.value)
    if isinstance(expr, Iota):
        return f"({show(expr.lin)})"
    if depth == 0:
        return "..."
    if isinstance(expr, Choose):
        guards = " and ".join(f"0 <= {show(g.lin)} < {g.ext}" for g in expr.guards)
        return f"({show_expr(expr.then, depth - 1)} if {guards} else {show_expr(expr.otherwise, depth - 1)})"
    assert isinstance(expr, Alu)
    args = [show_expr(a, depth - 1) for a in expr.args]
    if expr.op in _SIGNS:
        return f"({args[0]} {_SIGNS[expr.op]} {args[1]})"
    return f"{expr.op}({', '.join(args)})"


def show_stage(stage: Stage) -> str:
    over = f" over {list(stage.reduce)}" if stage.reduce else ""
    return f"{stage.name}{list(stage.shape)}:{stage.dtype} = {stage.combine}{over} {show_expr(stage.body)}"


def show_kernel(kernel: Kernel) -> str:
    rows = f" rows={kernel.rows}" if kernel.rows is not None else ""
    store = f" store {kernel.store.show()}" if kernel.store is not None else ""
    lines = [f"kernel {kernel.tensor}{list(kernel.shape)}{rows}{store}"]
    return "\n".join([*lines, *(f"    {show_stage(s)}" for s in kernel.stages)])


def show_module(module: Module) -> str:
    steps = module.kernels or module.steps
    parts = []
    for step in steps:
        if isinstance(step, Kernel):
            parts.append(show_kernel(step))
        elif isinstance(step, Stage):
            parts.append(show_stage(step))
        else:
            parts.append(f"host {step.node.describe()}: {step.reason}")
    return "\n".join(parts) + "\n"
