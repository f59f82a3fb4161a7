"""Calling a compiled model: arguments, results, host steps, threads, forks. Programs are written by hand."""

from __future__ import annotations

import gc
import os
import threading
import time

import numpy as np
import pytest
from tests.support.programs import expected, tiny, with_host

from smartmem.errors import InputError, RuntimeFailure
from smartmem.runtime.model import Model
from smartmem.runtime.plan import Segment, plan_source, segments


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_right(make, x, threads):
    model = make(tiny(), threads)
    np.testing.assert_allclose(model(x), expected(x).sum(1), rtol=1e-5)


def test_by_name_by_position_by_dlpack(make, x):
    class Tensor:
        def __dlpack__(self, **options):
            return x.__dlpack__(**options)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    model = make(tiny())
    want = model(x)
    for got in (model(x=x), model(Tensor()), model.run({"x": x})[0]):
        np.testing.assert_array_equal(got, want)


def test_any_memory_order_is_taken(make, x):
    model = make(tiny())
    want = model(x)
    wide = np.zeros((10, 16), np.float32)
    wide[::2, ::2] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(5, 8)
    for other in (np.asfortranarray(x), wide[::2, ::2], x.astype(">f4"), unaligned, x[::-1][::-1]):
        np.testing.assert_array_equal(model(other), want)


def test_outputs_belong_to_the_caller(make, x):
    model = make(tiny())
    first = model(x)
    copy = first.copy()
    second = model(x * 0)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, copy)
    first[:] = 0  # writable


@pytest.mark.parametrize(
    "args, named, message",
    [
        ((), {}, "input 'x' is missing"),
        ((1, 2), {}, "2 inputs given, but the model has 1: 'x'"),
        ((), {"y": 1}, "no input is called 'y'; the model's inputs are 'x'"),
        ((np.zeros((5, 8), "f4"),), {"x": 1}, "'x' is given twice"),
        ((np.zeros((5, 8)),), {}, "dtype float64, expected x: float32[5, 8]; convert it with x.astype('float32')"),
        ((np.zeros(40, "f4"),), {}, "rank 1 (shape [40]), expected x: float32[5, 8]"),
        ((np.zeros((5, 9), "f4"),), {}, "shape [5, 9], expected x: float32[5, 8]"),
        (([1.0],), {}, "is a list: give a numpy array"),
    ],
)
def test_bad_arguments(make, args, named, message):
    model = make(tiny())
    with pytest.raises(InputError) as error:
        model(*args, **named)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_threads(link):
    with pytest.raises(InputError, match="threads is 0"):
        Model(tiny(), link(tiny()), 0, features=[])


def test_host_steps_and_data_dependent_outputs(make, x):
    model = make(with_host())
    y, s, at = model(x)
    np.testing.assert_allclose(y, expected(x), rtol=1e-5)
    np.testing.assert_allclose(s, -expected(x).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(at, np.stack(np.nonzero(y)))
    assert model.output_names == ["y", "s", "at"]


def test_host_result_of_wrong_shape(make, x):
    program = with_host()
    program.slots[4] = type(program.slots[4])("arena", "n", 192, (8, 5))
    with pytest.raises(RuntimeFailure, match=r"Neg 'neg' gave float32\[5, 8\] for 'n', expected float32\[8, 5\]"):
        make(program)(x)


def test_run_timed(make, x):
    outputs, times = make(with_host()).run_timed({"x": x})
    np.testing.assert_allclose(outputs[0], expected(x), rtol=1e-5)
    assert [time.symbol for time in times] == ["scale_0", "Neg", "NonZero", "sum_0"]
    assert [time.host for time in times] == [False, True, True, False]
    assert all(time.seconds >= 0 for time in times)


def test_threads_share_a_model(make):
    model = make(tiny(64))
    inputs = [np.random.default_rng(i).standard_normal((64, 8)).astype(np.float32) for i in range(8)]
    wrong = []

    def work(x: np.ndarray) -> None:
        for _ in range(50):
            if not np.allclose(model(x), expected(x).sum(1), rtol=1e-4, atol=1e-4):
                wrong.append(x)

    workers = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(make, x):
    model = make(tiny())
    want = model(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(model(x), want) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(model(x), want)


def test_closing(link, x):
    with Model(tiny(), link(tiny()), 2, features=[]) as model:
        model(x)
    model.close()
    with pytest.raises(RuntimeFailure, match="closed"):
        model(x)


def test_collected_models_end_their_threads(link, x):
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else pytest.skip("no /proc")
    model = Model(tiny(), link(tiny()), 4, features=[])
    model(x)
    assert len(os.listdir("/proc/self/task")) == before + 3
    del model
    gc.collect()
    deadline = time.monotonic() + 10  # a joined thread may stay listed for a moment
    while len(os.listdir("/proc/self/task")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) == before


def test_plan():
    program = with_host()
    neg, nonzero = program.steps[1:3]
    assert segments(program) == [Segment(0, 1), Segment(host=neg), Segment(host=nonzero), Segment(1, 1)]
    assert segments(tiny()) == [Segment(0, 2)]
    text = plan_source(tiny())
    assert "{.fn = scale_0, .tasks = 5, .grain = 2, .arg_ids = a0, .nargs = 3}, /* Mul __ 1 */" in text
    assert "const long sm_step_count = 2;" in text


def test_repr(make):
    assert "tiny" in repr(make(tiny()))
    assert "x: float32[5, 8] -> s: float32[5]" in repr(make(tiny()))
