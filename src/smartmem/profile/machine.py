"""What this machine can do at most: multiply-adds per second, and bytes per second by how much memory they go round.

In: a number of threads. Out: a `Machine`, measured once by a small program of C loops that runs like any model, and
kept in the cache under what the numbers follow from (the CPU, the compiler, the threads). Each number is the best of
many repeats: a floor under the time of a kernel must not rest on a disturbed measurement.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from smartmem.runtime.artifact import NativeStep, Program, Slot
from smartmem.runtime.cache import Cache
from smartmem.runtime.cc import Compiler, build_library, compiler_key
from smartmem.runtime.march import cpu_name
from smartmem.runtime.model import Model
from smartmem.runtime.plan import plan_source

REPEATS = 40
CHAINS = 12  # independent multiply-adds in flight: latency times throughput of all cores so far, in 16 registers
FMA_LOOPS = 1 << 22  # lanes that each chain goes through per task
LARGEST = 1 << 28  # bytes; no cache that a few cores share holds them
FOOTPRINTS = tuple(1 << k for k in range(16, 29, 2))  # bytes of all threads together
TASKS = 8  # of each thread, in `multiply_adds`
LANES = 64  # no vector has more
MOVED = 1 << 26  # bytes that a loop moves at least, so that starting it does not count

_FMA = """\
#include "simd.h"

void sm_peak_fma(void *const *args, long begin, long end, void *scratch) {{
    float *out = args[0];
    for (long t = begin; t < end; ++t) {{
        const f32v x = sm_splat(out[0] + 1.0f), y = sm_splat(out[1]);
        f32v a[{chains}];
        for (int k = 0; k < {chains}; ++k) a[k] = sm_splat((float)k);
        for (long i = 0; i < {loops}; i += SM_W) {{
#pragma GCC unroll {chains}
            for (int k = 0; k < {chains}; ++k) a[k] = a[k] * x + y;
        }}
        for (int k = 1; k < {chains}; ++k) a[0] = a[0] + a[k];
        sm_store(out + 64 * (t + 1), a[0]);
    }}
}}
"""
# Task t goes round its own `part` of the memory; the factor changes each time, so that no round can be left out.
_READ = """
void sm_peak_read_{name}(void *const *args, long begin, long end, void *scratch) {{
    const float *from = args[0];
    float *out = args[1];
    for (long t = begin; t < end; ++t) {{
        const float *p = from + t * {part};
        f32v a[8];
        for (int k = 0; k < 8; ++k) a[k] = sm_splat(0.0f);
        for (long round = 0; round < {rounds}; ++round)
            for (long i = 0; i < {part}; i += 8 * SM_W) {{
#pragma GCC unroll 8
                for (int k = 0; k < 8; ++k) a[k] = a[k] + sm_load(p + i + k * SM_W);
            }}
        for (int k = 1; k < 8; ++k) a[0] = a[0] + a[k];
        sm_store(out + 64 * (t + 1), a[0]);
    }}
}}
"""
_COPY = """
void sm_peak_copy_{name}(void *const *args, long begin, long end, void *scratch) {{
    float *memory = args[0];
    for (long t = begin; t < end; ++t) {{
        const float *p = memory + t * {part};
        float *q = memory + t * {part} + {half};
        for (long round = 0; round < {rounds}; ++round) {{
            const f32v factor = sm_splat((float)round);
            for (long i = 0; i < {half}; i += 4 * SM_W) {{
#pragma GCC unroll 4
                for (int k = 0; k < 4; ++k) sm_store(q + i + k * SM_W, sm_load(p + i + k * SM_W) * factor);
            }}
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Machine:
    """Peak rates of a machine.

    Attributes:
        cpu: name of the processor.
        threads: how many were used.
        flops: per second, two per multiply-add.
        bandwidth: (bytes gone round, bytes per second), by rising footprint: reading alone or copying, the faster.
    """

    cpu: str
    threads: int
    flops: float
    bandwidth: tuple[tuple[int, float], ...]

    def bytes_per_second(self, footprint: float) -> float:
        """The bandwidth for `footprint` bytes: between two that were measured, by their logarithms."""
        at = math.log(max(footprint, 1.0))
        points = [(math.log(size), math.log(rate)) for size, rate in self.bandwidth]
        if at <= points[0][0]:
            return self.bandwidth[0][1]
        for (x0, y0), (x1, y1) in pairwise(points):
            if at <= x1:
                return math.exp(y0 + (y1 - y0) * (at - x0) / (x1 - x0))
        return self.bandwidth[-1][1]

    def floor(self, flops: float, size: float) -> float:
        """Seconds that no kernel of so many operations and bytes can beat."""
        return max(flops / self.flops, size / self.bytes_per_second(size))

    def better(self, other: Machine) -> Machine:
        """The higher of each rate of two measurements of one machine."""
        pairs = zip(self.bandwidth, other.bandwidth, strict=True)
        bandwidth = tuple((size, max(rate, known)) for (size, rate), (_, known) in pairs)
        return Machine(self.cpu, self.threads, max(self.flops, other.flops), bandwidth)

    def to_json(self) -> dict[str, Any]:
        return {"cpu": self.cpu, "threads": self.threads, "flops": self.flops, "bandwidth": self.bandwidth}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Machine:
        bandwidth = tuple((int(size), float(rate)) for size, rate in data["bandwidth"])
        return Machine(data["cpu"], int(data["threads"]), float(data["flops"]), bandwidth)


def machine(threads: int, cache: Cache, compiler: Compiler, again: bool = False) -> Machine:
    """The peak rates with `threads` threads, from the cache or measured now.

    With `again` they are measured in any case, and the better of each old and new rate is kept: what else runs on a
    machine can only lower them.

    Raises:
        RuntimeFailure: there is no C compiler, or the threads cannot be started.
    """
    program = peak_program(threads)
    facts = {"cpu": cpu_name(), "node": platform.node(), "cpus": os.cpu_count(), "threads": threads}
    key = json.dumps({**facts, "compiler": compiler_key(compiler, program.march), "sources": program.sources})
    found = cache.find("machine", key, ".json")
    known = None if found is None else Machine.from_json(json.loads(found.read_text()))
    if known is not None and not again:
        return known
    sources = {**program.sources, "plan.c": plan_source(program)}
    library = build_library(sources, program.march, cache, compiler)
    with Model(program, library, threads, features=[]) as model:
        runs = [[step.seconds for step in model.run_timed({})[1]] for _ in range(REPEATS)]
    result = rates(threads, [min(times) for times in zip(*runs, strict=True)])
    result = result if known is None else result.better(known)
    cache.add("machine", key, ".json", json.dumps(result.to_json()).encode())
    return result


def rates(threads: int, seconds: Sequence[float]) -> Machine:
    """The rates that follow from the seconds of each step of `peak_program`."""
    flops = 2.0 * CHAINS * FMA_LOOPS * threads / seconds[0]
    bandwidth = []
    for number, footprint in enumerate(FOOTPRINTS):
        moved = 4.0 * threads * _part(footprint, threads) * _rounds(footprint, threads)
        bandwidth.append((footprint, moved / min(seconds[1 + 2 * number : 3 + 2 * number])))
    return Machine(cpu_name(), threads, flops, tuple(bandwidth))


def peak_program(threads: int) -> Program:
    """The loops as a program: one step of multiply-adds, then reading and copying for each footprint."""
    parts, symbols = [_fma(FMA_LOOPS)], ["sm_peak_fma"]
    for footprint in FOOTPRINTS:
        part = _part(footprint, threads)
        values = {"name": footprint, "part": part, "half": part // 2, "rounds": _rounds(footprint, threads)}
        parts += [_READ.format(**values), _COPY.format(**values)]
        symbols += [f"sm_peak_read_{footprint}", f"sm_peak_copy_{footprint}"]
    args = {"fma": (0,), "read": (1, 0), "copy": (1,)}
    steps = [NativeStep(s, threads, 1, args[s.split("_")[2]], s) for s in symbols]
    return _program(steps, threads, LARGEST, "native", "".join(parts))


def multiply_adds(count: int, threads: int, march: str) -> Program:
    """A loop of about `count` multiply-adds of single numbers and nothing else, in tasks for `threads` threads."""
    tasks = TASKS * threads
    loops = max(1, -(-count // (CHAINS * tasks * LANES))) * LANES
    steps = [NativeStep("sm_peak_fma", tasks, 1, (0,), "sm_peak_fma")]
    return _program(steps, tasks, 0, march, _fma(loops))


def _fma(loops: int) -> str:
    """C text: each task does `CHAINS` x `loops` multiply-adds of single numbers."""
    return _FMA.format(chains=CHAINS, loops=loops)


def _program(steps: Sequence[NativeStep], tasks: int, memory: int, march: str, source: str) -> Program:
    """Steps without inputs: their slots are results of so many tasks, and `memory` bytes."""
    results = 4 * 64 * (tasks + 1)
    return Program(
        name="peak", level="full", march=march, inputs=[], outputs=[],
        slots=[Slot("arena", "results"), Slot("arena", "memory", results)],
        steps=list(steps), arena_bytes=results + memory, scratch_bytes=0, weights={}, sources={"peak.c": source},
    )  # fmt: skip


def _part(footprint: int, threads: int) -> int:
    """Floats of one thread: its share of the footprint, in whole blocks of the loops."""
    return max(1, footprint // 4 // threads // 512) * 512


def _rounds(footprint: int, threads: int) -> int:
    return max(1, MOVED // (4 * threads * _part(footprint, threads)))
