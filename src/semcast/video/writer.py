"""Frames to a video file that keeps their number, size and rate."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, cast

from torch import Tensor

from semcast.errors import SpecError, VideoError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SUFFIXES = (".mp4", ".mkv", ".y4m", ".png")
_FORMATS = {".y4m": "yuv4mpegpipe", ".png": "image2"}
NEAR_LOSSLESS_CRF = 10.0  # x264: about 50 dB, so that the file shows the radio's damage and not its own
_COLOUR_TAGS = {"bt601": 6, "bt709": 1}


def exact_rate(fps: float) -> Fraction:
    """The rational rate behind a rounded one: 29.97 -> 30000/1001."""
    for whole in (Fraction(round(fps)), Fraction(round(fps * 1.001) * 1000, 1001)):
        if whole and abs(fps - float(whole)) < 2e-3:
            return whole
    return Fraction(fps).limit_denominator(1001)


class VideoWriter:
    """Write frames one by one; close it, or use it as a context.

    ``.mp4`` and ``.mkv`` hold H.264, 4:2:0 where both sides are even and 4:4:4 where one is odd (4:2:0 cannot keep those);
    ``.y4m`` holds raw 8-bit 4:2:0; ``.png`` one frame, exactly. The file appears with the first frame.

    Args:
        path: ends in .mp4, .mkv, .y4m or .png.
        width, height: of every frame, in pixels. fps: frames per second.
        lossless: every 8-bit RGB value comes back: FFV1 in .mkv, H.264 RGB in .mp4; .y4m has no RGB.
        crf: x264's constant rate factor, smaller is better; ignored by .y4m and .png.
    Raises:
        SpecError: another suffix, a rate that is no rate. VideoError: the file cannot be written, a frame of another size, a
            second frame for a .png.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        fps: float,
        *,
        lossless: bool = False,
        crf: float = NEAR_LOSSLESS_CRF,
    ) -> None:
        self.path = Path(path)
        self.size = (width, height)
        self.fps = fps
        self.lossless = lossless
        self.crf = crf
        self.frames_written = 0
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        if self.path.suffix.lower() not in SUFFIXES:
            raise SpecError(f"{path}: frames are written as {', '.join(SUFFIXES)}; choose one of these endings")
        if lossless and self.path.suffix.lower() == ".y4m":
            raise SpecError(f"{path}: y4m holds no RGB, so it is not lossless; write .mkv instead")
        if not 1e-3 <= fps < 10_000:
            raise SpecError(f"{path}: a rate of {fps} frames per second makes no sense; give a positive number")

    def _open(self) -> tuple[OutputContainer, VideoStream]:
        import av

        from semcast.video.colour import matrix_for

        suffix = self.path.suffix.lower()
        width, height = self.size
        even = width % 2 == 0 and height % 2 == 0
        codec, pix_fmt, options = "libx264", "yuv420p" if even else "yuv444p", {"crf": f"{self.crf:g}", "preset": "veryfast"}
        if suffix == ".y4m":
            codec, pix_fmt, options = "rawvideo", "yuv420p", {}
        elif suffix == ".png":
            codec, pix_fmt, options = "png", "rgb24", {}
        elif self.lossless and suffix == ".mkv":
            codec, pix_fmt, options = "ffv1", "bgr0", {"level": "3", "g": "1"}
        elif self.lossless:
            codec, pix_fmt, options = "libx264rgb", "rgb24", {"qp": "0", "preset": "veryfast"}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            container = av.open(
                f"file:{self.path}",
                "w",
                format=_FORMATS.get(suffix),
                container_options={"update": "1"} if suffix == ".png" else {},
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(f"{self.path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
        stream = cast("VideoStream", container.add_stream(codec, rate=exact_rate(self.fps), options=options))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        context = stream.codec_context
        context.time_base = 1 / exact_rate(self.fps)
        if pix_fmt.startswith("yuv"):
            context.colorspace, context.color_range = _COLOUR_TAGS[matrix_for(height)], 1
        return container, stream

    def write(self, frames: Tensor) -> None:
        """Append (3, H, W), or every frame of (..., 3, H, W), RGB in [0, 1]; values outside are clipped."""
        from semcast.video.colour import rgb_to_frame

        for frame in frames.reshape(-1, *frames.shape[-3:]):
            if (frame.shape[-1], frame.shape[-2]) != self.size or frame.shape[0] != 3:
                shape = (3, self.size[1], self.size[0])
                raise VideoError(f"{self.path}: frame {self.frames_written} is {tuple(frame.shape)}, expected {shape}")
            if self.frames_written and self.path.suffix.lower() == ".png":
                raise VideoError(f"{self.path}: a .png holds one frame; write a video as .mp4, .mkv or .y4m")
            if self._container is None or self._stream is None:
                self._container, self._stream = self._open()
            wanted = self._stream.pix_fmt or "yuv420p"
            picture = rgb_to_frame(frame, wanted if wanted.startswith("yuv") else "gbrp").reformat(format=wanted)
            picture.pts, picture.time_base = self.frames_written, 1 / exact_rate(self.fps)
            self._mux(picture)
            self.frames_written += 1

    def _mux(self, picture: VideoFrame | None) -> None:
        import av

        assert self._container is not None
        assert self._stream is not None
        try:
            self._container.mux(self._stream.encode(picture))
        except (av.FFmpegError, OSError) as error:
            self._container = self._stream = None  # nothing left to flush
            raise VideoError(f"{self.path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None

    def close(self) -> None:
        """Flush and finish the file; without a frame there is none."""
        if self._container is not None:
            self._mux(None)
            self._container.close()
        self._container = self._stream = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def write(
    path: str | Path, frames: Iterable[Tensor], fps: float, *, lossless: bool = False, crf: float = NEAR_LOSSLESS_CRF
) -> int:
    """Write (3, H, W) frames as they come and return how many; raises :class:`VideoError` if there are none."""
    writer: VideoWriter | None = None
    try:
        for frame in frames:
            writer = writer or VideoWriter(path, frame.shape[-1], frame.shape[-2], fps, lossless=lossless, crf=crf)
            writer.write(frame)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise VideoError(f"{path}: there are no frames to write")
    return writer.frames_written
