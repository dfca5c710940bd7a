"""What is seen again is seen better; what is new is not spoilt by what was seen."""

from __future__ import annotations

import math

import pytest
import torch
from test_block_code import CODE, LATENTS
from tiny_systems import Ends, psnr_db, scene
from torch import Tensor

from semcast.checkpoint import make_system
from semcast.layers.allocation import Plan
from semcast.layers.block_classes import Grid
from semcast.layers.recall import recall

GRID = (24, 32)
WHERE = Grid(*GRID, 0, 4)


def made(seed: int) -> tuple[Tensor, Tensor]:
    """Coefficients (N, L) of blocks as their classes have them, and the classes (h, w), alike over stretches of eight."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (GRID[0], GRID[1] // 8), generator=random).repeat_interleave(8, 1)
    return torch.randn(classes.numel(), LATENTS, generator=random) * CODE.blocks.std[classes.flatten()], classes


def sent(rows: Tensor, classes: Tensor, snr_db: float, seed: int, uses: int = 6000) -> tuple[Tensor, Plan]:
    plan = CODE.allocate(classes.flatten(), uses, snr_db)
    symbols = CODE.modulate(rows, classes.flatten(), plan)
    noise_var = 10 ** (-snr_db / 10)
    noise = torch.randn(symbols.shape, generator=torch.Generator().manual_seed(seed)) * math.sqrt(noise_var)
    one = torch.ones(len(rows))
    return CODE.demodulate(symbols + noise, torch.full_like(symbols, noise_var), one, classes.flatten(), plan), plan


@pytest.mark.parametrize("snr_db", [2.0, 10.0, 18.0])
def test_errors_are_as_large_as_they_are_said_to_be(snr_db: float) -> None:
    rows, classes = made(1)
    arrived, plan = sent(rows, classes, snr_db, 2)
    said, seen = CODE.errors(classes.flatten(), plan, snr_db), (arrived - rows).square()
    for uses, within in enumerate((0.05, 0.05, 0.2, 0.7)):  # curves of more uses are for heavier tails than these
        where = plan.uses == uses
        if int(where.sum()) > 500:
            assert float(seen[where].mean() / said[where].mean()) == pytest.approx(1, abs=within), uses


@pytest.mark.parametrize("snr_db", [2.0, 10.0])
def test_two_looks_at_the_same_are_better_than_one(snr_db: float) -> None:
    """Sent coefficients gain most of the 3 dB of two independent looks; what has nothing to do with them costs little."""
    rows, classes = made(3)
    (arrived, plan), (before, _) = sent(rows, classes, snr_db, 4), sent(rows, classes, snr_db, 5)
    both = recall(CODE, arrived, classes.flatten(), WHERE, plan, snr_db, before)
    where = plan.uses > 0
    gain_db = 10 * math.log10(float((arrived - rows).square()[where].mean() / (both - rows).square()[where].mean()))
    assert 1.5 < gain_db < 3.1
    stranger, _ = made(6)
    alone = recall(CODE, arrived, classes.flatten(), WHERE, plan, snr_db, stranger)
    assert float((alone - rows).square().mean()) < 1.06 * float((arrived - rows).square().mean())


def test_what_was_not_sent_comes_from_before() -> None:
    rows, classes = made(7)
    arrived, plan = sent(rows, classes, 10.0, 8, uses=1500)
    unsent = plan.uses == 0
    both = recall(CODE, arrived, classes.flatten(), WHERE, plan, 10.0, rows)
    assert float((both - rows).square()[unsent].mean()) < 0.4 * float(rows.square()[unsent].mean())
    nothing = CODE.allocate(classes.flatten(), 0, 10.0)
    assert torch.equal(recall(CODE, arrived, classes.flatten(), WHERE, nothing, 10.0, rows), arrived)


def test_key_frames_of_what_stands_still_get_better_from_group_to_group() -> None:
    system, _ = make_system("dvst:small", condition="dvst-paper")
    frame = scene("coffee-pan", 1, 160, 128)
    ends = Ends(system.eval(), frame, cbr=0.03, snr_db=5.0)
    with torch.no_grad():
        shown = [ends.show(ends.send(frame.repeat(4, 1, 1, 1)), 4).frames for _ in range(3)]
    first, _, third = (psnr_db(frame[0], one[0, 0]) for one in shown if one is not None)
    assert third > first + 0.3
