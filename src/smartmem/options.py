"""Options that several commands take, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smartmem.levels import LEVELS

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a .smem file made by compile.")]
OnnxFile = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file.")]
Shape = Annotated[list[str] | None, typer.Option(metavar="NAME=1,3,48,320", help="Shape of an input; repeatable.")]
Given = Annotated[
    list[str] | None, typer.Option("--input", metavar="NAME=FILE.npy", help="An input; repeatable. Others are random.")
]
Level = Annotated[str, typer.Option(help=f"How far to optimize: {', '.join(LEVELS)}.")]
March = Annotated[str, typer.Option(help="Instruction set: native, x86-64-v3, skylake-avx512, cortex_a76 ...")]
Threads = Annotated[int | None, typer.Option(help="Threads; default: one per usable physical core.")]
DeviceName = Annotated[
    str, typer.Option("--device", metavar="cpu|auto|opencl[:N]", help="Where it runs; see `smartmem devices`.")
]
MemoryKind = Annotated[str, typer.Option("--memory", help="OpenCL: auto, or all in buffer or texture memory.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="fp32|fp16|bf16x3|bf16",
        help="OpenCL: fp16 is how values lie in memory. CPUs with AMX: bf16 or bf16x3 is what products take them for.",
    ),
]
Layout = Annotated[str, typer.Option("--layout", help="OpenCL: how layouts are assigned, greedy or exact.")]
Check = Annotated[bool, typer.Option("--check", help="OpenCL: kernels check every coordinate, slowly.")]
