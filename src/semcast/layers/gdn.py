"""Normalisations of learned codes: GDN and its inverse (Ballé, Laparra, Simoncelli 2016), ChannelNorm (Mentzer et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GDN(nn.Module):
    """Generalised divisive normalisation: y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2) at every place.

    Args:
        channels: of the feature map. inverse: multiply instead of divide (IGDN).
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        # Squares keep both positive; off the diagonal gamma starts just above nought, where a square still has a slope.
        self.beta_root = nn.Parameter(torch.ones(channels))
        self.gamma_root = nn.Parameter((0.1 * torch.eye(channels) + 1e-4).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        beta, gamma = self.beta_root.square() + 1e-6, self.gamma_root.square()
        norm = torch.nn.functional.conv2d(x.square(), gamma[:, :, None, None], beta)
        return x * norm.sqrt() if self.inverse else x * norm.rsqrt()


class ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of every place, then a learned scale and offset per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.scale[:, None, None] + self.offset[:, None, None]
