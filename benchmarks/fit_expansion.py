"""Optimise the curves of semcast.layers.expansion and write their table.

python benchmarks/fit_expansion.py src/semcast/layers/expansion.safetensors
"""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from semcast.layers.allocation import BELOW, DEPTH, STEPS_PER_DB, TOLD_HIGH_DB, TOLD_LOW_DB
from semcast.layers.expansion import HIGH_DB, LOW_DB, MAX_USES, NODES, estimate, follow, nodes, prior

SAMPLES, STEPS, LR = 2048, 160, 0.015


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Source values (count,) from the prior."""
    segment = torch.multinomial(prior(), count, replacement=True, generator=generator)
    grid = nodes()
    return grid[segment] + torch.rand(count, generator=generator) * grid.diff()[segment]


def start(levels: tuple[int, ...]) -> Tensor:
    """A staircase in all uses but the last, which carries what is left, folded so that the curve is unbroken: (NODES, m)."""
    grid = nodes()
    cells = math.prod(levels)
    width = 3.2 / cells if cells > 2 else 1.6
    index = ((grid / width).floor() + cells // 2).clamp(0, cells - 1).long()
    rest = (grid - (index - cells / 2 + 0.5) * width) * (1 - 2 * (index % 2))
    columns, remaining = [], index
    for count in reversed(levels):
        digit = remaining % count
        remaining = remaining // count
        digit = torch.where(remaining % 2 == 1, count - 1 - digit, digit)  # a reflected code: neighbours differ in one digit
        columns.insert(0, (digit - (count - 1) / 2) / max((count**2 - 1) / 12, 0.25) ** 0.5)
    power = (prior() * (rest[1:].square() + rest[:-1].square()) / 2).sum().sqrt()
    return torch.stack([*columns, rest / power], 1)


def longer(curve: Tensor) -> list[Tensor]:
    """Starts for one use more: a curve (NODES, m) with one of its uses, or with the source value, once more."""
    return [torch.cat([curve, column[:, None]], 1) for column in (*curve.T, nodes())]


def normalised(curve: Tensor) -> Tensor:
    """The curve at mean power 1 per use."""
    a, b = curve[:-1], curve[1:]
    power = (prior()[:, None] * (a.square() + a * b + b.square()) / 3).sum() / curve.shape[1]
    return curve / power.sqrt()


def distortion(curve: Tensor, snr_db: float, samples: int, generator: torch.Generator) -> Tensor:
    """Mean squared error of the posterior mean."""
    x = draw(samples, generator)
    noise = 10 ** (-snr_db / 10)
    one = normalised(curve)
    symbols = follow(one.expand(samples, -1, -1), x)
    y = symbols + math.sqrt(noise) * torch.randn(symbols.shape, generator=generator)
    return (estimate(one, y, torch.full_like(y, noise))[0] - x).square().mean()


def optimise(curve: Tensor, snr_db: float, steps: int) -> tuple[Tensor, float]:
    """Descend from a curve; returns the best and its signal-to-distortion ratio in dB."""
    generator = torch.Generator().manual_seed(0)
    curve = curve.clone().requires_grad_(True)
    adam = torch.optim.Adam([curve], lr=LR)
    for step in range(steps):
        adam.param_groups[0]["lr"] = LR * (1 - step / steps) + 1e-4
        loss = distortion(curve, snr_db, SAMPLES, generator).log()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        best = normalised(curve.detach())
        return best, -10 * math.log10(float(distortion(best, snr_db, 40000, torch.Generator().manual_seed(1))))


DENSITY_PER_DB = 0.04
"""Coefficients of variance v are about v^-0.4 as frequent; that decides what power costs beside uses."""


def plan_tables(gain_db: Tensor) -> dict[str, Tensor]:
    """What variance over price pays for one more use, and power per use, as integers; and the price of power.

    Minimises v / G_m(p SNR) + m + price_of_power m (p - 1) over uses m and power p, a use being worth 1. The price of power is
    such that the mean power over coefficients of falling variance is 1.
    """
    depth_db = (torch.arange(DEPTH) - BELOW).double() / STEPS_PER_DB
    variance = 10 ** (depth_db / 10)
    density = 10 ** (-DENSITY_PER_DB * depth_db) * (depth_db < 45)
    quarter = torch.arange(-24 * STEPS_PER_DB, 24 * STEPS_PER_DB + 1)
    power_db = quarter.double() / STEPS_PER_DB
    power = 10 ** (power_db / 10)
    told = range(TOLD_LOW_DB, TOLD_HIGH_DB + 1)
    thresholds = torch.zeros(len(told), MAX_USES, dtype=torch.int16)
    powers = torch.zeros(len(told), MAX_USES, DEPTH, dtype=torch.int16)
    prices = torch.zeros(len(told))
    for row, snr_db in enumerate(told):
        at = power_db + snr_db
        ratios = [10 * torch.log10(1 + 10 ** (at / 10))]
        for uses in range(2, MAX_USES + 1):
            position = (at - LOW_DB).clamp(0, len(gain_db) - 1.001)
            lower = position.floor().long()
            column = gain_db[:, uses - 1].double()
            ratio = column[lower] + (position - lower) * (column[lower + 1] - column[lower])
            ratios.append(torch.where(at < LOW_DB, ratios[0], ratio))  # below the table several uses are no better than one
        low, high = 1e-3, 0.97  # at 1 a use would pay for itself with the power that it brings: the linear regime
        for _ in range(40):
            price = math.sqrt(low * high)
            costs, best = [variance], []
            for uses in range(1, MAX_USES + 1):
                total = variance[:, None] * 10 ** (-ratios[uses - 1] / 10) + uses + price * uses * (power - 1)
                least, index = total.min(1)
                costs.append(least)
                best.append(index)
            choice = torch.stack(costs).argmin(0)
            excess = sum(((choice == m) * density * m * (power[best[m - 1]] - 1)).sum() for m in range(1, MAX_USES + 1))
            low, high = (price, high) if float(excess) > 0 else (low, price)
        for m in range(1, MAX_USES + 1):
            paid = (choice >= m).nonzero()
            thresholds[row, m - 1] = int(paid[0]) - BELOW if len(paid) else 32000
            powers[row, m - 1] = quarter[best[m - 1]].to(torch.int16)
        prices[row] = price
    return {"thresholds": thresholds, "powers": powers, "power_price": prices}


def main(out: str) -> None:
    """Fit from the highest SNR down: every curve from its neighbour's, and from the best of staircases and, with more than two
    uses, of curves with one use fewer. Curves that the file has already stay where they are better.
    """
    known = load(Path(out).read_bytes())["curves"].float() if Path(out).exists() else None
    steps_db = range(HIGH_DB, LOW_DB - 1, -1)
    curves = torch.zeros(len(steps_db), MAX_USES - 1, NODES, MAX_USES)
    gain = torch.zeros(len(steps_db), MAX_USES)
    for uses in range(1, MAX_USES + 1):
        last: Tensor | None = None
        for snr_db in steps_db:
            row = snr_db - LOW_DB
            if uses == 1:
                gain[row, 0] = 10 * math.log10(1 + 10 ** (snr_db / 10))
                continue
            starts = [start((count,) * (uses - 1)) for count in ((2, 3, 4) if uses == 2 else (2, 3))]
            starts.append(nodes()[:, None].expand(-1, uses).clone())
            if uses > 2:
                starts += longer(curves[row, uses - 3, :, : uses - 1])
            generator = torch.Generator().manual_seed(2)
            scores = [float(distortion(one, snr_db, 8000, generator)) for one in starts]
            candidates = [starts[min(range(len(starts)), key=scores.__getitem__)]]
            if last is not None:
                candidates.append(last)
            found = [optimise(one, snr_db, STEPS) for one in candidates]
            if known is not None and uses - 2 < known.shape[1]:
                found.append(optimise(known[row, uses - 2, :, :uses], snr_db, 0))
            last, ratio = max(found, key=lambda item: item[1])
            curves[row, uses - 2, :, :uses], gain[row, uses - 1] = last, ratio
            linear = 10 * math.log10(1 + uses * 10 ** (snr_db / 10))
            print(f"{uses} uses at {snr_db:3d} dB: {ratio:5.2f} dB (linear {linear:5.2f})", flush=True)
    for row, uses in itertools.product(
        range(1, len(steps_db)), range(1, MAX_USES)
    ):  # noise of the fit must not look like a loss
        gain[row, uses] = max(gain[row, uses], gain[row - 1, uses])
    save_file({"curves": curves.half().contiguous(), "gain_db": gain.contiguous(), **plan_tables(gain)}, out)


if __name__ == "__main__":
    main(sys.argv[1])
