"""Statistics of blocks and quarters, fitted: tables know their contexts, and splitting lowers what blocks cost."""

from __future__ import annotations

import numpy as np
import torch
from test_block_code import corners
from torch import Tensor

from semcast.layers.block_classes import BlockClasses, quarter_contexts
from semcast.layers.block_code import BlockCode
from semcast.layers.class_fit import quarter_counts


def test_tables_of_quarters_are_what_was_counted() -> None:
    """The first alone, those beside it given it; the last from both of them, though most pairs never came."""
    rng = np.random.default_rng(0)
    first = rng.choice(3, 4000, p=[0.6, 0.3, 0.1])
    beside = [np.where(rng.random(4000) < 0.7, first, rng.integers(0, 3, 4000)) for _ in range(2)]
    last = np.where(rng.random(4000) < 0.5, beside[0], beside[1])
    quarters = np.stack([first, *beside, last], 1)
    table = quarter_counts(quarters, 3)
    assert table.shape == (1 + 3 + 9, 3)
    assert table.min() >= 1
    shares = table / table.sum(1, keepdims=True)
    assert np.allclose(shares[0], [0.6, 0.3, 0.1], atol=0.03)
    assert np.allclose(np.diag(shares[1:4]), 0.8, atol=0.04)
    both = shares[4:].reshape(3, 3, 3)
    assert all(both[k, k].argmax() == k for k in range(3))
    ideal = -np.log2(shares[quarter_contexts(quarters, 3), quarters]).sum()
    alone = -np.log2(np.bincount(quarters.ravel(), minlength=3)[quarters] / quarters.size).sum()
    assert ideal < 0.85 * alone


def test_nothing_counted_leaves_everything_possible() -> None:
    assert quarter_counts(np.zeros((0, 4), dtype=np.int64), 4).min() >= 1


def test_estimates_are_those_of_the_blocks_that_chose_the_class() -> None:
    """Of another kind than the first as well; a class that nobody chose keeps to what all have."""
    random = torch.Generator().manual_seed(0)
    blocks = BlockClasses(2, 12, 0, more=[(3, 8, 4)])
    turn = torch.linalg.qr(torch.randn(8, 8, generator=random)).Q
    scale = torch.tensor([4.0, 1, 1, 1, 0.5, 0.5, 0.2, 0.2])
    classes = torch.arange(4000) % 2
    rows = torch.randn(4000, 8, generator=random) * torch.where(classes[:, None] == 0, scale, 2 * scale)
    rows[:, :4] = rows[:, :4] @ turn[:4, :4]
    blocks.estimate(rows, classes, 1)
    first, _, latents, rotated = blocks.kinds[1]
    energy = [float(rows[classes == k].square().mean(0).sum()) for k in range(2)]
    found = [float(blocks.std[first + k, :latents].square().sum()) for k in range(2)]
    assert np.allclose(found, energy, rtol=0.05)
    own = blocks.rotations_of(1)[:2]
    for k in range(2):
        turned = rows[classes == k, :rotated] @ own[k].T
        spread = turned.T @ turned / len(turned)
        assert float((spread - spread.diag().diag()).abs().max()) < 0.05 * float(spread.diag().max())
    assert bool((blocks.std[first : first + 3, latents:] < 1e-5).all())
    assert torch.allclose(blocks.std[first + 2, rotated:latents], rows[:, rotated:].square().mean(0).sqrt(), rtol=0.01)


def test_splitting_lowers_what_blocks_cost() -> None:
    """On pictures of the same kind that nothing was fitted to, side information priced; whoever would not gain is not split."""
    code = BlockCode(3, 96, 16, quarters=3)
    code.fit(corners(11, 24), 6)
    told, price = code.told_index(10.0), -90
    a_bit = code.bit_price(price, 2.0)

    def best(frames: Tensor) -> tuple[Tensor, Tensor]:
        cost, _ = code._costs_at(code.blocks.pixels(frames)[0], price, told, a_bit)
        return cost[:, :-1].min(1).values, cost[:, -1]

    whole, split = best(corners(12))
    assert float(torch.minimum(whole, split).sum()) < 1.05 * float(whole.sum())  # costs are below zero: less is more
    calm = 0.5 + 0.001 * torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(2))
    assert bool((best(calm)[1] == torch.inf).all())
