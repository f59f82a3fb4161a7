"""Storage classes: how OpenCL C reads and writes a tensor in a buffer or a texture.

In: a place as `DeviceStorage.access` gives it (Lins over the loop axes), the loop axes, the lane. Out: C text. A vector
is four values along the lane.

With `--check` a memory has `Bounds`: every coordinate goes through `sm_check`, which reports the first one that is out
of range and takes 0 instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from smartmem.codegen.c_expr import Lane, step_along
from smartmem.codegen.c_index import Axes, c_lin
from smartmem.index.lin import Lin
from smartmem.kernel.expr import DType
from smartmem.layout.memory import LANES

CL_TYPES = {
    "float32": "float", "float64": "double", "float16": "half", "int8": "char", "int16": "short", "int32": "int",
    "int64": "long", "uint8": "uchar", "uint16": "ushort", "uint32": "uint", "uint64": "ulong", "bool": "uchar",
    "bfloat16": "ushort",
}  # fmt: skip
_COMPONENT = "xyzw"


def is_aligned(address: Lin, lane: Lane) -> bool:
    """Whether vectors along the lane start at multiples of their width."""
    others = (s for s, d in address.terms if d.axis != lane.axis or d.lo != 1)
    return address.offset % lane.width == 0 and all(s % lane.width == 0 for s in others)


def shifted(axes: Axes, lane: Lane, by: int) -> Axes:
    """The loop axes with the lane variable advanced."""
    return replace(axes, names={**axes.names, lane.axis: f"({axes.names[lane.axis]} + {by})"})


@dataclass(frozen=True)
class Bounds:
    """What the coordinates of one memory object must stay below.

    Attributes:
        checks: what the kernel checks so far, shared by its memories; the position of a text is its number.
        name: of the tensor or the packed weights.
        extents: by what is counted: {"address": elements} of a buffer, {"column": ..., "row": ...} of an image.
    """

    checks: list[str]
    name: str
    extents: Mapping[str, int]

    def inside(self, where: str, counted: str = "address", together: int = 1) -> str:
        """A coordinate that is checked; the access takes `together` elements from there on."""
        text = f"{counted} in {self.name}"
        if text not in self.checks:
            self.checks.append(text)
        number = self.checks.index(text)
        return f"sm_check(check, first_check + {number}, {where}, {self.extents[counted] - together + 1})"


def checked(bounds: Bounds | None, where: str, counted: str = "address", together: int = 1) -> str:
    """The coordinate as it is, or checked if there are bounds."""
    return where if bounds is None else bounds.inside(where, counted, together)


@dataclass(frozen=True)
class LinearBuffer:
    """A tensor in a buffer: ``pointer[address]``."""

    pointer: str
    stored: DType
    bounds: Bounds | None = None

    def _where(self, place: tuple[Lin, ...], axes: Axes, together: int = 1) -> str:
        return checked(self.bounds, c_lin(place[0], axes), "address", together)

    def scalar(self, place: tuple[Lin, ...], axes: Axes) -> str:
        where = self._where(place, axes)
        return f"vload_half({where}, {self.pointer})" if self.stored == np.float16 else f"{self.pointer}[{where}]"

    def vector(self, place: tuple[Lin, ...], axes: Axes, lane: Lane) -> str | None:
        """Four values along the lane in one access; None if they do not lie together."""
        if step_along(place[0], lane) != 1:
            return None
        where, half = f"{self.pointer} + {self._where(place, axes, LANES)}", self.stored == np.float16
        if is_aligned(place[0], lane):
            return f"sm_load_half4({where})" if half else f"*(const __global float4 *)({where})"
        return f"vload_half4(0, {where})" if half else f"vload4(0, {where})"

    def aligned(self, place: tuple[Lin, ...], axes: Axes, lane: Lane) -> str | None:
        """The address of a vector along the lane, if it lies together at a multiple of its width."""
        if step_along(place[0], lane) != 1 or not is_aligned(place[0], lane):
            return None
        return f"{self.pointer} + {self._where(place, axes, lane.width)}"

    def is_uniform(self, place: tuple[Lin, ...], lane: Lane) -> bool:
        return step_along(place[0], lane) == 0

    def store(self, place: tuple[Lin, ...], axes: Axes, value: str) -> str:
        where = self._where(place, axes)
        if self.stored == np.float16:
            return f"vstore_half({value}, {where}, {self.pointer});"
        return f"{self.pointer}[{where}] = {value};"

    def store_vector(self, place: tuple[Lin, ...], axes: Axes, lane: Lane, value: str) -> str | None:
        if step_along(place[0], lane) != 1 or self.stored not in (np.float32, np.float16):
            return None
        where, half = f"{self.pointer} + {self._where(place, axes, LANES)}", self.stored == np.float16
        if is_aligned(place[0], lane):
            return f"sm_store_half4({value}, {where});" if half else f"*(__global float4 *)({where}) = {value};"
        return f"vstore_half4({value}, 0, {where});" if half else f"vstore4({value}, 0, {where});"


@dataclass(frozen=True)
class Texture:
    """A tensor in an image: texels of four values at (column, row).

    Drivers may cut a float when they store it in a half image; `half` rounds it first, as buffers do.
    """

    image: str
    half: bool = False
    bounds: Bounds | None = None

    def _where(self, place: tuple[Lin, ...], axes: Axes) -> str:
        column, row = (
            checked(self.bounds, c_lin(part, axes), name) for part, name in ((place[1], "column"), (place[0], "row"))
        )
        return f"(int2)({column}, {row})"

    def _texel(self, place: tuple[Lin, ...], axes: Axes) -> str:
        return f"read_imagef({self.image}, sm_texel, {self._where(place, axes)})"

    def scalar(self, place: tuple[Lin, ...], axes: Axes) -> str:
        lane = place[2]
        if lane.is_constant:
            return f"{self._texel(place, axes)}.{_COMPONENT[lane.offset]}"
        return f"sm_get({self._texel(place, axes)}, {c_lin(lane, axes)})"

    def vector(self, place: tuple[Lin, ...], axes: Axes, lane: Lane) -> str | None:
        row, column, within = place
        whole = step_along(within, lane) == 1 and within.offset == 0 and len(within.terms) == 1
        if whole and step_along(row, lane) == 0 and step_along(column, lane) == 0:
            return self._texel(place, axes)
        return None

    def is_uniform(self, place: tuple[Lin, ...], lane: Lane) -> bool:
        return all(step_along(part, lane) == 0 for part in place)

    def store(self, place: tuple[Lin, ...], axes: Axes, value: str) -> str:
        raise NotImplementedError("a texel is written as a whole")

    def store_vector(self, place: tuple[Lin, ...], axes: Axes, lane: Lane, value: str) -> str | None:
        if self.vector(place, axes, lane) is None:
            return None
        value = f"sm_round_half({value})" if self.half else value
        return f"write_imagef({self.image}, {self._where(place, axes)}, {value});"


@dataclass(frozen=True)
class LocalRows:
    """A block of rows of a tensor that exists only inside the kernel, in local memory, `width` floats apart.

    Places are columns; the row is the loop axis `rows`, the block starts at `m0`.
    """

    name: str
    width: int
    rows: int
    bounds: Bounds | None = None

    def _where(self, place: tuple[Lin, ...], axes: Axes, together: int = 1) -> str:
        where = f"({axes.names[self.rows]} - m0) * {self.width} + {c_lin(place[0], axes)}"
        return checked(self.bounds, where, "address", together)

    def scalar(self, place: tuple[Lin, ...], axes: Axes) -> str:
        return f"{self.name}[{self._where(place, axes)}]"

    def vector(self, place: tuple[Lin, ...], axes: Axes, lane: Lane) -> str | None:
        if step_along(place[0], lane) != 1 or not is_aligned(place[0], lane):
            return None
        return f"*(const __local float4 *)({self.name} + {self._where(place, axes, LANES)})"

    def is_uniform(self, place: tuple[Lin, ...], lane: Lane) -> bool:
        return lane.axis != self.rows and step_along(place[0], lane) == 0

    def store(self, place: tuple[Lin, ...], axes: Axes, value: str) -> str:
        return f"{self.name}[{self._where(place, axes)}] = {value};"

    def store_vector(self, place: tuple[Lin, ...], axes: Axes, lane: Lane, value: str) -> str | None:
        if step_along(place[0], lane) != 1 or not is_aligned(place[0], lane):
            return None
        return f"*(__local float4 *)({self.name} + {self._where(place, axes, LANES)}) = {value};"


MemoryAccess = LinearBuffer | Texture | LocalRows
