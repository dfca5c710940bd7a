"""The hyperprior's networks (Ballé et al. 2018, with the leaky rectifiers of Minnen et al. 2018), for latents of any size."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.blocks import pad_to


class HyperAnalysis(nn.Sequential):
    """h_a: latents (B, C, h, w) -> (B, N, ceil(h / 4), ceil(w / 4))."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(),
            nn.Conv2d(width, width, 5, 2, 2), nn.LeakyReLU(),
            nn.Conv2d(width, width, 5, 2, 2),
        )  # fmt: skip

    def forward(self, y: Tensor) -> Tensor:
        return super().forward(pad_to(y, 4))


class HyperSynthesis(nn.Sequential):
    """h_s: (B, N, h / 4, w / 4) -> (B, out, h, w)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(width, width, 5, 2, 2, 1), nn.LeakyReLU(),
            nn.ConvTranspose2d(width, width * 3 // 2, 5, 2, 2, 1), nn.LeakyReLU(),
            nn.Conv2d(width * 3 // 2, out, 3, padding=1),
        )  # fmt: skip

    def expand(self, z: Tensor, h: int, w: int) -> Tensor:
        """As ``forward``, cut to (h, w)."""
        return self.forward(z)[..., :h, :w]


def positive(raw: Tensor, low: float = 0.05) -> Tensor:
    """A scale from any number: softplus, and never below ``low``."""
    return F.softplus(raw.float()) + low
