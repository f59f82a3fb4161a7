"""MatMul, Gemm, Einsum, Conv and ConvTranspose against onnx's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.definitions import check, random

from smartmem.index.lin import pseudo_axes
from smartmem.kernel.expr import Alu, Choose, Load, loads
from smartmem.kernel.stage import Stage

MATMUL = [
    ((3, 4), (4, 5)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (4,)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 5)),
    ((1, 3, 4), (2, 4, 5)),
    ((4,), (2, 4, 5)),
    ((2, 3, 4), (4,)),
    ((3, 1), (1, 5)),
    ((1, 4), (4, 1)),
]


def assert_contraction(stage: Stage) -> None:
    """The body is the product of two loads, guarded or not, and it is summed."""
    body = stage.body
    assert stage.combine == "sum"
    assert isinstance(body, Alu)
    assert body.op == "mul"
    for factor in body.args:
        inner = factor.args[0] if isinstance(factor, Alu) and factor.op == "cast" else factor
        assert isinstance(inner.then if isinstance(inner, Choose) else inner, Load)


@pytest.mark.parametrize("a, b", MATMUL)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    (stage,) = check("MatMul", [random(*a), random(*b, seed=1)])
    assert_contraction(stage)
    assert [access.tensor for access in stage.loads()] == ["x0", "x1"]


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint32, np.int64])
def test_matmul_types(dtype: Any) -> None:
    check("MatMul", [random(2, 3, 4, dtype=dtype), random(4, 5, dtype=dtype, seed=1)])


def test_matmul_in_half_accumulates_in_single() -> None:
    a, b = random(3, 200, dtype=np.float16), random(200, 5, dtype=np.float16, seed=1)
    wanted = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16)
    total, result = check("MatMul", [a, b], expected=[wanted], rtol=1e-3)
    assert_contraction(total)
    assert total.dtype == np.float32
    assert result.dtype == np.float16
    assert not result.reduce


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (3, 1), (3, 5), (1,), ()])
def test_gemm(trans_a: int, trans_b: int, bias: tuple[int, ...] | None) -> None:
    a = random(*((4, 3) if trans_a else (3, 4)))
    b = random(*((5, 4) if trans_b else (4, 5)), seed=1)
    inputs = [a, b] if bias is None else [a, b, random(*bias, seed=2)]
    stages = check("Gemm", inputs, transA=trans_a, transB=trans_b)
    assert_contraction(stages[0])
    assert len(stages) == (1 if bias is None else 2)


@pytest.mark.parametrize("alpha, beta", [(0.5, 1.0), (1.0, 0.25), (0.5, 0.25), (2.0, 0.0)])
def test_gemm_scaled(alpha: float, beta: float) -> None:
    inputs = [random(3, 4), random(4, 5, seed=1), random(5, seed=2)]
    check("Gemm", inputs, alpha=alpha, beta=beta)
    check("Gemm", inputs[:2], alpha=alpha, beta=beta)


def test_gemm_of_integers() -> None:
    check("Gemm", [random(3, 4, dtype=np.int32), random(4, 5, dtype=np.int32, seed=1)])


EINSUM = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij,jk", [(2, 3), (3, 4)]),
    ("bij, bjk -> bik", [(2, 3, 4), (2, 4, 5)]),
    ("bhid,bhjd->bhij", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (3, 4, 5)]),
    ("...ij,jk", [(2, 3, 4), (4, 5)]),
    ("ij->ji", [(2, 3)]),
    ("ij->", [(2, 3)]),
    ("ijk->j", [(2, 3, 4)]),
    ("ii->i", [(3, 3)]),
    ("ii", [(3, 3)]),
    ("...i->...", [(2, 3, 4)]),
    ("i...->...i", [(2, 3, 4)]),
    ("i,j->ij", [(2,), (3,)]),
    ("ij,ij->ij", [(2, 3), (2, 3)]),
    ("ij,ik->i", [(2, 3), (2, 4)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ("i,i,i->", [(3,), (3,), (3,)]),
    ("bi,bj,bk,ijk->b", [(2, 3), (2, 4), (2, 5), (3, 4, 5)]),
]


@pytest.mark.parametrize("equation, shapes", EINSUM)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    inputs = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    stages = check("Einsum", inputs, equation=equation)
    assert len(stages) == max(len(shapes) - 1, 1)


def test_einsum_transpose_is_a_view() -> None:
    (stage,) = check("Einsum", [random(2, 3, 4)], equation="ijk->kij")
    assert stage.is_view


def test_einsum_half() -> None:
    a, b = random(2, 3, dtype=np.float16), random(3, 4, dtype=np.float16, seed=1)
    stages = check("Einsum", [a, b], equation="ij,jk->ik", rtol=2e-3, atol=2e-3)
    assert [stage.dtype for stage in stages] == [np.float32, np.float16]


CONV = [
    {},
    {"strides": [2, 2]},
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 1, 2, 0], "strides": [2, 1]},
    {"dilations": [2, 2]},
    {"dilations": [2, 1], "pads": [1, 2, 1, 2], "strides": [1, 2]},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    {"auto_pad": "SAME_LOWER", "dilations": [2, 2]},
    {"auto_pad": "VALID", "strides": [2, 1]},
]


@pytest.mark.parametrize("attrs", CONV)
@pytest.mark.parametrize("bias", [False, True])
def test_conv(attrs: dict[str, Any], bias: bool) -> None:
    inputs = [random(2, 3, 7, 8), random(4, 3, 3, 2, seed=1)] + ([random(4, seed=2)] if bias else [])
    stages = check("Conv", inputs, frontend=True, kernel_shape=[3, 2], **attrs)
    assert_contraction(stages[0])
    assert stages[0].reduce == (3, 2, 3)  # channels last
    assert len(stages) == 1 + bias


@pytest.mark.parametrize("groups, channels, results", [(2, 4, 6), (3, 3, 3), (3, 3, 6), (4, 8, 4), (1, 1, 1)])
def test_conv_groups(groups: int, channels: int, results: int) -> None:
    inputs = [random(2, channels, 5, 5), random(results, channels // groups, 3, 3, seed=1), random(results, seed=2)]
    stages = check("Conv", inputs, group=groups, pads=[1, 1, 1, 1])
    assert not any(list(pseudo_axes(i)) for access in stages[0].loads() for i in access.index)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_ranks(rank: int) -> None:
    inputs = [random(1, 2, *(6, 5, 4)[:rank]), random(3, 2, *(3, 2, 3)[:rank], seed=1)]
    check("Conv", inputs, pads=[1] * (2 * rank), strides=[2] * rank)


def test_conv_1x1_has_no_guard() -> None:
    (stage,) = check("Conv", [random(1, 3, 4, 4), random(5, 3, 1, 1, seed=1)])
    assert isinstance(stage.body, Alu)
    assert all(isinstance(factor, Load) for factor in stage.body.args)


def test_conv_half() -> None:
    x, w, b = (random(*s, dtype=np.float16, seed=i) for i, s in enumerate([(1, 3, 5, 5), (4, 3, 3, 3), (4,)]))
    stages = check("Conv", [x, w, b], pads=[1, 1, 1, 1], rtol=4e-3, atol=2e-2)
    assert [stage.dtype for stage in stages] == [np.float32, np.float16]


def transposed(
    x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], out: tuple[int, ...], group: int, **attrs: Any
) -> np.ndarray[Any, Any]:
    """ConvTranspose by scattering: the reference has no groups beyond depthwise."""
    rank = x.ndim - 2
    strides, dilations = attrs.get("strides", [1] * rank), attrs.get("dilations", [1] * rank)
    pads, depth = attrs["pads"], x.shape[1] // group
    result = np.zeros((x.shape[0], w.shape[1] * group, *out))
    for n, c, *at in np.ndindex(*x.shape):
        for m, *tap in np.ndindex(*w.shape[1:]):
            to = [i * s + k * d - p for i, s, k, d, p in zip(at, strides, tap, dilations, pads, strict=False)]
            if all(0 <= t < extent for t, extent in zip(to, out, strict=True)):
                result[(n, c // depth * w.shape[1] + m, *to)] += float(x[(n, c, *at)]) * float(w[(c, m, *tap)])
    return result.astype(x.dtype)


TRANSPOSED: list[dict[str, Any]] = [
    {},
    {"strides": [2, 2]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    {"strides": [3, 2], "pads": [0, 1, 2, 0], "output_padding": [2, 0]},
    {"dilations": [2, 2]},
    {"dilations": [2, 1], "strides": [1, 3], "pads": [1, 1, 1, 1]},
    {"dilations": [2, 3], "strides": [2, 2]},
    {"dilations": [2, 2], "strides": [3, 3], "pads": [2, 1, 0, 1]},
]


@pytest.mark.parametrize("attrs", TRANSPOSED)
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 2)])
def test_conv_transpose(attrs: dict[str, Any], kernel: tuple[int, int]) -> None:
    inputs = [random(2, 3, 4, 5), random(3, 2, *kernel, seed=1)]
    stages = check("ConvTranspose", inputs, **attrs)
    assert_contraction(stages[0])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2], [2, 3]])
def test_conv_transpose_auto_pad(mode: str, strides: list[int]) -> None:
    inputs = [random(1, 2, 4, 5), random(2, 2, 3, 3, seed=1)]
    if mode == "VALID":
        check("ConvTranspose", inputs, frontend=True, auto_pad=mode, strides=strides)
        return
    out = (4 * strides[0], 5 * strides[1])
    amounts = [s * (n - 1) + 3 - m for n, s, m in zip((4, 5), strides, out, strict=True)]
    begins = [max(a, 0) // 2 if mode == "SAME_UPPER" else max(a, 0) - max(a, 0) // 2 for a in amounts]
    wanted = transposed(*inputs, out, 1, strides=strides, pads=begins)
    check("ConvTranspose", inputs, frontend=True, expected=[wanted], auto_pad=mode, strides=strides)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv_transpose_groups(group: int) -> None:
    x, w, b = random(2, 4, 3, 4), random(4, 3, 3, 3, seed=1), random(3 * group, seed=2)
    attrs: dict[str, Any] = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    wanted = transposed(x, w, (5, 7), group, **attrs) + b.reshape(1, -1, 1, 1)
    check("ConvTranspose", [x, w, b], expected=[wanted], group=group, **attrs)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_transpose_ranks(rank: int) -> None:
    x, w = random(1, 2, *(4, 3, 3)[:rank]), random(2, 2, *(3, 2, 3)[:rank], seed=1)
    out = tuple(2 * (n - 1) + k for n, k in zip(x.shape[2:], w.shape[2:], strict=True))
    wanted = transposed(x, w, out, 1, strides=[2] * rank, pads=[0] * rank)
    check("ConvTranspose", [x, w], expected=[wanted], strides=[2] * rank)


def test_conv_transpose_skips_the_taps_that_do_not_reach() -> None:
    """Stride 2, kernel 4, padding 1 (the usual upsampling): 2x2 taps per position, no remainder guard, no mark."""
    (stage,) = check(
        "ConvTranspose", [random(1, 3, 4, 4), random(3, 2, 4, 4, seed=1)], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    assert stage.reduce == (2, 2, 3)
    weight = stage.body.args[1] if isinstance(stage.body, Alu) else None
    assert isinstance(weight, Load)
    assert not any(list(pseudo_axes(i)) for access in loads(stage.body) for i in access.index)
