"""Attention: ``softmax(scale * Q @ K' + bias + mask) @ V`` in heads, and what ONNX Runtime fuses around it.

Shapes: B batch, S queries, L new keys, P past keys, T = P + L, N heads, H their size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from ml_dtypes import finfo

from smartmem.frontend.microsoft.body import Body, Rule


@dataclass(frozen=True)
class Mask:
    """Which keys a query does not see.

    Attributes:
        keys: 0 for a hidden key, or how many keys are seen; see `_hidden`.
        causal: whether a query does not see the keys after its own.
        filler: what is added to the scores of hidden keys; a later key has the lowest score that there is.
    """

    keys: str
    causal: bool
    filler: float


@dataclass(frozen=True)
class Lengths:
    """B, S, P and T of a call."""

    batch: int
    queries: int
    past: int
    keys: int


def _attention(b: Body) -> list[str] | None:
    """Attention whose Q, K and V are ``x @ weights + bias``, in that order along the last axis."""
    x, weights, bias, mask_index, past, attention_bias, past_length = b.operands(7)
    shape, width, heads = b.shape(x), (b.shape(weights) or (0,))[-1], b.attribute("num_heads")
    sizes = b.attribute("qkv_hidden_sizes", []) or [width // 3] * 3
    mask, scale = _mask_of(b, mask_index), b.attribute("scale", 0.0)
    shared = b.attribute("past_present_share_buffer", 0) or past_length
    if shape is None or not width or heads < 1 or shared or b.attribute("do_rotary", 0):
        return None
    b.ignore("rotary_embedding_dim")
    parts = b.split(b.total(b("MatMul", x, weights), bias), sizes, axis=-1)
    query, key, value = (in_heads(b, part, heads, size // heads) for part, size in zip(parts, sizes, strict=True))
    earlier = past_keys(b, past, axis=3)
    if earlier is None:
        return None
    if earlier:
        pair = (b("Gather", past, b.constant(which), axis=0) for which in (0, 1))
        key, value = (b("Concat", old, new, axis=2) for old, new in zip(pair, (key, value), strict=True))
    lengths = Lengths(shape[0], shape[1], earlier, earlier + shape[1])
    result = attend(b, query, key, value, lengths, scale or 1 / math.sqrt(sizes[0] // heads), attention_bias, mask)
    first = b.constant([0])
    present = b("Concat", *(b("Unsqueeze", part, first) for part in (key, value)), axis=0) if b.wants(1) else ""
    return None if result is None else [result, present]


def _multi_head_attention(b: Body) -> list[str] | None:
    """Attention of query, key and value, to which their parts of `bias` are added."""
    query, key, value, bias, padding, attention_bias, past_key, past_value, *sharing = b.operands(10)
    shapes, heads = [b.shape(name) for name in (query, key, value)], b.attribute("num_heads")
    mask, scale = _mask_of(b, padding), b.attribute("scale", 0.0)
    if heads < 1 or any(sharing) or any(shape is None or len(shape) != 3 for shape in shapes):
        return None  # packed, or projected before
    (batch, queries, width), (_, keys, _), (_, _, value_width) = (shape for shape in shapes if shape)
    if b.shape(padding) == (2 * batch,):  # ends and starts: in Attention alone
        return None
    parts, sizes = [query, key, value], [width, width, value_width]
    if bias:
        parts = [b("Add", part, added) for part, added in zip(parts, b.split(bias, sizes, axis=0), strict=True)]
    query, key, value = (in_heads(b, part, heads, size // heads) for part, size in zip(parts, sizes, strict=True))
    earlier = past_keys(b, past_key)
    if earlier is None:
        return None
    if earlier:
        key, value = b("Concat", past_key, key, axis=2), b("Concat", past_value, value, axis=2)
    lengths = Lengths(batch, queries, earlier, earlier + keys)
    result = attend(b, query, key, value, lengths, scale or 1 / math.sqrt(width // heads), attention_bias, mask)
    return None if result is None else [result, key, value]


def past_keys(b: Body, past: str, axis: int = 2) -> int | None:
    """P of an operand that holds earlier keys, 0 where it is absent, None where that depends on data."""
    shape = b.shape(past)
    if past and shape is None:
        return None
    return shape[axis] if shape else 0


def _mask_of(b: Body, keys: str) -> Mask:
    return Mask(keys, bool(b.attribute("unidirectional", 0)), b.attribute("mask_filter_value", -10000.0))


def in_heads(b: Body, x: str, heads: int, size: int) -> str:
    """(B, S, N * H) → (B, N, S, H)."""
    return b("Transpose", b.reshape(x, 0, 0, heads, size), perm=[0, 2, 1, 3])


def attend(
    b: Body, query: str, key: str, value: str, lengths: Lengths, scale: float, bias: str, mask: Mask
) -> str | None:
    """``softmax(scale * query @ key' + bias + mask) @ value`` as (B, S, N * H)."""
    masks = _masks(b, mask, lengths)
    if masks is None:
        return None
    kind = b.dtype(b.operand(0))
    scores = b("Mul", b("MatMul", query, b("Transpose", key, perm=[0, 1, 3, 2])), b.constant(scale, kind))
    weights = b("Softmax", b.total(scores, bias, *masks), axis=-1)
    return b.reshape(b("Transpose", b("MatMul", weights, value), perm=[0, 2, 1, 3]), 0, 0, -1)


def _masks(b: Body, mask: Mask, lengths: Lengths) -> list[str] | None:
    """What is added to the scores (B, N, S, T): one term for the keys, one for the order. Layers share them."""
    kind = b.dtype(b.operand(0))
    terms = []
    if mask.keys:
        term = b.shared((mask, lengths, kind), lambda: _key_term(b, mask, lengths))
        if term is None:
            return None
        terms.append(term)
    if mask.causal and lengths.queries > 1:
        terms.append(b.shared((lengths, kind), lambda: _order_term(b, lengths)))
    return terms


def _key_term(b: Body, mask: Mask, lengths: Lengths) -> str | None:
    """The filler for hidden keys, 0 for others."""
    hidden, kind = _hidden(b, mask.keys, lengths), b.dtype(b.operand(0))
    return hidden and b("Where", hidden, b.constant(mask.filler, kind), b.constant(0, kind))


def _order_term(b: Body, lengths: Lengths) -> str:
    """The lowest number for keys after a query's own, 0 for others."""
    kind = b.dtype(b.operand(0))
    own = lengths.past + np.arange(lengths.queries).reshape(-1, 1)
    later = b("Greater", b.constant(np.arange(lengths.keys)), b.constant(own))
    lowest = float(finfo(kind).min)  # type: ignore[no-untyped-call]
    return b("Where", later, b.constant(lowest, kind), b.constant(0, kind))


def _hidden(b: Body, mask: str, lengths: Lengths) -> str | None:
    """Keys that no query sees, as (B, 1, 1 or S, T).

    `mask` is (B, T) or (B, S, T), positive for what is seen; or the number of keys (B); or their ends and starts (2B).
    """
    batch, queries, keys = lengths.batch, lengths.queries, lengths.keys
    shape, kind = b.shape(mask), b.dtype(mask)
    if shape in ((batch, keys), (batch, queries, keys)):
        return b("Unsqueeze", b("LessOrEqual", mask, b.constant(0, kind)), b.constant(range(1, 5 - len(shape))))
    if shape not in ((batch,), (2 * batch,)):
        return None
    positions = b.constant(np.arange(keys), kind)
    bounds = [b.reshape(part, batch, 1, 1, 1) for part in b.split(mask, [batch] * (shape[0] // batch), axis=0)]
    hidden = b("GreaterOrEqual", positions, bounds[0])
    return hidden if len(bounds) == 1 else b("Or", hidden, b("Less", positions, bounds[1]))


RULES: dict[str, Rule] = {"Attention": _attention, "MultiHeadAttention": _multi_head_attention}
