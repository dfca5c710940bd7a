"""The codebook: eqs. (1) and (2), the straight-through gradient, and codewords that come back to life."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1024  # places that are compared with all codewords at once
MEMORY = 0.99  # of how often a codeword is used
DEAD = 0.02  # of its fair share: a codeword that is used less begins anew
RANGE = 8.0  # of a codebook of even steps


class Quantised(NamedTuple):
    """Indices z (B, h, w) int64; codewords e (B, D, h, w); and z_q, equal to e, whose gradient is that of z_e."""

    indices: Tensor
    e: Tensor
    z_q: Tensor


class Codebook(nn.Module):
    """K codewords of length D.

    Args:
        codewords: K. depth: D. learned: else the codewords are even steps of one number from -8 to 8.
    """

    vectors: Tensor
    usage: Tensor

    def __init__(self, codewords: int, depth: int, *, learned: bool = True) -> None:
        super().__init__()
        if learned:
            self.vectors = nn.Parameter(torch.randn(codewords, depth))
        else:
            self.register_buffer("vectors", torch.linspace(-RANGE, RANGE, codewords)[:, None])
        self.learned = learned
        self.register_buffer("usage", torch.full((codewords,), 1.0))

    def nearest(self, z_e: Tensor) -> Tensor:
        """argmin_l ||z_e - e_l||_2 of (B, D, h, w): (B, h, w) int64. Eq. (1)."""
        with torch.no_grad(), torch.autocast(z_e.device.type, enabled=False):
            flat = z_e.detach().float().movedim(1, -1).reshape(-1, z_e.shape[1])
            e = self.vectors.detach().float()
            half = e.square().sum(1) / 2
            found = [torch.addmm(half, part, e.T, alpha=-1).argmin(1) for part in flat.split(CHUNK)]
            return torch.cat(found).reshape(z_e.shape[0], *z_e.shape[2:])

    def lookup(self, indices: Tensor) -> Tensor:
        """(B, h, w) -> codewords (B, D, h, w). Eq. (2)."""
        return F.embedding(indices, self.vectors).movedim(-1, 1)

    def forward(self, z_e: Tensor) -> Quantised:
        """Quantise (B, D, h, w); the gradient of z_q passes straight through to z_e."""
        indices = self.nearest(z_e)
        e = self.lookup(indices)
        return Quantised(indices, e, z_e + (e - z_e).detach())

    @torch.no_grad()
    def revive(self, z_e: Tensor, indices: Tensor, generator: torch.Generator) -> int:
        """Count what a batch uses, and let codewords that are used no more begin anew as vectors of it; returns how many."""
        size = self.usage.shape[0]
        share = torch.bincount(indices.flatten(), minlength=size).to(self.usage) * (size / indices.numel())
        self.usage.lerp_(share, 1 - MEMORY)
        dead = (self.usage < DEAD).nonzero()[:, 0]
        if not self.learned or not len(dead):
            return 0
        flat = z_e.detach().float().movedim(1, -1).flatten(0, -2)
        drawn = torch.randint(len(flat), (len(dead),), generator=generator).to(flat.device)
        self.vectors[dead] = flat[drawn]
        self.usage[dead] = 1.0
        return len(dead)


def k_means(points: Tensor, count: int, generator: torch.Generator, rounds: int = 12) -> Tensor:
    """``count`` centres of ``points`` (N, D), by Lloyd's rounds from points drawn at random; an empty cell begins anew."""
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    if len(centres) < count:
        spare = torch.randint(len(points), (count - len(centres),), generator=generator)
        centres = torch.cat([centres, points[spare] + 1e-3 * torch.randn(len(spare), points.shape[1], generator=generator)])
    for _ in range(rounds):
        half = centres.square().sum(1) / 2
        near = torch.cat([torch.addmm(half, part, centres.T, alpha=-1).argmin(1) for part in points.split(CHUNK)])
        number = torch.bincount(near, minlength=count).to(points)
        total = torch.zeros_like(centres).index_add_(0, near, points)
        centres = torch.where(number[:, None] > 0, total / number.clamp_min(1)[:, None], centres)
        empty = (number == 0).nonzero()[:, 0]
        centres[empty] = points[torch.randint(len(points), (len(empty),), generator=generator)]
    return centres
