"""Local memory for kernels in which something of other devices is emulated."""

from __future__ import annotations

from collections.abc import Callable


def with_local(source: str, wanted: Callable[[str], bool], declared: Callable[[int], str]) -> str:
    """The source with a declaration at the start of each kernel that is `wanted`, given its number of work-items."""
    prelude, *kernels = source.split("__kernel ")
    for number, kernel in enumerate(kernels):
        if wanted(kernel):
            items = int(kernel.partition("work_group_size(")[2].partition(",")[0])
            head, brace, body = kernel.partition(") {\n")
            kernels[number] = f"{head}{brace}    __local {declared(items)};\n{body}"
    return "__kernel ".join([prelude, *kernels])
