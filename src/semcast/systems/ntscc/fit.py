"""Importance of coefficients where pictures are judged by MS-SSIM: fitted to pictures as this very system sends them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from semcast.layers.block_classes import BLOCK
from semcast.layers.importance import Tally
from semcast.systems.ntscc.small import NtsccSmall, parse
from semcast.systems.offline import granted, heard
from semcast.systems.structural import structural_loss
from semcast.types import Format, Step

CONDITIONS = ((10.0, 0.042), (10.0, 0.084))
"""SNRs in dB and CBRs that pictures are sent at, in turn."""


@torch.no_grad()
def fit_importance(system: NtsccSmall, frames: Tensor) -> None:
    """Fit to pictures (N, 3, H, W), sides multiples of 16, as they are sent while all errors count alike."""
    system.eval()
    tally = Tally(system.code)
    for index, frame in enumerate(frames.split(1)):
        shown, classes = _sent(system, frame, *CONDITIONS[index % len(CONDITIONS)], torch.Generator().manual_seed(index))
        tally.add(shown, frame, classes, partial(structural_loss, frames=frame))
    system.code.weigh(tally.steps())


def _sent(system: NtsccSmall, frame: Tensor, snr_db: float, cbr: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, H, W) as received over AWGN, and the classes (n,) of what it was sent as."""
    csi, budget = granted(frame, snr_db, cbr)
    fmt = Format(frame.shape[-2], frame.shape[-1], cbr=cbr)
    payload, _, _ = system.encode(Step(frame[:, None]), system.start(fmt, "tx"), csi, budget, generator=generator)
    received = heard(payload, snr_db, generator)
    decoded, _, _ = system.decode(received, system.start(fmt, "rx"), 1, generator=generator)
    packets = received["hyperprior"]
    assert isinstance(packets, list)
    h, w = frame.shape[-2:]
    parsed = parse(packets[0][0], system.code.grids(h // BLOCK, w // BLOCK), system.code.tables())
    assert decoded.frames is not None
    assert parsed is not None
    return decoded.frames[:, 0], parsed[3][0]
