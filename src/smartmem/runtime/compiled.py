"""What all compiled models have in common: calling them with checked inputs.

In: arguments of a call, by position or by name. Out: what the subclass's `_run` gives for inputs that fit the program.
"""

from __future__ import annotations

import abc
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from smartmem.errors import InputError
from smartmem.runtime.arrays import Array, describe, fitting, listed
from smartmem.runtime.artifact import Program

if TYPE_CHECKING:
    from smartmem.runtime.opencl.program import DeviceProgram

M = TypeVar("M", bound="CompiledModel")


@dataclass(frozen=True)
class StepTime:
    """Seconds that one step of the program took in one call.

    Attributes:
        label, symbol: of the step.
        seconds: wall-clock time.
        host: whether it ran in Python.
        spans: for each thread that took part, its number and when it began and ended, on `time.perf_counter`'s clock.
    """

    label: str
    symbol: str
    seconds: float
    host: bool
    spans: tuple[tuple[int, float, float], ...] = ()


class CompiledModel(abc.ABC):
    """A model that can be called: `model(x)` or `model(name=x)`.

    Several threads may call one model; calls wait for each other.

    Attributes:
        program: what the compiler made.
        where: what runs it, for people: "2 threads", or a device's name.
    """

    program: Program | DeviceProgram

    def __init__(self, program: Program | DeviceProgram) -> None:
        self.program = program
        self._inputs = {spec.name: spec for spec in program.inputs}
        self._lock = threading.Lock()
        self._closed = False

    @property
    @abc.abstractmethod
    def where(self) -> str:
        """What runs the model."""

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

    @abc.abstractmethod
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a file that `smartmem.load` reads."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what the model holds; later calls raise. Closing twice is fine."""

    @abc.abstractmethod
    def _run(self, inputs: dict[str, Array], times: list[StepTime] | None) -> list[Array]:
        """Outputs in order for inputs that fit; the seconds of each step go into `times`, if it is a list."""

    def __enter__(self: M) -> M:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        program = self.program
        inputs, outputs = (", ".join(map(describe, specs)) for specs in (program.inputs, program.outputs))
        kind = type(self).__name__
        return f"<smartmem.{kind} {program.name!r}: {inputs} -> {outputs}; level {program.level}, {self.where}>"

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
