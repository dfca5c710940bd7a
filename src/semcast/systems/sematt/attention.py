"""SemAtt: attention and normalisation by semantic regions, linear in pixels.

    F ─┬─▶ D = F - region means ─▶ Psi of every region ─▶ (+) ─▶ Phi ─▶ normalise every region ─▶ x w_m + b_m ─▶ Z
       └───────────────────────────────────────────────────┘

The adjacency A of eq. (1), L x L, says which pairs of pixels share a region. It is never built: as A_r, L x M with L ones, it
is the class map itself, and every sum over a region is one pass over the pixels, which lie sorted by region.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPS = 1e-5


class SemAtt(nn.Module):
    """Semantic attention on the latent grid, eqs. (2) to (5).

    A region is a class in a picture. A class that is absent is no region; one of a single pixel has no deviation: its attention
    is uniform, and b_m is what its normalisation leaves.

    Args:
        channels: C. classes: M, the unknown one included. w and b have a column for each, whatever a picture holds.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(channels, classes))
        self.b = nn.Parameter(torch.zeros(channels, classes))

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """features (B, C, h, w), classes (B, h, w) int64 in [0, M) -> (B, C, h, w)."""
        with torch.autocast(features.device.type, enabled=False):  # sums over regions want all digits
            return self._forward(features.float(), classes)

    def _forward(self, features: Tensor, classes: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        M = self.w.shape[1]
        region = (classes + M * torch.arange(batch, device=classes.device)[:, None, None]).flatten()  # A_r
        size = torch.bincount(region, minlength=batch * M)
        order = region.argsort(stable=True)
        region = region[order]

        def mean(x: Tensor) -> Tensor:
            """Of every region, at each of its pixels: (L, C) -> (L, C)."""
            total = x.new_zeros(batch * M, channels).index_add(0, region, x)
            return (total / size.clamp_min(1)[:, None])[region]

        f = features.movedim(1, -1).reshape(-1, channels)[order]  # the rows of F^T, region by region
        d = f - mean(f)  # eq. (2)
        present = size[size > 0].tolist()
        phi = []
        for f_m, d_m in zip(f.split(present), d.split(present), strict=True):
            psi = torch.softmax(d_m.T @ d_m / len(d_m), 1)  # eq. (3)
            phi.append(f_m + f_m @ psi.T)  # eq. (4)
        centred = torch.cat(phi)
        centred = centred - mean(centred)
        m = region % M
        z = centred * (mean(centred.square()) + EPS).rsqrt() * self.w.T[m] + self.b.T[m]  # eq. (5)
        return z[order.argsort()].reshape(batch, height, width, channels).movedim(-1, 1)
