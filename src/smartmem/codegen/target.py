"""What the schedules need to know of an instruction set, by the name that `--march` gives."""

from __future__ import annotations

from pathlib import Path

from smartmem.runtime import matrix_units
from smartmem.runtime.march import host_family, present_features
from smartmem.schedule.code import Target

_AVX512 = (
    "x86-64-v4",
    "skylake-avx512",
    "skylake_avx512",
    "icelake",
    "sapphirerapids",
    "emeraldrapids",
    "graniterapids",
    "znver4",
    "znver5",
    "cascadelake",
)
_UNITS = ("sapphirerapids", "emeraldrapids", "graniterapids")
_DOT4 = (*_UNITS, "icelake", "znver4", "znver5", "cascadelake", "alderlake")
_AVX2 = ("x86-64-v3", "haswell", "broadwell", "skylake", "znver1", "znver2", "znver3", "alderlake")


def target_of(march: str) -> Target:
    """Vector width and registers for `march` ("native": this machine)."""
    if march == "native":
        return _native()
    if any(march.startswith(name) for name in _AVX512):
        return Target(lanes=16, registers=32, dot4=march.startswith(_DOT4), units=march.startswith(_UNITS))
    if any(march.startswith(name) for name in _AVX2):
        return Target(lanes=8, registers=16, dot4=march.startswith(_DOT4))
    if march.startswith(("x86", "core2", "nehalem", "sandybridge", "ivybridge")):
        return Target(lanes=8 if "bridge" in march else 4, registers=16)
    return Target(lanes=4, registers=32)


def _native() -> Target:
    l1, l2 = _cache_bytes(1) or 32 << 10, _cache_bytes(2) or 512 << 10
    if host_family() != "x86_64":
        return Target(4, 32, l1, l2)
    features = present_features()
    if features is None:
        features = frozenset({"avx"})  # every x86 Mac has AVX2
    if "avx512f" in features:
        units = features.issuperset(matrix_units.FEATURES) and matrix_units.permitted()
        return Target(16, 32, l1, l2, dot4="avx512_vnni" in features, units=units)
    return Target(8 if "avx" in features else 4, 16, l1, l2, dot4="avx_vnni" in features)


def _cache_bytes(level: int) -> int:
    """Size of this core's data cache, 0 if the system does not say."""
    for index in range(4):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            if int((folder / "level").read_text()) == level and (folder / "type").read_text().strip() != "Instruction":
                return int((folder / "size").read_text().strip().rstrip("K")) << 10
        except (OSError, ValueError):
            continue
    return 0
