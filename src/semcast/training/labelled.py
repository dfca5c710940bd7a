"""Street pictures with their labels: decoded once, then cropped, scaled, coloured and spoiled at random.

A data folder is CamVid's: ``train/``, ``train_labels/`` and so on; ``Schedule.parts`` names the parts, a slice included
(``val[:50]``).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from semcast.training.data import randomness
from semcast.video.datasets import camvid

HELD_SHARE = 0.08
SPOILED = 0.35  # of the examples are blurred or noisy, since what a receiver gets may be


@dataclass(frozen=True)
class LabelledCorpus:
    """Pictures (H, W, 3) uint8, labels (H, W) uint8, names (``part/drive_number``), and the parts they came from."""

    pictures: list[NDArray[np.uint8]]
    labels: list[NDArray[np.uint8]]
    names: list[str]
    sources: tuple[str, ...]

    @property
    def megabytes(self) -> float:
        """Memory held by pictures and labels."""
        return sum(array.nbytes for array in [*self.pictures, *self.labels]) / 1e6

    def take(self, indices: list[int]) -> LabelledCorpus:
        """The examples with these indices."""
        pictures, labels = ([held[i] for i in indices] for held in (self.pictures, self.labels))
        return LabelledCorpus(pictures, labels, [self.names[i] for i in indices], self.sources)

    def split(self) -> tuple[LabelledCorpus, LabelledCorpus]:
        """What to train on, and what is held out: the last 8 % of every drive, so that neighbours in time stay together."""
        drives: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.names):
            drives[name.partition("_")[0]].append(index)
        held = {i for members in drives.values() for i in members[len(members) - math.floor(HELD_SHARE * len(members)) :]}
        held = held or {len(self.names) - 1}
        kept = [i for i in range(len(self.names)) if i not in held] or sorted(held)
        return self.take(kept), self.take(sorted(held))

    def class_shares(self, classes: int) -> Tensor:
        """(classes,) share of each class among the labelled pixels."""
        counts = sum(np.bincount(labels.reshape(-1), minlength=256)[:classes] for labels in self.labels)
        return torch.as_tensor(counts / max(int(np.sum(counts)), 1), dtype=torch.float32)


def load_labelled(
    folder: str | Path, *, parts: tuple[str, ...], progress: Callable[[int, int], None] | None = None
) -> LabelledCorpus:
    """Decode the ``parts`` of the data folder.

    Raises:
        VideoError: no such folder, or not CamVid's layout.
    """
    clips = [
        (f"{part}/{clip.name}", clip)
        for part in parts
        for clip in camvid(f"{folder}/{part}", size=None, fps=None, stills=True, max_frames=None)
    ]
    pictures, labels = [], []
    for index, (_, clip) in enumerate(clips):
        (frame, truth), *_ = clip.labelled_frames()
        pictures.append(frame.movedim(0, -1).mul(255).round().to(torch.uint8).numpy())
        labels.append(truth["segmentation"].to(torch.uint8).numpy())
        if progress:
            progress(index + 1, len(clips))
    return LabelledCorpus(pictures, labels, [name for name, _ in clips], parts)


@dataclass
class LabelledSampler:
    """Random windows of labelled pictures, scaled to one size.

    Args:
        corpus: every picture is equally likely. height, width: of what comes out. batch: examples. seed: of all that is drawn.
        min_scale, max_scale: range of the scale, drawn log-uniformly. A window that would be larger than its picture is the
            whole picture, or as much of it as has the right shape.
    """

    corpus: LabelledCorpus
    height: int
    width: int
    batch: int = 8
    seed: int = 0
    min_scale: float = 0.5
    max_scale: float = 1.25

    def batch_at(self, step: int) -> tuple[Tensor, Tensor]:
        """((B, 3, h, w) float32 in [0, 1], (B, h, w) int64): a function of the seed and ``step`` alone."""
        rng, generator = randomness("labelled", self.seed, step)
        drawn = [self._draw(rng, generator) for _ in range(self.batch)]
        return torch.stack([picture for picture, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def _draw(self, rng: random.Random, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = rng.randrange(len(self.corpus.pictures))
        picture, labels = self.corpus.pictures[index], self.corpus.labels[index]
        height, width = labels.shape
        scale = self.min_scale * (self.max_scale / self.min_scale) ** rng.random()
        scale = max(scale, self.height / height, self.width / width)
        rows, columns = min(height, round(self.height / scale)), min(width, round(self.width / scale))
        top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
        window = (slice(top, top + rows), slice(left, left + columns))
        flip = rng.random() < 0.5
        crop = _scaled(picture[window], self.height, self.width)
        truth = torch.from_numpy(_nearest(labels[window], self.height, self.width).astype(np.int64))
        if flip:
            crop, truth = crop.flip(-1), truth.flip(-1)
        crop = _coloured(crop, rng)
        if rng.random() < SPOILED:
            crop = _spoiled(crop, rng, generator)
        return crop.clamp(0, 1), truth


def _scaled(picture: NDArray[np.uint8], height: int, width: int) -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) in [0, 1]."""
    frame = torch.from_numpy(np.ascontiguousarray(picture)).movedim(-1, 0)[None].float() / 255
    if frame.shape[-2:] != (height, width):
        frame = F.interpolate(frame, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return frame[0]


def _nearest(labels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The label at the middle of every pixel."""
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return labels[rows[:, None], columns]


def _coloured(crop: Tensor, rng: random.Random) -> Tensor:
    """Another light: gamma, contrast, saturation, brightness, a tint."""
    crop = crop.clamp(1e-4, 1) ** math.exp(rng.uniform(-0.45, 0.45))
    grey = crop.mean(0, keepdim=True)
    crop = grey + (crop - grey) * rng.uniform(0.4, 1.6)
    tint = torch.tensor([rng.uniform(0.88, 1.12) for _ in range(3)]).view(3, 1, 1)
    return (crop - 0.45) * rng.uniform(0.7, 1.3) * tint + 0.45 + rng.uniform(-0.1, 0.1)


def _spoiled(crop: Tensor, rng: random.Random, generator: torch.Generator) -> Tensor:
    """As a weak link leaves it: blurred by up to 2.5 pixels, or noisy by up to 6 % of white."""
    if rng.random() < 0.5:
        height, width = crop.shape[-2:]
        factor = rng.uniform(1.2, 2.5)
        small = F.interpolate(
            crop[None], (round(height / factor), round(width / factor)), mode="bilinear", antialias=True, align_corners=False
        )
        return F.interpolate(small, (height, width), mode="bilinear", align_corners=False)[0]
    return crop + rng.uniform(0.01, 0.06) * torch.randn(crop.shape, generator=generator)
