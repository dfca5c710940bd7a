"""Distance-dependent path loss with Rayleigh fading (OF-GSC, eqs. 3 and 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semcast.channels.fading import Scatter, ScatterOptions
from semcast.channels.options import ChannelOptions, option

SPEED_OF_LIGHT = 299_792_458.0  # m/s


def path_gain(distance_m: float, carrier_hz: float, alpha: float = 1.0) -> float:
    """Return the *amplitude* gain ``(c / (4 pi d f_c))^alpha`` of OF-GSC, eq. (3), without its fading.

    The exponent acts on the amplitude: alpha = 1 is free space, where power falls with the square of the distance.
    """
    return (SPEED_OF_LIGHT / (4 * math.pi * distance_m * carrier_hz)) ** alpha


@dataclass(frozen=True)
class PathLossOptions(ScatterOptions):
    """Options of :class:`PathLoss`."""

    distance_m: float = option(100.0, "from transmitter to receiver", unit="m", above=0.0, at_most=1e9)
    alpha: float = option(1.0, "path loss exponent of the AMPLITUDE: 1 is free space", at_least=0.0, at_most=10.0)
    carrier_ghz: float = option(3.5, "carrier frequency", unit="GHz", above=0.0, at_most=1e6)
    reference_m: float | None = option(
        None,
        "the link's SNR is the mean SNR at this distance; without it the SNR is that at the transmitter, "
        "P / sigma^2 of eq. (4), and far away little is left of it",
        unit="m",
        above=0.0,
        at_most=1e9,
    )
    fading: Literal["rayleigh", "none"] = option("rayleigh", "small-scale fading beta of eq. (3), or none: beta = 1")


class PathLoss(Scatter):
    """``h = (c / (4 pi d f_c))^alpha beta``, beta ~ CN(0, 1): OF-GSC, eq. (3); SNR = P |h|^2 / sigma^2, eq. (4).

    Mean ``|h|^2`` is ``mean_gain`` and not 1: with ``--snr`` the transmit SNR, the mean receive SNR in dB is lower by
    ``-10 log10(mean_gain)``. With ``reference_m`` the gain is relative to that distance: 1 there.
    """

    Options: ClassVar[type[ChannelOptions]] = PathLossOptions
    options: PathLossOptions
    name: ClassVar[str] = "pathloss"
    summary: ClassVar[str] = "Rayleigh fading and distance path loss (OF-GSC, eqs. 3-4); alpha acts on the amplitude"
    example: ClassVar[str] = "pathloss:distance_m=200,alpha=1.5,reference_m=100"

    @property
    def mean_gain(self) -> float:
        """E|h|^2: the square of :func:`path_gain`, relative to ``reference_m`` if given."""
        o = self.options
        gain = path_gain(o.distance_m, o.carrier_ghz * 1e9, o.alpha)
        if o.reference_m is not None:
            gain /= path_gain(o.reference_m, o.carrier_ghz * 1e9, o.alpha)
        return gain**2

    @property
    def los_power(self) -> float:
        """1 without small-scale fading."""
        return 1.0 if self.options.fading == "none" else 0.0

    def gains(self, seed: int, batch: int, uses: Tensor) -> Tensor:
        """Return the gains of eq. (3)."""
        if self.options.fading == "none":
            return torch.full((batch, uses.numel()), self.mean_gain**0.5, dtype=torch.complex64)
        return super().gains(seed, batch, uses)
