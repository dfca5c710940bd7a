"""What a modem is: packets in, packets or losses out, and every channel use accounted for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from semcast.modems.mcs import Mcs
from semcast.types import Packet, RxAnalog

__all__ = ["Air", "Mcs", "Modem", "Uses"]


GOODPUT_SLACK = 0.1
"""Goodput given up in outage for fewer losses: its maximum is flat in the rate, the loss is not (34 % against 27 % of
short sends over block Rayleigh fading at 15 dB), and a decoder suffers more from a loss than from a tenth less rate."""


class Air(Protocol):
    """The channel as a modem meets it; every call advances the link's clock."""

    def fade(self, n: int) -> RxAnalog:
        """``n`` uses without symbols: ``h`` (n,) the receiver's gain estimate, ``noise_var`` (n,) with the estimation error."""
        ...

    def carry(self, x: Tensor) -> RxAnalog:
        """Send ``x`` (1, n) of unit power: received ``y``, gain estimate ``h`` and ``noise_var``, all (1, n)."""
        ...

    def erased(self, count: int) -> Tensor:
        """(count,) bool: packets that the network behind the radio drops."""
        ...


class Uses(NamedTuple):
    """What a transport cost.

    Attributes:
        data_uses: channel uses of code blocks, retransmissions included. control_uses: of control blocks.
        feedback_uses: of acknowledgements on the return channel. info_bits: payload bits handed in.
        coded_bits: coded bits sent. blocks: distinct code blocks. blocks_lost: those never decoded.
        retransmissions: code blocks sent again. mcs: names of the schemes used, joined by "+".
    """

    data_uses: int = 0
    control_uses: int = 0
    feedback_uses: int = 0
    info_bits: int = 0
    coded_bits: int = 0
    blocks: int = 0
    blocks_lost: int = 0
    retransmissions: int = 0
    mcs: str = ""

    @property
    def uses(self) -> int:
        """All channel uses on the forward channel."""
        return self.data_uses + self.control_uses

    def plus(self, other: Uses) -> Uses:
        """The sum of two transports."""
        names = dict.fromkeys(name for name in (*self.mcs.split("+"), *other.mcs.split("+")) if name)
        return Uses(
            self.data_uses + other.data_uses,
            self.control_uses + other.control_uses,
            self.feedback_uses + other.feedback_uses,
            self.info_bits + other.info_bits,
            self.coded_bits + other.coded_bits,
            self.blocks + other.blocks,
            self.blocks_lost + other.blocks_lost,
            self.retransmissions + other.retransmissions,
            "+".join(names),
        )


class Modem(ABC):
    """CRC, forward error correction and modulation, with retransmissions where asked for."""

    target_bler: float

    @abstractmethod
    def select(self, snr_db: float, gains: Tensor | None = None) -> Mcs:
        """The highest-rate scheme whose expected block error rate meets ``target_bler``.

        Where the channel is in outage more often than that, no scheme does; then expected goodput, rate * (1 - block error
        rate), decides: the slowest scheme within ``GOODPUT_SLACK`` of the best. The most robust one of all would spend its uses
        to be lost in much the same fades.

        Args:
            snr_db: Es/N0 at unit gain, as told.
            gains: (draws, n) complex or magnitude, n uses evenly spread over a typical send per draw; None: all one.
        """

    def select_protected(self, snr_db: float, gains: Tensor | None = None) -> Mcs:
        """As ``select``, but where no scheme meets ``target_bler`` the one that loses least: for what all else depends on."""
        return self.select(snr_db, gains)

    @abstractmethod
    def bits_per_use(self, mcs: Mcs) -> float:
        """Payload bits per channel use of a long stream, with CRC and block header but without control blocks."""

    @abstractmethod
    def uses_for_bytes(self, packet_sizes: list[int], mcs: Mcs) -> int:
        """Channel uses, control included, that ``transport`` charges for packets of these sizes without retransmission."""

    def uses_for_named(self, packet_sizes: list[int], mcs: Mcs) -> int:
        """As ``uses_for_bytes``, for packets that name ``mcs`` themselves: it is taken as it is, short as the stream may be."""
        return self.uses_for_bytes(packet_sizes, mcs)

    def bytes_for_uses(self, uses: int, mcs: Mcs) -> int:
        """Largest payload, as one packet, that ``uses`` channel uses can carry; 0 if none."""
        if self.uses_for_bytes([1], mcs) > uses:
            return 0
        low, high = 1, max(2, int(uses * mcs.efficiency / 8) + 2)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.uses_for_bytes([middle], mcs) <= uses else (low, middle)
        return low

    @abstractmethod
    def transport(
        self, packets: list[Packet], air: Air, mcs_default: Mcs, *, generator: torch.Generator
    ) -> tuple[list[bytes | None], Uses]:
        """Send packets; each arrives whole or is None, in the order given.

        Args:
            packets: ``Packet.mcs`` None means ``mcs_default``. air: the channel. generator: for what a table draws.
        """
