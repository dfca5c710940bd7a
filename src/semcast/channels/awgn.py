"""Channels without fading: ideal, and additive white Gaussian noise."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from semcast.channels.base import Channel, Fading


class Awgn(Channel):
    """``y = x + n``: the gain is 1 and only noise is added."""

    name: ClassVar[str] = "awgn"
    summary: ClassVar[str] = "additive white Gaussian noise, gain 1"
    example: ClassVar[str] = "awgn:clip_papr_db=6"

    def sample(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """Return gains of 1."""
        return Fading(torch.ones(batch, n, dtype=torch.complex64))

    def typical(self, n: int, draws: int, *, generator: torch.Generator) -> Tensor:
        """Return gains of 1."""
        return torch.ones(draws, n, dtype=torch.complex64)


class Ideal(Awgn):
    """``y = x``: no noise whatever ``noise_var`` says."""

    name: ClassVar[str] = "ideal"
    summary: ClassVar[str] = "no noise at all, whatever the SNR"
    example: ClassVar[str] = "ideal"
    is_ideal: ClassVar[bool] = True
