"""Normalizations with the sums before them and the activations after them; embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from smartmem.frontend.microsoft.body import Body, Rule


def _rms(b: Body) -> str:
    attributes = {"axis": b.attribute("axis", -1), "epsilon": b.attribute("epsilon", 1e-5)}
    b.ignore("stash_type")
    return b("RMSNormalization", *b.operands(2), **attributes)


def _skip_norm(b: Body) -> list[str]:
    """``norm(x + skip [+ bias])``; result 3 is the sum."""
    simplified = b.node.op_type.startswith("SkipSimplified")
    x, skip, scale, *rest = b.operands(5)
    beta, bias = ("", rest[0]) if simplified else rest
    total = b.total(x, skip, bias)
    op = "RMSNormalization" if simplified else "LayerNormalization"
    return [b(op, total, scale, beta, axis=-1, epsilon=b.attribute("epsilon", 1e-12)), "", "", total]


def _embedding(b: Body) -> list[str] | None:
    """``LayerNormalization(word[ids] + position[positions] [+ segment[segments]])``; results 1, 2: words, the sum.

    Positions count from 0 where they are not given. The number of words is that of ones in the mask, 0 without a mask.
    """
    ids, segments, words, positions, segment, gamma, beta, mask, at = b.operands(9)
    shape = b.shape(ids)
    if shape is None or len(shape) != 2:
        return None
    b.ignore("mask_index_type")
    place = b("Gather", positions, at or b.constant(np.arange(shape[1])))
    total = b.total(b("Gather", words, ids), place, b("Gather", segment, segments) if segments and segment else "")
    result = b("LayerNormalization", total, gamma, beta, axis=-1, epsilon=b.attribute("epsilon", 1e-12))
    return [result, _word_count(b, mask, shape[0]) if b.wants(1) else "", total]


def _word_count(b: Body, mask: str, batch: int) -> str:
    if not mask:
        return b.constant(np.zeros(batch), np.int32)
    ones = b("Cast", b("Equal", mask, b.constant(1, b.dtype(mask))), to=TensorProto.INT32)
    return b("ReduceSum", ones, b.constant([1]), keepdims=0)


def _group_norm(b: Body) -> list[str] | None:
    """``activation(GroupNormalization(x [+ skip + bias]))``, with channels last or second; result 1 is the sum."""
    x, gamma, beta, skip, bias = b.operands(5)
    shape, last = b.shape(x), b.attribute("channels_last", 1)
    if shape is None or len(shape) < 3 or (skip and not last):
        return None
    if skip and len(b.shape(skip) or ()) == 2:
        skip = b("Unsqueeze", skip, b.constant(range(1, len(shape) - 1)))
    total = b.total(x, skip, bias)
    rank = len(shape)
    image = b("Transpose", total, perm=[0, rank - 1, *range(1, rank - 1)]) if last else total
    scale, shift = (b("CastLike", name, x) if b.dtype(name) != b.dtype(x) else name for name in (gamma, beta))
    attributes: dict[str, Any] = {"num_groups": b.attribute("groups"), "epsilon": b.attribute("epsilon", 1e-5)}
    result = b("GroupNormalization", image, scale, shift, **attributes)
    if b.attribute("activation"):
        result = b("Swish", result)
    return [b("Transpose", result, perm=[0, *range(2, rank), 1]) if last else result, total]


def _bias_split_gelu(b: Body) -> str:
    """``left * Gelu(right)`` of the halves of ``x + bias``."""
    left, right = b.results("Split", 2, b.total(*b.operands(2)), axis=-1, num_outputs=2)
    return b("Mul", left, b("Gelu", right))


RULES: dict[str, Rule] = {
    "BiasSplitGelu": _bias_split_gelu,
    "EmbedLayerNormalization": _embedding,
    "GroupNorm": _group_norm,
    "SimplifiedLayerNormalization": _rms,
    "SkipGroupNorm": _group_norm,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
}
