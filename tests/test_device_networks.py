"""Shipped networks on an OpenCL device against onnxruntime: another level, memory and precision for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.networks import network
from tests.test_networks import inputs_of, relative_error

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel

onnxruntime = pytest.importorskip("onnxruntime")
LIMIT = {"fp32": 1e-5, "fp16": 2e-2}


@pytest.mark.parametrize(
    "name, level, options",
    [
        ("swin_t_dynamo", "full", DeviceOptions("auto")),
        ("convnext_t_script", "full", DeviceOptions("texture", "fp16")),
        ("minilm_dynamo", "eliminate", DeviceOptions("texture", check=True)),
    ],
    ids=["swin_t", "convnext_t", "minilm"],
)
def test_network(device: Device, tmp_path: Path, name: str, level: str, options: DeviceOptions) -> None:
    model = network(name)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = inputs_of(session, np.random.default_rng(5))
    (wanted,) = session.run(None, feeds)
    program = build_device_program(model, level=level, device=device, options=options)
    if level == "full":
        assert program.report["totals"]["copies"] == 0
    compiled = DeviceModel(program, device, cache=Cache(tmp_path))
    assert relative_error(compiled(**feeds), wanted) < LIMIT[options.precision]
    compiled.close()
