"""A compiled model that can be called.

In: a `Program` and its linked library. A call checks the arguments, puts their addresses into the table of slots, and
runs the library's plan: one native call per stretch of native steps, so a single one where nothing runs on the host.

What is kept for the model's life: the thread pool, the arena, the per-thread scratch memory, the addresses of weights.
A call owns none of it alone: calls of several threads wait for each other. Outputs are new arrays each time.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.errors import InputError, RuntimeFailure
from smartmem.runtime import matrix_units
from smartmem.runtime.arrays import Array, dtype_of, empty_output, readable, working_memory
from smartmem.runtime.artifact import HostStep, NativeStep, Program
from smartmem.runtime.compiled import CompiledModel, StepTime
from smartmem.runtime.host_steps import HostSteps, fresh
from smartmem.runtime.library import Library
from smartmem.runtime.plan import Segment, segments
from smartmem.runtime.threads import default_threads

LEAST_SCRATCH = 64  # bytes: what the thread pool keeps at the start of a thread's scratch, if no kernel wants more


class Model(CompiledModel):
    """A model compiled for the CPU.

    After `os.fork` the child starts its own thread pool at its first call. `close()` (or `with`, or garbage collection)
    ends the pool.

    Attributes:
        library: the shared library's file.
        threads: size of the thread pool.
    """

    program: Program

    def __init__(
        self, program: Program, library: Path, threads: int | None = None, *, features: list[str], keep: object = None
    ) -> None:
        """Load `library` and allocate what calls need.

        Args:
            program: compiled model.
            library: shared library made of the program's sources and plan.
            threads: size of the thread pool; None: one per usable physical core.
            features: CPU features that the library needs (for `save`).
            keep: an object to keep alive with the model (what owns the library's folder, a mapped file).

        Raises:
            InputError: `threads` is not positive.
            RuntimeFailure: the library cannot be loaded, or the system keeps matrix units from it.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}: give a positive number, or none for one per core")
        if not matrix_units.FEATURES.isdisjoint(features) and not matrix_units.permitted():
            raise RuntimeFailure(
                f"{program.name}: this system gives no access to the matrix units (AMX) that it was compiled for; "
                "compile it with --march icelake-server"
            )
        super().__init__(program)
        self.library = library
        self.threads = threads or default_threads()
        self._features = features
        self._keep = keep
        self._library = Library(library)
        self._segments = segments(program)
        self._host_steps = HostSteps(program.slots)
        scratch = max(program.scratch_bytes, LEAST_SCRATCH)
        self._arena, *self._scratch = working_memory([program.arena_bytes] + [scratch] * self.threads)
        self._scratch_pointers = (ctypes.c_void_p * self.threads)(*(array.ctypes.data for array in self._scratch))
        self._weights = {name: readable(array) for name, array in program.weights.items()}
        self._pointers = (ctypes.c_void_p * max(len(program.slots), 1))()
        for index, slot in enumerate(program.slots):
            if slot.kind == "arena":
                self._pointers[index] = self._arena.ctypes.data + slot.offset
            elif slot.kind == "weight":
                self._pointers[index] = self._weights[slot.name].ctypes.data
        # What a call sets: a run leaves nothing of Python in the caches, and a walk over all slots took 0.1 ms.
        slots = enumerate(self.program.slots)
        self._given = [(index, slot.name, slot.kind) for index, slot in slots if slot.kind in ("input", "output")]
        self._pool: weakref.finalize[Any, Any] | None = None
        self._pool_handle = 0
        _alive.add(self)
        self._warm_up()

    def _warm_up(self) -> None:
        """Touches the memory of a run and starts the threads, so that the first call costs what later ones do."""
        for memory in (self._arena, *self._scratch):
            memory.fill(0)
        if any(segment.host is None for segment in self._segments):
            self._started()

    @property
    def where(self) -> str:
        """`2 threads`."""
        return f"{self.threads} threads"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one file that `smartmem.load` reads, on a machine without the onnx package too."""
        from smartmem.runtime.package import save

        save(self.program, self.library, Path(path), self._features)

    def close(self) -> None:
        """End the thread pool; later calls raise. Closing twice is fine."""
        with self._lock:
            self._closed = True
            if self._pool is not None:
                self._pool()
            self._pool = None

    def _run(self, inputs: dict[str, Array], times: list[StepTime] | None) -> list[Array]:
        outputs = {
            spec.name: empty_output(spec.shape, dtype_of(spec.dtype))
            for spec in self.program.outputs
            if spec.shape is not None
        }
        with self._lock:
            if self._closed:
                raise RuntimeFailure("the model is closed; load or compile it again")
            for index, name, kind in self._given:
                array = inputs[name] if kind == "input" else outputs.get(name)
                if array is not None:
                    self._pointers[index] = array.ctypes.data
            free: dict[int, Array] = {}
            for segment in self._segments:
                if segment.host is None:
                    self._native(segment, times)
                else:
                    start = time.perf_counter()
                    self._host(segment.host, inputs, outputs, free)
                    if times is not None:
                        end, host = time.perf_counter(), segment.host
                        times.append(StepTime(host.label, host.op, end - start, True, ((0, start, end),)))
        return [outputs[spec.name] for spec in self.program.outputs]

    def _native(self, segment: Segment, times: list[StepTime] | None) -> None:
        steps = self._library.steps + segment.first * self._library.step_size
        common = (self._started(), steps, segment.count, self._pointers, self._scratch_pointers)
        if times is None:
            status = self._library.functions.sm_pool_run(*common)
        else:
            seconds = (ctypes.c_double * segment.count)()
            spans = np.full((segment.count, self.threads, 2), -1.0)
            start = time.perf_counter()
            status = self._library.functions.sm_pool_run_timed(*common, seconds, spans.ctypes.data)
            native = [step for step in self.program.steps if isinstance(step, NativeStep)]
            for step, spent, ends in zip(
                native[segment.first : segment.first + segment.count], seconds, spans.tolist(), strict=True
            ):
                taken = tuple((t, start + begin, start + end) for t, (begin, end) in enumerate(ends) if begin >= 0)
                times.append(StepTime(step.label, step.symbol, spent, False, taken))
        if status:
            raise RuntimeFailure(f"the thread pool refused to run the model (status {status})")

    def _host(
        self, step: HostStep, inputs: dict[str, Array], outputs: dict[str, Array], free: dict[int, Array]
    ) -> None:
        operands = [None if at < 0 else self._array(at, inputs, outputs, free) for at in step.inputs]
        for at, value in self._host_steps.run(step, operands):
            slot = self.program.slots[at]
            if slot.kind == "host":
                free[at] = value
            elif slot.kind == "output" and slot.shape is None:
                outputs[slot.name] = fresh(value)
            else:
                np.copyto(self._array(at, inputs, outputs, free), value)

    def _array(self, at: int, inputs: dict[str, Array], outputs: dict[str, Array], free: dict[int, Array]) -> Array:
        """The array behind slot `at`."""
        slot = self.program.slots[at]
        if slot.kind == "input":
            return inputs[slot.name]
        if slot.kind == "output":
            return outputs[slot.name]
        if slot.kind == "weight":
            return self._weights[slot.name]
        if slot.kind == "host":
            return free[at]
        assert slot.shape is not None
        dtype = dtype_of(slot.dtype)
        size = math.prod(slot.shape) * dtype.itemsize
        return self._arena[slot.offset : slot.offset + size].view(dtype).reshape(slot.shape)

    def _started(self) -> int:
        """The thread pool, created once (and again in the child of a fork)."""
        if self._pool is None:
            self._pool_handle = self._library.create_pool(self.threads)
            self._pool = weakref.finalize(self, self._library.destroy_pool, self._pool_handle, os.getpid())
        return self._pool_handle

    def _after_fork(self) -> None:
        """In the child: the pool's threads are not here, and its lock may be held by one of the parent's."""
        self._lock = threading.Lock()
        if self._pool is not None:
            self._pool.detach()
        self._pool = None


_alive: weakref.WeakSet[Model] = weakref.WeakSet()


def _after_fork() -> None:
    for model in list(_alive):
        model._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
