"""The one ordered list of passes, and which level runs which.

naive      each operator its own kernels, layout operators as copies
fuse       + operator fusion (the baseline of the paper)
eliminate  + index comprehension: no view remains as a pass over memory
layout     + layouts by reduction dimension
full       + tuned schedules
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from smartmem.errors import InputError
from smartmem.graph.ir import Graph
from smartmem.kernel.stage import Kernel
from smartmem.passes.byte_products import byte_products
from smartmem.passes.eliminate import eliminate
from smartmem.passes.exact_casts import exact_casts
from smartmem.passes.fold_constants import fold_kernels, fold_stages
from smartmem.passes.fuse import fuse
from smartmem.passes.gelus import gelus
from smartmem.passes.lower import lower
from smartmem.passes.module import Module
from smartmem.passes.narrow_indices import narrow_indices
from smartmem.passes.prove import prove, prove_order
from smartmem.passes.requantize import requantize
from smartmem.passes.select_layout import select_layout
from smartmem.passes.simplify import simplify
from smartmem.passes.split_products import split_for_cores, split_products
from smartmem.passes.split_reductions import split_reductions
from smartmem.passes.store_bytes import store_bytes
from smartmem.passes.table_products import table_products
from smartmem.passes.tabulate import tabulate
from smartmem.passes.trace import trace
from smartmem.passes.winograd import winograd
from smartmem.schedule.backend import Backend

LEVELS = ("naive", "fuse", "eliminate", "layout", "full")


def run_passes(
    graph: Graph, level: str, backend: Backend | None = None, bytes_pay: bool = False, units: bool = False
) -> Module:
    """The module of a graph, ready for the assembly of a program, for the CPU or another backend.

    `bytes_pay`: whether the target multiplies bytes faster than floats; `units`: whether it has matrix units.
    """
    if level not in LEVELS:
        raise InputError(f'unknown level "{level}": choose one of {", ".join(LEVELS)}')
    rank = LEVELS.index(level)
    instrument = Instrument()
    module = instrument("lower", lambda: lower(graph, backend is None or backend.doubles))
    instrument.dump("lower", module)
    passes: list[tuple[str, Callable[[Module], None]]] = []
    tuned = level == "full" and backend is None  # for a CPU
    if not tuned:  # else loads may compute large constants that are made of little
        passes.append(("fold_constants", fold_stages))
    if rank >= LEVELS.index("fuse"):
        passes.append(("simplify", simplify))
    if rank >= LEVELS.index("eliminate"):
        passes.append(("requantize", requantize))
        passes.append(("eliminate", eliminate))
    if rank >= LEVELS.index("fuse"):
        passes.append(("exact_casts", exact_casts))
    if bytes_pay:
        passes.append(("byte_products", byte_products))
    if rank >= LEVELS.index("layout"):
        compute_units = backend.units if rank >= LEVELS.index("full") and backend is not None else 0
        passes.append(("split_reductions", lambda m: split_reductions(m, compute_units)))
    if tuned:
        if not units:  # whose products cost less than Winograd's transforms
            passes.append(("winograd", winograd))
        passes.append(("table_products", table_products))
        passes.append(("split_products", split_for_cores))
    if level == "full" and backend is not None and backend.moves is not None:
        passes.append(("winograd", lambda m: winograd(m, backend)))
    if rank >= LEVELS.index("full") and backend is not None and (predict := backend.predict) is not None:
        second = backend.second
        passes.append(("split_products", lambda m: split_products(m, predict, second)))
    passes.append(("fuse", lambda m: fuse(m, level == "naive", level == "fuse", backend)))
    if tuned:
        passes.append(("fold_constants", fold_kernels))
        passes.append(("tabulate", tabulate))
        passes.append(("gelus", gelus))
    choose = rank >= LEVELS.index("layout")
    passes.append(("select_layout", lambda m: select_layout(m, choose, tuned)))
    if tuned and bytes_pay:
        passes.append(("store_bytes", store_bytes))
    if tuned:
        passes.append(("narrow_indices", narrow_indices))
    passes.append(("prove", _prove_all))
    passes.append(("trace", trace))
    for name, run in passes:
        instrument(name, lambda run=run: run(module))  # type: ignore[misc]
        instrument.dump(name, module)
    return module


def _prove_all(module: Module) -> None:
    prove_order(module)
    for kernel in module.kernels:
        if isinstance(kernel, Kernel):
            prove(kernel, module)


class Instrument:
    """Times every pass and, with SMARTMEM_DEBUG >= 2, writes NN-pass.txt files below SMARTMEM_DUMP (default .)."""

    def __init__(self) -> None:
        self.debug = int(os.environ.get("SMARTMEM_DEBUG", "0") or 0)
        self.count = 0

    def __call__(self, name: str, run: Callable[[], Module | None]) -> Module:
        start = time.perf_counter()
        result = run()
        if self.debug >= 1:
            print(f"smartmem: {name}: {time.perf_counter() - start:.3f} s", file=sys.stderr)
        return result  # type: ignore[return-value]

    def dump(self, name: str, module: Module) -> None:
        if self.debug < 2:
            return
        from smartmem.kernel.show import show_module

        folder = Path(os.environ.get("SMARTMEM_DUMP", "."))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.count:02d}-{name}.txt").write_text(show_module(module))
        self.count += 1
