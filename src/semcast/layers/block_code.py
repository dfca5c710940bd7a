"""Variable-rate joint source-channel code of 16x16 blocks: how many channel uses a coefficient gets follows its entropy.

    coefficients ─▶ KLT of the block's class ─▶ unit variance ─▶ curve for 0..6 real uses, power ─▶ symbols
                           └▶ class of block: the least expected distortion + price x (channel uses + side information)

How many uses, with how much power, is settled in :mod:`semcast.layers.allocation`; what a block costs in every class, and how
its coefficients become symbols, here. A block may be split into four of 8x8, that have classes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.layers.allocation import STEPS_PER_DB, TOLD_LOW_DB, Allocation, Plan
from semcast.layers.block_classes import (
    DIMS,
    NOTHING,
    QUARTER_DIMS,
    BlockClasses,
    Grid,
    joined_quarters,
    quarter_context_count,
    quartered,
    unblocked,
)
from semcast.layers.class_choice import choose_quarters, lengths, refine
from semcast.layers.expansion import MAX_USES, REACH
from semcast.layers.importance import Importance, Weighed, weighed_costs


class Priced(NamedTuple):
    """What blocks cost at a price of a use in every class of one kind.

    Attributes:
        reach: coefficients from here on no class sends. weight, bias: (C, L) of squared coefficients and (C,), whose sum is
            distortion plus priced uses and power. sent: (D, rotated) directions of the turned coefficients that are sent, class
            by class. gains: (D, C) their weights less 1, in their class. bent, ends, owner: which of them follow a curve, (k,),
            where that ends, (k,), and whose they are, (k, C). weighed: costs, where errors are weighed by importance.
    """

    reach: int
    weight: Tensor
    bias: Tensor
    sent: Tensor
    gains: Tensor
    bent: Tensor
    ends: Tensor
    owner: Tensor
    weighed: Weighed | None = None


class Choice(NamedTuple):
    """Classes (N,) of a picture's blocks and quarters; which get channel uses, (n,) indices; and their coefficients (n, L)."""

    classes: Tensor
    busy: Tensor
    rows: Tensor


ADAPTED = ("code.importance.",)
"""How names of tensors of a system's :class:`BlockCode` begin that importance is fitted into, where its errors are weighed."""
WHOLE, QUARTER = 0, 2
"""Kinds of blocks: of 16x16, and of 8x8. Between them stands the one class of a block that is split."""
QUARTER_LATENTS, QUARTER_ROTATED = 192, 96
SPLIT_BITS = 6
"""A block whose energy is not worth so many bits is not split."""


class BlockCode(Allocation):
    """Classes of blocks, curves, and the allocation that joins them.

    Args:
        classes, latents, rotated: as of :class:`BlockClasses`. quarters: classes of quarters of blocks; 0 splits none. weighed:
            errors count by importance (:mod:`importance <semcast.layers.importance>`), once :meth:`weigh` says how much. more:
            kinds of blocks of other sizes, as of :class:`BlockClasses`.
    """

    quarter_basis: Tensor
    often_quarters: Tensor

    def __init__(
        self,
        classes: int,
        latents: int,
        rotated: int,
        quarters: int = 0,
        weighed: bool = False,
        more: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        length = min(latents, QUARTER_LATENTS)
        halves = [(1, 0, 0), (quarters, length, min(rotated, QUARTER_ROTATED))] if quarters else []
        blocks = BlockClasses(classes, latents, rotated, more=(*halves, *more))
        super().__init__(blocks.classes, latents)
        self.classes, self.quarters, self.split = classes, quarters, classes
        self.blocks = blocks
        if quarters:
            self.register_buffer("quarter_basis", torch.eye(QUARTER_DIMS)[:length].clone())
            counts = torch.ones(quarter_context_count(quarters), quarters, dtype=torch.int32)
            self.register_buffer("often_quarters", counts)
        self.importance = Importance(blocks.classes, latents) if weighed else None

    # -- pictures and rows -----------------------------------------------------------------------------------------------

    def grids(self, h: int, w: int) -> list[Grid]:
        """Maps of a picture of (h, w) blocks: of blocks, and of their quarters."""
        whole = Grid(h, w, 0, self.classes + (self.quarters > 0))
        return [whole, Grid(h, w, whole.last, whole.last + self.quarters, quarters=True)] if self.quarters else [whole]

    def rows(self, pixels: Tensor) -> Tensor:
        """Blocks (N, n, 768) less the mean -> coefficients (N, rows, L): of the blocks, then of the quarters of each."""
        rows = pixels @ self.blocks.basis.T
        if not self.quarters:
            return rows
        quarters = quartered(pixels.reshape(-1, DIMS)) @ self.quarter_basis.T
        quarters = F.pad(quarters, (0, self.blocks.latents - quarters.shape[1]))
        return torch.cat([rows, quarters.reshape(len(rows), -1, self.blocks.latents)], 1)

    def pixels(self, rows: Tensor, blocks: int) -> Tensor:
        """The inverse but for what the bases leave out: rows of so many blocks, those of quarters that are none being 0."""
        pixels = rows[:, :blocks] @ self.blocks.basis
        if not self.quarters:
            return pixels
        quarters = rows[:, blocks : 5 * blocks, : len(self.quarter_basis)] @ self.quarter_basis
        return pixels + joined_quarters(quarters.reshape(-1, QUARTER_DIMS)).reshape_as(pixels)

    def analyse(self, frames: Tensor) -> Tensor:
        """Frames (N, 3, H, W), sides multiples of 16 -> rows (N, rows, L)."""
        return self.rows(self.blocks.pixels(frames))

    def synthesise(self, rows: Tensor, h: int, w: int) -> Tensor:
        """The inverse but for what the bases leave out: rows of pictures of (h, w) blocks -> (N, 3, 16 h, 16 w)."""
        return unblocked(self.pixels(rows, h * w) + self.blocks.mean, h, w)

    def places(self, classes: Tensor) -> Tensor:
        """Which of the rows with these classes (N,) there are: no blocks that are split, no quarters of those that are not."""
        return (classes != self.split).nonzero().flatten() if self.quarters else torch.arange(len(classes))

    def tables(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Frequencies that classes of pictures are coded under, and those of quarters."""
        return self.blocks.frequencies.numpy(), self.often_quarters.numpy() if self.quarters else None

    # -- statistics ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, frames: Tensor, iterations: int = 15) -> None:
        """Fit the classes to frames (N, 3, H, W), sides multiples of 16."""
        from semcast.layers.class_fit import fit_classes

        fit_classes(self, frames, iterations)

    def settle(self) -> None:
        """Plan by variances as they are now, all errors counting alike."""
        self.levels.copy_(self._variances())

    def _variances(self) -> Tensor:
        """(C, L) int32 in quarter decibels."""
        return (STEPS_PER_DB * 20 * torch.log10(self.blocks.std.clamp_min(NOTHING))).round().to(torch.int32)

    def weigh(self, steps: Tensor) -> None:
        """Let errors count by so many quarter decibels (C, L) from now on."""
        assert self.importance is not None
        self.importance.steps.copy_(steps)
        self.levels.copy_(self._variances() + steps)

    # -- what classes cost -----------------------------------------------------------------------------------------------

    def _edition(self) -> tuple[int, ...]:
        std = self.blocks.std
        return *super()._edition(), std.data_ptr() if std.is_inference() else std._version

    def priced(self, price: int, told: int, kind: int = WHOLE) -> Priced:
        """What blocks cost at a price in the classes of a kind."""
        return cast(Priced, self._keep(lambda: self._price(price, told, *self.rates(price, told)[:3], kind), price, told, kind))

    def _price(self, price_steps: int, told: int, uses: Tensor, power: Tensor, curve: Tensor, kind: int = WHOLE) -> Priced:
        """At so many uses (C, L), with so much power on these curves."""
        price = 10 ** (price_steps / (10 * STEPS_PER_DB))
        first, last, latents, rotated = self.blocks.kinds[kind]
        m, p, curve = (table[first:last, :latents] for table in (uses, power, curve))
        sent, std = m > 0, self.blocks.std[first:last, :latents]
        variance = std.square().clamp_min(1e-9)
        snr = 10 ** ((told + TOLD_LOW_DB) / 10)
        gain = torch.where(m == 1, 1 + p * snr, 10 ** (self.expansion.gain_db[curve, (m - 1).clamp_min(0)] / 10))
        theta = float(self.power_price[told]) * price
        # One use shrinks what it carries (LMMSE); more uses leave an error that does not depend on the value.
        shrink = torch.where(m == 1, gain.reciprocal().square(), torch.zeros_like(gain))
        weight = torch.where(sent, shrink + theta * m * p / variance, torch.ones_like(gain))
        error = torch.where(m == 1, variance * (gain.reciprocal() - gain.reciprocal().square()), variance / gain)
        bias = (sent * (error + (price - theta) * m)).sum(1)
        turned = m[:, :rotated]
        place, number = (turned > 0), turned[turned > 0]
        directions = self.blocks.rotations_of(kind)[place] if rotated else weight[:0, :0]
        owner = F.one_hot(place.nonzero()[:, 0], len(m)).float()
        gains = owner * (weight[:, :rotated][place] - 1)[:, None]
        bent = (number > 1).nonzero().flatten()
        ends = REACH * std[:, :rotated][place][bent]
        reach = int(sent.any(0).nonzero().max()) + 1 if bool(sent.any()) else 0
        reach = max(reach, rotated)
        weighed = None
        if self.importance is not None:
            within, toll = self.importance.within()[first:last, :latents], sent * theta * m * p / variance
            places, bends = (place.flatten().nonzero().flatten() for place in (turned > 0, turned > 1))
            weighed = Weighed(
                within * torch.where(sent, shrink, 1.0),
                (sent * within * error).sum(1),
                toll,
                (sent * (price - theta) * m).sum(1),
                places,
                owner * toll[:, :rotated][place][:, None],
                bends,
                ends,
                owner[bent] * within[:, :rotated][turned > 1][:, None],
            )
            reach = latents
        return Priced(reach, weight, bias, directions, gains, bent, ends, owner[bent], weighed)

    # -- which class -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(self, rows: Tensor, grids: Sequence[Grid], uses: int, snr_db: float, bits_per_use: float) -> Tensor:
        """Classes (N,) of one picture's rows (N, L) that cost least, side information included.

        Args:
            grids: the maps that the rows make, one after the other. uses: complex channel uses for them, about. bits_per_use:
                what a use carries of side information.
        """
        likely = self.likely(rows, grids)
        price, told = self.price_of(likely, uses, snr_db), self.told_index(snr_db)
        a_bit = self.bit_price(price, bits_per_use)
        bits = lengths(self.blocks.frequencies) * a_bit
        (whole, blocks, own), *others = parts(grids, rows, likely)
        cost = self._block_costs(blocks, self.priced(price, told), own)
        found = None
        if self.quarters:
            (_, quarters, _), *others = others
            energy, of_blocks = blocks.square().sum(1), quarters.unflatten(0, (-1, 4))
            cost, found = self._with_quarters(
                cost, energy, lambda index: of_blocks[index].flatten(0, 1), price, told, a_bit, own
            )
        of = slice(whole.first, whole.last)
        shape = whole.height, whole.width
        classes = refine(cost.unflatten(0, shape), bits[of, of], own.reshape(shape)).flatten()
        chosen = [classes, *self._of_split(classes, found)]
        for grid, part, own in others:
            of, shape = slice(grid.first, grid.last), (grid.height, grid.width)
            kind = len(self.blocks.kinds) - 1
            cost = self._block_costs(part, self.priced(price, told, kind), own, kind)
            start = own.reshape(shape) - grid.first
            chosen.append(refine(cost.unflatten(0, shape), bits[of, of], start).flatten() + grid.first)
        return torch.cat(chosen)

    def _with_quarters(
        self,
        cost: Tensor,
        energy: Tensor,
        quarters: Callable[[Tensor], Tensor],
        price: int,
        told: int,
        a_bit: float,
        likely: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Costs (n, C) of blocks and that of being split, the last; and the best classes of their quarters, (n, 4).

        Args:
            energy: (n,) of the blocks. quarters: coefficients (4 k, L) of those of the blocks with indices (k,).
        """
        worth = (energy > SPLIT_BITS * a_bit).nonzero().flatten()
        split = cost.new_full((len(cost), 1), math.inf)
        found = worth.new_full((len(cost), 4), self.split)
        if len(worth):
            rows = quarters(worth)
            parent = None if likely is None else likely[worth].repeat_interleave(4)
            of_quarters = self._block_costs(rows, self.priced(price, told, QUARTER), parent, QUARTER)
            best, least = choose_quarters(of_quarters.unflatten(0, (-1, 4)), lengths(self.often_quarters) * a_bit)
            if self.importance is not None and likely is not None:
                # Weighed costs are not less the energy, and quarters have some that no coefficient of the block tells of.
                rest = rows.square().sum(1).reshape(-1, 4).sum(1) - energy[worth]
                least = least - rest * 10 ** (self.importance.steps[likely[worth], -1] / 40)
            split[worth, 0] = least
            found[worth] = best + self.blocks.kinds[QUARTER].first
        return torch.cat([cost, split], 1), found

    def _of_split(self, classes: Tensor, found: Tensor | None) -> list[Tensor]:
        """Classes of all quarters (4 n,), of blocks that have these (n,), given those (n, 4) that the quarters would have."""
        return [] if found is None else [torch.where(classes[:, None] == self.split, found, self.split).flatten()]

    def likely(self, rows: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The likeliest classes (N,) of one picture's rows (N, L), where no block is split."""
        found = []
        for grid, part in parts(grids, rows):
            if grid.quarters:
                found.append(torch.full((len(part),), self.split))
            else:
                found.append(self.blocks.classify_rows(part, 0 if not grid.first else len(self.blocks.kinds) - 1))
        return torch.cat(found)

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
        """The same of a picture (3, H, W) at a given price instead of a number of uses, under the caller's table and contexts
        (:func:`~semcast.layers.class_choice.refine`)."""
        told, a_bit = self.told_index(snr_db), self.bit_price(price, bits_per_use)
        pixels = self.blocks.pixels(picture[None])[0]
        cost, found = self._costs_at(pixels, price, told, a_bit)
        cost = cost.reshape(*earlier.shape, -1)
        bits = lengths(table) * a_bit
        classes = refine(cost, bits, (cost + bits.mean(0)).argmin(-1), context, earlier).flatten()
        classes = torch.cat([classes, *self._of_split(classes, found)])
        busy = self.rates(price, told).loud[classes].nonzero().flatten()
        return Choice(classes, busy, self._rows_at(pixels, busy))

    def _costs_at(self, pixels: Tensor, price: int, told: int, a_bit: float) -> tuple[Tensor, Tensor | None]:
        """Costs (n, C) of blocks (n, 768), of being split the last, and the best classes (n, 4) of their quarters."""
        priced = self.priced(price, told)
        cost = self._block_costs(pixels @ self.blocks.basis[: priced.reach].T, priced)
        if not self.quarters:
            return cost, None
        basis = self.quarter_basis[: self.priced(price, told, QUARTER).reach]
        return self._with_quarters(
            cost, pixels.square().sum(1), lambda index: quartered(pixels[index]) @ basis.T, price, told, a_bit
        )

    def _rows_at(self, pixels: Tensor, index: Tensor) -> Tensor:
        """Rows (n, L) of these indices (n,) of a picture's blocks (N, 768)."""
        whole, quarters = index[index < len(pixels)], index[index >= len(pixels)] - len(pixels)
        rows = pixels[whole] @ self.blocks.basis.T
        if not len(quarters):
            return rows
        own = quartered(pixels[quarters // 4]).unflatten(0, (-1, 4))[range(len(quarters)), quarters % 4] @ self.quarter_basis.T
        return torch.cat([rows, F.pad(own, (0, self.blocks.latents - own.shape[1]))])

    def synthesise_rows(self, rows: Tensor, index: Tensor, h: int, w: int) -> Tensor:
        """A picture (1, 3, 16 h, 16 w) whose rows of these indices (n,) are these, (n, L), all others nothing."""
        whole = index < h * w
        pixels = rows.new_zeros(h * w, DIMS).index_add(0, index[whole], rows[whole] @ self.blocks.basis)
        if not bool(whole.all()):
            own = rows[~whole, : len(self.quarter_basis)] @ self.quarter_basis
            quarters = rows.new_zeros(4 * h * w, QUARTER_DIMS).index_add(0, index[~whole] - h * w, own)
            pixels = pixels + joined_quarters(quarters)
        return unblocked(pixels[None] + self.blocks.mean, h, w)

    @torch.no_grad()
    def demand(self, pixels: Tensor, price: int, snr_db: float, bits_per_use: float) -> tuple[Tensor, Tensor]:
        """Real channel uses, and bits of the class, that each of blocks (N, 768) would take at a price, about, (N,) each."""
        told, a_bit = self.told_index(snr_db), self.bit_price(price, bits_per_use)
        cost, found = self._costs_at(pixels, price, told, a_bit)
        often = self.blocks.frequencies[: cost.shape[1], : cost.shape[1]].double().sum(0, keepdim=True)
        bits = 0.6 * lengths(often)[0]
        classes = (cost + a_bit * bits).argmin(1)
        of_class = self.rates(price, told).uses.sum(1)
        uses, told_by = of_class[classes], bits[classes]
        if found is not None:
            split, first = classes == self.split, self.blocks.kinds[QUARTER].first
            own = found[split]
            uses[split] = of_class[own].sum(1)
            told_by[split] += lengths(self.often_quarters.double().sum(0, keepdim=True))[0][own - first].sum(1)
        return uses, told_by

    def _block_costs(self, rows: Tensor, priced: Priced, likely: Tensor | None = None, kind: int = WHOLE) -> Tensor:
        """Distortion plus priced uses and power of rows (N, L) in every class of a kind, less their energy: (N, C).

        Only what a class sends makes a difference: of 128 coefficients in its own basis few are, at most prices. Where errors
        are weighed everything does, and the ``likely`` classes (N,), of the blocks that they are quarters of, need not be
        found.
        """
        own = self.blocks.kinds[kind]
        if priced.weighed is not None:
            assert self.importance is not None
            likely = self.blocks.classify_rows(rows, kind) if likely is None else likely
            return weighed_costs(rows[:, : own.latents], likely, self.blocks, kind, self.importance, priced.weighed)
        M = own.rotated
        squares = (rows[:, :M] @ priced.sent.T).square_()
        rest = slice(M, min(priced.reach, rows.shape[1]))
        cost = squares @ priced.gains + rows[:, rest].square() @ (priced.weight[:, rest] - 1).T + priced.bias
        # A curve has ends: what lies beyond them is lost, however many uses it gets.
        if len(priced.bent):
            beyond = (squares[:, priced.bent].sqrt_() - priced.ends).clamp_min_(0)
            cost += beyond.square_() @ priced.owner
        return cost

    def errors(self, classes: Tensor, plan: Plan, snr_db: float) -> Tensor:
        """Mean squared errors (N, L) that coefficients of blocks of these classes (N,) arrive with, about.

        Args:
            snr_db: as measured; the plan was made for another one, perhaps.
        """
        told = plan.told + TOLD_LOW_DB
        variance = self.blocks.std.square()[classes]
        curve = (plan.curve + round(snr_db - told)).clamp(0, len(self.expansion.gain_db) - 1)
        winding = 10 ** (self.expansion.gain_db[curve, (plan.uses - 1).clamp_min(0)] / 10)
        gain = torch.where(plan.uses == 1, 1 + plan.power * 10 ** (snr_db / 10), winding)
        return torch.where(plan.uses > 0, variance / gain, variance)

    def shift(self, rows: Tensor, classes: Tensor, plan: Plan) -> int:
        """Decibels that symbols of these blocks will be scaled by to unit power, whole and about one on the safe side.

        Values that are larger than their class says raise the power, calm blocks lower it. The curve for 1 dB less gains about
        as much as that for what is there, and at 10 dB is mistaken for another branch of itself two to eight times less often.
        """
        if not int(plan.uses.sum()):
            return 0
        power = float(self.modulate(rows, classes, plan).square().mean())
        return max(-20, min(12, math.floor(-0.75 - 10 * math.log10(max(power, 1e-9)))))

    # -- symbols ---------------------------------------------------------------------------------------------------------

    def modulate(self, rows: Tensor, classes: Tensor, plan: Plan) -> Tensor:
        """Coefficients (N, L) of blocks of these classes (N,) -> real symbols (sum of uses,), coefficient by coefficient."""
        z = self.blocks.rotate(rows, classes) / self.blocks.std.clamp_min(1e-6)[classes]
        out = torch.zeros(int(plan.uses.sum()), device=rows.device)
        for m, where, place in _places(plan):
            symbols = self.expansion.encode(z[where], m, plan.curve[where]) * plan.power[where].sqrt()[:, None]
            out = out.index_put((place,), symbols)
        return out

    def demodulate(self, y: Tensor, noise_var: Tensor, amplitude: Tensor, classes: Tensor, plan: Plan) -> Tensor:
        """The inverse: received real symbols and their noise power, both (sum of uses,) -> estimates (N, L).

        Args:
            amplitude: (N,) that every symbol of a block was scaled by.
        """
        z = torch.zeros(plan.uses.shape, device=y.device)
        scale = amplitude[:, None] * plan.power.sqrt()
        for _, where, place in _places(plan):
            by = scale[where]
            noise = noise_var[place] / by.square()[:, None]
            z = z.masked_scatter(where, self.expansion.decode(y[place] / by[:, None], noise, plan.curve[where]))
        return self.blocks.rotate(z * self.blocks.std[classes], classes, back=True)


def parts(grids: Sequence[Grid], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Every grid with its part of tensors (N, ...), of which every block has a row."""
    sizes = [grid.blocks for grid in grids]
    return zip(grids, *(tensor.split(sizes) for tensor in tensors), strict=True)


def _places(plan: Plan) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Per number of uses m that occurs: m, which coefficients (N, L) have it, and where their symbols stand (count, m)."""
    ends = plan.uses.flatten().cumsum(0).reshape(plan.uses.shape)
    for m in range(1, MAX_USES + 1):
        where = plan.uses == m
        place = (ends[where] - m)[:, None] + torch.arange(m, device=ends.device)
        if len(place):
            yield m, where, place
