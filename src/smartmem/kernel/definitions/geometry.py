"""Sliding windows: how kernel, stride, dilation and padding make input coordinates (Conv, pooling).

``coordinate = output * stride + tap * dilation - pad``, guarded where it may leave the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smartmem.graph.ir import Node
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


def window_of(node: Node, extents: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a canonical Conv, ConvTranspose or pooling node (auto_pad is resolved to pads).

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
