"""Run generated C code of another CPU: a static executable for 64-bit ARM, under QEMU's user-mode emulation.

`run_program` is what `runtime.model` does without Python: it fills the slots, runs the plan on the thread pool and
writes the outputs. What goes in and comes out are files of raw bytes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from smartmem.runtime.artifact import NativeStep, Program
from smartmem.runtime.cc import FLAGS, NATIVE, find_compiler
from smartmem.runtime.plan import plan_source

MARCH = "cortex_a76"
SECONDS = 300

MAIN = """
#include "pool.h"
#include <stdio.h>
#include <stdlib.h>

extern const sm_step sm_steps[];
extern const long sm_step_count;
enum {{ SLOTS = {slots}, THREADS = {threads} }};
static const long sizes[] = {{ {sizes} }};      /* bytes of each slot's own memory */
static const long offsets[] = {{ {offsets} }};  /* into the arena, or -1 */
static const char kinds[] = "{kinds}";          /* r: read from the file, w: written to it, a: in the arena */

static void *memory(size_t bytes) {{
    void *p = NULL;
    if (posix_memalign(&p, 128, bytes + 128) != 0) abort();
    return p;
}}

int main(int argc, char **argv) {{
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    if (argc != 3 || in == NULL || out == NULL) return 2;
    void *pointers[SLOTS], *scratch[THREADS];
    char *arena = memory({arena});
    for (int i = 0; i < SLOTS; ++i) {{
        pointers[i] = offsets[i] >= 0 ? arena + offsets[i] : memory((size_t)sizes[i]);
        if (kinds[i] == 'r' && fread(pointers[i], 1, (size_t)sizes[i], in) != (size_t)sizes[i]) return 3;
    }}
    for (int i = 0; i < THREADS; ++i) scratch[i] = memory({scratch});
    sm_pool *pool = sm_pool_create(THREADS);
    if (pool == NULL || sm_pool_run(pool, sm_steps, (int)sm_step_count, pointers, scratch) != 0) return 4;
    sm_pool_destroy(pool);
    for (int i = 0; i < SLOTS; ++i)
        if (kinds[i] == 'w') fwrite(pointers[i], 1, (size_t)sizes[i], out);
    return fclose(out) == 0 ? 0 : 5;
}}
"""


def emulator() -> str:
    """The emulator's program; without it the calling test is skipped."""
    for name in ("qemu-aarch64-static", "qemu-aarch64"):
        if found := shutil.which(name):
            return found
    pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user-static")


def build(folder: Path, sources: Mapping[str, str], more: tuple[Path, ...] = ()) -> Path:
    """A static executable of C files; zig brings the C library."""
    compiler = find_compiler()
    if not compiler.zig:
        pytest.skip("only zig cross-compiles without an ARM toolchain: unset SMARTMEM_CC")
    for name, text in sources.items():
        (folder / name).write_text(text)
    target = ("-target", "aarch64-linux-musl", f"-mcpu={MARCH}", "-static")
    files = [*(str(folder / name) for name in sources), *map(str, more)]
    output = folder / "program"
    result = compiler.run([*target, *FLAGS, f"-I{NATIVE}", *files, "-o", str(output), "-lm", "-lpthread"])
    assert result.returncode == 0, result.stderr
    return output


def run(executable: Path, *arguments: Path) -> None:
    """Run an executable to its end."""
    command = [emulator(), str(executable), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr}"


def run_program(
    program: Program, inputs: Mapping[str, np.ndarray], folder: Path, threads: int = 2
) -> dict[str, np.ndarray]:
    """The outputs of a program that was built for `MARCH`, by name."""
    emulator()
    assert all(isinstance(step, NativeStep) for step in program.steps), "host steps need Python"
    kinds, sizes, offsets, data = "", [], [], []
    for slot in program.slots:
        kinds += {"input": "r", "weight": "r", "output": "w", "arena": "a"}[slot.kind]
        offsets.append(slot.offset if slot.kind == "arena" else -1)
        given = {"input": inputs, "weight": program.weights}.get(slot.kind, {}).get(slot.name)
        if given is not None:
            data.append(np.ascontiguousarray(given))
        assert slot.shape is not None or given is not None
        size = given.nbytes if given is not None else int(np.prod(slot.shape or ())) * np.dtype(slot.dtype).itemsize
        sizes.append(size)
    main = MAIN.format(
        slots=len(kinds), threads=threads, sizes=", ".join(map(str, sizes)), offsets=", ".join(map(str, offsets)),
        kinds=kinds, arena=program.arena_bytes, scratch=program.scratch_bytes,
    )  # fmt: skip
    sources = {**program.sources, "plan.c": plan_source(program), "main.c": main}
    executable = build(folder, sources, (NATIVE / "pool.c",))
    (folder / "in.bin").write_bytes(b"".join(array.tobytes() for array in data))
    run(executable, folder / "in.bin", folder / "out.bin")
    raw, results = (folder / "out.bin").read_bytes(), {}
    for slot, size in zip(program.slots, sizes, strict=True):
        if slot.kind == "output":
            results[slot.name], raw = np.frombuffer(raw[:size], slot.dtype).reshape(slot.shape), raw[size:]
    assert not raw
    return results
