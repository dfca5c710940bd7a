"""Pictures: JPEG (also frame after frame as Motion JPEG) and JPEG 2000, without the parts of their files that carry nothing.

JPEG crosses the air much as in RFC 2435: the receiver rebuilds the markers that follow from the frame size and one number for
the quantiser; Huffman tables are optimised and sent. The quantiser is flat, which is what PSNR wants: on two
pictures of Kodak it was worth about 1 dB over the tables of ITU-T T.81 annex K at 0.8 bit per pixel and above. A frame is cut
into restart segments, which are decoded without one another.

JPEG 2000 (9-7 wavelet, ISO/IEC 15444-1) is sent as quality layers; those after the first that is lost count as empty.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from semcast.systems.conditions import CodecSettings, Condition
from semcast.systems.digital.codec import Encoder
from semcast.systems.digital.packets import ReceivedUnit, Unit
from semcast.video.colour import Yuv

MCU = 16  # pixels per side of a minimum coded unit at 4:2:0
STEPS_PER_UNIT = 256  # the quantiser crosses the air in units of 1/256 of a sixth of an octave
LAYER_RATIOS = (8.0, 4.0, 2.0, 2.0**0.5, 1.0)
SOI, EOI, SOT, SOD = b"\xff\xd8", b"\xff\xd9", b"\xff\x90", b"\xff\x93"


def to_bytes(frame: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    return np.ascontiguousarray(frame.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_bytes(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255


def segment_rows(height: int, slices: int) -> int:
    """Rows of minimum coded units per restart segment."""
    return math.ceil(math.ceil(height / MCU) / slices)


def _quantiser(code: int) -> int:
    return min(max(round(2 ** (code / STEPS_PER_UNIT / 6)), 1), 255)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _jpeg_head(height: int, width: int, code: int, slices: int) -> bytes:
    """Everything in front of the Huffman tables, from what both ends know (ITU-T T.81 annex B)."""
    step = _quantiser(code)
    tables = b"".join(_segment(0xDB, bytes([k]) + bytes([step]) * 64) for k in (0, 1))
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    frame = _segment(0xC0, b"\x08" + size + b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01")
    interval = segment_rows(height, slices) * -(-width // MCU)
    return SOI + tables + frame + _segment(0xDD, interval.to_bytes(2, "big"))


_SCAN = _segment(0xDA, b"\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00")


def _split_scan(scan: bytes) -> list[bytes]:
    """Restart segments of an entropy-coded scan, without the markers between them."""
    parts, start, at = [], 0, scan.find(b"\xff")
    while at >= 0 and at + 1 < len(scan):
        if 0xD0 <= scan[at + 1] <= 0xD7:
            parts.append(scan[start:at])
            start = at + 2
        at = scan.find(b"\xff", at + 2)
    return [*parts, scan[start:]]


def _markers(data: bytes) -> tuple[bytes, bytes]:
    """Huffman table segments, and the scan, of a baseline JPEG file."""
    at, tables = 2, b""
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xC4:
            tables += data[at : at + 2 + length]
        at += 2 + length
    at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return tables, data[at : data.rindex(EOI)]


class Jpeg(Encoder):
    """Baseline JPEG, 4:2:0, optimised Huffman tables, a flat quantiser of ``2**(quality / 6)``."""

    name, best, worst, slope, min_side, first_guess = "jpeg", 0.0, 48.0, -0.11, 16, 28.0
    rgb = True

    def __init__(self, settings: CodecSettings, condition: Condition) -> None:
        self.slices = settings.slices

    def encode(self, clip: Yuv | Tensor, quality: float, fine: float | None = None) -> list[Unit]:
        from PIL import Image

        assert isinstance(clip, Tensor)
        code = round(quality * STEPS_PER_UNIT)
        table = [_quantiser(code)] * 64
        units = []
        for k, frame in enumerate(clip):
            file = io.BytesIO()
            rows = segment_rows(frame.shape[1], self.slices)
            Image.fromarray(to_bytes(frame)).save(
                file, "JPEG", qtables=[table, table], subsampling="4:2:0", optimize=True, restart_marker_rows=rows
            )
            tables, scan = _markers(file.getvalue())
            head = code.to_bytes(2, "big") + len(tables).to_bytes(2, "big") + tables
            for place, part in enumerate(_split_scan(scan)):
                units.append(Unit(k, bytes([place]) + (head if place == 0 else b"") + part))
        return units


def decode_jpeg(units: Sequence[ReceivedUnit], height: int, width: int, slices: int) -> tuple[Tensor, Tensor] | None:
    """A frame from the restart segments that arrived.

    Returns:
        The frame (3, H, W), and which of its rows (H,) bool were really received; None without the first segment, which
        carries the tables.
    """
    from PIL import Image

    rows = segment_rows(height, slices)
    count = math.ceil(math.ceil(height / MCU) / rows)
    parts = {unit.data[0]: unit.data[1:] for unit in units if unit.complete and len(unit.data) > 1 and unit.data[0] < count}
    first = parts.get(0, b"")
    if len(first) < 4:
        return None
    code, length = int.from_bytes(first[:2], "big"), int.from_bytes(first[2:4], "big")
    tables, parts[0] = first[4 : 4 + length], first[4 + length :]
    scan = b"".join(
        parts.get(k, parts[0]) + (bytes([0xFF, 0xD0 + k % 8]) if k < count - 1 else b"") for k in range(count)
    )  # a lost segment is stood in for by the first one; its rows are not used
    try:
        with Image.open(io.BytesIO(_jpeg_head(height, width, code, slices) + tables + _SCAN + scan + EOI)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception:  # damaged entropy-coded data: whatever the library makes of it, the frame is lost
        return None
    if pixels.shape != (height, width, 3):
        return None
    arrived = torch.tensor([k in parts for k in range(count)]).repeat_interleave(rows * MCU)[:height]
    return from_bytes(pixels), arrived


def _without(data: bytes, marker: int, end: int) -> bytes:
    """A codestream's header up to ``end`` without the segments of one kind."""
    out, at = data[:2], 2
    while at < end:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] != marker:
            out += data[at : at + length]
        at += length
    return out


def _packet_lengths(segment: bytes) -> list[int]:
    """Packet lengths in the PLT segments of a tile-part header (ISO/IEC 15444-1 A.7.3)."""
    lengths, at = [], 12
    while at < len(segment):
        size = 2 + int.from_bytes(segment[at + 2 : at + 4], "big")
        value = 0
        if segment[at : at + 2] == b"\xff\x58":
            for byte in segment[at + 5 : at + size]:
                value = value << 7 | byte & 127
                if not byte & 128:
                    lengths.append(value)
                    value = 0
        at += size
    return lengths


class Jpeg2000(Encoder):
    """JPEG 2000 with the irreversible 9-7 wavelet and five quality layers; quality is 6 log2 of the compression ratio."""

    name, best, worst, slope, min_side, first_guess = "jpeg2000", 0.0, 60.0, -0.1155, 32, 30.0
    rgb = True

    def __init__(self, settings: CodecSettings, condition: Condition) -> None:
        self.settings = settings

    def encode(self, clip: Yuv | Tensor, quality: float, fine: float | None = None) -> list[Unit]:
        from PIL import Image

        assert isinstance(clip, Tensor)
        ratio = 2 ** (quality / 6)
        units = []
        for k, frame in enumerate(clip):
            file = io.BytesIO()
            Image.fromarray(to_bytes(frame)).save(
                file, "JPEG2000", no_jp2=True, quality_mode="rates", quality_layers=[ratio * r for r in LAYER_RATIOS],
                irreversible=True, mct=1, progression="LRCP", plt=True,
            )  # fmt: skip
            data = file.getvalue()
            tile, body = data.index(SOT), data.index(SOD) + 2
            lengths = _packet_lengths(data[tile : body - 2])
            per_layer = len(lengths) // len(LAYER_RATIOS)
            bounds = [body + sum(lengths[: per_layer * layer]) for layer in range(len(LAYER_RATIOS) + 1)]
            main = _without(data, 0x64, tile)[2:]  # without the comment, in which the encoder leaves its name
            units.append(Unit(k, b"\x00" + len(main).to_bytes(2, "big") + main + data[bounds[0] : bounds[1]]))
            units += [Unit(k, bytes([n]) + data[bounds[n] : bounds[n + 1]]) for n in range(1, len(LAYER_RATIOS))]
        return units


def decode_jpeg2000(units: Sequence[ReceivedUnit], height: int, width: int) -> tuple[Tensor, bool] | None:
    """A picture from the quality layers up to the first that is missing, and whether all were there; None without the first."""
    from PIL import Image

    layers = {unit.data[0]: unit.data[1:] for unit in units if unit.complete and unit.data}
    if len(layers.get(0, b"")) < 3:
        return None
    length = int.from_bytes(layers[0][:2], "big")
    main, layers[0] = layers[0][2 : 2 + length], layers[0][2 + length :]
    body = b""
    whole = 0
    while whole in layers:
        body += layers[whole]
        whole += 1
    body += bytes(4096 if whole < len(LAYER_RATIOS) else 0)  # a zero bit says that a packet is empty (B.10.3)
    tile = SOT + b"\x00\x0a\x00\x00" + (14 + len(body)).to_bytes(4, "big") + b"\x00\x01" + SOD
    try:
        with Image.open(io.BytesIO(b"\xff\x4f" + main + tile + body + EOI)) as image:
            if image.size != (width, height):
                return None
            pixels = np.asarray(image.convert("RGB"))
    except Exception:  # damaged data: whatever the library makes of it, the picture is lost
        return None
    return from_bytes(pixels), whole == len(LAYER_RATIOS)
