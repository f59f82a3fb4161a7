"""Operators of ONNX Runtime's own domain, against ONNX Runtime; quantized results are at most one step apart."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tests.support.onnx_models import info, model

import smartmem

RANDOM = np.random.default_rng(0)
IMAGE = (1, 8, 6, 7)


def bytes_of(*shape: int, kind: Any = np.uint8) -> Any:
    limits = np.iinfo(kind)
    return RANDOM.integers(limits.min, int(limits.max) + 1, shape).astype(kind)


def quantum(scale: float, zero: int, kind: Any = np.uint8) -> list[Any]:
    return [np.float32(scale), kind(zero)]


def apart(op: str, operands: list[Any], result: int, steps: float, **attributes: Any) -> None:
    """Runs an operator of `operands`, the first of which is the input; None: absent."""
    names = [f"i{k}" if x is not None else "" for k, x in enumerate(operands)]
    node = helper.make_node(op, names, ["y"], domain="com.microsoft", **attributes)
    x = operands[0]
    constants = {name: value for name, value in zip(names[1:], operands[1:], strict=True) if value is not None}
    inputs = [info(names[0], x.shape, helper.np_dtype_to_tensor_dtype(x.dtype))]
    proto: onnx.ModelProto = model(
        [node], inputs, [info("y", None, result)], constants, 13, domains={"com.microsoft": 1}
    )
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {names[0]: x})[0]
    assert len(np.unique(wanted)) > 5
    with smartmem.compile(proto) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        got = compiled(x)
    assert got.dtype == wanted.dtype
    assert np.abs(got.astype(np.float64) - wanted).max() <= steps


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_two_operands(op: str) -> None:
    other = [bytes_of(*IMAGE), *quantum(0.03, 100)]
    apart(op, [bytes_of(*IMAGE), *quantum(0.02, 120), *other, *quantum(0.05, 128)], TensorProto.UINT8, 1)
    apart(op, [bytes_of(*IMAGE), *quantum(0.02, 120), *other, np.float32(0.05)], TensorProto.UINT8, 1)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("QLinearSigmoid", {}),
        ("QLinearLeakyRelu", {"alpha": 0.1}),
        ("QLinearSoftmax", {"axis": 1, "opset": 13}),
        ("QLinearGlobalAveragePool", {"channels_last": 0}),
        ("QLinearAveragePool", {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 1, 1, 1], "channels_last": 0}),
    ],
)
def test_one_operand(op: str, attributes: dict[str, Any]) -> None:
    into = quantum(0.004, 0) if op in ("QLinearSigmoid", "QLinearSoftmax") else quantum(0.01, 110)
    apart(op, [bytes_of(*IMAGE), *quantum(0.02, 120), *into], TensorProto.UINT8, 1, **attributes)


def test_concat() -> None:
    node = helper.make_node(
        "QLinearConcat", ["sy", "zy", "x", "sx", "zx", "w", "sw", "zw"], ["y"], axis=1, domain="com.microsoft"
    )
    constants = {"sy": np.float32(0.03), "zy": np.uint8(9), "sx": np.float32(0.02), "zx": np.uint8(120)}
    constants |= {"w": bytes_of(*IMAGE), "sw": np.float32(0.01), "zw": np.uint8(3)}
    x = bytes_of(*IMAGE)
    inputs, outputs = [info("x", IMAGE, TensorProto.UINT8)], [info("y", None, TensorProto.UINT8)]
    proto = model([node], inputs, outputs, constants, 13, domains={"com.microsoft": 1})
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto) as compiled:
        assert np.abs(compiled(x).astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("quantized", [False, True])
def test_gemm(transposed: int, quantized: bool) -> None:
    shape = (40, 64) if transposed else (64, 40)
    weights = [bytes_of(*shape, kind=np.int8), RANDOM.uniform(0.01, 0.02, 40).astype(np.float32), np.zeros(40, np.int8)]
    bias = RANDOM.integers(-5000, 5000, 40).astype(np.int32)
    into = quantum(0.5, 128) if quantized else []
    operands = [bytes_of(9, 64), *quantum(0.02, 120), *weights, bias, *into]
    kind, steps = (TensorProto.UINT8, 1) if quantized else (TensorProto.FLOAT, 1e-3)
    apart("QGemm", operands, kind, steps, transB=transposed, alpha=1.0)


def test_matrix_products_to_floats() -> None:
    weights, scale, bias = (
        bytes_of(64, 40, kind=np.int8),
        np.float32(0.02),
        RANDOM.standard_normal(40).astype(np.float32),
    )
    x = RANDOM.standard_normal((9, 64)).astype(np.float32)
    apart("DynamicQuantizeMatMul", [x, weights, scale, np.int8(0), bias], TensorProto.FLOAT, 1e-4)
    apart("DynamicQuantizeMatMul", [x, weights, scale], TensorProto.FLOAT, 1e-4)
    operands = [bytes_of(9, 64), weights, np.float32(0.01), scale, np.uint8(120), np.int8(0), bias]
    apart("MatMulIntegerToFloat", operands, TensorProto.FLOAT, 1e-4)


# Operators of floats, as its graph optimizer and transformer optimizer write them


FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
ONE = [FLOAT]
Results = Sequence[int]


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


def node_model(op: str, operands: list[Any], constants: Container[int], results: Results, **attributes: Any) -> Any:
    """A model of one operator with `results` of these types, and its inputs by name; None: an absent operand."""
    names = [f"i{k}" if x is not None else "" for k, x in enumerate(operands)]
    outputs = [f"y{k}" for k in range(len(results))]
    node = helper.make_node(op, names, outputs, "n", domain="com.microsoft", **attributes)
    given = {name: (k in constants, x) for k, (name, x) in enumerate(zip(names, operands, strict=True)) if name}
    fixed = {name: x for name, (constant, x) in given.items() if constant}
    feeds = {name: x for name, (constant, x) in given.items() if not constant}
    inputs = [info(name, x.shape, helper.np_dtype_to_tensor_dtype(x.dtype)) for name, x in feeds.items()]
    kinds = [info(name, None, kind) for name, kind in zip(outputs, results, strict=True)]
    return model([node], inputs, kinds, fixed, 17, domains={"com.microsoft": 1}), feeds


def ours(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    with smartmem.compile(proto) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        got = compiled(**feeds)
    return list(got.values()) if isinstance(got, dict) else list(got) if isinstance(got, tuple) else [got]


def close(got: Any, wanted: Any, bound: float = 1e-5) -> None:
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert np.abs(got - wanted).max() <= bound * max(1.0, np.abs(wanted).max())


def agrees(
    op: str, operands: list[Any], constants: Container[int] = (), results: Results = ONE, **attributes: Any
) -> None:
    """One operator gives what ONNX Runtime's CPU provider gives."""
    proto, feeds = node_model(op, operands, constants, results, **attributes)
    wanted = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    for mine, theirs in zip(ours(proto, feeds), wanted, strict=True):
        close(mine, theirs)


def declined(
    op: str, operands: list[Any], constants: Container[int] = (), results: Results = ONE, **attributes: Any
) -> None:
    """An error says which node, and what to do."""
    proto, _ = node_model(op, operands, constants, results, **attributes)
    with pytest.raises(smartmem.ModelError, match=f'{op} "n".*without ONNX Runtime'):
        smartmem.compile(proto)


@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_matmul_of_transposed_operands(op: str, left: int, right: int) -> None:
    a, b = normal(2, 3, *((7, 5) if left else (5, 7))), normal(3, *((6, 7) if right else (7, 6)))
    agrees(op, [a, b], transA=left, transB=right, alpha=0.125)


def test_matmul_declines_transposed_batches() -> None:
    declined("FusedMatMul", [normal(5, 3, 7), normal(3, 7, 6)], transBatchA=1)


GEMM = {"alpha": 0.5, "beta": 2.0, "transB": 1}


@pytest.mark.parametrize(
    "activation",
    [
        {"activation": "Relu"},
        {"activation": "Tanh"},
        {"activation": "Sigmoid"},
        {"activation": "LeakyRelu", "activation_alpha": 0.2},
        {"activation": "HardSigmoid", "activation_alpha": 0.3, "activation_beta": 0.4},
    ],
)
def test_gemm_with_an_activation(activation: dict[str, Any]) -> None:
    agrees("FusedGemm", [normal(5, 8), normal(6, 8), normal(6)], **GEMM, **activation)
    agrees("FusedGemm", [normal(5, 8), normal(6, 8)], **GEMM, **activation)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    "activation",
    [
        {},
        {"activation": "Relu"},
        {"activation": "Tanh"},
        {"activation": "Sigmoid"},
        {"activation": "LeakyRelu", "activation_params": [0.2]},
        {"activation": "Clip", "activation_params": [-0.5, 1.5]},
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ],
)
def test_convolution_with_an_activation(activation: dict[str, Any], added: bool) -> None:
    image = [normal(1, 4, 9, 8), normal(6, 2, 3, 3), normal(6)] + ([normal(1, 6, 9, 8)] if added else [])
    agrees("FusedConv", image, constants=(1, 2), group=2, pads=[1, 1, 1, 1], kernel_shape=[3, 3], **activation)


def test_activation_that_is_unknown() -> None:
    declined("FusedConv", [normal(1, 4, 9, 8), normal(6, 4, 3, 3)], activation="Fancy")


def gelu(x: Any) -> Any:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_sums_before_an_operator() -> None:
    """ONNX Runtime has these on GPUs alone."""
    x, bias, skip = normal(2, 5, 8), normal(8), normal(2, 5, 8)
    close(ours(*node_model("BiasAdd", [x, bias, skip], (1,), ONE))[0], x + bias + skip)
    x = x + bias
    halves = (x[..., :4] * gelu(x[..., 4:])).astype(np.float32)
    close(ours(*node_model("BiasSplitGelu", [x - bias, bias], (1,), ONE))[0], halves, 1e-4)
    powers = np.exp(x + skip)
    wanted = powers / powers.sum(-1, keepdims=True)
    close(ours(*node_model("BiasSoftmax", [x, skip], (), ONE, axis=2, is_inner_broadcast=1))[0], wanted)
    declined("BiasSoftmax", [x, skip], axis=1, is_inner_broadcast=1)


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("op", ["GroupNorm", "SkipGroupNorm"])
@pytest.mark.parametrize("last", [0, 1])
def test_group_norm(op: str, activation: int, last: int) -> None:
    """ONNX Runtime has these on GPUs alone."""
    x, gamma, beta, skip, bias = normal(2, 6, 5, 8), normal(8), normal(8), normal(2, 8), normal(8)
    operands = [x if last else x.transpose(0, 3, 1, 2), gamma, beta] + ([skip, bias] if op == "SkipGroupNorm" else [])
    wanted_attributes = {"groups": 4, "epsilon": 1e-5, "activation": activation, "channels_last": last}
    if op == "SkipGroupNorm" and not last:
        return declined(op, operands, **wanted_attributes)
    x = x + skip[:, None, None] + bias if op == "SkipGroupNorm" else x
    groups = x.reshape(2, 6, 5, 4, 2).astype(np.float64)
    mean, variance = groups.mean((1, 2, 4), keepdims=True), groups.var((1, 2, 4), keepdims=True)
    wanted = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * gamma + beta
    wanted = (wanted / (1 + np.exp(-wanted)) if activation else wanted).astype(np.float32)
    outputs = 2 * ONE if op == "SkipGroupNorm" else ONE
    got = ours(*node_model(op, operands, (1, 2, 4), outputs, **wanted_attributes))
    close(got[0], wanted if last else wanted.transpose(0, 3, 1, 2))
    if len(outputs) == 2:
        close(got[1], x)


BERT = [normal(20, 16), normal(9, 16), normal(3, 16), normal(16), normal(16)]


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("placed", [None, 1, 2])
def test_embeddings(segments: bool, masked: bool, placed: int | None) -> None:
    words, positions, kinds, gamma, beta = BERT
    ids, segment = (RANDOM.integers(0, high, (2, 7)).astype(np.int32) for high in (20, 3))
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32) if masked else None
    at = RANDOM.integers(0, 9, (placed, 7)).astype(np.int32) if placed else None
    operands = [ids, segment if segments else None, words, positions, kinds if segments else None, gamma, beta]
    agrees("EmbedLayerNormalization", [*operands, mask, at], range(2, 7), [FLOAT, INT32], epsilon=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_embeddings_with_all_results(masked: bool) -> None:
    words, positions, kinds, gamma, beta = BERT
    ids, segment = (RANDOM.integers(0, high, (2, 7)).astype(np.int32) for high in (20, 3))
    mask = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32) if masked else None
    agrees(
        "EmbedLayerNormalization",
        [ids, segment, words, positions, kinds, gamma, beta, mask],
        range(2, 7),
        [FLOAT, INT32, FLOAT],
    )


# Attention


def rows_of(lengths: list[int], width: int) -> Any:
    """A row of `lengths[i]` ones, then zeros."""
    return (np.arange(width) < np.array(lengths)[:, None]).astype(np.int32)


MASKS: dict[str, Any] = {
    "none": None,
    "keys": rows_of([9, 4], 9)[:, ::-1].copy(),
    "pairs": RANDOM.integers(0, 2, (2, 9, 9)).astype(np.int32),
    "lengths": np.array([9, 4], np.int32),
    "bounds": np.array([9, 7, 0, 3], np.int32),
}


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_attention(mask: str, causal: int) -> None:
    x, weights, bias = normal(2, 9, 16), normal(16, 48) / 4, normal(48)
    agrees("Attention", [x, weights, bias, MASKS[mask]], (1, 2), num_heads=4, unidirectional=causal)


def test_attention_with_a_bias_and_a_scale() -> None:
    x, weights, bias, scores = normal(2, 9, 16), normal(16, 48) / 4, normal(48), normal(2, 4, 9, 9)
    operands = [x, weights, bias, MASKS["keys"], None, scores]
    for causal in (0, 1):
        agrees("Attention", operands, (1, 2), num_heads=4, scale=0.7, mask_filter_value=-3.0, unidirectional=causal)
    agrees("Attention", [*operands[:5], scores[:1, :1]], (1, 2), num_heads=4)


def test_attention_with_values_of_another_size() -> None:
    x, weights, bias = normal(2, 9, 16), normal(16, 40) / 4, normal(40)
    agrees("Attention", [x, weights, bias], (1, 2), num_heads=4, qkv_hidden_sizes=[16, 16, 8])


@pytest.mark.parametrize("queries", [1, 3])
def test_attention_with_a_past(queries: int) -> None:
    x, weights, bias, past = normal(2, queries, 16), normal(16, 48) / 4, normal(48), normal(2, 2, 4, 6, 4)
    mask = rows_of([6 + queries, 5], 6 + queries)
    agrees("Attention", [x, weights, bias, mask, past], (1, 2), 2 * ONE, num_heads=4, unidirectional=1)
    agrees("Attention", [x, weights, bias, None, past], (1, 2), 2 * ONE, num_heads=4, unidirectional=1)


def test_attention_declines_what_it_does_not_know() -> None:
    operands = [normal(2, 9, 16), normal(16, 48), normal(48)]
    declined("Attention", operands, (1, 2), num_heads=4, an_attribute_of_later=1)
    declined("Attention", operands, (1, 2), num_heads=4, do_rotary=1)
    declined("Attention", [*operands, np.zeros(8, np.int32)], (1, 2), num_heads=4)
    declined("MultiHeadAttention", [normal(2, 9, 4, 3, 4)], num_heads=4)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("keys", [9, 5])
@pytest.mark.parametrize("mask", MASKS)
def test_multi_head_attention(mask: str, keys: int, causal: int) -> None:
    query, key, value = normal(2, 9, 16), normal(2, keys, 16), normal(2, keys, 16)
    if mask == "bounds":
        return declined("MultiHeadAttention", [query, key, value, None, MASKS[mask]], num_heads=4)
    padding = MASKS[mask] if mask in ("none", "lengths") else MASKS[mask][..., :keys].copy()
    agrees("MultiHeadAttention", [query, key, value, None, padding], num_heads=4, unidirectional=causal)
    operands = [query, key, value, normal(48), padding, normal(1, 4, 9, keys)]
    agrees("MultiHeadAttention", operands, (3,), num_heads=4, unidirectional=causal, scale=0.4)


def test_multi_head_attention_with_values_of_another_size() -> None:
    query, key, value = normal(2, 9, 16), normal(2, 5, 16), normal(2, 5, 24)
    agrees("MultiHeadAttention", [query, key, value, normal(56)], (3,), num_heads=4)


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("causal", [0, 1])
def test_multi_head_attention_with_a_past(queries: int, causal: int) -> None:
    query, key, value = (normal(2, queries, 16) for _ in range(3))
    past = [normal(2, 4, 6, 4), normal(2, 4, 6, 4)]
    operands = [query, key, value, normal(48), None, None, *past]
    agrees("MultiHeadAttention", operands, (3,), 3 * ONE, num_heads=4, unidirectional=causal)
    operands[4] = rows_of([6 + queries, 5], 6 + queries)
    agrees("MultiHeadAttention", operands, (3,), 3 * ONE, num_heads=4, unidirectional=causal)


@pytest.mark.parametrize("mask", ["keys", "lengths"])
def test_layers_share_a_mask_and_are_one_kernel_each(mask: str) -> None:
    constants: dict[str, Any] = {}
    nodes = []
    for k in range(2):
        constants |= {f"w{k}": normal(16, 48) / 4, f"b{k}": normal(48)}
        operands = [f"x{k}", f"w{k}", f"b{k}", "m"]
        nodes.append(helper.make_node("Attention", operands, [f"x{k + 1}"], domain="com.microsoft", num_heads=4))
    x, m = normal(2, 9, 16), MASKS[mask]
    inputs = [info("x0", x.shape), info("m", m.shape, INT32)]
    proto = model(nodes, inputs, [info("x2", None)], constants, domains={"com.microsoft": 1})
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x0": x, "m": m})[0]
    with smartmem.compile(proto) as compiled:
        kernels = compiled.program.report["kernels"]
        close(compiled(x0=x, m=m), wanted)
    assert [kernel["family"] for kernel in kernels].count("attention") == 2


# Weights of 4 or 8 bits


def packed(numbers: Any, bits: int) -> Any:
    """Rows of numbers of `bits` bits as bytes, the lower half first; a row starts a byte."""
    if bits == 8:
        return numbers.astype(np.uint8)
    even = np.pad(numbers, [(0, 0), (0, numbers.shape[1] % 2)])
    return (even[:, ::2] | even[:, 1::2] << 4).astype(np.uint8)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("columns", "block"), [(96, 32), (80, 32), (64, 16)])
def test_matmul_of_few_bits(bits: int, zeros: bool, biased: bool, columns: int, block: int) -> None:
    rows, blocks, blob = 24, -(-columns // block), block * bits // 8
    numbers = RANDOM.integers(0, 1 << bits, (rows, blocks * block))
    zero = packed(RANDOM.integers(0, 1 << bits, (rows, blocks)), bits) if zeros else None
    scales = RANDOM.uniform(0.01, 0.02, (rows, blocks)).astype(np.float32)
    bias = normal(rows) if biased else None
    operands = [normal(2, 5, columns), packed(numbers, bits).reshape(rows, blocks, blob), scales, zero, None, bias]
    agrees("MatMulNBits", operands, range(1, 6), N=rows, K=columns, bits=bits, block_size=block)


def test_matmul_of_few_bits_declines_an_order_of_groups() -> None:
    operands = [normal(2, 32), bytes_of(8, 1, 16), np.ones((8, 1), np.float32), None, np.zeros(32, np.int32)]
    declined("MatMulNBits", operands, range(1, 5), N=8, K=32, bits=4, block_size=32)


def test_max_pool_with_channels_last() -> None:
    x = bytes_of(1, 7, 8, 5)
    proto, feeds = node_model("NhwcMaxPool", [x], (), [TensorProto.UINT8], kernel_shape=[3, 3], strides=[2, 2])
    close(ours(proto, feeds)[0], ort.InferenceSession(proto.SerializeToString()).run(None, feeds)[0])


# Decoders


CACHES = [normal(20, 4), normal(20, 4)]
LARGER_CACHES = [normal(20, 8), normal(20, 8)]


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [np.array([3]), np.array([[0, 1, 2, 3, 4], [7, 6, 5, 4, 9]])])
def test_rotary_embedding(positions: Any, interleaved: int) -> None:
    agrees("RotaryEmbedding", [normal(2, 5, 24), positions, *CACHES], (2, 3), interleaved=interleaved)
    agrees("RotaryEmbedding", [normal(2, 3, 5, 8), positions, *CACHES], (2, 3), interleaved=interleaved)
    some = {"num_heads": 2, "rotary_embedding_dim": 8, "interleaved": interleaved}
    agrees("RotaryEmbedding", [normal(2, 5, 24), positions, *CACHES], (2, 3), **some)
    agrees("RotaryEmbedding", [normal(2, 2, 5, 12), positions, *CACHES], (2, 3), **some)


def grouped(batch: int, rows: int, past: int, size: int = 16, packed: bool = False) -> list[Any]:
    """Operands of GroupQueryAttention with 6 heads of queries and 2 of keys and values."""
    widths = (6 * size, 2 * size, 2 * size)
    parts = [normal(batch, rows, sum(widths)), None, None] if packed else [normal(batch, rows, w) for w in widths]
    before = [normal(batch, 2, past, size), normal(batch, 2, past, size)]
    total = past + rows
    return [*parts, *before, np.full(batch, total - 1, np.int32), np.array(total, np.int32)]


HEADS = {"num_heads": 6, "kv_num_heads": 2}


@pytest.mark.parametrize(("batch", "rows", "past"), [(2, 7, 0), (1, 1, 6), (1, 3, 6)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotary", [{}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1}])
def test_grouped_attention(batch: int, rows: int, past: int, packed: bool, rotary: dict[str, int]) -> None:
    operands = grouped(batch, rows, past, packed=packed) + (LARGER_CACHES if rotary else [])
    agrees("GroupQueryAttention", operands, (5, 6, 7, 8), 3 * ONE, **HEADS, **rotary)


def test_grouped_attention_with_a_bias_and_a_scale() -> None:
    operands = [*grouped(1, 3, 6, size=32), *LARGER_CACHES, None, normal(1, 6, 3, 9)]
    agrees("GroupQueryAttention", operands, (5, 6, 7, 8), 3 * ONE, **HEADS, do_rotary=1, scale=0.3)


def test_grouped_attention_declines_what_it_does_not_know() -> None:
    operands = grouped(1, 3, 6)
    declined("GroupQueryAttention", operands, (5, 6), 3 * ONE, **HEADS, softcap=5.0)
    declined("GroupQueryAttention", operands, (5, 6), 3 * ONE, **HEADS, local_window_size=4)
    declined("GroupQueryAttention", operands, (5,), 3 * ONE, **HEADS)
    declined("GroupQueryAttention", grouped(2, 1, 6), (5, 6), 3 * ONE, **HEADS)


def test_attribute_that_is_missing() -> None:
    with pytest.raises(smartmem.ModelError, match=r'MultiHeadAttention "n".*"num_heads" is missing'):
        smartmem.compile(node_model("MultiHeadAttention", [normal(2, 9, 16)] * 3, (), ONE)[0])
