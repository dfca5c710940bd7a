"""Small pieces that several systems share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentionFeature(nn.Module):
    """AF module of ADJSCC (Xu et al. 2021, fig. 3): scales channels by a factor learned from their means and the channel state.

    Args:
        channels: of the feature map. conditions: numbers that describe the channel state, e.g. SNR and rate.
    """

    def __init__(self, channels: int, conditions: int = 1) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels + conditions, max(16, channels // 8))
        self.excite = nn.Linear(max(16, channels // 8), channels)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        """x (B, C, h, w), conditions (B, conditions) -> (B, C, h, w)."""
        pooled = torch.cat([x.mean((2, 3)), conditions.to(x.dtype)], 1)
        factor = 2 * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))
        return x * factor[:, :, None, None].to(x.dtype)


def pad_to(frames: Tensor, multiple: int) -> Tensor:
    """Replicate the right and lower edge until both sides are multiples: (N, C, H, W) -> (N, C, H', W')."""
    height, width = frames.shape[-2:]
    right, lower = -width % multiple, -height % multiple
    return F.pad(frames, (0, right, 0, lower), mode="replicate") if right or lower else frames


def dither(h: int, w: int, count: int) -> Tensor:
    """An evenly spread subset of exactly ``count`` of h x w positions, the same on every machine: (h, w) bool.

    Positions are ranked by a low-discrepancy lattice in integer arithmetic.
    """
    row, column = torch.arange(h)[:, None], torch.arange(w)[None]
    # Integer forms of the two ratios of the plastic number, 1/g and 1/g^2: Roberts' R2 sequence as an ordered dither.
    rank = (row * 3242174889 + column * 2447445414) % (1 << 32)
    order = rank.flatten().argsort(stable=True)
    mask = torch.zeros(h * w, dtype=torch.bool)
    mask[order[:count]] = True
    return mask.reshape(h, w)
