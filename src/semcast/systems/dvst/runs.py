"""Packets of the ``small`` preset of DVST: P-frames as the transmitter made them, and the head of a run of them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from semcast.layers.allocation import Plan
from semcast.layers.block_code import Choice
from semcast.layers.block_motion import Motion
from semcast.layers.side_coder import RunEncoder


@dataclass
class Coded:
    """One P-frame as the transmitter made it.

    Attributes:
        motion: of its blocks. classes: of these and their quarters, (5 h w,). symbols: (n,) real, n a multiple of 2 UNIT.
            difference: (3, H, W) that was coded. price: of a use, in quarter decibels. shift: decibels that the curves are
            shifted by. gain: amplitude, see :func:`amplitude_of`. coder: what the packets hold up to this frame, until the next
            one's is added. receive: what a receiver without noise makes of it.
    """

    motion: Motion
    classes: Tensor
    symbols: Tensor
    difference: Tensor
    price: int
    shift: int
    gain: int
    coder: RunEncoder
    receive: Callable[[], Tensor]

    @cached_property
    def reference(self) -> Tensor:
        """(3, H, W) without noise, x_check, made when it is first asked for: nothing follows on the last frame of a group."""
        return self.receive()


class Predicted(NamedTuple):
    """A P-frame before it is coded.

    Attributes:
        motion: of its blocks. context: (1, 3, H, W), the reference moved. difference: (3, H, W) to it. before: the frame before
            in the same packet. coder: side information of the packet so far, this motion included. spent: channel uses of the
            packet's symbols so far. head: bytes of the packet's head.
    """

    motion: Motion
    context: Tensor
    difference: Tensor
    before: Coded | None
    coder: RunEncoder
    spent: int
    head: int


class Draft(NamedTuple):
    """A P-frame at a price, as far as it takes to know the channel uses.

    Attributes:
        choice: classes, and what is sent of the blocks. plan: for the blocks that get channel uses. price: of a use. coder:
            side information up to this frame. uses: of this frame's symbols. used: of the packet up to here, side information
            and symbols.
    """

    choice: Choice
    plan: Plan
    price: int
    coder: RunEncoder
    uses: int
    used: int


class Run(NamedTuple):
    """Head of a packet of side information: told SNR in dB, and where the symbols begin, in channel uses; and of every frame
    the price, the decibels that its curves are shifted by, and the gain (:func:`amplitude_of`).
    """

    told: int
    first: int
    frames: list[tuple[int, int, int]]


_HEAD = "<bI"  # told SNR in dB, first symbol in units of UNIT
_FRAME = "<bbH"  # price in quarter dB, shift in dB, gain in hundredths of a dB from -100 dB
UNIT = 8
"""Channel uses of a P-frame come in multiples of this."""


def amplitude_of(gain: int) -> float:
    """Amplitude of a gain in hundredths of a decibel from -100 dB."""
    return float(10 ** ((gain / 100 - 100) / 20))


def head_size(count: int) -> int:
    """Bytes of the head of a packet of ``count`` frames."""
    return struct.calcsize(_HEAD) + count * struct.calcsize(_FRAME)


def pack_run(run: Run) -> bytes:
    """The head as bytes; the number of frames follows from the packet's place."""
    head = struct.pack(_HEAD, max(-60, min(60, run.told)), run.first // UNIT)
    return head + b"".join(struct.pack(_FRAME, *frame) for frame in run.frames)


def unpack_run(data: bytes, count: int) -> tuple[Run, bytes] | None:
    """Head and the rest of a packet of ``count`` frames, or None."""
    end = head_size(count)
    if len(data) < end:
        return None
    told, first = struct.unpack_from(_HEAD, data)
    frames = list(struct.iter_unpack(_FRAME, data[struct.calcsize(_HEAD) : end]))
    return Run(told, first * UNIT, frames), data[end:]


def mean_price(run: Sequence[Coded]) -> int:
    """Over the symbols that were sent at the prices."""
    weights = [len(coded.symbols) + 1 for coded in run]
    return round(sum(weight * coded.price for weight, coded in zip(weights, run, strict=True)) / sum(weights))
