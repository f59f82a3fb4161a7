"""What the compiler hands to the runtime of devices: a `DeviceProgram`, plain data.

Kernels take memory objects only, one per slot, in the order of `LaunchStep.args`. Activations lie in pooled buffers and
images, which are reused when they are free. (Parts of one buffer would need less memory, but drivers that look for
overlaps of sub-buffers then take three times as long to enqueue a kernel.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from smartmem.errors import CompilerError
from smartmem.runtime.artifact import HostStep, TensorSpec


@dataclass(frozen=True)
class DeviceSlot:
    """One memory object of the program.

    Attributes:
        kind: "input" and "output" are row-major buffers that the runtime fills and reads, "weight" is an entry of
            `DeviceProgram.weights`, "activation" lies in a pooled buffer or image, "host" is an array that only
            host steps touch, "check" is a buffer of int32 in which kernels report a coordinate out of range.
        name: tensor name; for inputs, outputs and weights the key.
        shape, dtype: of the tensor as the graph sees it (numpy dtype name; shape None: depends on data).
        stored: numpy dtype name of the elements in memory ("float16" for half storage of a float32 tensor).
        memory: a buffer of `elements` values, or an RGBA image of `width` x `height` texels.
        place: of an activation: number of the pooled buffer or image that holds it.
    """

    kind: Literal["input", "output", "weight", "activation", "host", "check"]
    name: str
    shape: tuple[int, ...] | None
    dtype: str
    stored: str
    memory: Literal["buffer", "texture"] = "buffer"
    elements: int = 0
    width: int = 0
    height: int = 0
    place: int = 0


@dataclass(frozen=True)
class LaunchStep:
    """One kernel launch: `kernel` of `sources[source]` over `global_size` work-items in groups of `local_size`.

    `args` are the slots of its arguments, `writes` those of them that it writes: what may run at the same time follows
    from it. With `dynamic`, a pointer to that many bytes of local memory follows the arguments.
    """

    kernel: str
    source: str
    global_size: tuple[int, ...]
    local_size: tuple[int, ...]
    args: tuple[int, ...]
    writes: tuple[int, ...]
    label: str
    dynamic: int = 0


def check_step(step: LaunchStep, sources: Collection[str], parameters: Callable[[LaunchStep], int]) -> None:
    """Refuse a step that no device can launch.

    Args:
        step: of a program.
        sources: names of what was built.
        parameters: how many parameters a step's kernel has; negative: there is none of that name.

    Raises:
        CompilerError: there is no such kernel, or it has other parameters, or the groups do not cover the work-items.
    """
    if step.source not in sources:
        raise CompilerError(f"{step.label!r} wants kernel {step.kernel} of {step.source}, which is not there")
    given, wanted = len(step.args) + (step.dynamic > 0), parameters(step)
    if wanted < 0:
        raise CompilerError(f"{step.source} has no kernel {step.kernel}")
    if wanted != given:
        raise CompilerError(f"kernel {step.kernel} takes {wanted} arguments, its step gives {given}")
    sizes = (step.global_size, step.local_size or (1,) * len(step.global_size))
    if len(sizes[0]) != len(sizes[1]) or any(g % max(n, 1) or g < 1 or n < 1 for g, n in zip(*sizes, strict=False)):
        raise CompilerError(
            f"kernel {step.kernel}: {list(sizes[0])} work-items do not divide into groups of {sizes[1]}"
        )


@dataclass
class DeviceProgram:
    """A compiled model for an OpenCL device, before its kernels are built.

    Attributes:
        name, level: of the graph, and the optimization level.
        device: description of the device that it was made for (name, driver).
        options: build options of the OpenCL compiler.
        inputs, outputs: in graph order.
        slots: every memory object, by slot number.
        steps: in execution order.
        buffers: bytes of every pooled buffer; activations that do not live at the same time share one.
        images: (width, height, stored) of every pooled image.
        weights: contents of weight slots in their stored dtype: one axis for buffers, (height, width, 4) for textures.
        sources: OpenCL C by file name.
        report: what `explain` prints; JSON-serializable.
        checks: what each number that kernels write into a "check" slot means (see `memory.Check`).
    """

    name: str
    level: str
    device: str
    options: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    slots: list[DeviceSlot]
    steps: list[LaunchStep | HostStep]
    buffers: list[int]
    images: list[tuple[int, int, str]]
    weights: dict[str, np.ndarray[Any, Any]]
    sources: dict[str, str]
    report: dict[str, Any] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)

    @property
    def launches(self) -> list[LaunchStep]:
        """The steps that are kernels, in order."""
        return [step for step in self.steps if isinstance(step, LaunchStep)]
