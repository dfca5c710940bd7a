"""How many channel uses every coefficient gets, with how much power: the same at both ends, from whole numbers alone.

With variances v known to both ends, distortion v / G_m(p) for m uses at power p, and prices of both, every coefficient has a
best (m, p) that depends on v over the price alone; the price is what makes all uses add up to the budget. So m rises with
log v, i.e. with the entropy of the coefficient, as k = eta * -log P of nonlinear transform source-channel coding (Dai et al.
2022) asks. What follows from the classes of blocks is integers looked up in a table, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import resources
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load
from torch import Tensor, nn

from semcast.layers.expansion import LOW_DB, MAX_USES, Expansion

STEPS_PER_DB = 4
"""Variances, prices and powers count in quarters of a decibel."""
TOLD_LOW_DB, TOLD_HIGH_DB = -6, 24
"""SNRs that plans are made for, in whole decibels; beyond, the nearest is taken."""
DEPTH = 70 * STEPS_PER_DB
"""Range of a variance over the price, from -10 to 60 dB."""
BELOW = 10 * STEPS_PER_DB
KEPT = 64
"""Prices that tables are kept for."""


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


class Rates(NamedTuple):
    """What a price of a use buys: uses, power and curve (C, L) of every coefficient of a class's blocks, as in :class:`Plan`,
    and whether any is sent, (C,)."""

    uses: Tensor
    power: Tensor
    curve: Tensor
    loud: Tensor


class Allocation(nn.Module):
    """Variances of classes, and what they make of a budget or of a price.

    Args:
        classes, latents: C and L.
    """

    levels: Tensor
    thresholds: Tensor
    powers: Tensor
    power_price: Tensor

    def __init__(self, classes: int, latents: int) -> None:
        super().__init__()
        self.expansion = Expansion()
        levels = torch.zeros(classes, latents, dtype=torch.int32)
        self.register_buffer("levels", levels)  # of weighed variances, quarter dB
        table = load((resources.files("semcast.layers") / "expansion.safetensors").read_bytes())
        self.register_buffer("thresholds", table["thresholds"].long(), persistent=False)  # (told, MAX_USES)
        self.register_buffer("powers", table["powers"].long(), persistent=False)  # (told, MAX_USES, DEPTH)
        self.register_buffer("power_price", table["power_price"].float(), persistent=False)  # (told,)
        self._orders: dict[tuple[int, ...], Tensor] = {}
        self._kept: dict[tuple[int, ...], Any] = {}

    @staticmethod
    def told_index(snr_db: float) -> int:
        """Row of the tables for a told SNR."""
        return round(max(TOLD_LOW_DB, min(TOLD_HIGH_DB, snr_db))) - TOLD_LOW_DB

    def _edition(self) -> tuple[int, ...]:
        """Of the statistics: what is kept holds for one version of them."""
        mark = self.levels.data_ptr() if self.levels.is_inference() else self.levels._version
        return mark, torch.is_inference_mode_enabled()

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

    def _keep(self, make: Callable[[], Any], *key: int) -> Any:
        """What was made for a key; kept while the statistics stay the same."""
        key = (*self._edition(), *key)
        if key not in self._kept:
            same = [(k, v) for k, v in self._kept.items() if k[: len(self._edition())] == self._edition()]
            self._kept = {**dict(same[1 - KEPT :]), key: make()}
        return self._kept[key]

    def rates(self, price: int, told: int) -> Rates:
        """What a price buys in every class."""
        return cast(Rates, self._keep(partial(self._rates, price, told), price, told))

    def _rates(self, price: int, told: int) -> Rates:
        uses = ((self.levels[:, :, None].long() - self.thresholds[told]) >= price).sum(-1)
        return Rates(uses, *self._powers(told, price, self.levels, uses), (uses > 0).any(1))

    def plan_at(self, classes: Tensor, price: int, snr_db: float) -> Plan:
        """What blocks of these classes (N,) are worth at a price: every use that pays for itself."""
        told = self.told_index(snr_db)
        uses, power, curve, _ = self.rates(price, told)
        return Plan(uses[classes], power[classes], curve[classes], price, told)

    def busy(self, classes: Tensor, price: int, snr_db: float) -> Tensor:
        """Which of the rows of these classes (N,) get channel uses at a price: (n,) indices."""
        return self.rates(price, self.told_index(snr_db)).loud[classes].nonzero().flatten()

    @staticmethod
    def bit_price(price: int, bits_per_use: float) -> float:
        """What a bit of side information costs at a price of a use, in squared pixel values."""
        return 2 * 10 ** (price / (10 * STEPS_PER_DB)) / bits_per_use

    def shifted(self, plan: Plan, decibels: int) -> Plan:
        """The plan for symbols that will be scaled by so many decibels: on the curves of the SNR that this leaves."""
        return plan._replace(curve=(plan.curve + decibels).clamp(0, len(self.expansion.gain_db) - 1))


def placed(rows: Tensor, index: Tensor, count: int) -> Tensor:
    """Rows (n, ...) at their places (n,) among so many, all others 0."""
    return rows.new_zeros(count, *rows.shape[1:]).index_copy(0, index, rows)


def joined(plans: list[Plan]) -> Plan:
    """Plans of several pictures as one over all of their blocks."""
    uses, power, curve = (torch.cat(part) for part in list(zip(*plans, strict=True))[:3])
    return Plan(uses, power, curve, plans[0].price, plans[0].told)
