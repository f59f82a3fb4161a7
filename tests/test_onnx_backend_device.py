"""The node tests of the onnx package on an OpenCL device: what `test_onnx_backend` is for the CPU.

All of them take minutes (the driver's compiler sees thousands of kernels), so a fixed part runs, in which every
operator and every type of an input is. ``pytest tests/test_onnx_backend_device.py --all-node-tests`` runs all. What
fails is what fails on the CPU, but for the names in ``onnx_backend_device_failures.txt``: exactly these differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.device_batch import build, run_on_device
from tests.support.node_tests import Runner, compare, listed, node_tests, representative, run

from smartmem.device import Device
from smartmem.graph.ir import Graph
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import LaunchStep

pytestmark = pytest.mark.usefixtures("built_quickly")
CPU_LIST = Path(__file__).with_name("onnx_backend_failures.txt")
LIST = Path(__file__).with_name("onnx_backend_device_failures.txt")
BATCH = 100
PASSING = 0.95


def runner(device: Device, cache: Cache) -> Runner:
    def on_host(graph: Graph, feeds: Mapping[str, Any]) -> list[Any] | None:
        program = build([graph], device)
        if any(isinstance(step, LaunchStep) for step in program.steps):
            return None
        model = DeviceModel(program, device, cache=cache)
        try:
            return model.run({spec.name: feeds[spec.name.removeprefix("0/")] for spec in program.inputs})
        finally:
            model.close()

    return Runner(lambda graphs, feeds: run_on_device(graphs, feeds, device, cache), on_host, BATCH)


def test_node_tests(device: Device, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tests = [test.frozen() for test in node_tests()]
    if not request.config.getoption("--all-node-tests"):
        tests = representative(tests)
    names = {test.name for test in tests}
    outcome = run(tests, runner(device, Cache(tmp_path)))
    compare(outcome, (listed(CPU_LIST) ^ listed(LIST)) & names, LIST.name)
    assert len(outcome.failures) <= (1 - PASSING) * len(tests)
    assert outcome.host <= 0.3 * len(tests)  # an operator that only the host has counts as much as any other
