"""Turn generated C into a shared library: find a C compiler, compile in parallel, link.

The compiler is the `ziglang` wheel's clang unless SMARTMEM_CC names another command line. Three things make it fast:

- the zig binary is called directly (not through `python -m ziglang`);
- `simd.h` (38,000 lines after the vendor's intrinsics) is precompiled once: 0.04 s instead of 0.18 s per kernel;
- the library links no libc of its own (`-nostdlib`): the few functions it uses (expf, memcpy, pthread_create …) are
  those of the process that loads it, and zig need not build its libc.

Headers are the wheel's own (an explicit glibc target), so a machine without any C development files will do.
Every object is cached by its source, the headers, the compiler's version and the flags.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smartmem.errors import CompilerError, InputError, RuntimeFailure
from smartmem.runtime import march as isa
from smartmem.runtime.cache import Cache

if TYPE_CHECKING:
    import subprocess  # what runs the compiler is imported there: a model from the cache should not wait for it

NATIVE = Path(__file__).parent / "native"
Progress = Callable[[str, int, int], None]

# -ffast-math would break masks of infinities and NaN; reassociation is explicit in the generated code.
# zig adds debug information, frame pointers and undefined-behaviour traps unless told otherwise.
FLAGS = (
    *("-O3", "-ffp-contract=fast", "-fno-math-errno", "-std=gnu11", "-fPIC", "-DNDEBUG", "-g0"),
    *("-fomit-frame-pointer", "-fno-sanitize=undefined"),
)


@dataclass(frozen=True)
class Compiler:
    """A C compiler's command line.

    Attributes:
        command: program and leading arguments.
        zig: whether it takes zig's targets and CPU names (`skylake_avx512`) instead of gcc's (`skylake-avx512`).
        binary: the program's file, if it is known to be the compiler and not a script that starts one.
    """

    command: tuple[str, ...]
    zig: bool
    binary: Path | None = None

    def version(self) -> str:
        """What identifies the compiler in cache keys."""
        return _version(self)

    def target_flags(self, march: str) -> list[str]:
        """Flags that select the instruction set `march` ("native", "x86-64-v3", "cortex_a76" …)."""
        family = isa.family(march)
        flags = []
        if self.zig:
            target = _zig_target(family, march)
            flags += ["-target", target] if target else []
            name = march.replace("-", "_")
        else:
            name = march.replace("_", "-") if family == "aarch64" else march
        flags.append(f"-mcpu={name}" if family == "aarch64" or (self.zig and march != "native") else f"-march={name}")
        if family == "x86_64":
            # Some CPU models are tuned for 256 bits; vectors that the source spells out would then be cut in two.
            flags.append("-mprefer-vector-width=512")
        return flags

    def macros(self, march: str) -> frozenset[str]:
        """The predefined macros for `march`: what generated code may assume.

        Raises:
            InputError: the compiler does not know `march`.
            RuntimeFailure: the compiler cannot be run.
        """
        return _macros(self, march)

    def run(self, arguments: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the compiler with `arguments`; `folder` is where zig may keep its own files.

        Raises:
            RuntimeFailure: the command cannot be started.
        """
        import subprocess

        environment = dict(os.environ)
        if folder is not None:
            environment["ZIG_GLOBAL_CACHE_DIR"] = environment["ZIG_LOCAL_CACHE_DIR"] = str(folder)
        try:
            return subprocess.run(
                [*self.command, *arguments], capture_output=True, text=True, errors="replace", env=environment
            )
        except OSError as error:
            raise RuntimeFailure(
                f"the C compiler `{shlex.join(self.command)}` cannot be run ({error.strerror}): "
                "pip install ziglang, or set SMARTMEM_CC to a C compiler's command line"
            ) from None


def find_compiler() -> Compiler:
    """SMARTMEM_CC if set, else the zig of the `ziglang` package.

    Raises:
        RuntimeFailure: neither is there.
    """
    named = os.environ.get("SMARTMEM_CC", "").strip()
    if named:
        import shutil

        command = tuple(shlex.split(named))
        if shutil.which(command[0]) is None:
            raise RuntimeFailure(f"SMARTMEM_CC: no program {command[0]!r}; set it to a C compiler's command line")
        before = Path(command[-2]).name if len(command) > 1 else ""
        return Compiler(command, zig=command[-1] == "cc" and before.startswith("zig"))
    try:
        import ziglang
    except ImportError:
        raise RuntimeFailure(
            "no C compiler: pip install ziglang, or set SMARTMEM_CC to a C compiler's command line"
        ) from None
    binary = Path(ziglang.__file__).parent / ("zig.exe" if os.name == "nt" else "zig")
    if binary.is_file():
        return Compiler((str(binary), "cc"), zig=True, binary=binary)
    return Compiler((sys.executable, "-m", "ziglang", "cc"), zig=True)


def compiler_key(compiler: Compiler, march: str) -> str:
    """All that decides how a source is compiled, except for the source."""
    return json.dumps(
        {
            "command": compiler.command,
            "version": compiler.version(),
            "flags": [*FLAGS, *compiler.target_flags(march)],
            # "native" means another thing on another machine that shares the cache folder.
            "macros": sorted(compiler.macros(march)),
            "headers": _headers_digest(),
        }
    )


def build_library(
    sources: Mapping[str, str],
    march: str,
    cache: Cache,
    compiler: Compiler,
    progress: Progress | None = None,
    runtime: str = "pool.c",
) -> Path:
    """Compile `sources` (C text by file name) and a file of the runtime, and link them to a shared library in `cache`.

    Args:
        sources: the kernels and the plan (see `plan.plan_source`).
        march: instruction set.
        cache: where objects and the library are looked for and kept.
        compiler: from `find_compiler`.
        progress: called with ("compile", done, total).
        runtime: the file of `native/`: the thread pool unless something else runs the plan.

    Raises:
        CompilerError: the compiler refuses a source; the message names a copy of it.
        RuntimeFailure: the compiler cannot be run, or linking fails.
    """
    import tempfile
    from concurrent.futures import ThreadPoolExecutor, as_completed

    base = compiler_key(compiler, march)
    texts = {runtime: (NATIVE / runtime).read_text(), **sources}
    keys = {name: f"{base}\n{text}" for name, text in texts.items()}
    library_key = "\n".join(sorted(hashlib.sha256(key.encode()).hexdigest() for key in keys.values()))
    if found := cache.find("libraries", library_key, ".so"):
        return found
    objects = {name: path for name, key in keys.items() if (path := cache.find("objects", key, ".o"))}
    missing = [name for name in texts if name not in objects]
    with tempfile.TemporaryDirectory(prefix="zig-", dir=cache.folder("zig"), ignore_cleanup_errors=True) as work:
        job = _Job(compiler, compiler.target_flags(march), cache, Path(work))
        header = job.precompile(base) if any(_is_kernel(texts[name]) for name in missing) else None
        done = len(objects)
        if progress is not None:
            progress("compile", done, len(texts))
        # Threads only wait for the compiler's processes.
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            futures = {
                pool.submit(
                    job.compile, name, texts[name], keys[name], header if _is_kernel(texts[name]) else None
                ): name
                for name in missing
            }
            try:
                for future in as_completed(futures):
                    objects[futures[future]] = future.result()
                    done += 1
                    if progress is not None:
                        progress("compile", done, len(texts))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return cache.add("libraries", library_key, ".so", lambda path: job.link(list(objects.values()), path))


@dataclass(frozen=True)
class _Job:
    """One build: the compiler, its target, and a folder for what it leaves lying about."""

    compiler: Compiler
    target: list[str]
    cache: Cache
    work: Path

    def precompile(self, base: str) -> Path | None:
        """`simd.h`, precompiled; None where that is not known to work (other compilers than zig)."""
        if not self.compiler.zig:
            return None
        # The precompiled form names the header's file, which must stay where it is.
        key = f"{base}\n{NATIVE}"
        if found := self.cache.find("headers", key, ".pch"):
            return found
        output = self.work / "simd.pch"
        command = [*self.target, *FLAGS, *_NO_TIMESTAMP, "-x", "c-header", str(NATIVE / "simd.h"), "-o", str(output)]
        if self.compiler.run(command, self.work).returncode:
            return None
        return self.cache.add("headers", key, ".pch", output.read_bytes())

    def compile(self, name: str, text: str, key: str, header: Path | None) -> Path:
        """One source to an object in the cache."""
        source = self.work / name
        source.write_text(text)
        output = self.work / (name + ".o")
        command = [*self.target, *FLAGS, f"-I{NATIVE}", "-c", str(source), "-o", str(output)]
        result = None
        if header is not None:
            result = self.compiler.run(["-include-pch", str(header), *_NO_TIMESTAMP, *command], self.work)
        # A precompiled header that does not fit any more costs time, never the build.
        if result is None or result.returncode:
            result = self.compiler.run(command, self.work)
        if result.returncode:
            kept = self.cache.add("failed", key, ".c", text.encode())
            raise CompilerError(f"the C compiler refuses {name}, kept as {kept}: {_first_lines(result)}")
        return self.cache.add("objects", key, ".o", output.read_bytes())

    def link(self, objects: list[Path], output: Path) -> None:
        """Objects to a shared library."""
        library = self.work / "library.so"
        command = [*self.target, "-shared", *map(str, objects), "-o", str(library)]
        if self.compiler.zig and sys.platform == "linux":
            command += ["-nostdlib", "-Wl,-Bsymbolic", "-s"]
        else:
            command += ["-lm", "-lpthread"]
        result = self.compiler.run(command, self.work)
        if result.returncode:
            raise RuntimeFailure(f"the C compiler cannot link the model's library: {_first_lines(result)}")
        output.write_bytes(library.read_bytes())


_NO_TIMESTAMP = ("-Xclang", "-fno-pch-timestamp")


def _is_kernel(text: str) -> bool:
    return '#include "simd.h"' in text or '#include "scalar.h"' in text


def _first_lines(result: subprocess.CompletedProcess[str], count: int = 3) -> str:
    """The errors of a compiler run, in one line."""
    lines = [line.strip() for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    return " | ".join(errors[:count]) or f"exit status {result.returncode}"


@functools.cache
def _version(compiler: Compiler) -> str:
    if compiler.zig:
        result = Compiler((*compiler.command[:-1], "version"), zig=True).run([])
    else:
        result = compiler.run(["--version"])
    text = result.stdout.strip()
    if result.returncode or not text:
        raise RuntimeFailure(
            f"`{shlex.join(compiler.command)}` does not work as a C compiler ({_first_lines(result)}): "
            "pip install ziglang, or set SMARTMEM_CC to a C compiler's command line"
        )
    return ("zig " if compiler.zig else "") + text.splitlines()[0]


@functools.cache
def _macros(compiler: Compiler, march: str) -> frozenset[str]:
    compiler.version()
    result = compiler.run([*compiler.target_flags(march), *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    if result.returncode:
        raise InputError(
            f"--march {march}: the C compiler {compiler.version()} does not know it; "
            "use native, or a CPU name like x86-64-v3, skylake-avx512 or cortex_a76"
        )
    return frozenset(line.split()[1] for line in result.stdout.splitlines() if line.startswith("#define "))


@functools.cache
def _headers_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(NATIVE.glob("*.h")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _zig_target(family: str, march: str) -> str | None:
    """zig's target triple: an old glibc with zig's own headers; None leaves the choice to zig."""
    if sys.platform != "linux" or family not in ("x86_64", "aarch64"):
        return None
    musl = march == "native" and platform.libc_ver()[0] != "glibc"
    return f"{family}-linux-musl" if musl else f"{family}-linux-gnu.2.17"
