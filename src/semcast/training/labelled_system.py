"""A system on crops of labelled pictures: one that sends maps needs to see them, and its rivals should see the same crops."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semcast.link import Link
from semcast.systems.base import System
from semcast.training.data import Corpus
from semcast.training.labelled import LabelledCorpus, LabelledSampler
from semcast.training.loop import VALIDATION_EXAMPLES, SystemWork, validate
from semcast.training.schedule import Schedule, Stage

STATISTICS_PICTURES = 70  # that closed forms are fitted to, at most


@dataclass
class WindowSampler(LabelledSampler):
    """Windows of labelled pictures as they are: neither scaled nor coloured nor spoiled, since a code has to show them so."""

    def _draw(self, rng: random.Random, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = rng.randrange(len(self.corpus.pictures))
        picture, labels = self.corpus.pictures[index], self.corpus.labels[index]
        top, left = rng.randint(0, labels.shape[0] - self.height), rng.randint(0, labels.shape[1] - self.width)
        window = (slice(top, top + self.height), slice(left, left + self.width))
        crop = torch.from_numpy(np.ascontiguousarray(picture[window])).movedim(-1, 0).float() / 255
        truth = torch.from_numpy(labels[window].astype(np.int64))
        return (crop.flip(-1), truth.flip(-1)) if rng.random() < 0.5 else (crop, truth)


class LabelledSystemWork(SystemWork):
    """As :class:`SystemWork`, with labels; who sends maps sends the true ones.

    Args:
        system: with fresh weights; its ``initialise`` takes pictures (N, 3, H, W) and the labels (P, H, W) of at least these.
        corpus: what to train on; the end of every drive is held out. schedule: stages and seed, the size of pictures too.
    """

    def __init__(self, system: System, corpus: LabelledCorpus, schedule: Schedule) -> None:
        self.pictures, held = corpus.split()
        super().__init__(system, Corpus([picture[None] for picture in held.pictures], corpus.sources), schedule)
        self.held_out = "the last 8 % of every drive" + self.held_out.removeprefix("held-out clips")
        size = self.first.size
        self.held_crops, self.held_labels = WindowSampler(held, size, size, VALIDATION_EXAMPLES, seed=5).batch_at(0)
        if system.maps:
            system.maps = "truth"

    def initialise(self) -> None:
        if self.start:  # weights to begin with need no statistics
            super().initialise()
            return
        pictures, labels = self.pictures.pictures, self.pictures.labels
        stride = max(1, len(pictures) // STATISTICS_PICTURES)
        order = [*range(0, len(pictures), stride), *(i for i in range(len(pictures)) if i % stride)]
        taken = [torch.from_numpy(pictures[i]).movedim(-1, 0).float() / 255 for i in order[: -(-len(pictures) // stride)]]
        initialise: Any = self.system.initialise
        initialise(torch.stack(taken), torch.stack([torch.from_numpy(labels[i]).long() for i in order]))

    def enter(self, stage: Stage, rank: int) -> None:
        super().enter(stage, rank)
        seed = self.seed + 7919 * rank
        self.windows = WindowSampler(self.pictures, stage.size, stage.size, stage.batch, seed)

    def batch(self, step: int) -> tuple[Tensor, Link, Stage, float, torch.Generator, Tensor]:  # type: ignore[override]
        """Crops, a link set to what was drawn for them, and their labels."""
        frames, labels = self.windows.batch_at(step)
        return frames[:, None], *self.air(step), labels[:, None]

    def validate(self) -> float:
        return validate(self.system, self.held_crops[:, None], self.held_labels[:, None], cbr=self.cbr)
