"""CrossFormer-S, of "CrossFormer: A Versatile Vision Transformer Hinging on Cross-Scale Attention".

Wang, Yao, Chen, Lin, Cai, He, Liu; ICLR 2022, arXiv 2108.00154. A four-stage pyramid. Special:

- Cross-scale embedding: patches are embedded by convolutions of several kernel sizes with the same stride (4, 8, 16, 32
  at the input; 2 and 4 between stages), side by side in the channels; the larger the kernel, the fewer its channels.
- Attention in groups of 7 x 7 tokens, by turns *short distance* (SDA: neighbours, a window) and *long distance* (LDA:
  every `side / 7`-th token of a row and a column). Both are one reshape and transpose, with the two factors swapped.
- Dynamic position bias: the score's bias for an offset (dy, dx) comes from a small MLP of the offset, not from a table.

Image (B, 3, 224, 224) -> grids of side 56, 28, 14, 7 with 96, 192, 384, 768 channels -> (B, 1000).
30.66 M parameters, 4.91 GMACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smartmem.zoo.papers.common import (
    Classifier,
    Mlp,
    attend,
    check_size,
    merge_heads,
    merge_windows,
    relative_index,
    split_qkv,
    split_windows,
    to_grid,
    to_planes,
)

DIMS = (96, 192, 384, 768)
DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)
GROUP = 7
MLP_RATIO = 4


def split_distant(grid: Tensor, group: int) -> Tensor:
    """Groups of `group` x `group` tokens that are `side / group` apart: `(B, H, W, C) -> (groups, group ** 2, C)`.

    For side 4 and group 2, the first group is the tokens (0, 0), (0, 2), (2, 0), (2, 2).
    """
    _, rows, columns, channels = grid.shape
    cut = grid.reshape(-1, group, rows // group, group, columns // group, channels)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, group * group, channels)


def merge_distant(groups: Tensor, group: int, side: int) -> Tensor:
    """The inverse of `split_distant` for a grid of `side` x `side`."""
    step, channels = side // group, groups.shape[-1]
    cut = groups.reshape(-1, step, step, group, group, channels)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(-1, side, side, channels)


class CrossScaleEmbed(nn.Module):
    """Convolutions of several kernel sizes with one stride, their outputs concatenated.

    Kernel i of n gets `dim / 2 ** (i + 1)` channels, the last as many as the one before. Planes -> grid.
    """

    def __init__(self, channels: int, dim: int, kernels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        last = len(kernels) - 1
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, dim >> min(i + 1, last), kernel, stride, (kernel - stride) // 2)
            for i, kernel in enumerate(kernels)
        )

    def forward(self, planes: Tensor) -> Tensor:
        return to_grid(torch.cat([conv(planes) for conv in self.convs], dim=1))


class DynamicPositionBias(nn.Module):
    """The bias of each pair of tokens in a group, `(heads, group ** 2, group ** 2)`, by an MLP of their offset."""

    offsets: Tensor
    index: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        width = dim // 16
        span = torch.arange(1 - GROUP, GROUP)
        self.register_buffer("offsets", torch.cartesian_prod(span, span).float(), persistent=False)
        self.register_buffer("index", relative_index(GROUP).reshape(-1), persistent=False)
        sizes = (width, width, heads)
        self.enter = nn.Linear(2, width)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, size)) for size in sizes)
        )

    def forward(self) -> Tensor:
        table: Tensor = self.layers(self.enter(self.offsets))
        return table.index_select(0, self.index).reshape(GROUP * GROUP, GROUP * GROUP, -1).permute(2, 0, 1)


class Attention(nn.Module):
    """Attention inside each group: `(groups, 49, dim) -> (groups, 49, dim)`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.bias = DynamicPositionBias(dim, heads)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = split_qkv(self.qkv(x), self.heads)
        out: Tensor = self.project(merge_heads(attend(q, k, v, self.bias())))
        return out


class Block(nn.Module):
    """Pre-norm block on a grid; its groups are windows, or `distant` tokens."""

    def __init__(self, dim: int, heads: int, side: int, distant: bool) -> None:
        super().__init__()
        self.side, self.distant = side, distant
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, grid: Tensor) -> Tensor:
        x = self.norm1(grid)
        if self.distant:
            x = merge_distant(self.attention(split_distant(x, GROUP)), GROUP, self.side)
        else:
            x = merge_windows(self.attention(split_windows(x, GROUP, GROUP)), GROUP, GROUP, self.side, self.side)
        grid = grid + x
        out: Tensor = grid + self.mlp(self.norm2(grid))
        return out


class CrossFormer(nn.Module):
    """The whole network; `size` is a multiple of 224, so that each stage divides into groups."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_size("CrossFormer-S", size, 32 * GROUP)
        self.stem = CrossScaleEmbed(3, DIMS[0], (4, 8, 16, 32), stride=4)
        self.stem_norm = nn.LayerNorm(DIMS[0])
        self.stages = nn.ModuleList()
        for i, (dim, depth, heads) in enumerate(zip(DIMS, DEPTHS, HEADS, strict=True)):
            side = size // (4 << i)
            blocks = (Block(dim, heads, side, distant=bool(j % 2) and side > GROUP) for j in range(depth))
            self.stages.append(nn.Sequential(*blocks))
        self.merge_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in DIMS[:-1])
        self.merges = nn.ModuleList(CrossScaleEmbed(dim, 2 * dim, (2, 4), stride=2) for dim in DIMS[:-1])
        self.classifier = Classifier(DIMS[-1])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages[0](self.stem_norm(self.stem(image)))
        for norm, merge, stage in zip(self.merge_norms, self.merges, self.stages[1:], strict=True):
            x = stage(merge(to_planes(norm(x))))
        out: Tensor = self.classifier(x)
        return out


def build(size: int = 224) -> nn.Module:
    """CrossFormer-S: `(B, 3, size, size) -> (B, 1000)`."""
    return CrossFormer(size)
