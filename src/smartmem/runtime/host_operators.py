"""Operators that the host computes with numpy, where the reference implementation of onnx 1.23 goes element by element.

Of 8,400 boxes the best 300 take the reference 125 ms and this 8. Imported only when one of these runs, as it needs the
onnx package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]

TOGETHER = 64  # boxes that are compared with those that stay
_COMBINE: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


class ScatterND(OpRun):  # type: ignore[misc]
    """`y = data; y[*indices[q.., :], r..] = updates[q.., r..]`, or combined with them."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, updates: Array, reduction: str | None = None) -> tuple[Array]:
        targets = tuple(indices.reshape(-1, indices.shape[-1]).T)
        return (_scattered(data, targets, updates.reshape(-1, *data.shape[len(targets) :]), reduction),)


class ScatterElements(OpRun):  # type: ignore[misc]
    """`y = data; y[i.., indices[i.., u, j..], j..] = updates[i.., u, j..]`, or combined with them."""

    op_domain = ""

    def _run(
        self, data: Array, indices: Array, updates: Array, axis: int = 0, reduction: str | None = None
    ) -> tuple[Array]:
        targets = list(np.indices(indices.shape).reshape(indices.ndim, -1))
        targets[axis] = indices.reshape(-1)
        return (_scattered(data, tuple(targets), updates.reshape(-1), reduction),)


def _scattered(data: Array, targets: tuple[Array, ...], updates: Array, reduction: str | None) -> Array:
    """A copy of `data` with update q at the q-th target, the later ones over the earlier ones."""
    result = data.copy()
    if reduction in _COMBINE:
        _COMBINE[reduction].at(result, targets, updates)
        return result
    extents = data.shape[: len(targets)]
    flat = np.ravel_multi_index([np.where(t < 0, t + n, t) for t, n in zip(targets, extents, strict=True)], extents)
    _, last = np.unique(flat[::-1], return_index=True)  # numpy does not say which of several it keeps
    kept = len(flat) - 1 - last
    result[tuple(t[kept] for t in targets)] = updates[kept]
    return result


class NonMaxSuppression(OpRun):  # type: ignore[misc]
    """The boxes of each class by falling score, without those that overlap a better one: [n, (batch, class, box)]."""

    op_domain = ""

    def _run(
        self,
        boxes: Array,
        scores: Array,
        max_output_boxes_per_class: Array | None = None,
        iou_threshold: Array | None = None,
        score_threshold: Array | None = None,
        center_point_box: int = 0,
    ) -> tuple[Array]:
        most, overlap, least = (
            None if value is None or value.size == 0 else value.reshape(-1)[0]
            for value in (max_output_boxes_per_class, iou_threshold, score_threshold)
        )
        found = [
            (batch, category, box)
            for batch, corners in enumerate(_corners(boxes, bool(center_point_box)))
            for category in range(scores.shape[1])
            for box in _best(corners, scores[batch, category], int(most or 0), overlap or 0, least)
        ]
        return (np.array(found, np.int64).reshape(-1, 3),)


def _corners(boxes: Array, centred: bool) -> Array:
    """Lower and upper coordinates of boxes as [batch, box, 4]: (y0, x0, y1, x1), or (x0, y0, x1, y1) if `centred`."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        return np.concatenate([first - second / 2, first + second / 2], -1)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], -1)


def _best(corners: Array, scores: Array, most: int, overlap: float, least: float | None) -> list[int]:
    """The boxes that stay, at most `most`; of equal scores the first box comes first."""
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    kept = order[:0]
    for start in range(0, len(order), TOGETHER):
        boxes = order[start : start + TOGETHER]
        boxes = boxes[~_overlap(corners[boxes], corners[kept], overlap).any(-1)]
        stays, pairs = np.ones(len(boxes), bool), _overlap(corners[boxes], corners[boxes], overlap)
        for better in range(len(boxes)):
            if stays[better]:
                stays[better + 1 :] &= ~pairs[better, better + 1 :]
        kept = np.concatenate([kept, boxes[stays]])
        if len(kept) >= most:
            break
    return [int(box) for box in kept[:most]]


def _overlap(a: Array, b: Array, threshold: float) -> Array:
    """Whether the intersection of box i of `a` and box j of `b`, over their union, is above the threshold: [i, j]."""
    lower, upper = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    shared = np.where((upper > lower).all(-1), np.prod(upper - lower, -1), 0)
    mine, others = (np.prod(boxes[:, 2:] - boxes[:, :2], -1) for boxes in (a, b))
    union = mine[:, None] + others - shared
    counts = (shared > 0) & (mine[:, None] > 0) & (others > 0) & (union > 0)
    return np.asarray(counts & (np.divide(shared, union, out=np.zeros_like(shared), where=counts) > threshold))


class RoiAlign(OpRun):  # type: ignore[misc]
    """Regions of interest in bins, a bin as mean (or maximum) of interpolated samples: [region, channel, h, w]."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        rois: Array,
        batch_indices: Array,
        coordinate_transformation_mode: str = "half_pixel",
        mode: str = "avg",
        output_height: int = 1,
        output_width: int = 1,
        sampling_ratio: int = 0,
        spatial_scale: float = 1.0,
    ) -> tuple[Array]:
        bins = (output_height, output_width)
        result = np.empty((len(rois), x.shape[1], *bins), x.dtype)
        half_pixel = coordinate_transformation_mode == "half_pixel"
        regions = rois.astype(np.float32) * np.float32(spatial_scale) - np.float32(0.5 if half_pixel else 0)
        for region, (left, top, right, bottom), batch in zip(result, regions, batch_indices, strict=True):
            sizes = [bottom - top, right - left]
            if not half_pixel:  # what has no area is one pixel
                sizes = [max(size, np.float32(1)) for size in sizes]
            samples = [sampling_ratio or int(np.ceil(size / count)) for size, count in zip(sizes, bins, strict=True)]
            axes = [
                _samples(start, size, count, each, extent)
                for start, size, count, each, extent in zip((top, left), sizes, bins, samples, x.shape[2:], strict=True)
            ]
            region[:] = _pooled(x[batch], axes, bins, samples, mode)
        return (result,)


def _samples(start: Any, size: Any, count: int, each: int, extent: int) -> list[tuple[Array, Array]]:
    """Along one axis, for `count` bins of `each` samples: the two neighbours of every sample with their weights."""
    positions = start + size / count * (np.arange(count * each, dtype=np.float32) + np.float32(0.5)) / max(each, 1)
    inside = (positions >= -1) & (positions <= extent)
    positions = np.clip(positions, 0, extent - 1)
    low = positions.astype(np.int64)
    part = positions - low
    return [(low, np.where(inside, 1 - part, 0)), (np.minimum(low + 1, extent - 1), np.where(inside, part, 0))]


def _pooled(image: Array, axes: list[Any], bins: tuple[int, int], samples: list[int], mode: str) -> Array:
    """The bins of one region of an image [channel, h, w]; the maximum is over weighted neighbours, as in ONNX."""
    rows, columns = axes
    parts = [image[:, r[:, None], c] * (wr[:, None] * wc).astype(image.dtype) for r, wr in rows for c, wc in columns]
    shape = (len(image), bins[0], samples[0], bins[1], samples[1])
    if mode == "max":
        return np.asarray(np.maximum.reduce(parts).reshape(shape).max(axis=(2, 4), initial=-np.inf))
    return np.asarray(sum(parts).reshape(shape).sum(axis=(2, 4)) / max(samples[0] * samples[1], 1))


OPERATORS = {operator.__name__: operator for operator in (NonMaxSuppression, RoiAlign, ScatterElements, ScatterND)}
