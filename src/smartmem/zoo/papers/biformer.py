"""BiFormer-S, of "BiFormer: Vision Transformer with Bi-Level Routing Attention".

Zhu, Wang, Ke, Zhang, Lau; CVPR 2023, arXiv 2303.08810. A four-stage pyramid. Special: which keys a query looks at
depends on the data. The grid is cut into 7 x 7 regions; the mean query of each region is compared with the mean key
of every other, and its tokens attend to the tokens of the `topk` best regions only:

    regions  (B, 49, S, C)   S tokens each: 64, 16, 4 in stages 1, 2, 3
    routing  top-k of mean(q) mean(k)^T     -> (B, 49, topk), indices
    gather   keys and values of those       -> (B, 49, topk * S, C)

with topk 1, 4, 16; stage 4 (7 x 7 tokens) attends to everything. A 5x5 depthwise convolution of the values is added to
every attention's output (LePE), and every block begins with a 3x3 depthwise convolution.

Image (B, 3, 224, 224) -> grids of side 56, 28, 14, 7 with 64, 128, 256, 512 channels -> (B, 1000).
25.54 M parameters, 4.46 GMACs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from smartmem.zoo.papers.common import (
    CLASSES,
    Mlp,
    attend,
    check_size,
    depthwise,
    merge_heads,
    merge_windows,
    split_heads,
    split_qkv,
    split_windows,
    to_grid,
    to_planes,
)

DIMS = (64, 128, 256, 512)
DEPTHS = (4, 4, 18, 4)
TOPK = (1, 4, 16, None)  # None: full attention
HEAD_DIM = 32
MLP_RATIO = 3
REGIONS = 7  # per side
EPS = 1e-6


def gather_regions(x: Tensor, routes: Tensor) -> Tensor:
    """The regions that each region was routed to, one after the other.

    `x`: `(B, R, S, C)`; `routes`: `(B, R, topk)`, which regions; returns `(B * R, topk * S, C)`.
    """
    batch, regions, size, channels = x.shape
    first = torch.arange(batch, device=x.device).reshape(batch, 1, 1) * regions  # regions of earlier images
    flat = x.reshape(batch * regions, size * channels)
    chosen = flat.index_select(0, (routes + first).reshape(-1))
    return chosen.reshape(batch * regions, -1, channels)


class RoutingAttention(nn.Module):
    """Bi-level routing attention on a grid `(B, side, side, dim)`."""

    def __init__(self, dim: int, side: int, topk: int) -> None:
        super().__init__()
        self.dim, self.side, self.topk = dim, side, topk
        self.heads = dim // HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * dim)
        self.lepe = depthwise(dim, 5)
        self.project = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        size = self.side // REGIONS
        q, k, v = self.qkv(grid).split(self.dim, dim=-1)
        local = to_grid(self.lepe(to_planes(v)))
        q, k, v = (self.regions(part) for part in (q, k, v))
        routes = (q.mean(dim=2) @ k.mean(dim=2).transpose(1, 2)).topk(self.topk, dim=-1).indices
        out = attend(
            split_heads(q.reshape(-1, size * size, self.dim), self.heads),
            split_heads(gather_regions(k, routes), self.heads),
            split_heads(gather_regions(v, routes), self.heads),
        )
        out = merge_windows(merge_heads(out), size, size, self.side, self.side)
        result: Tensor = self.project(out + local)
        return result

    def regions(self, grid: Tensor) -> Tensor:
        """`(B, side, side, C) -> (B, 49, S, C)`."""
        size = self.side // REGIONS
        return split_windows(grid, size, size).reshape(-1, REGIONS * REGIONS, size * size, self.dim)


class FullAttention(nn.Module):
    """Attention among all tokens of a grid, with the same convolution of the values."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.dim, self.side = dim, side
        self.heads = dim // HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.lepe = depthwise(dim, 5)
        self.project = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        joint = self.qkv(grid).reshape(-1, self.side * self.side, 3 * self.dim)
        q, k, v = split_qkv(joint, self.heads)
        planes = v.transpose(2, 3).reshape(-1, self.dim, self.side, self.side)
        out = merge_heads(attend(q, k, v)).reshape(-1, self.side, self.side, self.dim)
        result: Tensor = self.project(out + to_grid(self.lepe(planes)))
        return result


class Block(nn.Module):
    """Depthwise convolution, attention and MLP, each added to its input; planes in, planes out."""

    def __init__(self, dim: int, side: int, topk: int | None) -> None:
        super().__init__()
        self.position = depthwise(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attention = FullAttention(dim, side) if topk is None else RoutingAttention(dim, side, topk)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, planes: Tensor) -> Tensor:
        x = to_grid(planes + self.position(planes))
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return to_planes(x)


def halve(channels: int, dim: int) -> nn.Sequential:
    """A 3x3 convolution with stride 2 and a BatchNorm."""
    return nn.Sequential(nn.Conv2d(channels, dim, 3, 2, 1), nn.BatchNorm2d(dim))


class BiFormer(nn.Module):
    """The whole network; `size` is a multiple of 224, so that each stage divides into 7 x 7 regions."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_size("BiFormer-S", size, 32 * REGIONS)
        self.stem = nn.Sequential(halve(3, DIMS[0] // 2), nn.GELU(), halve(DIMS[0] // 2, DIMS[0]))
        self.downsamples = nn.ModuleList(halve(a, b) for a, b in pairwise(DIMS))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, size // (4 << i), topk) for _ in range(depth)))
            for i, (dim, depth, topk) in enumerate(zip(DIMS, DEPTHS, TOPK, strict=True))
        )
        self.norm = nn.BatchNorm2d(DIMS[-1])
        self.head = nn.Linear(DIMS[-1], CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages[0](self.stem(image))
        for downsample, stage in zip(self.downsamples, self.stages[1:], strict=True):
            x = stage(downsample(x))
        out: Tensor = self.head(self.norm(x).mean(dim=(2, 3)))
        return out


def build(size: int = 224) -> nn.Module:
    """BiFormer-S: `(B, 3, size, size) -> (B, 1000)`."""
    return BiFormer(size)
