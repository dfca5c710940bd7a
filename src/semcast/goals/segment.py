"""Segment the video: a network at the receiver labels every pixel, and the labels should be right (DVST, IV-C)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import ContractError
from semcast.goals.base import Goal
from semcast.goals.segmenter import CLASSES, predict, shipped_segmenter
from semcast.types import Decoded, Step
from semcast.video.datasets import CAMVID_IGNORE

TRUST = 0.95  # in the label; the rest is in the network's own opinion. The value of Reed et al. for soft bootstrapping


def bootstrapped_cross_entropy(logits: Tensor, truth: Tensor, *, ignore_index: int, weights: Tensor | None = None) -> Tensor:
    """Cross entropy against targets that are partly the network's own opinion; one value per picture.

    L = -sum_k [b t_k + (1 - b) q_k] log q_k (Reed et al. 2015, eq. 6), mean over the labelled pixels of a picture; 0 where
    there is none. Labels drawn by hand are off by a pixel or two along every edge, and this forgives it.

    Args:
        logits: (N, classes, H, W). truth: (N, H, W) int64. ignore_index: label of pixels that count for nothing.
        weights: (classes,) of the true class; None weighs all alike.

    Returns:
        (N,).
    """
    known = truth != ignore_index
    log_q = F.log_softmax(logits.float(), dim=1)
    target = truth.where(known, torch.zeros_like(truth))
    of_label = -log_q.gather(1, target[:, None])[:, 0]
    of_opinion = -(log_q.exp() * log_q).sum(1)
    pixel_weight = known.float() if weights is None else known * weights[target]
    loss = (TRUST * of_label + (1 - TRUST) * of_opinion) * pixel_weight
    return loss.flatten(1).sum(1) / pixel_weight.flatten(1).sum(1).clamp(min=1e-6)


class Segment(Goal):
    """A machine labels the pixels; the distance is the bootstrapped cross entropy of its labels, so training raises mIoU.

    DVST trains for it with lambda k + D + beta D_seg, beta = 64: the distortion here is D_seg alone.

    Args:
        model: returns the network, (N, 3, H, W) -> (N, classes, H, W); the one that comes with Semcast by default. It has to be
            frozen before anything is judged by it.
    """

    name: ClassVar[str] = "segment"
    summary: ClassVar[str] = "label every pixel of street pictures: what CamVid's eleven classes are, by the shipped network"
    output: ClassVar[Literal["frames", "labels", "scores"]] = "frames"
    metrics: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy", "psnr_rgb_db", "ssim_rgb", "lpips_squeeze")
    truth: ClassVar[str] = "segmentation"
    classes: ClassVar[tuple[str, ...]] = CLASSES
    ignore_index: ClassVar[int | None] = CAMVID_IGNORE

    def __init__(self, model: Callable[[], nn.Module] = shipped_segmenter) -> None:
        self.model = model

    def distortion(self, step: Step, decoded: Decoded) -> Tensor:
        """Bootstrapped cross entropy of what is seen in the frames (B, t, 3, H, W); (B,), mean over the t frames."""
        if decoded.frames is None or decoded.frames.shape != step.frames.shape:
            got = None if decoded.frames is None else tuple(decoded.frames.shape)
            raise ContractError(f"goal 'segment' needs frames of shape {tuple(step.frames.shape)}, the system gave {got}")
        if self.truth not in step.labels:
            raise ContractError("goal 'segment' needs Step.labels['segmentation'], and this step has none")
        logits = self.model()(decoded.frames.float().flatten(0, 1))
        truth = step.labels[self.truth].flatten(0, 1)
        loss = bootstrapped_cross_entropy(logits, truth, ignore_index=CAMVID_IGNORE)
        return loss.unflatten(0, decoded.frames.shape[:2]).mean(1)

    def perceive(self, decoded: Decoded) -> Decoded:
        """``decoded`` with the labels that the network reads from its frames; labels that a system delivers itself stay."""
        if decoded.labels is not None or decoded.frames is None:
            return decoded
        return replace(decoded, labels=predict(self.model(), decoded.frames.clamp(0, 1)))


GOAL = Segment()
