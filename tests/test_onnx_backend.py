"""All node tests of the onnx package, compiled at level full, each with its own tolerance.

The tests that fail are listed, under their reasons, in ``onnx_backend_failures.txt``. The list is exact: a new failure
and an unexpected pass both fail the test. Operators without a compute definition run on the host here as anywhere.

The models are compiled in batches (`support.batch`). A second round gives the parameters of each model (axes, sizes,
bounds) as constants, which is how exporters write them, so that nearly all of them are compiled instead of interpreted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.support.batch import Batch, load_alone, lowered

from smartmem.errors import SmartmemError
from smartmem.frontend.load import load_graph
from smartmem.runtime.artifact import NativeStep
from smartmem.runtime.cache import Cache

LIST = Path(__file__).with_name("onnx_backend_failures.txt")
BATCH = 150
PASSING = 0.95
RANDOM = "bernoulli"  # results differ from run to run
SMALL = 64  # elements of an input that the second round turns into a constant


@dataclass
class Case:
    """One test of the onnx package."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    expected: list[Any]
    rtol: float
    atol: float

    def frozen(self) -> Case:
        """The same test with all small inputs but the first as constants."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for name, array in list(self.feeds.items())[1:]:
            if isinstance(array, np.ndarray) and array.dtype.kind in "iufb" and array.size < SMALL:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        return Case(self.name, model, self.feeds, self.expected, self.rtol, self.atol)


@dataclass
class Outcome:
    """What became of the cases: why each failing one fails, and how many ran on the host only."""

    failures: dict[str, str] = field(default_factory=dict)
    host: int = 0


def _cases() -> Iterator[Case]:
    from onnx.backend.test.loader import load_model_tests

    for test in load_model_tests(kind="node"):
        if RANDOM in test.name:
            continue
        model = test.model if test.model is not None else onnx.load(Path(test.model_dir) / "model.onnx")
        inputs, outputs = test.data_sets[0] if test.data_sets else _stored(Path(test.model_dir), model)
        names = [value.name for value in model.graph.input]
        feeds = dict(zip(names, map(_array, inputs), strict=False))
        yield Case(test.name, model, feeds, [_array(x) for x in outputs], test.rtol, test.atol)


def _array(given: Any) -> Any:
    return numpy_helper.to_array(given) if isinstance(given, onnx.TensorProto) else given


def _stored(folder: Path, model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs of a test whose data lie in files; None for what is no tensor."""

    def read(kind: str, values: Any) -> list[Any]:
        found: list[Any] = []
        for position, value in enumerate(values):
            path = folder / "test_data_set_0" / f"{kind}_{position}.pb"
            tensor = onnx.TensorProto()
            if value.type.HasField("tensor_type") and path.exists():
                tensor.ParseFromString(path.read_bytes())
                found.append(tensor)
            else:
                found.append(None)
        return found

    return read("input", model.graph.input), read("output", model.graph.output)


def _difference(case: Case, results: list[Any]) -> str:
    """What is wrong with the results, "" if nothing is."""
    for got, want in zip(results, case.expected, strict=True):
        several = isinstance(want, list)
        for mine, theirs in zip(got if several else [got], want if several else [want], strict=True):
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                return f"{mine.dtype}{list(mine.shape)} instead of {theirs.dtype}{list(theirs.shape)}"
            if theirs.dtype.kind == "O":
                if not np.array_equal(mine, theirs):
                    return "other strings"
                continue
            if theirs.dtype.kind not in "biufc":  # the types of ml_dtypes
                mine, theirs = mine.astype(np.float32), theirs.astype(np.float32)
            try:
                np.testing.assert_allclose(mine, theirs, rtol=case.rtol, atol=case.atol)
            except AssertionError as error:
                return " ".join(str(error).split())
    return ""


def _run(cases: list[Case], cache: Cache) -> Outcome:
    outcome, native = Outcome(), []
    for case in cases:
        try:
            program = lowered(load_graph(case.model))
        except (SmartmemError, AssertionError, ValueError, KeyError, ZeroDivisionError) as error:
            outcome.failures[case.name] = f"{type(error).__name__}: {error}"
            continue
        if any(isinstance(step, NativeStep) for step in program.steps):
            native.append(case)
            continue
        outcome.host += 1
        try:
            results = load_alone(program, cache).run({spec.name: case.feeds[spec.name] for spec in program.inputs})
            outcome.failures[case.name] = _difference(case, results)
        except (SmartmemError, AttributeError) as error:
            outcome.failures[case.name] = f"{type(error).__name__}: {error}"
    for start in range(0, len(native), BATCH):
        _run_batch(native[start : start + BATCH], cache, outcome)
    outcome.failures = {name: problem for name, problem in outcome.failures.items() if problem}
    return outcome


def _run_batch(cases: list[Case], cache: Cache, outcome: Outcome) -> None:
    """All cases in one library; if that does not work, halves of them, down to the one that is to blame."""
    try:
        batch = Batch([load_graph(case.model) for case in cases], cache)
        results = batch.run([case.feeds for case in cases])
    except SmartmemError as error:
        if len(cases) == 1:
            outcome.failures[cases[0].name] = f"{type(error).__name__}: {error}"
            return
        _run_batch(cases[: len(cases) // 2], cache, outcome)
        _run_batch(cases[len(cases) // 2 :], cache, outcome)
        return
    for case, result in zip(cases, results, strict=True):
        outcome.failures[case.name] = _difference(case, result)


def _listed() -> set[str]:
    lines = (line.split("#")[0].strip() for line in LIST.read_text().splitlines())
    return {line for line in lines if line}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return list(_cases())


@pytest.mark.parametrize("frozen", [False, True], ids=["data", "constants"])
def test_node_tests(cases: list[Case], frozen: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        outcome = _run([case.frozen() for case in cases] if frozen else cases, Cache(tmp_path))
    found, listed = set(outcome.failures), _listed()
    new = "\n".join(f"{name}: {outcome.failures[name][:300]}" for name in sorted(found - listed))
    assert not new, f"new failures:\n{new}"
    gone = ", ".join(sorted(listed - found))
    assert not gone, f"these pass now; take them out of {LIST.name}: {gone}"
    assert len(cases) > 1500
    assert len(found) <= (1 - PASSING) * len(cases)
    assert outcome.host <= (0.25 if frozen else 0.4) * len(cases)
