"""A sample of the onnx package's node tests on an OpenCL device, each with its own tolerance.

All of them run on the CPU in `test_onnx_backend`; here every `STRIDE`-th does whose graph has a compiled kernel. The
parameters of a model (axes, sizes, bounds) are constants, so that nearly all of it is compiled.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from tests.support.device_batch import build, run_on_device
from tests.test_onnx_backend import Case, all_cases, difference, listed

from smartmem.device import Device
from smartmem.errors import SmartmemError
from smartmem.frontend.load import load_graph
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.program import LaunchStep

STRIDE = 12


def run(cases: list[Case], device: Device, cache: Cache) -> dict[str, str]:
    """What is wrong with each case; all in one program, and in halves down to the one that breaks it."""
    try:
        graphs, feeds = [load_graph(case.model) for case in cases], [case.feeds for case in cases]
        results = run_on_device(graphs, feeds, device, cache)
    except SmartmemError as error:
        if len(cases) == 1:
            return {cases[0].name: f"{type(error).__name__}: {error}"}
        half = len(cases) // 2
        return run(cases[:half], device, cache) | run(cases[half:], device, cache)
    return {case.name: difference(case, result) for case, result in zip(cases, results, strict=True)}


def compiled(case: Case, device: Device) -> bool:
    """Whether a device kernel computes a part of it."""
    try:
        steps = build([load_graph(case.model)], device).steps
    except (SmartmemError, AssertionError, ValueError, KeyError, ZeroDivisionError):
        return False  # the frontend's limits are the subject of `test_onnx_backend`
    return any(isinstance(step, LaunchStep) for step in steps)


def test_node_tests(device: Device, tmp_path: Path) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sample = [case.frozen() for case in list(all_cases())[::STRIDE] if case.name not in listed()]
        sample = [case for case in sample if compiled(case, device)]
        assert len(sample) > 50
        found = run(sample, device, Cache(tmp_path))
    wrong = "\n".join(f"{name}: {problem[:300]}" for name, problem in found.items() if problem)
    assert not wrong, wrong
