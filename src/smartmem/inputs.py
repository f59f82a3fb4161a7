"""Inputs for a model: read from files, or made from a seed; and how far two sets of outputs are apart."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from smartmem.errors import InputError
from smartmem.runtime.artifact import TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto

Array = np.ndarray[Any, Any]


def parse_shapes(options: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """`["x=1,3,48,320"] -> {"x": (1, 3, 48, 320)}`.

    Raises:
        InputError: an option is not of that form.
    """
    shapes = {}
    for option in options:
        name, equals, text = option.rpartition("=")
        try:
            shape = tuple(int(part) for part in text.replace("x", ",").split(",")) if text else ()
        except ValueError:
            shape = (-1,)
        if not equals or not name or any(extent < 0 for extent in shape):
            raise InputError(f"--shape {option}: expected name=1,3,48,320")
        shapes[name] = shape
    return shapes


def read_inputs(options: Iterable[str], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """`["x=x.npy"] -> {"x": array}`; the name may be left out where the model has a single input.

    Raises:
        InputError: no such file, not an .npy file, or an option of another form.
    """
    arrays = {}
    for option in options:
        name, equals, file = option.partition("=")
        if not equals and len(specs) == 1:
            name, file = specs[0].name, option
        elif not equals or not name or not file:
            names = ", ".join(spec.name for spec in specs)
            raise InputError(f"--input {option}: expected name=file.npy, where name is one of {names}")
        try:
            array = np.load(file, allow_pickle=False)
        except FileNotFoundError:
            raise InputError(f"--input {name}: no such file {file}") from None
        except (OSError, ValueError, EOFError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an .npy file"
            raise InputError(f"--input {name}: {file} cannot be read ({reason}); write it with numpy.save") from None
        if not isinstance(array, np.ndarray):
            raise InputError(f"--input {name}: {file} holds several arrays; give one .npy file for each input")
        arrays[name] = array
    return arrays


def random_inputs(specs: Sequence[TensorSpec], seed: int = 0) -> dict[str, Array]:
    """Standard normal floats; integers that can pass for token numbers, masks and segment numbers; random bools."""
    from smartmem.runtime.arrays import dtype_of

    result = {}
    for index, spec in enumerate(specs):
        generator = np.random.default_rng([seed, index])  # an input's values do not depend on the others' sizes
        dtype, shape = dtype_of(spec.dtype), spec.shape or ()
        if dtype.kind == "b":
            array = generator.integers(0, 2, shape).astype(dtype)
        elif dtype.kind in "iu":
            small = any(word in spec.name.lower() for word in ("mask", "type", "segment"))
            array = generator.integers(0, 2 if small else 100, shape).astype(dtype)
            if "mask" in spec.name.lower() and shape and array.size:
                array[..., 0] = 1  # a row that is all masked has no meaning
        else:
            array = generator.standard_normal(shape).astype(dtype)
        result[spec.name] = np.asarray(array)
    return result


def relative_error(output: Array, reference: Array) -> float:
    """`|output - reference| / |reference|` (Euclidean norms); infinite where shapes or NaNs differ."""
    if output.shape != reference.shape:
        return float("inf")
    a, b = output.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    same = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities cannot be subtracted
    if not (np.isfinite(a) & np.isfinite(b) | same).all():
        return float("inf")
    distance = float(np.linalg.norm(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    norm = float(np.linalg.norm(b[np.isfinite(b)]))
    return distance / norm if norm else distance


def usual_error(precision: str = "fp32") -> float:
    """The relative error up to which an answer counts as right: 1e-3, in fp16 2e-2, in bf16, which has 8 bits, 5e-2."""
    return {"fp16": 2e-2, "bf16": 5e-2}.get(precision, 1e-3)


def allowed_error(model: Path, precision: str = "fp32") -> float:
    """The same for a model whose file is read for it: `usual_error`, or more.

    Where activations are quantized it is 0.2: a rounding that falls the other way is a whole step, which the next layer
    takes for what it is. ONNX Runtime with and without its optimizations differ by 0.01 to 0.11 on such networks. A
    model of 16-bit floats is allowed what computing in them is: runtimes round to them in other places.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load(str(model), load_external_data=False)
    except (OSError, DecodeError):
        return usual_error(precision)
    if _quantizes(proto):
        return 0.2
    kinds = {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    of = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
    return max(map(usual_error, (precision, *(of[kind] for kind in kinds & of.keys()))))


def _quantizes(proto: ModelProto) -> bool:
    """Whether a model has operators that quantize activations."""
    names = {node.op_type for part in (proto.graph, *proto.functions) for node in part.node}
    return bool(names & {"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QGemm"}) or any(
        name.startswith("QLinear") for name in names
    )


def largest_difference(output: Array, reference: Array) -> float:
    """Largest absolute difference; 0 for no elements, infinite where shapes differ."""
    if output.shape != reference.shape:
        return float("inf")
    a, b = output.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def write_npz(file: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Like `numpy.savez`, which has no place for an array called "file", and never pickling."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def save_outputs(path: Path, outputs: Mapping[str, Array]) -> None:
    """Write an .npz file, by way of a temporary file beside it.

    Raises:
        InputError: the file cannot be written.
    """
    from smartmem.runtime.cache import replacing

    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            write_npz(file, outputs)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
