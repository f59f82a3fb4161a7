"""Products and convolutions with what ONNX Runtime fuses into them: transpositions, factors, sums, activations."""

from __future__ import annotations

from smartmem.frontend.microsoft.body import Body, Rule

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
#: Activation → its attributes, in the order in which FusedConv lists their values.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Selu": ("alpha", "gamma"),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}


def _matmul(b: Body) -> str | None:
    """``alpha * A' @ B'``; `'` swaps the last two axes where transA or transB say so."""
    left, right = (_swapped(b, b.operand(k), b.attribute(name, 0)) for k, name in enumerate(("transA", "transB")))
    if not left or not right or b.attribute("transBatchA", 0) or b.attribute("transBatchB", 0):
        return None
    product, alpha = b("MatMul", left, right), b.attribute("alpha", 1.0)
    return product if alpha == 1 else b("Mul", product, b.constant(alpha, b.dtype(b.operand(0))))


def _swapped(b: Body, x: str, swap: int) -> str | None:
    """`x` with its last two axes exchanged if `swap`."""
    if not swap:
        return x
    shape = b.shape(x)
    if shape is None or len(shape) < 2:
        return None
    rank = len(shape)
    return b("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])


def _gemm(b: Body) -> str | None:
    """``activation(Gemm(A, B, C))``."""
    product = b("Gemm", *b.operands(3), **b.attributes("alpha", "beta", "transA", "transB"))
    op = b.attribute("activation", "")
    parameters = {name: b.attribute(f"activation_{name}", None) for name in _ACTIVATIONS.get(op, ())}
    if op not in _ACTIVATIONS or None in parameters.values():
        return None if op else product
    b.ignore("activation_alpha", "activation_beta", "activation_gamma")  # those of other activations
    return b(op, product, **parameters)


def _conv(b: Body) -> str | None:
    """``activation(Conv(X, W, B) + Z)``."""
    result = b.total(b("Conv", *b.operands(3), **b.attributes(*_CONV)), b.operand(3))
    op, parameters = b.attribute("activation", ""), b.attribute("activation_params", [])
    if op == "Clip" and len(parameters) == 2:
        return b("Clip", result, *(b.constant(bound, b.dtype(b.operand(0))) for bound in parameters))
    if op not in _ACTIVATIONS or len(parameters) != len(_ACTIVATIONS[op]):
        return None if op else result
    return b(op, result, **dict(zip(_ACTIVATIONS[op], parameters, strict=True)))


def _max_pool(b: Body) -> str | None:
    """MaxPool of an image whose channels come last."""
    pooled = b("MaxPool", b("Transpose", b.operand(0), perm=[0, 3, 1, 2]), **b.attributes(*_POOL))
    return b("Transpose", pooled, perm=[0, 2, 3, 1]) if len(b.shape(b.operand(0)) or ()) == 4 else None


def _bias_softmax(b: Body) -> str | None:
    """``softmax(data + bias)`` over the last axis."""
    data, bias = b.operands(2)
    shape = b.shape(data)
    axis = b.attribute("axis", 1)
    b.ignore("is_inner_broadcast")  # the bias has extents of 1 where it is broadcast, as for Add
    if shape is None or axis not in (-1, len(shape) - 1):
        return None
    return b("Softmax", b("Add", data, bias), axis=-1)


def _gelu(b: Body) -> str:
    approximate = "tanh" if b.node.op_type == "FastGelu" else "none"
    return b("Gelu", b.total(*b.operands(2)), approximate=approximate)


RULES: dict[str, Rule] = {
    "BiasAdd": lambda b: b.total(*b.operands(3)),
    "BiasGelu": _gelu,
    "BiasSoftmax": _bias_softmax,
    "FastGelu": _gelu,
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "NhwcMaxPool": _max_pool,
    "QuickGelu": lambda b: b("Swish", b.operand(0), alpha=b.attribute("alpha", 1.702)),
    "TransposeMatMul": _matmul,
}
