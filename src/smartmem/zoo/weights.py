"""Seeded weights that make a network's output depend on its input, and on each of its parameters.

Plain initialisation leaves biases at zero, norms at one, layer scales near zero and BatchNorm statistics at 0, 1. Many
networks are then nearly independent of their input, and a kernel that drops a bias or swaps two norms goes unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_POSITIONS = ("pos_embed", "absolute_pos", "cls_token")
_BIAS_TABLES = ("bias_table", "rel_pos", "relative_position", "attention_biases")
_SHARPENED = {"qkv.weight": 3.0, "q_proj.weight": 2.0, "k_proj.weight": 2.0, "to_q.weight": 2.0, "to_k.weight": 2.0}


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give what plain initialisation leaves constant or tiny noise of a sensible size, in place.

    all zero -> 0.1 noise; all one -> 1 + 0.2 noise; another constant c: below 0.05 (a layer scale) -> 0.5 + 0.2 noise,
    above -> c (1 + 0.2 noise); tables of relative positions -> 0.5 noise; absolute positions and class tokens -> 0.1
    noise; token embeddings -> 0.3 noise, as the biases added to them would else outweigh them; query and key weights
    are scaled, so that attention tells tokens apart. Frozen parameters stay.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and value.is_floating_point() and value.numel():
                _fill(name, value, generator, id(value) in embeddings)


def _fill(name: str, value: torch.Tensor, generator: torch.Generator, embedding: bool) -> None:
    first = float(value.flatten()[0])
    factor = next((factor for ending, factor in _SHARPENED.items() if name.endswith(ending)), None)
    if any(part in name for part in _BIAS_TABLES):
        value.normal_(0.0, 0.5, generator=generator)
    elif embedding:
        value.normal_(0.0, 0.3, generator=generator)
    elif any(part in name for part in _POSITIONS):
        value.normal_(0.0, 0.1, generator=generator)
    elif factor is not None:
        value.mul_(factor)
    elif not bool((value == first).all()):
        return
    elif first == 0:
        value.normal_(0.0, 0.1, generator=generator)
    elif abs(first) < 0.05:
        value.normal_(0.5, 0.2, generator=generator)
    else:
        value.normal_(first, 0.2 * abs(first), generator=generator)


def calibrate(model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Set all BatchNorms' statistics to what they see on `inputs`, in place; the model ends in evaluation mode.

    A channel that hardly varies on `inputs` counts as one that varies a tenth as much as the others: divided by its own
    deviation, it would multiply another input by hundreds, layer after layer.
    """
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
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean()))
    model.eval()
