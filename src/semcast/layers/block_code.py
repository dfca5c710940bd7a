"""Variable-rate joint source-channel code of 16x16 blocks: how many channel uses a coefficient gets follows its entropy.

    coefficients ─▶ KLT of the block's class ─▶ unit variance ─▶ curve for 0..3 real uses, power ─▶ symbols
                           └▶ class of block: the least expected distortion + price x (channel uses + side information)

With variances v known to both ends, distortion v / G_m(p) for m uses at power p, and prices of both, every coefficient
has a best (m, p) that depends on v over the price alone; the price is what makes all uses add up to the budget. So m rises with
log v, i.e. with the entropy of the coefficient, as k = eta * -log P of nonlinear transform source-channel coding (Dai et al.
2022) asks. What both ends derive from the classes is integers looked up in a table, the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from semcast.layers.block_classes import BlockClasses, Grid
from semcast.layers.expansion import LOW_DB, MAX_USES, REACH, Expansion
from semcast.layers.importance import Importance, Weighed, weighed_costs

STEPS_PER_DB = 4
"""Variances, prices and powers count in quarters of a decibel."""
TOLD_LOW_DB, TOLD_HIGH_DB = -6, 24
"""SNRs that plans are made for, in whole decibels; beyond, the nearest is taken."""
DEPTH = 70 * STEPS_PER_DB
"""Range of a variance over the price, from -10 to 60 dB."""
BELOW = 10 * STEPS_PER_DB


class Plan(NamedTuple):
    """How the blocks of one picture are sent.

    Attributes:
        uses: (N, L) int64 real channel uses of every coefficient. power: (N, L) per use. curve: (N, L) int64 index of the SNR
            whose curve is followed. price: cut of the allocation, in quarter decibels of variance. told: index of the told SNR.
    """

    uses: Tensor
    power: Tensor
    curve: Tensor
    price: int
    told: int


class Priced(NamedTuple):
    """What a price of a use makes of every class.

    Attributes:
        uses, power, curve: (C, L), of every coefficient of its blocks, as in :class:`Plan`. loud: (C,) whether any is sent.
            reach: coefficients from here on no class sends. weight, bias: (C, L) of squared coefficients and (C,), whose sum is
            distortion plus priced uses and power. sent: (D, rotated) directions of the turned coefficients that are sent, class
            by class. gains: (D, C) their weights less 1, in their class. bent, ends, owner: which of them follow a curve, (k,),
            where that ends, (k,), and whose they are, (k, C). weighed: costs, where errors are weighed by importance.
    """

    uses: Tensor
    power: Tensor
    curve: Tensor
    loud: Tensor
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
    """Classes (h, w) of a picture's blocks; which blocks get channel uses, (n,) indices; and their coefficients (n, L)."""

    classes: Tensor
    busy: Tensor
    rows: Tensor


ADAPTED = ("code.importance.",)
"""How names of tensors of a system's :class:`BlockCode` begin that importance is fitted into, where its errors are weighed."""
KEPT = 64
"""Prices that tables are kept for."""


class BlockCode(nn.Module):
    """Classes of blocks, curves, and the allocation that joins them.

    Args:
        classes, latents, rotated: as of :class:`BlockClasses`. weighed: errors count by importance (:mod:`importance
            <semcast.layers.importance>`), once :meth:`weigh` says how much.
    """

    levels: Tensor
    thresholds: Tensor
    powers: Tensor

    def __init__(self, classes: int, latents: int, rotated: int, weighed: bool = False) -> None:
        super().__init__()
        self.blocks = BlockClasses(classes, latents, rotated)
        self.importance = Importance(classes, latents) if weighed else None
        self.expansion = Expansion()
        self.register_buffer("levels", torch.zeros(classes, latents, dtype=torch.int32))  # of weighed variances, quarter dB
        table = load((resources.files("semcast.layers") / "expansion.safetensors").read_bytes())
        self.register_buffer("thresholds", table["thresholds"].long(), persistent=False)  # (told, MAX_USES)
        self.register_buffer("powers", table["powers"].long(), persistent=False)  # (told, MAX_USES, DEPTH)
        self.register_buffer("power_price", table["power_price"].float(), persistent=False)  # (told,)
        self._orders: dict[tuple[int, ...], Tensor] = {}
        self._priced: dict[tuple[int, ...], Priced] = {}

    power_price: Tensor

    @torch.no_grad()
    def fit(self, frames: Tensor, iterations: int = 15) -> None:
        """Fit the classes to frames (N, 3, H, W), sides multiples of 16."""
        self.blocks.fit(frames, iterations)
        self.levels.copy_(self._variances())

    def _variances(self) -> Tensor:
        """(C, L) int32 in quarter decibels."""
        return (STEPS_PER_DB * 20 * torch.log10(self.blocks.std.clamp_min(1e-6))).round().to(torch.int32)

    def weigh(self, steps: Tensor) -> None:
        """Let errors count by so many quarter decibels (C, L) from now on."""
        assert self.importance is not None
        self.importance.steps.copy_(steps)
        self.levels.copy_(self._variances() + steps)

    # -- how many uses ---------------------------------------------------------------------------------------------------

    @staticmethod
    def told_index(snr_db: float) -> int:
        """Row of the tables for a told SNR."""
        return round(max(TOLD_LOW_DB, min(TOLD_HIGH_DB, snr_db))) - TOLD_LOW_DB

    def _edition(self) -> tuple[int, ...]:
        """Of the statistics: what is kept holds for one version of them."""
        tables = self.levels, self.blocks.std
        marks = [table.data_ptr() if table.is_inference() else table._version for table in tables]
        return *marks, torch.is_inference_mode_enabled()

    def _order(self, told: int) -> tuple[Tensor, Tensor]:
        """Every possible use of (class, coefficient), the most worthwhile first, and its worth."""
        worth = (self.levels[:, :, None].long() - self.thresholds[told]).flatten()
        key = (told, *self._edition())
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[1:] == key[1:]}
            self._orders[key] = worth.argsort(descending=True, stable=True)
        return self._orders[key], worth

    def _filled(self, classes: Tensor, uses: int, told: int) -> tuple[Tensor, Tensor, int, int]:
        """Of blocks of these classes and complex channel uses: the order, real uses that are filled by each, how many are
        wanted, and the last of the order that gets some."""
        C, L = self.levels.shape
        wanted = min(2 * uses, len(classes) * L * MAX_USES // 2 * 2)
        order, _ = self._order(told)
        filled = torch.bincount(classes, minlength=C)[order // (L * MAX_USES)].cumsum(0)
        return order, filled, wanted, min(int(torch.searchsorted(filled, wanted)), len(order) - 1)

    def price_of(self, classes: Tensor, uses: int, snr_db: float) -> int:
        """The price of :meth:`allocate`'s plan."""
        told = self.told_index(snr_db)
        order, _, _, last = self._filled(classes, uses, told)
        row, m = divmod(int(order[last]), MAX_USES)
        return int(self.levels.flatten()[row]) - int(self.thresholds[told, m])

    def allocate(self, classes: Tensor, uses: int, snr_db: float) -> Plan:
        """Share ``uses`` complex channel uses out over blocks of these classes (N,), for a told SNR."""
        told = self.told_index(snr_db)
        C, L = self.levels.shape
        order, filled, wanted, last = self._filled(classes, uses, told)
        table = torch.bincount(order[:last] // MAX_USES, minlength=C * L).reshape(C, L)
        owner, rest = divmod(int(order[last]), L * MAX_USES)
        price = int(self.levels[owner, rest // MAX_USES]) - int(self.thresholds[told, rest % MAX_USES])
        # The marginal use goes to the first blocks of its class only: they are a class of their own here.
        more = table[owner].clone()
        more[rest // MAX_USES] += 1
        members = (classes == owner).nonzero().flatten()[: wanted - (int(filled[last - 1]) if last else 0)]
        of_blocks = classes.clone()
        of_blocks[members] = C
        table = torch.cat([table, more[None]])
        power, curve = self._powers(told, price, torch.cat([self.levels, self.levels[owner, None]]), table)
        return Plan(table[of_blocks], power[of_blocks], curve[of_blocks], price, told)

    def _powers(self, told: int, price: int, levels: Tensor, uses: Tensor) -> tuple[Tensor, Tensor]:
        """Power and curve at so many uses, both as the levels are."""
        depth = (levels.long() - price + BELOW).clamp(0, DEPTH - 1)
        quarter = self.powers[told][(uses - 1).clamp_min(0), depth]
        snr = torch.div(quarter + STEPS_PER_DB // 2, STEPS_PER_DB, rounding_mode="floor") + told + TOLD_LOW_DB - LOW_DB
        power = 10 ** (quarter.float() / (10 * STEPS_PER_DB)) * (uses > 0)
        return power, snr.clamp(0, len(self.expansion.gain_db) - 1)

    def priced(self, price: int, told: int) -> Priced:
        """What a price makes of every class; kept while the statistics stay the same."""
        key = (price, told, *self._edition())
        if key not in self._priced:
            kept = [(k, v) for k, v in self._priced.items() if k[2:] == key[2:]][1 - KEPT :]
            self._priced = {**dict(kept), key: self._price(price, told)}
        return self._priced[key]

    def _price(self, price_steps: int, told: int, m: Tensor | None = None) -> Priced:
        """``m``: (C, L) uses of every coefficient, where these are not those that pay for themselves."""
        price = 10 ** (price_steps / (10 * STEPS_PER_DB))
        m = ((self.levels[:, :, None].long() - self.thresholds[told]) >= price_steps).sum(-1) if m is None else m
        p, curve = self._powers(told, price_steps, self.levels, m)
        sent, std = m > 0, self.blocks.std
        variance = std.square().clamp_min(1e-9)
        snr = 10 ** ((told + TOLD_LOW_DB) / 10)
        gain = torch.where(m == 1, 1 + p * snr, 10 ** (self.expansion.gain_db[curve, (m - 1).clamp_min(0)] / 10))
        theta = float(self.power_price[told]) * price
        # One use shrinks what it carries (LMMSE); more uses leave an error that does not depend on the value.
        shrink = torch.where(m == 1, gain.reciprocal().square(), torch.zeros_like(gain))
        weight = torch.where(sent, shrink + theta * m * p / variance, torch.ones_like(gain))
        error = torch.where(m == 1, variance * (gain.reciprocal() - gain.reciprocal().square()), variance / gain)
        bias = (sent * (error + (price - theta) * m)).sum(1)
        turned = m[:, : self.blocks.rotated]
        place, number = (turned > 0), turned[turned > 0]
        directions = self.blocks.rotations[place] if self.blocks.rotated else weight[:0, :0]
        owner = F.one_hot(place.nonzero()[:, 0], len(m)).float()
        gains = owner * (weight[:, : self.blocks.rotated][place] - 1)[:, None]
        bent = (number > 1).nonzero().flatten()
        ends = REACH * std[:, : self.blocks.rotated][place][bent]
        reach = int(sent.any(0).nonzero().max()) + 1 if bool(sent.any()) else 0
        reach = max(reach, self.blocks.rotated)
        weighed = None
        if self.importance is not None:
            within, toll = self.importance.within(), sent * theta * m * p / variance
            places, bends = (place.flatten().nonzero().flatten() for place in (turned > 0, turned > 1))
            weighed = Weighed(
                within * torch.where(sent, shrink, 1.0),
                (sent * within * error).sum(1),
                toll,
                (sent * (price - theta) * m).sum(1),
                places,
                owner * toll[:, : self.blocks.rotated][place][:, None],
                bends,
                ends,
                owner[bent] * within[:, : self.blocks.rotated][turned > 1][:, None],
            )
            reach = self.blocks.latents
        return Priced(m, p, curve, sent.any(1), reach, weight, bias, directions, gains, bent, ends, owner[bent], weighed)

    # -- which class -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def choose(self, rows: Tensor, grids: Sequence[Grid], uses: int, snr_db: float, bits_per_use: float) -> Tensor:
        """Classes (N,) of one picture's blocks (N, L) that cost least, side information included.

        Args:
            grids: the maps that the blocks make, one after the other. uses: complex channel uses for the blocks, about.
                bits_per_use: what a use carries of side information.
        """
        likely = self.likely(rows, grids)
        price = self.price_of(likely, uses, snr_db)
        priced = self.priced(price, self.told_index(snr_db))
        bits = _lengths(self.blocks.frequencies) * self.bit_price(price, bits_per_use)
        chosen = []
        for grid, own, part in parts(grids, likely, rows):
            of = slice(grid.first, grid.last)
            cost = self._block_costs(part, priced, own)[:, of].reshape(grid.height, grid.width, -1)
            start = own.reshape(grid.height, grid.width) - grid.first
            chosen.append(refine(cost, bits[of, of], start).flatten() + grid.first)
        return torch.cat(chosen)

    def likely(self, rows: Tensor, grids: Sequence[Grid]) -> Tensor:
        """The likeliest classes (N,) of one picture's blocks (N, L)."""
        found = [self.blocks.classify_rows(part, grid.first, grid.last) for grid, part in parts(grids, rows)]
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
        (:func:`refine`)."""
        priced = self.priced(price, self.told_index(snr_db))
        rows = self.blocks.analyse_rows(self.blocks.pixels(picture), priced.reach)
        cost = self._block_costs(rows, priced).reshape(*earlier.shape, -1)
        bits = _lengths(table) * self.bit_price(price, bits_per_use)
        classes = refine(cost, bits, (cost + bits.mean(0)).argmin(-1), context, earlier)
        busy = priced.loud[classes.flatten()].nonzero().flatten()
        return Choice(classes, busy, F.pad(rows[busy], (0, self.blocks.latents - priced.reach)))

    @torch.no_grad()
    def demand(self, pixels: Tensor, price: int, snr_db: float, bits_per_use: float) -> tuple[Tensor, Tensor]:
        """Real channel uses, and bits of the class, that each of blocks (N, 768) would take at a price, about, (N,) each."""
        priced = self.priced(price, self.told_index(snr_db))
        cost = self._block_costs(self.blocks.analyse_rows(pixels, priced.reach), priced)
        bits = 0.6 * _lengths(self.blocks.frequencies.double().sum(0, keepdim=True))[0]
        classes = (cost + self.bit_price(price, bits_per_use) * bits).argmin(1)
        return priced.uses.sum(1)[classes], bits[classes]

    def plan_at(self, classes: Tensor, price: int, snr_db: float) -> Plan:
        """What blocks of these classes (N,) are worth at a price: every use that pays for itself."""
        told = self.told_index(snr_db)
        priced = self.priced(price, told)
        return Plan(priced.uses[classes], priced.power[classes], priced.curve[classes], price, told)

    def busy(self, classes: Tensor, price: int, snr_db: float) -> Tensor:
        """Which of the blocks of these classes (N,) get channel uses at a price: (n,) indices."""
        return self.priced(price, self.told_index(snr_db)).loud[classes].nonzero().flatten()

    @staticmethod
    def bit_price(price: int, bits_per_use: float) -> float:
        """What a bit of side information costs at a price of a use, in squared pixel values."""
        return 2 * 10 ** (price / (10 * STEPS_PER_DB)) / bits_per_use

    def _block_costs(self, rows: Tensor, priced: Priced, likely: Tensor | None = None) -> Tensor:
        """Distortion plus priced uses and power of blocks (N, L) in every class, less what they have for energy: (N, C).

        Only what a class sends makes a difference: of 128 coefficients in its own basis few are, at most prices. Where errors
        are weighed everything does, and the ``likely`` classes (N,), if known already, need not be found again.
        """
        if priced.weighed is not None:
            assert self.importance is not None
            likely = self.blocks.classify_rows(rows) if likely is None else likely
            return weighed_costs(rows, likely, self.blocks, self.importance, priced.weighed)
        M = self.blocks.rotated
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

    def shifted(self, plan: Plan, decibels: int) -> Plan:
        """The plan for symbols that will be scaled by so many decibels: on the curves of the SNR that this leaves."""
        return plan._replace(curve=(plan.curve + decibels).clamp(0, len(self.expansion.gain_db) - 1))

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


def _lengths(table: Tensor) -> Tensor:
    """Ideal code lengths in bits under rows of frequencies."""
    often = table.double()
    return -(often / often.sum(1, keepdim=True)).log2().float()


def _places(plan: Plan) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Per number of uses m that occurs: m, which coefficients (N, L) have it, and where their symbols stand (count, m)."""
    ends = plan.uses.flatten().cumsum(0).reshape(plan.uses.shape)
    for m in range(1, MAX_USES + 1):
        where = plan.uses == m
        place = (ends[where] - m)[:, None] + torch.arange(m, device=ends.device)
        if len(place):
            yield m, where, place


def joined(plans: list[Plan]) -> Plan:
    """Plans of several pictures as one over all of their blocks."""
    uses, power, curve = (torch.cat(part) for part in list(zip(*plans, strict=True))[:3])
    return Plan(uses, power, curve, plans[0].price, plans[0].told)


def mean_context(left: Tensor, up: Tensor) -> Tensor:
    """Context of a class in a picture: the mean of left and upper neighbour, rounded up, as for the coder of maps."""
    return torch.div(left + up + 1, 2, rounding_mode="floor")


def refine(
    cost: Tensor,
    bits: Tensor,
    classes: Tensor,
    context: Callable[[Tensor, Tensor], Tensor] = mean_context,
    earlier: Tensor | None = None,
    sweeps: int = 2,
) -> Tensor:
    """Classes (h, w) that lower the sum of cost (h, w, C) and priced code length, by iterated conditional modes.

    Args:
        bits: (contexts, C) priced length of a class in a context. classes: where to start. context: of a class, from those of
            its left and its upper neighbour. earlier: (h, w) is added to contexts; where it is given, neighbours beyond the
            edge are class 0, else the one that there is stands for the other.
    """
    now = classes.clone()
    h, w, C = cost.shape
    odd = (torch.arange(h)[:, None] + torch.arange(w)) % 2
    every = torch.arange(C)
    offset = torch.zeros(h, w, dtype=torch.int64) if earlier is None else earlier
    for turn in range(2 * sweeps):
        left, up = F.pad(now[:, :-1], (1, 0)), F.pad(now[:-1], (0, 0, 1, 0))
        if earlier is None:
            left, up = torch.cat([up[:, :1], left[:, 1:]], 1), torch.cat([left[:1], up[1:]], 0)
        total = cost + bits[context(left, up) + offset]
        # What the choice makes of the contexts of the right and the lower neighbour, away from the edges.
        if w > 1 and h > 1:
            right = context(every, up[1:, 1:, None]) + offset[1:, 1:, None]
            total[1:, :-1] += bits[right, now[1:, 1:, None]]
            lower = context(left[1:, 1:, None], every) + offset[1:, 1:, None]
            total[:-1, 1:] += bits[lower, now[1:, 1:, None]]
        now = torch.where(odd == turn % 2, total.argmin(-1), now)
    return now
