"""What a machine reads from the received video: labels per pixel, a class per clip."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semcast.errors import ContractError
from semcast.metrics.base import Metric


class LabelMetric(Metric):
    """A metric of the confusion matrix over all pixels of the clip.

    Args:
        classes: number of classes; valid labels are 0 to classes - 1. ignore_index: true label that counts for nothing.
    """

    inputs: ClassVar[Literal["frames", "labels", "scores"]] = "labels"

    def __init__(self, classes: int, ignore_index: int | None = None) -> None:
        super().__init__()
        self.classes, self.ignore_index = classes, ignore_index
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)

    def update(self, reference: Tensor, received: Tensor) -> None:
        """Take true and predicted labels, both (t, H, W) int64.

        Raises:
            ContractError: shapes differ, or a label is outside the classes.
        """
        if reference.shape != received.shape:
            raise ContractError(f"label maps differ in shape: {tuple(reference.shape)} and {tuple(received.shape)}")
        for truth, predicted in zip(reference, received, strict=True):
            keep = torch.ones_like(truth, dtype=torch.bool) if self.ignore_index is None else truth != self.ignore_index
            truth, predicted = truth[keep], predicted[keep]
            if truth.numel() and not min(int(truth.min()), int(predicted.min())) >= 0:
                raise ContractError("a label is negative; mark unknown pixels with the ignore index")
            if truth.numel() and max(int(truth.max()), int(predicted.max())) >= self.classes:
                raise ContractError(f"a label is outside 0 to {self.classes - 1}; say the right number of classes")
            frame = torch.bincount(truth * self.classes + predicted, minlength=self.classes**2).reshape(self.classes, -1).cpu()
            self.confusion += frame
            if truth.numel():
                self.values.append(self.of_confusion(frame))

    def clip(self) -> float | None:
        """Value over all pixels of the clip, or None without data."""
        return self.of_confusion(self.confusion) if int(self.confusion.sum()) else None

    def counts(self) -> dict[str, list[int]]:
        """Pixels per class: ``hits`` (labelled right), ``truth`` and ``predicted``."""
        parts = {"hits": self.confusion.diagonal(), "truth": self.confusion.sum(1), "predicted": self.confusion.sum(0)}
        return {name: part.tolist() for name, part in parts.items()}

    @staticmethod
    @abstractmethod
    def of_confusion(confusion: Tensor) -> float:
        """Value of a (truth, prediction) matrix of pixel counts."""


class MeanIou(LabelMetric):
    """Mean intersection over union."""

    convention: ClassVar[str] = (
        "intersection over union from the confusion matrix of all pixels of the clip, mean over the classes "
        "that occur in truth or prediction"
    )

    @staticmethod
    def of_confusion(confusion: Tensor) -> float:
        """Mean over occurring classes of TP / (TP + FP + FN)."""
        hits = confusion.diagonal().double()
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        return float((hits[union > 0] / union[union > 0]).mean())


class PixelAccuracy(LabelMetric):
    """Share of pixels that carry the right label."""

    convention: ClassVar[str] = "share of labelled pixels of the clip whose label is right"

    @staticmethod
    def of_confusion(confusion: Tensor) -> float:
        """Trace over sum."""
        return float(confusion.diagonal().sum() / confusion.sum())


class Top1(Metric):
    """Share of clips whose highest score belongs to the true class."""

    inputs: ClassVar[Literal["frames", "labels", "scores"]] = "scores"
    convention: ClassVar[str] = "1 if the highest score of the clip is that of its true class, else 0; mean over clips"

    def __init__(self) -> None:
        super().__init__()
        self.right = self.total = 0

    def update(self, reference: Tensor, received: Tensor) -> None:
        """Take true classes (B,) int64 and scores (B, classes)."""
        if received.dim() != 2 or reference.shape != received.shape[:1]:
            raise ContractError(f"top1 takes (B,) and (B, classes), got {tuple(reference.shape)} and {tuple(received.shape)}")
        self.right += int((received.argmax(1) == reference).sum())
        self.total += reference.shape[0]

    def clip(self) -> float | None:
        """Share of right clips, or None without data."""
        return self.right / self.total if self.total else None
