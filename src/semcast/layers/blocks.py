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
