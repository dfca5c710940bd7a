"""How preset ``small`` of DVST shares the channel uses of a group out: to its I-frame, and to its P-frames as a price."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from semcast.layers import block_motion
from semcast.layers.allocation import STEPS_PER_DB
from semcast.layers.block_classes import BLOCK
from semcast.layers.block_code import BlockCode
from semcast.layers.side_coder import Tables
from semcast.layers.side_rate import SideRate
from semcast.systems.dvst.runs import UNIT, Draft
from semcast.types import Budget

LEAST_KEY_SHARE, MOST_KEY_SHARE = 0.1, 0.9
"""Of a group's channel uses, for its I-frame."""
SAMPLED = 100
"""Blocks of a frame that its demand is estimated from, or up to twice as many."""
FRAME_ELASTICITY = 0.07
"""Symbols of a frame fall about so much, in nepers, per quarter decibel of price."""
TRIALS = 8
"""Prices that the last frame of a group is tried at, at most."""
CLOSE_ENOUGH, AIM = 0.97, 0.99
"""Shares of what is left for the last run of a group: where the search for its last price ends, and what it heads for."""
SAMPLED_BIT_PRICE = 0.02
"""What a bit of motion is worth in these frames, in squared difference."""
LOWEST, HIGHEST = -128, 64
"""Prices that P-frames may begin at; what they cannot take at the lowest goes to the I-frame."""
GRID = 2 * STEPS_PER_DB
"""Demand is estimated at prices that are multiples of this, and interpolated between them."""


class Sample(NamedTuple):
    """A P-frame that demand is estimated from: its number, vectors (h, w, 2), their bits, and what they leave (3, H, W)."""

    number: int
    field: Tensor
    bits: float
    difference: Tensor


class Demand:
    """What P-frames of a group would take at a price, about, where references err by ``error`` (3, H, W)."""

    def __init__(self, group: Group, error: Tensor | None) -> None:
        self._group, self._pixels = group, []
        for sample in group.samples:
            difference = sample.difference
            if error is not None:
                difference = difference - block_motion.compensate(error[None], sample.field[None])[0]
            pixels = group.code.blocks.pixels(difference[None])[0]
            self._times = len(pixels) / len(pixels[:: max(1, len(pixels) // SAMPLED)])
            self._pixels.append(pixels[:: max(1, len(pixels) // SAMPLED)])
        self._indices = [sample.number for sample in group.samples]
        self._known: dict[int, np.ndarray] = {}

    def _estimate(self, step: int) -> np.ndarray:
        """Logarithm of the channel uses of every sample at a price of so many steps of the grid."""
        if step not in self._known:
            group, bits_per_use = self._group, self._group.rate.bits_per_use
            uses, bits = group.code.demand(torch.cat(self._pixels), step * GRID, group.told, bits_per_use)
            wanted = self._times * (uses / 2 + bits / bits_per_use).reshape(len(self._pixels), -1).sum(1).numpy()
            # Where bits are dearer than they were for the samples' motion, there is less of it.
            dear = max(1.0, group.code.bit_price(step * GRID, bits_per_use) / SAMPLED_BIT_PRICE)
            motion = [max(sample.bits / math.sqrt(dear), 1.0) for sample in group.samples]
            self._known[step] = np.log(wanted + np.array(motion) / bits_per_use)
        return self._known[step]

    def of(self, begin: int, end: int, price: int) -> float:
        """Channel uses of the frames from ``begin`` to before ``end``."""
        step, part = price // GRID, price % GRID / GRID
        logs = self._estimate(step) if not part else (1 - part) * self._estimate(step) + part * self._estimate(step + 1)
        return float(np.interp(np.arange(begin, end), self._indices, np.exp(logs)).sum())


class Group:
    """A group of pictures, and what its P-frames would take at a price: estimated from a few of them.

    Args:
        frames: (T, 3, H, W), sides multiples of a block's. code: of P-frames. tables: their side information is coded under.
            told: SNR in dB. rate: of side information. key_offset_db: how much lower the price of a use is in the I-frame, per
            doubling of the group. motion_link: whether motion is sent; else nothing is taken to move.
    """

    def __init__(
        self,
        frames: Tensor,
        code: BlockCode,
        tables: Tables,
        told: int,
        rate: SideRate,
        key_offset_db: float,
        motion_link: bool = True,
    ) -> None:
        self.motion_link = motion_link
        self.frames, self.code, self.tables, self.told, self.rate = frames, code, tables, told, rate
        self.offset_db = key_offset_db * math.log2(len(frames))
        self.samples = self._samples()
        self._likely = 0  # price of P-frames, where the I-frame's was looked for

    def __len__(self) -> int:
        return len(self.frames)

    def _samples(self) -> list[Sample]:
        """A few P-frames against what comes before them."""
        frames, count, taken = self.frames, len(self.frames), []
        for index in sorted({1 + round(i * (count - 2) / 2) for i in range(3)} if count > 1 else ()):
            motion, bits = self._motion(frames[index], frames[index - 1])
            difference = frames[index] - block_motion.compensate(frames[index - 1][None], motion.field()[None])[0]
            taken.append(Sample(index, motion.field(), bits, difference))
        return taken

    def _motion(self, frame: Tensor, reference: Tensor) -> tuple[block_motion.Motion, float]:
        """Motion of a frame (3, H, W), and its bits."""
        if not self.motion_link:
            return block_motion.Motion.still(frame.shape[1] // BLOCK, frame.shape[2] // BLOCK), 0.0
        motion = block_motion.estimate(frame, reference, self.tables.motion, bit_price=SAMPLED_BIT_PRICE)
        return motion, block_motion.bits_of(motion, self.tables.motion)

    def key_uses(self, price_of: Callable[[Budget], int], budget: Budget, bias: int) -> int:
        """Channel uses of the I-frame: such that P-frames at a price that is higher by the offset take the others.

        Args:
            price_of: price of a use in the I-frame, given its budget. bias: by how much earlier first prices were wrong.
        """
        count = len(self)
        if count == 1:
            return budget.uses
        demand = Demand(self, None)
        offset = self.offset_db * STEPS_PER_DB + bias
        low, high = LEAST_KEY_SHARE, MOST_KEY_SHARE
        uses = budget.uses
        for _ in range(6):
            share = math.sqrt(low * high)
            uses = round(share * budget.uses)
            self._likely = round(price_of(replace(budget, uses=uses, nominal_uses=uses)) + offset)
            if uses + demand.of(1, count, max(LOWEST, self._likely)) > budget.uses:
                high = share  # what such a price asks for is too much: less for the I-frame raises it
            else:
                low = share
        return uses

    def price(self, reference: Tensor, uses: int) -> int:
        """Price at which the P-frames take ``uses`` together, about, where the I-frame is received as ``reference``."""
        # References of P-frames err more than the I-frame does, the more so the dearer their channel uses are.
        more = 10 ** (0.7 * self.offset_db / 20)
        self.demand = Demand(self, more * (reference - self.frames[0]))
        low = high = max(LOWEST, min(HIGHEST, self._likely)) // GRID * GRID
        while high < HIGHEST and self.demand.of(1, len(self), high) > uses:
            low, high = high, high + GRID
        while low > LOWEST and self.demand.of(1, len(self), low) <= uses:
            low, high = low - GRID, low
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.demand.of(1, len(self), middle) > uses else (low, middle)
        return high


def closing_draft(at: Callable[[int], Draft], price: int, left: int) -> Draft:
    """A frame at the price that uses up what is left, about; at the given one, which takes more, where nothing fits."""
    first = draft = at(price)
    over: Draft | None = None  # the dearest that is known to take too much
    within: Draft | None = None  # the cheapest that is known to fit
    for _ in range(TRIALS):
        if draft.used > left:
            over = draft
        else:
            within = draft
        if CLOSE_ENOUGH * left < draft.used <= left or (over and not over.uses):
            break
        wanted = math.log(max(draft.uses + AIM * left - draft.used, UNIT))
        if over and within:
            high, low = (math.log(max(one.uses, UNIT)) for one in (over, within))
            place = (high - wanted) / max(high - low, 1e-3)
            price = over.price + round((within.price - over.price) * place)
            price = max(over.price + 1, min(within.price - 1, price))
        else:
            change = max(-24, min(24, round((math.log(max(draft.uses, UNIT)) - wanted) / FRAME_ELASTICITY)))
            price = draft.price + (max(change, 4) if over else min(change, -1))
        price = max(-128, min(127, price))
        if price in (over and over.price, within and within.price):
            break
        draft = at(price)
    return within or first
