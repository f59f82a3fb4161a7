"""Bring Resize of every opset, and Upsample, to one form: x and per-axis scales.

Upsample (9) and Resize (10) have no coordinate mode: their meaning is "asymmetric", and nearest rounds down (Resize 10
rounds up where it shrinks, as onnxruntime does).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from smartmem.errors import ModelError
from smartmem.frontend.spell import bake, respell
from smartmem.graph.ir import Node, Value

Array = np.ndarray[Any, Any]


def normalise_resize(node: Node, known: Mapping[Value, Array]) -> None:
    """Fill `scales` and `roi`, drop `axes` and the inputs that they came from.

    Raises:
        ModelError: scales and sizes do not fit the input's rank.
    """
    x, y = node.inputs[0], node.outputs[0]
    if x is None or y is None or x.shape is None or y.shape is None:
        return
    if node.op == "Upsample" or node.version < 11:
        _from_old(node, known, len(x.shape))
        return
    arrays = {i: known.get(v) for i, v in enumerate(node.inputs) if i > 0 and v is not None}
    if any(a is None for a in arrays.values()):
        return
    rank = len(x.shape)
    axes = node.attrs.pop("axes", None) or list(range(rank))
    axes = [a + rank if a < 0 else a for a in axes]
    roi, scales, sizes = (arrays.get(i) for i in (1, 2, 3))
    full = [1.0] * rank
    if scales is not None and scales.size:
        values = [float(s) for s in scales.reshape(-1)]
    elif sizes is not None and sizes.size:
        values = [int(s) / x.shape[a] for s, a in zip(sizes.reshape(-1), axes, strict=False)]
        policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            values = [(min if policy == "not_larger" else max)(values)] * len(values)
    else:
        raise ModelError(f"{node.describe()}: has neither scales nor sizes; export the model again")
    if len(values) != len(axes):
        raise ModelError(f"{node.describe()}: {len(values)} scales for {len(axes)} axes; export the model again")
    for axis, value in zip(axes, values, strict=True):
        full[axis] = value
    node.attrs["scales"] = full
    node.attrs["roi"] = None
    if node.attrs["coordinate_transformation_mode"] == "tf_crop_and_resize" and roi is not None:
        window = [0.0] * rank + [1.0] * rank
        for i, axis in enumerate(axes):
            window[axis], window[rank + axis] = (float(roi.reshape(-1)[j]) for j in (i, i + len(axes)))
        node.attrs["roi"] = window
    # An empty array means "absent" in the positional inputs.
    bake(node, {i: (a if a is not None and a.size else None) for i, a in arrays.items()})


def _from_old(node: Node, known: Mapping[Value, Array], rank: int) -> None:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    scales = known.get(value) if value is not None else None
    if scales is None:
        return
    values = [float(s) for s in scales.reshape(-1)]
    if len(values) != rank:
        raise ModelError(f"{node.describe()}: {len(values)} scales for an input of rank {rank}; export the model again")
    mode = node.attrs.get("mode", "nearest")
    attrs = {
        "mode": "linear" if mode in ("linear", "bilinear") else mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "ceil" if node.op == "Resize" and any(s < 1 for s in values) else "floor",
    }
    respell(node, "Resize", 13, [node.inputs[0], None, None], attrs)
    node.attrs |= {"cubic_coeff_a": -0.75, "exclude_outside": 0, "extrapolation_value": 0.0}
    node.attrs |= {"scales": values, "roi": None}
    bake(node, {1: None, 2: np.asarray(values, np.float32)})
