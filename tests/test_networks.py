"""Whole models against ONNX Runtime: the shipped networks and the PP-OCRv4 models of the rapidocr wheel, every level.

The seeded networks take fresh random inputs. The detector gets the sample picture: on noise nearly all of its outputs
are sigmoids of very negative numbers, where ONNX Runtime's sigmoid is exact to 1e-7 absolutely but not relatively.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.networks import network

import smartmem

onnxruntime = pytest.importorskip("onnxruntime")
LIMIT = 1e-4
SWIN_KERNELS = 90
OCR = {"det": (1, 3, 320, 320), "cls": (1, 3, 48, 192), "rec": (1, 3, 48, 320)}


def relative_error(out: Any, ref: Any) -> float:
    difference = np.linalg.norm(np.asarray(out, np.float64) - np.asarray(ref, np.float64))
    return float(difference / np.linalg.norm(np.asarray(ref, np.float64)))


def inputs_of(session: Any, rng: np.random.Generator) -> dict[str, Any]:
    feeds: dict[str, Any] = {}
    for spec in session.get_inputs():
        if "mask" in spec.name:
            feeds[spec.name] = np.ones(spec.shape, np.int64)
            feeds[spec.name][:, -7:] = 0
        elif "int64" in spec.type:
            feeds[spec.name] = rng.integers(0, 2 if "type" in spec.name else 1000, spec.shape)
        else:
            feeds[spec.name] = rng.standard_normal(spec.shape, np.float32)
    return feeds


@pytest.mark.parametrize("name", ["swin_t", "vit_b16", "convnext_t", "minilm"])
def test_every_level_of_a_network(name: str) -> None:
    model = network(f"{name}_dynamo")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = inputs_of(session, np.random.default_rng())
    (wanted,) = session.run(None, feeds)
    for level in smartmem.LEVELS:
        compiled = smartmem.compile(model, threads=2, level=level)
        assert relative_error(compiled(**feeds), wanted) < LIMIT, level
        if level == "full":
            totals = compiled.program.report["totals"]
            assert totals["copies"] == 0
            assert totals["host_steps"] == 0
            assert name != "swin_t" or totals["kernels"] <= SWIN_KERNELS


@pytest.mark.parametrize("name", ["swin_t", "vit_b16", "convnext_t", "minilm"])
def test_the_other_exporter(name: str) -> None:
    model = network(f"{name}_script")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = inputs_of(session, np.random.default_rng())
    (wanted,) = session.run(None, feeds)
    compiled = smartmem.compile(model, threads=2)
    assert relative_error(compiled(**feeds), wanted) < LIMIT
    assert compiled.program.report["totals"]["copies"] == 0


def picture(shape: tuple[int, ...]) -> Any:
    """A part of the sample picture as the models take it: planes of values in [-1, 1]."""
    cv2 = pytest.importorskip("cv2")
    image = cv2.imread(str(Path(smartmem.__file__).parent / "demo_sample.png"))
    part = image[:320, :320] if shape[2] == shape[3] else cv2.resize(image[40:88, 20:340], shape[:1:-1])
    return np.ascontiguousarray((part.transpose(2, 0, 1)[None] / 127.5 - 1).astype(np.float32))


@pytest.mark.parametrize("name", list(OCR))
def test_every_level_of_ppocr(name: str) -> None:
    rapidocr = pytest.importorskip("rapidocr_onnxruntime")
    path = next((Path(rapidocr.__file__).parent / "models").glob(f"*{name}*.onnx"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    x = picture(OCR[name])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x})
    for level in smartmem.LEVELS:
        compiled = smartmem.compile(str(path), shapes={session.get_inputs()[0].name: OCR[name]}, threads=2, level=level)
        assert relative_error(compiled(x), wanted) < LIMIT, level
        assert level != "full" or compiled.program.report["totals"]["copies"] == 0
