"""Swin transformer blocks (Liu et al. 2021) on token grids (B, C, h, w) of any size.

Attention stays within windows; every other block shifts them by half a window, so that neighbours meet. Where a side of the
grid is no longer than a window, the window is that side and nothing is shifted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: channels of a token. heads: of attention. window: side of a window in tokens. shifted: by half a window.
        mlp_ratio: hidden width of the MLP over ``width``.
    """

    def __init__(self, width: int, heads: int, window: int, shifted: bool, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{width} channels do not divide among {heads} heads")
        self.heads, self.window, self.shifted = heads, window, shifted
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # A bias of the keys would shift all scores of a query alike, which a softmax ignores: they go without.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_bias, self.value_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.project = nn.Linear(width, width)
        self.position = nn.Parameter(0.02 * torch.randn(heads, 2 * window - 1, 2 * window - 1))
        hidden = int(mlp_ratio * width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        y = x.movedim(1, -1)
        y = y + self._attend(self.norm1(y))
        y = y + self.mlp(self.norm2(y))
        return y.movedim(-1, 1)

    def _attend(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> same."""
        batch, h, w, width = x.shape
        side = (min(self.window, h), min(self.window, w))
        shift = tuple(s // 2 if self.shifted and s < n else 0 for s, n in zip(side, (h, w), strict=True))
        H, W = (n + -n % s for n, s in zip((h, w), side, strict=True))
        x = F.pad(x, (0, 0, 0, W - w, 0, H - h))
        x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        rows, columns = H // side[0], W // side[1]
        tokens = self._to_windows(x, side)  # (B, windows, n, C)
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        qkv = F.linear(tokens, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, width // self.heads)).permute(3, 0, 1, 4, 2, 5)
        score = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + self._position(side).to(q.dtype)
        apart = self._apart(h, w, H, W, side, shift, x.device)
        if apart is not None:
            score = score.masked_fill(apart[:, None], float("-inf"))
        mixed = (score.softmax(-1) @ v).transpose(2, 3).flatten(-2)
        y = self.project(mixed).reshape(batch, rows, columns, *side, width).transpose(2, 3).reshape(batch, H, W, width)
        return torch.roll(y, shift, (1, 2))[:, :h, :w]

    @staticmethod
    def _to_windows(x: Tensor, side: tuple[int, int]) -> Tensor:
        """(B, H, W, C) -> (B, windows, tokens of a window, C)."""
        batch, H, W, width = x.shape
        x = x.reshape(batch, H // side[0], side[0], W // side[1], side[1], width).transpose(2, 3)
        return x.reshape(batch, -1, side[0] * side[1], width)

    def _position(self, side: tuple[int, int]) -> Tensor:
        """Bias by relative position, (heads, n, n)."""
        offset = [torch.arange(s)[:, None] - torch.arange(s) + self.window - 1 for s in side]
        n = side[0] * side[1]
        rows = offset[0][:, None, :, None].expand(*side, *side).reshape(n, n)
        columns = offset[1][None, :, None, :].expand(*side, *side).reshape(n, n)
        return self.position[:, rows, columns]

    def _apart(
        self, h: int, w: int, H: int, W: int, side: tuple[int, int], shift: tuple[int, ...], device: torch.device
    ) -> Tensor | None:
        """(windows, n, n) bool: pairs of a window that are no neighbours in the picture, or padding; None if there are none."""
        if (h, w) == (H, W) and not any(shift):
            return None
        # What a roll brought in from the other side, and what padding added, are groups of their own.
        row, column = torch.arange(H, device=device)[:, None], torch.arange(W, device=device)
        group = (row < shift[0]).int() + 2 * (column < shift[1]).int() + 4 * ((row >= h) | (column >= w)).int()
        group = torch.roll(group, (-shift[0], -shift[1]), (0, 1))
        members = self._to_windows(group[None, :, :, None], side)[0, :, :, 0]
        return members[:, :, None] != members[:, None, :]


class SwinStack(nn.Sequential):
    """Blocks with windows shifted in every other one: (B, C, h, w) -> same."""

    def __init__(self, width: int, depth: int, heads: int, window: int) -> None:
        super().__init__(*(SwinBlock(width, heads, window, shifted=index % 2 == 1) for index in range(depth)))


class Merge(nn.Module):
    """2x2 neighbours become one token: (B, C, 2h, 2w) -> (B, out, h, w)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(4 * width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.pixel_unshuffle(x, 2))


class Split(nn.Module):
    """The way back of :class:`Merge`: (B, C, h, w) -> (B, out, 2h, 2w)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(width, 4 * out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.linear(x), 2)
