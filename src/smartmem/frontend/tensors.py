"""TensorProto → numpy, and ONNX element types ↔ numpy dtypes.

Plain element types are read in place (over the file's mapping or the message's bytes, without a copy); packed and
exotic ones (int4, bfloat16, float8, strings) go through the onnx package.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from smartmem.errors import ModelError
from smartmem.frontend.external import ExternalFiles, location_of

Array = np.ndarray[Any, Any]

_PLAIN = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT16,
    onnx.TensorProto.INT32,
    onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.UINT32,
    onnx.TensorProto.UINT64,
    onnx.TensorProto.COMPLEX64,
    onnx.TensorProto.COMPLEX128,
}
_SEQUENCE = np.dtype(object)


def dtype_of(elem_type: int, name: str) -> np.dtype[Any]:
    """The numpy dtype of an ONNX element type; object for strings.

    Raises:
        ModelError: `elem_type` is no ONNX element type; `name` is the value it was found on.
    """
    try:
        dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
        return dtype
    except (KeyError, ValueError, TypeError):
        raise ModelError(
            f'value "{name}" has element type {elem_type}, which onnx {onnx.__version__} does not know'
        ) from None


def elem_type_of(dtype: np.dtype[Any]) -> int:
    """The ONNX element type of a numpy dtype."""
    if dtype == _SEQUENCE or dtype.kind in "US":
        return int(onnx.TensorProto.STRING)
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


def to_array(tensor: onnx.TensorProto, files: ExternalFiles) -> Array:
    """The contents of `tensor`, read-only and without a copy where its element type allows.

    Raises:
        ModelError: data is missing, too short, malformed, or lies outside of the model's folder.
    """
    name, dims = tensor.name, tuple(tensor.dims)
    if any(d < 0 for d in dims):
        raise ModelError(f'tensor "{name}" has a negative extent in its shape {dims}')
    dtype = dtype_of(tensor.data_type, name)
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    plain = tensor.data_type in _PLAIN and sys.byteorder == "little"
    if external:
        location, offset, length = location_of(tensor.external_data, name)
        bits = 8 * dtype.itemsize if plain else _bits(tensor.data_type, dtype)
        needed = (math.prod(dims) * bits + 7) // 8
        if length is not None and length != needed:
            raise ModelError(
                f'tensor "{name}" of shape {dims} and type {dtype} needs {needed} bytes, but its external data entry '
                f"says {length}; export the model again"
            )
        raw: Any = files.slice(name, location, offset, needed)
        if plain:
            return _view(raw, dtype, dims, name)
        tensor = onnx.TensorProto(name=name, data_type=tensor.data_type, dims=dims, raw_data=bytes(raw))
    elif plain and tensor.HasField("raw_data"):
        return _view(tensor.raw_data, dtype, dims, name)
    try:
        array: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(f'tensor "{name}" of shape {dims} is malformed: {_first_line(error)}') from None
    return array.astype(object) if array.dtype.kind in "US" else array


def sparse_to_array(tensor: onnx.SparseTensorProto, files: ExternalFiles) -> Array:
    """A sparse tensor, made dense."""
    values, indices = to_array(tensor.values, files), to_array(tensor.indices, files)
    dense = np.zeros(tuple(tensor.dims), values.dtype)
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return dense


def _view(raw: Any, dtype: np.dtype[Any], dims: tuple[int, ...], name: str) -> Array:
    """`raw` seen as an array, once its size is known to fit."""
    if len(raw) != math.prod(dims) * dtype.itemsize:
        raise ModelError(
            f'tensor "{name}" of shape {dims} and type {dtype} has {len(raw)} bytes of data where '
            f"{math.prod(dims) * dtype.itemsize} are needed; the file is damaged, fetch or export it again"
        )
    return np.frombuffer(raw, dtype=dtype).reshape(dims)


def _bits(elem_type: int, dtype: np.dtype[Any]) -> int:
    """Stored bits per element: ONNX packs 4- and 2-bit types."""
    name = onnx.TensorProto.DataType.Name(elem_type)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return 8 * dtype.itemsize


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["?"])[0]
