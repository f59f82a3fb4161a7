"""Write the order of the native steps as C, so that library and plan are one file.

In: a `Program`. Out: C text with a table of `sm_step` that `sm_pool_run` walks:

    extern void matmul_0(void *const *args, long begin, long end, void *scratch);
    static const int a0[] = {0, 3, 4};
    const sm_step sm_steps[] = {
        {.fn = matmul_0, .tasks = 128, .grain = 4, .arg_ids = a0, .nargs = 3}, /* /blocks.0/MatMul */
    };

Host steps are not in the table: the model runs the stretches of native steps between them (`segments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smartmem.codegen.comment import comment
from smartmem.runtime.artifact import HostStep, NativeStep, Program

if TYPE_CHECKING:
    from smartmem.runtime.opencl.program import DeviceProgram


@dataclass(frozen=True)
class Segment:
    """Native steps (kernel launches) [first, first + count), counted without host steps, or one host step."""

    first: int = 0
    count: int = 0
    host: HostStep | None = None


def plan_source(program: Program) -> str:
    """The table of native steps as C text."""
    steps = [step for step in program.steps if isinstance(step, NativeStep)]
    lines = ["/* The native steps in execution order; arguments are slot numbers. */", '#include "pool.h"', ""]
    for symbol in dict.fromkeys(step.symbol for step in steps):
        lines.append(f"extern void {symbol}(void *const *args, long begin, long end, void *scratch);")
    rows = []
    arrays: dict[tuple[int, ...], str] = {}
    for step in steps:
        if step.args not in arrays:
            arrays[step.args] = f"a{len(arrays)}"
            # An empty initializer is not C: a step without arguments still gets one entry.
            lines.append(f"static const int {arrays[step.args]}[] = {{{', '.join(map(str, step.args)) or '0'}}};")
        rows.append(
            f"    {{.fn = {step.symbol}, .tasks = {step.tasks}, .grain = {step.grain}, "
            f".arg_ids = {arrays[step.args]}, .nargs = {len(step.args)}}}, /* {comment(step.label)} */"
        )
    lines += ["", "const sm_step sm_steps[] = {", *(rows or ["    {0},"]), "};"]
    lines += [f"const long sm_step_count = {len(steps)};", "const long sm_step_size = sizeof(sm_step);", ""]
    return "\n".join(lines)


def segments(program: Program | DeviceProgram) -> list[Segment]:
    """The program's steps with neighbouring native ones (kernel launches) joined."""
    result: list[Segment] = []
    native = 0
    for step in program.steps:
        if isinstance(step, HostStep):
            result.append(Segment(host=step))
            continue
        if result and result[-1].host is None:
            result[-1] = Segment(result[-1].first, result[-1].count + 1)
        else:
            result.append(Segment(native, 1))
        native += 1
    return result
