"""From a model file to a `Program`: frontend, passes, assembly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smartmem.device import PARTS, Device, DeviceOptions
from smartmem.errors import InputError
from smartmem.graph.ir import Graph
from smartmem.runtime.artifact import Program
from smartmem.runtime.opencl.program import DeviceProgram

if TYPE_CHECKING:
    from smartmem.layout.memory import DeviceStorage
    from smartmem.passes.module import Module
    from smartmem.schedule.gpu.code import DeviceTarget

Progress = Callable[[str, int, int], None]


def build_program(
    model: str | os.PathLike[str] | Any,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    level: str = "full",
    march: str = "native",
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Program:
    """Compiles an ONNX file (or ModelProto) to C sources and a plan; no C compiler is run.

    Args:
        model: path of the ONNX file, or an `onnx.ModelProto`.
        shapes: shapes of inputs that have symbolic dimensions.
        level: "naive", "fuse", "eliminate", "layout" or "full".
        march: instruction set, as the C compiler names it.
        precision: of products on matrix units (level "full"), "fp32", "bf16x3" or "bf16" (`device.PARTS`).
        progress: called with (phase, done, total).

    Raises:
        ModelError, InputError: see `frontend.load_graph`.
        InputError: the target has no matrix units for this precision.
    """
    from smartmem.codegen.target import target_of
    from smartmem.passes.assemble import assemble
    from smartmem.passes.pipeline import run_passes
    from smartmem.passes.report import fill_report

    graph, fates = _read(model, shapes, level, progress)
    target = replace(target_of(march), tuned=level == "full", parts=PARTS[precision])
    if target.parts and not target.units:
        raise InputError(
            f"precision {precision} needs matrix units (AMX with bfloat16, Intel's Sapphire Rapids and later), "
            f"{'this CPU' if march == 'native' else march} has none: leave it at fp32"
        )
    module = run_passes(graph, level, bytes_pay=target.tuned and target.dot4, units=target.parts > 0)
    program = assemble(module, target, level, march, progress)
    fill_report(program, module, fates)
    program.report["precision"] = precision
    return program


def build_device_program(
    model: str | os.PathLike[str] | Any,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    level: str = "full",
    device: Device,
    options: DeviceOptions,
    progress: Progress | None = None,
) -> DeviceProgram:
    """Compiles an ONNX file (or ModelProto) to OpenCL C and a launch plan; no driver is asked.

    Raises:
        ModelError, InputError: see `frontend.load_graph`.
    """
    from smartmem.passes.assemble_device import assemble_device
    from smartmem.passes.report import fill_report

    module, storages, target, fates = device_module(model, shapes, level, device, options, progress)
    program = assemble_device(module, storages, target, level, progress)
    fill_report(program, module, fates)
    program.report["precision"] = options.precision
    return program


def device_module(
    model: str | os.PathLike[str] | Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    level: str,
    device: Device,
    options: DeviceOptions,
    progress: Progress | None = None,
) -> tuple[Module, dict[str, DeviceStorage], DeviceTarget, dict[str, Any]]:
    """A model, or a graph that the frontend made, after all passes.

    That is: its kernels, where every tensor lies, what schedules are told, the layout fates.
    """
    from smartmem.passes.copy_layouts import copy_layouts
    from smartmem.passes.pipeline import run_passes
    from smartmem.passes.place import place_padded
    from smartmem.passes.widen import widen
    from smartmem.schedule.gpu.choose import backend_of
    from smartmem.schedule.gpu.code import DeviceTarget

    graph, fates = _read(model, shapes, level, progress)
    target = DeviceTarget(device, level == "full", options.precision == "fp16", options.check)
    backend = backend_of(target)
    module = run_passes(graph, level, backend)
    widen(module)
    choose = level in ("layout", "full")
    module, storages = place_padded(module, device, options, choose, backend)
    if choose:
        storages = copy_layouts(module, storages, device, options)
    return module, storages, target, fates


def _read(
    model: str | os.PathLike[str] | Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    level: str,
    progress: Progress | None,
) -> tuple[Graph, dict[str, Any]]:
    """The verified graph of a model (a `Graph` is one already), ready for the passes, and its layout operators."""
    from smartmem.frontend.load import load_graph
    from smartmem.graph.verify import verify
    from smartmem.passes.fold_batch_norm import fold_batch_norm
    from smartmem.passes.report import layout_fates

    if progress:
        progress("read", 0, 1)
    graph = model if isinstance(model, Graph) else load_graph(model, shapes)
    verify(graph, "frontend")
    fates = layout_fates(graph)
    if level != "naive":
        fold_batch_norm(graph)
        verify(graph, "fold_batch_norm")
    if progress:
        progress("optimize", 0, 1)
    return graph, fates
