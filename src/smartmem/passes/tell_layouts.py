"""What `explain` shows of the layouts on a device: one entry per activation.

In: what `place` chose. Out: dicts of

    tensor, shape   its axes are called i, j, k, ... in order
    memory          "buffer" or "texture 1344 x 56" (columns x rows)
    picture         {x, y, lane}: the digits along the columns, the rows and in the four lanes, outermost first, each
                    with its extent; a buffer has no rows
    reason          why it is this memory
    asked_by        [{axis, kernels}], heaviest request first
"""

from __future__ import annotations

from typing import Any

from smartmem.index.lin import LETTERS, Digit, Lin, lin
from smartmem.layout.memory import LANES, DeviceStorage
from smartmem.passes.select_layout import Requests


def entry(storage: DeviceStorage, reason: str, wish: Requests | None) -> dict[str, Any]:
    """The entry of a tensor that has a buffer or texture of its own."""
    image = storage.image
    asked = [(axis, wish.kernels[axis]) for axis in wish.axes(storage.shape)] if wish else []
    return {
        "tensor": storage.buffer,
        "shape": list(storage.shape),
        "memory": "buffer" if image is None else f"texture {image.width} x {image.height}",
        "picture": picture(storage),
        "reason": reason,
        "asked_by": [{"axis": LETTERS[axis], "kernels": kernels} for axis, kernels in asked],
    }


def picture(storage: DeviceStorage) -> dict[str, str]:
    """Where each digit lies: ``{"x": "k:56 l/4:24", "y": "j:56", "lane": "l%4"}``."""
    if storage.image is not None:
        parts = {"x": storage.image.column, "y": storage.image.row, "lane": storage.image.lane}
    else:
        parts = _of_buffer(storage.address)
    return {direction: _digits(value, storage.shape) for direction, value in parts.items()}


def _of_buffer(address: Lin) -> dict[str, Lin]:
    """A dense address with its lowest four values as the lane."""
    *upper, (stride, lowest) = sorted(address.terms, key=lambda term: -term[0]) or [(1, Digit(0, 1, 1))]
    if stride != 1 or lowest.ext % LANES:
        return {"x": address, "y": Lin(), "lane": Lin()}
    lane = lin(0, ((1, Digit(lowest.axis, lowest.lo, LANES)),))
    rest = lin(0, (*upper, (LANES, Digit(lowest.axis, lowest.lo * LANES, lowest.ext // LANES))))
    return {"x": rest, "y": Lin(), "lane": lane}


def _digits(value: Lin, shape: tuple[int, ...]) -> str:
    parts = []
    for _, digit in sorted(value.terms, key=lambda term: -term[0]):
        assert isinstance(digit.axis, int)
        text = LETTERS[digit.axis]
        text += f"/{digit.lo}" if digit.lo > 1 else ""
        text += f"%{digit.ext}" if digit.lo * digit.ext < shape[digit.axis] else ""
        parts.append(f"{text}:{digit.ext}")
    return " ".join(parts)
