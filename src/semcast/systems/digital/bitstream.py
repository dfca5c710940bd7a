"""Just enough of the H.264, H.265 and AV1 syntax to cut a stream at its units and to mend one that was damaged.

Start codes and temporal delimiters do not cross the air: packets say where a unit begins. Neither does supplemental
information (SEI), in which encoders leave their name.
"""

from __future__ import annotations

import re

START_CODE = b"\x00\x00\x00\x01"
TEMPORAL_DELIMITER = b"\x12\x00"
_START = re.compile(rb"\x00\x00\x01")
_H264_DROPPED = {6, 9, 12}  # SEI, access unit delimiter, filler (ITU-T H.264 table 7-1)
_H265_DROPPED = {35, 38, 39, 40}  # access unit delimiter, filler, SEI (ITU-T H.265 table 7-1)
H265_PARAMETER_SETS = {32, 33, 34}
H265_IDR = {19, 20}


def nal_type(nal: bytes, codec: str) -> int:
    """``nal_unit_type`` of a NAL unit without start code; ``codec`` is ``"h264"`` or ``"h265"``; -1 if there is none."""
    if not nal:
        return -1
    return nal[0] & 31 if codec == "h264" else nal[0] >> 1 & 63


def is_picture(nal: bytes, codec: str) -> bool:
    """Whether a NAL unit holds a slice of a picture."""
    kind = nal_type(nal, codec)
    return 1 <= kind <= 5 if codec == "h264" else 0 <= kind <= 31


def split_annex_b(data: bytes, codec: str) -> list[bytes]:
    """NAL units of an Annex B stream, without start codes and without those that no picture needs."""
    found = list(_START.finditer(data))
    starts = [match.end() for match in found]
    ends = [match.start() for match in found[1:]] + [len(data)] * bool(found)
    dropped = _H264_DROPPED if codec == "h264" else _H265_DROPPED
    nals = [data[a:b].rstrip(b"\x00") for a, b in zip(starts, ends, strict=True)]
    return [nal for nal in nals if nal and nal_type(nal, codec) not in dropped]


def join_annex_b(nals: list[bytes]) -> bytes:
    """The inverse of :func:`split_annex_b`."""
    return b"".join(START_CODE + nal for nal in nals)


def strip_temporal_delimiter(unit: bytes) -> bytes:
    """An AV1 temporal unit without its leading temporal delimiter OBU."""
    return unit.removeprefix(TEMPORAL_DELIMITER)


def _unescape(nal: bytes) -> bytes:
    return re.sub(rb"\x00\x00\x03(?=[\x00-\x03])", b"\x00\x00", nal)


def _escape(rbsp: bytes) -> bytes:
    return re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\x00\x00\x03", rbsp)


def set_h265_poc(nal: bytes, poc: int, poc_bits: int = 8) -> bytes | None:
    """The slice with another ``slice_pic_order_cnt_lsb`` (ITU-T H.265 7.3.6.1), or None if it has none to set.

    Only for what this package encodes: one slice per picture, picture parameter set 0, no extra slice header bits.
    """
    kind = nal_type(nal, "h265")
    if not is_picture(nal, "h265") or kind in H265_IDR or len(nal) < 6:
        return None
    rbsp = _unescape(nal)
    head = int.from_bytes(rbsp[2:6], "big")
    if head >> 30 != 0b11 or (16 <= kind <= 23):  # first_slice_segment_in_pic_flag, then ue(v) 0
        return None
    # slice_type ue(v): B 1, P 010
    offset = 3 if head >> 29 & 1 else 5 if head >> 27 & 0b111 == 0b010 else 0
    if not offset:
        return None
    shift = 32 - offset - poc_bits
    mask = (1 << poc_bits) - 1
    head = head & ~(mask << shift) | (poc & mask) << shift
    return _escape(rbsp[:2] + head.to_bytes(4, "big") + rbsp[6:])
