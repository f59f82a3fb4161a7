"""What the steps of a graph wait for."""

from itertools import pairwise

import numpy as np
import pytest

from smartmem.runtime.cuda.driver import (
    ArrayDescriptor,
    Copy2D,
    CudaError,
    Driver,
    KernelNode,
    ResourceDescriptor,
    TextureDescriptor,
)
from smartmem.runtime.cuda.graph import dependencies
from smartmem.runtime.opencl.program import DeviceProgram, DeviceSlot, LaunchStep
from support.device_programs import chain


def program(steps: list[tuple[tuple[int, ...], int]], places: dict[int, int], slots: int) -> tuple:
    """Steps (reads, written); `places` are the pooled buffers of activations, the other slots are weights."""
    made = [
        DeviceSlot("activation", f"t{at}", (4,), "float32", "float32", elements=4, place=places[at])
        if at in places
        else DeviceSlot("weight", f"w{at}", (4,), "float32", "float32", elements=4)
        for at in range(slots)
    ]
    launches = [
        LaunchStep("k", "k.cl", (1,), (1,), (written, *reads), (written,), f"step {number}")
        for number, (reads, written) in enumerate(steps)
    ]
    return launches, DeviceProgram(
        "p", "full", "any", "", [], [], made, list(launches), [16] * (max(places.values()) + 1), [], {}, {}
    )


def test_branches_wait_for_what_they_read():
    # t1 = f(t0), t2 = g(t0), t3 = t1 + t2; t4 is a weight
    steps = [((4,), 0), ((0, 4), 1), ((0, 4), 2), ((1, 2), 3)]
    assert dependencies(*program(steps, {0: 0, 1: 1, 2: 2, 3: 3}, 5)) == [[], [0], [0], [1, 2]]


def test_a_buffer_that_is_used_again_waits_for_its_readers():
    # t2 lies where t0 lay, which steps 1 and 2 read
    steps = [((4,), 0), ((0,), 1), ((0,), 3), ((4,), 2)]
    assert dependencies(*program(steps, {0: 0, 1: 1, 2: 0, 3: 3}, 5)) == [[], [0], [0], [0, 1, 2]]


def test_parts_of_one_buffer_keep_their_order():
    steps = [((4,), 0), ((4,), 0), ((0,), 1)]
    assert dependencies(*program(steps, {0: 0, 1: 1}, 5)) == [[], [0], [1]]


def test_a_chain_is_a_chain():
    made = chain(20)
    found = dependencies([step for step in made.steps if isinstance(step, LaunchStep)], made)
    assert all(first in waits for first, waits in pairwise(range(20)) for waits in [found[waits]])


@pytest.mark.parametrize("seed", range(20))
def test_any_order_that_keeps_them_gives_the_same_values(seed):
    """Runs random programs in a random order that the dependencies allow, over buffers that are used again."""
    rng = np.random.default_rng(seed)
    count, pools = 30, 6
    places = {at: int(rng.integers(pools)) for at in range(count)}
    holds: dict[int, int] = {}  # what lies in a buffer, in program order
    steps = []
    for at in range(count):
        alive = [slot for place, slot in holds.items() if place != places[at]]
        reads = tuple(int(r) for r in rng.permutation(alive)[: rng.integers(3)])
        steps.append((reads, at))
        holds[places[at]] = at
    launches, made = program(steps, places, count)
    waits = dependencies(launches, made)

    def run(order: list[int]) -> list[float]:
        memory = [0.0] * pools
        results = [0.0] * count
        for number in order:
            reads, written = steps[number]
            memory[places[written]] = results[number] = number + sum(np.sqrt(memory[places[r]]) for r in reads)
        return results

    order: list[int] = []
    while len(order) < count:
        ready = [n for n in range(count) if n not in order and set(waits[n]) <= set(order)]
        order.append(int(rng.choice(ready)))
    assert run(order) == run(list(range(count)))


def test_structures_are_as_large_as_the_driver_has_them():
    import ctypes

    kinds = (KernelNode, ArrayDescriptor, ResourceDescriptor, Copy2D, TextureDescriptor)
    assert [ctypes.sizeof(kind) for kind in kinds] == [72, 40, 144, 128, 104]


@pytest.mark.skipif(Driver.open() is None, reason="no CUDA driver here")
def test_the_driver_names_its_errors():
    driver = Driver.open()
    with pytest.raises(CudaError, match=r"cuDeviceGetByPCIBusId.*CUDA_ERROR_INVALID"):
        driver.made("cuDeviceGetByPCIBusId", b"ffff:ff:ff.0")
