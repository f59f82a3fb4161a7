"""Row reductions of warps that exchange registers, on PoCL: the exchange goes through local memory there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.support.exchange import with_local
from tests.support.random_graphs import Array, Builder

from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions, Precision
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceProgram
from smartmem.schedule.gpu import ptx

pytestmark = pytest.mark.usefixtures("built_quickly")
EMULATION = """
inline float sm_exchanged(float x, int mask, __local float *all) {
    barrier(CLK_LOCAL_MEM_FENCE);
    all[get_local_id(0)] = x;
    barrier(CLK_LOCAL_MEM_FENCE);
    return all[get_local_id(0) ^ mask];
}
#define sm_across(x, mask) sm_exchanged(x, mask, exchange)
"""


def emulated(program: DeviceProgram) -> DeviceProgram:
    for name, text in program.sources.items():
        program.sources[name] = with_local(
            text.replace(ptx.ACROSS, EMULATION),
            lambda kernel: "sm_across" in kernel,
            lambda items: f"float exchange[{items}]",
        )
    program.options = program.options.replace(" -DSM_PTX", "")
    return program


def reductions(g: Builder, rows: int, columns: int) -> list[str]:
    """A normalization, a softmax, a maximum and a sum of squares, of rows."""
    x = g.input(rows, columns)
    return [
        g.op("LayerNormalization", [x, g.weight(columns), g.weight(columns)], (rows, columns), axis=-1),
        g.op("Softmax", [x], (rows, columns), axis=-1),
        g.op("ReduceMax", [x, g.constant(np.array([1], np.int64))], (rows,), keepdims=0),
        g.op("ReduceSumSquare", [x, g.constant(np.array([1], np.int64))], (rows,), keepdims=0),
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("rows, columns", [(5, 3), (7, 24), (300, 40), (197, 384), (50, 1000), (3, 1021), (9, 4096)])
def test_results(device: Device, tmp_path, rows: int, columns: int, precision: Precision) -> None:
    g = Builder(5)
    model: onnx.ModelProto = g.model(reductions(g, rows, columns))
    feeds: dict[str, Array] = g.feeds()
    expected = ReferenceEvaluator(model).run(None, feeds)
    nvidia = replace(device, ptx=True, kind="gpu", sub_group=32, compute_units=132)
    options = DeviceOptions("buffer", precision, check=True)
    program = emulated(build_device_program(model, level="full", device=nvidia, options=options))
    used = [text.partition("__kernel")[2].count("sm_across(") for text in program.sources.values()]
    assert sum(used) >= 3, "these rows belong to no warps"
    made = DeviceModel(program, device, cache=Cache(tmp_path))
    for got, want in zip(made.run(feeds), expected, strict=True):
        assert np.max(np.abs(got - want)) < (2e-3 if precision == "fp16" else 1e-5) * np.max(np.abs(want))
    made.close()
