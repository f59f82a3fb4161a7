"""Says which answers are right: compared with the network's sample, else with those of the first runner."""

from __future__ import annotations

from typing import Any

import numpy as np

from smartmem.bench.networks import Case
from smartmem.bench.runner import Runner
from smartmem.inputs import allowed_error, largest_difference, relative_error, usual_error

ROUNDING = 1e-6  # unless no element is further off: of outputs that are nearly zero only rounding is left to compare

Array = np.ndarray[Any, Any]


class Judge:
    """Judges the answers to one case.

    Attributes:
        reference: what answers are compared with, or "" before there is any.
    """

    def __init__(self, case: Case) -> None:
        self._model = case.model
        self._wanted: dict[str, Array] = dict(case.outputs)
        self.reference = "torch" if case.outputs else ""

    def __call__(self, runner: Runner) -> None:
        """Fill in the relative error; a wrong runner is ended."""
        row = runner.row
        with np.load(runner.outputs, allow_pickle=False) as file:
            # Some runtimes give an output several names.
            found = {name: file[name] for name in file.files if not self._wanted or name in self._wanted}
        runner.outputs.unlink()
        if not self._wanted:
            self._wanted = found
            self.reference = row.label
        absent = [name for name in self._wanted if name not in found]
        if absent:
            runner.stop(f"gives no output {absent[0]}")
            return
        error = max((relative_error(found[name], self._wanted[name]) for name in self._wanted), default=0.0)
        furthest = max((largest_difference(found[name], self._wanted[name]) for name in self._wanted), default=0.0)
        row.relative_error = error if error < float("inf") else None  # JSON has no infinity
        right = error < usual_error(row.precision) or furthest < ROUNDING
        if not right and not error < allowed_error(self._model, row.precision):
            shapes = [
                f"output {name} has the shape {list(found[name].shape)} instead of {list(array.shape)}"
                for name, array in self._wanted.items()
                if found[name].shape != array.shape
            ]
            runner.stop(f"wrong answer: {shapes[0] if shapes else f'relative error {error:.2g}'}")
