"""A profile as text: the machine, the kernels by falling loss, the totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Group, RenderableType
from rich.text import Text

from smartmem.profile.machine import Machine
from smartmem.profile.measure import KernelTime, Profile
from smartmem.report.explain import memory_line
from smartmem.report.tables import dims, size, table

COLUMNS = ("kernel", "family", "shape", ">times", ">ms", ">floor", ">loss", ">roofline", ">GFLOP/s", ">GB/s", ">busy")


def renderable(profile: Profile, top: int) -> RenderableType:
    """The `top` kernels with the largest loss; equal kernels are one row."""
    rows = sorted(_together(profile.steps), key=lambda row: -row[1].loss)
    shown = [_row(*row) for row in rows[:top]]
    left = [step for _, step in rows[top:]]
    title = f"Kernels by loss (time above the floor); ms, medians of {profile.runs} runs"
    parts: list[RenderableType] = [Text(_machine(profile.machine)), Text(), table(title, COLUMNS, shown)]
    if left:
        lost = sum(step.loss for step in left) * 1e3
        parts.append(Text(f"{len(left)} more rows lose {lost:.3f} ms; --top {len(rows)} shows them all."))
    return Group(*parts, *map(Text, _totals(profile)))


def _together(steps: Sequence[KernelTime]) -> list[tuple[int, KernelTime]]:
    """Steps that run the same function on tensors of the same shape as one, with how many there are."""
    groups: dict[tuple[str, tuple[int, ...]], list[KernelTime]] = {}
    for step in steps:
        groups.setdefault((step.symbol, step.shape), []).append(step)
    result = []
    for same in groups.values():
        total = replace(
            same[0],
            name=same[0].name + (f" and {len(same) - 1} more" if len(same) > 1 else ""),
            flops=sum(step.flops for step in same),
            bytes=sum(step.bytes for step in same),
            seconds=sum(step.seconds for step in same),
            floor=sum(step.floor for step in same),
            busy=sum(step.busy * step.seconds for step in same) / (sum(step.seconds for step in same) or 1.0),
        )
        result.append((len(same), total))
    return result


def _row(count: int, step: KernelTime) -> tuple[str, ...]:
    host = step.family == "host"
    seconds = step.seconds or 1e-12
    return (
        step.name,
        f"host: {step.symbol}" if host else step.family,
        dims(step.shape) if not host else "",
        str(count),
        f"{step.seconds * 1e3:.3f}",
        "" if host else f"{step.floor * 1e3:.3f}",
        f"{step.loss * 1e3:.3f}",
        "" if host else f"{step.share:.0%}",
        "" if host else f"{step.flops / seconds / 1e9:.1f}",
        "" if host else f"{step.bytes / seconds / 1e9:.1f}",
        "" if host else f"{step.busy:.0%}",
    )


def _machine(machine: Machine) -> str:
    rates = ", ".join(f"{rate / 1e9:.0f} in {size(footprint)}" for footprint, rate in machine.bandwidth)
    return (
        f"{machine.cpu}, threads: {machine.threads}\n"
        f"peak: {machine.flops / 1e9:.0f} GFLOP/s of multiply-adds; GB/s by footprint: {rates}"
    )


def _totals(profile: Profile) -> list[str]:
    seconds = sum(step.seconds for step in profile.steps)
    floor = sum(step.floor for step in profile.steps)
    flops = sum(step.flops for step in profile.steps)
    hosts = [step for step in profile.steps if step.family == "host"]
    lines = [
        f"{profile.model}, level {profile.level}: {len(profile.kernels)} kernels take {seconds * 1e3:.2f} ms, "
        f"a call {profile.call * 1e3:.2f} ms",
        f"floor {floor * 1e3:.2f} ms, roofline {floor / (seconds or 1.0):.0%}, "
        f"{flops / 1e9:.2f} GFLOP at {flops / (seconds or 1.0) / 1e9:.0f} GFLOP/s",
        f"each kernel's fastest run: {profile.fastest * 1e3:.2f} ms, roofline {floor / (profile.fastest or 1.0):.0%}",
    ]
    lines.append(f"{memory_line(profile.memory)}; peak of this process {size(profile.memory['peak_bytes'])}")
    if hosts:
        lost = sum(step.seconds for step in hosts) * 1e3
        lines.append(f"{len(hosts)} steps on the host take {lost:.2f} ms of it")
    if any(step.share > 1.05 for step in profile.kernels):
        lines.append("some kernels beat their floor: the peak was measured on a busy machine; --again measures it anew")
    return lines
