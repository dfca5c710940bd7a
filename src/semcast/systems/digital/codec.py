"""Encoders: planes of a group of pictures in, units of a real bitstream out, at a quality that the rate control turns.

Quality is the encoder's own scale, larger is worse: the quantisation parameter of H.264 and H.265, the constant rate factor of
AV1. Encoders run single-threaded with fixed settings, so that the same input gives the same bytes.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from torch import Tensor

from semcast.errors import ContractError
from semcast.systems.conditions import CodecSettings, Condition, Option
from semcast.systems.digital.bitstream import split_annex_b, strip_temporal_delimiter
from semcast.systems.digital.packets import Unit
from semcast.video.colour import Yuv

if TYPE_CHECKING:
    import av
    from av.video.codeccontext import VideoCodecContext

TIME_BASE = Fraction(1, 25)  # encoders want one; a constant quantiser does not care
MAX_QP = 51


class Fine(NamedTuple):
    """A finer knob than quality: where it stands, how far it goes, natural-log bytes per unit, and its smallest step."""

    value: float
    low: float
    high: float
    slope: float
    step: float


class Encoder(ABC):
    """One encoder under one condition.

    Attributes:
        name: codec. best, worst: ends of the quality scale. slope: change of the natural log of the size per unit of quality.
        min_side: smallest frame side it takes. first_guess: quality at 0.1 bit per pixel, to start the rate control with.
        rgb: takes RGB frames (t, 3, H, W) in [0, 1] rather than 4:2:0 planes. continues: has ``encode_tail``.
    """

    name: str = ""
    best: float = 0.0
    worst: float = float(MAX_QP)
    slope: float = -0.12
    min_side: int = 32
    first_guess: float = 30.0
    rgb: bool = False
    continues: bool = False

    @abstractmethod
    def encode(self, clip: Yuv | Tensor, quality: float, fine: float | None = None) -> list[Unit]:
        """Units in coding order for (t, H, W) planes with even sides, or RGB frames; one closed group of pictures."""

    def step(self, count: int) -> float:
        """Smallest difference in quality that matters for a group of ``count`` pictures."""
        return 0.05

    def fine(self, quality: float, units: Sequence[Unit]) -> Fine | None:
        """The finer knob that takes over near the target, or None where quality itself is fine enough."""
        return None


def plane_frame(clip: Yuv, index: int) -> av.VideoFrame:
    """Frame ``index`` of 8-bit 4:2:0 planes as PyAV takes it."""
    from av.video.frame import VideoFrame

    height, width = clip.y.shape[-2:]
    frame = VideoFrame(width, height, "yuv420p")
    for plane, values in zip(frame.planes, (clip.y[index], clip.u[index], clip.v[index]), strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        rows[: values.shape[0], : values.shape[1]] = values.numpy()
    return frame


def run_encoder(codec: str, clip: Yuv, options: dict[str, str], *, gop: int | None = None) -> list[tuple[int, bytes]]:
    """Encode (t, H, W) planes with FFmpeg's ``codec``; returns (display index, bytes) in coding order."""
    from av.codec.context import CodecContext

    count, height, width = clip.y.shape
    context = cast("VideoCodecContext", CodecContext.create(codec, "w"))
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.time_base, context.framerate = TIME_BASE, 1 / TIME_BASE
    context.thread_count = 1
    context.gop_size = gop or 600
    context.options = options
    packets = []
    for k in range(count):
        frame = plane_frame(clip, k)
        frame.pts, frame.time_base = k, TIME_BASE
        packets += context.encode(frame)
    packets += context.encode(None)
    out = [(int(p.pts), bytes(p)) for p in packets if p.pts is not None and p.size]
    if sorted(index for index, _ in out) != list(range(count)):
        raise ContractError(f"{codec} returned frames {[index for index, _ in out]} for {count} frames")
    return out


def joined(options: dict[str, Option]) -> str:
    """``key=value:key=value`` as the encoders' own parameter strings are written."""
    return ":".join(f"{key}={int(value) if isinstance(value, bool) else value}" for key, value in options.items())


def dither(index: int) -> float:
    """Van der Corput's sequence: frames that share a fractional quantiser are rounded evenly up and down."""
    value, scale = 0.0, 0.5
    while index:
        value, scale, index = value + scale * (index & 1), scale / 2, index >> 1
    return value


def cascade_qps(
    count: int, quality: float, cascade: Sequence[int], fine: float | None, tail: tuple[int, float] | None = None
) -> list[int]:
    """Integer quantisers of a group of pictures: the intra frame at ``quality``, the rest at the cascade above ``fine``.

    A fraction is met on average: that many frames take the next quantiser. ``tail`` (first frame, quality) sets the
    last frames.
    """
    inter = [quality if fine is None else fine] * count
    if tail is not None:
        inter[tail[0] :] = [tail[1]] * (count - tail[0])
    qps = [round(quality)]
    qps += [math.floor(inter[k] + cascade[(k - 1) % len(cascade)] + dither(k)) for k in range(1, count)]
    return [min(max(qp, 0), MAX_QP) for qp in qps]


class _X26x(Encoder):
    """What x264 and x265 have in common."""

    encoder = ""
    zone_shift = 0
    chroma_option = ""

    def __init__(self, settings: CodecSettings, condition: Condition) -> None:
        self.settings, self.condition = settings, condition
        self.continues = settings.cascade is not None

    def step(self, count: int) -> float:
        """Whole quantisers for a single picture, where the cascade sets them."""
        return 1.0 if count == 1 and self.settings.cascade is not None else super().step(count)

    def fine(self, quality: float, units: Sequence[Unit]) -> Fine | None:
        """Quantiser of the inter frames alone; with a single frame, the chroma's distance from the luma quantiser."""
        if self.settings.cascade is None:
            return None
        total = sum(len(unit.data) for unit in units)
        inter = sum(len(unit.data) for unit in units if unit.frame) / max(total, 1)
        if inter < 0.05:
            return Fine(self._chroma_offset(), -6.0, 8.0, -0.015, 1.0)
        return Fine(quality, quality - 6, quality + 6, self.slope * inter, 0.03)

    def _chroma_offset(self) -> int:
        return int(self.settings.options.get(self.chroma_option, 0))

    def encode(self, clip: Yuv | Tensor, quality: float, fine: float | None = None) -> list[Unit]:
        assert isinstance(clip, Yuv)
        return self._encode(clip, quality, fine, None)

    def encode_tail(
        self, clip: Yuv, coded: int, quality: float, fine: float | None, tail: float
    ) -> tuple[list[Unit], list[Unit]]:
        """Frames appended to a group of ``coded`` frames: the group's units again, and those of the rest at quality ``tail``.

        The group was coded at ``quality`` and ``fine``; its units come out as they did then, which the caller checks.
        """
        units = self._encode(clip, quality, fine, (coded, tail))
        rest = [Unit(unit.frame - coded, unit.data) for unit in units if unit.frame >= coded]
        return [unit for unit in units if unit.frame < coded], rest

    @abstractmethod
    def _encode(self, clip: Yuv, quality: float, fine: float | None, tail: tuple[int, float] | None) -> list[Unit]:
        """Encode one group of pictures."""

    def _quality_options(
        self, count: int, quality: float, fine: float | None, tail: tuple[int, float] | None
    ) -> dict[str, Option]:
        if self.settings.cascade is None:
            return {"crf": f"{quality:.3f}"}
        qps = cascade_qps(count, quality, self.settings.cascade, fine if count > 1 else None, tail)
        first = self.zone_shift
        zones = "/".join(f"{k + first},{k + first},q={qp}" for k, qp in enumerate(qps))
        return {"crf": qps[0], "qcomp": 1, "zones": zones}

    def _options(self, count: int, quality: float, fine: float | None, tail: tuple[int, float] | None) -> dict[str, Option]:
        options = {**self.settings.options, **self._quality_options(count, quality, fine, tail)}
        if count == 1 and fine is not None:
            options[self.chroma_option] = round(fine)
        return options

    def _run(self, clip: Yuv, options: dict[str, Option], key: str) -> list[Unit]:
        given = {"preset": self.settings.preset or "medium", key: joined(options)}
        if self.condition.psnr_tuned:
            given["tune"] = "psnr"
        coded = run_encoder(self.encoder, clip, given)
        return [Unit(frame, nal) for frame, data in coded for nal in split_annex_b(data, self.name)]


class H264(_X26x):
    """x264; one closed group of pictures of Annex B NAL units, parameter sets in front."""

    name, encoder, chroma_option = "h264", "libx264", "chroma-qp-offset"

    def _encode(self, clip: Yuv, quality: float, fine: float | None, tail: tuple[int, float] | None) -> list[Unit]:
        count = clip.y.shape[0]
        options: dict[str, Option] = {
            "keyint": 2 * self.condition.gop + 2, "min-keyint": 1, "scenecut": 0, "open-gop": 0, "threads": 1, "force-cfr": 1,
            "bframes": self.condition.b_frames, "rc-lookahead": self.condition.lookahead, "sync-lookahead": 0,
            "slices": self.settings.slices,
        }  # fmt: skip
        if self.settings.cascade is not None:
            options |= {"no-mbtree": 1, "aq-mode": 0}
        return self._run(clip, options | self._options(count, quality, fine, tail), "x264-params")


class H265(_X26x):
    """x265; one closed group of pictures of Annex B NAL units, parameter sets in front."""

    name, encoder, chroma_option = "h265", "libx265", "cbqpoffs"
    zone_shift = 1  # x265 looks a frame's zone up under its number plus one

    def _encode(self, clip: Yuv, quality: float, fine: float | None, tail: tuple[int, float] | None) -> list[Unit]:
        count = clip.y.shape[0]
        options: dict[str, Option] = {
            "keyint": 2 * self.condition.gop + 2, "min-keyint": 1, "scenecut": 0, "open-gop": 0,
            "pools": 1, "frame-threads": 1, "wpp": 0,
            "bframes": self.condition.b_frames, "rc-lookahead": self.condition.lookahead, "lookahead-slices": 0,
            "info": 0, "log-level": "none", "log2-max-poc-lsb": 8,
        }  # fmt: skip
        if self.settings.slices > 1:
            options["slices"] = self.settings.slices
        if self.settings.cascade is not None:
            options |= {"cutree": 0, "aq-mode": 0}
        options |= self._options(count, quality, fine, tail)
        if self.chroma_option in options:
            options["crqpoffs"] = options[self.chroma_option]
        return self._run(clip, options, "x265-params")


class HevcIntra(H265):
    """H.265 intra coding of single pictures, the codec behind BPG; labelled as what it is."""

    name = "h265"


class Av1(Encoder):
    """SVT-AV1; temporal units without their delimiter, the sequence header in the first."""

    name, worst, slope, min_side, first_guess = "av1", 63.0, -0.06, 64, 40.0

    def __init__(self, settings: CodecSettings, condition: Condition) -> None:
        self.settings, self.condition = settings, condition
        os.environ.setdefault("SVT_LOG", "1")  # errors only: the library writes to stderr on its own

    def encode(self, clip: Yuv | Tensor, quality: float, fine: float | None = None) -> list[Unit]:
        assert isinstance(clip, Yuv)
        options: dict[str, Option] = {
            "tune": 1 if self.condition.psnr_tuned else 0, "pred-struct": 2 if self.condition.b_frames else 1, "keyint": -1,
            "lookahead": self.condition.lookahead, "scd": 0, "lp": 1, "aq-mode": 0, "enable-overlays": 0,
            **self.settings.options, "crf": f"{round(4 * quality) / 4:.2f}",
        }  # fmt: skip
        coded = run_encoder("libsvtav1", clip, {"preset": self.settings.preset or "6", "svtav1-params": joined(options)})
        return [Unit(frame, strip_temporal_delimiter(data)) for frame, data in coded]


def pad_even(frames: Tensor, multiple: int = 2) -> Tensor:
    """(t, 3, H, W) with its last rows and columns repeated until both sides are multiples of ``multiple``."""
    height, width = frames.shape[-2:]
    down, right = -height % multiple, -width % multiple
    if not (down or right):
        return frames
    import torch.nn.functional as F

    return F.pad(frames, (0, right, 0, down), mode="replicate")
