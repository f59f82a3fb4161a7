"""Detectors from ultralytics (AGPL-3.0), from the configurations inside the package, with random weights."""

from __future__ import annotations

import torch
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel


def build(config: str) -> torch.nn.Module:
    """A detector: image (n, 3, h, w) -> boxes and class scores (n, 4 + 80, anchors), before suppression."""
    model = DetectionModel(config, ch=3, nc=80, verbose=False)
    for module in model.modules():
        if isinstance(module, Detect):
            module.export = True  # return the decoded predictions only
            module.format = "onnx"
            _spread(module)
    return model


def _spread(head: Detect) -> None:
    """Let boxes and scores vary as a trained network's do; fresh ones are all alike (biases of 2 and about -11)."""
    with torch.no_grad():
        for branches, scale in ((head.cv2, 8.0), (head.cv3, 3.0)):
            for branch in branches:
                branch[-1].weight.mul_(scale)
                branch[-1].bias.zero_()
