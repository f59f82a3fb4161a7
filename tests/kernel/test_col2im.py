"""Col2Im: overlapping blocks added up, for any strides, dilations and padding, on any number of axes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import helper
from tests.support.onnx_models import model

import smartmem


@pytest.mark.parametrize("level", ["naive", "full"])
@pytest.mark.parametrize(
    ("image", "block", "strides", "dilations", "pads"),
    [
        ((28, 28), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
        ((9, 11), (3, 2), (1, 2), (1, 1), (0, 0, 0, 0)),
        ((10, 8), (2, 2), (2, 2), (1, 1), (0, 0, 0, 0)),  # blocks that do not overlap
        ((11, 8), (2, 2), (3, 3), (1, 1), (0, 0, 0, 0)),  # pixels that no block reaches
        ((12, 12), (3, 3), (2, 1), (2, 2), (1, 2, 0, 1)),
        ((5,), (3,), (1,), (1,), (1, 1)),
        ((6, 7, 5), (2, 2, 3), (1, 2, 1), (1, 1, 1), (0, 1, 0, 1, 0, 1)),
    ],
)
def test_as_onnx_runtime_does(
    level: str, image: tuple[int, ...], block: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...],
    pads: tuple[int, ...],
) -> None:  # fmt: skip
    axes = range(len(image))
    padded = [n + pads[a] + pads[len(image) + a] for a, n in enumerate(image)]
    counts = [(padded[a] - dilations[a] * (block[a] - 1) - 1) // strides[a] + 1 for a in axes]
    x = np.random.default_rng(0).standard_normal((2, 3 * np.prod(block), np.prod(counts))).astype(np.float32)
    node = helper.make_node("Col2Im", ["x", "image", "block"], ["y"], strides=strides, dilations=dilations, pads=pads)
    constants = {"image": np.array(image), "block": np.array(block)}
    proto = model([node], {"x": x.shape}, {"y": None}, constants, opset=18)
    wanted = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
    with smartmem.compile(proto, level=level, threads=2) as compiled:
        assert compiled.program.report["totals"]["host_steps"] == 0
        got = compiled(x)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
