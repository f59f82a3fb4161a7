"""Operations as C: one on values that have names already, on scalars of any dtype or on vectors of floats."""

from __future__ import annotations

import numpy as np

from smartmem.kernel.expr import COMPARE, Alu, Const, DType

C_TYPES = {
    "float32": "float", "float64": "double", "float16": "_Float16", "int8": "int8_t", "int16": "int16_t",
    "int32": "int32_t", "int64": "int64_t", "uint8": "uint8_t", "uint16": "uint16_t", "uint32": "uint32_t",
    "uint64": "uint64_t", "bool": "uint8_t", "bfloat16": "uint16_t",
}  # fmt: skip


def c_const(value: float | int | bool, dtype: DType) -> str:
    """A C literal of the dtype."""
    if dtype.kind == "f":
        suffix = "" if dtype.itemsize == 8 else "f"
        number = float(value)
        if np.isnan(number):
            return "NAN"
        if np.isinf(number):
            return "INFINITY" if number > 0 else "(-INFINITY)"
        text = repr(number) if dtype.itemsize == 8 else repr(float(np.float32(number)))
        text = text if "." in text or "e" in text else text + ".0"
        return f"({text}{suffix})" if number < 0 else f"{text}{suffix}"
    if dtype.name == "bfloat16":
        return f"({np.asarray(value, dtype).view(np.uint16)}u)"
    number = int(value)
    if dtype == np.int64:
        return f"({number + 1}l - 1)" if number == -(2**63) else f"({number}l)"
    return f"({number}{'ul' if dtype == np.uint64 else 'u' if dtype.kind == 'u' else ''})"


def plus(text: str, number: int, vector: bool) -> str:
    """A float, or a vector of floats, and a number more, as C."""
    if number == 0:
        return text
    size = f"{abs(number)}.0f"
    return f"{text} {'-' if number < 0 else '+'} {f'sm_splat({size})' if vector else size}"


def load_bytes(place: str, zero: int, count: str | None) -> str:
    """A vector, or the first `count` lanes of one, of floats that lie in memory as bytes (`Storage.zero`), as C."""
    return plus(f"sm_load_bytes_n({place}, {count})" if count else f"sm_load_bytes({place})", -zero, True)


def store_bytes(place: str, value: str, zero: int, count: str | None) -> str:
    """The statement that stores such a vector, or the first `count` lanes of one."""
    value = plus(value, zero, True)
    return f"sm_store_bytes_n({place}, {value}, {count});" if count else f"sm_store_bytes({place}, {value});"


_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==",
          "ne": "!=", "bitand": "&", "bitor": "|", "bitxor": "^"}  # fmt: skip
_LOGIC = {"and": "&", "or": "|", "xor": "^"}


def vector_alu(node: Alu, x: list[str]) -> str:
    """One operation on vectors (f32v, bools as i32v masks)."""
    op = node.op
    if op in _INFIX:
        text = f"{x[0]} {_INFIX[op]} {x[1]}"
        return f"(i32v)({text})" if op in COMPARE else text
    if op in _LOGIC:
        return f"{x[0]} {_LOGIC[op]} {x[1]}"
    if op == "pow":
        return _power(node, x) or f"sm_powv({x[0]}, {x[1]})"
    if op in ("max", "min"):
        first, second = (x[1], x[0]) if isinstance(node.args[1], Const) else (x[0], x[1])
        return f"sm_{op}({first}, {second})"
    if op == "where":
        return f"sm_select{'_i' if node.dtype == np.bool_ else ''}({x[0]}, {x[1]}, {x[2]})"
    if op == "cast":
        if node.dtype == np.bool_:
            return f"(i32v)({x[0]} != sm_splat(0.0f))"
        return f"sm_select({x[0]}, sm_splat(1.0f), sm_splat(0.0f))"
    if op == "neg":
        return f"-{x[0]}"
    if op == "not":
        return f"~{x[0]}"
    if op == "isnan":
        return f"(i32v)({x[0]} != {x[0]})"
    if op == "sign":
        one, zero = "sm_splat(1.0f)", "sm_splat(0.0f)"
        positive = f"sm_select((i32v)({x[0]} > {zero}), {one}, {x[0]})"
        return f"sm_select((i32v)({x[0]} < {zero}), -{one}, {positive})"
    return f"sm_{op}v({', '.join(x)})"


def _power(node: Alu, x: list[str]) -> str | None:
    exponent = node.args[1]
    if isinstance(exponent, Const) and exponent.value in (2, 3):
        return " * ".join([x[0]] * int(exponent.value))
    return None


def scalar_alu(node: Alu, x: list[str]) -> str:
    """One operation on scalars of any dtype."""
    op, kind = node.op, node.args[-1].dtype
    if op == "where":
        return f"{x[0]} ? {x[1]} : {x[2]}"
    if op == "cast":
        return _cast(node, x[0])
    if op in COMPARE:
        return f"{x[0]} {_INFIX[op]} {x[1]}"
    if op in _LOGIC:
        return f"({x[0]} != 0) {_LOGIC[op]} ({x[1]} != 0)"
    if op == "not":
        return f"!{x[0]}"
    if kind.kind == "f":
        return _float_alu(node, x, "d" if kind.itemsize == 8 else "s")
    return f"({C_TYPES[node.dtype.name]})({_integer_alu(op, x, kind)})"


def _float_alu(node: Alu, x: list[str], suffix: str) -> str:
    op = node.op
    if op in _INFIX:
        return f"{x[0]} {_INFIX[op]} {x[1]}"
    if op == "pow" and _power(node, x):
        return _power(node, x) or ""
    if op == "neg":
        return f"-{x[0]}"
    if op == "isnan":
        return f"{x[0]} != {x[0]}"
    if op == "sign":
        return f"{x[0]} > 0 ? 1 : {x[0]} < 0 ? -1 : {x[0]}"
    if op == "recip":
        return f"1 / {x[0]}"
    return f"sm_{op}{suffix}({', '.join(x)})"


def _integer_alu(op: str, x: list[str], kind: DType) -> str:
    if op == "div":
        return f"sm_idiv({x[0]}, {x[1]})"
    if op == "mod":
        return f"sm_imod({x[0]}, {x[1]})" if kind.kind == "i" else f"sm_umod({x[0]}, {x[1]})"
    if op == "fmod":
        return f"sm_irem({x[0]}, {x[1]})" if kind.kind == "i" else f"sm_umod({x[0]}, {x[1]})"
    if op in _INFIX:
        return f"{x[0]} {_INFIX[op]} {x[1]}"
    if op in ("max", "min"):
        return f"{x[0]} {'>' if op == 'max' else '<'} {x[1]} ? {x[0]} : {x[1]}"
    if op == "neg":
        return f"-{x[0]}"
    if op == "abs":
        return f"{x[0]} < 0 ? -{x[0]} : {x[0]}" if kind.kind == "i" else x[0]
    if op == "sign":
        return f"({x[0]} > 0) - ({x[0]} < 0)"
    if op == "bitwise_not":
        return f"~{x[0]}"
    if op == "shr" and kind.kind == "i":
        return f"sm_sar({x[0]}, {x[1]})"
    if op in ("shl", "shr"):
        return f"sm_{op}({x[0]}, {x[1]})"
    if op == "pow":
        return f"sm_ipow({x[0]}, {x[1]})"
    if op in ("floor", "ceil", "round", "trunc"):
        return x[0]
    if op == "isnan":
        return "0"
    return f"sm_{op}d((double){x[0]})"


def _cast(node: Alu, x: str) -> str:
    source, target = node.args[0].dtype, node.dtype
    if source.name == "bfloat16":
        source, x = np.dtype(np.float32), f"sm_from_bf16({x})"
    if target.name == "bfloat16":
        return f"sm_to_bf16((float){x})"
    if target == np.float16:
        return f"sm_to_f16({x})"
    if target == np.bool_:
        return f"{x} != 0"
    if source.kind == "f" and target.kind in "iu":
        return f"({C_TYPES[target.name]})sm_to_i64((double){x})"
    return f"({C_TYPES[target.name]}){x}"
