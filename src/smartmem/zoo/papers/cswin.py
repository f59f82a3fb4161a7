"""CSWin-S, of "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows".

Dong, Bao, Chen, Zhang, Yu, Yuan, Chen, Guo; CVPR 2022, arXiv 2107.00652. A four-stage pyramid, 40 blocks. Special:

- Cross-shaped windows: half of the heads attend inside vertical stripes, half inside horizontal ones, 1, 2 and 7 tokens
  wide in stages 1 to 3; together a token sees a cross. Stage 4 (7 x 7 tokens) is one window.
- Locally enhanced positions (LePE): a 3x3 depthwise convolution of the values, inside each stripe, is added to the
  attention's output.

So each block cuts q, k and v into windows twice, and v once more for the convolution, which wants channels first.

Image (B, 3, 224, 224) -> grids of side 56, 28, 14, 7 with 64, 128, 256, 512 channels -> (B, 1000).
34.64 M parameters, 6.80 GMACs.
"""

from __future__ import annotations

from itertools import pairwise

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
    split_heads,
    split_windows,
    to_planes,
)

DIMS = (64, 128, 256, 512)
DEPTHS = (2, 4, 32, 2)
HEADS = (2, 4, 8, 16)
STRIPES = (1, 2, 7, 7)
MLP_RATIO = 4


class StripeAttention(nn.Module):
    """Attention inside windows of `height` x `width` of a grid `(B, side, side, dim)`, with LePE."""

    def __init__(self, dim: int, heads: int, side: int, height: int, width: int) -> None:
        super().__init__()
        self.dim, self.heads, self.side = dim, heads, side
        self.height, self.width = height, width
        self.lepe = depthwise(dim, 3)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (split_windows(x, self.height, self.width) for x in (q, k, v))
        local = self.lepe(v.transpose(1, 2).reshape(-1, self.dim, self.height, self.width))
        out = attend(*(split_heads(x, self.heads) for x in (q, k, v)))
        out = out + split_heads(local.flatten(2).transpose(1, 2), self.heads)
        return merge_windows(merge_heads(out), self.height, self.width, self.side, self.side)


class Block(nn.Module):
    """Pre-norm block: stripes of both directions on half of the channels each, or one window; MLP."""

    def __init__(self, dim: int, heads: int, side: int, stripe: int) -> None:
        super().__init__()
        self.dim = dim
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        windows = [(side, side)] if stripe == side else [(side, stripe), (stripe, side)]
        n = len(windows)
        self.branches = nn.ModuleList(StripeAttention(dim // n, heads // n, side, h, w) for h, w in windows)
        self.project = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor) -> Tensor:
        n = len(self.branches)
        parts = self.qkv(self.norm1(x)).split(self.dim // n, dim=-1)  # n of q, n of k, n of v
        outs = [branch(*parts[i::n]) for i, branch in enumerate(self.branches)]
        x = x + self.project(torch.cat(outs, dim=-1) if n > 1 else outs[0])
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CSWin(nn.Module):
    """The whole network; `size` is a multiple of 224, so that each stage divides into stripes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        check_size("CSWin-S", size, 224)
        self.stem = ConvEmbed(3, DIMS[0], kernel=7, stride=4, padding=2)
        self.merges = nn.ModuleList(ConvEmbed(a, b, 3, 2, 1) for a, b in pairwise(DIMS))
        self.stages = nn.ModuleList()
        for i, (dim, depth, heads, stripe) in enumerate(zip(DIMS, DEPTHS, HEADS, STRIPES, strict=True)):
            side = size // (4 << i)
            self.stages.append(nn.Sequential(*(Block(dim, heads, side, stripe) for _ in range(depth))))
        self.classifier = Classifier(DIMS[-1])

    def forward(self, image: Tensor) -> Tensor:
        x = self.stages[0](self.stem(image))
        for merge, stage in zip(self.merges, self.stages[1:], strict=True):
            x = stage(merge(to_planes(x)))
        out: Tensor = self.classifier(x)
        return out


def build(size: int = 224) -> nn.Module:
    """CSWin-S: `(B, 3, size, size) -> (B, 1000)`."""
    return CSWin(size)
