"""All node tests of the onnx package, compiled at level full for the CPU, each with its own tolerance.

The tests that fail are listed, under their reasons, in ``onnx_backend_failures.txt``. The list is exact: a new failure
and an unexpected pass both fail the test. Operators without a compute definition run on the host here as anywhere.

A second round gives the parameters of each model (axes, sizes, bounds) as constants, so that nearly all of them are
compiled instead of interpreted. `test_onnx_backend_device` is the same on an OpenCL device.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.batch import Batch, load_alone, lowered
from tests.support.node_tests import NodeTest, Runner, compare, listed, node_tests, run

from smartmem.graph.ir import Graph
from smartmem.runtime.artifact import NativeStep
from smartmem.runtime.cache import Cache

LIST = Path(__file__).with_name("onnx_backend_failures.txt")
BATCH = 150
PASSING = 0.95


def runner(cache: Cache) -> Runner:
    def on_host(graph: Graph, feeds: Mapping[str, Any]) -> list[Any] | None:
        program = lowered(graph)
        if any(isinstance(step, NativeStep) for step in program.steps):
            return None
        return load_alone(program, cache).run({spec.name: feeds[spec.name] for spec in program.inputs})

    return Runner(lambda graphs, feeds: Batch(graphs, cache).run(feeds), on_host, BATCH)


@pytest.fixture(scope="module")
def tests() -> list[NodeTest]:
    return node_tests()


@pytest.mark.parametrize("frozen", [False, True], ids=["data", "constants"])
def test_node_tests(tests: list[NodeTest], frozen: bool, tmp_path: Path) -> None:
    outcome = run([test.frozen() for test in tests] if frozen else tests, runner(Cache(tmp_path)))
    compare(outcome, listed(LIST), LIST.name)
    assert len(tests) > 1500
    assert len(outcome.failures) <= (1 - PASSING) * len(tests)
    assert outcome.host <= (0.25 if frozen else 0.4) * len(tests)
