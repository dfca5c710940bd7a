"""Orthogonal spreading: every symbol of an analog stream travels on many channel uses, so that a fade hurts all a little.

    symbols ─▶ interleaver ─▶ Walsh-Hadamard, up to 4096 at a time ─▶ channel ─▶ LMMSE ─▶ inverse of both ─▶ symbols, one noise

The code-division precoder of multicarrier CDMA (Yee, Linnartz, Fettweis 1993) without spectral expansion. Over AWGN it changes
nothing; where gains vary it turns the channel into one of nearly constant SNR, which is what codes of one told SNR need.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from semcast.types import RxAnalog

CHUNK = 4096
_GOLDEN = 0.6180339887


def spread(x: Tensor) -> Tensor:
    """(B, n) complex -> (B, n) of the same energy."""
    order, sizes = _layout(x.shape[1])
    return torch.cat([_hadamard(part) for part in x[:, order].split(sizes, 1)], 1) if x.shape[1] else x


def despread(rx: RxAnalog) -> tuple[Tensor, Tensor]:
    """What :func:`spread` was given, as estimated at unit transmit power, and its noise power, both (B, n)."""
    n = rx.y.shape[1]
    if n == 0:
        return rx.y, torch.zeros_like(rx.y.real)
    order, sizes = _layout(n)
    gain, noise_var = rx.h.abs().square(), rx.noise_var.expand_as(rx.y.real)
    power = gain + noise_var
    estimate, kept = rx.h.conj() * rx.y / power, gain / power
    symbols, noise = [], []
    for part, share in zip(estimate.split(sizes, 1), kept.split(sizes, 1), strict=True):
        # LMMSE keeps this share of every symbol on average; the rest is noise and the other symbols.
        beta = share.mean(1, keepdim=True).clamp(1e-4, 1 - 1e-7)
        symbols.append(_hadamard(part) / beta)
        noise.append(((1 - beta) / beta).expand_as(share))
    back = torch.empty_like(order)
    back[order] = torch.arange(n)
    return torch.cat(symbols, 1)[:, back], torch.cat(noise, 1)[:, back]


@lru_cache(maxsize=64)
def _layout(n: int) -> tuple[Tensor, list[int]]:
    """Interleaver of n symbols, neighbours far apart, and sizes of the chunks, powers of two."""
    stride = max(1, round(n * _GOLDEN))
    while torch.gcd(torch.tensor(stride), torch.tensor(n)) != 1:
        stride += 1
    sizes = [CHUNK] * (n // CHUNK) + [1 << bit for bit in reversed(range(CHUNK.bit_length())) if (n % CHUNK) >> bit & 1]
    return torch.arange(n) * stride % n, sizes


def _hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform of (B, 2^k): its own inverse."""
    n = x.shape[1]
    span = 1
    while span < n:
        pairs = x.reshape(x.shape[0], -1, 2, span)
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(x.shape)
        span *= 2
    return x * n**-0.5
