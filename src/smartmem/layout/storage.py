"""Where a tensor lies: a buffer, and the element address of each coordinate, in the index language.

A dense layout is an order of the tensor's digits, outermost first: channels-last for (n, c, h, w) is n h w c, and
``address = ((n*H + h)*W + w)*C + c``. A tensor may be a window of a larger buffer (a piece of a Concat lies inside
the result), so the address is any Lin over the tensor's axes; composition with an access is `substitute`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from smartmem.index.lin import Digit, Lin, lin
from smartmem.index.substitute import substitute
from smartmem.kernel.expr import DType


@dataclass(frozen=True)
class Storage:
    """The place of one tensor.

    Attributes:
        buffer: name of the buffer (slot) that holds it.
        shape: of the tensor.
        dtype: of its elements.
        address: element offset in the buffer, over the tensor's axes.
        elements: size of the buffer, in elements.
        zero: of floats that lie in memory as bytes (uint8): each is the byte less this. None: elements lie as they are.
    """

    buffer: str
    shape: tuple[int, ...]
    dtype: DType
    address: Lin
    elements: int
    zero: int | None = field(default=None, kw_only=True)

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.elements * self.dtype.itemsize

    def at(self, coords: Sequence[Lin]) -> Lin:
        """The element offset of a coordinate that is given as Lins over other axes."""
        return substitute(self.address, tuple(coords), self.shape)

    def flat(self) -> Storage:
        """The whole buffer, whose one coordinate is the element offset."""
        return replace(dense(self.buffer, (self.elements,), self.dtype), zero=self.zero)

    def show(self, names: str = "nchwdefg") -> str:
        """The digits from outermost to innermost: ``n h w c``."""
        parts = []
        for _, digit in self.address.terms:
            name = names[digit.axis] if isinstance(digit.axis, int) and digit.axis < len(names) else f"a{digit.axis}"
            whole = isinstance(digit.axis, int) and digit.ext == self.shape[digit.axis]
            parts.append(name if whole else f"{name}/{digit.lo}%{digit.ext}")
        return " ".join(parts) or "scalar"


def dense(
    name: str, shape: Sequence[int], dtype: DType, order: Sequence[Digit] | None = None, padding: int = 0
) -> Storage:
    """A buffer of its own with the given order of digits (outermost first); row-major by default.

    `padding` elements lie unused after each row, that is, each run of the innermost digit with more than one value.
    """
    digits = list(order) if order is not None else [Digit(axis, 1, n) for axis, n in enumerate(shape)]
    address, stride = Lin(), 1
    for digit in reversed(digits):
        address = address + lin(0, ((stride, digit),))
        if stride == 1 and digit.ext > 1:
            stride = digit.ext + padding
        else:
            stride *= digit.ext
    covered = math.prod(digit.ext for digit in digits)
    assert covered == math.prod(shape), f"the layout {digits} does not cover {tuple(shape)}"
    return Storage(name, tuple(shape), dtype, address, max(1, stride))
