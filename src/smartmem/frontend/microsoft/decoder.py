"""Decoders: rotary embeddings, and attention whose queries have more heads than the keys and values.

Shapes as in `attention`; M heads of keys and values, R rotated elements of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from smartmem.frontend.microsoft.attention import Lengths, Mask, attend, in_heads, past_keys
from smartmem.frontend.microsoft.body import Body, Rule


def _rotary_embedding(b: Body) -> str | None:
    """Rotates the heads of (B, S, N * H) or (B, N, S, H) by the angles at `positions`: (B, S), or that of row 0."""
    x, positions, cos, sin = b.operands(4)
    shape, cache, rotated = b.shape(x), b.shape(cos), b.attribute("rotary_embedding_dim", 0)
    heads, interleaved = b.attribute("num_heads", 0), bool(b.attribute("interleaved", 0))
    if rotated and len(shape or ()) == 3 and not heads:
        return None
    if b.attribute("is_packed_batching", 0) or b.attribute("scale", 1.0) != 1 or shape is None or cache is None:
        return None
    rows = shape[-2]
    if b.shape(positions) == (1,):
        following = b("Add", b("Cast", positions, to=TensorProto.INT64), b.constant(np.arange(rows)))
        positions = b("Unsqueeze", following, b.constant([0]))
    elif b.shape(positions) != (shape[0], rows):
        return None
    angles = _Angles(b("Gather", cos, positions, axis=0), b("Gather", sin, positions, axis=0), cache[1], interleaved)
    if len(shape) == 4:
        turned = _rotated(b, b("Transpose", x, perm=[0, 2, 1, 3]), (shape[1], shape[3]), angles)
        return b("Transpose", turned, perm=[0, 2, 1, 3])
    size = shape[2] // heads if rotated else 2 * cache[1]
    heads = shape[2] // size
    return b.reshape(_rotated(b, b.reshape(x, 0, 0, heads, size), (heads, size), angles), 0, 0, shape[2])


@dataclass(frozen=True)
class _Angles:
    """Cosines and sines (B or 1, S, R / 2) of R / 2 pairs: neighbours if interleaved, else R / 2 apart."""

    cos: str
    sin: str
    pairs: int
    interleaved: bool


def _rotated(b: Body, x: str, heads: tuple[int, int], angles: _Angles) -> str:
    """``(p, q) -> (p * cos - q * sin, p * sin + q * cos)`` for the pairs of x (B, S, N, H); `heads`: N, H."""
    count, size = heads
    width, axis = 2 * angles.pairs, 4 if angles.interleaved else 3
    x, *rest = b.split(x, [width, size - width], axis=-1) if width < size else [x]
    paired = b.reshape(x, 0, 0, count, *((angles.pairs, 2) if angles.interleaved else (2, angles.pairs)))
    first, second = b.split(paired, [1, 1], axis=axis)
    cos, sin = (b("Unsqueeze", part, b.constant([2, axis])) for part in (angles.cos, angles.sin))
    turned = [
        b("Sub", b("Mul", first, cos), b("Mul", second, sin)),
        b("Add", b("Mul", first, sin), b("Mul", second, cos)),
    ]
    whole = b.reshape(b("Concat", *turned, axis=axis), 0, 0, count, width)
    return b("Concat", whole, *rest, axis=-1) if rest else whole


def _grouped_attention(b: Body) -> list[str] | None:
    """Causal attention in which N / M heads of queries share a head of keys and values.

    The keys follow those of the past. T is the largest length of the batch, and must be P + L: the past is no buffer
    with room to spare. With a past all lengths must be T, which is certain of a batch of 1; without one, a shorter
    length leaves only rows without a meaning.
    """
    parts, lengths = _projections(b), _lengths(b)
    if parts is None or lengths is None or not _is_plain(b):
        return None
    heads, groups = b.attribute("num_heads"), b.attribute("kv_num_heads")
    query, key, value, size = parts
    interleaved = bool(b.attribute("rotary_interleaved", 0))
    if b.attribute("do_rotary", 0):
        angles = _angles_after(b, lengths, interleaved)
        if angles is None:
            return None
        query = _rotated(b, b.reshape(query, 0, 0, heads, size), (heads, size), angles)
        key = _rotated(b, b.reshape(key, 0, 0, groups, size), (groups, size), angles)
    key, value = in_heads(b, key, groups, size), in_heads(b, value, groups, size)
    if lengths.past:
        key, value = b("Concat", b.operand(3), key, axis=2), b("Concat", b.operand(4), value, axis=2)
    extents = (lengths.batch, groups, heads // groups, lengths.keys, size)
    keys, values = _spread(b, key, extents), _spread(b, value, extents)
    scale = b.attribute("scale", 0.0) or 1 / math.sqrt(size)
    mask = Mask("", causal=True, filler=0.0)
    result = attend(b, in_heads(b, query, heads, size), keys, values, lengths, scale, b.operand(10), mask)
    return None if result is None else [result, key, value]


def _lengths(b: Body) -> Lengths | None:
    """What the rule of GroupQueryAttention can express, see there."""
    shape, past, total = b.shape(b.operand(0)), past_keys(b, b.operand(3)), b.data(b.operand(6))
    if shape is None or total is None or past is None:
        return None
    batch, rows = shape[0], shape[1]
    if total.size != 1 or int(total.reshape(-1)[0]) != past + rows or (past and batch > 1):
        return None
    return Lengths(batch, rows, past, past + rows)


def _is_plain(b: Body) -> bool:
    """Whether there are no caps, windows, sinks, quantized caches or norms, nor positions of the node's own."""
    neutral = {
        "causal": (1,),
        "local_window_size": (-1,),
        "qk_output": (0,),
        "sliding_window_cache": (0,),
        "smooth_softmax": (0, -1),
        "softcap": (0.0,),
        "k_quant_type": ("NONE",),
        "v_quant_type": ("NONE",),
    }
    known = all(b.attribute(name, values[0]) in values for name, values in neutral.items())
    return known and not b.operand(9) and not any(b.operand(index) for index in range(11, len(b.node.input)))


def _projections(b: Body) -> tuple[str, str, str, int] | None:
    """Query, key and value, which may be parts of one operand, and H."""
    query, key, value = b.operands(3)
    shape, heads, groups = b.shape(query), b.attribute("num_heads"), b.attribute("kv_num_heads")
    if shape is None or len(shape) != 3 or bool(key) != bool(value) or heads < 1 or groups < 1:
        return None
    if key:
        return query, key, value, shape[2] // heads
    size = shape[2] // (heads + 2 * groups)
    query, key, value = b.split(query, [heads * size, groups * size, groups * size], axis=-1)
    return query, key, value, size


def _angles_after(b: Body, lengths: Lengths, interleaved: bool) -> _Angles | None:
    """Those of rows whose positions follow the past, from operands 7 and 8."""
    cos, sin = b.operand(7), b.operand(8)
    cache, positions = b.shape(cos), b.constant(np.arange(lengths.past, lengths.keys).reshape(1, -1))
    if cache is None:
        return None
    return _Angles(b("Gather", cos, positions, axis=0), b("Gather", sin, positions, axis=0), cache[1], interleaved)


def _spread(b: Body, x: str, extents: tuple[int, int, int, int, int]) -> str:
    """(B, M, T, H) → (B, N, T, H), each head N / M times; `extents`: B, M, N / M, T, H."""
    batch, groups, times, rows, size = extents
    if times == 1:
        return x
    copies = b("Expand", b("Unsqueeze", x, b.constant([2])), b.constant(extents))
    return b.reshape(copies, batch, groups * times, rows, size)


RULES: dict[str, Rule] = {"GroupQueryAttention": _grouped_attention, "RotaryEmbedding": _rotary_embedding}
