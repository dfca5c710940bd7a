"""Pictures for the report: the same moment of all systems, error maps, and a contact sheet."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semcast.errors import ContractError

Picture = NDArray[np.uint8]
MAX_WIDTH = 960
JPEG_QUALITY = 92
GAINS = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Media:
    """One frame as one system received it.

    Attributes:
        series: legend name, ``Row.name`` or what :func:`semcast.studies.stats.series_names` says. clip, channel: as in the row.
        snr_db, cbr: the operating point; ``cbr`` is the one asked for (``Row.cbr_key``). frame: index in the clip, from 0.
        original, received: (H, W, 3) uint8 RGB. note: a few words under the picture, e.g. ``"concealed"``.
    """

    series: str
    clip: str
    channel: str
    snr_db: float | None
    cbr: float | None
    frame: int
    original: Picture
    received: Picture
    note: str = ""

    def __post_init__(self) -> None:
        for name, picture in (("original", self.original), ("received", self.received)):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise ContractError(f"Media.{name} must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
        if self.original.shape != self.received.shape:
            raise ContractError(f"Media pictures differ in size: {self.original.shape} and {self.received.shape}")

    @property
    def psnr_rgb_db(self) -> float:
        """PSNR of this frame over RGB at peak 255, capped at 100 dB."""
        mse = float(np.mean((self.original.astype(np.float64) - self.received) ** 2)) / 255**2
        return 100.0 if mse <= 1e-10 else -10 * math.log10(mse)


def absolute_error(media: Media) -> NDArray[np.float64]:
    """Mean over RGB of |original - received|, in levels of 255; (H, W)."""
    error: NDArray[np.float64] = np.abs(media.original.astype(np.float64) - media.received).mean(2)
    return error


def common_gain(media: Sequence[Media]) -> int:
    """One amplification for all error maps, so that they can be compared: the largest of 16, 8, 4, 2, 1 that clips at most a
    fiftieth of the pixels of the median map."""
    if not media:
        return 1
    highs = [float(np.percentile(absolute_error(item), 98)) for item in media]
    middle = float(np.median(highs))
    return next((gain for gain in GAINS if gain * middle <= 255), 1)


def _inferno(levels: Picture) -> Picture:
    """(H, W) uint8 -> (H, W, 3) RGB by Inferno, whose lightness rises evenly with the value."""
    import cv2

    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1], dtype=np.uint8)


def error_map(media: Media, gain: int) -> Picture:
    """Error times ``gain``, clipped at 255, in Inferno; (H, W, 3) uint8 RGB."""
    return _inferno(np.clip(absolute_error(media) * gain, 0, 255).round().astype(np.uint8))


def scale_colours(stops: int = 9) -> list[str]:
    """Inferno from 0 to full scale as hexadecimal colours, for the scale bar."""
    ramp = _inferno(np.linspace(0, 255, stops).round().astype(np.uint8)[None])
    return ["#" + bytes(pixel.tolist()).hex() for pixel in ramp[0]]


def _fit(picture: Picture, width: int) -> Picture:
    import cv2

    if picture.shape[1] <= width:
        return picture
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def data_uri(picture: Picture, quality: int = JPEG_QUALITY, max_width: int = MAX_WIDTH) -> str:
    """(H, W, 3) uint8 RGB as a JPEG data URI at full chroma, at most ``max_width`` pixels wide."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    ok, data = cv2.imencode(".jpg", np.ascontiguousarray(_fit(picture, max_width)[..., ::-1]), options)
    if not ok:
        raise ContractError("OpenCV could not encode a picture for the report")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def lowest_middle_highest(values: Sequence[float | None]) -> list[float | None]:
    """At most three of the distinct values, from low to high."""
    distinct = sorted(set(values), key=lambda value: -math.inf if value is None else value)
    return distinct if len(distinct) <= 3 else [distinct[0], distinct[len(distinct) // 2], distinct[-1]]


def contact_sheet(media: Sequence[Media], width: int = 1280) -> Picture:
    """One picture of the same moment: a row per SNR (lowest, middle, highest), the original and every series side by side.

    Args:
        media: those of the first clip, channel and CBR are drawn. width: of the sheet, in pixels.

    Returns:
        (H, width, 3) uint8 RGB.

    Raises:
        ContractError: no media.
    """
    if not media:
        raise ContractError("a contact sheet needs at least one picture")
    first = media[0]
    chosen = [m for m in media if (m.clip, m.channel, m.cbr, m.frame) == (first.clip, first.channel, first.cbr, first.frame)]
    series = list(dict.fromkeys(m.series for m in chosen))
    snrs = lowest_middle_highest([m.snr_db for m in chosen])
    at = {(m.series, m.snr_db): m for m in chosen}
    margin, gap, line = 28, 12, 44
    column = (width - 2 * margin - gap * len(series)) // (len(series) + 1)
    tall = max(1, round(column * first.original.shape[0] / first.original.shape[1]))
    top = margin + 64
    sheet = np.full((top + len(snrs) * (tall + line + gap) + margin - gap, width, 3), 255, dtype=np.uint8)
    labels: list[tuple[int, int, str, int, bool]] = []
    cbr = "" if first.cbr is None else f", CBR {first.cbr:g}"
    labels.append((margin, margin, f"{first.clip}, frame {first.frame}, over {first.channel}{cbr}", 26, True))
    for row, snr_db in enumerate(snrs):
        y = top + row * (tall + line + gap)
        cells: list[tuple[Picture, str, str]] = [(first.original, "original", "" if snr_db is None else f"SNR {snr_db:g} dB")]
        for name in series:
            item = at.get((name, snr_db))
            if item is None:
                cells.append((np.full_like(first.original, 238), name, "not measured"))
            else:
                cells.append((item.received, name, "  ".join(filter(None, [item.note, f"{item.psnr_rgb_db:.1f} dB"]))))
        for i, (picture, title, value) in enumerate(cells):
            x = margin + i * (column + gap)
            sheet[y : y + tall, x : x + column] = _resize(picture, column, tall)
            labels.append((x, y + tall + 6, title, 18, False))
            labels.append((x + column, y + tall + 6, value, 18, True))
    return _write(sheet, labels)


def _resize(picture: Picture, width: int, height: int) -> Picture:
    import cv2

    shrink = picture.shape[1] > width
    return np.asarray(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC), np.uint8
    )


def _write(sheet: Picture, labels: Sequence[tuple[int, int, str, int, bool]]) -> Picture:
    """Draw (x, y, text, size, strong) labels; those with x at a column's right end are set flush right."""
    from PIL import Image, ImageDraw, ImageFont  # comes with scikit-image; OpenCV 4 has no smooth type

    picture = Image.fromarray(sheet)
    draw: Any = ImageDraw.Draw(picture)
    for i, (x, y, text, size, strong) in enumerate(labels):
        anchor = "ra" if strong and i else "la"
        draw.text(
            (x, y), text, fill=(20, 22, 26) if strong else (90, 96, 104), font=ImageFont.load_default(size), anchor=anchor
        )
    return np.asarray(picture, dtype=np.uint8)
