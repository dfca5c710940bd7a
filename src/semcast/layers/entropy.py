"""Likelihoods of latents, and what rounding makes of them (Ballé, Minnen, Singh, Hwang, Johnston 2018; Minnen et al. 2018).

A latent is rounded to integers in use. In training uniform noise stands in for rounding, and the density is convolved with
U(-1/2, 1/2), so that it equals the probability of an integer at the integers.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def quantise(y: Tensor, training: bool, generator: torch.Generator) -> Tensor:
    """y + U(-1/2, 1/2) in training, else y rounded."""
    if not training:
        return y.round()
    return y + (torch.rand(y.shape, generator=generator) - 0.5).to(y.device)


def laplace_bits(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """-log2 of (Laplace(mean, scale) * U(-1/2, 1/2))(y), elementwise; ``scale`` is b in exp(-|y - mean| / b) / 2b."""
    distance, scale = (y.float() - mean.float()).abs(), scale.float()
    near = distance.clamp_max(0.5)
    inside = torch.log1p(-torch.exp(-0.5 / scale) * torch.cosh(near / scale).clamp_max(1e30))
    a = 0.5 / scale
    outside = -distance.clamp_min(0.5) / scale + a + torch.log1p(-torch.exp(-2 * a)) - math.log(2)
    return -torch.where(distance < 0.5, inside, outside) / math.log(2)


def gaussian_bits(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """-log2 of (Normal(mean, scale^2) * U(-1/2, 1/2))(y), elementwise; never more than 30 bits."""
    distance, scale = (y.float() - mean.float()).abs(), scale.float() * math.sqrt(2)
    # The lower tail, where differences of small numbers keep their digits.
    upper, lower = (torch.erfc((distance + half) / scale) / 2 for half in (-0.5, 0.5))
    return -floor_with_slope(upper - lower, 2.0**-30).log2()


def floor_with_slope(x: Tensor, low: float) -> Tensor:
    """max(x, low) whose gradient is that of x."""
    return x + (low - x).clamp_min(0).detach()


class FactorisedDensity(nn.Module):
    """Non-parametric density of every channel: the sigmoid of a monotone network (Ballé et al. 2018, appendix 6.1).

    Args:
        channels: each has its own density. widths: of the hidden layers. spread: of the density at the start.
    """

    def __init__(self, channels: int, widths: tuple[int, ...] = (3, 3, 3), spread: float = 10.0) -> None:
        super().__init__()
        sizes = (1, *widths, 1)
        step = spread ** (1 / (len(widths) + 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(sizes):
            start = math.log(math.expm1(1 / step / after))
            self.matrices.append(nn.Parameter(torch.full((channels, after, before), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, after, 1) - 0.5))
        for width in widths:
            self.factors.append(nn.Parameter(torch.zeros(channels, width, 1)))

    def _cumulative(self, x: Tensor) -> Tensor:
        """Logit of the cumulative distribution: (C, 1, n) -> (C, 1, n)."""
        for index, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            x = F.softplus(matrix.to(x.dtype)) @ x + bias.to(x.dtype)
            if index < len(self.factors):
                x = x + torch.tanh(self.factors[index].to(x.dtype)) * torch.tanh(x)
        return x

    def probability(self, z: Tensor) -> Tensor:
        """(density * U(-1/2, 1/2)) at z, (B, C, h, w) -> same: eq. (9) of DVST."""
        with torch.autocast(z.device.type, enabled=False):
            wide = z if z.dtype == torch.float64 else z.float()
            rows = wide.movedim(1, 0).flatten(1)[:, None]
            lower, upper = self._cumulative(rows - 0.5), self._cumulative(rows + 0.5)
            # Both on the side of the sigmoid where small numbers keep their digits.
            sign = -torch.sign(lower + upper).detach()
            p = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
            return p.reshape(wide.movedim(1, 0).shape).movedim(0, 1)

    def bits(self, z: Tensor) -> Tensor:
        """-log2 of :meth:`probability`; never more than 30 bits."""
        return -floor_with_slope(self.probability(z), 2.0**-30).log2()


class MaskedConv2d(nn.Conv2d):
    """Convolution that sees only what comes before a place in raster order (PixelCNN, type A)."""

    def __init__(self, inputs: int, outputs: int, size: int = 5) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 :] = 0
        mask[size // 2 + 1 :] = 0
        self.register_buffer("mask", mask, persistent=False)

    mask: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h, w)."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)
