"""A timed run as a Chrome trace, which chrome://tracing and ui.perfetto.dev show: one track per thread.

In: a `Profile`. Out: a JSON object; an event says when a thread worked on a step. Gaps in a track are waiting.
"""

from __future__ import annotations

from typing import Any

from smartmem.profile.measure import Profile


def trace(profile: Profile) -> dict[str, Any]:
    """The trace of the run with the median total time."""
    start = min(begin for step in profile.timed for _, begin, _ in step.spans)
    name = f"{profile.model}, level {profile.level}"
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 0, "args": {"name": name}}]
    for thread in range(profile.machine.threads):
        events.append({"name": "thread_name", "ph": "M", "pid": 0, "tid": thread, "args": {"name": f"thread {thread}"}})
    for number, (kernel, step) in enumerate(zip(profile.steps, profile.timed, strict=True)):
        details = {
            "step": number,
            "kernel": kernel.symbol,
            "shape": "x".join(map(str, kernel.shape)),
            "flops": kernel.flops,
            "bytes": kernel.bytes,
            "floor_us": round(kernel.floor * 1e6, 2),
            "made of": ", ".join(kernel.made_of),
        }
        for thread, begin, end in step.spans:
            events.append(
                {
                    **{"name": kernel.name, "cat": kernel.family, "ph": "X", "pid": 0, "tid": thread},
                    "ts": round((begin - start) * 1e6, 3),
                    "dur": round((end - begin) * 1e6, 3),
                    "args": details,
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
