"""Inputs from files and seeds, and distances between outputs."""

from __future__ import annotations

import numpy as np
import pytest

from smartmem.errors import InputError
from smartmem.inputs import largest_difference, parse_shapes, random_inputs, read_inputs, relative_error, write_npz
from smartmem.runtime.artifact import TensorSpec

SPECS = [
    TensorSpec("x", (2, 3), "float32"),
    TensorSpec("ids", (1, 50), "int64"),
    TensorSpec("attention_mask", (1, 50), "int64"),
    TensorSpec("token_type_ids", (1, 50), "int64"),
    TensorSpec("flag", (), "bool"),
]


def test_shapes():
    assert parse_shapes(["x=1,3,48,320", "a=b=2", "s="]) == {"x": (1, 3, 48, 320), "a=b": (2,), "s": ()}
    for bad in ("x", "x=a", "=1", "x=1,,2", "x=-1,2"):
        with pytest.raises(InputError, match="expected name=1,3,48,320"):
            parse_shapes([bad])


def test_random():
    first, again, other = random_inputs(SPECS), random_inputs(SPECS), random_inputs(SPECS, 1)
    for spec in SPECS:
        assert (first[spec.name].shape, first[spec.name].dtype.name) == (spec.shape, spec.dtype)
        np.testing.assert_array_equal(first[spec.name], again[spec.name])
    assert not np.array_equal(first["x"], other["x"])
    assert 10 < first["ids"].max() < 100
    assert set(first["token_type_ids"].ravel()) == {0, 1}
    assert first["attention_mask"][0, 0] == 1


def test_files(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    assert read_inputs([f"x={tmp_path}/x.npy"], SPECS)["x"].shape == (2, 3)
    assert list(read_inputs([f"{tmp_path}/x.npy"], SPECS[:1])) == ["x"]
    for bad, message in (
        ("x", "expected name=file.npy, where name is one of x, ids"),
        (f"x={tmp_path}/none.npy", "no such file"),
        (f"x={tmp_path}/text.npy", "not an .npy file"),
        (f"x={tmp_path}/object.npy", "not an .npy file"),
        (f"x={tmp_path}", "Is a directory"),
    ):
        with pytest.raises(InputError, match=message):
            read_inputs([bad], SPECS)


def test_npz_takes_any_name(tmp_path):
    arrays = {"file": np.arange(3), "/layer/out:0": np.float32(2).reshape(())}
    with (tmp_path / "o.npz").open("wb") as file:
        write_npz(file, arrays)
    with np.load(tmp_path / "o.npz") as read:
        assert {name: read[name].tolist() for name in read.files} == {"file": [0, 1, 2], "/layer/out:0": 2.0}


def test_errors():
    a = np.array([3.0, 4.0, -np.inf, np.nan])
    assert relative_error(a, a) == 0
    assert relative_error(a + [0.05, 0, 0, 0], a) == pytest.approx(0.01)
    assert relative_error(a, np.nan_to_num(a)) == np.inf
    assert relative_error(a[:2], a) == np.inf
    assert relative_error(np.zeros(0), np.zeros(0)) == 0
    assert relative_error(np.array([True]), np.array([False])) == 1
    assert largest_difference(a + [0.05, 0, 0, 0], a) == pytest.approx(0.05)
    assert largest_difference(a, np.nan_to_num(a)) == np.inf
