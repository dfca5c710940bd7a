"""The entropy model (section II-C): how many bits a token holds, given its hyperprior, its neighbours and the context.

    y ─▶ h_hpe ─▶ z ─▶ h_hpd ──┐
    y ─▶ h_ar (masked 5x5) ────┼─▶ h_pf ─▶ mean, scale of a Laplace density
    c ─▶ h_tpe ────────────────┘

Only the transmitter asks, and it knows all of y: nothing is ever decoded place by place, and neither z nor y crosses the air.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.entropy import FactorisedDensity, MaskedConv2d, laplace_bits, quantise
from semcast.layers.gdn import GDN
from semcast.layers.hyperprior import HyperAnalysis, HyperSynthesis, positive


class Estimate(NamedTuple):
    """r_{t,i} of every token (B, h / 2, w / 2), bits of the hyperprior (B,), and y with noise or rounded (B, C, h, w)."""

    bits: Tensor
    hyper_bits: Tensor
    y: Tensor


class TemporalPrior(nn.Sequential):
    """h_tpe: c (B, C, H, W) -> (B, out, H / 16, W / 16)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, out, 5, 2, 2),
        )  # fmt: skip


class EntropyModel(nn.Module):
    """P(y_i | c, z, y_<i).

    Args:
        width: channels of y. hyper_width: of z. context_width: of c; 0 does without a temporal prior.
    """

    def __init__(self, width: int, hyper_width: int, context_width: int) -> None:
        super().__init__()
        self.h_hpe, self.h_hpd = HyperAnalysis(width, hyper_width), HyperSynthesis(hyper_width, 2 * width)
        self.h_ar = MaskedConv2d(width, 2 * width)
        self.h_tpe = TemporalPrior(context_width, 2 * width) if context_width else None
        inputs = 6 * width if context_width else 4 * width
        self.h_pf = nn.Sequential(
            nn.Conv2d(inputs, 3 * width, 1), nn.LeakyReLU(),
            nn.Conv2d(3 * width, 2 * width, 1), nn.LeakyReLU(),
            nn.Conv2d(2 * width, 2 * width, 1),
        )  # fmt: skip
        self.density = FactorisedDensity(hyper_width)

    def forward(self, y: Tensor, context: Tensor | None, generator: torch.Generator) -> Estimate:
        """y (B, C, h, w) and c (B, C', 16 h, 16 w), or None without a temporal prior."""
        z = quantise(self.h_hpe(y).float(), self.training, generator)
        y = quantise(y, self.training, generator)
        priors = [self.h_hpd.expand(z, *y.shape[-2:]), self.h_ar(y)]
        if self.h_tpe is not None:
            assert context is not None
            priors.append(self.h_tpe(context))
        mean, raw = self.h_pf(torch.cat(priors, 1)).float().chunk(2, 1)  # eq. (8)
        bits = laplace_bits(y, mean, positive(raw)).sum(1, keepdim=True)  # eq. (7), over the channels of a place
        tokens = 4 * F.avg_pool2d(bits, 2)[:, 0]
        return Estimate(tokens, self.density.bits(z).flatten(1).sum(1), y)  # eq. (9)
