"""Products whose operand B one row tile reads: it is not packed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.support.onnx_models import info, infos, model

import smartmem
from smartmem.compiler import build_program


def attention(batch: int, queries: int, keys: int, depth: int, width: int, routes: bool = False) -> onnx.ModelProto:
    """``softmax(q k^T) v + v0``, with rows of k and v that an index of the batch entry gives (`routes`), or all."""
    shapes = {"q": (batch, queries, depth), "k": (batch, keys, depth), "v": (batch, keys, width)}
    nodes, keyed, valued = [], "k", "v"
    inputs = infos(shapes)
    if routes:
        inputs.append(info("i", (batch, keys), onnx.TensorProto.INT64))
        for name, inner in (("k", depth), ("v", width)):
            nodes += [
                helper.make_node("Unsqueeze", ["i", "last"], [f"i1{name}"]),
                helper.make_node("Expand", [f"i1{name}", f"as{name}"], [f"i2{name}"]),
                helper.make_node("GatherElements", [name, f"i2{name}"], [f"{name}r"], axis=1),
            ]
            del inner
        keyed, valued = "kr", "vr"
    nodes += [
        helper.make_node("Transpose", [keyed], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", valued], ["o"]),
        helper.make_node("Mul", ["o", "bias"], ["y"]),
    ]
    constants = {
        "bias": np.linspace(1, 2, width, dtype=np.float32),
        "last": np.array([-1]),
        "ask": np.array([batch, keys, depth]),
        "asv": np.array([batch, keys, width]),
    }
    return model(nodes, inputs, constants=constants)


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, i: np.ndarray | None = None) -> np.ndarray:
    """In double precision."""
    if i is not None:
        k, v = (np.take_along_axis(x, i[:, :, None], 1) for x in (k, v))
    t = q.astype(np.float64) @ k.transpose(0, 2, 1)
    e = np.exp(t - t.max(-1, keepdims=True))
    result: np.ndarray = e / e.sum(-1, keepdims=True) @ v * np.linspace(1, 2, v.shape[-1], dtype=np.float32)
    return result


def source(proto: onnx.ModelProto, level: str = "full") -> str:
    return "".join(build_program(proto, level=level, march="x86-64-v4").sources.values())


def is_read_once(proto: onnx.ModelProto, level: str = "full") -> bool:
    return "column[0] = " in source(proto, level)


@pytest.mark.parametrize("routes", [False, True])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "depth", "width", "once"),
    [
        (40, 4, 64, 32, 32, True),
        (3, 6, 197, 64, 64, True),
        (5, 1, 33, 7, 16, True),
        (6, 7, 48, 64, 16, True),
        (4, 6, 50, 16, 80, False),  # more sums than registers
        (4, 4, 50, 16, 24, False),  # columns that fill no vector
        (4, 40, 64, 32, 32, False),  # several row tiles
    ],
)
def test_numbers(batch: int, queries: int, keys: int, depth: int, width: int, once: bool, routes: bool) -> None:
    proto = attention(batch, queries, keys, depth, width, routes)
    rng = np.random.default_rng(0)
    given = {
        "q": rng.standard_normal((batch, queries, depth)).astype(np.float32),
        "k": rng.standard_normal((batch, keys, depth)).astype(np.float32),
        "v": rng.standard_normal((batch, keys, width)).astype(np.float32),
    }
    if routes:
        given["i"] = rng.integers(0, keys, (batch, keys))
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(**given), reference(**given), rtol=1e-4, atol=1e-5)
    squares = queries < 8 and keys % 16 == 0 and depth % 16 == 0
    assert ("acc[i][j % 2] +=" in source(proto)) == squares
    if routes or not once:
        assert is_read_once(proto) == once
    assert not is_read_once(proto, "layout")


@pytest.mark.parametrize(
    ("queries", "keys", "width", "sums"),
    [(4, 64, 32, "acc[2][4][2]"), (4, 63, 32, "acc[1][4][2]"), (6, 64, 64, "acc[1][6][4]")],
)
def test_sums_in_turns(queries: int, keys: int, width: int, sums: str) -> None:
    """Two of each, unless the keys are odd or the registers too few."""
    assert f"f32v {sums};" in source(attention(6, queries, keys, 32, width, routes=True))


def test_keys_and_values_of_the_same_tokens_share_starts() -> None:
    """Both are read where routes say, from one tensor: the addresses are found once."""
    regions, routes, heads, width = 6, 4, 2, 32
    nodes = [
        helper.make_node("Split", ["kv"], ["k0", "v0"], axis=2),
        *(helper.make_node("Gather", [f"{n}0", "i"], [f"{n}1"], axis=0) for n in "kv"),
        helper.make_node("Reshape", ["k1", "as"], ["k2"]),
        helper.make_node("Reshape", ["v1", "as"], ["v2"]),
        helper.make_node("Transpose", ["k2"], ["k"], perm=[0, 2, 3, 1]),
        helper.make_node("Transpose", ["v2"], ["v"], perm=[0, 2, 1, 3]),
        helper.make_node("MatMul", ["q", "k"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    tokens = 4 * routes
    shapes = {"q": (regions, heads, 4, width), "kv": (regions, 4, 2 * heads, width)}
    given = [*infos(shapes), info("i", (regions, routes), onnx.TensorProto.INT64)]
    proto = model(nodes, given, constants={"as": np.array([regions, tokens, heads, width])})
    text = source(proto)
    assert text.count(f"!= b / {heads})") == 1
    assert text.count("const long found = ") == 1  # and a route is looked up once for the four tokens of its region
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds["i"] = rng.integers(0, regions, (regions, routes))
    taken = feeds["kv"][feeds["i"]].reshape(regions, tokens, 2 * heads, width).transpose(0, 2, 1, 3).astype(np.float64)
    e = np.exp(feeds["q"] @ taken[:, :heads].swapaxes(-1, -2))
    wanted = e / e.sum(-1, keepdims=True) @ taken[:, heads:]
    with smartmem.compile(proto, threads=2) as compiled:
        np.testing.assert_allclose(compiled(**feeds), wanted, rtol=1e-4, atol=1e-5)
