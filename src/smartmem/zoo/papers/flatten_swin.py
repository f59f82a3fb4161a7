"""FLatten-Swin-T, of "FLatten Transformer: Vision Transformer using Focused Linear Attention".

Han, Pan, Han, Song, Huang; ICCV 2023, arXiv 2308.00442. Swin-T (Liu et al., arXiv 2103.14030) whose first two stages
have *focused linear attention* over the whole grid in place of softmax attention in windows. Special:

    focus(x) = x^3 scaled back to the length of x, for x = relu(x) + eps over softplus(scale) >= 0
    out      = focus(q) (focus(k)^T v) / (focus(q) . mean of focus(k))

Keys and values are multiplied first, so the cost is linear in the number of tokens: (D x N)(N x D), then (N x D)(D x D)
for D = 32, N = 3136 and 784. What the low rank of that loses, a 5x5 depthwise convolution of the values, shared by the
heads, brings back. Stages 3 and 4 are Swin's: windows of 7 x 7, every other block shifted by 3 with a mask.

Image (B, 3, 224, 224) -> grids of side 56, 28, 14, 7 with 96, 192, 384, 768 channels -> (B, 1000).
29.19 M parameters, 4.48 GMACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smartmem.zoo.papers.common import (
    Classifier,
    ConvEmbed,
    Mlp,
    attend,
    check_size,
    depthwise,
    merge_heads,
    merge_windows,
    position_table,
    relative_index,
    split_heads,
    split_qkv,
    split_windows,
)

DIMS = (96, 192, 384, 768)
DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)
LINEAR = (True, True, False, False)
WINDOW = 7
MLP_RATIO = 4
EPS = 1e-6


def focus(x: Tensor) -> Tensor:
    """Cube each component and scale the vector back to its length: pulls it towards its largest components.

    For (1, 2): the cube (1, 8) has length 8.06, the vector 2.24 -> (0.28, 2.22).
    """
    cubed = x**3
    out: Tensor = cubed / cubed.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
    return out


def shift_mask(side: int, shift: int) -> Tensor:
    """Which pairs of a rolled grid's windows may not attend to each other, as an addend: 0 or -100.

    Rolling by `-shift` brings the first rows and columns next to the last ones; a window may hold up to four pieces
    that are no neighbours. Returns `(windows, 1, 49, 49)`.
    """
    piece = torch.zeros(side, dtype=torch.int64)
    piece[side - WINDOW : side - shift] = 1
    piece[side - shift :] = 2
    pieces = (3 * piece[:, None] + piece[None, :]).reshape(1, side, side, 1)
    label = split_windows(pieces, WINDOW, WINDOW).squeeze(-1)
    return (label[:, None, :] != label[:, :, None]).float().mul(-100.0).unsqueeze(1)


class LinearAttention(nn.Module):
    """Focused linear attention over a whole grid `(B, side, side, dim)`."""

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.dim, self.heads, self.side = dim, heads, side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.position = position_table(1, side * side, dim)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.local = depthwise(dim // heads, 5)
        self.project = nn.Linear(dim, dim)

    def forward(self, grid: Tensor) -> Tensor:
        count, width = self.side * self.side, self.dim // self.heads
        q, k, v = self.qkv(grid.reshape(-1, count, self.dim)).split(self.dim, dim=-1)
        scale = nn.functional.softplus(self.scale)
        q = focus((q.relu() + EPS) / scale)
        k = focus(((k + self.position).relu() + EPS) / scale)
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))
        weight = q @ k.mean(dim=2, keepdim=True).transpose(2, 3)  # (B, heads, N, 1)
        out = q @ ((k * count**-0.5).transpose(2, 3) @ (v * count**-0.5)) / (weight + EPS)
        planes = v.transpose(2, 3).reshape(-1, width, self.side, self.side)
        local = self.local(planes).reshape(-1, self.dim, count).transpose(1, 2)
        result: Tensor = self.project(merge_heads(out) + local)
        return result.reshape(-1, self.side, self.side, self.dim)


class WindowAttention(nn.Module):
    """Swin's attention: inside windows of 7 x 7 of the grid, rolled by `shift`, with a table of position biases."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, dim: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.heads, self.side, self.shift = heads, side, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.bias_table = position_table((2 * WINDOW - 1) ** 2, heads)
        self.project = nn.Linear(dim, dim)
        self.register_buffer("index", relative_index(WINDOW).reshape(-1), persistent=False)
        self.register_buffer("mask", shift_mask(side, shift) if shift else None, persistent=False)

    def forward(self, grid: Tensor) -> Tensor:
        if self.shift:
            grid = torch.roll(grid, (-self.shift, -self.shift), dims=(1, 2))
        q, k, v = split_qkv(self.qkv(split_windows(grid, WINDOW, WINDOW)), self.heads)
        area = WINDOW * WINDOW
        bias = self.bias_table.index_select(0, self.index).reshape(area, area, self.heads).permute(2, 0, 1)
        if self.mask is not None:
            bias = (bias + self.mask).repeat(grid.shape[0], 1, 1, 1)
        x = self.project(merge_heads(attend(q, k, v, bias)))
        grid = merge_windows(x, WINDOW, WINDOW, self.side, self.side)
        return torch.roll(grid, (self.shift, self.shift), dims=(1, 2)) if self.shift else grid


class Block(nn.Module):
    """Pre-norm block on a grid with the given attention."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, grid: Tensor) -> Tensor:
        grid = grid + self.attention(self.norm1(grid))
        out: Tensor = grid + self.mlp(self.norm2(grid))
        return out


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens become one: `(B, H, W, C) -> (B, H/2, W/2, 2C)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduce = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        corners = [grid[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
        out: Tensor = self.reduce(self.norm(torch.cat(corners, dim=-1)))
        return out


class FlattenSwin(nn.Module):
    """The whole network; `size` is a multiple of 224, so that each stage divides into windows."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_size("FLatten-Swin-T", size, 32 * WINDOW)
        self.stem = ConvEmbed(3, DIMS[0], kernel=4, stride=4, padding=0)
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in DIMS[:-1])
        self.stages = nn.ModuleList()
        for i, (dim, depth, heads, linear) in enumerate(zip(DIMS, DEPTHS, HEADS, LINEAR, strict=True)):
            side = size // (4 << i)
            blocks = []
            for j in range(depth):
                shift = WINDOW // 2 if j % 2 and side > WINDOW else 0
                swin = WindowAttention(dim, heads, side, shift) if not linear else None
                blocks.append(Block(dim, swin or LinearAttention(dim, heads, side)))
            self.stages.append(nn.Sequential(*blocks))
        self.classifier = Classifier(DIMS[-1])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages[0](self.stem(image))
        for merge, stage in zip(self.merges, self.stages[1:], strict=True):
            x = stage(merge(x))
        out: Tensor = self.classifier(x)
        return out


def build(size: int = 224) -> nn.Module:
    """FLatten-Swin-T: `(B, 3, size, size) -> (B, 1000)`."""
    return FlattenSwin(size)
