"""The small graphs of `test_differential` on an OpenCL device, against onnxruntime: named cases and random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.device_batch import run_on_device
from tests.test_differential import Case, named_cases, random_cases, relative_error

from smartmem.device import Device, DeviceOptions
from smartmem.frontend.load import load_graph
from smartmem.runtime.cache import Cache

TOLERANCE = {"fp32": 1e-5, "fp16": 2e-2}


def check(cases: list[Case], device: Device, folder: Path, level: str, options: DeviceOptions) -> None:
    graphs, feeds = [load_graph(case.model) for case in cases], [case.feeds for case in cases]
    results = run_on_device(graphs, feeds, device, Cache(folder), level, options)
    wrong = []
    for case, result in zip(cases, results, strict=True):
        for position, (got, want) in enumerate(zip(result, case.expected, strict=True)):
            allowed = max(TOLERANCE[options.precision], 1e-3 if want.dtype == np.float16 else 0.0)
            if (error := relative_error(got, want)) > allowed:
                wrong.append(f"{case.name}, output {position}: relative error {error:.1e}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "level, memory, seeds",
    [("full", "auto", range(8)), ("layout", "texture", range(100, 106)), ("naive", "buffer", range(200, 204))],
)
def test_float(device: Device, tmp_path: Path, level: str, memory: str, seeds: range) -> None:
    named = named_cases() if level == "full" else []
    check([*named, *random_cases(seeds)], device, tmp_path, level, DeviceOptions(memory, check=True))  # type: ignore[arg-type]


def test_half(device: Device, tmp_path: Path) -> None:
    check(random_cases(range(300, 306)), device, tmp_path, "full", DeviceOptions("texture", "fp16"))
