"""Elementwise operators, activations, casts, quantisation and generators against onnx's reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from tests.support.definitions import check, make_node, random, reference, undefined

from smartmem.kernel.definitions import define, definition_of
from smartmem.kernel.evaluate import evaluate_stages
from smartmem.kernel.expr import Alu, walk

SHAPE = (2, 3, 4)
HALF = {"rtol": 2e-3, "atol": 2e-3}

UNIT = {"Asin", "Acos", "Atanh"}  # domain (-1, 1)
POSITIVE = {"Sqrt", "Log"}
ABOVE_ONE = {"Acosh"}
FLOAT_UNARY = [
    "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh",
    "Atanh", "Erf", "Sigmoid", "Floor", "Ceil", "Round", "Reciprocal", "Neg", "Abs", "Sign", "Relu", "Softplus",
    "Softsign", "HardSwish", "Mish", "Gelu", "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu",
    "Shrink",
]  # fmt: skip


def operand_for(op: str, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    if op in UNIT:
        return random(*SHAPE, dtype=dtype, low=-0.9, high=0.9)
    if op in POSITIVE:
        return random(*SHAPE, dtype=dtype, low=0.1, high=5)
    if op in ABOVE_ONE:
        return random(*SHAPE, dtype=dtype, low=1.1, high=5)
    return random(*SHAPE, dtype=dtype, low=-3, high=3)


def celu(x: np.ndarray[Any, Any], alpha: float) -> np.ndarray[Any, Any]:
    """onnx's reference of Celu has no float64."""
    return (np.maximum(x, 0) + np.minimum(0, alpha * (np.exp(x / alpha) - 1))).astype(x.dtype)


@pytest.mark.parametrize("op", FLOAT_UNARY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_unary_of_floats(op: str, dtype: Any) -> None:
    x = operand_for(op, dtype)
    expected = [celu(x, 1.0)] if op == "Celu" else None
    if dtype == np.float16:  # the reference rounds after each step; a float32 computation is what is wanted
        wide = x.astype(np.float32)
        expected = [(expected or reference(op, [wide], opset=22))[0].astype(np.float16)]
    check(op, [x], opset=22, expected=expected, **(HALF if dtype == np.float16 else {}))


@pytest.mark.parametrize("op", ["Neg", "Abs", "Sign", "Exp", "Tanh", "Relu", "Gelu", "Sqrt"])
def test_unary_of_bfloat16(op: str) -> None:
    x = operand_for(op, ml_dtypes.bfloat16)
    expected = reference(op, [x.astype(np.float32)], opset=22)[0].astype(ml_dtypes.bfloat16)
    check(op, [x], expected=[expected], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("op", "attrs"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("LeakyRelu", {"alpha": 1.5}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("Elu", {"alpha": 0.7}),
        ("Selu", {"alpha": 1.2, "gamma": 0.9}),
        ("ThresholdedRelu", {"alpha": 0.4}),
        ("Shrink", {"lambd": 0.8, "bias": 0.25}),
        ("Gelu", {"approximate": "tanh"}),
        ("Gelu", {"approximate": "none"}),
    ],
)
def test_parameters_of_activations(op: str, attrs: dict[str, Any]) -> None:
    check(op, [random(*SHAPE, low=-3, high=3)], opset=20, **attrs)


def test_celu_alpha() -> None:
    x = random(*SHAPE)
    check("Celu", [x], alpha=0.5, expected=[celu(x, 0.5)])


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish(alpha: float) -> None:
    x = random(*SHAPE)
    check("Swish", [x], opset=24, alpha=alpha, expected=[(x / (1 + np.exp(-alpha * x))).astype(np.float32)])


def test_swiglu() -> None:
    a, b = random(*SHAPE), random(*SHAPE, seed=1)
    check("SwiGLU", [a, b], opset=28, expected=[(a / (1 + np.exp(-a)) * b).astype(np.float32)])


def test_softplus_does_not_overflow() -> None:
    x = np.array([-200.0, -1.0, 0.5, 200.0], np.float32)
    check("Softplus", [x], expected=[np.logaddexp(0, x.astype(np.float64)).astype(np.float32)])


@pytest.mark.parametrize("op", ["Neg", "Abs", "Sign", "BitwiseNot", "Relu"])
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_unary_of_integers(op: str, dtype: Any) -> None:
    check(op, [random(*SHAPE, dtype=dtype)], opset=22)


def test_abs_of_unsigned_is_a_view() -> None:
    (stage,) = check("Abs", [random(*SHAPE, dtype=np.uint8)])
    assert stage.is_view


def test_not() -> None:
    check("Not", [random(*SHAPE, dtype=bool)])


SAME = ((2, 3, 4), (2, 3, 4))
BROADCASTS = [SAME, ((2, 3, 4), (4,)), ((2, 1, 4), (3, 1)), ((), (2, 3)), ((3, 4), (1, 1, 1, 4)), ((), ())]


@pytest.mark.parametrize(("a", "b"), BROADCASTS)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Less", "GreaterOrEqual", "Equal", "Max", "PRelu"])
def test_broadcasting(op: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    if op == "PRelu" and a != np.broadcast_shapes(a, b):
        pytest.skip("the slope is broadcast, x is not")
    check(op, [random(*a), random(*b, seed=1)])


ARITHMETIC = ["Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Equal", "Less", "LessOrEqual", "Greater"]


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_binary_of_integers(op: str, dtype: Any) -> None:
    x, y = random(*SHAPE, dtype=dtype), random(*SHAPE, dtype=dtype, seed=1)
    y = np.where(y == 0, dtype(3), y)
    expected = None
    if op == "Div":  # ONNX: truncation towards zero
        expected = [np.trunc(x.astype(np.float64) / y.astype(np.float64)).astype(dtype)]
    check(op, [x, y], expected=expected)


@pytest.mark.parametrize("op", ["Add", "Div", "Max", "Mean", "Sum", "Where"])
def test_binary_of_halfs(op: str) -> None:
    x, y = random(*SHAPE, dtype=np.float16), random(*SHAPE, dtype=np.float16, seed=1, low=1, high=2)
    inputs = [random(4, dtype=bool), x, y] if op == "Where" else [x, y]
    stages = check(op, inputs, **HALF)
    arithmetic = [n for n in walk(stages[-1].body) if isinstance(n, Alu) and n.op != "cast"]
    assert all(n.dtype != np.float16 for n in arithmetic)


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Equal"])
def test_logic(op: str) -> None:
    check(op, [random(*SHAPE, dtype=bool), random(4, dtype=bool, seed=1)])


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bits(op: str) -> None:
    check(op, [random(*SHAPE, dtype=np.int32), random(4, dtype=np.int32, seed=1)])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(direction: str) -> None:
    amount = random(*SHAPE, dtype=np.uint32, high=0.4)
    check("BitShift", [random(*SHAPE, dtype=np.uint32), amount], direction=direction)


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(fmod: int) -> None:
    check("Mod", [random(6, dtype=np.int32), np.array([3, -3, 5, -5, 7, -7], np.int32)], fmod=fmod)


def test_fmod_of_floats() -> None:
    check("Mod", [random(6, low=-9, high=9), np.array([3, -3, 5, -5, 7, -7], np.float32)], fmod=1)


@pytest.mark.parametrize("op", ["Sum", "Max", "Min", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_variadic(op: str, count: int) -> None:
    stages = check(op, [random(*SHAPE, seed=k) for k in range(count)])
    assert stages[0].is_view == (count == 1)


@pytest.mark.parametrize("exponent", [1, 2, 3, 0.5, -1, 1.7, 0])
@pytest.mark.parametrize("constant", [(), (1,)])
def test_pow_of_floats(exponent: float, constant: tuple[int, ...]) -> None:
    x = random(*SHAPE, low=0.2, high=3)
    check("Pow", [x, np.array(exponent, np.float32)], constant=constant)


@pytest.mark.parametrize("exponents", [np.float32, np.int64])
def test_pow_mixed(exponents: Any) -> None:
    x, y = random(*SHAPE, low=0.2, high=3), random(4, seed=1, low=0.0, high=0.4, dtype=exponents)
    check("Pow", [x, y])
    base = random(*SHAPE, dtype=np.int32)
    power = np.array(2, exponents)
    expected = [(base**2).astype(np.int32)]
    check("Pow", [base, power], constant=(1,), expected=expected)


def test_pow_of_integers_with_unknown_signed_exponent_runs_on_the_host() -> None:
    x = random(*SHAPE, dtype=np.int32)
    assert undefined("Pow", [x, x], [x])


@pytest.mark.parametrize("low", [None, -0.5])
@pytest.mark.parametrize("high", [None, 0.75])
@pytest.mark.parametrize("constant", [(), (1, 2)])
def test_clip(low: float | None, high: float | None, constant: tuple[int, ...]) -> None:
    bounds = [None if bound is None else np.array(bound, np.float32) for bound in (low, high)]
    check("Clip", [random(*SHAPE), *bounds], constant=[k for k in constant if bounds[k - 1] is not None])


def test_clip_of_integers_and_by_attributes() -> None:
    check("Clip", [random(*SHAPE, dtype=np.int32), np.array(-4, np.int32), np.array(7, np.int32)], constant=(1, 2))
    check("Clip", [random(*SHAPE)], opset=6, min=-0.5, max=0.75)


def test_where() -> None:
    check("Where", [random(2, 1, 4, dtype=bool), random(3, 1), random(4, seed=1)])
    check("Where", [random(3, 4, dtype=bool), random(4, dtype=np.int64), np.array(-7, np.int64)], constant=(2,))


def test_identity_is_a_view() -> None:
    for dtype in (np.float32, np.float16, bool, np.uint8):
        (stage,) = check("Identity", [random(*SHAPE, dtype=dtype)])
        assert stage.is_view


def test_scalar_constants_become_numbers() -> None:
    (stage,) = check("Mul", [random(*SHAPE), np.array([0.25], np.float32)], constant=(1,))
    assert [load.tensor for load in stage.loads()] == ["x0"]


TYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, bool]


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", TYPES)
def test_cast(source: Any, target: Any) -> None:
    x = random(*SHAPE, dtype=source, low=0 if target == np.uint8 else -3, high=5)
    kind = {
        np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE,
        np.int8: TensorProto.INT8, np.uint8: TensorProto.UINT8, np.int32: TensorProto.INT32,
        np.int64: TensorProto.INT64, bool: TensorProto.BOOL,
    }[target]  # fmt: skip
    (stage,) = check("Cast", [x], to=kind)
    assert stage.is_view == (source == target)


@pytest.mark.parametrize("target", [np.float32, np.int32])
def test_cast_like(target: Any) -> None:
    check("CastLike", [random(*SHAPE), np.zeros(1, target)])


def test_cast_to_bfloat16() -> None:
    x = random(*SHAPE)
    check("Cast", [x], canonical={"to": TensorProto.BFLOAT16}, expected=[x.astype(ml_dtypes.bfloat16)], rtol=0, atol=0)


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.5, -0.0], np.float32)


def test_is_nan() -> None:
    check("IsNaN", [SPECIAL])
    check("IsNaN", [SPECIAL.astype(np.float16)])


@pytest.mark.parametrize("negative", [0, 1])
@pytest.mark.parametrize("positive", [0, 1])
def test_is_inf(negative: int, positive: int) -> None:
    check("IsInf", [SPECIAL], detect_negative=negative, detect_positive=positive)


@pytest.mark.parametrize("op", ["Relu", "Elu", "Sigmoid", "Clip", "HardSwish", "LeakyRelu"])
def test_nan_stays_nan(op: str) -> None:
    inputs = [SPECIAL, *([np.array(-1, np.float32), np.array(1, np.float32)] if op == "Clip" else [])]
    node = make_node(op, inputs, [SPECIAL], {})
    stages = define(node)
    assert stages is not None
    assert np.isnan(evaluate_stages(stages, {f"x{i}": x for i, x in enumerate(inputs)})["y0"][0])


def test_float_functions_of_integers_run_on_the_host() -> None:
    x = random(4, dtype=np.int32)
    assert undefined("Erf", [x], [x])


def test_define_refuses_what_it_does_not_cover() -> None:
    x = random(3, 0)
    assert define(make_node("Relu", [x], [x], {})) is None
    words = np.array(["a"], object)
    assert define(make_node("Identity", [words], [words], {})) is None
    node = make_node("NoSuchOperator", [x], [x], {})
    assert definition_of(node) is None
    assert define(node) is None


RANGES = [((3, 12, 2), np.int64), ((9, -4, -3), np.int32), ((0.5, 4, 0.75), np.float32)]


@pytest.mark.parametrize("constant", [(), (0, 1, 2)])
@pytest.mark.parametrize(("values", "dtype"), RANGES)
def test_range(constant: tuple[int, ...], values: tuple[float, ...], dtype: Any) -> None:
    check("Range", [np.array(v, dtype) for v in values], constant=constant)


@pytest.mark.parametrize("k", [-7, -1, 0, 2])
def test_eye_like(k: int) -> None:
    check("EyeLike", [random(3, 5)], k=k)
    check("EyeLike", [random(3, 5)], k=k, dtype=TensorProto.INT32)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -9, -1, 0, 2, 9])
def test_trilu(upper: int, k: int | None) -> None:
    diagonal = [] if k is None else [np.array(k, np.int64)]
    check("Trilu", [random(2, 3, 5), *diagonal], constant=(1,), upper=upper)
    check("Trilu", [random(4, 3, dtype=np.int32), *diagonal], constant=(1,), upper=upper)


def test_trilu_by_data_runs_on_the_host() -> None:
    x = random(3, 3)
    assert undefined("Trilu", [x, np.array(1, np.int64)], [x])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
@pytest.mark.parametrize("per_axis", [False, True])
def test_quantize_and_dequantize(dtype: Any, per_axis: bool) -> None:
    shape = (3,) if per_axis else ()
    scale, zero = random(*shape, low=0.01, high=0.1), random(*shape, dtype=dtype, seed=3)
    check("QuantizeLinear", [random(2, 3, 4, low=-3, high=3), scale, zero], axis=1)
    check("DequantizeLinear", [random(2, 3, 4, dtype=dtype), scale, zero], axis=1)


def test_quantize_without_zero_point() -> None:
    check("QuantizeLinear", [random(2, 3, low=0, high=3), np.array(0.02, np.float32)])
    check("DequantizeLinear", [random(2, 3, dtype=np.int32), np.array(0.02, np.float32)])


def test_blocked_dequantize() -> None:
    scale, zero = random(2, 2, 5, low=0.01, high=0.1), random(2, 2, 5, dtype=np.uint8, seed=3)
    check("DequantizeLinear", [random(2, 6, 5, dtype=np.uint8), scale, zero], axis=1, block_size=3)


@pytest.mark.parametrize(("low", "high"), [(-2, 3), (1, 3), (-4, -1)])
def test_dynamic_quantize(low: float, high: float) -> None:
    check("DynamicQuantizeLinear", [random(3, 4, low=low, high=high)], outputs=3)
