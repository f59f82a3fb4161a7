"""Redundant copies: a tensor whose readers want different layouts is stored twice, by the kernel that computes it.

A layout serves two of the axes that readers reduce along. Where a third one asks often enough, its readers get a copy
in a layout of their own (step 4 of the paper's layout selection). A copy is one more store of its producer, with the
values still in registers, and no pass over memory of its own::

    kernel t[8, 64, 96]                      ->  kernel t[8, 64, 96], t.copy0 (another order of the same values)
    kernel y reads t along its first axis    ->  kernel y reads t.copy0

It is made where the predicted cost falls: what the readers save, less the second store.

In: a module and where its tensors lie. Out: the storages with those of the copies; the module's kernels write and read
them, and `module.layouts` and `module.assignment` tell of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from smartmem.device import Device, DeviceOptions
from smartmem.kernel.expr import Iota, Load, load, rebuild
from smartmem.kernel.stage import Kernel, looked_up
from smartmem.layout.memory import DeviceStorage
from smartmem.passes.access_cost import access_cost
from smartmem.passes.module import Module
from smartmem.passes.place import no_texture, options_of
from smartmem.passes.select_layout import Requests, requests, row_major
from smartmem.passes.tell_layouts import entry
from smartmem.passes.walks import Group, groups_of
from smartmem.schedule.gpu.choose import stores_texels

PAYS = 0.02  # share of what its kernels cost that a copy must save: predictions are no better than that
Storages = Mapping[str, DeviceStorage]


def copy_layouts(
    module: Module, storages: Storages, device: Device, options: DeviceOptions
) -> dict[str, DeviceStorage]:
    """Makes the copies that pay."""
    result = dict(storages)
    whole = row_major(module) | module.sharing()
    made, gain = 0, 0.0
    for name, wish in requests(module).items():
        if name in whole or len(wish.axes(module.shape(name))) < 2:
            continue
        while (found := _best(name, wish, module, result, device, options)) is not None:
            _make(found, module, result)
            made, gain = made + 1, gain + found.gain
    module.assignment |= {"copies": {"tensors": made, "gain": gain}}  # beside the costs, which are without copies
    return result


@dataclass(frozen=True)
class Copy:
    """A copy that pays: of tensor `of`, lying in `storage`, which `writer` stores too and `readers` read.

    `before` and `after` are what the readers cost, `stored` what the second store adds.
    """

    of: str
    storage: DeviceStorage
    writer: Kernel
    readers: list[Kernel]
    before: float
    after: float
    stored: float

    @property
    def gain(self) -> float:
        return self.before - self.after - self.stored

    def reason(self) -> str:
        names = ", ".join(kernel.tensor for kernel in self.readers[:3])
        more = f" and {len(self.readers) - 3} more" if len(self.readers) > 3 else ""
        return (
            f"copy of {self.of} for {names}{more}, which cost {self.before:.4g} without it, "
            f"{self.after:.4g} with it and {self.stored:.4g} for the second store"
        )


def _best(
    name: str, wish: Requests, module: Module, storages: Storages, device: Device, options: DeviceOptions
) -> Copy | None:
    """The copy of a tensor that saves most, None if none pays."""
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    writers = [k for k in kernels if k.tensor == name]
    readers = [k for k in kernels if name in k.inputs()]
    gathers = any(name in looked_up(stage.body) for kernel in readers for stage in kernel.stages)
    if len(writers) != 1 or len(readers) < 2 or gathers:
        return None
    writer, copy = writers[0], f"{name}.copy{len(writers[0].copies)}"
    base = replace(storages[name], buffer=copy, image=None)
    textures = not no_texture(name, module, storages, device, options)
    possible = [o for o in options_of(base, wish, device, textures) if o.image or options.memory != "texture"]
    groups = {kernel.tensor: groups_of(kernel, module.constants, device) for kernel in (writer, *readers)}
    wider = replace(writer, copies=(*writer.copies, copy))
    stores = groups_of(wider, module.constants, device)
    now = {kernel.tensor: _cost(groups[kernel.tensor], storages, device) for kernel in (writer, *readers)}
    best: Copy | None = None
    for option in possible:
        there = {kernel.tensor: _cost(groups[kernel.tensor], {**storages, name: option}, device) for kernel in readers}
        moved = [kernel for kernel in readers if there[kernel.tensor] < now[kernel.tensor]]
        with_copy = {**storages, copy: option}
        found = Copy(
            name, option, wider, moved, sum(now[k.tensor] for k in moved), sum(there[k.tensor] for k in moved),
            _cost(stores, with_copy, device) - now[writer.tensor],
        )  # fmt: skip
        if not moved or len(moved) == len(readers) or found.gain <= PAYS * sum(now.values()):
            continue
        if (best is None or found.gain > best.gain) and stores_texels(wider, with_copy):
            best = found
    return best


def _cost(groups: list[Group], storages: Storages, device: Device) -> float:
    """What a kernel's accesses cost, each group walked in the best way."""
    return sum(
        min(sum(access_cost(a, g, walk, storages[a.tensor], device.costs) for a in g.accesses) for walk in g.walks)
        for g in groups
    )


def _make(found: Copy, module: Module, storages: dict[str, DeviceStorage]) -> None:
    copy = found.storage.buffer
    storages[copy] = found.storage
    module.types[copy] = module.types[found.of]
    readers = {kernel.tensor for kernel in found.readers}
    for position, kernel in enumerate(module.kernels):
        if not isinstance(kernel, Kernel):
            continue
        if kernel.tensor == found.of:
            module.kernels[position] = found.writer
        elif kernel.tensor in readers:
            module.kernels[position] = _reading(kernel, found.of, copy)
    told = entry(found.storage, found.reason(), None)
    module.layouts.append(told)


def _reading(kernel: Kernel, name: str, copy: str) -> Kernel:
    """The kernel with all its loads of a tensor from the copy."""

    def leaf(node: Load | Iota) -> Load | Iota:
        if isinstance(node, Load) and node.tensor == name:
            return load(copy, node.index, node.dtype)  # type: ignore[return-value]
        return node

    return replace(kernel, stages=[replace(s, body=rebuild(s.body, leaf)) for s in kernel.stages])
