"""Hand-written device programs on an OpenCL device: results, times, memory, threads, and what goes wrong."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from tests.support.device_programs import WEIGHT, chain, checked, expected, in_buffers, in_images, with_host

from smartmem.device import Device
from smartmem.errors import CompilerError, InputError, RuntimeFailure
from smartmem.runtime.cache import Cache
from smartmem.runtime.opencl import launch
from smartmem.runtime.opencl.devices import opencl_device
from smartmem.runtime.opencl.errors import DeviceLost, failure, reporting
from smartmem.runtime.opencl.loader import pyopencl
from smartmem.runtime.opencl.model import DeviceModel
from smartmem.runtime.opencl.program import DeviceSlot, LaunchStep

X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)


@pytest.mark.parametrize(
    "program, tolerance", [(in_buffers(), 1e-6), (in_images(), 1e-6), (in_images("float16"), 2e-3)]
)
def test_results(make, program, tolerance):
    model = make(program)
    assert model.native
    for x in (X, -2 * X, X):  # the second call sees nothing of the first
        np.testing.assert_allclose(model(x), expected(x), rtol=tolerance)
    assert model.input_names == ["x"] and model.output_names == ["s"]


def test_half_storage_of_buffers(make):
    program = in_buffers()
    program.sources = {"k.cl": HALVES}
    program.slots = [replace(slot, stored="float16") for slot in program.slots]
    program.weights = {"w": WEIGHT.astype(np.float16)}
    y = make(program)(X)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected(X), rtol=5e-3)


HALVES = """
__kernel void scale(__global const half *x, __global const half *w, __global half *h) {
    int i = get_global_id(0);
    vstore_half(vload_half(i, x) * vload_half(i % 8, w), i, h);
}
__kernel void sums(__global const half *h, __global half *y) {
    int i = get_global_id(0);
    float sum = 0.0f;
    for (int j = 0; j < 8; j++) sum += vload_half(i * 8 + j, h);
    vstore_half(sum, i, y);
}
"""


def test_host_steps(make):
    h, s, at = make(with_host())(X)
    np.testing.assert_allclose(h, X * WEIGHT, rtol=1e-6)
    np.testing.assert_allclose(s, -expected(X), rtol=1e-6)
    np.testing.assert_array_equal(at, np.stack(np.nonzero(h)))


def test_outputs_belong_to_the_caller(make):
    model = make(with_host())
    first = model(X)
    copies = [array.copy() for array in first]
    model(3 * X)
    for array, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_times(make):
    model = make(with_host())
    with pytest.raises(InputError, match="nothing is on the device yet"):
        model.bench(1)
    outputs, times = model.run_timed({"x": X})
    np.testing.assert_allclose(outputs[1], -expected(X), rtol=1e-6)
    assert [(step.symbol, step.host) for step in times] == [
        ("scale", False),
        ("Neg", True),
        ("NonZero", True),
        ("sums", False),
    ]
    assert all(step.seconds > 0 for step in times)
    assert len(model.bench(3)) == 3 and len(model.enqueue_seconds(2)) == 2
    assert model.kernel_seconds({"x": X}) > 0
    model.repeats = 5
    outputs, times = model.run_timed({"x": X})
    np.testing.assert_allclose(outputs[1], -expected(X), rtol=1e-6)
    assert len(times) == 4 and all(step.seconds > 0 for step in times)


@pytest.mark.parametrize("native", [True, False])
def test_one_kernel_in_many_steps(make, queue_device, native):
    model = make(chain(50), on=queue_device)
    if not native:
        model._executor._plan._native = None
    x = np.arange(64, dtype=np.float32)
    np.testing.assert_array_equal(model(x), x + 50)


def test_what_is_left_over_in_a_padded_input_is_zero(make):
    program = in_buffers()
    program.slots[0] = replace(program.slots[0], elements=48)
    program.sources = {"k.cl": PADDED}
    assert make(program)(X).tolist() == [0.0] * 5


PADDED = """
__kernel void scale(__global const float *x, __global const float *w, __global float *h) {
    h[get_global_id(0)] = x[40 + get_global_id(0) % 8];
}
__kernel void sums(__global const float *h, __global float *y) { y[get_global_id(0)] = h[get_global_id(0)]; }
"""


def test_threads_wait_for_each_other(make):
    model = make(in_buffers())
    wrong = []

    def call(scale: int) -> None:
        for _ in range(20):
            if not np.allclose(model(scale * X), expected(scale * X), rtol=1e-5):
                wrong.append(scale)

    threads = [threading.Thread(target=call, args=(scale,)) for scale in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_second_start_compiles_nothing(make, tmp_path):
    cache = Cache(tmp_path)
    assert make(in_images(), cache).compiled == 1
    again = make(in_images(), cache)
    assert again.compiled == 0
    np.testing.assert_allclose(again(X), expected(X), rtol=1e-6)
    other = in_images()
    other.options = "-DOTHER"
    assert make(other, cache).compiled == 1
    for binary in (tmp_path / "opencl").rglob("*.bin"):
        binary.write_bytes(b"damaged")
    damaged = make(in_images(), cache)
    assert damaged.compiled == 1
    np.testing.assert_allclose(damaged(X), expected(X), rtol=1e-6)


def test_without_a_c_compiler(make, queue_device, tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTMEM_CC", "no-such-compiler")
    with pytest.warns(RuntimeWarning, match=r"enqueued from Python.*no-such-compiler"):
        model = make(in_images(), Cache(tmp_path), queue_device)
    assert not model.native
    np.testing.assert_allclose(model(X), expected(X), rtol=1e-6)


def test_inputs_that_do_not_fit(make):
    model = make(in_buffers())
    for bad, message in ((X[:3], "has shape"), (X.astype(float), "has dtype float64"), (X.ravel(), "has rank 1")):
        with pytest.raises(InputError, match=message):
            model(bad)
    with pytest.raises(InputError, match="missing"):
        model()


def test_closed(make):
    with make(in_buffers()) as model:
        pass
    model.close()
    with pytest.raises(RuntimeFailure, match="closed"):
        model(X)


def test_after_fork(make, monkeypatch):
    model = make(in_buffers())
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeFailure, match="fork"):
        model(X)


def test_a_source_that_does_not_build(make, tmp_path):
    program = in_buffers()
    program.sources["k.cl"] = "__kernel void scale() { undeclared = 1; }"
    with pytest.raises(CompilerError, match=r"refuses k\.cl, kept as (.*\.cl): .*undeclared") as error:
        make(program, Cache(tmp_path))
    assert "\n" not in str(error.value)
    (kept,) = (tmp_path / "failed").rglob("*.cl")
    assert str(kept) in str(error.value) and kept.read_text() == program.sources["k.cl"]


def test_a_driver_older_than_the_cpu(make, tmp_path):
    """PoCL 3.0 on a CPU that its LLVM does not know; the source is all right, so it is not kept."""
    program = in_buffers()
    program.sources["k.cl"] = "#error unknown target CPU 'generic'"
    with pytest.raises(RuntimeFailure, match=r"does not know this CPU.*apt install pocl-opencl-icd"):
        make(program, Cache(tmp_path))
    assert not (tmp_path / "failed").exists()


def test_coordinates_out_of_range(make):
    np.testing.assert_allclose(make(checked(0))(X), expected(X), rtol=1e-6)
    model = make(checked(3))
    for _ in range(2):
        with pytest.raises(
            CompilerError, match=r"3 accesses out of range; the first: kernel scale, load x at 4[012] of"
        ):
            model(X)


def test_limits(make, device):
    small = replace(device, max_allocation=200)
    with pytest.raises(RuntimeFailure, match=r"pooled buffer 0 needs 0\.0 MiB in one piece.*--precision fp16"):
        make(in_buffers(), on=small)
    with pytest.raises(RuntimeFailure, match=r"the model needs .* activations, .* weights"):
        make(in_buffers(), on=replace(device, memory=100))
    with pytest.raises(
        InputError, match=r"would be an image of 2x5 texels, .* allows 16x4: use --memory auto or buffer"
    ):
        make(in_images(), on=replace(device, image_width=16, image_height=4))
    with pytest.raises(InputError, match="has no images of float32: use --memory buffer"):
        make(in_images(), on=replace(device, images=False))
    with pytest.raises(InputError, match="has no images of float16"):
        make(in_images("float16"), on=replace(device, half_images=False))
    with pytest.raises(RuntimeFailure, match="no OpenCL device 'Voodoo'"):
        make(in_buffers(), on=replace(device, name="Voodoo"))


def test_the_driver_runs_out_of_memory(make, device):
    if device.kind != "cpu":
        pytest.skip("may take the memory of others")
    program = in_buffers()
    program.buffers = [device.max_allocation + 4096]
    with pytest.raises(RuntimeFailure, match=r"out of memory \(allocating .*\); the model needs .* activations"):
        make(program, on=replace(device, max_allocation=1 << 60, memory=1 << 60))


def test_steps_that_do_not_fit_their_kernel(make):
    def broken(step: LaunchStep) -> DeviceModel:
        program = in_buffers()
        program.steps[0] = step
        return make(program)

    good = in_buffers().steps[0]
    assert isinstance(good, LaunchStep)
    for step, message in (
        (replace(good, kernel="none"), "has no kernel none"),
        (replace(good, source="none.cl"), "wants kernel scale of none.cl"),
        (replace(good, args=(0, 1)), "takes 3 arguments, its step gives 2"),
        (replace(good, local_size=(7,)), "do not divide into groups"),
        (replace(good, local_size=(1,) * 2), "do not divide into groups"),
        (replace(good, global_size=(1 << 20,), local_size=(1 << 20,)), "runs it with"),
    ):
        with pytest.raises(CompilerError, match=message):
            broken(step)


def test_weights_that_do_not_fit_their_slot(make):
    program = in_images()
    program.weights = {"w": WEIGHT.reshape(1, 2, 4).astype(np.float64)}
    with pytest.raises(CompilerError, match="weight 'w' is float64, its slot says float32"):
        make(program)
    program.weights = {"w": WEIGHT.reshape(2, 1, 4)}
    with pytest.raises(CompilerError, match=r"weight 'w' has \[2, 1, 4\] values for 2x1"):
        make(program)
    program = in_images()
    program.slots[1] = DeviceSlot("weight", "w", (8,), "int8", "int8", "texture", width=2, height=1)
    program.weights = {"w": np.zeros((1, 2, 4), np.int8)}
    with pytest.raises(CompilerError, match="no image holds int8"):
        make(program)


def test_a_lost_device_is_one_line_and_closes_the_model(make, queue_device, monkeypatch):
    model = make(in_buffers(), on=queue_device)

    def lost(*args: object) -> None:
        raise failure(queue_device, -36, "running scale", "1 MiB")

    monkeypatch.setattr(launch.LaunchPlan, "enqueue", lost)
    with pytest.raises(DeviceLost, match=r"was lost \(running scale: INVALID_COMMAND_QUEUE \(-36\)\); compile"):
        model(X)
    monkeypatch.undo()
    with pytest.raises(RuntimeFailure, match="closed"):
        model(X)
    np.testing.assert_allclose(make(in_buffers())(X), expected(X), rtol=1e-6)  # in a new context


@pytest.mark.parametrize(
    "status, kind, message",
    [
        (-4, RuntimeFailure, "out of memory"),
        (-5, DeviceLost, "out of resources or a kernel crashed"),
        (-9999, DeviceLost, "illegal memory access"),
        (-59, RuntimeFailure, r"failed \(running k: error \(-59\)\)"),
    ],
)
def test_failures(status, kind, message):
    error = failure(Device(name="GPU"), status, "running k", "1.0 MiB (…)")
    assert isinstance(error, kind)
    assert "\n" not in str(error)
    with pytest.raises(kind, match=message):
        raise error


def test_what_pyopencl_raises_becomes_one_line(device):
    cl = pyopencl()
    context = cl.Context([opencl_device(device)])
    with pytest.raises(RuntimeFailure, match=r"out of memory \(looking"), reporting(device, "looking", "nothing"):
        cl.Buffer(context, cl.mem_flags.READ_WRITE, 0)
    with pytest.raises(RuntimeFailure, match="out of memory"), reporting(device, "looking", "nothing"):
        raise MemoryError
