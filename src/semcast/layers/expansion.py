"""Scalar maps of one source value onto several channel uses: bandwidth expansion without a digital code.

A linear code that spends m uses on a value gains only 10 log10(1 + m SNR) dB, while the bound is m 10 log10(1 + SNR). A curve
that winds through the m-dimensional signal space comes much closer and still degrades gracefully: C. E. Shannon,
"Communication in the presence of noise", Proc. IRE 37(1), 1949; A. Fuldseth and T. A. Ramstad, "Bandwidth compression for
continuous amplitude channels based on vector approximation to a continuous subset of the source signal space", ICASSP 1997;
F. Hekland, P. A. Floor, T. A. Ramstad, "Shannon-Kotel'nikov mappings in joint source-channel coding", IEEE Trans. Commun.
57(1), 2009.

The curves are polygons, optimised numerically for a heavy-tailed unit-variance source (Student's t, the shape of transform
coefficients), one for every number of uses and SNR (``benchmarks/fit_expansion.py``). The receiver takes the posterior mean.
Uses here are real; two of them make a channel use.
"""

from __future__ import annotations

import math
from functools import lru_cache
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

MAX_USES = 6
LOW_DB, HIGH_DB = -4, 32
NODES = 129
REACH = 7.0
_SPREAD = 2.0


LEAST_NOISE = 1e-5
"""Noise power that an estimate reckons with at least: a curve is no finer than that."""


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def nodes() -> Tensor:
    """(NODES,) source values at the corners of every curve, denser in the middle."""
    u = torch.linspace(-1, 1, NODES, dtype=torch.float64)
    return (REACH * torch.sinh(_SPREAD * u) / math.sinh(_SPREAD)).float()


@lru_cache(maxsize=1)
@torch.inference_mode(False)
def prior() -> Tensor:
    """(NODES - 1,) probability of every segment under Student's t with 7 degrees of freedom, scaled to unit variance."""
    freedom = 7
    x = nodes().double() * math.sqrt(freedom / (freedom - 2))
    density = (1 + x.square() / freedom) ** (-(freedom + 1) / 2)
    mass = (density[1:] + density[:-1]) / 2 * x.diff()
    return (mass / mass.sum()).float()


def follow(curve: Tensor, x: Tensor) -> Tensor:
    """Points of curves (N, NODES, m) at source values (N,), linear between corners -> (N, m); beyond the ends it stays."""
    clamped = x.clamp(-REACH * 0.9999, REACH * 0.9999)
    u = torch.asinh(clamped.detach() * math.sinh(_SPREAD) / REACH) / _SPREAD
    index = ((u + 1) / 2 * (NODES - 1)).floor().long().clamp(0, NODES - 2)
    grid = nodes().to(x)
    t = (clamped - grid[index]) / (grid[index + 1] - grid[index])
    rows = torch.arange(len(x), device=x.device)
    start, end = curve[rows, index], curve[rows, index + 1]
    return start + t[:, None] * (end - start)


def estimate(curve: Tensor, y: Tensor, noise_var: Tensor, slope: bool = False) -> tuple[Tensor, Tensor | None]:
    """Posterior mean (N,) of the source, and where ``slope`` its derivative by what was received (N, m), else None.

    Args:
        curve: (NODES, m). y: (N, m) received. noise_var: (N, m) noise power of every real use.

    Every segment is taken as a straight line with a uniform prior: a truncated Gaussian along it, its moments approximated by
    those of the projection clamped to the segment. Uses that faded weigh less.
    """
    sure = noise_var.clamp_min(LEAST_NOISE).reciprocal()
    start, step = curve[:-1], curve.diff(dim=0)
    length2 = (sure @ step.square().T).clamp_min(1e-8)
    both = torch.cat([sure * y, sure], 1)
    along = (both @ torch.cat([step, -start * step], 1).T) / length2
    t = along.clamp(0, 1)
    # Squared distance to the start, then to the nearest point, both in units of the noise, less that of y to nothing.
    distance2 = both @ torch.cat([-2 * start, start.square()], 1).T
    distance2 = distance2 + (t - 2 * along) * t * length2
    grid, mass = nodes().to(y), prior().to(y)
    # Short segments hold all of their prior; of long ones the noise picks out a part: N(along) integrates to that.
    part = (length2 / (2 * math.pi)).clamp_min(1.0).log()
    weight = torch.softmax(mass.log() - (part + distance2) / 2, -1)
    points = torch.addcmul(grid[:-1], t, grid.diff())
    mean = (weight * points).sum(-1)
    if not slope:
        return mean, None
    # A posterior mean under Gaussian noise moves by cov(source, signal) / noise.
    covered = weight * (points - mean[:, None])
    within = weight * length2.reciprocal().clamp_max(1 / 12) * grid.diff()
    return mean, (covered @ start + (covered * t + within) @ step) * sure


class _Posterior(torch.autograd.Function):
    """:func:`estimate` with the closed-form derivative in place of a stored graph."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, curve: Tensor, noise_var: Tensor) -> Tensor:
        mean, slope = estimate(curve, y, noise_var, slope=ctx.needs_input_grad[0])
        if slope is not None:
            ctx.save_for_backward(slope)
        return mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None] * slope, None, None


class Expansion(nn.Module):
    """The table of curves.

    Attributes:
        curves: (SNRs, MAX_USES - 1, NODES, MAX_USES) for 2..MAX_USES uses, mean power 1 per use, unused dimensions 0.
        gain_db: (SNRs, MAX_USES) signal-to-distortion ratio that they reach, for 1..MAX_USES uses.
    """

    curves: Tensor
    gain_db: Tensor

    def __init__(self) -> None:
        super().__init__()
        table = load((resources.files("semcast.layers") / "expansion.safetensors").read_bytes())
        self.register_buffer("curves", table["curves"].float(), persistent=False)
        self.register_buffer("gain_db", table["gain_db"].float(), persistent=False)

    def encode(self, x: Tensor, uses: int, snr_index: Tensor) -> Tensor:
        """Values (N,) of unit variance -> (N, uses) real symbols of unit power, on the curves for these SNRs (N,)."""
        if uses == 1:
            return x[:, None]
        return follow(self.curves[snr_index, uses - 2, :, :uses], x)

    def decode(self, y: Tensor, noise_var: Tensor, snr_index: Tensor) -> Tensor:
        """(N, uses) received, noise power of every use (N, uses), curves as in :meth:`encode` -> posterior mean (N,)."""
        uses = y.shape[1]
        if uses == 1:
            return y[:, 0] / (1 + noise_var[:, 0])
        mean = torch.zeros_like(y[:, 0])
        for index in snr_index.unique().tolist():
            of = (snr_index == index).nonzero().flatten()
            curve = self.curves[index, uses - 2, :, :uses]
            mean = mean.index_put((of,), _Posterior.apply(y[of], curve, noise_var[of].detach()))
        return mean
