"""Modulation and coding schemes: the envelope that adaptation chooses from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from semcast.errors import SpecError, UnknownNameError

CODED_BITS_MAX = 6144
"""Longest code block in coded bits."""
CODED_BITS_MIN = 132
"""Shortest code block in coded bits; smaller payloads get the redundancy instead."""
CRC_BITS = 24

_MODULATIONS = {"bpsk": 1, "qpsk": 2, "16qam": 4, "64qam": 6, "256qam": 8}
_RATES = {
    "bpsk": "1/5 1/4 1/3",
    "qpsk": "1/5 1/4 1/3 2/5 1/2 3/5 2/3 3/4 5/6",
    "16qam": "1/3 2/5 9/20 1/2 11/20 3/5 2/3 7/10 3/4 5/6",
    "64qam": "2/5 1/2 11/20 3/5 2/3 7/10 3/4 4/5 5/6",
    "256qam": "1/3 1/2 3/5 2/3 7/10 3/4 4/5 5/6 7/8 9/10",
}


@dataclass(frozen=True)
class Mcs:
    """One modulation and coding scheme.

    Attributes:
        name: e.g. ``"qpsk-1/2"``. bits_per_symbol: coded bits per channel use. numerator, denominator: the code rate
            k / n, CRC and block header counted in k.
    """

    name: str
    bits_per_symbol: int
    numerator: float
    denominator: int

    @property
    def rate(self) -> float:
        """Code rate k / n."""
        return self.numerator / self.denominator

    @property
    def efficiency(self) -> float:
        """Information bits per channel use before CRC and header."""
        return self.bits_per_symbol * self.rate


def _envelope() -> dict[str, Mcs]:
    table = {}
    for modulation, rates in _RATES.items():
        for rate in rates.split():
            numerator, denominator = (int(part) for part in rate.split("/"))
            name = f"{modulation}-{rate}"
            table[name] = Mcs(name, _MODULATIONS[modulation], numerator, denominator)
    return table


MCS: dict[str, Mcs] = _envelope()
"""Every scheme by name, modulation by modulation."""
MCS_INDEX: dict[str, int] = {name: index for index, name in enumerate(MCS)}
"""The number that a control block carries."""


def get_mcs(name: str) -> Mcs:
    """Return the scheme called ``name``, e.g. ``"16qam-2/3"`` or ``"capacity-2.5"``; raises :class:`UnknownNameError`."""
    if name.startswith("capacity-"):
        return capacity_mcs(name)
    if name not in MCS:
        raise UnknownNameError("modulation and coding scheme", name, MCS)
    return MCS[name]


@lru_cache(maxsize=4096)
def capacity_mcs(name: str) -> Mcs:
    """The ideal scheme of the capacity modem: ``"capacity-2.5"`` carries 2.5 bits per use; raises :class:`SpecError`."""
    try:
        bits_per_use = float(name.removeprefix("capacity-"))
    except ValueError:
        bits_per_use = -1.0
    if not 0.0 < bits_per_use < 64.0:
        raise SpecError(f"{name!r} names no rate; write capacity-BITS_PER_USE, e.g. capacity-2.5")
    return Mcs(name, 1, bits_per_use, 1)


def coded_bits(info_bits: int, mcs: Mcs) -> int:
    """Coded length n of a block of ``info_bits`` bits (payload, header, CRC): a multiple of the bits per symbol."""
    numerator = int(mcs.numerator)
    wanted = max(-(-info_bits * mcs.denominator // numerator), CODED_BITS_MIN)
    return -(-wanted // mcs.bits_per_symbol) * mcs.bits_per_symbol
