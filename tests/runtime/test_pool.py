"""The thread pool of `pool.c`, driven through ctypes with small C kernels."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

NATIVE = Path(__file__).parents[2] / "src" / "smartmem" / "runtime" / "native"
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-Wall", "-Wextra", "-Werror"]

KERNELS = """
#include "pool.h"

/* out[i] += in[i] + 1, and marks the thread's scratch. */
void add_one(void *const *args, long begin, long end, void *scratch) {
    const int *in = args[0];
    int *out = args[1];
    for (long i = begin; i < end; i++) out[i] += in[i] + 1;
    if (scratch) ((long *)scratch)[1] += end - begin;
}

/* Counts the calls that find nothing in scratch, and leaves something there. */
void count_first(void *const *args, long begin, long end, void *scratch) {
    long *held = scratch;
    (void)args, (void)end;
    if (held[0] == -1) held[1]++;
    held[0] = begin;
    held[2]++;
}

/* out[i] = in[n - 1 - i]: needs every task of the step before. */
void reverse(void *const *args, long begin, long end, void *scratch) {
    const int *in = args[0], n = *(const int *)args[2];
    int *out = args[1];
    (void)scratch;
    for (long i = begin; i < end; i++) out[i] = in[n - 1 - i];
}

/* Uneven tasks: task i takes time in proportion to i. */
void uneven(void *const *args, long begin, long end, void *scratch) {
    int *out = args[0];
    (void)scratch;
    for (long i = begin; i < end; i++) {
        volatile int spin = 0;
        for (long k = 0; k < i * 20; k++) spin = spin + 1;
        out[i] += 1;
    }
}

void nothing(void *const *args, long begin, long end, void *scratch) {
    (void)args, (void)begin, (void)end, (void)scratch;
}
"""


class Step(ctypes.Structure):
    """`sm_step`."""

    _fields_ = (
        ("fn", ctypes.c_void_p),
        ("tasks", ctypes.c_long),
        ("grain", ctypes.c_long),
        ("arg_ids", ctypes.POINTER(ctypes.c_int)),
        ("nargs", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The pool and the kernels above in one shared library."""
    folder = tmp_path_factory.mktemp("pool")
    (folder / "kernels.c").write_text(KERNELS)
    compiler = os.environ.get("SMARTMEM_CC", f"{sys.executable} -m ziglang cc").split()
    output = folder / "pool.so"
    sources = [str(NATIVE / "pool.c"), "kernels.c"]
    subprocess.run(
        [*compiler, *FLAGS, f"-I{NATIVE}", "-shared", *sources, "-o", str(output), "-lpthread"], cwd=folder, check=True
    )
    library = ctypes.CDLL(str(output))
    library.sm_pool_create.restype = ctypes.c_void_p
    library.sm_pool_destroy.argtypes = [ctypes.c_void_p]
    library.sm_pool_destroy.restype = None
    pointer = ctypes.c_void_p
    library.sm_pool_run.argtypes = [pointer, pointer, ctypes.c_int, pointer, pointer]
    library.sm_pool_run_timed.argtypes = [pointer, pointer, ctypes.c_int, pointer, pointer] + [pointer] * 2
    return library


def make_step(library: ctypes.CDLL, kernel: str, tasks: int, grain: int, args: list[int]) -> Step:
    address = ctypes.cast(getattr(library, kernel), ctypes.c_void_p).value
    return Step(address, tasks, grain, (ctypes.c_int * len(args))(*args), len(args))


class Chain:
    """Steps over `n` numbers: add_one from x to y (y from zero), reverse y to x, `rounds` times."""

    def __init__(self, library: ctypes.CDLL, n: int, grain: int, rounds: int) -> None:
        self.library = library
        self.x = np.zeros(n, np.int32)
        self.y = np.zeros(n, np.int32)
        self.count = np.array([n], np.int32)
        steps = []
        for _ in range(rounds):
            steps.append(make_step(library, "add_one", n, grain, [0, 1]))
            steps.append(make_step(library, "reverse", n, grain, [1, 0, 2]))
        self.steps = (Step * len(steps))(*steps)
        self.pointers = (ctypes.c_void_p * 3)(*(a.ctypes.data for a in (self.x, self.y, self.count)))

    def expected(self, x: np.ndarray, rounds: int) -> np.ndarray:
        y = np.zeros_like(x)
        for _ in range(rounds):
            y = y + x + 1
            x = y[::-1]
        return x

    def run(self, pool: int, scratch: ctypes.Array[ctypes.c_void_p] | None = None) -> int:
        return int(self.library.sm_pool_run(pool, self.steps, len(self.steps), self.pointers, scratch))


@pytest.mark.parametrize("threads", [1, 2, 4, 8])
@pytest.mark.parametrize(("n", "grain"), [(1, 1), (5, 1), (37, 4), (64, 64), (1000, 7), (1000, 1500)])
def test_steps_run_in_order_and_every_task_once(library: ctypes.CDLL, threads: int, n: int, grain: int) -> None:
    pool = library.sm_pool_create(threads)
    chain = Chain(library, n, grain, rounds=4)
    start = np.random.default_rng(n).integers(0, 9, n).astype(np.int32)
    expected = chain.expected(start, 4)
    for _ in range(200):
        chain.x[:] = start
        chain.y[:] = 0
        assert chain.run(pool) == 0
        assert np.array_equal(chain.x, expected)
    library.sm_pool_destroy(pool)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_each_thread_has_its_scratch(library: ctypes.CDLL, threads: int) -> None:
    pool = library.sm_pool_create(threads)
    chain = Chain(library, 1000, 3, rounds=1)
    counts = np.zeros((threads, 64), np.int64)
    scratch = (ctypes.c_void_p * threads)(*(row.ctypes.data for row in counts))
    for _ in range(50):
        assert chain.run(pool, scratch) == 0
    assert counts[:, 1].sum() == 50 * 1000
    library.sm_pool_destroy(pool)


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("tasks", [1, 40])
def test_scratch_holds_nothing_when_a_step_starts(library: ctypes.CDLL, threads: int, tasks: int) -> None:
    """Each thread that takes part in a step finds -1 in its first call of it, and what it left in the others."""
    pool = library.sm_pool_create(threads)
    steps = (Step * 3)(*(make_step(library, "count_first", tasks, 1, []) for _ in range(3)))
    counts = np.zeros((threads, 64), np.int64)
    scratch = (ctypes.c_void_p * threads)(*(row.ctypes.data for row in counts))
    for run in range(1, 20):
        assert library.sm_pool_run(pool, steps, 3, None, scratch) == 0
        first, calls = counts[:, 1], counts[:, 2]
        assert calls.sum() == 3 * tasks * run
        assert (first <= 3 * run).all()
        assert first.sum() >= 3 * run
        assert ((calls == 0) == (first == 0)).all()
    library.sm_pool_destroy(pool)


def test_uneven_tasks(library: ctypes.CDLL) -> None:
    out = np.zeros(2000, np.int32)
    pointers = (ctypes.c_void_p * 1)(out.ctypes.data)
    steps = (Step * 3)(*(make_step(library, "uneven", out.size, grain, [0]) for grain in (1, 10, 333)))
    for threads in (2, 3, 8):
        pool = library.sm_pool_create(threads)
        out[:] = 0
        assert library.sm_pool_run(pool, steps, 3, pointers, None) == 0
        assert (out == 3).all()
        library.sm_pool_destroy(pool)


def test_pools_of_several_threads_at_once(library: ctypes.CDLL) -> None:
    failures: list[str] = []

    def work(seed: int) -> None:
        pool = library.sm_pool_create(1 + seed % 4)
        chain = Chain(library, 300 + seed, 5, rounds=3)
        start = np.full(chain.x.size, seed, np.int32)
        expected = chain.expected(start, 3)
        for _ in range(300):
            chain.x[:] = start
            chain.y[:] = 0
            chain.run(pool)
            if not np.array_equal(chain.x, expected):
                failures.append(f"pool {seed}")
        library.sm_pool_destroy(pool)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_pool_shared_by_several_threads(library: ctypes.CDLL) -> None:
    pool = library.sm_pool_create(3)
    chains = [Chain(library, 200, 9, rounds=2) for _ in range(4)]
    threads = [threading.Thread(target=lambda c=c: [c.run(pool) for _ in range(200)]) for c in chains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for chain in chains[1:]:
        assert np.array_equal(chain.x, chains[0].x)
    library.sm_pool_destroy(pool)


def test_bad_steps_are_refused(library: ctypes.CDLL) -> None:
    assert not library.sm_pool_create(0)
    pool = library.sm_pool_create(2)
    for grain, args in ((0, 0), (1, 65)):
        step = make_step(library, "nothing", 10, grain, [0] * args)
        assert library.sm_pool_run(pool, ctypes.byref(step), 1, (ctypes.c_void_p * 1)(), None) == -1
    assert library.sm_pool_run(pool, None, 0, None, None) == 0
    library.sm_pool_destroy(pool)


def test_idle_workers_sleep(library: ctypes.CDLL) -> None:
    pool = library.sm_pool_create(4)
    chain = Chain(library, 100, 1, rounds=2)
    chain.run(pool)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
    library.sm_pool_destroy(pool)


@pytest.mark.skipif(sys.platform != "linux", reason="threads move between processors on Linux only")
def test_beside_a_busy_process(library: ctypes.CDLL) -> None:
    """Workers that give way do all their tasks, and may run on every processor afterwards."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            pool = library.sm_pool_create(2)
            out = np.zeros(2000, np.int32)
            pointers = (ctypes.c_void_p * 1)(out.ctypes.data)
            steps = (Step * 20)(*(make_step(library, "uneven", out.size, 50, [0]) for _ in range(20)))
            runs, end = 0, time.monotonic() + 1
            while time.monotonic() < end:
                assert library.sm_pool_run(pool, steps, 20, pointers, None) == 0
                runs += 1
            assert (out == 20 * runs).all()
            time.sleep(0.02)  # until the worker, too, has nothing more to do
            masks = {
                os.sched_getaffinity(int(thread)) == os.sched_getaffinity(0) for thread in os.listdir("/proc/self/task")
            }
            assert masks == {True}
            library.sm_pool_destroy(pool)
        finally:
            busy.kill()


def test_time_of_steps(library: ctypes.CDLL) -> None:
    out = np.zeros(4000, np.int32)
    pointers = (ctypes.c_void_p * 1)(out.ctypes.data)
    steps = (Step * 2)(make_step(library, "nothing", 4, 1, []), make_step(library, "uneven", out.size, 50, [0]))
    seconds = (ctypes.c_double * 2)()
    pool = library.sm_pool_create(2)
    for _ in range(3):
        spans = np.full((2, 2, 2), -1.0)
        assert library.sm_pool_run_timed(pool, steps, 2, pointers, None, seconds, spans.ctypes.data) == 0
    assert 0 < seconds[0] < seconds[1] < 10
    for step, total in enumerate(np.cumsum(seconds)):  # a thread that took part did so within the step
        worked = spans[step][spans[step][:, 0] >= 0]
        assert len(worked) >= 1
        assert (worked[:, 0] <= worked[:, 1]).all()
        assert worked.min() >= total - seconds[step]
        assert worked.max() <= total
    assert library.sm_pool_run_timed(pool, steps, 2, pointers, None, None, None) == 0
    library.sm_pool_destroy(pool)


def test_overhead_of_a_step(library: ctypes.CDLL) -> None:
    """Measured with 2 threads on 2 free cores: see the report of the test; the bound allows for a busy machine."""
    steps = (Step * 70)(*(make_step(library, "nothing", 16, 1, []) for _ in range(70)))
    pool = library.sm_pool_create(2)
    best = 1.0
    for _ in range(200):
        start = time.perf_counter()
        library.sm_pool_run(pool, steps, 70, (ctypes.c_void_p * 1)(), None)
        best = min(best, time.perf_counter() - start)
    library.sm_pool_destroy(pool)
    print(f"{best / 70 * 1e6:.2f} microseconds a step")
    assert best / 70 < 100e-6
