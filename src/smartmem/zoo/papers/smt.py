"""SMT-S, of "Scale-Aware Modulation Meet Transformer".

Lin, Wu, Chen, Huang, Jin; ICCV 2023, arXiv 2307.08579. A four-stage pyramid, convolutional early and attentive late.
Special: *scale-aware modulation* (SAM) takes attention's place in stages 1 and 2 and in every other block of stage 3:

    heads      the channels in 4 groups, each a depthwise convolution of its own kernel: 3, 5, 7, 9
    aggregate  channel c of all 4 heads side by side, mixed 4 -> 8 by a grouped 1x1 convolution; then 1x1 over all
    modulate   the result times a linear projection of the input

The other blocks of stage 3 and all of stage 4 have multi-head attention, with a 3x3 depthwise convolution of the values
added. MLPs have a 3x3 depthwise convolution, added to its input, before their GELU.

Image (B, 3, 224, 224) -> grids of side 56, 28, 14, 7 with 64, 128, 256, 512 channels -> (B, 1000).
22.55 M parameters, 4.84 GMACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smartmem.zoo.papers.common import (
    CLASSES,
    attend,
    check_size,
    depthwise,
    merge_heads,
    split_heads,
    to_grid,
    to_planes,
)

DIMS = (64, 128, 256, 512)
DEPTHS = (3, 4, 18, 2)
MLP_RATIOS = (4, 4, 4, 2)
SCALES = 4  # heads of the modulation, kernels 3, 5, 7, 9
EXPAND = 2
HEADS = (0, 0, 8, 16)  # of the attention
EPS = 1e-6


class Modulation(nn.Module):
    """Scale-aware modulation of a grid `(B, side, side, dim)`."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.dim, self.side = dim, side
        group = dim // SCALES
        self.value = nn.Linear(dim, dim)
        self.scales = nn.Linear(dim, dim)
        self.convs = nn.ModuleList(depthwise(group, 3 + 2 * i) for i in range(SCALES))
        self.aggregate = nn.Sequential(
            nn.Conv2d(dim, EXPAND * dim, 1, groups=group),
            nn.BatchNorm2d(EXPAND * dim),
            nn.GELU(),
            nn.Conv2d(EXPAND * dim, dim, 1),
        )
        self.project = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        heads = torch.split(to_planes(self.scales(grid)), self.dim // SCALES, dim=1)
        scales = [conv(head) for conv, head in zip(self.convs, heads, strict=True)]
        mixed = torch.stack(scales, dim=2).reshape(-1, self.dim, self.side, self.side)
        out: Tensor = self.project(to_grid(self.aggregate(mixed)) * self.value(grid))
        return out


class Attention(nn.Module):
    """Attention among all tokens of a grid, with a convolution of the values."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.dim, self.heads, self.side = dim, heads, side
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.local = depthwise(dim, 3)
        self.project = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        tokens = grid.reshape(-1, self.side * self.side, self.dim)
        k, v = self.kv_proj(tokens).split(self.dim, dim=-1)
        q, k, parts = (split_heads(x, self.heads) for x in (self.q_proj(tokens), k, v))
        local = self.local(to_planes(v.reshape(-1, self.side, self.side, self.dim)))
        out = merge_heads(attend(q, k, parts)).reshape(-1, self.side, self.side, self.dim)
        result: Tensor = self.project(out + to_grid(local))
        return result


class ConvMlp(nn.Module):
    """An MLP with a depthwise convolution between its linear layers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.local = depthwise(hidden, 3)
        self.act = nn.GELU()
        self.project = nn.Linear(hidden, dim)

    def forward(self, grid: Tensor) -> Tensor:
        x = self.expand(grid)
        out: Tensor = self.project(self.act(x + to_grid(self.local(to_planes(x)))))
        return out


class Block(nn.Module):
    """Pre-norm block on a grid: modulation (`heads` 0) or attention, then the MLP."""

    def __init__(self, dim: int, heads: int, side: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.mixer = Attention(dim, heads, side) if heads else Modulation(dim, side)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = ConvMlp(dim, mlp_ratio * dim)

    def forward(self, grid: Tensor) -> Tensor:
        grid = grid + self.mixer(self.norm1(grid))
        out: Tensor = grid + self.mlp(self.norm2(grid))
        return out


class Stage(nn.Module):
    """Embedding convolutions, LayerNorm, blocks, LayerNorm: planes -> grid of half (the first: a quarter) the side."""

    def __init__(self, embed: nn.Module, dim: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embed = embed
        self.embed_norm = nn.LayerNorm(dim)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, planes: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.embed_norm(to_grid(self.embed(planes)))))
        return out


class SMT(nn.Module):
    """The whole network; `size` is a multiple of 32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_size("SMT-S", size, 32)
        stem = nn.Sequential(
            nn.Conv2d(3, DIMS[0], 3, 2, 1, bias=False),
            nn.BatchNorm2d(DIMS[0]),
            nn.ReLU(),
            nn.Conv2d(DIMS[0], DIMS[0], 2, 2),
        )
        self.stages = nn.ModuleList()
        for i, (dim, depth, heads, ratio) in enumerate(zip(DIMS, DEPTHS, HEADS, MLP_RATIOS, strict=True)):
            embed = nn.Conv2d(DIMS[i - 1], dim, 3, 2, 1) if i else stem
            # stage 3 takes turns, modulation first
            kinds = [0 if i == 2 and j % 2 == 0 else heads for j in range(depth)]
            self.stages.append(Stage(embed, dim, [Block(dim, h, size // (4 << i), ratio) for h in kinds]))
        self.head = nn.Linear(DIMS[-1], CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages[0](image)
        for stage in self.stages[1:]:
            x = stage(to_planes(x))
        out: Tensor = self.head(x.mean(dim=(1, 2)))
        return out


def build(size: int = 224) -> nn.Module:
    """SMT-S: `(B, 3, size, size) -> (B, 1000)`."""
    return SMT(size)
