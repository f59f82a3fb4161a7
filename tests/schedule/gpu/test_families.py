"""Every device schedule on awkward sizes, in buffers and textures, float and half, with every coordinate checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.support.device_batch import build, run_on_device
from tests.support.device_cases import DeviceCase, cases
from tests.support.random_graphs import Array
from tests.test_differential import relative_error

from smartmem.device import Device, DeviceOptions
from smartmem.frontend.load import load_graph
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.program import LaunchStep

pytestmark = pytest.mark.usefixtures("built_quickly")
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2}


@pytest.fixture(scope="module")
def all_cases() -> list[DeviceCase]:
    return cases()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def same_specials(got: Array, want: Array) -> bool:
    """Whether infinities and NaNs are the same, signs included."""
    if want.dtype.kind != "f":
        return True
    odd = ~np.isfinite(want)
    return np.array_equal(got[odd], want[odd], equal_nan=True)


def differences(case: DeviceCase, results: Sequence[Array], tolerance: float) -> list[str]:
    found = []
    for position, (got, want) in enumerate(zip(results, case.expected, strict=True)):
        want = np.asarray(want)
        error = relative_error(got, want) if same_specials(got, want) else float("inf")
        if error > tolerance:
            found.append(f"{case.name}, output {position}: relative error {error:.1e}")
    return found


@pytest.mark.parametrize(
    "level, memory, precision, check, kind",
    [
        ("full", "texture", "fp32", True, "cpu"), ("full", "buffer", "fp16", False, "cpu"),
        ("full", "buffer", "fp32", True, "gpu"),
    ],
)  # fmt: skip
def test_results(
    all_cases: list[DeviceCase], device: Device, cache: Cache, level: str, memory: str, precision: str, check: bool,
    kind: str,
) -> None:  # fmt: skip
    """`kind`: what the device is taken for, as schedules differ."""
    chosen = [case for case in all_cases if precision == "fp32" or not case.exact]
    options = DeviceOptions(memory, precision, check=check)  # type: ignore[arg-type]
    graphs, feeds = [load_graph(case.model) for case in chosen], [case.feeds for case in chosen]
    results = run_on_device(graphs, feeds, replace(device, kind=kind), cache, level, options)  # type: ignore[arg-type]
    wrong = [
        line for case, result in zip(chosen, results, strict=True)
        for line in differences(case, result, TOLERANCE[precision])
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lanes_of_zeros(all_cases: list[DeviceCase], device: Device, cache: Cache, precision: str) -> None:
    """Channels and columns that texels do not divide lie in textures all the same, and give the same numbers."""
    options = DeviceOptions("texture", precision, check=True)  # type: ignore[arg-type]
    for case in (case for case in all_cases if case.name.endswith("that_texels_do_not_divide")):
        program = build([load_graph(case.model)], device, options=options)
        assert program.report["layouts"]
        for entry in program.report["layouts"]:
            assert entry["memory"].startswith("texture"), entry
            assert "of padding" in entry["reason"], entry
        (results,) = run_on_device([load_graph(case.model)], [case.feeds], device, cache, "full", options)
        assert not differences(case, results, TOLERANCE[precision])


def test_doubles_are_left_to_the_host_where_the_device_has_none(
    all_cases: list[DeviceCase], device: Device, cache: Cache
) -> None:
    (case,) = (case for case in all_cases if case.name == "casts")
    plain = replace(device, fp64=False)
    program = build([load_graph(case.model)], plain)
    launched = {slot for step in program.steps if isinstance(step, LaunchStep) for slot in step.args}
    assert launched
    assert not any(program.slots[slot].dtype == "float64" for slot in launched)
    (results,) = run_on_device([load_graph(case.model)], [case.feeds], plain, cache)
    assert not differences(case, results, TOLERANCE["fp32"])


def test_the_families_that_are_meant(all_cases: list[DeviceCase], device: Device) -> None:
    for case in all_cases:
        steps = build([load_graph(case.model)], device).steps
        found = {step.label.split(":")[0] for step in steps if isinstance(step, LaunchStep)}
        assert case.families <= found, f"{case.name}: {found}"
