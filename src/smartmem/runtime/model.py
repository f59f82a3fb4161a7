"""A compiled model that can be called.

In: a `Program` and its linked library. A call checks the arguments, puts their addresses into the table of slots, and
runs the library's plan: one native call per stretch of native steps, so a single one where nothing runs on the host.

What is kept for the model's life: the thread pool, the arena, the per-thread scratch memory, the addresses of weights.
A call owns none of it alone: calls of several threads wait for each other. Outputs are new arrays each time.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smartmem.errors import InputError, RuntimeFailure
from smartmem.runtime.arrays import Array, aligned_empty, describe, dtype_of, fitting, listed, readable
from smartmem.runtime.artifact import HostStep, NativeStep, Program, Slot
from smartmem.runtime.library import Library
from smartmem.runtime.plan import Segment, segments
from smartmem.runtime.threads import default_threads


@dataclass(frozen=True)
class StepTime:
    """Seconds that one step of the program took in one call."""

    label: str
    symbol: str
    seconds: float
    host: bool


class Model:
    """A compiled model: `model(x)` or `model(name=x)`.

    Several threads may call one model; calls wait for each other. After `os.fork` the child starts its own thread pool
    at its first call. `close()` (or `with`, or garbage collection) ends the pool.

    Attributes:
        program: what the compiler made.
        library: the shared library's file.
        threads: size of the thread pool.
    """

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
            RuntimeFailure: the library cannot be loaded.
        """
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}: give a positive number, or none for one per core")
        self.program = program
        self.library = library
        self.threads = threads or default_threads()
        self._features = features
        self._keep = keep
        self._library = Library(library)
        self._segments = segments(program)
        self._nodes: dict[int, Any] = {}
        self._inputs = {spec.name: spec for spec in program.inputs}
        self._arena = aligned_empty((program.arena_bytes,), np.dtype(np.uint8))
        self._scratch = [aligned_empty((program.scratch_bytes,), np.dtype(np.uint8)) for _ in range(self.threads)]
        self._scratch_pointers = (ctypes.c_void_p * self.threads)(*(array.ctypes.data for array in self._scratch))
        self._weights = {name: readable(array) for name, array in program.weights.items()}
        self._pointers = (ctypes.c_void_p * max(len(program.slots), 1))()
        for index, slot in enumerate(program.slots):
            if slot.kind == "arena":
                self._pointers[index] = self._arena.ctypes.data + slot.offset
            elif slot.kind == "weight":
                self._pointers[index] = self._weights[slot.name].ctypes.data
        self._lock = threading.Lock()
        self._pool: weakref.finalize[Any, Any] | None = None
        self._pool_handle = 0
        self._closed = False
        _alive.add(self)
        self._warm_up()

    def _warm_up(self) -> None:
        """Touches the memory of a run and starts the threads, so that the first call costs what later ones do."""
        for memory in (self._arena, *self._scratch):
            memory.fill(0)
        if any(segment.host is None for segment in self._segments):
            self._started()

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the order of positional arguments."""
        return [spec.name for spec in self.program.inputs]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in the order in which a call returns them."""
        return [spec.name for spec in self.program.outputs]

    def __call__(self, *args: Any, **named: Any) -> Array | tuple[Array, ...]:
        """Run the model.

        Args:
            *args: inputs in graph order: numpy arrays, or anything with `__dlpack__` (torch tensors on the CPU …).
            **named: inputs by name, instead or in addition.

        Returns:
            The output, or a tuple of outputs in the order of `output_names` if there are several. They are new,
            contiguous arrays that belong to the caller.

        Raises:
            InputError: names, count, shapes or dtypes do not fit.
            RuntimeFailure: a host step failed, or the model is closed.
        """
        outputs = self.run(self._bind(args, named))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, inputs: dict[str, Any]) -> list[Array]:
        """Like calling, with inputs by name (any name) and always a list of outputs."""
        return self._run(self._check(inputs), None)

    def run_timed(self, inputs: dict[str, Any]) -> tuple[list[Array], list[StepTime]]:
        """Like `run`, with the seconds that each step took."""
        times: list[StepTime] = []
        return self._run(self._check(inputs), times), times

    def explain(self) -> str:
        """Where each layout operator of the input went, the kernels, and the totals, as text."""
        from smartmem.report.explain import render

        return render(self.program.report)

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

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<smartmem.Model {self.program.name!r}: {', '.join(map(describe, self.program.inputs))} -> "
            f"{', '.join(map(describe, self.program.outputs))}; level {self.program.level}, {self.threads} threads>"
        )

    def _bind(self, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = self.input_names
        if len(args) > len(names):
            raise InputError(f"{len(args)} inputs given, but the model has {len(names)}: {listed(names)}")
        inputs = dict(zip(names, args, strict=False))
        for name in named:
            if name in inputs:
                raise InputError(f"input {name!r} is given twice, by position and by name")
        return {**inputs, **named}

    def _check(self, inputs: dict[str, Any]) -> dict[str, Array]:
        for name in inputs:
            if name not in self._inputs:
                raise InputError(f"no input is called {name!r}; the model's inputs are {listed(self.input_names)}")
        missing = [name for name in self._inputs if name not in inputs]
        if missing:
            raise InputError(f"input {listed(missing)} is missing; the model's inputs are {listed(self.input_names)}")
        return {name: fitting(spec, inputs[name]) for name, spec in self._inputs.items()}

    def _run(self, inputs: dict[str, Array], times: list[StepTime] | None) -> list[Array]:
        outputs = {
            spec.name: aligned_empty(spec.shape, dtype_of(spec.dtype))
            for spec in self.program.outputs
            if spec.shape is not None
        }
        with self._lock:
            if self._closed:
                raise RuntimeFailure("the model is closed; load or compile it again")
            for index, slot in enumerate(self.program.slots):
                if slot.kind == "input":
                    self._pointers[index] = inputs[slot.name].ctypes.data
                elif slot.kind == "output" and slot.name in outputs:
                    self._pointers[index] = outputs[slot.name].ctypes.data
            free: dict[int, Array] = {}
            for segment in self._segments:
                if segment.host is None:
                    self._native(segment, times)
                else:
                    start = time.perf_counter()
                    self._host(segment.host, inputs, outputs, free)
                    if times is not None:
                        times.append(StepTime(segment.host.label, segment.host.op, time.perf_counter() - start, True))
        return [outputs[spec.name] for spec in self.program.outputs]

    def _native(self, segment: Segment, times: list[StepTime] | None) -> None:
        steps = self._library.steps + segment.first * self._library.step_size
        common = (self._started(), steps, segment.count, self._pointers, self._scratch_pointers)
        if times is None:
            status = self._library.functions.sm_pool_run(*common)
        else:
            seconds = (ctypes.c_double * segment.count)()
            status = self._library.functions.sm_pool_run_timed(*common, seconds)
            native = [step for step in self.program.steps if isinstance(step, NativeStep)]
            for step, spent in zip(native[segment.first : segment.first + segment.count], seconds, strict=True):
                times.append(StepTime(step.label, step.symbol, spent, False))
        if status:
            raise RuntimeFailure(f"the thread pool refused to run the model (status {status})")

    def _host(
        self, step: HostStep, inputs: dict[str, Array], outputs: dict[str, Array], free: dict[int, Array]
    ) -> None:
        from smartmem.runtime.host import run_node

        operands = [None if at < 0 else self._array(at, inputs, outputs, free) for at in step.inputs]
        if id(step) not in self._nodes:
            self._nodes[id(step)] = host_node(step, self.program.slots)
        results = run_node(self._nodes[id(step)], operands)
        for at, result in zip(step.outputs, results, strict=False):
            if at < 0:
                continue
            slot = self.program.slots[at]
            if slot.dtype == "object" and slot.shape is None:  # strings of any shape, a sequence, an optional
                kept: Any = result if isinstance(result, list) else np.asarray(result, object)
                if slot.kind == "host":
                    free[at] = kept
                else:
                    outputs[slot.name] = kept
                continue
            array = np.asarray(result, object if slot.dtype == "object" else None)
            if slot.shape is not None and (array.shape != slot.shape or array.dtype.name != slot.dtype):
                raise RuntimeFailure(
                    f"{step.op} {step.label!r} gave {array.dtype.name}{list(array.shape)} for {slot.name!r}, "
                    f"expected {slot.dtype}{list(slot.shape)}"
                )
            if slot.kind == "host":
                free[at] = array
            elif slot.kind == "output" and slot.shape is None:
                outputs[slot.name] = np.array(array, order="C")  # a result may share memory with an operand
            else:
                np.copyto(self._array(at, inputs, outputs, free), array)

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
        size = int(np.prod(slot.shape, dtype=np.int64)) * dtype.itemsize
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


def host_node(step: HostStep, slots: list[Slot]) -> Any:
    """The graph node that `runtime.host` runs for `step`."""
    from smartmem.graph.ir import Node, Value

    def value(at: int) -> Value | None:
        if at < 0:
            return None
        return Value(slots[at].name, slots[at].shape, dtype_of(slots[at].dtype))

    return Node(
        step.op,
        step.domain,
        step.label,
        [value(at) for at in step.inputs],
        [value(at) for at in step.outputs],
        dict(getattr(step, "attrs", {})),
        step.opset,
        step.proto,
    )
