"""Packets of the ``small`` preset of DVST: P-frames as the transmitter made them, and the head of a run of them."""

from __future__ import annotations

import struct
from typing import NamedTuple

from torch import Tensor

from semcast.layers.block_motion import Motion


class Coded(NamedTuple):
    """One P-frame as the transmitter made it.

    Attributes:
        motion: of its blocks. classes: (h, w). symbols: (n,) real, n a multiple of 2 UNIT. difference: (3, H, W) that was
            coded. reference: (3, H, W) without noise, x_check. price: of a use, in quarter decibels. shift:
            decibels that the curves are shifted by. gain: amplitude, see :func:`amplitude_of`.
    """

    motion: Motion
    classes: Tensor
    symbols: Tensor
    difference: Tensor
    reference: Tensor
    price: int
    shift: int
    gain: int


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
