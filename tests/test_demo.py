"""The demo's own parts: sessions that stand in for ONNX Runtime's, and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from smartmem import demo
from smartmem.errors import InputError


class Fake:
    """An ONNX Runtime session, and a compiled model: both double their input."""

    def __init__(self):
        self.shapes = []

    def get_input_names(self):
        return ["x"]

    def get_character_list(self):
        return ["a"]

    def __call__(self, array):
        self.shapes.append(array.shape)
        return [array * 2]

    def run(self, inputs):
        return self(inputs["x"])


def make(width_step: int = 0):
    built = []

    def compile_(path, shapes):
        built.append(shapes["x"])
        return Fake()

    return demo.Session(Path("m.onnx"), Fake(), compile_, width_step), built


def test_one_model_for_each_shape():
    session, built = make()
    for width in (8, 8, 16):
        assert session(np.ones((1, 3, 4, width), np.float32))[0].shape == (1, 3, 4, width)
    assert built == [(1, 3, 4, 8), (1, 3, 4, 16)]
    assert session.get_character_list() == ["a"]


def test_widths_are_rounded_up():
    session, built = make(160)
    for width in (320, 321, 400, 480):
        session(np.ones((1, 3, 48, width), np.float32))
    assert built == [(1, 3, 48, 320), (1, 3, 48, 480)]
    assert session.seen[1][0, 0, 0].tolist() == [1.0] * 321 + [0.0] * 159


def test_pictures(tmp_path):
    pytest.importorskip("cv2")
    assert demo._picture(demo.SAMPLE).shape[2] == 3
    assert demo.SAMPLE.stat().st_size < 60_000
    (tmp_path / "empty.png").touch()
    for name, message in (("none.png", "no such file"), ("empty.png", "not a picture"), ("", "Is a directory")):
        with pytest.raises(InputError, match=message):
            demo._picture(tmp_path / name)
