"""A system on groups of labelled frames: pieces of drives, and labelled pictures set in motion, whose flow is known exactly."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semcast.errors import InputError
from semcast.layers.motion import dense_flow
from semcast.link import Link
from semcast.systems.base import System
from semcast.training.data import Corpus, randomness
from semcast.training.labelled import LabelledCorpus
from semcast.training.loop import SystemWork, validate
from semcast.training.schedule import Schedule, Stage
from semcast.video.render import sample, similarity, transform

HELD_FRAMES = 10  # of every drive, at its end
VALIDATION_EXAMPLES = 6
FITTED_ON = 48  # groups that tables are counted in
NUMBERS_APART = 3  # of neighbours in a drive, at most
THINGS = (2, 6, 8, 9, 10)  # classes that move across others: pole, sign, car, pedestrian, bicyclist
UNKNOWN = 11


def drives(corpus: LabelledCorpus) -> list[list[int]]:
    """Indices of pictures that follow each other, drive by drive; a single picture is none."""
    runs: list[list[int]] = [[]]
    last = ("", 0)
    for index, name in enumerate(corpus.names):
        drive, number = re.sub(r"\d+$", "", name), int((re.search(r"(\d+)$", name) or ["0"])[0])
        if drive != last[0] or not 0 < number - last[1] <= NUMBERS_APART:
            runs.append([])
        runs[-1].append(index)
        last = (drive, number)
    return [run for run in runs if len(run) > 1]


def _floats(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).movedim(-1, 0).float() / 255


@dataclass
class GroupSampler:
    """Random windows of ``frames`` frames in a row, side ``size``, with labels and flow.

    Args:
        corpus: pictures and labels. runs: indices of pictures that follow each other. frames, size, batch: of what comes out.
        rendered: share of examples that are pictures set in motion. seed: of all that is drawn.
    """

    corpus: LabelledCorpus
    runs: list[list[int]]
    frames: int
    size: int
    batch: int
    rendered: float = 0.5
    seed: int = 0
    stills: list[int] = field(default_factory=list)

    def batch_at(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, t, 3, S, S), labels (B, t, S, S), flow (B, t, 2, S, S) from the frame before: a function of seed and step alone.

        Flow is exact where pictures are set in motion, and estimated (DIS) in drives.
        """
        rng, generator = randomness("groups", self.seed, step)
        drawn = [
            self._render(rng, generator) if not self.runs or rng.random() < self.rendered else self._drive(rng)
            for _ in range(self.batch)
        ]
        return torch.stack([d[0] for d in drawn]), torch.stack([d[1] for d in drawn]), torch.stack([d[2] for d in drawn])

    def _window(self, rng: random.Random, height: int, width: int) -> tuple[slice, slice]:
        if min(height, width) < self.size:
            raise InputError(f"pictures of {width}x{height} are smaller than the crops of {self.size} pixels")
        top, left = rng.randint(0, height - self.size), rng.randint(0, width - self.size)
        return slice(top, top + self.size), slice(left, left + self.size)

    def _drive(self, rng: random.Random) -> tuple[Tensor, Tensor, Tensor]:
        """A piece of a drive, mirrored or not, now and then backwards."""
        run = rng.choice(self.runs)
        first = rng.randint(0, len(run) - self.frames)
        picked = run[first : first + self.frames]
        if rng.random() < 0.25:
            picked = picked[::-1]
        window = self._window(rng, *self.corpus.labels[picked[0]].shape)
        frames = torch.stack([_floats(self.corpus.pictures[i][window]) for i in picked])
        labels = torch.stack([torch.from_numpy(self.corpus.labels[i][window].astype(np.int64)) for i in picked])
        if rng.random() < 0.5:
            frames, labels = frames.flip(-1), labels.flip(-1)
        flow = torch.cat([torch.zeros_like(frames[:1, :2]), -dense_flow(frames[1:], frames[:-1])])
        return frames, labels, flow

    def _render(self, rng: random.Random, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A picture that a camera moves over, and as often as not a thing of another picture that moves across it."""
        picture, labels = self._picked(rng)
        matrices = self._path(rng, (picture.shape[-1], picture.shape[-2]))
        box = (0, 0, self.size, self.size)
        frames, found, flows = [], [], []
        thing = self._thing(rng) if rng.random() < 0.5 else None
        moves = self._path(rng, (self.size, self.size))
        here = transform(similarity(), box)
        for t, matrix in enumerate(matrices):
            points = transform(matrix, box)
            frame = sample(picture, points, "reflection")
            classes = sample(_one_hot(labels), points, "reflection").argmax(0)
            back = transform(torch.linalg.inv(matrices[max(t - 1, 0)]) @ matrix, box)
            flow = (here - back).permute(2, 0, 1)
            if thing is not None:
                layer = sample(thing[0], transform(moves[t], box))
                frame = frame * (1 - layer[3]) + layer[:3]
                own = transform(torch.linalg.inv(moves[max(t - 1, 0)]) @ moves[t], box)
                flow = torch.where(layer[3] > 0.5, (here - own).permute(2, 0, 1), flow)
                classes = torch.where(layer[3] > 0.5, thing[1], classes)
            frames.append(frame.clamp(0, 1))
            found.append(classes)
            flows.append(flow)
        return torch.stack(frames), torch.stack(found), torch.stack(flows)

    def _picked(self, rng: random.Random) -> tuple[Tensor, Tensor]:
        index = rng.choice(self.stills or range(len(self.corpus.pictures)))
        return _floats(self.corpus.pictures[index]), torch.from_numpy(self.corpus.labels[index].astype(np.int64))

    def _path(self, rng: random.Random, size: tuple[int, int]) -> list[Tensor]:
        """Where the pixels of a window are in a picture of this size, frame by frame: it drifts, turns and comes closer."""
        half = (self.size - 1) / 2
        room = [max((side - self.size) / 2, 0) for side in size]
        at = [(side - 1) / 2 + rng.uniform(-1, 1) * limit for side, limit in zip(size, room, strict=True)]
        speed = 6 * rng.random() ** 2
        heading = rng.uniform(0, 2 * math.pi)
        growth, turn = rng.gauss(0, 0.012), rng.gauss(0, 0.004)
        focus = [rng.uniform(-1, 1) * half for _ in range(2)]
        found = []
        for t in range(self.frames):
            shift = (at[0] + speed * t * math.cos(heading), at[1] + speed * t * math.sin(heading))
            zoom = similarity(math.exp(-growth * t), turn * t)
            found.append(similarity(shift=shift) @ similarity(shift=(focus[0], focus[1])) @ zoom
                         @ similarity(shift=(-focus[0] - half, -focus[1] - half)))  # fmt: skip
        return found

    def _thing(self, rng: random.Random) -> tuple[Tensor, Tensor] | None:
        """Pixels of one such class in a window of some picture, premultiplied by alpha, and alpha (4, S, S); and the class."""
        picture, labels = self._picked(rng)
        window = self._window(rng, *labels.shape)
        kind = rng.choice(THINGS)
        alpha = (labels[window] == kind).float()
        if not 0.005 < float(alpha.mean()) < 0.3:
            return None
        return torch.cat([picture[:, window[0], window[1]] * alpha, alpha[None]]), torch.tensor(kind)


def _one_hot(labels: Tensor) -> Tensor:
    """(H, W) -> (12, H, W)."""
    return torch.nn.functional.one_hot(labels.clamp(0, UNKNOWN), UNKNOWN + 1).movedim(-1, 0).float()


class LabelledGroupsWork(SystemWork):
    """As :class:`SystemWork`, of groups of frames with labels and flow; who sends maps sends the true ones.

    Args:
        system: with fresh weights; its ``initialise`` takes groups of frames (N, t, 3, H, W) and their labels (N, t, H, W).
        corpus: what to train on; the end of every drive is held out. schedule: stages and seed. ``rendered`` among a stage's
            options is the share of examples that are pictures set in motion (0.5).
    """

    def __init__(self, system: System, corpus: LabelledCorpus, schedule: Schedule) -> None:
        first = schedule.stages[0]
        runs = drives(corpus)
        held = [run[-HELD_FRAMES:] for run in runs if len(run) >= HELD_FRAMES + first.frames]
        self.runs = [run[: -HELD_FRAMES or None] for run in runs if len(run) >= HELD_FRAMES + first.frames]
        kept_out = {i for run in held for i in run}
        self.stills = [i for i in range(len(corpus.pictures)) if i not in kept_out]
        super().__init__(system, Corpus([picture[None] for picture in corpus.pictures], corpus.sources), schedule)
        self.pictures = corpus
        self.held_out = f"the last {HELD_FRAMES} frames of every drive" + self.held_out.removeprefix("held-out clips")
        sampler = GroupSampler(
            corpus, held, first.frames, first.size, VALIDATION_EXAMPLES, float(not held), seed=5, stills=self.stills
        )
        self.held_groups, self.held_labels, _ = sampler.batch_at(0)
        if system.maps:
            system.maps = "truth"

    def initialise(self) -> None:
        if self.start:
            super().initialise()
            return
        groups, labels, _ = self._sampler(self.first, FITTED_ON, self.seed + 17).batch_at(0)
        t = self.system.frames_per_step
        initialise: Any = self.system.initialise
        initialise(groups[:, :t], labels[:, :t])

    def _sampler(self, stage: Stage, batch: int, seed: int) -> GroupSampler:
        rendered = float(stage.options.get("rendered", 0.5))
        return GroupSampler(self.pictures, self.runs, stage.frames, stage.size, batch, rendered, seed, self.stills)

    def enter(self, stage: Stage, rank: int) -> None:
        super().enter(stage, rank)
        self.groups = self._sampler(stage, stage.batch, self.seed + 7919 * rank)

    def batch(self, step: int) -> tuple[Tensor, Link, Stage, float, torch.Generator, Tensor, Tensor]:  # type: ignore[override]
        """Groups, a link set to what was drawn for them, their labels and flow."""
        frames, labels, flow = self.groups.batch_at(step)
        return frames, *self.air(step), labels, flow

    def validate(self) -> float:
        return validate(self.system, self.held_groups, self.held_labels, cbr=self.cbr)
