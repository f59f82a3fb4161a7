"""Placement: the layout and the memory of every tensor on a device.

In: a module with the layouts of `select_layout`. Out: a `DeviceStorage` per tensor, in a linear buffer or a 2.5D
texture; `module.layouts` and `module.assignment` say why, for `explain`.

Each activation has options: orders of its digits that serve the reduction dimensions which its consumers ask for (one
in the lane, a second one along the columns), each in a buffer and, where that is possible, in a texture. `walks` and
`access_cost` say what they cost, `assign_layouts` chooses. A texture holds floats whose lane axis is divisible by 4;
every kernel that writes it must be able to store whole texels, and no kernel may read and write it at once. Graph
inputs and outputs, constants and operands of host steps stay in row-major buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from smartmem.device import Device, DeviceOptions
from smartmem.index.lin import Digit
from smartmem.kernel.expr import DType
from smartmem.kernel.stage import Kernel
from smartmem.layout.memory import LANES, SMALL_CONSTANT, DeviceStorage, Image, cut_image, order_digits
from smartmem.layout.storage import Storage, dense
from smartmem.passes.access_cost import access_cost
from smartmem.passes.assign_layouts import Assignment, Factor, Problem, exact, greedy
from smartmem.passes.module import Module
from smartmem.passes.pad_lanes import pad_lanes
from smartmem.passes.select_layout import Requests, requests, row_major, select_layout
from smartmem.passes.tell_layouts import entry
from smartmem.passes.walks import groups_of
from smartmem.schedule.backend import Backend
from smartmem.schedule.gpu.choose import stores_texels

NO_TEXELS = "a kernel that writes it cannot store whole texels"
CHOICES = 3  # requested axes, heaviest first, that are tried in the lane


@dataclass
class Variable:
    """A buffer whose place is to be chosen.

    Attributes:
        inside: the tensors that lie in it, itself first.
        options: storages of the buffer.
        no_texture: why it cannot be a texture, "" if it can.
    """

    inside: list[str]
    options: list[DeviceStorage]
    no_texture: str = ""


def place_padded(
    module: Module, device: Device, options: DeviceOptions, choose: bool, backend: Backend
) -> tuple[Module, dict[str, DeviceStorage]]:
    """The storages of a module, or of the same one with lanes of zeros where these make textures possible that pay."""
    storages = place(module, device, options, choose)
    half = options.precision == "fp16"
    if not choose or options.memory == "buffer" or not device.has_images(half):
        return module, storages
    padded = pad_lanes(module, backend)
    if padded is None:
        return module, storages
    select_layout(padded, choose)
    others = place(padded, device, options, choose)
    pays = padded.assignment["cost"] < module.assignment["cost"]
    return (padded, others) if pays or options.memory == "texture" else (module, storages)


def place(module: Module, device: Device, options: DeviceOptions, choose: bool) -> dict[str, DeviceStorage]:
    """Storages of all tensors on the device; with `choose` False orders of digits stay as they are."""
    fixed = row_major(module)
    half = options.precision == "fp16"
    storages = {
        name: _buffer(storage, np.dtype(np.float16) if half and _halves(name, module, fixed) else storage.dtype)
        for name, storage in module.storages.items()
    }
    wishes = requests(module) if choose else {}
    variables: dict[str, Variable] = {}
    for name in _activations(module, storages, fixed):
        variables[name] = _variable(name, module, storages, wishes.get(name), device, options)
    problem = _possible(_problem(module, storages, variables, device), variables, options)
    chosen, summary = _assign(problem, variables, options)
    final = _verified(module, storages, variables, chosen)
    module.assignment = summary
    module.layouts = [
        entry(final[name], "; ".join(filter(None, (reason, module.padded.get(name)))), wishes.get(name))
        for name, variable in variables.items()
        for reason in [_reason(name, variable, final[name], problem, chosen, options)]
    ]
    return final


def _buffer(storage: Storage, stored: DType) -> DeviceStorage:
    return DeviceStorage(storage.buffer, storage.shape, storage.dtype, storage.address, storage.elements, stored)


def _halves(name: str, module: Module, fixed: set[str]) -> bool:
    """Whether a tensor is stored as halves: bounded float activations and large float constants."""
    storage = module.storages[name]
    if name in module.constants:
        return storage.dtype == np.float32 and storage.elements > SMALL_CONSTANT
    if storage.dtype != np.float32 or storage.buffer in fixed:
        return False
    return not any(module.storages[wide].buffer == storage.buffer for wide in module.wide)


def _activations(module: Module, storages: dict[str, DeviceStorage], fixed: set[str]) -> list[str]:
    """Buffers that kernels write and nobody outside sees, in order of the tensors."""
    written = {storages[k.tensor].buffer for k in module.kernels if isinstance(k, Kernel)}
    return [n for n, s in storages.items() if s.buffer == n and n in written and n not in fixed]


def _variable(
    name: str, module: Module, storages: dict[str, DeviceStorage], wish: Requests | None, device: Device,
    options: DeviceOptions,
) -> Variable:  # fmt: skip
    """The options of a buffer; the first one is the order that `select_layout` chose, in a buffer."""
    inside = [n for n, s in storages.items() if s.buffer == name]
    reason = no_texture(name, module, storages, device, options)
    possible = options_of(storages[name], wish, device, textures=not reason)
    if not reason and not any(option.image for option in possible):
        reason = _no_image(storages[name], device)
    return Variable(inside, possible, reason)


def options_of(base: DeviceStorage, wish: Requests | None, device: Device, textures: bool) -> list[DeviceStorage]:
    """Storages in place of the buffer `base`, itself first: in all orders that serve what consumers ask for."""
    orders = [base]
    for digits in _orders(base.shape, wish):
        other = dense(base.buffer, base.shape, base.dtype, digits)
        if other.address not in [o.address for o in orders]:
            orders.append(replace(base, address=other.address))
    return orders + ([t for order in orders if (t := _texture(order, device))] if textures else [])


def _orders(shape: tuple[int, ...], wish: Requests | None) -> list[list[Digit]]:
    """Orders that serve what consumers ask for: one axis in the lane, perhaps a second one along the columns."""
    asked = wish.axes(shape) if wish else []
    result = []
    for lane in asked[:CHOICES]:
        result.append(order_digits(shape, lane))
        if shape[lane] % LANES == 0 and shape[lane] > LANES:
            seconds = [axis for axis in asked if axis != lane][: CHOICES - 1]
            result += [order_digits(shape, lane, second) for second in seconds]
    return result


def no_texture(
    name: str, module: Module, storages: Mapping[str, DeviceStorage], device: Device, options: DeviceOptions
) -> str:
    """Why a buffer cannot be a texture in any order, "" if it can."""
    if options.memory == "buffer":
        return "--memory buffer"
    if not device.images:
        return f"{device.name} has no images"
    if storages[name].stored == np.float16 and not device.half_images:
        return f"{device.name} has no images of halves"
    if storages[name].dtype != np.float32:
        return f"{storages[name].dtype} values"
    kernels = [k for k in module.kernels if isinstance(k, Kernel)]
    for kernel in kernels:
        if storages[kernel.tensor].buffer == name and any(storages[t].buffer == name for t in kernel.inputs()):
            return f"{kernel.tensor} reads one part of it and writes another"
    return ""


def _texture(storage: DeviceStorage, device: Device) -> DeviceStorage | None:
    image = cut_image(storage.address, storage.elements, device.image_width, device.image_height)
    nbytes = storage.elements * np.dtype(storage.stored).itemsize
    return replace(storage, image=image) if image is not None and nbytes <= device.max_allocation else None


def _no_image(storage: DeviceStorage, device: Device) -> str:
    """Why no cut of a tensor's digits makes an image."""
    lowest = min(storage.address.terms, key=lambda term: term[0], default=None)
    if lowest is None or lowest[1].ext % LANES:
        return f"its innermost axis has {lowest[1].ext if lowest else 1} values, no multiple of {LANES}"
    nbytes = storage.elements * np.dtype(storage.stored).itemsize
    if nbytes > device.max_allocation:
        return f"{nbytes} bytes are more than {device.name} allocates ({device.max_allocation})"
    texels = storage.elements // LANES
    return f"{texels} texels are no image of {device.name} ({device.image_width} x {device.image_height})"


def _within(
    root: DeviceStorage, inside: list[str], module: Module, storages: dict[str, DeviceStorage]
) -> dict[str, DeviceStorage]:
    """The storages of all tensors that lie in a buffer, given that of the buffer."""
    result = {inside[0]: root}

    def find(name: str) -> DeviceStorage:
        if name not in result:
            window, old = module.windows[name], storages[name]
            parent = find(window.parent)
            image = None
            if parent.image is not None:
                row, column, lane = parent.access(window.map.coords)
                image = Image(row, column, lane, parent.image.width, parent.image.height)
            result[name] = replace(old, address=parent.at(window.map.coords), image=image)
        return result[name]

    return {name: find(name) for name in inside}


def _problem(
    module: Module, storages: dict[str, DeviceStorage], variables: dict[str, Variable], device: Device
) -> Problem:
    """What every option costs, for every walk of every group of accesses."""
    places = {
        root: [_within(option, v.inside, module, storages) for option in v.options] for root, v in variables.items()
    }
    factors = []
    for kernel in module.kernels:
        if not isinstance(kernel, Kernel):
            continue
        for group in groups_of(kernel, module.constants, device):
            base = np.zeros(len(group.walks))
            tables: dict[str, np.ndarray[Any, Any]] = {}
            for access in group.accesses:
                root = storages[access.tensor].buffer
                if root not in variables:
                    base += [access_cost(access, group, w, storages[access.tensor], device.costs) for w in group.walks]
                    continue
                table = tables.setdefault(root, np.zeros((len(group.walks), len(places[root]))))
                for option, found in enumerate(places[root]):
                    table[:, option] += [
                        access_cost(access, group, w, found[access.tensor], device.costs) for w in group.walks
                    ]
            factors.append(Factor(base, tables))
    return Problem({root: len(v.options) for root, v in variables.items()}, factors)


def _possible(problem: Problem, variables: dict[str, Variable], options: DeviceOptions) -> Problem:
    """Without textures that a kernel cannot store to whatever the walk, and without buffers if textures are forced."""
    keep: dict[str, list[int]] = {}
    for name, variable in variables.items():
        possible = np.ones(len(variable.options), bool)
        for factor in problem.touching[name]:
            possible &= np.isfinite(factor.tables[name]).any(axis=0)
        textures = [k for k, option in enumerate(variable.options) if possible[k] and option.image is not None]
        if not textures and not variable.no_texture:
            variable.no_texture = NO_TEXELS
        forced = options.memory == "texture" and textures
        keep[name] = textures if forced else [k for k in range(len(variable.options)) if possible[k]]
        variable.options = [variable.options[k] for k in keep[name]]
    return problem.restricted(keep)


def _assign(
    problem: Problem, variables: dict[str, Variable], options: DeviceOptions
) -> tuple[Assignment, dict[str, Any]]:
    """The options of least predicted cost, and what to report of them.

    The report has the cost of the chosen assignment, of the greedy one, of the heaviest requests alone ("requested"),
    and of all in buffers and all in textures where there is a choice.
    """

    def best_of(texture: bool) -> Assignment:
        """All in one kind of memory, where that is possible, starting from the order of `select_layout`."""
        kinds = {n: [(option.image is not None) == texture for option in v.options] for n, v in variables.items()}
        start = {name: kind.index(True) if any(kind) else 0 for name, kind in kinds.items()}
        requested.append(problem.cost(start))
        return greedy(problem, start, lambda name, k: kinds[name][k] or not any(kinds[name]))

    requested: list[float] = []
    extremes = [best_of(False), best_of(True)]
    costs = [problem.cost(chosen) for chosen in extremes]
    chosen = greedy(problem, extremes[costs.index(min(costs))])
    summary: dict[str, Any] = {"method": options.layout, "requested": min(requested), "greedy": problem.cost(chosen)}
    if options.memory == "auto":
        summary |= {"buffer": costs[0], "texture": costs[1]}
    if options.layout == "exact":
        found = exact(problem, chosen)
        chosen = found.chosen
        summary |= {"bound": found.bound, "in_trees": found.in_trees, "in_cycles": found.in_cycles}
    return chosen, summary | {"cost": problem.cost(chosen)}


def _verified(
    module: Module, storages: dict[str, DeviceStorage], variables: dict[str, Variable], chosen: Assignment
) -> dict[str, DeviceStorage]:
    """The chosen storages; textures that the schedules cannot store to after all become buffers of the same order."""
    roots = {name: variables[name].options[option] for name, option in chosen.items()}
    while True:
        final = dict(storages)
        for name, root in roots.items():
            final |= _within(root, variables[name].inside, module, storages)
        failed = {
            final[k.tensor].buffer
            for k in module.kernels
            if isinstance(k, Kernel) and final[k.tensor].image is not None and not stores_texels(k, final)
        }
        if not failed:
            return final
        for name in failed:
            roots[name] = replace(roots[name], image=None)
            variables[name].no_texture = NO_TEXELS


def _reason(
    name: str, variable: Variable, storage: DeviceStorage, problem: Problem, chosen: Assignment, options: DeviceOptions
) -> str:
    """Why a tensor lies in a buffer or in a texture: there is no choice, or the predicted costs."""
    if variable.no_texture and storage.image is None:
        return variable.no_texture
    if options.memory != "auto":
        return f"--memory {options.memory}"
    costs = problem.local(name, chosen)
    textures = [c for c, option in zip(costs, variable.options, strict=True) if option.image is not None]
    buffers = [c for c, option in zip(costs, variable.options, strict=True) if option.image is None]
    if storage.image is not None:
        return f"its kernels cost {costs[chosen[name]]:.4g}, from a buffer {min(buffers):.4g}"
    return f"its kernels cost {costs[chosen[name]]:.4g}, from a texture {min(textures):.4g}"
