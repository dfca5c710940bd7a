"""What an error in a coefficient counts for, where pictures are judged by something else than their MSE.

Around what a receiver shows, the loss D of a goal grows with the energy of the error e in a coefficient, over all blocks of a
class, as

    w = sum (dD / dx_hat) e / sum e^2,

both turned into the coefficients of the class. With w the distortion of a coefficient is w v / G_m(p) in place of v / G_m(p)
(:mod:`semcast.layers.block_code`), so channel uses and power go where the goal looks: MS-SSIM to calm blocks and to low
frequencies. Both ends know w, as they know the variances v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.block_classes import BLOCK, BlockClasses

if TYPE_CHECKING:
    from semcast.layers.two_scales import TwoScaleCode

STRONGEST = 64
"""Importance is 0 dB on average over so many coefficients of a block: it moves channel uses, it does not call for more."""
SHARE = 0.75
"""Of its decibels that are followed. 1 - SSIM saturates: what is given up altogether would ask for less and less."""
SMOOTHED = 9
"""Neighbouring coefficients that the decibels of one are the mean of."""
LEAST = 0.02
"""Error energy of a (class, coefficient), over the mean of all, that counts as much as what is known of its neighbours."""
FEW = 20
"""A class with fewer blocks than this in all pictures together counts as much as the median class does."""
REST = 5
"""Share of importance that a class has at least, over the median class, in powers of ten below it."""


class Importance(nn.Module):
    """Importance of every (class, coefficient).

    Args:
        classes, latents: C and L.
    """

    steps: Tensor

    def __init__(self, classes: int, latents: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(classes, latents, dtype=torch.int32))  # quarter decibels

    def of_classes(self) -> Tensor:
        """(C,) mean importance of a class."""
        return (10 ** (self.steps / 40))[:, :STRONGEST].mean(1)

    def within(self) -> Tensor:
        """(C, L) importance of a coefficient over the mean of its class."""
        return 10 ** (self.steps / 40) / self.of_classes()[:, None]


class Weighed(NamedTuple):
    """What blocks cost in a class where errors are weighed by importance: the cost of a block is

        stake * (sum of weight * squares + bias) + sum of toll * squares + fee.

    Attributes:
        weight, toll: (C, L) of squared coefficients. bias, fee: (C,). sent: (D,) where in (C, rotated) something is sent.
            tolls: (D, C) of these, in their class. bent: (k,) where in (C, rotated) a curve is followed. ends: (k,) of these.
            lost: (k, C) what counts beyond, in their class.
    """

    weight: Tensor
    bias: Tensor
    toll: Tensor
    fee: Tensor
    sent: Tensor
    tolls: Tensor
    bent: Tensor
    ends: Tensor
    lost: Tensor


def weighed_costs(
    rows: Tensor, likely: Tensor, blocks: BlockClasses, kind: int, importance: Importance, weighed: Weighed
) -> Tensor:
    """Weighed distortion plus priced uses and power of blocks (N, L) in every class of their kind, (N, C).

    What is at stake in a block is what counts in the class that it, or the one that it is a quarter of, is likeliest of, (N,),
    whichever it is sent as.
    """
    M, energies = blocks.kinds[kind].rotated, blocks.energies(rows, kind)
    distortion = blocks.weighed(rows, energies, weighed.weight, weighed.bias)
    distortion += (energies[:, weighed.bent].sqrt_() - weighed.ends).clamp_min_(0).square_() @ weighed.lost
    paid = rows[:, M:].square() @ weighed.toll[:, M:].T + weighed.fee + energies[:, weighed.sent] @ weighed.tolls
    return importance.of_classes()[likely][:, None] * distortion + paid


class Tally:
    """Sums that importance is estimated from, over pictures as they were received."""

    def __init__(self, code: TwoScaleCode) -> None:
        C, L = code.blocks.classes, code.blocks.latents
        self.code = code
        self.slope = torch.zeros(C, L, dtype=torch.float64)
        self.energy = torch.zeros(C, L, dtype=torch.float64)
        self.count = torch.zeros(C)

    def add(self, shown: Tensor, frames: Tensor, classes: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        """Count a picture.

        Args:
            shown, frames: (1, 3, H, W) as received and as sent, sides multiples of 16. classes: (n,) that its blocks and tiles
                were sent as. loss: of a picture, one number.
        """
        h, w = frames.shape[2] // BLOCK, frames.shape[3] // BLOCK
        with torch.inference_mode(False), torch.enable_grad():
            seen = shown.detach().clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(loss(seen).sum(), seen)
            rows = torch.zeros(1, len(classes), self.code.blocks.latents, requires_grad=True)
            (slope,) = torch.autograd.grad(self.code.synthesise(rows, h, w), rows, slope.nan_to_num(0.0, 0.0, 0.0))
        error = (self.code.analyse(shown) - self.code.analyse(frames))[0]
        own = self.code.places(classes)
        classes = classes[own]
        s = self.code.blocks.rotate(slope[0][own], classes)
        e = self.code.blocks.rotate(error[own], classes)
        self.slope.index_add_(0, classes, (s * e).double())
        self.energy.index_add_(0, classes, e.square().double())
        self.count += torch.bincount(classes, minlength=len(self.count))

    def steps(self) -> Tensor:
        """(C, L) int32 quarter decibels, 0 on average. What few blocks tell of leans on class and coefficient apart, and the
        class on all others."""
        of_coefficient = self.slope.sum(0).clamp_min(0) / self.energy.sum(0).clamp_min(1e-12)
        of_class = self.slope.sum(1) / (self.energy * of_coefficient).sum(1).clamp_min(1e-12)
        known = self.count >= FEW
        of_class[~known] = of_class[known].median() if bool(known.any()) else 1.0
        of_class = of_class.clamp_min(float(of_class.median()) * 10.0**-REST)
        little = LEAST * self.energy.mean()
        w = (self.slope.clamp_min(0) + little * of_class[:, None] * of_coefficient) / (self.energy + little)
        decibels = 10 * w.clamp_min(1e-12).log10().float()
        padded = F.pad(decibels[None], (SMOOTHED // 2, SMOOTHED // 2), mode="replicate")
        decibels = SHARE * F.avg_pool1d(padded, SMOOTHED, 1)[0]
        usual = (self.count[:, None] * decibels[:, :STRONGEST]).sum() / (self.count.sum() * STRONGEST)
        return (4 * (decibels - usual)).round().clamp(-120, 120).to(torch.int32)
