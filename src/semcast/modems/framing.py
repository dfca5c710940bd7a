"""Packets into code blocks and back: what stands on the air, for the decoder in the loop and for the tables alike.

    packet 0        packet 1   packet 2 ...          the packets of one scheme
    |p|data.........|p|data....|p|data..|            one byte stream; p: length prefix
    [hdr|........][hdr|........][hdr|.....0]         blocks of equal size; hdr: where the first packet begins, and which
    [     |crc][     |crc][     |crc]                CRC-24, 5G LDPC, QAM
    control block: stream length and scheme, CRC-16, QPSK; :mod:`semcast.modems.interleave` spreads both over the burst

A lost block loses the packets that touch it; the header of the next block resynchronises the rest. A stream of one
block carries no header. The receiver reads everything from the control block and the blocks that passed their CRC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from semcast.errors import ContractError
from semcast.modems.mcs import CODED_BITS_MAX, CRC_BITS, MCS, MCS_INDEX, Mcs, coded_bits

HEADER_BYTES = 3
_OFFSET_BITS, _NUMBER_BITS = 10, 14
_NO_START = 2**_OFFSET_BITS - 1
PACKETS_MAX = 2**_NUMBER_BITS
"""Packets that one numbering can tell apart."""
STREAM_BYTES_MAX = 2**24 - 1
"""Longest stream that a control block can announce."""

CONTROL_BITS = 48
"""Information bits of a control block: 24 stream length, 2 its own length, 6 scheme, 16 CRC."""
CONTROL_CODED_BITS = (120, 240)
"""Coded lengths that the control code is measured at; above, the 240 bits repeat."""
CONTROL_LEVELS = (60, 120, 240, 480)
"""Channel uses that a control block may take. The receiver tries them in this order, as NR does aggregation levels; a
good channel may give it away early, so the length stands in it."""


@dataclass(frozen=True)
class Layout:
    """How a stream of ``stream_bytes`` lies in code blocks of one scheme.

    Attributes:
        stream_bytes: length of the stream, prefixes and padding included. mcs: scheme. blocks: number of code blocks.
        data_bytes: stream bytes per block; the last is padded with zeros. header_bytes: 0 for a single block, else 3.
        info_bits, coded_bits: k and n of the block code.
    """

    stream_bytes: int
    mcs: Mcs
    blocks: int
    data_bytes: int
    header_bytes: int
    info_bits: int
    coded_bits: int

    @property
    def block_bytes(self) -> int:
        """Bytes of a block as the code sees it, without CRC."""
        return self.header_bytes + self.data_bytes

    @property
    def block_uses(self) -> int:
        """Channel uses per block."""
        return self.coded_bits // self.mcs.bits_per_symbol

    @property
    def uses(self) -> int:
        """Channel uses of all blocks, control not included."""
        return self.blocks * self.block_uses


@lru_cache(maxsize=256)
def max_block_bytes(mcs: Mcs) -> int:
    """Most bytes, CRC not counted, that fit a block of at most ``CODED_BITS_MAX`` coded bits."""
    size = int(CODED_BITS_MAX * mcs.rate) // 8 + 1
    while coded_bits(8 * size + CRC_BITS, mcs) > CODED_BITS_MAX:
        size -= 1
    return size


@lru_cache(maxsize=65536)
def layout(stream_bytes: int, mcs: Mcs) -> Layout:
    """The layout that both ends derive from the control block; raises :class:`ContractError` for an impossible length."""
    if not 0 < stream_bytes <= STREAM_BYTES_MAX:
        raise ContractError(f"a stream holds 1 to {STREAM_BYTES_MAX} bytes, got {stream_bytes}; cut the packets smaller")
    largest = max_block_bytes(mcs)
    header = 0 if stream_bytes <= largest else HEADER_BYTES
    blocks = -(-stream_bytes // (largest - header))
    data = -(-stream_bytes // blocks)
    info = 8 * (header + data) + CRC_BITS
    return Layout(stream_bytes, mcs, blocks, data, header, info, coded_bits(info, mcs))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int] | None:
    value = shift = 0
    while at < end and shift <= 28:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return None


def _prefix(size: int, jump: int) -> bytes:
    """Length prefix: (size + 1) * 2, plus 1 when the gap to the expected packet number follows; a zero byte is padding."""
    return _varint((size + 1) << 1 | (jump > 0)) + (_varint(jump) if jump else b"")


def stream_size(sizes: Iterable[tuple[int, int]]) -> int:
    """Stream bytes of packets given as (number, size)."""
    total = expected = 0
    for number, size in sizes:
        total += len(_prefix(size, number - expected)) + size
        expected = number + 1
    return total


def frame(packets: Sequence[tuple[int, bytes]], lay: Layout) -> list[bytes]:
    """Cut packets, given as (number, data) with rising numbers, into the blocks of ``lay``; the stream is padded to its length.

    Raises:
        ContractError: numbers that do not rise below ``PACKETS_MAX``, or a stream longer than the layout.
    """
    stream = bytearray()
    starts: list[tuple[int, int]] = []
    expected = 0
    for number, data in packets:
        if not expected <= number < PACKETS_MAX:
            raise ContractError(f"packet numbers must rise and stay below {PACKETS_MAX}, got {number}")
        starts.append((len(stream), number))
        stream += _prefix(len(data), number - expected) + data
        expected = number + 1
    if len(stream) > lay.stream_bytes:
        raise ContractError(f"a stream of {len(stream)} bytes does not fit a layout of {lay.stream_bytes}")
    stream += bytes(lay.blocks * lay.data_bytes - len(stream))
    if not lay.header_bytes:
        return [bytes(stream)]
    blocks, upcoming = [], 0
    for begin in range(0, len(stream), lay.data_bytes):
        while upcoming < len(starts) and starts[upcoming][0] < begin:
            upcoming += 1
        offset, number = _NO_START, 0
        if upcoming < len(starts) and starts[upcoming][0] < begin + lay.data_bytes:
            offset, number = starts[upcoming][0] - begin, starts[upcoming][1]
        header = (offset << _NUMBER_BITS | number).to_bytes(HEADER_BYTES, "big")
        blocks.append(header + bytes(stream[begin : begin + lay.data_bytes]))
    return blocks


def deframe(blocks: Sequence[bytes | None], lay: Layout) -> dict[int, bytes]:
    """Packets that can be read whole from the blocks that arrived -> data by packet number.

    A block of the wrong size counts as lost, and bytes that make no sense end the reading up to the next block header;
    nothing raises.

    Args:
        blocks: the blocks without CRC, None where lost; a short list counts as lost at its end.
        lay: layout as derived from the control block.
    """
    found: dict[int, bytes] = {}
    good = [block if block is not None and len(block) == lay.block_bytes else None for block in blocks[: lay.blocks]]
    first = 0
    while first < len(good):
        if good[first] is None:
            first += 1
            continue
        last = first
        while last < len(good) and good[last] is not None:
            last += 1
        run = [block for block in good[first:last] if block is not None]
        _read_run(run, lay, found)
        first = last
    return found


def _read_run(run: list[bytes], lay: Layout, found: dict[int, bytes]) -> None:
    """Read an unbroken run of blocks: from the start of its first packet on, and again from a header after nonsense."""
    data = b"".join(block[lay.header_bytes :] for block in run)
    entries = [(0, 0)] if not lay.header_bytes else []
    if lay.header_bytes:
        for index, block in enumerate(run):
            header = int.from_bytes(block[:HEADER_BYTES], "big")
            offset = header >> _NUMBER_BITS
            if offset < lay.data_bytes:
                entries.append((index * lay.data_bytes + offset, header & (PACKETS_MAX - 1)))
    read_to = 0
    for start, first_number in entries:
        if start < read_to:
            continue
        at, entered, number = start, True, first_number
        while at < len(data):
            prefix = _read_varint(data, at, len(data))
            if prefix is None or prefix[0] < 2:
                break
            size, after = (prefix[0] >> 1) - 1, prefix[1]
            if prefix[0] & 1:
                jump = _read_varint(data, after, len(data))
                if jump is None:
                    break
                # a header already tells the number of its first packet, gap included; a stream of one block has no header
                number += 0 if entered and lay.header_bytes else jump[0]
                after = jump[1]
            if after + size > len(data) or number >= PACKETS_MAX:
                break
            found[number] = data[after : after + size]
            at, entered, number = after + size, False, number + 1
            read_to = at


def pack_control(lay: Layout, uses: int) -> bytes:
    """The 32 information bits of a control block before its CRC; ``uses`` is its own length, one of ``CONTROL_LEVELS``."""
    code = CONTROL_LEVELS.index(uses) << 6 | MCS_INDEX[lay.mcs.name]
    return lay.stream_bytes.to_bytes(3, "big") + bytes([code])


def unpack_control(data: bytes) -> tuple[Layout, int] | None:
    """Layout and length in channel uses that a control block announces, or None for one that makes no sense."""
    size, index = int.from_bytes(data[:3], "big"), data[3] & 63
    if size == 0 or index >= len(MCS):
        return None
    return layout(size, list(MCS.values())[index]), CONTROL_LEVELS[data[3] >> 6]
