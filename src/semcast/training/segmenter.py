"""Training of the receiver's segmenter: labelled pictures instead of a link, in the one loop.

``Stage.size`` is the height of the windows; they are four thirds as wide, as CamVid's pictures are. ``Stage.options``:
``max_scale`` of the random scale (1.25), ``weight_offset`` (1.1): a class of share p weighs 1 / log(offset + p).

There are few labelled pictures. So the encoder starts from SqueezeNet 1.1 as ImageNet has taught it, and learns at ``TRUNK_LR``
of the rate of what follows it, which starts from random weights.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from semcast.errors import InputError, WeightsError
from semcast.goals.segment import bootstrapped_cross_entropy
from semcast.goals.segmenter import CLASSES, Segmenter, predict
from semcast.metrics.perceptual import WEIGHTS_ENV, WEIGHTS_NAME, find_squeezenet, load_squeezenet
from semcast.metrics.task import MeanIou
from semcast.training.labelled import LabelledCorpus, LabelledSampler
from semcast.training.loop import Work
from semcast.training.schedule import Schedule, Stage
from semcast.video.datasets import CAMVID_IGNORE

OPTIONS = {"max_scale": 1.25, "weight_offset": 1.1}
TRUNK_LR = 0.15  # of the learning rate, for the encoder


def trunk_weights() -> Path:
    """The file that the encoder starts from.

    Raises:
        WeightsError: it is not to be found.
    """
    path = find_squeezenet()
    if path is None:
        raise WeightsError(f"the segmenter starts from SqueezeNet 1.1; point ${WEIGHTS_ENV} at {WEIGHTS_NAME}")
    return path


class SegmentationLoss(nn.Module):
    """One batch of labelled pictures -> losses.

    Args:
        model: the segmenter. shares: (classes,) share of each class among the labelled pixels.
    """

    shares: Tensor

    def __init__(self, model: Segmenter, shares: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shares", shares, persistent=False)

    def forward(self, frames: Tensor, labels: Tensor, options: dict[str, float]) -> dict[str, Tensor]:
        """frames (B, 3, h, w), labels (B, h, w) -> ``loss``, and ``miou`` of the batch."""
        logits = self.model(frames)
        weights = 1 / torch.log(options["weight_offset"] + self.shares)
        loss = bootstrapped_cross_entropy(logits, labels, ignore_index=CAMVID_IGNORE, weights=weights).mean()
        metric = MeanIou(len(CLASSES), CAMVID_IGNORE)
        metric.update(labels.cpu(), logits.detach().argmax(1).cpu())
        return {"loss": loss, "miou": torch.tensor(metric.clip() or 0.0)}


class SegmenterWork(Work):
    """The segmenter on random windows of labelled pictures; mIoU on those held out, at their own size.

    Args:
        model: with fresh weights. corpus: pictures and labels. schedule: stages and seed. trunk: weights of SqueezeNet 1.1 that
            the encoder starts from; None leaves it as it is.

    Raises:
        InputError: an option of a stage that there is none of. WeightsError: the file is no SqueezeNet 1.1.
    """

    score: ClassVar[str] = "miou"
    held_out: str = "the last 8 % of every drive of the training pictures, at their own size"

    def __init__(self, model: Segmenter, corpus: LabelledCorpus, schedule: Schedule, trunk: Path | None = None) -> None:
        for stage in schedule.stages:
            for key in stage.options:
                if key not in OPTIONS:
                    near = difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.0)
                    raise InputError(f"stage {stage.name!r}: the segmenter has no option {key!r}; did you mean {near[0]!r}?")
        self.model = self.segmenter = model
        self.kept, self.held = corpus.split()
        self.seed = schedule.seed
        if trunk is not None:
            model.features.load_state_dict(load_squeezenet(trunk).state_dict())
        self.exchange = SegmentationLoss(model, self.kept.class_shares(len(CLASSES)))

    def enter(self, stage: Stage, rank: int) -> None:
        """Windows as the stage has them."""
        self.options = {**OPTIONS, **stage.options}
        self.sampler = LabelledSampler(
            self.kept, stage.size, stage.size * 4 // 3, stage.batch, self.seed + 7919 * rank, stage.min_scale,
            self.options["max_scale"],
        )  # fmt: skip

    def batch(self, step: int) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Pictures, labels, and what weighs in the loss."""
        return *self.sampler.batch_at(step), self.options

    def validate(self) -> float:
        """mIoU over all pictures held out."""
        self.segmenter.eval()
        metric = MeanIou(len(CLASSES), CAMVID_IGNORE)
        device = next(self.segmenter.parameters()).device
        for picture, labels in zip(self.held.pictures, self.held.labels, strict=True):
            frame = torch.from_numpy(picture).movedim(-1, 0)[None].float().to(device) / 255
            metric.update(torch.from_numpy(labels)[None].long(), predict(self.segmenter, frame).cpu())
        self.segmenter.train()
        return metric.clip() or 0.0

    def lr_scale(self, parameter: str) -> float:
        """Less for the encoder: it shall keep what it knows."""
        return TRUNK_LR if parameter.startswith("features.") else 1.0
