"""Attention over blocks of keys: the same numbers as its definition, and no row of scores in memory."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem
from smartmem.codegen.target import target_of
from smartmem.compiler import build_program
from smartmem.schedule import pipeline
from smartmem.schedule.online import find

Array = np.ndarray


def attention(
    heads: int, queries: int, keys: int, depth: int, width: int, mask: bool = False, sqrt_first: bool = False,
    normalised: bool = True, zero_for_nan: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """``softmax(scale * q k^T + mask) v``; the mask is an input, so that anything can be in it."""
    shapes = {"q": (heads, queries, depth), "k": (heads, keys, depth), "v": (heads, keys, width)}
    if mask:
        shapes["mask"] = (queries, keys)
    constants = {"scale": np.float32(depth**-0.5)}
    nodes = [helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1])]
    if sqrt_first:
        nodes += [helper.make_node("Mul", ["q", "scale"], ["q1"]), helper.make_node("MatMul", ["q1", "kt"], ["t"])]
    else:
        nodes += [helper.make_node("MatMul", ["q", "kt"], ["s"]), helper.make_node("Mul", ["s", "scale"], ["t"])]
    last = "t"
    if mask:
        nodes.append(helper.make_node("Add", ["t", "mask"], ["u"]))
        last = "u"
    if normalised:
        nodes.append(helper.make_node("Softmax", [last], ["p"], axis=-1))
    else:
        nodes.append(helper.make_node("Relu", [last], ["p"]))
    if zero_for_nan:
        constants["zero"] = np.float32(0)
        nodes += [helper.make_node("IsNaN", ["p"], ["n"]), helper.make_node("Where", ["n", "zero", "p"], ["p0"])]
    nodes.append(helper.make_node("MatMul", ["p0" if zero_for_nan else "p", "v"], ["y"]))
    return model(nodes, shapes, constants=constants)


def random(proto: onnx.ModelProto, size: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in proto.graph.input}
    return {name: (size * rng.standard_normal(shape)).astype(np.float32) for name, shape in dims.items()}


def reference(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """In double precision."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    with np.errstate(invalid="ignore"):
        t = q @ k.transpose(0, 2, 1) * q.shape[-1] ** -0.5
        t = t if mask is None else t + mask
        e = np.exp(t - t.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v


def answer(proto: onnx.ModelProto, inputs: dict[str, Array], level: str = "full", march: str = "native") -> Array:
    with smartmem.compile(proto, level=level, march=march, threads=2) as compiled:
        result = compiled(**inputs)
    return result


def is_one_kernel(proto: onnx.ModelProto) -> bool:
    (row,) = build_program(proto, level="full").report["kernels"]
    return bool(row["family"] == "attention")


SHAPES = [
    (2, 70, 600, 64, 64),  # two blocks of keys
    (1, 33, 1000, 512, 512),  # blocks smaller than 512 keys
    (5, 9, 577, 40, 40),  # keys and columns that fill no vector: both operands B are packed
    (1, 3, 1537, 20, 36),  # fewer rows than a tile
    (4, 130, 520, 16, 8),  # one task per head
    (1, 40, 9001, 8, 24),  # longer than any row that scratch would hold
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", ["layout", "full"])
def test_numbers(shape: tuple[int, ...], level: str) -> None:
    proto = attention(*shape)
    inputs = random(proto)
    np.testing.assert_allclose(answer(proto, inputs, level), reference(**inputs), rtol=0, atol=1e-5)
    assert is_one_kernel(proto)


@pytest.mark.parametrize("march", ["x86-64-v2", "x86-64-v3"])
def test_other_vectors(march: str) -> None:
    proto = attention(2, 37, 700, 24, 40, mask=True, sqrt_first=True)
    inputs = random(proto)
    np.testing.assert_allclose(answer(proto, inputs, march=march), reference(**inputs), rtol=0, atol=1e-5)


def test_scores_that_grow_from_block_to_block() -> None:
    """Every block has a new maximum, and what was summed before it becomes nothing beside it."""
    proto = attention(1, 20, 2048, 16, 16)
    inputs = random(proto)
    inputs["k"] *= np.linspace(0.1, 200, 2048, dtype=np.float32)[:, None]
    np.testing.assert_allclose(answer(proto, inputs), reference(**inputs), rtol=0, atol=1e-5)


def masked(queries: int, keys: int) -> Array:
    """Causal, one row that sees the last key only, one that sees the first only, and one that sees nothing."""
    mask = np.where(np.arange(keys) <= np.arange(queries)[:, None] * (keys // queries), 0, -np.inf).astype(np.float32)
    mask[3:6] = -np.inf
    mask[3, -1] = mask[4, 0] = 0
    return mask


@pytest.mark.parametrize("keys", [49, 1300])
def test_masks_of_infinities(keys: int) -> None:
    proto = attention(2, 60, keys, 32, 32, mask=True)
    inputs = random(proto) | {"mask": masked(60, keys)}
    wanted = reference(**inputs)
    assert np.isnan(wanted[:, 5]).all()
    assert np.isfinite(np.delete(wanted, 5, axis=1)).all()
    np.testing.assert_allclose(answer(proto, inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keys", [40, 1300])
def test_rows_that_see_nothing_as_zeros(keys: int) -> None:
    """``where(isnan(p), 0, p)`` before the weighted sum, as torch's exporter writes it: one kernel of either kind."""
    proto = attention(2, 60, keys, 32, 32, mask=True, zero_for_nan=True)
    inputs = random(proto) | {"mask": masked(60, keys)}
    inputs["mask"][9, keys // 2] = np.nan
    wanted = reference(**inputs)
    wanted[:, [5, 9]] = 0
    np.testing.assert_allclose(answer(proto, inputs), wanted, rtol=0, atol=1e-5)
    assert is_one_kernel(proto)
    program = build_program(proto, level="full")
    assert any("sm_softmax_block" in text for text in program.sources.values()) == (keys > pipeline.WHOLE_ROWS)
    inputs["v"][:, 3] = np.nan
    assert np.isnan(np.delete(answer(proto, inputs), [5, 9], axis=1)).all()


@pytest.mark.parametrize("keys", [49, 1300])
def test_masks_of_the_lowest_number(keys: int) -> None:
    """Exporters also write the lowest float for what is masked; a row of nothing else is the mean of v."""
    proto = attention(2, 60, keys, 32, 32, mask=True)
    inputs = random(proto) | {"mask": np.maximum(masked(60, keys), np.finfo(np.float32).min)}
    wanted = reference(**inputs)
    np.testing.assert_allclose(wanted[:, 5], inputs["v"].mean(1), atol=1e-5)
    np.testing.assert_allclose(answer(proto, inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("keys", "key"), [(49, 0), (49, 17), (49, 48), (1300, 0), (1300, 700), (1300, 1299)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_a_number_stays(keys: int, key: int, value: float) -> None:
    """A score that is NaN or +inf makes its row NaN, wherever it is, and no other row."""
    proto = attention(1, 30, keys, 32, 32, mask=True)
    inputs = random(proto)
    inputs["mask"] *= 0
    inputs["mask"][7, key] = value
    wanted = reference(**inputs)
    assert np.isnan(wanted[:, 7]).all()
    np.testing.assert_allclose(answer(proto, inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("keys", "padded"), [(96, False), (112, True), (49, True)])
def test_squares_end_with_the_keys(keys: int, padded: bool) -> None:
    """The last panel of K has columns that no key has: the last key comes again, nothing beyond it is read."""
    proto = attention(2, 60, keys, 32, 32)
    sources = "".join(build_program(proto, level="full", march="x86-64-v4").sources.values())
    assert "sm_transpose(v)" in sources
    assert (f"n0 + j < {keys} ? n0 + j : {keys - 1};" in sources) == padded
    inputs = random(proto)
    np.testing.assert_allclose(answer(proto, inputs), reference(**inputs), rtol=0, atol=1e-5)


def has_quick_exponentials(proto: onnx.ModelProto) -> bool:
    sources = "".join(build_program(proto, level="full").sources.values())
    assert ("sm_exp_belowv" in sources) == ("sm_max_ordered" in sources)
    return "sm_exp_belowv" in sources


def test_only_a_softmax_has_quick_exponentials() -> None:
    """`exp(t - max t)` alone must not miss NaN in its maximum, and neither must a maximum that something else reads."""
    assert has_quick_exponentials(attention(2, 60, 49, 32, 32))
    start = [
        helper.make_node("Mul", ["x", "x"], ["t"]),
        helper.make_node("ReduceMax", ["t"], ["m"], axes=[1]),
        helper.make_node("Sub", ["t", "m"], ["d"]),
        helper.make_node("Exp", ["d"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["l"]),
    ]
    divided = [helper.make_node("Div", ["e", "l"], ["y"])]
    multiplied = [helper.make_node("Mul", ["e", "l"], ["y"])]
    read_again = [helper.make_node("Div", ["e", "l"], ["p"]), helper.make_node("Add", ["p", "m"], ["y"])]
    for last, quick in ((divided, True), (multiplied, False), (read_again, False)):
        proto = model(start + last, {"x": (8, 49)}, constants={"axes": np.array([1])})
        assert has_quick_exponentials(proto) == quick, last
        given = np.random.default_rng(0).standard_normal((8, 49)).astype(np.float32)
        given[3, 5] = np.nan
        result = answer(proto, {"x": given})
        assert np.isnan(result[3]).all()
        assert np.isfinite(np.delete(result, 3, axis=0)).all()


def test_scratch_does_not_grow_with_the_keys() -> None:
    """4,096 and 32,768 keys take the same scratch, which fits the cache that the schedule was told of."""
    models = [attention(1, 1024, keys, 64, 64) for keys in (4096, 32768)]
    sizes = [build_program(proto, level="full", march="x86-64-v3").scratch_bytes for proto in models]
    assert sizes[0] == sizes[1] < target_of("x86-64-v3").l2


def test_short_rows_are_kept_whole() -> None:
    """Up to `WHOLE_ROWS` keys the plain row pipeline is as fast, and its code is shorter."""
    for keys, blocks in ((pipeline.WHOLE_ROWS, False), (pipeline.WHOLE_ROWS + 1, True)):
        program = build_program(attention(1, 64, keys, 32, 32), level="full")
        assert any("sm_softmax_block" in text for text in program.sources.values()) == blocks


@pytest.mark.parametrize("keys", [48, 700])
def test_a_row_that_is_needed_before_and_after(keys: int) -> None:
    """``n = LayerNorm(x); y = softmax(n K^T) V + n``: blocks of rows come by twice, and n must be there both times."""
    rng = np.random.default_rng(1)
    k, v = (rng.standard_normal((32, keys)).astype(np.float32) for _ in "kv")
    values = {"g": np.ones(32, np.float32), "b": np.full(32, 0.5, np.float32)}
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "b"], ["n"]),
        helper.make_node("MatMul", ["n", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("Add", ["o", "n"], ["y"]),
    ]
    proto = model(nodes, {"x": (300, 32), "k": (32, keys), "v": (keys, 32)}, constants=values)
    x = rng.standard_normal((300, 32)).astype(np.float32)
    n = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + 0.5
    e = np.exp(n @ k - (n @ k).max(-1, keepdims=True))
    wanted = e / e.sum(-1, keepdims=True) @ v.T + n
    np.testing.assert_allclose(answer(proto, {"x": x, "k": k, "v": np.ascontiguousarray(v.T)}), wanted, atol=2e-5)


def test_only_a_softmax_goes_in_blocks() -> None:
    """The same contractions with another function between them keep their rows."""
    proto = attention(1, 30, 800, 16, 16, normalised=False)
    program = build_program(proto, level="full")
    assert not any("sm_softmax_block" in text for text in program.sources.values())
    inputs = random(proto)
    q, k, v = (x.astype(np.float64) for x in inputs.values())
    wanted = np.maximum(q @ k.transpose(0, 2, 1) / 4, 0) @ v
    np.testing.assert_allclose(answer(proto, inputs), wanted, rtol=1e-4, atol=1e-4)


def test_nothing_to_find_without_two_contractions() -> None:
    assert find([], 0) is None
