"""The ideal bound: a code that reaches Shannon's capacity, at any length, without overhead."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semcast.errors import SpecError
from semcast.modems.base import GOODPUT_SLACK, Air, Modem, Uses
from semcast.modems.mcs import Mcs, get_mcs
from semcast.types import Packet

BITS_PER_USE_MIN = 0.2
"""Never slower than the most robust real scheme, so that a header stays affordable at any SNR."""
_SNR_DB_MAX = 60.0


class CapacityModem(Modem):
    """Sends at log2(1 + SNR) of the SNR it is told; a bound, not a system.

    Assumed free: CRC, block and packet headers, control, the gap of real codes and of finite length. All packets of one
    scheme are one code word: they arrive if the mean of log2(1 + |h|^2 / noise_var) over the gains that were really there
    is no less than the rate, and are lost together if not. Retransmissions accumulate mutual information.

    Args:
        target_bler: share of the typical gains that may be in outage, where the channel fades. harq: retransmissions at most.
        mcs: ``"capacity-BITS_PER_USE"`` for a fixed rate; None adapts.
    """

    def __init__(self, *, target_bler: float = 1e-3, harq: int = 0, mcs: str | None = None) -> None:
        if not 0.0 < target_bler < 0.5:
            raise SpecError(f"target_bler must lie between 0 and 0.5, got {target_bler}")
        if harq < 0:
            raise SpecError(f"harq counts retransmissions and cannot be negative, got {harq}")
        self.target_bler, self.harq = target_bler, harq
        self.fixed = None if mcs is None else get_mcs(mcs)

    def select(self, snr_db: float, gains: Tensor | None = None) -> Mcs:
        """The rate that the told SNR supports: over fading, the capacity that all but ``target_bler`` of the draws exceed.

        Where that is less than ``BITS_PER_USE_MIN``, goodput decides: the slowest rate within ``GOODPUT_SLACK`` of the best.
        """
        if self.fixed is not None:
            return self.fixed
        rates = self._rates(snr_db, gains)
        rate = float(np.quantile(rates, self.target_bler, method="lower"))
        if rate < BITS_PER_USE_MIN:
            goodput = rates * (1 - np.arange(len(rates)) / len(rates))
            rate = float(rates[(goodput >= (1 - GOODPUT_SLACK) * goodput.max()).argmax()])
        return self._named(rate)

    def select_protected(self, snr_db: float, gains: Tensor | None = None) -> Mcs:
        if self.fixed is not None:
            return self.fixed
        return self._named(float(np.quantile(self._rates(snr_db, gains), self.target_bler, method="lower")))

    @staticmethod
    def _rates(snr_db: float, gains: Tensor | None) -> NDArray[np.float64]:
        """Capacity of every draw, rising, in bits per use."""
        snr = 10 ** (min(snr_db, _SNR_DB_MAX) / 10)
        power = np.ones((1, 1)) if gains is None else gains.abs().square().double().reshape(gains.shape[0], -1).numpy()
        return np.sort(np.log2(1 + snr * power).mean(axis=1))

    @staticmethod
    def _named(rate: float) -> Mcs:
        # rounded down in the sixth digit: a name must not claim more than the channel has
        return get_mcs(f"capacity-{math.floor(max(rate, BITS_PER_USE_MIN) * 1e6) / 1e6:.6f}")

    def bits_per_use(self, mcs: Mcs) -> float:
        return mcs.efficiency

    def uses_for_bytes(self, packet_sizes: list[int], mcs: Mcs) -> int:
        return math.ceil(8 * sum(packet_sizes) / mcs.efficiency)

    def transport(
        self, packets: list[Packet], air: Air, mcs_default: Mcs, *, generator: torch.Generator
    ) -> tuple[list[bytes | None], Uses]:
        arrived: list[bytes | None] = [None] * len(packets)
        groups: dict[Mcs, list[int]] = {}
        for index, packet in enumerate(packets):
            groups.setdefault(mcs_default if packet.mcs is None else get_mcs(packet.mcs), []).append(index)
        total = Uses()
        for mcs, members in groups.items():
            sizes = [len(packets[index].data) for index in members]
            n = self.uses_for_bytes(sizes, mcs)
            seen, attempts = 0.0, 0
            while attempts == 0 or (seen < mcs.efficiency - 1e-5 and attempts <= self.harq):
                seen += self._capacity(air, n) if n else math.inf
                attempts += 1
            held = seen >= mcs.efficiency - 1e-5
            for index in members if held else []:
                arrived[index] = packets[index].data
            again = attempts - 1
            bits = 8 * sum(sizes)
            total = total.plus(Uses(n * attempts, 0, 0, bits, bits * attempts, 1, int(not held), again, mcs.name))
        if packets:
            for index in torch.nonzero(air.erased(len(packets))).flatten().tolist():
                arrived[index] = None
        return arrived, total

    @staticmethod
    def _capacity(air: Air, n: int) -> float:
        gains = air.fade(n)
        snr = gains.h.abs().square().double() / gains.noise_var.double().clamp_min(1e-30)
        return float(torch.log2(1 + snr.flatten()).mean())
