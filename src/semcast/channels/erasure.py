"""Packet erasure by the network, independent or in bursts (Gilbert-Elliott), over an AWGN channel."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from semcast.channels.awgn import Awgn
from semcast.channels.base import Fading
from semcast.channels.options import ChannelOptions, option
from semcast.errors import SpecError


@dataclass(frozen=True)
class PacketOptions(ChannelOptions):
    """How analog symbols are cut into packets."""

    packet_uses: int = option(512, "analog symbols that travel, and are lost, together", unit="uses", at_least=1, at_most=1e12)


class TwoStateErasure(Awgn):
    """A Markov chain of a good and a bad state drops packets; what arrives has AWGN underneath.

    ``erasures`` says which packets of bytes are dropped. ``sample`` does the same to analog symbols, in chunks of
    ``erasure_packet_uses`` whose gain is then 0, which the receiver knows; ``air`` is the gain of what arrives. The state
    persists from packet to packet, of either kind, until ``reset``; a packet's place in time does not matter.
    """

    Options: ClassVar[type[ChannelOptions]] = PacketOptions
    options: PacketOptions

    def __init__(self, options: ChannelOptions | None = None) -> None:
        super().__init__(options)
        self.erasure_packet_uses = self.options.packet_uses
        self._bad: list[bool] | None = None

    @property
    @abstractmethod
    def chain(self) -> tuple[float, float, float, float]:
        """P(good -> bad), P(bad -> good), P(loss | good), P(loss | bad)."""

    def reset(self, generator: torch.Generator) -> None:
        """Forget the state; the next packet meets the stationary law."""
        self._bad = None

    def sample(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """Return gains of 1, and 0 where a packet of analog symbols was dropped."""
        packets = -(-n // self.erasure_packet_uses)
        lost = self._advance(batch, packets, generator)
        return Fading((~lost[:, torch.arange(n) // self.erasure_packet_uses]).to(torch.complex64))

    def air(self, n: int, clock: int, *, batch: int = 1, generator: torch.Generator) -> Fading:
        """Return gains of 1: what arrives is not faded."""
        return super().sample(n, clock, batch=batch, generator=generator)

    def erasures(self, count: int, clock: int, *, generator: torch.Generator) -> Tensor:
        """Return (count,) bool: which of the next packets are dropped."""
        return self._advance(1, count, generator)[0]

    def _advance(self, batch: int, count: int, generator: torch.Generator) -> Tensor:
        """Return (batch, count) bool losses and move on; another batch size begins with the stationary law."""
        p, r, loss_good, loss_bad = self.chain
        if self._bad is None or len(self._bad) != batch:
            stationary = p / (p + r) if p + r > 0 else 0.0
            self._bad = (torch.rand(batch, generator=generator) < stationary).tolist()
        move, drop = torch.rand((2, batch, count), generator=generator).tolist()
        lost = torch.zeros(batch, count, dtype=torch.bool)
        for b in range(batch):
            bad, row = self._bad[b], []
            for i in range(count):
                row.append(drop[b][i] < (loss_bad if bad else loss_good))
                bad = move[b][i] >= r if bad else move[b][i] < p
            self._bad[b] = bad
            if row:
                lost[b] = torch.tensor(row)
        return lost


@dataclass(frozen=True)
class ErasureOptions(PacketOptions):
    """Options of :class:`Erasure`."""

    plr: float = option(0.05, "packet loss rate", at_least=0.0, at_most=1.0)
    burst: float | None = option(None, "mean length of a burst of losses; else independent", unit="packets", at_least=1.0)

    def validate(self) -> None:
        """Refuse bursts too short for their rate."""
        if self.burst is not None and self.plr < 1 and self.plr > self.burst * (1 - self.plr):
            raise SpecError(f"plr={self.plr:g} cannot be reached with bursts of {self.burst:g} packets; lengthen them")


class Erasure(TwoStateErasure):
    """Packets are lost at a rate, independently or in bursts of a mean length (Gilbert's chain)."""

    Options: ClassVar[type[ChannelOptions]] = ErasureOptions
    options: ErasureOptions
    name: ClassVar[str] = "erasure"
    summary: ClassVar[str] = "packet loss at a rate, independent or in bursts, over AWGN"
    example: ClassVar[str] = "erasure:plr=0.05,burst=4"

    @property
    def chain(self) -> tuple[float, float, float, float]:
        """The chain whose stationary loss rate is ``plr``; independent losses are one whose state has no memory."""
        plr, burst = self.options.plr, self.options.burst
        if burst is None or plr in (0.0, 1.0):
            return plr, 1 - plr, 0.0, 1.0
        return plr / (burst * (1 - plr)), 1 / burst, 0.0, 1.0


@dataclass(frozen=True)
class GilbertElliottOptions(PacketOptions):
    """Options of :class:`GilbertElliott`."""

    p: float = option(0.0125, "probability of good -> bad after a packet", at_least=0.0, at_most=1.0)
    r: float = option(0.25, "probability of bad -> good after a packet", at_least=0.0, at_most=1.0)
    loss_good: float = option(0.0, "loss rate in the good state", at_least=0.0, at_most=1.0)
    loss_bad: float = option(1.0, "loss rate in the bad state", at_least=0.0, at_most=1.0)


class GilbertElliott(TwoStateErasure):
    """The chain given by its probabilities: loss rate (r loss_good + p loss_bad) / (p + r), mean stay in bad 1 / r."""

    Options: ClassVar[type[ChannelOptions]] = GilbertElliottOptions
    options: GilbertElliottOptions
    name: ClassVar[str] = "gilbert-elliott"
    summary: ClassVar[str] = "packet loss by a two-state Markov chain, over AWGN"
    example: ClassVar[str] = "gilbert-elliott:p=0.0125,r=0.25,loss_bad=0.8"

    @property
    def chain(self) -> tuple[float, float, float, float]:
        """The four options."""
        return self.options.p, self.options.r, self.options.loss_good, self.options.loss_bad
