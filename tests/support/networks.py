"""Graphs of real networks, as two exporters write them, kept in the repository without weights.

``tests/data/networks/<name>.onnx.gz`` holds what ``tools/export_networks.py`` made of a
network, passed through :func:`strip`: every large float tensor that looks like weights is
empty, and its ``doc_string`` says how to fill it again. :func:`network` does so with seeded
noise of the same distribution, so that the model runs, gives finite outputs and depends on
its input; its answers mean nothing.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

DATA = Path(__file__).resolve().parent.parent / "data" / "networks"

NETWORKS = [
    f"{model}_{exporter}"
    for model in ("swin_t", "vit_b16", "convnext_t", "minilm")
    for exporter in ("script", "dynamo")
]
"""The shipped graphs: a model, and which of torch's two ONNX exporters wrote it."""

SEED = 20240229
KEPT_ELEMENTS = 256
"""Tensors of at most this many elements stay as they are."""
KEPT_VALUES = 16
"""Tensors of at most this many different values are masks or fills, and stay."""
MARK = "seeded:"
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
PAYLOADS = ("raw_data", "float_data", "int32_data", "double_data")
"""The fields in which a tensor of one of these types may keep its elements."""


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without its weights and without comments.

    Emptied are float tensors, initializers and constants alike, of more than 256 elements
    and more than 16 different values, all of them finite. Dropped are the doc strings and
    metadata of the graphs, nodes and values (stack traces, mostly). Everything else stays:
    nodes and their names, tensor names and shapes, index tables, masks, small tensors.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    for graph in _graphs(small.graph):
        _drop_comments(graph)
        for values in (graph.input, graph.output, graph.value_info, graph.node):
            for value in values:
                _drop_comments(value)
    for _, tensor in _tensors(small):
        _drop_comments(tensor)
        if tensor.data_type not in FLOATS or np.prod(tensor.dims) <= KEPT_ELEMENTS:
            continue
        data = numpy_helper.to_array(tensor).astype(np.float64)
        if not np.isfinite(data).all() or np.unique(data).size <= KEPT_VALUES:
            continue
        for field in PAYLOADS:
            tensor.ClearField(field)
        moments = (data.mean(), data.std(), data.min(), data.max())
        tensor.doc_string = MARK + ",".join(f"{number:.6g}" for number in moments)
    return small


def materialise(path: str | Path) -> onnx.ModelProto:
    """The model in a file that :func:`strip` made, with noise for weights.

    Each tensor is drawn from a normal distribution with the original's mean and standard
    deviation, cut off at the original's smallest and largest element (a variance stays
    positive). The draw depends on the tensor's name and a fixed seed, on nothing else.
    """
    model = onnx.ModelProto()
    model.ParseFromString(gzip.decompress(Path(path).read_bytes()))
    for name, tensor in _tensors(model):
        if not tensor.doc_string.startswith(MARK):
            continue
        mean, std, low, high = map(float, tensor.doc_string.removeprefix(MARK).split(","))
        generator = np.random.default_rng([SEED, zlib.crc32(name.encode())])
        data = generator.standard_normal(tuple(tensor.dims), dtype=np.float32)
        data *= np.float32(std)
        data += np.float32(mean)
        np.clip(data, np.float32(low), np.float32(high), out=data)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(data.astype(dtype, copy=False), tensor.name))
    return model


def network(name: str) -> onnx.ModelProto:
    """A fresh copy of one of the :data:`NETWORKS`, filled and ready to run."""
    return materialise(DATA / f"{name}.onnx.gz")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the graphs inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every initializer and every constant's tensor, with the name its value goes by."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            yield tensor.name, tensor
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.HasField("t"):
                    yield node.output[0], attribute.t


def _drop_comments(
    proto: onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto,
) -> None:
    """Remove what is written for readers only."""
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
