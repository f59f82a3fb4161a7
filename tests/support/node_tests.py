"""The node tests of the onnx package: models with inputs and expected outputs, each with a tolerance of its own.

`node_tests()` gives them as `NodeTest`s, `run` runs them through a `Runner` (the CPU or a device), in batches: many
models in one program. The tests that fail are held by an exact list: `listed` reads it, `compare` says what is new and
what is gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from smartmem.errors import SmartmemError
from smartmem.frontend.load import load_graph
from smartmem.graph.ir import Graph

RANDOM = "bernoulli"  # results differ from run to run
SMALL = 64  # elements of an input that `frozen` turns into a constant
REFUSALS = (SmartmemError, AssertionError, ValueError, KeyError, ZeroDivisionError)


@dataclass
class NodeTest:
    """One test of the onnx package."""

    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any]
    expected: list[Any]
    rtol: float
    atol: float

    def frozen(self) -> NodeTest:
        """The same test with all small inputs but the first as constants, which is how exporters write them."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for name, array in list(self.feeds.items())[1:]:
            if isinstance(array, np.ndarray) and array.dtype.kind in "iufb" and array.size < SMALL:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
        return NodeTest(self.name, model, self.feeds, self.expected, self.rtol, self.atol)


@dataclass
class Runner:
    """How graphs are run.

    Attributes:
        batch: the results of several graphs on their inputs, compiled as one program.
        on_host: the program's way with a graph none of whose operators is compiled: its results, or None if some are.
        size: graphs in a batch.
    """

    batch: Callable[[Sequence[Graph], Sequence[Mapping[str, Any]]], list[list[Any]]]
    on_host: Callable[[Graph, Mapping[str, Any]], list[Any] | None]
    size: int


@dataclass
class Outcome:
    """What became of the tests: why each failing one fails, and how many ran on the host only."""

    failures: dict[str, str] = field(default_factory=dict)
    host: int = 0


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of numpy that tests of infinities give."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def node_tests() -> list[NodeTest]:
    """All of them whose results are not random."""
    from onnx.backend.test.loader import load_model_tests

    found = []
    with quiet():
        for test in load_model_tests(kind="node"):
            if RANDOM in test.name:
                continue
            model = test.model if test.model is not None else onnx.load(Path(test.model_dir) / "model.onnx")
            inputs, outputs = test.data_sets[0] if test.data_sets else _stored(Path(test.model_dir), model)
            names = [value.name for value in model.graph.input]
            feeds = dict(zip(names, map(_array, inputs), strict=False))
            found.append(NodeTest(test.name, model, feeds, [_array(x) for x in outputs], test.rtol, test.atol))
    return found


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


def _difference(test: NodeTest, results: list[Any]) -> str:
    """What is wrong with the results, "" if nothing is."""
    for got, want in zip(results, test.expected, strict=True):
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
                np.testing.assert_allclose(mine, theirs, rtol=test.rtol, atol=test.atol)
            except AssertionError as error:
                return " ".join(str(error).split())
    return ""


def run(tests: Iterable[NodeTest], runner: Runner) -> Outcome:
    """Runs tests; those of which nothing is compiled one by one, the others in batches."""
    outcome, compiled = Outcome(), []
    with quiet():
        for test in tests:
            try:
                results = runner.on_host(load_graph(test.model), test.feeds)
                if results is None:
                    compiled.append(test)
                    continue
                outcome.host += 1
                outcome.failures[test.name] = _difference(test, results)
            except (*REFUSALS, AttributeError) as error:  # an optional may come as a list
                outcome.failures[test.name] = f"{type(error).__name__}: {error}"
        for start in range(0, len(compiled), runner.size):
            _run_batch(compiled[start : start + runner.size], runner, outcome)
    outcome.failures = {name: problem for name, problem in outcome.failures.items() if problem}
    return outcome


def _run_batch(tests: list[NodeTest], runner: Runner, outcome: Outcome) -> None:
    """All tests in one program; if that does not work, halves of them, down to the one that is to blame."""
    try:
        results = runner.batch([load_graph(test.model) for test in tests], [test.feeds for test in tests])
    except SmartmemError as error:
        if len(tests) == 1:
            outcome.failures[tests[0].name] = f"{type(error).__name__}: {error}"
            return
        _run_batch(tests[: len(tests) // 2], runner, outcome)
        _run_batch(tests[len(tests) // 2 :], runner, outcome)
        return
    for test, result in zip(tests, results, strict=True):
        outcome.failures[test.name] = _difference(test, result)


def listed(path: Path) -> set[str]:
    """The names in a list of failures; # begins a comment."""
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return {line for line in lines if line}


def compare(outcome: Outcome, expected: set[str], where: str) -> None:
    """Fails on a failure that is not expected and on an expected one that did not happen."""
    found = set(outcome.failures)
    new = "\n".join(f"{name}: {outcome.failures[name][:300]}" for name in sorted(found - expected))
    assert not new, f"new failures:\n{new}"
    gone = ", ".join(sorted(expected - found))
    assert not gone, f"these pass now; take them out of {where}: {gone}"


def representative(tests: Sequence[NodeTest]) -> list[NodeTest]:
    """A fixed part in which every operator is, and every type of an input: the smallest models that have it."""
    found: dict[str, NodeTest] = {}
    for test in sorted(tests, key=lambda test: (len(test.model.graph.node), test.name)):
        kinds = {TensorProto.DataType.Name(v.type.tensor_type.elem_type) for v in test.model.graph.input}
        for feature in (*kinds, *(node.op_type for node in test.model.graph.node)):
            found.setdefault(feature, test)
    return list({test.name: test for test in found.values()}.values())
