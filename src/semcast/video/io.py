"""Any input as clips: video files through FFmpeg (PyAV), raw yuv, pictures; and the one door to them, ``open_clips``."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import SpecError, UnknownNameError, VideoError
from semcast.video.clip import Clip, Labels, VideoInfo, check_size
from semcast.video.writer import VideoWriter, write

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Clip", "VideoInfo", "VideoWriter", "check_size", "open_clips", "probe", "read", "write"]

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"}
VIDEOS = {
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".y4m", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".ogv", ".wmv", ".gif"),
    *(".yuv", ".264", ".h264", ".265", ".h265", ".hevc", ".ivf", ".obu", ".3gp", ".mxf"),
}
DEFAULT_FPS = 25.0
_COUNT_BELOW = 1 << 28  # bytes; larger files without a frame count in the header are not read through to count
_NAMED_SIZE = re.compile(r"(?:^|_)(\d{2,5})x(\d{2,5})(?=_|$|\.)")
_NAMED_FPS = re.compile(r"_\d{2,5}x\d{2,5}_(\d+(?:\.\d+)?)(?:fps|hz)?(?=_|$|\.)", re.IGNORECASE)
_NAMED_BITS = re.compile(r"_(10|12|16) ?b(?:it)?s?(?=_|$|\.)", re.IGNORECASE)


def _file(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise VideoError(f"{path}: no such file or folder")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty")
    return path


def raw_options(path: Path, size: tuple[int, int] | None, fps: float | None, pix_fmt: str | None) -> dict[str, str]:
    """FFmpeg's options for a headerless file: as given, else as the name says (``Name_416x240_50.yuv``)."""
    import av

    named = _NAMED_SIZE.search(path.stem)
    if size is None and named:
        size = int(named[1]), int(named[2])
    if size is None:
        raise SpecError(f"{path}: a raw .yuv does not say its frame size; give --size WxH (and --fps F)")
    check_size(*size, str(path))
    bits = _NAMED_BITS.search(path.stem)
    pix_fmt = pix_fmt or (f"yuv420p{bits[1]}le" if bits else "yuv420p")
    try:
        fmt = av.VideoFormat(pix_fmt, *size)
    except ValueError:
        raise SpecError(f"{path}: unknown pixel format {pix_fmt!r}; 4:2:0 is yuv420p, with 10 bits yuv420p10le") from None
    frame_bytes = sum(c.width * c.height * (2 if c.bits > 8 else 1) for c in fmt.components)
    total = path.stat().st_size
    if total % frame_bytes:
        raise VideoError(
            f"{path}: {total} bytes are not a whole number of {size[0]}x{size[1]} {pix_fmt} frames "
            f"({frame_bytes} bytes each); check --size and the bit depth"
        )
    rate = re.search(_NAMED_FPS, path.stem)
    shown = str(Fraction(fps or (float(rate[1]) if rate else DEFAULT_FPS)).limit_denominator(1001))
    return {"video_size": f"{size[0]}x{size[1]}", "framerate": shown, "pixel_format": pix_fmt}


@contextmanager
def _opened(path: Path, raw: dict[str, str] | None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file's first real video stream; every failure becomes one sentence."""
    import av

    try:
        # "file:" keeps FFmpeg from taking a colon in the name for a protocol
        container = av.open(f"file:{path}", format="rawvideo" if raw is not None else None, options=raw or {})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a video that FFmpeg can read ({_reason(error)})") from None
    try:
        streams = [s for s in container.streams.video if not int(s.disposition) & int(type(s.disposition).attached_pic)]
        if not streams or container.format.name == "tty":  # FFmpeg "plays" any text file as terminal art
            raise VideoError(f"{path}: not a video (no video stream in it)")
        if streams[0].codec_context is None:
            raise VideoError(f"{path}: FFmpeg has no decoder for this video")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]
    finally:
        container.close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".").lower()


def _decode(path: Path, raw: dict[str, str] | None) -> Iterator[VideoFrame]:
    """Decode lazily; raises :class:`VideoError` if nothing comes, or if the file ends before its own index does."""
    import av

    count, size = 0, (0, 0)
    with _opened(path, raw) as (container, stream):
        cut = any(entry.pos + entry.size > path.stat().st_size for entry in itertools.islice(_tail_of_index(stream), 1))
        cut = cut or (container.format.name == "yuv4mpegpipe" and _y4m_is_cut(path, stream))
        tagged = _tagged_duration(stream)
        end = 0.0
        try:
            for frame in container.decode(stream):
                if count == 0:
                    size = frame.width, frame.height
                elif (frame.width, frame.height) != size:
                    raise VideoError(f"{path}: frame {count} is {frame.width}x{frame.height}, those before {size[0]}x{size[1]}")
                count += 1
                if frame.pts is not None and frame.time_base:
                    end = max(end, float((frame.pts + (frame.duration or 0)) * frame.time_base))
                yield frame
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{path}: damaged after {count} frames ({_reason(error)}); --max-frames {count} reads those"
            ) from None
    if count == 0:
        raise VideoError(f"{path}: the video has no frames that could be decoded")
    if cut or end < 0.95 * tagged:
        raise VideoError(f"{path}: truncated, it ends after {count} frames; {_rescue(count)}")


def _rescue(count: int) -> str:
    return f"--max-frames {count} reads those" if count else "try another file"


def _tail_of_index(stream: VideoStream) -> Iterator[Any]:
    entries = stream.index_entries
    if len(entries):
        yield entries[len(entries) - 1]


def _y4m_is_cut(path: Path, stream: VideoStream) -> bool:
    """Whether a y4m file with plain frame headers stops inside a frame, which FFmpeg drops without a word."""
    with path.open("rb") as file:
        header, mark = len(file.readline(4096)), file.readline(4096)
    if mark != b"FRAME\n" or stream.codec_context.format is None:
        return False
    samples = (c.width * c.height * (2 if c.bits > 8 else 1) for c in stream.codec_context.format.components)
    return (path.stat().st_size - header) % (len(mark) + sum(samples)) != 0


def _tagged_duration(stream: VideoStream) -> float:
    """Seconds that a Matroska DURATION tag promises for this stream, or 0."""
    hms = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return int(hms[1]) * 3600 + int(hms[2]) * 60 + float(hms[3]) if hms else 0.0


def probe(
    path: str | Path, *, size: tuple[int, int] | None = None, fps: float | None = None, pix_fmt: str | None = None
) -> VideoInfo:
    """Look at a video file: first frame decoded, the others at most counted.

    Args:
        path: anything FFmpeg reads, or a raw ``.yuv``, for which alone the others count: ``size`` (width, height), ``fps``
            and ``pix_fmt`` default to what the name says, 25 frames per second and 8-bit 4:2:0.
    Raises:
        VideoError: no such file, not a video, no frames. SpecError: a raw file of unknown size.
    """
    path = _file(path)
    return _probe(path, raw_options(path, size, fps, pix_fmt) if path.suffix.lower() == ".yuv" else None)


def _probe(path: Path, raw: dict[str, str] | None) -> VideoInfo:
    frames = _decode(path, raw)
    first = next(frames)
    frames.close()  # type: ignore[attr-defined]
    rotation = round(first.rotation / 90) * 90 % 360
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    with _opened(path, raw) as (container, stream):
        codec = stream.codec_context.name
        rate = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        n_frames = stream.frames or None
        seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        if n_frames is None and path.stat().st_size < _COUNT_BELOW:
            packets = _packets(container, stream)
            n_frames = len(packets)
            times = sorted((p.pts, p.duration or 0) for p in packets if p.pts is not None)
            if stream.time_base and len(times) == n_frames and times and times[-1][1]:
                seconds = float((times[-1][0] + times[-1][1] - times[0][0]) * stream.time_base)
    measured = n_frames / seconds if n_frames and seconds > 0 else rate
    # container clocks are coarse (1 ms in Matroska): believe the nominal rate unless the frames really vary
    fps = rate if abs(measured - rate) < 0.02 * rate else measured
    return VideoInfo(str(path), width, height, fps, n_frames, codec, first.format.name, rotation)


def _packets(container: InputContainer, stream: VideoStream) -> list[Packet]:
    """The packets of a stream as far as they can be read; decoding will say what is wrong with the rest."""
    import av

    found = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                found.append(packet)
    except (av.FFmpegError, OSError):
        pass
    return found


def resize(frame: Tensor, size: tuple[int, int]) -> Tensor:
    if (frame.shape[-1], frame.shape[-2]) == size:
        return frame
    return F.interpolate(frame[None], (size[1], size[0]), mode="bicubic", antialias=True, align_corners=False)[0].clamp_(0, 1)


def read(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    pix_fmt: str | None = None,
) -> Clip:
    """Open a video file as a clip; nothing but the first frame is decoded yet.

    Args:
        path: anything FFmpeg reads: containers, y4m, elementary streams; or headerless ``.yuv``.
        size: (width, height). A raw ``.yuv`` has that size, everything else is scaled to it.
        fps: a raw ``.yuv`` has that rate; of everything else frames are dropped or repeated to reach it.
        max_frames: stop after that many.
        pix_fmt: of a raw ``.yuv``; None: as its name says (``_10bit``), else ``yuv420p``.
    Raises:
        VideoError: no such file, not a video, no frames, smaller than 64x64, a raw file with a broken frame; while
            iterating: damaged or truncated. SpecError: a raw file of unknown size.
    """
    path = _file(path)
    if path.is_dir():
        raise VideoError(f"{path}: a folder, not a video file; open_clips takes folders of pictures")
    if path.suffix.lower() != ".yuv":
        return clip_of_file(path, None, size=size, fps=fps, max_frames=max_frames)
    _check_numbers(fps, max_frames)
    return clip_of_file(path, raw_options(path, size, fps, pix_fmt), size=None, fps=None, max_frames=max_frames)


def clip_of_file(
    path: Path, raw: dict[str, str] | None, *, size: tuple[int, int] | None, fps: float | None, max_frames: int | None
) -> Clip:
    """:func:`read` with everything settled: ``raw`` describes a headerless file, ``size`` and ``fps`` are what comes out."""
    _check_numbers(fps, max_frames)
    stored = _probe(path, raw)
    ratio = 1.0 if fps is None else stored.fps / fps
    target = size or (stored.width, stored.height)
    check_size(*target, str(path))
    n_frames = stored.n_frames and math.ceil(stored.n_frames / ratio - 1e-6)
    if max_frames is not None and n_frames is not None:
        n_frames = min(n_frames, max_frames)
    info = VideoInfo(
        stored.path, *target, stored.fps / ratio, n_frames, stored.codec, stored.pix_fmt, stored.rotation
    )  # fmt: skip
    siting = "centre" if stored.codec == "mjpeg" else "left"

    def native() -> Iterator[VideoFrame]:
        return itertools.islice(_resampled(_decode(path, raw), ratio), max_frames)

    def source(_: bool) -> Iterator[tuple[Tensor, Labels]]:
        from semcast.video.colour import frame_to_rgb

        for frame in native():
            rgb = frame_to_rgb(frame, siting=siting)
            if stored.rotation:
                rgb = torch.rot90(rgb, stored.rotation // 90, (-2, -1)).contiguous()
            yield resize(rgb, target), {}

    own = target == (stored.width, stored.height) and not stored.rotation and stored.pix_fmt.startswith(("yuv4", "yuvj4"))
    return Clip(path.stem, info, source, yuv=native if own else None)


def _check_numbers(fps: float | None, max_frames: int | None) -> None:
    if fps is not None and not 0 < fps < 10_000:
        raise SpecError(f"a rate of {fps} frames per second makes no sense; give a positive number")
    if max_frames is not None and max_frames < 1:
        raise SpecError(f"--max-frames is {max_frames}; at least 1 is needed")


def _resampled(frames: Iterator[Any], ratio: float) -> Iterator[Any]:
    """Output k shows input floor(k * ratio); ratio 1 passes through."""
    if ratio == 1.0:
        yield from frames
        return
    shown = 0
    for index, frame in enumerate(frames):
        while int(shown * ratio + 1e-6) == index:
            yield frame
            shown += 1


# pictures ---------------------------------------------------------------------------------------------------------


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sort key under which frame_9 comes before frame_10."""
    return [(0, int(part)) if part.isdigit() else (1, part.lower()) for part in re.split(r"(\d+)", path.name) if part]


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture as shown, from its header alone; raises :class:`VideoError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except FileNotFoundError:
        raise VideoError(f"{path}: no such picture") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise VideoError(f"{path}: not a picture that can be read ({_reason(error)})") from None
    return (height, width) if sideways else (width, height)


def read_picture(path: Path) -> Tensor:
    """A picture as (3, H, W) float32 RGB in [0, 1], 8 or 16 bit, grey repeated, alpha dropped, EXIF orientation applied."""
    import cv2
    import numpy as np

    picture_size(path)  # OpenCV only returns None and prints; the header check says what is wrong
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None:
        raise VideoError(f"{path}: the picture is damaged and cannot be decoded")
    scale = {np.dtype(np.uint8): 255.0, np.dtype(np.uint16): 65535.0}.get(image.dtype, 1.0)
    rgb = np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)).astype(np.float32)
    return torch.from_numpy(rgb).div_(scale).clamp_(0, 1)


def pictures_clip(
    paths: list[Path],
    name: str,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    max_frames: int | None = None,
    path: str | None = None,
) -> Clip:
    """Pictures of one size as the frames of a clip, each read when its turn comes; ``fps`` is declared, 25 if None."""
    _check_numbers(fps, max_frames)
    paths = paths[:max_frames]

    def info() -> VideoInfo:
        width, height = size or picture_size(paths[0])
        check_size(width, height, str(paths[0]))
        kind = paths[0].suffix.lower().lstrip(".")
        return VideoInfo(path or str(paths[0]), width, height, fps or DEFAULT_FPS, len(paths), "pictures", kind)

    def source(_: bool) -> Iterator[tuple[Tensor, Labels]]:
        target = (known := info()).width, known.height
        for item in paths:
            frame = read_picture(item)
            if size is None and (frame.shape[-1], frame.shape[-2]) != target:
                raise VideoError(f"{item}: {frame.shape[-1]}x{frame.shape[-2]} pixels, the clip has {target[0]}x{target[1]}")
            yield resize(frame, target), {}

    return Clip(name, info, source)


def _open_folder(
    path: Path, size: tuple[int, int] | None, fps: float | None, stills: bool, max_frames: int | None
) -> list[Clip]:
    inside = sorted((p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), key=natural_key)
    pictures = [p for p in inside if p.suffix.lower() in PICTURES]
    videos = [p for p in inside if p.suffix.lower() in VIDEOS]
    if pictures and videos:
        raise VideoError(f"{path}: holds both pictures and videos; name one file, or move them into folders of their own")
    if videos:
        return [_open_file(p, size, fps, max_frames) for p in videos]
    if not pictures:
        raise VideoError(f"{path}: no pictures and no videos in this folder")
    if stills or (size is None and len({picture_size(p) for p in pictures}) > 1):
        clips = [pictures_clip([p], p.stem, size=size, fps=fps) for p in pictures]
    else:
        clips = [pictures_clip(pictures, path.resolve().name, size=size, fps=fps, max_frames=max_frames, path=str(path))]
    for clip in clips:
        check_size(clip.width, clip.height, clip.info.path)
    return clips


def _open_file(path: Path, size: tuple[int, int] | None, fps: float | None, max_frames: int | None) -> Clip:
    if path.suffix.lower() not in PICTURES:
        return read(path, size=size, fps=fps, max_frames=max_frames)
    clip = pictures_clip([path], path.stem, size=size, fps=fps)
    check_size(clip.width, clip.height, str(path))
    return clip


def open_clips(
    spec: str | Path,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    stills: bool = False,
    max_frames: int | None = None,
) -> list[Clip]:
    """Open whatever an input string names.

    Args:
        spec: a video file; a raw ``.yuv``; a picture; a folder of pictures (naturally sorted: one clip, or clips of one
            frame each if their sizes differ) or of videos (a clip each); ``scene:NAME``; ``DATASET:DIR`` (``camvid:DIR/test``).
        size: (width, height): declared for a raw ``.yuv``, rendered for scenes, scaled to for the rest.
        fps: declared for a raw ``.yuv`` and pictures, rendered for scenes, resampled to for the rest.
        stills: pictures become clips of one frame each.
        max_frames: per clip.
    Raises:
        VideoError, SpecError, UnknownNameError: with one sentence on what is wrong and what to do.
    """
    _check_numbers(fps, max_frames)
    if size is not None:
        check_size(*size, "the requested size")
    text = str(spec)
    kind, colon, rest = text.partition(":")
    if colon and re.fullmatch(r"[a-z][a-z0-9-]+", kind) and not Path(text).exists():
        from semcast.video.datasets import DATASETS

        if kind == "scene":
            from semcast.video.scenes import open_scene

            return [open_scene(rest, size=size, fps=fps, max_frames=max_frames)]
        if kind not in DATASETS:
            raise UnknownNameError("kind of input", kind, ["scene", *DATASETS])
        return DATASETS[kind](rest, size=size, fps=fps, stills=stills, max_frames=max_frames)
    path = _file(text)
    return _open_folder(path, size, fps, stills, max_frames) if path.is_dir() else [_open_file(path, size, fps, max_frames)]
