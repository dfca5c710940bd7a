"""Packets of a digital chain: units of a bitstream (NAL units, OBUs, scans) gathered into, or cut to, packets.

    packet = sequence number (1) | flags (1) | frame (1) data                          one unit, or a fragment of one
                                             | { frame (1) | length (varint) | data }+   several whole units

The frame is the unit's place among the coded frames of the step, in display order. The flags also say by how much the
transmitter scaled the frames down, and whether it left frames out. Everything here crosses the air and is charged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

GATHERED, STARTS, ENDS, LAST, SCALE_SHIFT = 0x80, 0x40, 0x20, 0x10, 2  # then 2 bits of scale and 2 of thinning
HEADER_BYTES = 3


class Unit(NamedTuple):
    """A piece of a bitstream that is decoded as a whole: ``frame`` is its place in the step, in display order."""

    frame: int
    data: bytes


class ReceivedUnit(NamedTuple):
    """A unit that arrived; not ``complete`` when its tail was lost, ``gap`` when something before it was."""

    frame: int
    data: bytes
    complete: bool = True
    gap: bool = False


class Arrived(NamedTuple):
    """What came of a step: units in coding order; sides were divided by ``2**scale``, every ``2**thin``-th frame is coded."""

    units: list[ReceivedUnit]
    scale: int
    thin: int
    tail_lost: bool


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7]) if value < 1 << 14 else b""


def pack(units: Sequence[Unit], packet_bytes: int, gather_bytes: int = 0, scale: int = 0, thin: int = 0) -> list[bytes]:
    """Cut the units of one step into packets of at most ``packet_bytes`` bytes.

    Args:
        units: in coding order. packet_bytes: longest packet, header included.
        gather_bytes: units share a packet up to this size; 0 gives every unit its own.
        scale: both sides were divided by ``2**scale``. thin: every ``2**thin``-th frame is coded.
    """
    gather_bytes = min(gather_bytes, packet_bytes)
    bodies: list[tuple[int, bytes]] = []
    shared: list[Unit] = []
    size = 2

    def flush() -> None:
        nonlocal size
        if len(shared) == 1:
            bodies.append((STARTS | ENDS, bytes([shared[0].frame]) + shared[0].data))
        elif shared:
            bodies.append((GATHERED, b"".join(bytes([u.frame]) + _varint(len(u.data)) + u.data for u in shared)))
        shared.clear()
        size = 2

    for unit in units:
        need = 1 + len(unit.data) + (1 if len(unit.data) < 128 else 2)
        fits_alone = HEADER_BYTES + len(unit.data) <= packet_bytes and len(unit.data) < 1 << 14
        if size + need > gather_bytes or not fits_alone:
            flush()
        if fits_alone:
            shared.append(unit)
            size += need
            continue
        pieces = -(-len(unit.data) // (packet_bytes - HEADER_BYTES))
        step = -(-len(unit.data) // pieces)  # equal pieces: the last one is no stub
        for k in range(pieces):
            flags = (STARTS if k == 0 else 0) | (ENDS if k == pieces - 1 else 0)
            bodies.append((flags, bytes([unit.frame]) + unit.data[k * step : (k + 1) * step]))
    flush()
    return [
        bytes([k & 255, flags | scale << SCALE_SHIFT | thin | (LAST if k == len(bodies) - 1 else 0)]) + body
        for k, (flags, body) in enumerate(bodies)
    ]


def _gathered(body: bytes, gap: bool) -> Iterable[ReceivedUnit]:
    at = 0
    while at + 2 <= len(body):
        frame, length = body[at], body[at + 1]
        at += 2
        if length & 128:
            if at >= len(body):
                return
            length = length & 127 | body[at] << 7
            at += 1
        if length == 0 or at + length > len(body):
            return
        yield ReceivedUnit(frame, body[at : at + length], True, gap)
        gap = False
        at += length


def unpack(packets: Iterable[bytes | None]) -> Arrived:
    """The inverse of :func:`pack` for what arrived: any packet may be missing or damaged, never an exception.

    Of a unit in fragments the part before the first missing one is kept, as incomplete.
    """
    units: list[ReceivedUnit] = []
    scale, thin, expected, gap, last = 0, 0, 0, False, False
    open_unit: list[bytes] | None = None
    open_frame, open_gap = 0, False

    def close(complete: bool) -> None:
        nonlocal open_unit
        if open_unit is not None:
            units.append(ReceivedUnit(open_frame, b"".join(open_unit), complete, open_gap))
        open_unit = None

    for packet in packets:
        if packet is None or len(packet) < HEADER_BYTES + 1:
            continue
        sequence, flags, body = packet[0], packet[1], packet[2:]
        if sequence != expected & 255:
            close(False)
            gap = True
        expected = sequence + 1
        scale, thin, last = flags >> SCALE_SHIFT & 3, flags & 3, bool(flags & LAST)
        if flags & GATHERED:
            close(False)
            units.extend(_gathered(body, gap))
            gap = False
            continue
        if flags & STARTS:
            close(False)
            open_unit, open_frame, open_gap, gap = [], body[0], gap, False
        elif open_unit is None or body[0] != open_frame:
            close(False)  # the middle of a unit whose beginning is lost
            gap = True
            continue
        open_unit.append(body[1:])
        if flags & ENDS:
            close(True)
    close(False)
    return Arrived(units, scale, thin, not last)
