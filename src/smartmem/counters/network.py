"""The counters of a network: each kernel of each level.

In: a model file, a `CounterDevice`, options. Out: a `Network` per level. Kernels with the same code are counted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from smartmem.compiler import Progress, device_module
from smartmem.counters.count import Counts, count, total
from smartmem.counters.profiles import CounterDevice
from smartmem.device import DeviceOptions
from smartmem.kernel.stage import Kernel
from smartmem.passes.assemble_device import schedule_all
from smartmem.schedule.gpu.code import DeviceCode


@dataclass(frozen=True)
class KernelCounters:
    """One kernel: the tensor it computes, its schedule, whether its counts are sampled; `told`: it has any."""

    tensor: str
    family: str
    counts: Counts
    sampled: bool
    told: bool


@dataclass(frozen=True)
class Network:
    """All kernels of a network at one level, and how many steps run on the host and are not counted."""

    level: str
    kernels: list[KernelCounters]
    host_steps: int

    @property
    def counts(self) -> Counts:
        return total(kernel.counts for kernel in self.kernels)

    @property
    def sampled(self) -> int:
        return sum(kernel.sampled for kernel in self.kernels)


def count_network(
    model: Path,
    level: str,
    device: CounterDevice,
    options: DeviceOptions,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Progress | None = None,
) -> Network:
    """Compiles a model for a device that need not be there, and counts what its kernels would do."""
    module, storages, target, _ = device_module(model, shapes, level, device.device, options, progress)
    codes = schedule_all(module, storages, target, progress)
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    known: dict[object, tuple[Counts, bool]] = {}
    found = []
    for number, (kernel, code) in enumerate(zip(kernels, codes, strict=True)):
        if progress:
            progress("count", number, len(codes))
        key = _key(code)
        if key not in known:
            known[key] = count(code, device)
        found.append(KernelCounters(kernel.tensor, code.family, *known[key], bool(code.sweeps)))
    return Network(level, found, len(module.kernels) - len(kernels))


def _key(code: DeviceCode) -> object:
    """Equal for kernels that do the same to memory: the same code, on memory objects of the same sizes."""
    sizes = {(a.memory.slot, a.memory.elements, a.memory.width) for sweep in code.sweeps for a in sweep.accesses}
    places = {slot: number for number, slot in enumerate(code.args)}
    return code.text, code.global_size, frozenset((places[slot], *rest) for slot, *rest in sizes)
