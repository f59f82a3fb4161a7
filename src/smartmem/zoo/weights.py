"""Seeded weights that make a network's output depend on its input, and on each of its parameters.

Plain initialisation leaves biases at zero, norms at one, layer scales near zero and BatchNorm statistics at (0, 1). Then
many networks are nearly independent of their input, and a kernel that drops a bias or swaps two norms goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_POSITIONS = ("pos_embed", "absolute_pos", "cls_token")
_BIAS_TABLES = ("bias_table", "rel_pos", "relative_position", "attention_biases")
_SHARPENED = {"qkv.weight": 3.0, "q_proj.weight": 2.0, "k_proj.weight": 2.0, "to_q.weight": 2.0, "to_k.weight": 2.0}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give what plain initialisation leaves constant or tiny noise of a sensible size, in place.

    all zero -> 0.1 noise; all one -> 1 + 0.2 noise; another constant below 0.05 (a layer scale) -> 0.5 + 0.2 noise,
    above -> c (1 + 0.2 noise); tables of relative positions -> 0.5 noise; absolute positions and class tokens -> 0.1
    noise, tokens and their positions -> 0.3 noise, as the biases added to them would else outweigh them; query and key
    projections are scaled, so that attention tells tokens apart. Frozen parameters stay.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not value.requires_grad or not value.is_floating_point() or not value.numel():
                continue
            if id(value) in embeddings and not any(part in name for part in _BIAS_TABLES):
                value.normal_(0, 0.3, generator=generator)
                continue
            noise = torch.randn(value.shape, generator=generator) if _wants_noise(name, value) else None
            first = float(value.flatten()[0])
            factor = next((f for suffix, f in _SHARPENED.items() if name.endswith(suffix)), None)
            if noise is None:
                value.mul_(factor if factor is not None else 1.0)
            elif any(part in name for part in _BIAS_TABLES) and not _constant(value):
                value.copy_(0.5 * noise)
            elif any(part in name for part in _POSITIONS):
                value.copy_(0.1 * noise)
            elif first == 0:
                value.copy_(0.1 * noise)
            elif abs(first) < 0.05:
                value.copy_(0.5 + 0.2 * noise)
            else:
                value.copy_(first * (1 + 0.2 * noise))


def calibrate(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Set the statistics of all BatchNorms to what they see on `inputs`, in place; the model stays in evaluation mode."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
        norm.train()
    with torch.no_grad():
        model(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _constant(value: torch.Tensor) -> bool:
    return bool((value == value.flatten()[0]).all())


def _wants_noise(name: str, value: torch.Tensor) -> bool:
    return any(part in name for part in _BIAS_TABLES + _POSITIONS) or _constant(value)
