"""Conformer-M, of "Conformer: Convolution-augmented Transformer for Speech Recognition".

Gulati et al.; Interspeech 2020, arXiv 2005.08100. The medium encoder: 16 blocks, 256 wide, 4 heads, kernel 31. Special:

- A block is half an MLP, attention, a convolution module (pointwise, GLU, depthwise over time, BatchNorm, pointwise)
  and the other half of the MLP.
- Relative positions after Transformer-XL (arXiv 1901.02860): `score[i, j] = (q[i] + u) . k[j] + (q[i] + w) . r[i - j]`.
  r has a row for each of the 2T - 1 offsets, so the second product gives `[i, T - 1 - (i - j)]`: row i must move left
  by T - 1 - i. That shift is done without a gather: pad one column, reshape, drop the first row (`relative_shift`).

Log-mel features (B, 1000, 80) -> two 3x3 convolutions of stride 2 -> (B, 249, 256) -> scores of 1000 word pieces for
each of the 249 frames, (B, 249, 1000). 27.51 M parameters, 10.26 GMACs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from smartmem.zoo.papers.common import merge_heads, position_table, split_heads

DIM = 256
DEPTH = 16
HEADS = 4
MELS = 80
KERNEL = 31
MLP_RATIO = 4
PIECES = 1000
MIN_FRAMES = 7  # what two 3x3 convolutions of stride 2 need


def subsampled(size: int) -> int:
    """What two unpadded convolutions of kernel 3 and stride 2 leave of `size`: 1000 -> 249."""
    for _ in range(2):
        size = (size - 1) // 2
    return size


def relative_positions(frames: int) -> Tensor:
    """Sinusoids of the offsets `frames - 1` down to `1 - frames`: `(2 * frames - 1, DIM)`."""
    offset = torch.arange(frames - 1, -frames, -1.0).unsqueeze(1)
    angle = offset * torch.exp(torch.arange(0, DIM, 2.0) * (-math.log(10000.0) / DIM))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def relative_shift(x: Tensor) -> Tensor:
    """Row i of `(B, h, T, 2T - 1)` moved left by `T - 1 - i`, and the first T columns: `out[i, j] = x[i, T-1-i+j]`.

    One padded column makes the rows 2T long; without the first T values, read as rows of 2T - 1, they drift by one
    per row. T = 2:

        a b c  ->  0 a b c  ->  0 a  ->  b c  ->  b c 0  ->  b c
        d e f      0 d e f      b c      0 d      d e f      d e
                                0 d      e f
                                e f
    """
    batch, heads, count, width = x.shape
    drifted = nn.functional.pad(x, (1, 0)).reshape(batch, heads, width + 1, count)
    return drifted[:, :, 1:].reshape(batch, heads, count, width)[..., :count]


class Attention(nn.Module):
    """Multi-head attention with relative positions: `(B, T, DIM) -> (B, T, DIM)`.

    The projection of the sinusoids depends on the weights alone. For inference it is done once, when the module
    switches to `eval()` and again when the weight has changed since, and a graph exported then holds its result.
    """

    table: Tensor
    projected: Tensor

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.q_proj = nn.Linear(DIM, DIM)
        self.k_proj = nn.Linear(DIM, DIM)
        self.v_proj = nn.Linear(DIM, DIM)
        self.position = nn.Linear(DIM, DIM, bias=False)
        self.content_bias = position_table(HEADS, 1, DIM // HEADS)
        self.position_bias = position_table(HEADS, 1, DIM // HEADS)
        self.project = nn.Linear(DIM, DIM)
        self.register_buffer("table", relative_positions(frames).unsqueeze(0), persistent=False)
        # Saved with the weights: ExecuTorch loses buffers that are not, where a computation on them is left.
        self.register_buffer("projected", self.project_positions().detach())
        self.projected_version = self.position.weight._version

    def project_positions(self) -> Tensor:
        """The offsets' vectors r, transposed: `(1, heads, DIM / heads, 2T - 1)`."""
        return split_heads(self.position(self.table), HEADS).transpose(2, 3)

    def train(self, mode: bool = True) -> Attention:
        super().train(mode)
        if not mode:
            self.refresh()
        return self

    def refresh(self) -> None:
        """Project the positions with the present weight."""
        self.projected = self.project_positions().detach()
        self.projected_version = self.position.weight._version

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            positions = self.project_positions()
        else:
            if not torch.compiler.is_compiling() and self.projected_version != self.position.weight._version:
                self.refresh()
            positions = self.projected
        x = self.norm(x)
        q, k, v = (split_heads(linear(x), HEADS) for linear in (self.q_proj, self.k_proj, self.v_proj))
        content = (q + self.content_bias) @ k.transpose(2, 3)
        position = relative_shift((q + self.position_bias) @ positions)
        p = ((content + position) * (DIM // HEADS) ** -0.5).softmax(dim=-1)
        out: Tensor = self.project(merge_heads(p @ v))
        return out


class Convolution(nn.Module):
    """The convolution module: `(B, T, DIM) -> (B, T, DIM)`, mixing 31 neighbouring frames."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.enter = nn.Conv1d(DIM, 2 * DIM, 1)
        self.depthwise = nn.Conv1d(DIM, DIM, KERNEL, padding=KERNEL // 2, groups=DIM, bias=False)
        self.batch_norm = nn.BatchNorm1d(DIM)
        self.act = nn.SiLU()
        self.leave = nn.Conv1d(DIM, DIM, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.glu(self.enter(self.norm(x).transpose(1, 2)), dim=1)
        out: Tensor = self.leave(self.act(self.batch_norm(self.depthwise(x))))
        return out.transpose(1, 2)


def feed_forward() -> nn.Sequential:
    """LayerNorm and an MLP with SiLU (swish)."""
    return nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, MLP_RATIO * DIM), nn.SiLU(), nn.Linear(MLP_RATIO * DIM, DIM))


class Block(nn.Module):
    """Half an MLP, attention, convolution, half an MLP, each added to its input; LayerNorm."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.mlp1 = feed_forward()
        self.attention = Attention(frames)
        self.convolution = Convolution()
        self.mlp2 = feed_forward()
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.mlp1(x)
        x = x + self.attention(x)
        x = x + self.convolution(x)
        out: Tensor = self.norm(x + 0.5 * self.mlp2(x))
        return out


class Conformer(nn.Module):
    """The encoder and a linear layer to word pieces, for inputs of `frames` frames."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        if frames < MIN_FRAMES:
            raise ValueError(f"Conformer-M needs at least {MIN_FRAMES} frames, not {frames}")
        self.subsample = nn.Sequential(nn.Conv2d(1, DIM, 3, 2), nn.ReLU(), nn.Conv2d(DIM, DIM, 3, 2), nn.ReLU())
        self.enter = nn.Linear(DIM * subsampled(MELS), DIM)
        self.blocks = nn.Sequential(*(Block(subsampled(frames)) for _ in range(DEPTH)))
        self.head = nn.Linear(DIM, PIECES)

    def forward(self, features: Tensor) -> Tensor:
        x = self.subsample(features.unsqueeze(1))
        x = self.enter(x.transpose(1, 2).flatten(2)) * math.sqrt(DIM)
        out: Tensor = self.head(self.blocks(x))
        return out


def build(size: int = 1000) -> nn.Module:
    """Conformer-M: `(B, size, 80) -> (B, subsampled(size), 1000)`."""
    return Conformer(size)
