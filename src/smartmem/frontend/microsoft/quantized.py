"""Operators of quantized tensors: dequantize the operands, compute in floats, quantize the result.

ONNX Runtime's quantizer writes the QLinear* operators; MatMulNBits has weights of 4 or 8 bits with a scale per block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from smartmem.frontend.microsoft.body import Array, Body, Rule

_POOL = ("kernel_shape", "strides", "pads", "dilations", "auto_pad", "ceil_mode", "count_include_pad")


def _quantized_operator(op: str, *kept: str) -> Rule:
    """The rule ``quantize(op(dequantized operands))``.

    Inputs are (tensor, scale, zero point) for each operand, then scale and zero point of the result. `kept`: attributes
    that ONNX's operator has, too.
    """

    def rule(b: Body) -> str | None:
        if b.attribute("channels_last", 0):
            return None
        whole = len(b.node.input) % 3 == 2  # the last zero point may be left out
        *operands, scale, zero = [*b.node.input] if whole else [*b.node.input, ""]
        return b("QuantizeLinear", b(op, *_all_dequantized(b, operands), **b.attributes(*kept)), scale, zero)

    return rule


def _all_dequantized(b: Body, operands: Sequence[str]) -> list[str]:
    """Each (tensor, scale, zero point) as floats."""
    return [b("DequantizeLinear", *operands[k : k + 3]) for k in range(0, len(operands), 3)]


def _quantized_softmax(b: Body) -> str | None:
    """Before opset 13 the axes from `axis` on are one; the last axis alone is the same in both."""
    shape, axis = b.shape(b.operand(0)), b.attribute("axis", -1)
    if b.attribute("opset", 13) < 13 and (shape is None or axis not in (-1, len(shape) - 1)):
        return None
    return b(
        "QuantizeLinear", b("Softmax", b("DequantizeLinear", *b.operands(3)), axis=axis), b.operand(3), b.operand(4)
    )


def _quantized_concat(b: Body) -> str:
    """Scale and zero point of the result come first."""
    scale, zero, *operands = b.node.input
    return b("QuantizeLinear", b("Concat", *_all_dequantized(b, operands), axis=b.attribute("axis")), scale, zero)


def _matmul_to_float(b: Body) -> str:
    """``(a - za) @ (b - zb) * (sa * sb) + bias``; DynamicQuantizeMatMul finds sa and za itself."""
    if b.node.op_type == "DynamicQuantizeMatMul":
        source, right, right_scale, right_zero, bias = b.operands(5)
        left, left_scale, left_zero = b.results("DynamicQuantizeLinear", 3, source)
    else:
        left, right, left_scale, right_scale, left_zero, right_zero, bias = b.operands(7)
    sums = b("Cast", b("MatMulInteger", left, right, left_zero, right_zero), to=TensorProto.FLOAT)
    return b.total(b("Mul", sums, b("Mul", left_scale, right_scale)), bias)


def _quantized_gemm(b: Body) -> str:
    """Gemm of quantized operands; the bias has the scale of the sums, and the result is quantized if it has a scale."""
    left, left_scale, left_zero, right, right_scale, right_zero, bias, scale, zero = b.operands(9)
    transposed = b.attributes("transA", "transB")
    operands = [
        b("DequantizeLinear", left, left_scale, left_zero),
        b("DequantizeLinear", right, right_scale, right_zero, axis=0 if transposed.get("transB") else 1),
    ]
    if bias:
        number = b("Cast", bias, to=TensorProto.FLOAT)
        operands.append(b("Mul", number, b("Mul", left_scale, right_scale)))
    alpha = b.attribute("alpha", 1.0)
    result = b("Gemm", *operands, alpha=alpha, beta=alpha, **transposed)
    return b("QuantizeLinear", result, scale, zero) if scale else result


def _matmul_of_few_bits(b: Body) -> str | None:
    """``x @ W' + bias`` with W (N, K): ``W[n, k] = (q[n, k] - zero[n, j]) * scale[n, j]``, j = k // block.

    q and packed zero points have 4 or 8 bits, two 4-bit numbers a byte, the lower half first; a row starts a byte.
    """
    x, packed, scales, zeros, groups, bias = b.operands(6)
    rows, columns, block = (b.attribute(name) for name in ("N", "K", "block_size"))
    bits = b.attribute("bits", 4)
    b.ignore("accuracy_level")  # the least exactness that is allowed
    weights, zero, blocks = b.data(packed), b.data(zeros), -(-columns // block)
    if groups or weights is None or bits not in (4, 8) or b.attribute("weight_prepacked", 0):
        return None
    if not zeros:
        zero = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
    elif zero is not None and zero.dtype == np.uint8 and zero.size == rows * -(-blocks * bits // 8):
        zero = _unpacked(zero.reshape(rows, -1), bits)[:, :blocks]
    else:
        return None
    if weights.size != rows * blocks * block * bits // 8:
        return None
    numbers = _unpacked(weights.reshape(rows, -1), bits)[:, :columns]
    scale = b.reshape(scales, rows, blocks)
    operands = [b.constant(numbers, np.uint8), scale, b.constant(zero, np.uint8)]
    matrix = b("DequantizeLinear", *operands, axis=1, block_size=block)
    return b.total(b("MatMul", x, b("Transpose", matrix, perm=[1, 0])), bias)


def _unpacked(data: Array, bits: int) -> Array:
    """Numbers of `bits` bits from the bytes of each row, the lower first."""
    if bits == 8:
        return data
    halves: Any = np.stack([data & 15, data >> 4], axis=-1)
    return np.asarray(halves.reshape(data.shape[0], -1))


RULES: dict[str, Rule] = {
    "DynamicQuantizeMatMul": _matmul_to_float,
    "MatMulIntegerToFloat": _matmul_to_float,
    "MatMulNBits": _matmul_of_few_bits,
    "QGemm": _quantized_gemm,
    "QLinearAdd": _quantized_operator("Add"),
    "QLinearAveragePool": _quantized_operator("AveragePool", *_POOL),
    "QLinearConcat": _quantized_concat,
    "QLinearGlobalAveragePool": _quantized_operator("GlobalAveragePool"),
    "QLinearLeakyRelu": _quantized_operator("LeakyRelu", "alpha"),
    "QLinearMul": _quantized_operator("Mul"),
    "QLinearSigmoid": _quantized_operator("Sigmoid"),
    "QLinearSoftmax": _quantized_softmax,
}
