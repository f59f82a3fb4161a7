"""Files that are not models, and data files that must not be trusted, end in one-line errors."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from frontend_models import run_graph
from onnx import helper
from onnx.external_data_helper import convert_model_to_external_data
from tests.support.onnx_models import model

from smartmem.errors import ModelError
from smartmem.frontend import load_graph


def relu() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 3]})


def refused(path, *parts: str) -> str:
    with pytest.raises(ModelError) as error:
        load_graph(path)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def test_missing_file(tmp_path):
    refused(tmp_path / "none.onnx", "none.onnx", "no such file")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty_file(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    refused(path, "empty")


@pytest.mark.parametrize("content", [b"PK\x03\x04 some archive", b"hello world, this is text\n" * 9, b"\x00" * 64])
def test_not_onnx(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, "not an ONNX model")


def test_truncated(tmp_path):
    path = tmp_path / "m.onnx"
    data = relu().SerializeToString()
    for keep in range(1, len(data) - 1, 3):
        path.write_bytes(data[:keep])
        refused(path)


def test_empty_graph():
    proto = relu()
    del proto.graph.node[:]
    refused(proto, "empty")


def test_no_outputs():
    proto = relu()
    del proto.graph.output[:]
    refused(proto, "no outputs")


def test_opset_not_stated():
    proto = relu()
    del proto.opset_import[:]
    refused(proto, "opset")


@pytest.mark.parametrize(("opset", "part"), [(8, "oldest supported"), (9999, "pip install -U onnx")])
def test_opset_out_of_range(opset, part):
    proto = relu()
    proto.opset_import[0].version = opset
    refused(proto, part)


def test_initializer_with_too_little_data():
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]}, constants={"w": np.ones(4, np.float32)})
    proto.graph.initializer[0].raw_data = b"\0" * 7
    refused(proto, '"w"', "7 bytes", "16")


def test_negative_extent():
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [4]}, constants={"w": np.ones(4, np.float32)})
    proto.graph.initializer[0].dims[0] = -4
    refused(proto, '"w"', "negative extent")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.int8, np.bool_, np.float64])
def test_typed_and_raw_data_read_alike(dtype):
    array = np.array([[0, 1, 2], [3, 0, 1]]).astype(dtype)
    proto = model([helper.make_node("Identity", ["w"], ["y"])], {}, constants={"w": array})
    typed = onnx.ModelProto()
    typed.CopyFrom(proto)
    elem = proto.graph.initializer[0].data_type
    typed.graph.initializer[0].CopyFrom(helper.make_tensor("w", elem, array.shape, array.reshape(-1).tolist()))
    for candidate in (proto, typed):
        data = load_graph(candidate).outputs[0].data
        assert data.dtype == array.dtype
        np.testing.assert_array_equal(data, array)


def test_sparse_initializer():
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [2, 3]})
    values = helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [5.0, 7.0])
    indices = helper.make_tensor("i", onnx.TensorProto.INT64, [2], [1, 5])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    graph = load_graph(proto)
    np.testing.assert_array_equal(graph.nodes[0].inputs[1].data, [[0, 5, 0], [0, 0, 7]])


# External data


@pytest.fixture
def external(tmp_path):
    """A model with its weight in weights.bin beside it."""
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [2, 3]}, constants={"w": weight})
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(proto, folder / "m.onnx")
    return folder / "m.onnx"


def relocate(path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())


def test_external_data_is_read(external):
    graph = load_graph(external)
    (y,) = run_graph(graph, {"x": np.ones((2, 3), np.float32)})
    np.testing.assert_array_equal(y, np.arange(6).reshape(2, 3) + 1)


def test_external_data_is_mapped_and_not_copied(external):
    base = load_graph(external).nodes[0].inputs[1].data
    assert not base.flags.writeable
    assert not base.flags.owndata


def test_external_data_missing(external):
    (external.parent / "weights.bin").unlink()
    refused(external, "weights.bin", '"w"', "missing")


def test_external_data_too_short(external):
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:20])
    refused(external, "weights.bin", '"w"', "only 20")


def test_external_data_empty(external):
    (external.parent / "weights.bin").write_bytes(b"")
    refused(external, "only 0")


def test_external_length_must_match_shape(external):
    proto = onnx.load(external, load_external_data=False)
    proto.graph.initializer[0].dims[:] = [1, 3]
    external.write_bytes(proto.SerializeToString())
    refused(external, '"w"', "needs 12 bytes")


@pytest.mark.parametrize("key", ["offset", "length"])
def test_external_entry_malformed(external, key):
    proto = onnx.load(external, load_external_data=False)
    del proto.graph.initializer[0].external_data[:]
    for k, v in (("location", "weights.bin"), (key, "many")):
        proto.graph.initializer[0].external_data.add(key=k, value=v)
    external.write_bytes(proto.SerializeToString())
    refused(external, "malformed")


def test_external_negative_offset(external):
    proto = onnx.load(external, load_external_data=False)
    proto.graph.initializer[0].external_data.add(key="offset", value="-8")
    external.write_bytes(proto.SerializeToString())
    refused(external, '"w"')


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "..\\secret.bin", "C:\\secret.bin", ""])
def test_external_data_outside_by_path(external, location):
    (external.parent.parent / "secret.bin").write_bytes(b"\0" * 24)
    relocate(external, location)
    refused(external, "outside of the model's folder")


def test_external_data_absolute(external):
    secret = external.parent.parent / "secret.bin"
    secret.write_bytes(b"\0" * 24)
    relocate(external, str(secret))
    refused(external, "outside of the model's folder")


def test_external_data_symlink(external):
    data = external.parent / "weights.bin"
    secret = data.rename(external.parent.parent / "secret.bin")
    data.symlink_to(secret)
    refused(external, "symbolic link")


def test_external_data_through_linked_folder(external):
    outside = external.parent.parent / "outside"
    outside.mkdir()
    (external.parent / "weights.bin").rename(outside / "weights.bin")
    (external.parent / "sub").symlink_to(outside)
    relocate(external, "sub/weights.bin")
    refused(external, "outside of the model's folder")


def test_external_data_in_subfolder(external):
    (external.parent / "sub").mkdir()
    (external.parent / "weights.bin").rename(external.parent / "sub" / "weights.bin")
    relocate(external, "sub/weights.bin")
    assert load_graph(external).nodes[0].inputs[1].data[1, 2] == 5


def test_external_data_hard_link(external):
    os.link(external.parent / "weights.bin", external.parent.parent / "other.bin")
    refused(external, "hard link", "2 names")


def test_external_data_fifo(external):
    data = external.parent / "weights.bin"
    data.unlink()
    os.mkfifo(data)
    refused(external, "not a regular file")


def test_external_data_folder(external):
    data = external.parent / "weights.bin"
    data.unlink()
    data.mkdir()
    refused(external, "weights.bin")


def test_external_data_without_a_folder(external):
    refused(onnx.load(external, load_external_data=False), '"w"', "pass the path")


def test_model_reached_by_a_link_finds_its_data(external, tmp_path):
    other = tmp_path / "link"
    other.symlink_to(external.parent)
    load_graph(other / "m.onnx")


def test_unread_external_data_is_not_asked_for(external):
    proto = onnx.load(external, load_external_data=False)
    proto.graph.node[0].input[1] = "x"
    external.write_bytes(proto.SerializeToString())
    (external.parent / "weights.bin").unlink()
    load_graph(external)
