"""Training of the receiver's segmenter: labelled pictures instead of a link, in the one loop.

``Stage.size`` is the height of the crops; they are four thirds as wide, as CamVid's pictures are. ``Stage.options``:
``max_scale`` of the random scale (1.25), ``weight_offset`` (1.1): a class of share p weighs 1 / log(offset + p), ``guide`` (0):
weight of the guidance below.

**Guidance.** There are few labelled pictures. A network that has seen many serves as a perceptual loss: two places that look
alike to SqueezeNet shall look alike to ours, and two that differ, differ (the similarity of features at 1/16, after Tung and
Mori 2019). Nothing of SqueezeNet enters the weights that are saved.
"""

from __future__ import annotations

import difflib
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import InputError, WeightsError
from semcast.goals.segment import bootstrapped_cross_entropy
from semcast.goals.segmenter import CLASSES, Segmenter, predict
from semcast.metrics.perceptual import WEIGHTS_ENV, WEIGHTS_NAME, Lpips, find_squeezenet, load_lpips
from semcast.metrics.task import MeanIou
from semcast.training.labelled import LabelledCorpus, LabelledSampler
from semcast.training.loop import Work
from semcast.training.schedule import Schedule, Stage
from semcast.video.datasets import CAMVID_IGNORE

OPTIONS = {"max_scale": 1.25, "weight_offset": 1.1, "guide": 0.0}


class SegmentationLoss(nn.Module):
    """One batch of labelled pictures -> losses.

    Args:
        model: the segmenter. shares: (classes,) share of each class among the labelled pixels. guided: whether some stage is.

    Raises:
        WeightsError: guided, and SqueezeNet is not to be found.
    """

    shares: Tensor

    def __init__(self, model: Segmenter, shares: Tensor, *, guided: bool) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("shares", shares, persistent=False)
        self.guide: Lpips | None = None
        if guided:
            path = find_squeezenet()
            if path is None:
                raise WeightsError(f"this schedule is guided by SqueezeNet 1.1; point ${WEIGHTS_ENV} at {WEIGHTS_NAME}")
            self.guide = load_lpips(path)

    def forward(self, frames: Tensor, labels: Tensor, options: dict[str, float]) -> dict[str, Tensor]:
        """frames (B, 3, h, w), labels (B, h, w) -> ``loss``, and ``miou`` of the batch."""
        quarter, eighth, deep = self.model.encode(frames)
        logits = self.model.decode(quarter, eighth, deep)[..., : frames.shape[-2], : frames.shape[-1]]
        weights = 1 / torch.log(options["weight_offset"] + self.shares)
        loss = bootstrapped_cross_entropy(logits, labels, ignore_index=CAMVID_IGNORE, weights=weights).mean()
        metric = MeanIou(len(CLASSES), CAMVID_IGNORE)
        metric.update(labels.cpu(), logits.detach().argmax(1).cpu())
        losses = {"miou": torch.tensor(metric.clip() or 0.0)}
        if self.guide is not None and options["guide"]:
            with torch.no_grad():
                seen = self.guide.features((2 * frames - 1 - self.guide.shift) / self.guide.scale)
            losses["guidance"] = dissimilarity(deep, seen)
            loss = loss + options["guide"] * losses["guidance"]
        return {"loss": loss, **losses}


def dissimilarity(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared difference of the cosine similarities of places, over all pictures of a batch.

    Args:
        ours: (B, C, h, w). theirs: (B, C', h', w'); brought to the other's grid, every other place of which is looked at.
    """
    theirs = F.interpolate(theirs, ours.shape[-2:], mode="bilinear", align_corners=False)
    return F.mse_loss(_alike(ours), _alike(theirs))


def _alike(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (P, P) cosine similarities of P places, about their mean."""
    places = features[..., ::2, ::2].movedim(1, -1).flatten(0, 2)
    places = F.normalize(places - places.mean(0, keepdim=True), dim=1)
    return places @ places.T


class SegmenterWork(Work):
    """The segmenter on random windows of labelled pictures; mIoU on those held out, at their own size.

    Args:
        model: with fresh weights. corpus: pictures and labels. schedule: stages and seed.

    Raises:
        InputError: an option of a stage that there is none of.
    """

    score: ClassVar[str] = "miou"
    held_out: str = "the last 8 % of every drive of the training pictures, at their own size"

    def __init__(self, model: Segmenter, corpus: LabelledCorpus, schedule: Schedule) -> None:
        for stage in schedule.stages:
            for key in stage.options:
                if key not in OPTIONS:
                    near = difflib.get_close_matches(key, OPTIONS, n=1, cutoff=0.0)
                    raise InputError(f"stage {stage.name!r}: the segmenter has no option {key!r}; did you mean {near[0]!r}?")
        self.model = self.segmenter = model
        self.kept, self.held = corpus.split()
        self.seed = schedule.seed
        guided = any(stage.options.get("guide") for stage in schedule.stages)
        self.exchange = SegmentationLoss(model, self.kept.class_shares(len(CLASSES)), guided=guided)

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
