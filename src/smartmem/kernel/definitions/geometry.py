"""Sliding windows: how kernel, stride, dilation and padding make input coordinates (Conv, pooling).

``coordinate = output * stride + tap * dilation - pad``, guarded where it may leave the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smartmem.graph.ir import Node
from smartmem.index.divide import divide
from smartmem.index.lin import Lin
from smartmem.index.map import Guard


@dataclass(frozen=True)
class Window:
    """A sliding window over spatial axes; all tuples have one entry per axis.

    Attributes:
        extents: of the input.
        kernel: taps.
        strides: input positions per output position.
        dilations: input positions per tap.
        before: padding before the input.
        after: padding after it.
    """

    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def coordinates(self, outputs: Sequence[Lin], taps: Sequence[Lin]) -> tuple[Lin, ...]:
        """Input coordinates of the given output positions and taps."""
        each = zip(outputs, taps, self.strides, self.dilations, self.before, strict=True)
        return tuple(o * stride + k * dilation - before for o, k, stride, dilation, before in each)

    def guards(self, coordinates: Sequence[Lin]) -> tuple[Guard, ...]:
        """Where the coordinates are inside the input."""
        return tuple(Guard(c, n) for c, n in zip(coordinates, self.extents, strict=True))

    def steps(self) -> tuple[int, ...]:
        """How many taps may reach one position of what is not strided, per axis (see `reaching`)."""
        each = zip(self.kernel, self.strides, self.dilations, strict=True)
        return tuple(-(-k // stride) if dilation == 1 else k for k, stride, dilation in each)

    def reaching(
        self, outputs: Sequence[Lin], counters: Sequence[Lin]
    ) -> tuple[tuple[Lin, ...], tuple[Lin, ...], tuple[Guard, ...]]:
        """The other way round (ConvTranspose, Col2Im): taps that reach an output, where they come from, and if they do.

        A tap k brings ``(output + pad - k*dilation) / stride`` where the division is exact. Without dilation these taps
        are ``k = stride*t + (output + pad) % stride``, which may lie beyond the kernel, so that the counter t takes few
        values, none in vain. With dilation t is k, guarded by the remainder.
        """
        taps: list[Lin] = []
        places: list[Lin] = []
        guards: list[Guard] = []
        each = zip(outputs, counters, self.extents, self.strides, self.dilations, self.before, strict=True)
        for output, t, extent, stride, dilation, before in each:
            if dilation == 1:
                quotient, remainder = divide(output + before, stride)
                taps.append(t * stride + remainder)
                places.append(quotient - t)
            else:
                quotient, remainder = divide(output + before - t * dilation, stride)
                taps.append(t)
                places.append(quotient)
                guards.append(Guard(remainder, 1))
            guards.append(Guard(places[-1], extent))
        return tuple(taps), tuple(places), tuple(guards)


def window_of(node: Node, extents: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a canonical Conv, ConvTranspose, Col2Im or pooling node (auto_pad is resolved to pads).

    Args:
        node: has ONNX's attributes strides, dilations and pads.
        extents: spatial extents of the input.
        kernel: taps per axis.
    """
    rank = len(extents)
    assert node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"), f"{node.describe()} is not canonical"
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    pads = tuple(node.attrs.get("pads") or (0,) * (2 * rank))
    return Window(extents, kernel, strides, dilations, pads[:rank], pads[rank:])
