"""What schedules tell of their accesses is compared with the definitions of the kernels."""

import numpy as np
import pytest
from tests.support.convolutions import convolution
from tests.support.counter_network import compiled

from smartmem.counters import count as counting
from smartmem.counters.count import count
from smartmem.counters.profiles import counter_device
from smartmem.counters.replay import SLOT_BITS, Geometry, replay
from smartmem.index.map import Guard, evaluate
from smartmem.kernel.expr import Choose, Load, operands
from smartmem.kernel.stage import Kernel

LINE = 64


def _lines(storage, coords, axes, held) -> set[int]:
    place = [np.broadcast_to(evaluate(part, axes), held.shape)[held] for part in storage.access(coords)]
    if storage.image is None:
        return set(np.unique(place[0] * storage.stored.itemsize // LINE).tolist())
    texels = LINE // 4 // storage.stored.itemsize
    high, wide = {4: (2, 2), 8: (2, 4)}[texels]
    return set(np.unique(place[0] // high * -(-storage.image.width // wide) + place[1] // wide).tolist())


def _defined(kernel: Kernel, storages) -> dict[str, set[int]]:
    """The lines that the definition reads and writes, by slot."""
    found: dict[str, set[int]] = {}
    for stage in kernel.stages:
        axes = np.ogrid[tuple(slice(n) for n in stage.domain)]

        def visit(node, guards: tuple[Guard, ...], axes=axes, domain=stage.domain) -> None:
            if isinstance(node, Load):
                if node.tensor not in kernel.local():
                    held = np.ones(domain, bool)
                    for guard in guards:
                        value = evaluate(guard.lin, axes)
                        held = held & (value >= 0) & (value < guard.ext)
                    storage = storages[node.tensor]
                    found.setdefault(storage.buffer, set()).update(_lines(storage, node.index, axes, held))
            elif isinstance(node, Choose):
                visit(node.then, (*guards, *node.guards))
                visit(node.otherwise, guards)
            else:
                for operand in operands(node):
                    visit(operand, guards)

        visit(stage.body, ())
    axes = np.ogrid[tuple(slice(n) for n in kernel.output.shape)]
    storage = storages[kernel.tensor]
    written = _lines(storage, kernel.store_coords(), axes, np.ones(kernel.output.shape, bool))
    found.setdefault(storage.buffer, set()).update(written)
    return found


@pytest.mark.parametrize("memory", ["texture", "buffer"])
@pytest.mark.parametrize("level", ["naive", "fuse", "eliminate", "full"])
@pytest.mark.parametrize("profile", ["adreno-740", "mali-g57"])
def test_kernels_touch_what_their_definitions_touch(level, memory, profile):
    device = counter_device(profile)
    _compare(*compiled(level, memory, device), device)


@pytest.mark.parametrize("memory", ["texture", "buffer"])
@pytest.mark.parametrize("size", [12, 13])
def test_transforms_touch_what_their_definitions_touch(memory, size, winograd_pays, monkeypatch):
    monkeypatch.setattr(counting, "BUDGET", 1 << 40)
    device = counter_device("adreno-740")
    kernels, storages = compiled("full", memory, device, model=convolution(size, channels=16))
    assert [kernel.tensor for kernel, _ in kernels] == ["c.sum.tiles", "c.sum.products", "y"]
    _compare(kernels, storages, device)


def _compare(kernels, storages, device) -> None:
    for kernel, code in kernels:
        groups = int(np.prod(code.global_size)) // int(np.prod(code.local_size))
        slots = {slot: number for number, slot in enumerate(code.args)}
        traffic = replay(code.sweeps, np.arange(groups), slots, Geometry(LINE, device.device.sub_group))
        assert all(sweep.items <= np.prod(code.local_size) for sweep in code.sweeps)
        touched = {}
        for slot, number in slots.items():
            mine = traffic.lines[traffic.lines >> SLOT_BITS == number]
            if len(mine):
                touched[slot] = set((mine - (number << SLOT_BITS)).tolist())
        wanted = _defined(kernel, storages)
        for slot, weight in code.weights.items():
            touched_all = set(range(-(-weight.nbytes // LINE)))
            assert touched.pop(slot) == touched_all, (kernel.tensor, slot)
        packed = set(wanted) - set(touched)  # constants that the packed weights hold
        assert {s: wanted[s] for s in wanted if s not in packed} == touched, (kernel.tensor, code.family)
        counts, sampled = count(code, device)
        assert not sampled
        assert counts.elements == np.prod(kernel.output.shape), (kernel.tensor, code.family)


def test_all_families_are_here():
    families = set()
    for level in ("naive", "full"):
        families |= {code.family for _, code in compiled(level, "auto", counter_device("adreno-740"))[0]}
    assert {"contraction", "attention", "row reduction", "window", "pointwise"} <= families


def test_half_storage_halves_the_bytes():
    device = counter_device("mali-g57")
    whole, half = (compiled("full", "texture", device, precision)[0] for precision in ("fp32", "fp16"))
    inside = [k.tensor for k, _ in whole[1:-2]]
    for (kernel, one), (_, other) in zip(whole, half, strict=True):
        if kernel.tensor in inside:
            assert count(other, device)[0].stored == count(one, device)[0].stored / 2
