"""What a link would grant, about: for fitting statistics, which comes before there is a link."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semcast.types import Budget, Csi


def granted(clip: Tensor, snr_db: float, cbr: float) -> tuple[Csi, Budget]:
    """Channel state and budget of a clip (T, 3, H, W): packets at two thirds of capacity and a little framing."""
    uses = round(cbr * clip.numel())

    def rate(margin_db: float) -> float:
        return math.log2(1 + 10 ** ((snr_db - margin_db) / 10)) / 1.5

    def uses_for(sizes: list[int], mcs: str | None) -> int:
        return sum(math.ceil(8 * size / float(mcs or rate(0.0))) + 30 for size in sizes)

    budget = Budget(uses, uses, cbr, uses_for_packets=uses_for, robust_mcs=lambda margin_db: str(rate(margin_db)))
    return Csi(torch.tensor([snr_db])), budget
