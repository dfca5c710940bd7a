"""What a metric is, and the set of them that runs beside the loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from semcast.errors import ContractError, InputError
from semcast.metrics import METRICS
from semcast.types import Decoded, Step


class Metric(ABC):
    """One streaming measure of one clip: feed it as frames arrive, read it at the end.

    Attributes:
        inputs: what ``update`` takes: ``"frames"`` (t, 3, H, W) in [0, 1], ``"labels"`` (t, H, W) int64, or ``"scores"``.
        unit: ``"dB"`` or ``""``. higher_is_better: direction. convention: one sentence that fixes what is computed.
        unavailable: why the metric yields nothing here, or None.
    """

    inputs: ClassVar[Literal["frames", "labels", "scores"]] = "frames"
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    convention: ClassVar[str] = ""

    def __init__(self) -> None:
        self.unavailable: str | None = None
        self.values: list[float] = []

    @abstractmethod
    def update(self, reference: Tensor, received: Tensor) -> None:
        """Take the next frames, labels or scores of the clip."""

    def per_frame(self) -> list[float]:
        """Values so far, one per frame; empty where the metric has none."""
        return list(self.values)

    def clip(self) -> float | None:
        """Value of the whole clip, or None without data; the mean over frames unless the class says otherwise."""
        return math.fsum(self.values) / len(self.values) if self.values else None

    def close(self) -> None:  # noqa: B027  most metrics hold nothing
        """Release what the metric holds outside Python; safe to call twice."""


class FrameMetric(Metric):
    """A metric that is a function of one frame pair; ``frame_values`` is differentiable."""

    @staticmethod
    @abstractmethod
    def frame_values(reference: Tensor, received: Tensor) -> Tensor:
        """(t, 3, H, W), (t, 3, H, W) in [0, 1] -> (t,)."""

    @torch.no_grad()
    def update(self, reference: Tensor, received: Tensor) -> None:
        """Append the values of (t, 3, H, W) frames; one frame at a time, which is faster in cache and bounds memory."""
        for i in range(reference.shape[0]):
            self.values += self.frame_values(reference[i : i + 1], received[i : i + 1]).tolist()


class MetricSet:
    """Several metrics over one clip, fed as the loop runs; memory is constant but for one number per frame and metric.

    Args:
        names: names in ``METRICS``. classes: number of classes where ``miou`` or ``pixel_accuracy`` is asked for.
        ignore_index: label that counts for nothing (CamVid: 11).

    Raises:
        UnknownNameError: a name that is no metric. InputError: ``miou`` or ``pixel_accuracy`` without ``classes``.
    """

    def __init__(self, names: Sequence[str], *, classes: int | None = None, ignore_index: int | None = None) -> None:
        self.metrics: dict[str, Metric] = {}
        for name in names:
            kind = METRICS.get(name)
            if kind.inputs == "labels":
                if classes is None:
                    raise InputError(f"metric {name!r} needs the number of classes; say classes=N, or leave the metric out")
                from semcast.metrics.task import LabelMetric

                assert issubclass(kind, LabelMetric)
                self.metrics[name] = kind(classes, ignore_index)
            else:
                self.metrics[name] = kind()

    def update(self, reference: Tensor, received: Tensor) -> None:
        """Feed the frame metrics with (t, 3, H, W) float RGB; values are clamped to [0, 1], not rounded to 8 bits.

        Raises:
            ContractError: shapes differ, or a received value is not finite.
        """
        if reference.dim() != 4 or reference.shape[1] != 3 or reference.shape != received.shape:
            raise ContractError(
                f"metrics take two (t, 3, H, W) tensors of one shape, got {tuple(reference.shape)} and {tuple(received.shape)}"
            )
        if not bool(torch.isfinite(received).all()):
            raise ContractError("a received frame holds values that are not finite; the decoder must conceal, not return NaN")
        reference, received = (x.detach().float().clamp(0, 1) for x in (reference, received))
        self._feed("frames", reference, received)

    def update_labels(self, truth: Tensor, predicted: Tensor) -> None:
        """Feed the label metrics with (t, H, W) int64."""
        self._feed("labels", truth, predicted)

    def update_scores(self, truth: Tensor, scores: Tensor) -> None:
        """Feed ``top1`` with true classes (B,) int64 and scores (B, classes)."""
        self._feed("scores", truth, scores)

    def update_step(self, step: Step, decoded: Decoded) -> None:
        """Feed everything that one turn of the loop offers; batch elements are taken one after the other."""
        if decoded.frames is not None:
            for reference, received in zip(step.frames, decoded.frames, strict=True):
                self.update(reference, received)
        if decoded.labels is not None and "segmentation" in step.labels:
            for truth, predicted in zip(step.labels["segmentation"], decoded.labels, strict=True):
                self.update_labels(truth, predicted)
        if decoded.scores is not None and "action" in step.labels:
            self.update_scores(step.labels["action"], decoded.scores)

    def _feed(self, inputs: str, reference: Tensor, received: Tensor) -> None:
        for metric in self.metrics.values():
            if metric.inputs == inputs and metric.unavailable is None:
                metric.update(reference, received)

    def per_frame(self) -> dict[str, list[float]]:
        """Name -> one value per frame, for the metrics that have values per frame."""
        lists = {name: metric.per_frame() for name, metric in self.metrics.items()}
        return {name: values for name, values in lists.items() if values}

    def compute(self) -> dict[str, float | None]:
        """Name -> value of the clip; None where the metric is unavailable or got no data."""
        return {name: metric.clip() for name, metric in self.metrics.items()}

    def label_counts(self) -> dict[str, list[int]]:
        """Pixels per class behind the metrics on labels: ``hits``, ``truth``, ``predicted``; {} without such a metric or data.

        Sums of these over clips give the mIoU of a whole data set, which is not the mean of the clips' own.
        """
        from semcast.metrics.task import LabelMetric

        for metric in self.metrics.values():
            if isinstance(metric, LabelMetric) and int(metric.confusion.sum()):
                return metric.counts()
        return {}

    def unavailable(self) -> dict[str, str]:
        """Name -> why it yields nothing here."""
        return {name: metric.unavailable for name, metric in self.metrics.items() if metric.unavailable}

    def close(self) -> None:
        """Release processes and files of metrics that hold some."""
        for metric in self.metrics.values():
            metric.close()
