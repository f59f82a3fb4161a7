"""Small pieces that several of the networks share.

Two forms of an image's features occur: a *grid* `(B, H, W, C)`, channels last, for attention and MLPs, and *planes*
`(B, C, H, W)` for convolutions. A window of a grid, or a whole grid, flattened is a sequence of *tokens* `(B, N, C)`.

Invariant: `merge_windows(split_windows(x, h, w), h, w, H, W) == x`, and the same for `split_heads` and `merge_heads`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 1000  # ImageNet-1k
POSITION_STD = 0.2


def position_table(*shape: int) -> nn.Parameter:
    """A table of position embeddings or biases.

    The papers start from 0.02. Here nothing is trained, and with values that small a wrong look-up would hardly show
    in the output: 0.2 makes it show.
    """
    return nn.Parameter(torch.randn(shape) * POSITION_STD)


def check_size(network: str, size: int, step: int) -> None:
    """Raise ValueError unless every stage of `network` divides into its windows: `size` is a multiple of `step`."""
    if size <= 0 or size % step:
        raise ValueError(f"{network} needs images whose side is a multiple of {step}, not {size}")


def to_grid(planes: Tensor) -> Tensor:
    """`(B, C, H, W) -> (B, H, W, C)`."""
    return planes.permute(0, 2, 3, 1)


def to_planes(grid: Tensor) -> Tensor:
    """`(B, H, W, C) -> (B, C, H, W)`."""
    return grid.permute(0, 3, 1, 2)


def split_windows(grid: Tensor, height: int, width: int) -> Tensor:
    """Cut a grid into windows: `(B, H, W, C) -> (B * H/height * W/width, height * width, C)`, row by row."""
    _, rows, columns, channels = grid.shape
    cut = grid.reshape(-1, rows // height, height, columns // width, width, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, height * width, channels)


def merge_windows(windows: Tensor, height: int, width: int, rows: int, columns: int) -> Tensor:
    """The inverse of `split_windows` for a grid of `rows` x `columns`."""
    channels = windows.shape[-1]
    cut = windows.reshape(-1, rows // height, columns // width, height, width, channels)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, rows, columns, channels)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """`(B, N, C) -> (B, heads, N, C / heads)`."""
    _, count, channels = tokens.shape
    return tokens.reshape(-1, count, heads, channels // heads).transpose(1, 2)


def merge_heads(parts: Tensor) -> Tensor:
    """`(B, heads, N, D) -> (B, N, heads * D)`."""
    _, heads, count, width = parts.shape
    return parts.transpose(1, 2).reshape(-1, count, heads * width)


def split_qkv(tokens: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a joint projection: `(B, N, 3C) -> 3 x (B, heads, N, C / heads)`."""
    _, count, channels = tokens.shape
    parts = tokens.reshape(-1, count, 3, heads, channels // 3 // heads).permute(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`softmax(q k^T / sqrt(D) + bias) v` over `(B, heads, N, D)`; `bias` broadcasts to `(B, heads, N, M)`.

    Written out rather than as `scaled_dot_product_attention`, so that the graph has its MatMul and Softmax.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    out: Tensor = scores.softmax(dim=-1) @ v
    return out


def depthwise(channels: int, kernel: int) -> nn.Conv2d:
    """A convolution of each channel with its own square kernel, which keeps the size."""
    return nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)


def relative_index(side: int) -> Tensor:
    """For each pair of positions in a `side` x `side` window the row of a table of their offsets.

    The table has `(2 * side - 1) ** 2` rows, one per (row offset, column offset), as in Swin. Returns
    `(side ** 2, side ** 2)`, int64. For side 2, positions (0, 0) and (1, 1): offsets (-1, -1) -> 0.
    """
    where = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    offset = where[:, None, :] - where[None, :, :] + (side - 1)
    return offset[..., 0] * (2 * side - 1) + offset[..., 1]


class Mlp(nn.Module):
    """Two linear layers with GELU between, on the last axis."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.project = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.act(self.expand(x)))
        return out


class ConvEmbed(nn.Module):
    """A strided convolution and a LayerNorm over its channels: planes `(B, C, H, W)` -> grid `(B, H/s, W/s, dim)`."""

    def __init__(self, channels: int, dim: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, planes: Tensor) -> Tensor:
        out: Tensor = self.norm(to_grid(self.conv(planes)))
        return out


class Classifier(nn.Module):
    """LayerNorm, mean over the positions, linear: a grid `(B, H, W, dim)` -> logits `(B, CLASSES)`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, CLASSES)

    def forward(self, grid: Tensor) -> Tensor:
        out: Tensor = self.linear(self.norm(grid).mean(dim=(1, 2)))
        return out
