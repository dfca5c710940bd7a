"""How preset ``small`` of DVST shares the channel uses of a group out: to its I-frame, and to its P-frames as a price."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from semcast.layers import block_motion
from semcast.layers.block_classes import BLOCK
from semcast.layers.block_code import STEPS_PER_DB, BlockCode
from semcast.layers.side_coder import Tables
from semcast.layers.side_rate import SideRate
from semcast.types import Budget

LEAST_KEY_SHARE, MOST_KEY_SHARE = 0.1, 0.9
"""Of a group's channel uses, for its I-frame."""
SAMPLED = 200
"""Blocks of a frame that its demand is estimated from, or up to twice as many."""


class Sample(NamedTuple):
    """A P-frame that demand is estimated from: vectors (h, w, 2), their bits, and what they leave (1, 3, H, W)."""

    field: Tensor
    bits: float
    difference: Tensor


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

    def __len__(self) -> int:
        return len(self.frames)

    def _samples(self) -> list[Sample]:
        """A few P-frames against what comes before them."""
        frames, count, taken = self.frames, len(self.frames), []
        for index in sorted({1 + round(i * (count - 2) / 2) for i in range(3)} if count > 1 else ()):
            motion, bits = self._motion(frames[index], frames[index - 1])
            difference = frames[index][None] - block_motion.compensate(frames[index - 1][None], motion.field()[None])
            taken.append(Sample(motion.field(), bits, difference))
        return taken

    def _motion(self, frame: Tensor, reference: Tensor) -> tuple[block_motion.Motion, float]:
        """Motion of a frame (3, H, W), and its bits."""
        if not self.motion_link:
            return block_motion.Motion.still(frame.shape[1] // BLOCK, frame.shape[2] // BLOCK), 0.0
        motion = block_motion.estimate(frame, reference, self.tables.motion, bit_price=0.02)
        return motion, block_motion.bits_of(motion, self.tables.motion)

    def _wanted(self, error: Tensor | None) -> Callable[[int], float]:
        """Channel uses of a P-frame at a price, about, where references err by ``error`` (3, H, W)."""
        seen = []
        for sample in self.samples:
            difference = sample.difference
            if error is not None:
                difference = difference - block_motion.compensate(error[None], sample.field[None])
            rows = self.code.blocks.analyse(difference)[0].flatten(1).T
            step = max(1, len(rows) // SAMPLED)
            part = rows[::step]
            seen.append((part, self.code.blocks.energies(part), len(rows) / len(part), sample.bits))
        bits_per_use = self.rate.bits_per_use

        def wanted(price: int) -> float:
            total = 0.0
            for rows, energies, times, motion_bits in seen:
                uses, bits = self.code.demand(rows, energies, price, self.told, bits_per_use)
                total += times * (uses / 2 + bits / bits_per_use) + motion_bits / bits_per_use
            return total / len(seen)

        return wanted

    def key_uses(self, price_of: Callable[[Budget], int], budget: Budget, bias: int) -> int:
        """Channel uses of the I-frame: such that P-frames at a price that is higher by the offset take the others.

        Args:
            price_of: price of a use in the I-frame, given its budget. bias: by how much earlier first prices were wrong.
        """
        count = len(self)
        if count == 1:
            return budget.uses
        wanted = self._wanted(None)
        offset = self.offset_db * STEPS_PER_DB + bias
        low, high = LEAST_KEY_SHARE, MOST_KEY_SHARE
        uses = budget.uses
        for _ in range(6):
            share = math.sqrt(low * high)
            uses = round(share * budget.uses)
            price = round(price_of(replace(budget, uses=uses, nominal_uses=uses)) + offset)
            if uses + (count - 1) * wanted(price) > budget.uses:
                high = share  # what such a price asks for is too much: less for the I-frame raises it
            else:
                low = share
        return uses

    def price(self, reference: Tensor, uses: int) -> int:
        """Price at which the P-frames take ``uses`` together, about, where the I-frame is received as ``reference``."""
        # References of P-frames err more than the I-frame does, the more so the dearer their channel uses are.
        more = 10 ** (0.7 * self.offset_db / 20)
        wanted = self._wanted(more * (reference - self.frames[0]))
        low, high = -128, 60
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if (len(self) - 1) * wanted(middle) > uses else (low, middle)
        return high
