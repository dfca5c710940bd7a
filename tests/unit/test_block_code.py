"""The variable-rate code of blocks: uses add up, symbols come back, classes cost what they claim."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from semcast.layers.allocation import STEPS_PER_DB, TOLD_HIGH_DB, TOLD_LOW_DB, joined
from semcast.layers.block_classes import BLOCK, DIMS, contexts, quarter_contexts, quartered
from semcast.layers.block_code import QUARTER, BlockCode, parts
from semcast.layers.class_choice import choose_quarters, mean_context, refine
from semcast.layers.expansion import MAX_USES
from semcast.layers.side_coder import CLASS_CONTEXTS, class_contexts, earlier_context, groups, spatial_context

CLASSES, LATENTS = 4, 24


def fitted(classes: int = CLASSES, latents: int = LATENTS, rotated: int = 0) -> BlockCode:
    """Statistics that fall with the coefficient and rise with the class; bases at random."""
    random = torch.Generator().manual_seed(0)
    code = BlockCode(classes, latents, rotated)
    fall = 10 ** torch.linspace(0, -1.5, latents)
    code.blocks.std.copy_(torch.linspace(0.3, 3, classes)[:, None] * fall)
    code.levels.copy_((STEPS_PER_DB * 20 * code.blocks.std.log10()).round().int())
    code.blocks.frequencies.copy_(torch.randint(1, 60000, (classes, classes), generator=random))
    if rotated:
        code.blocks.rotations.copy_(torch.linalg.qr(torch.randn(classes, rotated, rotated, generator=random)).Q)
    return code


CODE = fitted()


def some(n: int, seed: int, classes: int = CLASSES) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, classes, n))


# -- how many uses -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 3000), st.integers(0, 10**6), st.floats(-60, 60))
def test_the_uses_asked_for_are_spent_to_the_last(n: int, uses: int, seed: int, snr_db: float) -> None:
    """Two real uses each, up to three per coefficient; what both ends do from the classes alone."""
    plan = CODE.allocate(some(n, seed), uses, snr_db)
    assert plan.uses.shape == plan.power.shape == plan.curve.shape == (n, LATENTS)
    assert int(plan.uses.sum()) == min(2 * uses, n * LATENTS * MAX_USES // 2 * 2)
    assert 0 <= int(plan.uses.min()) <= int(plan.uses.max()) <= MAX_USES
    assert bool(((plan.power > 0) == (plan.uses > 0)).all())
    assert int(plan.curve.min()) >= 0
    assert int(plan.curve.max()) < len(CODE.expansion.gain_db)


def test_one_class_alone_and_classes_that_do_not_occur() -> None:
    for classes in (torch.zeros(5, dtype=torch.int64), torch.full((5,), CLASSES - 1)):
        for uses in (1, 7, 50, 179, 180, 1000):
            assert int(CODE.allocate(classes, uses, 10.0).uses.sum()) == min(2 * uses, 5 * LATENTS * MAX_USES)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 1000), st.integers(0, 1000), st.sampled_from([-3.0, 4.0, 10.0, 20.0]))
def test_blocks_of_a_class_get_the_same_but_for_one_use(n: int, uses: int, seed: int, snr_db: float) -> None:
    classes = some(n, seed)
    plan = CODE.allocate(classes, uses, snr_db)
    for k in range(CLASSES):
        totals = plan.uses[classes == k].sum(1)
        assert len(totals) == 0 or int(totals.max() - totals.min()) <= 1
    # Within a block stronger coefficients never get fewer uses, nor busier classes less.
    assert bool((plan.uses.diff(dim=1) <= 0).all())
    shares = [float(plan.uses[classes == k].float().sum(1).mean()) for k in range(CLASSES) if bool((classes == k).any())]
    assert all(b >= a - 1 for a, b in itertools.pairwise(shares))


@pytest.mark.parametrize("snr_db", [-2.0, 10.0, 20.0])
def test_the_higher_the_price_the_fewer_uses(snr_db: float) -> None:
    classes = some(50, 1)
    totals = [CODE.plan_at(classes, price, snr_db).uses for price in range(-400, 128, 7)]
    assert all(bool((b <= a).all()) for a, b in itertools.pairwise(totals))
    assert int(totals[0].min()) >= MAX_USES - 1  # at some SNRs the last use never pays for itself
    assert int(totals[-1].max()) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(-100, 60), st.integers(0, 1000), st.integers(TOLD_LOW_DB, TOLD_HIGH_DB))
def test_a_budget_and_its_price_say_the_same(n: int, price: int, seed: int, told: int) -> None:
    """Asked for as many uses as a price buys, or two more, allocation gives the blocks what they get at the price."""
    classes = some(n, seed)
    at = CODE.plan_at(classes, price, told)
    total = int(at.uses.sum())
    plan = CODE.allocate(classes, (total + 1) // 2, told)
    assert int((plan.uses - at.uses).abs().sum()) <= total % 2
    below = CODE.plan_at(classes, plan.price + 1, told)  # what the marginal price lets in, and nothing beyond it
    above = CODE.plan_at(classes, plan.price, told)
    assert bool(((below.uses <= plan.uses) & (plan.uses <= above.uses)).all())


def test_power_is_one_on_the_whole() -> None:
    """For the density of variances that the tables are made for, 10^(-0.04 dB): above 5 dB the price of power sees to it."""
    code = BlockCode(1, 384, 0)
    decibels = 20 - 25 * torch.log10(1 + torch.linspace(0, 1, 384) * 250)  # from 20 to -40 dB
    code.levels.copy_((STEPS_PER_DB * decibels).round().int()[None])
    for snr_db in (10.0, 20.0):
        for price in (-120, -80, -40):
            plan = code.plan_at(torch.zeros(1, dtype=torch.int64), price, snr_db)
            mean = float((plan.power * plan.uses).sum() / plan.uses.sum())
            assert mean == pytest.approx(1, abs=0.25)


def test_both_ends_plan_alike_whatever_came_before() -> None:
    """Orders are kept per SNR; a table that changes afterwards is sorted anew, and ties fall the same way."""
    one, two = fitted(), fitted()
    classes = some(77, 0)
    for snr_db in (18.0, -5.0, 7.0):
        two.allocate(some(9, 3), 50, snr_db)
    first, second = one.allocate(classes, 123, 9.5), two.allocate(classes.clone(), 123, 9.5)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, second, strict=True))
    assert torch.equal(one._order(8)[0], two._order(8)[0])
    worth = one._order(8)[1][one._order(8)[0]]
    assert bool((worth.diff() <= 0).all())
    two.levels.copy_(torch.randint(-100, 100, (CLASSES, LATENTS), generator=torch.Generator().manual_seed(1)))
    three = fitted()
    three.levels.copy_(two.levels)
    assert torch.equal(two.allocate(classes, 123, 9.5).uses, three.allocate(classes, 123, 9.5).uses)
    assert not torch.equal(two.allocate(classes, 123, 9.5).uses, first.uses)


def test_told_snr_beyond_the_tables_is_the_nearest() -> None:
    assert [BlockCode.told_index(snr) for snr in (-60, TOLD_LOW_DB, 0.4, 0.6, TOLD_HIGH_DB, 99)] == [
        0, 0, -TOLD_LOW_DB, 1 - TOLD_LOW_DB, TOLD_HIGH_DB - TOLD_LOW_DB, TOLD_HIGH_DB - TOLD_LOW_DB,
    ]  # fmt: skip


# -- symbols -------------------------------------------------------------------------------------------------------------------


def drawn(code: BlockCode, classes: Tensor, seed: int = 0) -> Tensor:
    """Coefficients (N, L) of blocks of these classes, Gaussian in their classes' own bases."""
    own = torch.randn(len(classes), code.levels.shape[1], generator=torch.Generator().manual_seed(seed))
    return code.blocks.rotate(own * code.blocks.std[classes], classes, back=True)


@pytest.mark.parametrize("rotated", [0, 10])
def test_at_high_snr_what_is_sent_comes_back(rotated: int) -> None:
    """With a use for every coefficient and 40 dB the error is that of the curves: below -35 dB of every class's energy."""
    code = fitted(rotated=rotated)
    classes = some(60, 5)
    rows = drawn(code, classes)
    plan = code.plan_at(classes, -400, 20.0)
    assert int(plan.uses.min()) >= 1
    symbols = code.modulate(rows, classes, plan)
    assert symbols.shape == (int(plan.uses.sum()),)
    noise = 1e-4
    random = torch.Generator().manual_seed(1)
    heard = 0.5 * symbols + noise**0.5 * torch.randn(symbols.shape, generator=random)
    back = code.demodulate(heard, torch.full_like(heard, noise), torch.full((60,), 0.5), classes, plan)
    error = (back - rows).square().sum(1) / code.blocks.std.square().sum(1)[classes]
    assert float(error.mean()) < 10**-3.5


def test_what_is_not_sent_is_estimated_as_nothing() -> None:
    classes = some(30, 6)
    rows = drawn(CODE, classes)
    plan = CODE.allocate(classes, 100, 10.0)
    symbols = CODE.modulate(rows, classes, plan)
    back = CODE.demodulate(symbols, torch.full_like(symbols, 0.1), torch.ones(30), classes, plan)
    assert bool((back[plan.uses == 0] == 0).all())
    assert bool((back[plan.uses > 0] != 0).all())
    error, silence = (back - rows).square().sum(), rows.square().sum()
    assert float(error) < 0.2 * float(silence)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 18.0])
def test_more_uses_and_better_radios_leave_less(snr_db: float) -> None:
    classes = some(300, 7)
    rows = drawn(CODE, classes)

    def left(uses: int, told: float) -> float:
        plan = CODE.allocate(classes, uses, told)
        symbols = CODE.modulate(rows, classes, plan)
        amplitude = float(symbols.square().mean().rsqrt())
        noise = torch.full_like(symbols, 10 ** (-told / 10))
        heard = amplitude * symbols + noise.sqrt() * torch.randn(symbols.shape, generator=torch.Generator().manual_seed(2))
        back = CODE.demodulate(heard, noise, torch.full((300,), amplitude), classes, plan)
        return float((back - rows).square().sum())

    assert left(800, snr_db) > 1.2 * left(1600, snr_db)
    assert left(1600, snr_db - 3) > 1.2 * left(1600, snr_db)


def test_plans_of_several_pictures_join() -> None:
    """Symbols and estimates are those of the pictures one after the other."""
    maps = [some(n, n) for n in (5, 9, 1)]
    plans = [CODE.allocate(one, 60, snr_db) for one, snr_db in zip(maps, (3.0, 10.0, 17.0), strict=True)]
    rows = [drawn(CODE, one, i) for i, one in enumerate(maps)]
    together, classes = joined(plans), torch.cat(maps)
    apart = [CODE.modulate(*each) for each in zip(rows, maps, plans, strict=True)]
    symbols = CODE.modulate(torch.cat(rows), classes, together)
    assert torch.equal(symbols, torch.cat(apart))
    noise, amplitude = torch.full_like(symbols, 0.05), torch.linspace(0.5, 1.5, len(classes))
    back = CODE.demodulate(symbols, noise, amplitude, classes, together)
    ends = [len(one) for one in maps]
    for y, n, a, one, plan, whole in zip(
        apart, noise.split([len(y) for y in apart]), amplitude.split(ends), maps, plans, back.split(ends), strict=True
    ):
        assert torch.allclose(CODE.demodulate(y, n, a, one, plan), whole, atol=1e-6)


def test_gradients_reach_coefficients_through_both_ends() -> None:
    classes = some(10, 8)
    rows = drawn(CODE, classes).requires_grad_(True)
    plan = CODE.allocate(classes, 90, 10.0)
    symbols = CODE.modulate(rows, classes, plan)
    CODE.demodulate(symbols, torch.full_like(symbols, 0.1), torch.ones(10), classes, plan).square().sum().backward()
    assert rows.grad is not None
    assert bool((rows.grad[plan.uses == 1] != 0).all())
    assert bool((rows.grad[plan.uses == 0] == 0).all())


# -- which class ---------------------------------------------------------------------------------------------------------------


def test_blocks_are_told_apart_and_bits_are_saved_where_they_are_dear() -> None:
    """Cheap bits: the class that blocks were drawn from, mostly. Dear bits: fewer changes from block to block."""
    code = fitted()
    code.blocks.frequencies.copy_(1 + 60000 * torch.eye(CLASSES).int())
    truth = some(80, 9).reshape(8, 10)
    rows, grids = drawn(code, truth.flatten()), code.grids(8, 10)
    cheap, dear = (code.choose(rows, grids, 500, 10.0, bits_per_use) for bits_per_use in (1e9, 1.0))
    assert float((cheap == truth.flatten()).float().mean()) > 0.7
    assert code.blocks.class_bits(dear.numpy(), grids) < 0.8 * code.blocks.class_bits(cheap.numpy(), grids)


Kind = tuple[Callable[[Tensor], Tensor], Tensor, Callable[[Tensor, Tensor], Tensor], Tensor | None]


def kind_of(name: str, h: int, w: int, C: int, seed: int, scale: float) -> Kind:
    """What :func:`refine` is used with: contexts of a map, table of bits, the context itself, what is added to it."""
    random = torch.Generator().manual_seed(seed)
    if name == "picture":
        near = torch.exp(-(torch.arange(C)[:, None] - torch.arange(C)).abs().float()) * torch.rand(C, C, generator=random)
        return lambda found: torch.from_numpy(contexts(found.numpy())), _bits(near, scale), mean_context, None
    group = groups(C)
    own = torch.from_numpy(group)
    before = torch.randint(0, C, (h, w), generator=random).numpy() if seed % 2 else None
    bits = _bits(torch.rand(CLASS_CONTEXTS, C, generator=random) ** 3 + 0.01, scale)
    earlier = torch.from_numpy(earlier_context(before, (h, w), group))
    return (
        lambda found: torch.from_numpy(class_contexts(found.numpy(), before, group)),
        bits,
        lambda left, up: spatial_context(own[left], own[up]),
        earlier,
    )


def _bits(table: Tensor, scale: float) -> Tensor:
    return -(table / table.sum(1, keepdim=True)).log2() * scale


def total(cost: Tensor, found: Tensor, kind: Kind) -> float:
    """Cost of a map with every bit of it, counted as the coder would."""
    return float(cost.gather(2, found[..., None]).sum() + kind[1][kind[0](found), found].sum())


@pytest.mark.parametrize("name", ["picture", "run"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_refining_lowers_what_a_map_costs(name: str, scale: float) -> None:
    for seed in range(30):
        cost = 3 * torch.rand(6, 7, 8, generator=torch.Generator().manual_seed(seed))
        kind = kind_of(name, 6, 7, 8, seed, scale)
        start = cost.argmin(-1)
        kept = start.clone()
        assert total(cost, refine(cost, kind[1], start, *kind[2:]), kind) < total(cost, start, kind)
        assert torch.equal(start, kept)


@pytest.mark.parametrize("name", ["picture", "run"])
def test_refining_comes_near_the_best_of_all_maps(name: str) -> None:
    """2x3 blocks of 3 classes, all 729 maps. Where a map is nothing but edge a step may go wrong; most of the way is made."""
    gone = still = 0.0
    every = [torch.tensor(one).reshape(2, 3) for one in itertools.product(range(3), repeat=6)]
    for seed in range(6):
        cost = 3 * torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(seed))
        kind = kind_of(name, 2, 3, 3, seed, 1.0)
        best = min(total(cost, one, kind) for one in every)
        start = cost.argmin(-1)
        found = total(cost, refine(cost, kind[1], start, *kind[2:]), kind)
        assert found >= best - 1e-4
        gone, still = gone + total(cost, start, kind) - found, still + found - best
    assert gone > 2 * still


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 6), (6, 1)])
@pytest.mark.parametrize("name", ["picture", "run"])
def test_maps_of_one_row_are_refined_too(name: str, h: int, w: int) -> None:
    before = after = 0.0
    for seed in range(20):
        cost = 3 * torch.rand(h, w, 4, generator=torch.Generator().manual_seed(seed))
        kind = kind_of(name, h, w, 4, seed, 1.0)
        found = refine(cost, kind[1], cost.argmin(-1), *kind[2:])
        assert found.shape == (h, w)
        before, after = before + total(cost, cost.argmin(-1), kind), after + total(cost, found, kind)
    assert after < before


def test_bits_that_cost_nothing_change_nothing() -> None:
    cost = torch.rand(5, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(refine(cost, torch.zeros(4, 4), torch.zeros(5, 6, dtype=torch.int64)), cost.argmin(-1))


# -- quarters ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_quarters_are_the_best_of_all_or_nearly(seed: int) -> None:
    """3 classes, all 81 quadruples: never better than the best, worse for few blocks and by little; sums are what they say."""
    random = torch.Generator().manual_seed(seed)
    cost = 3 * torch.rand(40, 4, 3, generator=random)
    bits = 2 * torch.rand(1 + 3 + 9, 3, generator=random)
    every = np.array(list(itertools.product(range(3), repeat=4)))
    table = torch.from_numpy(quarter_contexts(every, 3))
    sums = cost[:, range(4), every].sum(2) + bits[table, torch.from_numpy(every)].sum(1)
    found, least = choose_quarters(cost, bits)
    own = torch.tensor([list(map(tuple, every.tolist())).index(tuple(one)) for one in found.tolist()])
    assert torch.allclose(sums.gather(1, own[:, None])[:, 0], least, atol=1e-5)
    over = least - sums.min(1).values
    assert float(over.min()) > -1e-5
    assert float((over > 1e-5).float().mean()) < 0.35
    assert float(over.mean()) < 0.03 * float(least.mean())


def corners(seed: int, n: int = 1) -> Tensor:
    """Pictures (n, 3, 96, 128), smooth but for one quarter of every fourth block or so, which is busy."""
    random = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.randn(n, 3, 3, 4, generator=random), size=(96, 128), mode="bicubic")
    busy = (torch.rand(n, 1, 12, 16, generator=random) < 0.08).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    return 0.5 + 0.02 * smooth + 0.15 * busy * torch.randn(n, 3, 96, 128, generator=random)


@pytest.fixture(scope="module")
def quartering() -> BlockCode:
    code = BlockCode(3, 96, 16, quarters=3)
    code.fit(corners(1, 24), 6)
    return code


def test_a_block_is_split_where_a_quarter_is_unlike_the_others(quartering: BlockCode) -> None:
    """And costs less so: at equal uses at 10 dB the error falls by a quarter and more, side information told either way."""
    picture, grids = corners(2), quartering.grids(6, 8)
    rows = quartering.analyse(picture)[0]
    classes = quartering.choose(rows, grids, 1500, 10.0, 2.0)
    (_, whole), (grid, quarters) = parts(grids, classes)
    split = whole == quartering.split
    energy = quartered((picture - 0.5).reshape(3, 6, BLOCK, 8, BLOCK).permute(1, 3, 0, 2, 4).reshape(48, DIMS))
    lone = (energy.square().sum(1).reshape(48, 4) > 1).sum(1) == 1
    assert float(split[lone].float().mean()) > 0.8
    calm = (energy.square().sum(1).reshape(48, 4) < 0.2).all(1)
    assert float(split[calm].float().mean()) < 0.1
    own = quarters.reshape(48, 4)
    assert bool((own[~split] == quartering.split).all())
    assert bool(((own[split] >= grid.first) & (own[split] < grid.last)).all())
    errors = []
    for chosen in (classes, quartering.likely(rows, grids)):
        place = quartering.places(chosen)
        plan = quartering.allocate(chosen[place], 1500, 10.0)
        symbols = quartering.modulate(rows[place], chosen[place], plan)
        gain = symbols.square().mean().rsqrt()
        noise = 0.1**0.5 * torch.randn(symbols.shape, generator=torch.Generator().manual_seed(3))
        args = torch.full_like(symbols, 0.1), gain.expand(len(place)), chosen[place], plan
        back = quartering.demodulate(gain * symbols + noise, *args)
        errors.append(float((quartering.synthesise_rows(back, place, 6, 8) - picture).square().mean()))
    assert errors[0] < 0.75 * errors[1]


def test_whole_rows_or_those_at_places_make_the_same_picture(quartering: BlockCode) -> None:
    rows = quartering.analyse(corners(4))
    assert rows.shape == (1, 5 * 48, 96)
    place = torch.cat([torch.arange(0, 48, 2), torch.arange(52, 56)])  # block 1 as its quarters
    alone = torch.zeros_like(rows).index_copy(1, place, rows[:, place])
    pictures = quartering.synthesise(alone, 6, 8), quartering.synthesise_rows(rows[0, place], place, 6, 8)
    assert torch.allclose(*pictures, atol=1e-5)
    first = quartering.blocks.kinds[QUARTER].latents
    assert not bool(rows[0, 48:, first:].any())
    basis = quartering.quarter_basis
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-4)


def test_at_a_price_the_choice_is_as_cheap_as_with_a_budget(quartering: BlockCode) -> None:
    """P-frames and I-frames choose by the same costs: at the price of a budget, with alike tables, nearly the same classes."""
    picture, grids = corners(5), quartering.grids(6, 8)
    rows = quartering.analyse(picture)[0]
    chosen = quartering.choose(rows, grids, 1500, 10.0, 2.0)
    price = quartering.price_of(quartering.likely(rows, grids), 1500, 10.0)
    table = quartering.blocks.frequencies[:4, :4]
    earlier = torch.zeros(6, 8, dtype=torch.int64)
    other = quartering.choose_at(picture[0], price, 10.0, 2.0, table, mean_context, earlier)
    assert float((other.classes == chosen).float().mean()) > 0.97
    assert torch.allclose(other.rows, rows[other.busy], atol=1e-5)
    assert torch.equal(other.busy, quartering.busy(other.classes, price, 10.0))
