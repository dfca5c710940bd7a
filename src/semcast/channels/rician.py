"""Rician fading: a constant path beside diffuse ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from semcast.channels.fading import Scatter, ScatterOptions
from semcast.channels.options import ChannelOptions, option


@dataclass(frozen=True)
class RicianOptions(ScatterOptions):
    """Options of :class:`Rician`."""

    k_db: float = option(6.0, "power of the constant path over the diffuse ones", unit="dB", at_least=-60.0, at_most=60.0)


class Rician(Scatter):
    """``h = sqrt(K / (K + 1)) + sqrt(1 / (K + 1)) g``, g ~ CN(0, 1); the constant path has phase 0."""

    Options: ClassVar[type[ChannelOptions]] = RicianOptions
    options: RicianOptions
    name: ClassVar[str] = "rician"
    summary: ClassVar[str] = "Rician fading: a constant path and diffuse ones, fast or in blocks"
    example: ClassVar[str] = "rician:k_db=6,block,coherence=512"

    @property
    def los_power(self) -> float:
        """K / (K + 1)."""
        k = 10 ** (self.options.k_db / 10)
        return k / (k + 1)
