"""Kernels to C files: one function per distinct kernel, spread over a few files that compile in parallel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from smartmem.codegen.comment import comment
from smartmem.schedule.code import KernelCode

FILES = 8  # at most; a compiler process costs more than it saves for less than a few kernels

HEADER = '#include "simd.h"\n#include "scalar.h"\n'


@dataclass(frozen=True)
class Emitted:
    """C sources by file name, and the function of each kernel (in the order given)."""

    sources: dict[str, str]
    symbols: list[str]


def emit(codes: list[tuple[str, KernelCode]]) -> Emitted:
    """Functions for (title, code) pairs; equal texts are emitted once."""
    symbols: list[str] = []
    functions: dict[str, tuple[str, KernelCode, list[str]]] = {}
    for title, code in codes:
        digest = hashlib.sha256((code.text + "".join(code.support.values())).encode()).hexdigest()[:10]
        symbol = f"{code.family.replace(' ', '_')}_{digest}"
        functions.setdefault(symbol, (code.text, code, []))[2].append(title)
        symbols.append(symbol)
    count = max(1, min(FILES, len(functions) // 4))
    buckets: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for symbol in sorted(functions, key=lambda s: -len(functions[s][0])):
        smallest = sizes.index(min(sizes))
        buckets[smallest].append(symbol)
        sizes[smallest] += len(functions[symbol][0])
    return Emitted({f"kernels{k}.c": _file(bucket, functions) for k, bucket in enumerate(buckets)}, symbols)


def _file(bucket: list[str], functions: dict[str, tuple[str, KernelCode, list[str]]]) -> str:
    support: dict[str, str] = {}
    parts = []
    for symbol in bucket:
        text, code, titles = functions[symbol]
        support.update(code.support)
        shown = ", ".join(titles[:4]) + (f" and {len(titles) - 4} more" if len(titles) > 4 else "")
        notes = "".join(f"\n   {comment(note)}" for note in code.notes)
        parts.append(
            f"/* {code.family}: {comment(shown)}{notes} */\n"
            f"void {symbol}(void *const *args, long begin, long end, void *scratch) {{\n{text}\n}}\n"
        )
    return "\n".join([HEADER, *(support[k] for k in sorted(support)), *parts])
