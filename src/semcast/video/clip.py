"""A clip: frames that are decoded, or rendered, only while somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from semcast.errors import VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

MIN_SIDE = 64  # pixels; smaller frames leave nothing after a few halvings

Labels = dict[str, Tensor]
FrameSource = Callable[[bool], Iterator[tuple[Tensor, Labels]]]


@dataclass(frozen=True)
class VideoInfo:
    """What a source says about itself.

    Attributes:
        path: file, folder or specification. width, height: pixels as shown, after rotation. fps: average frames per second.
        n_frames: as counted in the container without decoding, or None where only decoding tells.
        codec: FFmpeg's name, ``"pictures"`` or ``"rendered"``. pix_fmt: FFmpeg's name of the stored format.
        rotation: counter-clockwise degrees that the display matrix asks for; already applied to the frames.
    """

    path: str
    width: int
    height: int
    fps: float
    n_frames: int | None
    codec: str
    pix_fmt: str
    rotation: int = 0


def check_size(width: int, height: int, what: str = "frames") -> None:
    """Raise :class:`VideoError` unless both sides have at least 64 pixels."""
    if width < MIN_SIDE or height < MIN_SIDE:
        raise VideoError(f"{what}: {width}x{height} pixels are too small; at least {MIN_SIDE}x{MIN_SIDE} are needed")


class Clip:
    """A named sequence of frames that can be gone through again and again, without ever lying in memory as a whole.

    Args:
        name: short name for rows and reports.
        info: what is known of the source, or a function that finds out when first asked.
        source: called with whether labels are wanted, returns a fresh iterator over (frame, labels of that frame).
        labels: what holds for the whole clip: ``"action"`` () int64, ``"motion"`` () int64.
        yuv: returns a fresh iterator over the decoder's own frames, where the frames are those and nothing else.
        classes: names of the classes of ``"segmentation"`` labels, in their order; () without such labels.
    """

    def __init__(
        self,
        name: str,
        info: VideoInfo | Callable[[], VideoInfo],
        source: FrameSource,
        *,
        labels: Mapping[str, Tensor] | None = None,
        yuv: Callable[[], Iterator[VideoFrame]] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.labels = dict(labels or {})
        self._info = info
        self._source = source
        self._yuv = yuv
        self.classes = classes

    @property
    def info(self) -> VideoInfo:
        if not isinstance(self._info, VideoInfo):
            self._info = self._info()
        return self._info

    @property
    def fps(self) -> float:
        return self.info.fps

    @property
    def width(self) -> int:
        return self.info.width

    @property
    def height(self) -> int:
        return self.info.height

    @property
    def n_frames(self) -> int | None:
        """As in :class:`VideoInfo`: for progress bars; only going through the frames counts them for certain."""
        return self.info.n_frames

    def frames(self) -> Iterator[Tensor]:
        """Yield (3, H, W) float32 RGB in [0, 1]; raises :class:`VideoError` where the source is damaged or empty."""
        for frame, _ in self._source(False):
            yield frame

    def labelled_frames(self) -> Iterator[tuple[Tensor, Labels]]:
        """Yield each frame with its ground truth where known: ``"segmentation"`` (H, W) int64, ``"flow"`` (2, H, W), ..."""
        return self._source(True)

    def yuv_frames(self) -> Iterator[VideoFrame] | None:
        """The decoder's own planar YCbCr frames, the ones behind :meth:`frames`; None for pictures, scenes and whatever was
        scaled, rotated or is RGB. Digital systems encode these, since a detour over RGB costs a little."""
        return None if self._yuv is None else self._yuv()

    def with_labels(self, labels: Mapping[str, Tensor]) -> Clip:
        """The same clip with clip-level ``labels`` added."""
        return Clip(self.name, self._info, self._source, labels={**self.labels, **labels}, yuv=self._yuv, classes=self.classes)

    def renamed(self, name: str, path: str | None = None) -> Clip:
        """The same clip under another name, and path if given."""
        info = self._info if path is None else replace(self.info, path=path)
        return Clip(name, info, self._source, labels=self.labels, yuv=self._yuv, classes=self.classes)

    def __iter__(self) -> Iterator[Tensor]:
        return self.frames()

    def __repr__(self) -> str:
        return f"Clip({self.name!r}, {self.info})"
