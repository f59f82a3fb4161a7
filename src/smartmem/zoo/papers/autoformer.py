"""AutoFormer-S: the small network that the search of "AutoFormer: Searching Transformers for Visual Recognition" found.

Chen, Peng, Fu, Ling; ICCV 2021, arXiv 2107.00651. A vision transformer whose 13 blocks have each their own number of
heads (5 to 7, 64 wide) and MLP ratio (3 to 4) at a constant width of 384. Special: 2-D relative positions, after Shaw
et al. (arXiv 1803.02155), enter both the scores and the output of every attention:

    score[i, j] = q[i] . (k[j] + rk[i, j]) / sqrt(64)        out[i] = sum over j of p[i, j] (v[j] + rv[i, j])

where r[i, j] is a vector for the row offset plus one for the column offset of tokens i and j, offsets clipped to 14.
The class token has a vector of its own. So two of each attention's four products have one matrix *per query*.

Image (B, 3, 224, 224) -> patches of 16 -> (B, 1 + 196, 384) -> mean of the patch tokens -> (B, 1000).
22.89 M parameters, 5.16 GMACs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smartmem.zoo.papers.common import (
    CLASSES,
    Mlp,
    check_size,
    merge_heads,
    position_table,
    split_qkv,
)

DIM = 384
HEAD_DIM = 64
PATCH = 16
REACH = 14  # offsets beyond are clipped
HEADS = (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7)
MLP_RATIOS = (3.0, 3.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 3.5, 4.0)


def offset_indices(side: int) -> tuple[Tensor, Tensor]:
    """For tokens i and j the rows of their row offset and column offset in the tables of `RelativePosition`.

    Returns two int64 tensors `(1 + side ** 2, 1 + side ** 2)`. Row 0 is the class token's, against everything; an
    offset d is at `clip(d) + REACH + 1`, so 1 .. 2 * REACH + 1.
    """
    where = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    offset = where[None, :, :] - where[:, None, :]
    row = offset.clamp(-REACH, REACH) + REACH + 1
    padded = nn.functional.pad(row, (0, 0, 1, 0, 1, 0))
    return padded[..., 0], padded[..., 1]


class RelativePosition(nn.Module):
    """The vectors r[i, j]: `(N, N, HEAD_DIM)`, gathered from a table for rows and one for columns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = position_table(2 * REACH + 2, HEAD_DIM)
        self.columns = position_table(2 * REACH + 2, HEAD_DIM)

    def forward(self, row_index: Tensor, column_index: Tensor) -> Tensor:
        rows = nn.functional.embedding(row_index, self.rows)
        return rows + nn.functional.embedding(column_index, self.columns)


class Attention(nn.Module):
    """Multi-head attention with relative positions in keys and values."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(DIM, 3 * heads * HEAD_DIM)
        self.key_position = RelativePosition()
        self.value_position = RelativePosition()
        self.project = nn.Linear(heads * HEAD_DIM, DIM)

    def forward(self, x: Tensor, row_index: Tensor, column_index: Tensor) -> Tensor:
        q, k, v = split_qkv(self.qkv(x), self.heads)
        q = q * HEAD_DIM**-0.5
        rk = self.key_position(row_index, column_index)
        rv = self.value_position(row_index, column_index)
        p = (q @ k.transpose(-2, -1) + self.per_query(q, rk.transpose(1, 2))).softmax(dim=-1)
        out: Tensor = self.project(merge_heads(p @ v + self.per_query(p, rv)))
        return out

    def per_query(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Multiply the vectors of query i with the i-th matrix: `(B, h, N, A), (N, A, C) -> (B, h, N, C)`."""
        _, heads, count, width = x.shape
        by_query = x.permute(2, 0, 1, 3).reshape(count, -1, width) @ matrices
        return by_query.reshape(count, -1, heads, matrices.shape[-1]).permute(1, 2, 0, 3)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM)
        self.attention = Attention(heads)
        self.norm2 = nn.LayerNorm(DIM)
        self.mlp = Mlp(DIM, int(DIM * mlp_ratio))

    def forward(self, x: Tensor, row_index: Tensor, column_index: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), row_index, column_index)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class AutoFormer(nn.Module):
    """The whole network; `size` is a multiple of 16."""

    row_index: Tensor
    column_index: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        check_size("AutoFormer-S", size, PATCH)
        side = size // PATCH
        self.patches = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.class_token = position_table(1, 1, DIM)
        self.position = position_table(1, side * side + 1, DIM)
        row_index, column_index = offset_indices(side)
        self.register_buffer("row_index", row_index, persistent=False)
        self.register_buffer("column_index", column_index, persistent=False)
        self.blocks = nn.ModuleList(Block(h, r) for h, r in zip(HEADS, MLP_RATIOS, strict=True))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(image.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x, self.row_index, self.column_index)
        out: Tensor = self.head(self.norm(x)[:, 1:].mean(dim=1))
        return out


def build(size: int = 224) -> nn.Module:
    """AutoFormer-S: `(B, 3, size, size) -> (B, 1000)`."""
    return AutoFormer(size)
