"""MS-SSIM as what systems are trained and fitted for."""

from __future__ import annotations

import torch
from torch import Tensor

from semcast.metrics.structure import ms_ssim
from semcast.types import StepResult

BEST = 1e-5
"""1 - MS-SSIM below which nothing is gained: 50 dB."""


def ms_ssim_error(shown: Tensor, frames: Tensor) -> Tensor:
    """1 - MS-SSIM of (B, 3, H, W), (B,), with a slope everywhere."""
    if shown.requires_grad:  # a power of a contrast term that reached nought has none
        shown = shown.clone()
        shown.register_hook(lambda slope: slope.nan_to_num(0.0, 0.0, 0.0))
    return 1 - ms_ssim(frames, shown)


def structural_loss(shown: Tensor, frames: Tensor) -> Tensor:
    """log10(1 - MS-SSIM) of (B, 3, H, W), (B,): less by 0.1 is a decibel more, at every SNR and rate."""
    return ms_ssim_error(shown, frames).clamp_min(BEST).log10()


def structural_run_loss(result: StepResult, first: int = 0) -> dict[str, Tensor]:
    """Mean of :func:`structural_loss` over the frames of a step from ``first`` on, and their PSNR.

    Where ``result.aux["arrived"]`` (B,) is 0 nothing is learned: what a lost packet does is not the network's to mend.
    """
    assert result.decoded.frames is not None
    shown, frames = result.decoded.frames[:, first:], result.step.frames[:, first:]
    each = structural_loss(shown.flatten(0, 1), frames.flatten(0, 1)).unflatten(0, shown.shape[:2]).mean(1)
    arrived = result.aux.get("arrived", torch.ones_like(each))
    mse = (shown.detach() - frames).square().flatten(1).mean(1)
    return {"loss": (each * arrived).mean(), "psnr_rgb_db": (-10 * torch.log10(mse + 1e-10)).mean()}
