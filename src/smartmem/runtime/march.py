"""Instruction sets: which CPU family a name belongs to, what a CPU must offer to run code made for it, and what this
machine's CPU is.

The C compiler's predefined macros say what code may use (`__AVX512F__`); /proc/cpuinfo says what the machine has
(`avx512f`). Only features in both tables are compared.
"""

from __future__ import annotations

import platform
from pathlib import Path

X86_MACROS = {
    "__SSE3__": "pni",
    "__SSSE3__": "ssse3",
    "__SSE4_1__": "sse4_1",
    "__SSE4_2__": "sse4_2",
    "__POPCNT__": "popcnt",
    "__AVX__": "avx",
    "__AVX2__": "avx2",
    "__FMA__": "fma",
    "__F16C__": "f16c",
    "__BMI__": "bmi1",
    "__BMI2__": "bmi2",
    "__AVXVNNI__": "avx_vnni",
    "__AVX512F__": "avx512f",
    "__AVX512BW__": "avx512bw",
    "__AVX512DQ__": "avx512dq",
    "__AVX512VL__": "avx512vl",
    "__AVX512CD__": "avx512cd",
    "__AVX512VNNI__": "avx512_vnni",
    "__AVX512VBMI__": "avx512vbmi",
    "__AVX512BF16__": "avx512_bf16",
    "__AVX512FP16__": "avx512_fp16",
}
UNIT_MACROS = {
    "__AMX_TILE__": "amx_tile",
    "__AMX_BF16__": "amx_bf16",
    "__AMX_INT8__": "amx_int8",
}  # of code for matrix units only
ARM_MACROS = {
    "__ARM_NEON": "asimd",
    "__ARM_FEATURE_DOTPROD": "asimddp",
    "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC": "asimdhp",
    "__ARM_FEATURE_MATMUL_INT8": "i8mm",
    "__ARM_FEATURE_BF16": "bf16",
    "__ARM_FEATURE_SVE": "sve",
    "__ARM_FEATURE_SVE2": "sve2",
}
# Of /proc/cpuinfo; the others are numbers that change from processor to processor or from second to second.
_MODEL_LINES = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
_ARM_NAMES = ("cortex", "neoverse", "apple", "armv8", "armv9", "ampere", "a64fx", "exynos", "carmel", "oryon")


def host_family() -> str:
    """This machine's CPU family: "x86_64", "aarch64", or what the platform calls it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def family(march: str) -> str:
    """The CPU family that `march` belongs to; "native" is this machine's."""
    if march == "native":
        return host_family()
    return "aarch64" if march.lower().startswith(_ARM_NAMES) else "x86_64"


def features(macros: frozenset[str], units: bool = False) -> list[str]:
    """The CPU features, as /proc/cpuinfo names them, that code compiled with these predefined macros may use.

    With `units` it is code for matrix units.
    """
    table = {**X86_MACROS, **ARM_MACROS, **(UNIT_MACROS if units else {})}
    return sorted(table[macro] for macro in macros if macro in table)


def present_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """The features of this machine's CPU, None where the system does not say them."""
    for line in _first_processor(cpuinfo):
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None


def missing_features(needed: list[str], cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of `needed` that this machine lacks; empty where the system does not say what it has."""
    present = present_features(cpuinfo)
    return [] if present is None else sorted(set(needed) - present)


def cpu_name() -> str:
    """What the system calls the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Hardware")))
    return next(names, platform.machine())


def cpu_text(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """What the system says of the CPU's model and features, None where it does not."""
    told = [line for line in _first_processor(cpuinfo) if line.startswith(_MODEL_LINES)]
    return "".join(told) if any(line.startswith(("flags", "Features")) for line in told) else None


def _first_processor(cpuinfo: Path) -> list[str]:
    """The lines up to the second processor's: the whole of a large machine's takes long to make."""
    lines: list[str] = []
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as file:
            for line in file:
                if lines and not line.strip():
                    break
                lines.append(line)
    except OSError:
        pass
    return lines
