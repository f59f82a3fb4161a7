"""Networks from timm (Apache-2.0), with random weights: the library's defaults at the size asked for."""

from __future__ import annotations

import timm
import torch


def build(model: str, size: int | None = None) -> torch.nn.Module:
    """A timm network by its name; `size` (pixels) for those whose parameters depend on it."""
    return timm.create_model(model, pretrained=False, **({} if size is None else {"img_size": size}))
