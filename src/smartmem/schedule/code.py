"""What a schedule gives back for a kernel: its C text and everything the plan needs to call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from smartmem.codegen.c_operations import C_TYPES
from smartmem.layout.storage import Storage

Array = np.ndarray[Any, Any]


CALLS = 256  # of a kernel's function, enough for threads to share its work evenly


@dataclass
class KernelCode:
    """Generated code of one kernel.

    Attributes:
        text: the body of the C function (``void f(void *const *args, long begin, long end, void *scratch)``).
        buffers: slot names in argument order; the last one is written.
        tasks: how many independent tasks the body can be asked for.
        scratch: bytes of thread-private scratch.
        weights: packed constants that the kernel reads, by slot name.
        family: name of the schedule.
        notes: remarks for `explain`.
        support: extra C functions the body calls, by name (emitted once per file).
    """

    text: str
    buffers: list[str]
    tasks: int
    scratch: int = 0
    weights: dict[str, Array] = field(default_factory=dict)
    family: str = ""
    notes: list[str] = field(default_factory=list)
    support: dict[str, str] = field(default_factory=dict)

    @property
    def grain(self) -> int:
        """Tasks to hand out at once: calls cost time, and so does waiting for what was stored past the caches."""
        return max(1, self.tasks // CALLS)


LINE = 64  # bytes of a cache line
STREAMED = 8  # times L2: what is larger comes from main memory in every call


@dataclass(frozen=True)
class UnitForm:
    """What matrix units take for a float: `parts` bfloat16; or, where `parts` is 0, the four bytes that it stands for
    (`passes.byte_products`)."""

    parts: int

    def __str__(self) -> str:
        return {0: "bytes", 1: "bfloat16"}.get(self.parts, f"{self.parts} bfloat16 for a float")

    @property
    def steps(self) -> int:
        """Floats along k of one row of a tile, whose 64 bytes are 32 bfloat16, or four times 16 bytes."""
        return 32 if self.parts else 16

    @property
    def tiles(self) -> int:
        """Tiles of an operand for each tile of what it stands for."""
        return max(self.parts, 1)


@dataclass(frozen=True)
class Target:
    """What schedules need to know of the machine.

    Attributes:
        lanes: floats per vector register.
        registers: vector registers.
        l1, l2: bytes of cache per core.
        dot4: whether it multiplies four bytes by four others, and adds the products, in one instruction per lane.
        units: whether it has matrix units that multiply bfloat16 and bytes.
        parts: bfloat16 that a float may become on matrix units; 0: it stays a float.
        form: what the matrix units take in a kernel, None: they are not used.
        tuned: whether schedules use what only speed asks for: prefetching, blocks of the reduction and of rows that
            fit the caches, windows that slide by several outputs, operands transposed in registers (level `full`).
    """

    lanes: int = 16
    registers: int = 32
    l1: int = 32 << 10
    l2: int = 1 << 20
    dot4: bool = False
    units: bool = False
    parts: int = 0
    form: UnitForm | None = None
    tuned: bool = True

    def streams(self, size: int) -> bool:
        """Whether so many bytes that are read or written once go through all caches, as far as is known of them."""
        return self.tuned and size > STREAMED * self.l2


class Arguments:
    """The pointer parameters of a kernel: one per buffer and type, shared by all tensors that lie in it."""

    def __init__(self) -> None:
        self._pointers: list[tuple[str, str]] = []  # buffer, C type of what is read

    def pointer(self, buffer: str, c_type: str) -> str:
        """The C variable for a buffer."""
        if (buffer, c_type) not in self._pointers:
            self._pointers.append((buffer, c_type))
        return f"p{self._pointers.index((buffer, c_type))}"

    @property
    def buffers(self) -> list[str]:
        """The buffers in the order of the pointers; one that is read as two types comes twice."""
        return [buffer for buffer, _ in self._pointers]

    def tensors(self, names: list[str], storages: Mapping[str, Storage]) -> dict[str, str]:
        """Pointer variables of tensors."""
        return {n: self.pointer(storages[n].buffer, C_TYPES[storages[n].dtype.name]) for n in names}

    def declarations(self, written: str) -> list[str]:
        """``const float *p0 = args[0];`` lines; the pointer to `written` is not const."""
        lines = []
        for number, (buffer, c_type) in enumerate(self._pointers):
            const = "" if buffer == written else "const "
            lines.append(f"{const}{c_type} *restrict p{number} = args[{number}];")
        return lines
