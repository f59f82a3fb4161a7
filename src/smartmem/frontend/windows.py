"""Resolve the window attributes of convolutions and poolings: kernel_shape, strides, dilations, pads, auto_pad.

Worked example: SAME_UPPER over 5 elements, kernel 3, stride 2: out = ceil(5/2) = 3, total = (3-1)·2 + 3 - 5 = 2,
so pads = [1, 1]; an odd total puts the extra element at the end (SAME_LOWER: at the begin).
"""

from __future__ import annotations

from smartmem.errors import ModelError
from smartmem.graph.ir import Node

#: Operator → index of its kernel input, None where the kernel is only an attribute.
WINDOWED: dict[str, int | None] = {
    "Conv": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
    "ConvTranspose": 1,
    "DeformConv": 1,
    "MaxPool": None,
    "AveragePool": None,
    "LpPool": None,
}


def normalise_window(node: Node) -> None:
    """Fill `kernel_shape`, `strides`, `dilations` and `pads`, and resolve `auto_pad` to "NOTSET".

    Raises:
        ModelError: an attribute has the wrong length.
    """
    x, y = node.inputs[0], node.outputs[0]
    if x is None or y is None or x.shape is None or y.shape is None:
        return
    attrs, spatial = node.attrs, len(x.shape) - 2
    if "kernel_shape" not in attrs:
        index = WINDOWED[node.op]
        kernel = node.inputs[index] if index is not None else None
        if kernel is None or kernel.shape is None:
            return
        attrs["kernel_shape"] = list(kernel.shape[2:])
    strides = attrs.setdefault("strides", [1] * spatial)
    dilations = attrs.setdefault("dilations", [1] * spatial)
    mode = attrs.pop("auto_pad", "NOTSET")
    attrs["auto_pad"] = "NOTSET"
    sizes = x.shape[2:], y.shape[2:]
    # The taps of a dilated window span (k - 1)·d + 1 elements.
    spans = [(k - 1) * d + 1 for k, d in zip(attrs["kernel_shape"], dilations, strict=False)]
    if node.op == "ConvTranspose" and (mode.startswith("SAME") or attrs.get("output_shape")):
        extra = attrs.get("output_padding") or [0] * spatial
        totals = [s * (i - 1) + e + span - o for i, o, s, span, e in zip(*sizes, strides, spans, extra, strict=False)]
        attrs["pads"] = _halves([max(t, 0) for t in totals], upper=mode == "SAME_UPPER")
    elif mode.startswith("SAME"):
        outs = [-(-i // s) for i, s in zip(sizes[0], strides, strict=False)]
        totals = [max((o - 1) * s + span - i, 0) for i, o, s, span in zip(sizes[0], outs, strides, spans, strict=False)]
        attrs["pads"] = _halves(totals, upper=mode == "SAME_UPPER")
    elif mode == "VALID" or "pads" not in attrs:
        attrs["pads"] = [0] * (2 * spatial)
    for name, length in (
        ("kernel_shape", spatial),
        ("strides", spatial),
        ("dilations", spatial),
        ("pads", 2 * spatial),
    ):
        if len(attrs[name]) != length:
            raise ModelError(
                f"{node.describe()}: {name} {attrs[name]} should have {length} entries for an input of shape "
                f"{x.shape}; export the model again"
            )


def _halves(totals: list[int], upper: bool) -> list[int]:
    """Split total pads in begins and ends; the odd element goes to the end if `upper`."""
    begins = [t // 2 if upper else t - t // 2 for t in totals]
    return begins + [t - b for t, b in zip(totals, begins, strict=True)]
