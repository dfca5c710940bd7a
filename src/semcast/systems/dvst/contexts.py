"""Context learning (section II-D, fig. 5): what the last frame knows about this one, as features and as codewords.

x_{t-1} ─▶ phi_fe ─▶ warp ─▶ phi_ref ─▶ c_t          y_{t-1} ─▶ gamma_pc ─▶ warp ─▶ gamma_ref ─▶ d_t
                      ▲ m_t                                                  ▲ m_t, pooled by 16
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.warp import pool_flow, warp
from semcast.systems.dvst.config import STRIDE


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip: (B, C, h, w) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(F.leaky_relu(x))))


class FeatureContext(nn.Module):
    """phi_a or phi_s: (B, 3, H, W) and flow (B, 2, H, W) -> c (B, C, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.extract = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), ResidualBlock(width))
        self.refine = nn.Sequential(ResidualBlock(width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, flow: Tensor) -> Tensor:
        return self.refine(warp(self.extract(x), flow))  # eq. (16)


class CodewordContext(nn.Module):
    """gamma_e or gamma_d: y (B, M, h, w) and flow (B, 2, 16 h, 16 w) -> d (B, M, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.precode = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), ResidualBlock(width))
        self.refine = nn.Sequential(ResidualBlock(width), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, y: Tensor, flow: Tensor) -> Tensor:
        return self.refine(warp(self.precode(y), pool_flow(flow, STRIDE)))  # eq. (17)
