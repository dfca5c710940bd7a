"""The loss of a code that serves all SNRs and rates: none of them owns the gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from semcast.types import StepResult


def reference_mse(snr_db: Tensor, cbr: float) -> Tensor:
    """A rough law of how the error of a code falls with SNR and rate, (B,); only its shape matters."""
    capacity = torch.log2(1 + 10 ** (snr_db / 10)) * cbr
    return 0.004 * (1 + capacity / 0.03) ** -1.1


def fair_loss(result: StepResult, stage: Mapping[str, Any]) -> dict[str, Tensor]:
    """Mean over the batch of MSE^p, each divided by what the condition costs, so that every SNR and rate counts.

    The divisor, ``result.aux["reference_mse"]`` (B,), follows the capacity at that SNR and CBR as the distortion of an ideal
    code does, up to a constant. ``stage["power"]`` is p, 0.5 by default: between MSE (p = 1), which the busiest pictures own,
    and PSNR (p -> 0). Where ``result.aux["arrived"]`` (B,) is 0 nothing is learned.
    """
    assert result.decoded.frames is not None
    mse = (result.decoded.frames - result.step.frames).square().flatten(1).mean(1)
    p = float(stage.get("power", 0.5))
    arrived = result.aux.get("arrived", torch.ones_like(mse))  # what a lost packet does is not the network's to mend
    loss = ((mse / result.aux["reference_mse"]).pow(p) * arrived).mean()
    return {"loss": loss, "psnr_rgb_db": (-10 * torch.log10(mse.detach() + 1e-10)).mean()}
