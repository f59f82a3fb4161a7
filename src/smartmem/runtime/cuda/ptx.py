"""PTX that NVIDIA's OpenCL compiler wrote, as CUDA's driver loads it.

What the OpenCL driver gives as a program's binary is PTX text for the OpenCL dialect. What differs in CUDA's:

    %envreg0 ... %envreg5                    -> 0       (offsets of the launch: there are none)
    .entry f(                                -> .visible .entry f(
    .param .texref p                         -> .param .u64 p        (images are handles, samplers part of them)
    tex.2d.v4.f32.s32 {..}, [p, sm_texel, {x, y}]  -> ld.param.u64 h, [p]; tex.2d.v4.f32.s32 {..}, [h, {x, y}]
    .param .u64 .ptr .shared p  ld.param.u64 r, [p] -> mov.u64 r, sm_dynamic  (local memory that the launch gives)

    .target sm_90  trap; //@ wgmma...        -> .target sm_90a  wgmma...     (what the OpenCL compiler must not see)

and the same of stores to images; the sampler goes, and so does the question for the order of an image's channels.

In: the binary. Out: PTX for `cuModuleLoadData`. What holds: every kernel has the parameters it had, in their order,
a pointer or a handle of 64 bits each.
"""

from __future__ import annotations

import re

from smartmem.codegen.ptx_marks import ONLY_HIDDEN

_HANDLE = "{ .reg .b64 handle; ld.param.u64 handle, [%s]; %s }"
_RULES: tuple[tuple[str, str], ...] = (
    (r"^\.global \.samplerref [^\n]*\n", ""),
    (r"^(\.target [^\n]*?), texmode_independent", r"\1"),
    (r"^\.entry ", ".visible .entry "),
    (r"%envreg[0-5]\b", "0"),
    (r"\.param \.(?:texref|surfref) ", ".param .u64 "),
    (r"(tex\.[\w.]+\s+\{[^}]*\}, )\[([\w$]+), \w+, (\{[^}]*\})\];", _HANDLE % (r"\2", r"\1[handle, \3];")),
    (r"(sust\.[\w.]+\s+)\[([\w$]+), (\{[^}]*\})\], (\{[^}]*\});", _HANDLE % (r"\2", r"\1[handle, \3], \4;")),
    # Every image is RGBA (CL_RGBA); CUDA's surfaces cannot be asked.
    (r"suq\.channel_order\.b32\s+(%\w+), \[[\w$]+\];", r"mov.b32 \1, 0x10B5;"),
)
_LOCAL = re.compile(r"\.param \.u\d+ \.ptr \.shared (?:\.align \d+ )?([\w$]+)")
_DYNAMIC = ".extern .shared .align %d .b8 sm_dynamic[];"
_VECTOR, _SWIZZLE = 16, 1024  # bytes at which local memory begins, and where warpgroups read it
_COMPILED = [(re.compile(pattern, re.MULTILINE), text) for pattern, text in _RULES]


def is_ptx(binary: bytes) -> bool:
    """Whether an OpenCL program's binary is PTX text."""
    return b".version" in binary[:4096] and b".target" in binary[:4096]


def for_cuda(binary: bytes) -> bytes:
    """The same kernels as CUDA's driver takes them, with a zero at the end.

    Raises:
        ValueError: the binary is no PTX, or asks for what only OpenCL knows.
    """
    if not is_ptx(binary):
        raise ValueError("the OpenCL driver's binary is no PTX")
    text = binary.rstrip(b"\0").decode()
    hidden = ONLY_HIDDEN in text
    if hidden:
        text = text.replace(ONLY_HIDDEN, "")
        text = re.sub(r"^\.target (sm_\d+)\b", r".target \1a", text, flags=re.MULTILINE)
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    if unknown := re.search(r"%envreg\d+", text):
        raise ValueError(f"the OpenCL driver's PTX reads {unknown[0]}")
    if names := _LOCAL.findall(text):
        text = re.sub(
            r"ld\.param(\.u\d+\s+%\w+), \[(?:" + "|".join(map(re.escape, names)) + r")\];", r"mov\1, sm_dynamic;", text
        )
        text = _LOCAL.sub(r".param .u64 \1", text)  # the driver refuses the other kind, ptxas does not
        dynamic = _DYNAMIC % (_SWIZZLE if hidden else _VECTOR)
        text = text.replace(".address_size 64", f".address_size 64\n\n{dynamic}", 1)
    return text.encode() + b"\0"


def count_parameters(text: bytes, kernel: str) -> int:
    """How many parameters a kernel has; -1 if there is no such kernel."""
    found = re.search(rb"\.entry " + re.escape(kernel.encode()) + rb"\s*\(([^)]*)\)", text)
    return found[1].count(b".param") if found else -1
