"""Chains of views as models have them: every coordinate against numpy, and how many residuals (Marks) are left."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.index_maps import Chain, factorizations, marks, shapes

ALL = slice(None)


def partition(chain: Chain, window: int) -> Chain:
    """Swin: (b, h, w, c) -> (b * windows, window * window, c)."""
    b, h, w, c = chain.shape
    chain.reshape(b, h // window, window, w // window, window, c).permute(0, 1, 3, 2, 4, 5)
    return chain.reshape(b * (h // window) * (w // window), window * window, c)


def reverse(chain: Chain, b: int, h: int, w: int, window: int) -> Chain:
    """Swin: the inverse of `partition`."""
    c = chain.shape[-1]
    chain.reshape(b, h // window, w // window, window, window, c).permute(0, 1, 3, 2, 4, 5)
    return chain.reshape(b, h, w, c)


def space_to_depth(chain: Chain, r: int) -> Chain:
    n, c, h, w = chain.shape
    return chain.reshape(n, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4).reshape(n, c * r * r, h // r, w // r)


def depth_to_space(chain: Chain, r: int, mode: str) -> Chain:
    """ONNX DepthToSpace."""
    n, c, h, w = chain.shape
    if mode == "DCR":
        chain.reshape(n, r, r, c // r**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        chain.reshape(n, c // r**2, r, r, h, w).permute(0, 1, 4, 2, 5, 3)
    return chain.reshape(n, c // r**2, h * r, w * r)


def stripes(chain: Chain, h: int, w: int, sh: int, sw: int, heads: int) -> Chain:
    """CSWin img2windows with its head split: (b, h*w, c) -> (windows, heads, sh*sw, c/heads)."""
    b, _, c = chain.shape
    chain.permute(0, 2, 1).reshape(b, c, h, w)
    chain.reshape(b, c, h // sh, sh, w // sw, sw).permute(0, 2, 4, 3, 5, 1).reshape(b * h * w // (sh * sw), sh * sw, c)
    windows = chain.shape[0]
    return chain.reshape(windows, sh * sw, heads, c // heads).permute(0, 2, 1, 3)


def relative_shift(chain: Chain) -> Chain:
    """Transformer-XL and Conformer: (heads, t, 2t - 1) by offset -> (heads, t, t) by key position."""
    heads, t, p = chain.shape
    chain.pad((0, 0), (0, 0), (1, 0)).reshape(heads, p + 1, t).slice(ALL, slice(1, None)).reshape(heads, t, p)
    return chain.slice(ALL, ALL, slice(0, t))


@pytest.mark.parametrize(("h", "w", "window"), [(8, 8, 4), (14, 7, 7), (6, 12, 3)])
def test_swin_window_partition(h: int, w: int, window: int) -> None:
    partition(Chain(2, h, w, 3), window).check(max_marks=0)
    partition(Chain(2, h * w, 3).reshape(2, h, w, 3), window).check(max_marks=0)


@pytest.mark.parametrize(("h", "w", "window", "shift"), [(8, 8, 4, 2), (14, 7, 7, 3), (12, 6, 3, 1)])
def test_swin_shifted_window_partition(h: int, w: int, window: int, shift: int) -> None:
    """One Mark per rolled axis, none for the rest."""
    chain = partition(Chain(2, h, w, 3).roll(1, shift).roll(2, shift), window).check(max_marks=2)
    assert len(marks(chain.map)) == 2
    assert not marks(chain.map.coords[0], chain.map.coords[3])
    one = partition(Chain(2, h, w, 3).roll(1, shift), window).check(max_marks=1)
    assert not marks(one.map.coords[2])


@pytest.mark.parametrize(("h", "w", "window", "shift"), [(8, 8, 4, 2), (14, 7, 7, 3)])
def test_swin_window_reverse(h: int, w: int, window: int, shift: int) -> None:
    windows = (h // window) * (w // window)
    plain = reverse(Chain(2 * windows, window * window, 3), 2, h, w, window).check(max_marks=0)
    assert plain.map.inverse(plain.source.shape) is not None
    rolled = reverse(Chain(2 * windows, window * window, 3), 2, h, w, window).roll(1, -shift).roll(2, -shift)
    assert len(marks(rolled.check(max_marks=2).map)) == 2
    assert rolled.reshape(2, h * w, 3).check(max_marks=2)


def test_swin_partition_and_reverse_cancel() -> None:
    assert reverse(partition(Chain(2, 8, 12, 3), 4), 2, 8, 12, 4).check(max_marks=0).map.is_identity


@pytest.mark.parametrize("flat", [False, True])
def test_swin_patch_merging(flat: bool) -> None:
    """As four strided slices that a Concat joins (its producers store them), and as reshape and permute."""
    for row, column in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        chain = Chain(2, 48, 5).reshape(2, 6, 8, 5) if flat else Chain(2, 6, 8, 5)
        chain.slice(ALL, slice(row, None, 2), slice(column, None, 2)).reshape(2, 12, 5).check(max_marks=0)
    chain = Chain(2, 48, 5) if flat else Chain(2, 6, 8, 5)
    chain.reshape(2, 3, 2, 4, 2, 5).permute(0, 1, 3, 4, 2, 5).reshape(2, 12, 20).check(max_marks=0)


@pytest.mark.parametrize(("tokens", "heads", "size"), [(5, 3, 4), (16, 2, 8), (1, 4, 1)])
def test_attention_heads(tokens: int, heads: int, size: int) -> None:
    """ViT: split and merge; BERT: keys transposed as well."""
    split = Chain(2, tokens, heads * size).reshape(2, tokens, heads, size).permute(0, 2, 1, 3).check(max_marks=0)
    split.permute(0, 2, 1, 3).reshape(2, tokens, heads * size).check(max_marks=0)
    assert split.map.is_identity
    Chain(2, tokens, heads * size).reshape(2, tokens, heads, size).permute(0, 2, 3, 1).check(max_marks=0)
    merged = Chain(2, heads, tokens, size).permute(0, 2, 1, 3).reshape(2, tokens, heads * size).check(max_marks=0)
    merged.reshape(2 * tokens, heads * size).check(max_marks=0)
    batched = Chain(2, tokens, heads * size).reshape(2, tokens, heads, size).permute(0, 2, 1, 3)
    batched.reshape(2 * heads, tokens, size).permute(0, 2, 1).check(max_marks=0)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_qkv_split(part: int) -> None:
    tokens, heads, size = 5, 3, 4
    packed = Chain(2, tokens, 3 * heads * size).reshape(2, tokens, 3, heads, size).permute(2, 0, 3, 1, 4)
    packed.slice(slice(part, part + 1)).reshape(2, heads, tokens, size).check(max_marks=0)
    width = heads * size
    flat = Chain(2, tokens, 3 * width).slice(ALL, ALL, slice(part * width, (part + 1) * width))
    flat.reshape(2, tokens, heads, size).permute(0, 2, 1, 3).check(max_marks=0)
    interleaved = Chain(2, tokens, heads * 3 * size).reshape(2, tokens, heads, 3 * size)
    interleaved.slice(ALL, ALL, ALL, slice(part * size, (part + 1) * size)).permute(0, 2, 1, 3).check(max_marks=0)


@pytest.mark.parametrize(("sh", "sw"), [(8, 2), (2, 8), (8, 1), (8, 8)])
def test_cswin_stripes(sh: int, sw: int) -> None:
    stripes(Chain(2, 64, 12), 8, 8, sh, sw, 3).check(max_marks=0)


@pytest.mark.parametrize("r", [2, 3])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(r: int, mode: str) -> None:
    """CRD is the pixel shuffle."""
    chain = depth_to_space(Chain(2, 2 * r * r, 4, 3), r, mode).check(max_marks=0)
    if mode == "CRD":
        assert space_to_depth(chain, r).check(max_marks=0).map.is_identity


@pytest.mark.parametrize("r", [2, 3])
def test_pixel_unshuffle(r: int) -> None:
    space_to_depth(Chain(1, 3, 4 * r, 2 * r), r).check(max_marks=0)
    nhwc = Chain(1, 3, 4 * r, 2 * r).reshape(1, 3, 4, r, 2, r).permute(0, 2, 4, 1, 3, 5)
    nhwc.reshape(1, 8, 3 * r * r).check(max_marks=0)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_channel_shuffle(groups: int) -> None:
    chain = Chain(2, 12, 3, 3)
    chain.reshape(2, groups, 12 // groups, 3, 3).permute(0, 2, 1, 3, 4).reshape(2, 12, 3, 3).check(max_marks=0)
    chain.reshape(2, 12 // groups, groups, 3, 3).permute(0, 2, 1, 3, 4).reshape(2, 12, 3, 3)
    assert chain.check(max_marks=0).map.is_identity


@pytest.mark.parametrize("t", [2, 3, 5, 8])
def test_relative_shift(t: int) -> None:
    """Composed from the consumer backwards: no Mark and no guard, column t - 1 + j - i."""
    chain = relative_shift(Chain(3, t, 2 * t - 1)).check()
    index = chain.map_from_consumer
    assert index.show("hij") == f"[h, i, -i + j + {t - 1}]"
    assert index.in_bounds(chain.source.shape)


STEPS = ("reshape", "permute", "slice", "pad", "roll")


def extend(data: st.DataObject, chain: Chain, kinds: tuple[str, ...]) -> None:
    kind, shape = data.draw(st.sampled_from(kinds)), chain.shape
    if kind == "reshape":
        chain.reshape(*data.draw(factorizations(math.prod(shape))))
    elif kind == "permute":
        chain.permute(*data.draw(st.permutations(range(len(shape)))))
    elif kind == "slice":
        chain.slice(*(data.draw(_slices(n)) for n in shape))
    elif kind == "pad":
        axis = data.draw(st.integers(0, len(shape) - 1))
        low = -((shape[axis] - 1) // 2)
        amounts = (data.draw(st.integers(low, 2)), data.draw(st.integers(low, 2)))
        chain.pad(*(amounts if k == axis else (0, 0) for k in range(len(shape))))
    else:
        axis = data.draw(st.integers(0, len(shape) - 1))
        chain.roll(axis, data.draw(st.integers(-3, shape[axis] + 2)))


@st.composite
def _slices(draw: st.DrawFn, extent: int) -> slice:
    start = draw(st.integers(0, extent - 1))
    stop = draw(st.integers(start + 1, extent))
    step = draw(st.sampled_from([1, 1, 2, 3]))
    if draw(st.integers(0, 3)) == 0:
        return slice(stop - 1, start - 1 if start else None, -step)
    return slice(start, stop, step)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.data())
def test_random_chains(data: st.DataObject) -> None:
    chain = Chain(*data.draw(shapes(3)))
    for _ in range(data.draw(st.integers(1, 5))):
        extend(data, chain, STEPS)
    chain.check()


@settings(max_examples=250, deadline=None, derandomize=True)
@given(st.data())
def test_round_trips_cancel(data: st.DataObject) -> None:
    """Reshapes and permutes, then their inverses in reverse order: the identity map, composed step by step."""
    chain = Chain(*data.draw(shapes(3)))
    undo: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            undo.append(("reshape", chain.shape))
            chain.reshape(*data.draw(factorizations(math.prod(chain.shape))))
        else:
            perm = data.draw(st.permutations(range(len(chain.shape))))
            undo.append(("permute", tuple(perm.index(k) for k in range(len(perm)))))
            chain.permute(*perm)
    for kind, argument in reversed(undo):
        chain = chain.reshape(*argument) if kind == "reshape" else chain.permute(*argument)
    chain.check()
    assert chain.map_from_consumer.is_identity, chain.map_from_consumer.show()
