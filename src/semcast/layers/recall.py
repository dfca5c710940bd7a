"""What a receiver that has seen the frames before knows of a picture that was sent without them.

The code of a picture takes nothing for granted, so whatever gets lost, the picture can be seen. But the receiver may look
back: noise differs from frame to frame, and what was not sent this time may have come earlier. Per coefficient it weighs what
arrived, whose error it knows from the plan, against the frame before, moved to where things are now, whose error it estimates
from how far both are apart, block by block. Where a scene changes nothing is taken over.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.layers.allocation import Plan
from semcast.layers.block_classes import Grid
from semcast.layers.block_code import BlockCode

DOUBT = 2.0
"""How much more the frame before is mistrusted than it differs: what moves differs most where little is sent to tell."""
KEPT = 0.7
"""Error that the frame before has at least, and its noise in coefficients that nothing is sent of, both over the mean error of
those that are sent."""
STRANGE = 0.5
"""Share of the variance of what is sent from which on a block has nothing to do with the frame before."""


def recall(code: BlockCode, arrived: Tensor, own: Tensor, grid: Grid, plan: Plan, snr_db: float, before: Tensor) -> Tensor:
    """Coefficients (N, L) as estimated from what arrived and from the frame before.

    Args:
        arrived: (N, L) estimates without it. own: (N,) classes. grid: of the blocks. plan: how they were sent. snr_db: as
            measured. before: (N, L) coefficients of the frame before, moved.
    """
    blocks = code.blocks
    y, c = blocks.rotate(arrived, own), blocks.rotate(before, own)
    variance = blocks.std.square()[own]
    error = code.errors(own, plan, snr_db)
    sent = plan.uses > 0
    if not bool(sent.any()):
        return arrived
    usual = error[sent].mean()
    apart = (((y - c).square() - error) * sent).sum(1)
    apart, known, count = (_around(x, grid) for x in (apart, (variance * sent).sum(1), sent.sum(1).float()))
    doubt = (DOUBT * apart / count.clamp_min(1)).clamp_min(KEPT * usual)[:, None]
    trust = (1 - apart / (STRANGE * known).clamp_min(1e-9)).clamp(0, 1)[:, None]
    both = (doubt * y + error * c) / (doubt + error)
    alone = trust * variance / (variance + KEPT * usual) * c
    return blocks.rotate(torch.where(sent, both, alone), own, back=True)


def _around(x: Tensor, grid: Grid) -> Tensor:
    """A number per block (N,), smoothed over its neighbours: negative where chance wants it, 0 then."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    by = 2 if grid.quarters else 1
    plane = x.reshape(grid.height, grid.width, by, by).transpose(1, 2).reshape(1, 1, by * grid.height, by * grid.width)
    smooth = F.conv2d(F.pad(plane, (1, 1, 1, 1), mode="replicate"), (row[:, None] * row)[None, None])
    return smooth.reshape(grid.height, by, grid.width, by).transpose(1, 2).flatten().clamp_min(0)
