"""Grouped reductions in two steps: what they read, how they are cut for a device, and that the numbers stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tests.support.random_graphs import Builder

import smartmem
from smartmem.compiler import build_device_program
from smartmem.device import Device, DeviceOptions
from smartmem.frontend.load import load_graph
from smartmem.kernel.stage import Stage, tensors_read
from smartmem.passes.eliminate import eliminate
from smartmem.passes.lower import lower
from smartmem.passes.simplify import simplify
from smartmem.passes.split_reductions import SLICE, split_reductions
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl.model import DeviceModel

CHANNELS, SIZE, GROUPS = 16, 64, 4


def normalized(g: Builder, x: str, size: int) -> str:
    """Group normalization of x[1, CHANNELS, size, size], as exporters write it."""
    rows = g.op("Reshape", [x, g.ints(0, GROUPS, -1)])
    ones, zeros = (g.constant(np.full(GROUPS, value, np.float32)) for value in (1, 0))
    flat = g.op("InstanceNormalization", [rows, ones, zeros], epsilon=1e-5)
    back = g.op("Reshape", [flat, g.ints(1, CHANNELS, size, size)])
    return str(g.op("Mul", [back, g.weight(CHANNELS, 1, 1)]))


def residual(size: int = SIZE) -> onnx.ModelProto:
    """Norm(x + Conv(x) + bias), and the sum itself, which the next block would add to."""
    g = Builder(5)
    x = g.input(1, CHANNELS, size, size)
    conv = g.op("Conv", [x, g.weight(CHANNELS, CHANNELS, 3, 3), g.weight(CHANNELS)], pads=[1, 1, 1, 1])
    total = g.op("Add", [x, conv])
    return g.model([normalized(g, total, size), g.op("Relu", [total])])


def parts(model: onnx.ModelProto, units: int = 0) -> list[Stage]:
    module = lower(load_graph(model, {}))
    simplify(module)
    eliminate(module)
    split_reductions(module, units)
    return [s for s in module.steps if isinstance(s, Stage) and s.name.endswith(".part")]


def test_what_follows_a_convolution_is_read_not_computed_again():
    """The residual sum is an epilogue of the convolution; the centered values of the variance are not."""
    mean, squares = parts(residual())
    assert len(tensors_read(mean.body)) == 1
    assert len([t for t in tensors_read(squares.body) if not t.endswith(".mean")]) == 1
    assert any(t.endswith(".mean") for t in tensors_read(squares.body)), "the centered values are computed in its loads"


def test_slices_keep_all_elements_and_leave_enough_to_each():
    whole, cut = parts(residual())[0], parts(residual(), units=132)[0]
    assert cut.shape[1:] == whole.shape and cut.shape[0] > 1
    assert cut.size * np.prod(cut.reduce) == whole.size * np.prod(whole.reduce)
    assert np.prod(cut.reduce) >= SLICE


def whole(kind: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """All of the input becomes one number: a mean, a maximum, or those of a group normalization with one group."""
    g = Builder(6)
    x = g.input(*shape)
    if kind != "GroupNormalization":
        return g.model([g.op(kind, [x], keepdims=0)])
    rows = g.op("Reshape", [x, g.ints(1, 1, -1)])
    one, zero = (g.constant(np.array([value], np.float32)) for value in (1, 0))
    flat = g.op("InstanceNormalization", [rows, one, zero], epsilon=1e-5)
    return g.model([g.op("Reshape", [flat, g.ints(*shape)])])


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceMax", "ReduceSumSquare", "GroupNormalization"])
@pytest.mark.parametrize("shape", [(1, 24, 48, 52), (3, 20011), (64000,), (60013,), (1, 7, 48, 160)])
def test_few_results(kind: str, shape: tuple[int, ...]) -> None:
    """Threads share a reduction to one number, if its axes can be cut: 60013 is a prime."""
    model = whole(kind, shape)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})
    found = parts(model)
    assert (shape == (60013,)) == (not found)
    assert all(part.size >= 3 and np.prod(part.reduce) < 20012 for part in found)
    with smartmem.compile(model, threads=2) as compiled:
        got = compiled(x)
    assert np.linalg.norm(got - expected[0]) < 1e-5 * max(np.linalg.norm(expected[0]), 1e-1)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_on_a_device(device: Device, tmp_path, kind):
    model = residual()
    x = np.random.default_rng(0).standard_normal((1, CHANNELS, SIZE, SIZE)).astype(np.float32)
    name = model.graph.input[0].name
    expected = ReferenceEvaluator(model).run(None, {name: x})
    wide = replace(device, kind=kind, compute_units=64)
    program = build_device_program(model, level="full", device=wide, options=DeviceOptions("buffer"))
    shapes = [kernel["shape"] for kernel in program.report["kernels"] if kernel["name"].endswith(".part")]
    assert len(shapes) == 2 and all((len(shape) == 5) == (kind == "gpu") for shape in shapes)
    made = DeviceModel(program, device, cache=Cache(tmp_path))
    for got, want in zip(made.run({name: x}), expected, strict=True):
        assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
    made.close()
