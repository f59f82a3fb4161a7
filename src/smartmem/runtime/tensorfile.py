"""Weights as a safetensors file whose tensors can be used where they lie.

The format leaves no holes between tensors, so a tensor after one of odd size would be misaligned. Here every tensor
starts at a multiple of 64 bytes: small U8 tensors called `__pad_1`, `__pad_3` … fill the gaps, and spaces after the
header do so for the first one. Other readers see ordinary safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from smartmem.errors import ModelError
from smartmem.runtime.arrays import ALIGNMENT, Array, dtype_of

_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
_NAMES = {code: name for name, code in _CODES.items()}
_PAD = "__pad_"


def header(tensors: Mapping[str, Array]) -> bytes:
    """The file's first part: length, JSON, spaces up to a multiple of 64 bytes."""
    entries: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        if array.dtype.name not in _CODES:
            raise ModelError(f"weight {name!r} has dtype {array.dtype.name}, which safetensors cannot hold")
        end = offset + array.nbytes
        code = _CODES[array.dtype.name]
        entries[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end + -end % ALIGNMENT
        if offset != end:
            entries[f"{_PAD}{len(entries)}"] = {"dtype": "U8", "shape": [offset - end], "data_offsets": [end, offset]}
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def size(tensors: Mapping[str, Array]) -> int:
    """Bytes of the whole file."""
    return len(header(tensors)) + sum(a.nbytes + -a.nbytes % ALIGNMENT for a in tensors.values())


def write(tensors: Mapping[str, Array], file: IO[bytes]) -> None:
    """Write the whole file."""
    file.write(header(tensors))
    for array in tensors.values():
        data = np.ascontiguousarray(array)
        # numpy cannot hand out a buffer of types that it does not know (bfloat16) or of no elements
        if data.size:
            file.write(data.reshape(-1).view(np.uint8).data)
        file.write(b"\0" * (-array.nbytes % ALIGNMENT))


def read(buffer: Array, where: str) -> dict[str, Array]:
    """Views of the tensors in `buffer` (bytes of a whole file).

    Raises:
        ModelError: not a safetensors file, or a tensor outside of it; the message starts with `where`.
    """
    try:
        length = int.from_bytes(buffer[:8].tobytes(), "little")
        if buffer.size < 8 or length > buffer.size - 8:
            raise ValueError(f"header of {length} bytes in {buffer.size}")
        entries = json.loads(buffer[8 : 8 + length].tobytes())
        data = buffer[8 + length :]
        tensors = {}
        for name, entry in entries.items():
            if name == "__metadata__" or name.startswith(_PAD):
                continue
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= data.size:
                raise ValueError(f"{name!r} lies at {begin}..{end} of {data.size} bytes")
            tensors[name] = data[begin:end].view(dtype_of(_NAMES[entry["dtype"]])).reshape(entry["shape"])
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{where}: the weights are not a safetensors file ({error}); compile the model again"
        ) from None
