"""The data pipeline: pictures and clips from folders, decoded once, cropped and augmented at random.

A data folder holds any of ``video/`` (clips that FFmpeg reads) and ``images/`` (pictures); a folder of clips or pictures itself
will do as well. Frames stay in memory as uint8.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import InputError

VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".mov", ".webm", ".y4m", ".m4v", ".ts"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataclass(frozen=True)
class Corpus:
    """Decoded material: clips of (T, H, W, 3) uint8, pictures being clips of one frame, and the folders it came from."""

    clips: list[np.ndarray]
    sources: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        """Memory held by the frames."""
        return sum(clip.nbytes for clip in self.clips) / 1e6


def load_corpus(
    folder: str | Path,
    *,
    parts: tuple[str, ...] = ("video", "images"),
    every: int = 1,
    min_side: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Decode everything below ``folder``.

    Args:
        folder: data folder as described above. parts: sub-folders to take; ``name[a:b]`` takes those files of it, in the order
            of their names. every: keep every n-th frame of a clip.
        min_side: leave out what is smaller. progress: called with (done, all).

    Raises:
        InputError: no such folder, or nothing in it that can be trained on.
    """
    import av

    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no such data folder: {root}")
    found = [(part, _media(root, part)) for part in parts]
    found = [(part, inside) for part, inside in found if inside] or [(".", _media(root, ""))]
    files = [path for _, inside in found for path in inside]
    clips: list[np.ndarray] = []
    for index, path in enumerate(files):
        try:
            with av.open(str(path)) as container:
                frames = [
                    frame.to_ndarray(format="rgb24", interpolation="LANCZOS")
                    for n, frame in enumerate(container.decode(video=0))
                    if n % every == 0
                ]
        except (av.error.FFmpegError, IndexError):
            continue
        if frames and min(frames[0].shape[:2]) >= min_side:
            clips.append(np.stack(frames))
        if progress:
            progress(index + 1, len(files))
    if not clips:
        raise InputError(f"no clip or picture of at least {min_side} lines under {root}; expected video/ or images/ in it")
    return Corpus(clips, tuple(part for part, _ in found))


def _media(root: Path, part: str) -> list[Path]:
    """Clips and pictures below a part of the data folder; [] where there is no such part."""
    sliced = re.fullmatch(r"(.*)\[(\d*):(\d*)\]", part)
    name, low, high = (sliced[1], sliced[2], sliced[3]) if sliced else (part, "", "")
    if not (root / name).is_dir():
        return []
    files = [path for path in sorted((root / name).rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES | PICTURE_SUFFIXES]
    return files[int(low or 0) : int(high) if high else None]


@dataclass
class CropSampler:
    """Random crops of consecutive frames.

    Args:
        corpus: what to draw from; every clip is equally likely. size: side of the crops, their height where ``aspect``, width
            over height, is not 1: such crops stay upright. frames: consecutive frames of a
            crop; a picture shorter than that is set in motion by the scene renderer. batch: examples. seed: of everything
            drawn here. min_scale: pictures are shrunk by a factor drawn log-uniformly from [min_scale, 1], area-averaged.
        mosaic: an example is a square of mosaic x mosaic crops, side ``mosaic * size``. Power is shared out over a whole
            picture, and a picture is more varied than a crop: a code trained on single crops never learns to share.
    """

    corpus: Corpus
    size: int = 128
    frames: int = 1
    batch: int = 16
    seed: int = 0
    min_scale: float = 0.5
    mosaic: int = 1
    aspect: float = 1.0

    def batch_at(self, step: int) -> Tensor:
        """(B, t, 3, S, S) float32 in [0, 1], S = mosaic * size: a function of the seed and ``step`` alone."""
        rng, generator = randomness("crops", self.seed, step)
        return torch.stack([self._example(rng, generator) for _ in range(self.batch)])

    def __iter__(self) -> Iterator[Tensor]:
        """Yield such batches forever, one stream of draws; who may be interrupted asks :meth:`batch_at`."""
        rng = random.Random(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.stack([self._example(rng, generator) for _ in range(self.batch)])

    def _example(self, rng: random.Random, generator: torch.Generator) -> Tensor:
        rows = [torch.cat([self._draw(rng, generator) for _ in range(self.mosaic)], -1) for _ in range(self.mosaic)]
        return torch.cat(rows, -2)

    def _draw(self, rng: random.Random, generator: torch.Generator) -> Tensor:
        clip = rng.choice(self.corpus.clips)
        t, height, width, _ = clip.shape
        size = self.size, round(self.size * self.aspect)
        scale = max(self.min_scale ** rng.random(), (size[0] + 1) / height, (size[1] + 1) / width)
        rows, columns = min(round(size[0] / scale), height), min(round(size[1] / scale), width)
        top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
        window = (slice(top, top + rows), slice(left, left + columns))
        if t >= self.frames:
            first = rng.randint(0, t - self.frames)
            piece = clip[first : first + self.frames, window[0], window[1]]
            crop = torch.from_numpy(np.ascontiguousarray(piece)).movedim(-1, 1).float() / 255
            if (rows, columns) != size:
                crop = F.interpolate(crop, size=size, mode="bilinear", antialias=True, align_corners=False)
        else:
            from semcast.video.scenes import render_from_photo

            photo = torch.from_numpy(np.ascontiguousarray(clip[rng.randrange(t)])).movedim(-1, 0).float() / 255
            crop, _ = render_from_photo(photo, size, self.frames, rng.choice(MOTIONS), generator)
        if rng.random() < 0.5:
            crop = crop.flip(-1)
        if self.frames == 1 and self.aspect == 1 and rng.random() < 0.5:
            crop = crop.transpose(-1, -2)
        return crop


MOTIONS = ("pan", "zoom", "rotate", "shake")


def randomness(*key: str | int) -> tuple[random.Random, torch.Generator]:
    """Two generators that depend on ``key`` alone, on every machine."""
    rng = random.Random("/".join(map(str, key)))
    return rng, torch.Generator().manual_seed(rng.getrandbits(63))
