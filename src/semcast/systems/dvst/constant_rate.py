"""Preset ``constant-rate`` of DVST: ``small`` without the allocation that follows entropy (fig. 14, "w/o rate allocation").

Every block of every P-frame of a group gets as many uses, and side information (motion, classes) a third of the P-frames'
channel use. What is left free is left free: a block's uses go to the coefficients that are worth most in its class, power
follows one price, classes are those that distort least, and the I-frame has the share that ``small`` gives it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from semcast.layers.allocation import STEPS_PER_DB, Plan
from semcast.layers.block_classes import BLOCK
from semcast.layers.block_code import BlockCode, Choice
from semcast.layers.class_choice import lengths, refine
from semcast.layers.expansion import MAX_USES
from semcast.layers.side_coder import RunEncoder
from semcast.systems.base import System
from semcast.systems.dvst.config import Ablation, SmallConfig
from semcast.systems.dvst.runs import UNIT, Coded, Predicted, head_size
from semcast.systems.dvst.shares import Group
from semcast.systems.dvst.small import DvstSmall, TxState

PER_OCTAVE, OFFSET = 20, 4
"""Real uses of a block are 2 ** (OFFSET + index / PER_OCTAVE): an index is told in the place of a price, one byte."""
SIDE_SHARE = 1 / 3
LEAST_LEVEL, MOST_LEVEL = -512, 256
CHEAPER, DEARER = -80, 120
"""How far the price of a bit may be from that of ``small``, in quarter decibels."""
SIDE_ELASTICITY = 0.02
"""Side information falls about so much, in nepers, per quarter decibel of that price."""


def real_uses(index: int, blocks: int, most: int) -> int:
    """Real uses of a frame of so many blocks, none of which can take more than ``most``."""
    return min(round(blocks * 2 ** (OFFSET + index / PER_OCTAVE)), blocks * most)


class ConstantRateCode(BlockCode):
    """The code of blocks where a rate index stands for the price: as many uses for every block, none of which is split.

    Where they are no whole number, the first blocks get one more.
    """

    def _table(self, count: int, told: int) -> Tensor:
        """Uses (C, L) of every (class, coefficient) where a block has ``count``: the most worthwhile of its class."""
        worth = (self.levels[:, :, None].long() - self.thresholds[told]).flatten(1)
        best = worth.argsort(dim=1, descending=True, stable=True)[:, :count]
        return torch.zeros_like(worth).scatter_(1, best, 1).unflatten(1, (-1, MAX_USES)).sum(-1)

    def _level(self, classes: Tensor, table: Tensor, told: int) -> int:
        """The price that powers follow: the lowest at which blocks of these classes (N,) send at a mean power of at most 1."""
        often = torch.bincount(classes, minlength=len(table)).float()[:, None]
        low, high = LEAST_LEVEL, MOST_LEVEL
        while high - low > 1:
            middle = (low + high) // 2
            power, _ = self._powers(told, middle, self.levels, table)
            low, high = (middle, high) if (often * table * (power - 1)).sum() > 0 else (low, middle)
        return high

    def busy(self, classes: Tensor, price: int, snr_db: float) -> Tensor:
        """All blocks, whole ones."""
        return self.places(classes)

    def plan_at(self, classes: Tensor, price: int, snr_db: float) -> Plan:
        """Blocks of these classes (N,) at a rate index in the place of a price; the plan has the price that powers follow."""
        told, most = self.told_index(snr_db), self.levels.shape[1] * MAX_USES
        count, more = divmod(real_uses(price, len(classes), most), len(classes))
        level = self._level(classes, self._table(max(count, 1), told), told)
        chosen = self._table(count, told)[classes]
        chosen[:more] = self._table(count + 1, told)[classes[:more]]
        power, curve = self._powers(told, level, self.levels[classes], chosen)
        return Plan(chosen, power, curve, level, told)

    @torch.no_grad()
    def choose_at(
        self,
        picture: Tensor,
        price: int,
        snr_db: float,
        bits_per_use: float,
        table: Tensor,
        context: Callable[[Tensor, Tensor], Tensor],
        earlier: Tensor,
    ) -> Choice:
        """Classes that distort a picture (3, H, W) least at a rate index in the place of a price, side information priced."""
        told, blocks = self.told_index(snr_db), self.blocks
        rows = blocks.pixels(picture[None])[0] @ blocks.basis.T
        likely = blocks.classify_rows(rows)
        count = real_uses(price, len(rows), self.levels.shape[1] * MAX_USES) // len(rows)
        uses = self._table(max(count, 1), told)
        level = self._level(likely, uses, told)
        cost = self._block_costs(rows, self._price(level, told, uses, *self._powers(told, level, self.levels, uses)))
        bits = lengths(table)[:, :-1] * self.bit_price(price, bits_per_use)
        start = (cost + bits.mean(0)).argmin(-1).reshape(earlier.shape)
        classes = refine(cost.reshape(*earlier.shape, -1), bits, start, context, earlier).flatten()
        whole = torch.cat([classes, torch.full((4 * len(classes),), self.split)])
        return Choice(whole, torch.arange(len(rows)), rows)


class ConstantRate(DvstSmall):
    """DVST with as many uses for every block of every P-frame."""

    preset = "constant-rate"

    def __init__(self, config: SmallConfig, key: System, gop: int, ablation: Ablation) -> None:
        super().__init__(config, key, gop, ablation)
        self.code = ConstantRateCode(config.classes, config.latents, config.rotated, config.quarter_classes)

    def encode_group(self, group: Group, reference: Tensor, uses: int, state: TxState) -> list[list[Coded]]:
        """P-frames in runs: two thirds of the channel uses for their blocks, the rest for side information."""
        count = len(group)
        index = self._rate_index(group.frames, (1 - SIDE_SHARE) * uses / (count - 1))
        if index is None:
            return [[] for _ in range(1, count, self.config.run)]
        # What a bit of side information is worth to begin with: as in `small`, with as many uses for all P-frames together.
        worth = self.code.bit_price(group.price(reference, uses), group.rate.bits_per_use)
        runs, spent, shift = [], 0, 0
        for begin in range(1, count, self.config.run):
            end = min(begin + self.config.run, count)
            allowed = SIDE_SHARE * uses * (end - 1) / (count - 1) - spent
            run, used, shift = self._run_within(group, begin, end, reference, index, worth, shift, math.floor(allowed))
            runs.append(run)
            spent += used
            if run and end < count:
                reference = run[-1].reference
        return runs

    def _rate_index(self, frames: Tensor, uses: float) -> int | None:
        """The largest rate index at which a frame takes no more than ``uses``; None where even the least is too much."""
        blocks = frames.shape[-2] * frames.shape[-1] // BLOCK**2
        most = self.code.levels.shape[1] * MAX_USES
        fits = [i for i in range(-128, 128) if math.ceil(real_uses(i, blocks, most) / (2 * UNIT)) * UNIT <= uses]
        return fits[-1] if fits else None

    def _run_within(
        self, group: Group, begin: int, end: int, reference: Tensor, index: int, worth: float, shift: int, allowed: int
    ) -> tuple[list[Coded], int, int]:
        """A run whose side information takes at most ``allowed`` uses, and nearly all of them, by the price of a bit.

        Args:
            worth: of a bit, where the search begins, ``shift`` quarter decibels above it.

        Returns:
            The run, empty where nothing fits; uses of its side information; and where the search ended.
        """
        best: list[Coded] = []
        most, cheap, dear, at = 0, CHEAPER - 1, DEARER + 1, shift
        while dear - cheap > 2:
            run, used = self._run_at(group, begin, end, reference, index, worth * 10 ** (shift / (10 * STEPS_PER_DB)))
            if used > allowed:
                cheap = shift
            else:
                dear = shift
                if used > most:
                    best, most, at = run, used, shift
                if used > 0.93 * allowed:
                    break
            aim = shift + round(max(-40.0, min(40.0, math.log(used / max(0.97 * allowed, 1)) / SIDE_ELASTICITY)))
            shift = aim if cheap < aim < dear else (cheap + dear) // 2
        return best, most, at

    def _run_at(
        self, group: Group, begin: int, end: int, reference: Tensor, index: int, bit_price: float
    ) -> tuple[list[Coded], int]:
        """P-frames at a rate index and a price of a bit, and the uses of their side information."""
        group = copy.copy(group)
        group.rate = copy.copy(group.rate)  # such that a bit has this price where the code is asked at the rate index
        group.rate.bits_per_use = self.code.bit_price(index, 1.0) / bit_price
        run: list[Coded] = []
        coder, spent, side = RunEncoder(self.tables), 0, 0
        for number in range(begin, end):
            before = run[-1] if run else None
            motion, context = self._predict(group, number, before.reference if before else reference, index, before)
            coder.add_motion(motion)
            difference = group.frames[number] - context[0]
            predicted = Predicted(motion, context, difference, before, coder, spent, head_size(end - begin))
            draft = self._draft(group, predicted, index)
            run.append(self._coded(predicted, draft, group.told))
            coder, spent = draft.coder, spent + draft.uses
            side = draft.used - spent
        return run, side
