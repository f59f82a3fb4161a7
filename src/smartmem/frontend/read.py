"""Read an ONNX file: path → `Source` (the parsed message and access to its tensors' data).

Weights in the file itself stay in the parsed message and are viewed from there; weights beside it are memory-mapped
when they are first asked for (see `external`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from smartmem.errors import ModelError
from smartmem.frontend.external import ExternalFiles
from smartmem.frontend.tensors import to_array

OLDEST_OPSET = 9


@dataclass(frozen=True)
class Source:
    """A parsed model.

    Attributes:
        model: the message; tensors outside of the file are not loaded into it.
        files: access to those.
        opsets: domain → version, the ONNX domain spelled "".
        name: what messages call the model.
    """

    model: onnx.ModelProto
    files: ExternalFiles
    opsets: dict[str, int]
    name: str


def read(path: str | os.PathLike[str] | onnx.ModelProto) -> Source:
    """Parse `path` and check that it is an ONNX model with something in it.

    Raises:
        ModelError: no such file, not ONNX, truncated, empty, or of an opset that the onnx package does not know.
    """
    if isinstance(path, onnx.ModelProto):
        model, files, name = path, ExternalFiles(None), path.graph.name or "model"
    else:
        name = os.fspath(path)
        model = _parse(name)
        files = ExternalFiles(os.path.dirname(os.path.abspath(name)))
    if not model.HasField("graph") or model.ir_version == 0:
        raise ModelError(f"{name}: not an ONNX model (no graph in it); export it with torch.onnx.export or the like")
    if not model.graph.output:
        raise ModelError(f"{name}: the graph has no outputs, so there is nothing to compute")
    if not model.graph.node:
        raise ModelError(f"{name}: the graph is empty (no operators), so there is nothing to compile")
    opsets = read_opsets(model.opset_import)
    _check_opset(opsets, name)
    _embed_nested_tensors(model, files)
    return Source(model, files, opsets, name)


def read_opsets(imports: Any) -> dict[str, int]:
    """Opset imports as domain → version, "ai.onnx" spelled ""."""
    return {canonical_domain(entry.domain): int(entry.version) for entry in imports}


def canonical_domain(domain: str) -> str:
    """`ai.onnx -> ""`, other domains unchanged."""
    return "" if domain == "ai.onnx" else domain


def _parse(name: str) -> onnx.ModelProto:
    try:
        with open(name, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise ModelError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise ModelError(f"{name}: is a folder; give the .onnx file in it") from None
    except OSError as error:
        raise ModelError(f"{name}: cannot be read: {error.strerror}") from None
    if not data:
        raise ModelError(f"{name}: the file is empty")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{name}: not an ONNX model, or truncated ({len(data)} bytes do not parse as one); fetch or export it again"
        ) from None
    return model


def _check_opset(opsets: dict[str, int], name: str) -> None:
    version, newest = opsets.get(""), onnx.defs.onnx_opset_version()
    if not opsets:
        raise ModelError(f"{name}: does not say which ONNX opset it uses (no opset_import); export it again")
    if version is None:  # all operators are of other domains; one that is not is refused when it is reached
        return
    if version < OLDEST_OPSET:
        raise ModelError(
            f"{name}: uses ONNX opset {version}, and {OLDEST_OPSET} is the oldest supported; convert it with "
            f"onnx.version_converter.convert_version(model, 17)"
        )
    if version > newest:
        raise ModelError(
            f"{name}: uses ONNX opset {version}, and the installed onnx {onnx.__version__} knows up to {newest}; "
            "run: pip install -U onnx"
        )


def _embed_nested_tensors(model: onnx.ModelProto, files: ExternalFiles) -> None:
    """Load external tensors inside of subgraphs, which travel to the host as one message."""
    for node in _all_nodes(model):
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                for tensor in _tensors(graph):
                    if tensor.data_location == onnx.TensorProto.EXTERNAL:
                        array = to_array(tensor, files)
                        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a (sub)graph: initializers and attributes, at any depth."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
