"""What the decoder in the loop and its table share: adaptation, framing, accounting, retransmission."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semcast.errors import ContractError, SpecError
from semcast.modems import bler as tables
from semcast.modems.base import GOODPUT_SLACK, Air, Modem, Uses
from semcast.modems.framing import (
    CONTROL_BITS,
    PACKETS_MAX,
    STREAM_BYTES_MAX,
    Layout,
    deframe,
    frame,
    layout,
    max_block_bytes,
    stream_size,
)
from semcast.modems.mcs import CODED_BITS_MAX, CRC_BITS, MCS, Mcs, coded_bits, get_mcs
from semcast.types import Packet

FEEDBACK_USES_PER_BIT = 120 / CONTROL_BITS
"""An acknowledgement bit costs what a control bit costs: QPSK at rate 1/5."""
_CHUNK_BYTES = STREAM_BYTES_MAX // 2


@dataclass
class Transmission:
    """One group on the air: the blocks that the transmitter has, and what the receiver has made of them.

    Attributes:
        lay: layout. blocks: header and data of each block, without CRC. control_uses: of its control block.
        received: blocks whose CRC held. announced: the layout read from the control block, or None while it is lost.
        attempts: for each block, what the receiver keeps of earlier transmissions, for combining.
    """

    lay: Layout
    blocks: list[bytes]
    control_uses: int
    received: list[bytes | None]
    announced: Layout | None = None
    attempts: dict[int, list[tuple[int, Tensor | float]]] = field(default_factory=dict)


@lru_cache(maxsize=65536)
def protected_layout(stream_bytes: int, default: Mcs, target_bler: float) -> Layout:
    """The cheapest layout that keeps the target at the SNR ``default`` is meant for, short as the stream may be.

    A slower scheme, or padding up to the length from which a faster one is safe, whichever takes fewer uses.
    """
    best = layout(stream_bytes, default)
    candidates = [(mcs, n) for mcs, n in tables.short_block_schemes(default, target_bler) if mcs != default]
    least_default = dict(tables.short_block_schemes(default, target_bler)).get(default, 0)
    if best.blocks > 1 or best.coded_bits >= least_default:
        return best
    options = []
    for mcs, least in [(default, least_default), *candidates]:
        size = max(stream_bytes, (int(least * mcs.rate) - CRC_BITS) // 8)
        while layout(size, mcs).blocks == 1 and layout(size, mcs).coded_bits < least:
            size += 1
        options.append(layout(size, mcs))
    # where nothing is safe, the most robust scheme is the best there is
    return min(options, key=lambda lay: (lay.uses, lay.mcs.efficiency)) if options else best


class CodedModem(Modem):
    """5G LDPC blocks with CRC over QAM, in the framing of :mod:`semcast.modems.framing`.

    A group with ``harq`` > 0 is answered with one bit per block sent, error-free, at ``FEEDBACK_USES_PER_BIT``; missing
    blocks are sent again, at most ``harq`` times, as redundancy versions 0, 2, 3, 1 and combined. If the control block
    itself was lost the receiver kept nothing, and the whole group is sent afresh.

    Args:
        target_bler: block error rate that adaptation aims for. harq: retransmissions of a block at most.
        mcs: name of a fixed scheme; None adapts. combining: ``"ir"``, incremental redundancy, or ``"chase"``, repetition.
    """

    def __init__(self, *, target_bler: float = 1e-3, harq: int = 0, mcs: str | None = None, combining: str = "ir") -> None:
        if not 0.0 < target_bler < 0.5:
            raise SpecError(f"target_bler must lie between 0 and 0.5, got {target_bler}")
        if harq < 0:
            raise SpecError(f"harq counts retransmissions and cannot be negative, got {harq}")
        if combining not in ("ir", "chase"):
            raise SpecError(f"combining is 'ir' or 'chase', got {combining!r}")
        self.target_bler, self.harq, self.combining = target_bler, harq, combining
        self.fixed = None if mcs is None else get_mcs(mcs)
        if self.fixed is not None and self.fixed.name not in MCS:
            raise SpecError(f"{mcs!r} is a scheme of the capacity modem; this one takes one of {', '.join(MCS)}")

    def select(self, snr_db: float, gains: Tensor | None = None) -> Mcs:
        return self._choose(snr_db, gains, lambda mcs, lost: mcs.efficiency * (1 - lost), GOODPUT_SLACK)

    def select_protected(self, snr_db: float, gains: Tensor | None = None) -> Mcs:
        return self._choose(snr_db, gains, lambda mcs, lost: 1 - lost, 0.0)

    def _choose(self, snr_db: float, gains: Tensor | None, worth: Callable[[Mcs, float], float], slack: float) -> Mcs:
        """The fastest scheme that meets the target; else the slowest whose ``worth``, given its expected block error rate, is
        within a share of ``slack`` of the greatest."""
        if self.fixed is not None:
            return self.fixed
        power = np.ones((1, 1)) if gains is None else gains.abs().square().double().reshape(gains.shape[0], -1).numpy()
        snr = power * 10 ** (snr_db / 10)
        # rounded, since 6 * 2/5 and 4 * 3/5 are not the same to the last bit
        order = sorted(
            tables.schemes(),
            key=lambda mcs: (-round(mcs.efficiency, 9), tables.threshold_db(mcs, tables.DESIGN_BITS, self.target_bler)),
        )
        effective: dict[int, NDArray[np.float64]] = {}
        worths: dict[Mcs, float] = {}
        for mcs in order:
            m = mcs.bits_per_symbol
            if m not in effective:
                # interleaved, a block meets uses from all over a draw: every so many-th one
                span = max(1, min(snr.shape[1], tables.DESIGN_BITS // m))
                apart = snr.shape[1] // span
                effective[m] = tables.faded_snr_db(snr[:, : apart * span].reshape(-1, span, apart).swapaxes(1, 2), m)
            lost = float(tables.bler(mcs, tables.DESIGN_BITS, effective[m]).mean())
            if lost <= self.target_bler:
                return mcs
            worths[mcs] = worth(mcs, lost)
        enough = (1 - slack) * max(worths.values())  # 0 where nothing gets through: then the slowest
        return next(mcs for mcs in reversed(order) if worths[mcs] >= enough)

    def bits_per_use(self, mcs: Mcs) -> float:
        size = max_block_bytes(mcs)
        n = coded_bits(8 * size + CRC_BITS, mcs)
        assert n <= CODED_BITS_MAX
        return 8 * (size - 3) / (n // mcs.bits_per_symbol)

    def _layout(self, stream_bytes: int, mcs: Mcs, *, explicit: bool) -> Layout:
        if explicit or self.fixed is not None:
            return layout(stream_bytes, mcs)
        return protected_layout(stream_bytes, mcs, self.target_bler)

    def uses_for_bytes(self, packet_sizes: list[int], mcs: Mcs) -> int:
        return self._uses(packet_sizes, mcs, explicit=False)

    def uses_for_named(self, packet_sizes: list[int], mcs: Mcs) -> int:
        return self._uses(packet_sizes, mcs, explicit=True)

    def _uses(self, packet_sizes: list[int], mcs: Mcs, *, explicit: bool) -> int:
        total = 0
        for chunk in _chunks(packet_sizes):
            lay = self._layout(stream_size(enumerate(packet_sizes[i] for i in chunk)), mcs, explicit=explicit)
            total += lay.uses + tables.control_uses(mcs, self.target_bler)
        return total

    def transport(
        self, packets: list[Packet], air: Air, mcs_default: Mcs, *, generator: torch.Generator
    ) -> tuple[list[bytes | None], Uses]:
        arrived: list[bytes | None] = [None] * len(packets)
        uses = Uses()
        for chunk in _chunks([len(packet.data) for packet in packets]):
            groups: dict[tuple[Mcs, bool], list[tuple[int, bytes]]] = {}
            for number, index in enumerate(chunk):
                packet = packets[index]
                explicit = packet.mcs is not None
                mcs = get_mcs(packet.mcs) if packet.mcs is not None else mcs_default
                groups.setdefault((mcs, explicit), []).append((number, packet.data))
            for (mcs, explicit), members in groups.items():
                lay = self._layout(stream_size((n, len(data)) for n, data in members), mcs, explicit=explicit)
                sent = Transmission(lay, frame(members, lay), tables.control_uses(mcs, self.target_bler), [None] * lay.blocks)
                uses = uses.plus(self._send(sent, air, generator))
                if sent.announced is not None:
                    for number, data in deframe(sent.received, sent.announced).items():
                        if number < len(chunk):
                            arrived[chunk[number]] = data
        if packets:
            for index in torch.nonzero(air.erased(len(packets))).flatten().tolist():
                arrived[index] = None
        return arrived, uses._replace(info_bits=sum(8 * len(packet.data) for packet in packets))

    def _send(self, sent: Transmission, air: Air, generator: torch.Generator) -> Uses:
        """Send a group with its retransmissions; fills in what the receiver has."""
        lay = sent.lay
        data_uses = control_uses = feedback_uses = retransmissions = 0
        for attempt in range(self.harq + 1):
            with_control = sent.announced is None
            if with_control:
                sent.attempts.clear()
            pending = [index for index, block in enumerate(sent.received) if block is None]
            self._attempt(sent, pending, with_control, air, generator)
            control_uses += sent.control_uses if with_control else 0
            data_uses += len(pending) * lay.block_uses
            retransmissions += len(pending) if attempt else 0
            if self.harq:
                feedback_uses += math.ceil(len(pending) * FEEDBACK_USES_PER_BIT)
            if all(block is not None for block in sent.received):
                break
        lost = sum(block is None for block in sent.received)
        coded = data_uses * lay.mcs.bits_per_symbol
        return Uses(data_uses, control_uses, feedback_uses, 0, coded, lay.blocks, lost, retransmissions, lay.mcs.name)

    @abstractmethod
    def _attempt(
        self, sent: Transmission, pending: list[int], with_control: bool, air: Air, generator: torch.Generator
    ) -> None:
        """Send the pending blocks once, after a control block if ``with_control``; set ``announced`` and ``received``."""

    def _rv(self, transmissions: int) -> int:
        """Redundancy version of the next transmission of a block that was sent ``transmissions`` times."""
        return 0 if self.combining == "chase" else (0, 2, 3, 1)[transmissions % 4]


def _chunks(sizes: list[int]) -> list[range]:
    """Cut a list of packets into ranges that one numbering and one stream length can describe."""
    chunks, first, total = [], 0, 0
    for index, size in enumerate(sizes):
        if size + 8 > _CHUNK_BYTES:
            raise ContractError(f"packet {index} has {size} bytes, more than {_CHUNK_BYTES - 8}; cut it into smaller packets")
        if index - first >= PACKETS_MAX or total + size + 8 > _CHUNK_BYTES:
            chunks.append(range(first, index))
            first, total = index, 0
        total += size + 8
    if first < len(sizes):
        chunks.append(range(first, len(sizes)))
    return chunks
