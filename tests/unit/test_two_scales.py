"""Means of blocks and what is left beside them: nothing is lost, slopes come for nothing, and smooth pictures cost less."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_systems import FITTED_ON, scene
from torch import Tensor

from semcast.layers.block_classes import BLOCK, DIMS, decode_classes, encode_classes
from semcast.layers.block_code import BlockCode, parts
from semcast.layers.two_scales import NEIGHBOURS, TILE, TILE_DIMS, TwoScaleCode, tiled, untiled


def fitted(latents: int = DIMS, rotated: int = 0) -> TwoScaleCode:
    code = TwoScaleCode(4, 2, latents, rotated)
    code.fit(torch.cat([scene(name, 2, 192, 128) for name in FITTED_ON]), 4)
    return code


@pytest.fixture(scope="module")
def code() -> TwoScaleCode:
    return fitted()


def picture(h: int, w: int, seed: int = 0) -> Tensor:
    """Noise that is stronger at low frequencies."""
    random = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.randn(1, 3, h // 16, w // 16, generator=random), size=(h, w), mode="bicubic")
    return (0.5 + 0.15 * coarse + 0.005 * torch.randn(1, 3, h, w, generator=random)).clamp(0, 1)


@pytest.mark.parametrize("size", [(64, 64), (80, 96), (16, 16), (48, 208)])
def test_all_coefficients_give_the_picture_back(code: TwoScaleCode, size: tuple[int, int]) -> None:
    """At any number of blocks: tiles that reach beyond the edge tell no more than the picture holds."""
    frames = torch.cat([picture(*size, seed=seed) for seed in range(2)])
    h, w = (side // BLOCK for side in size)
    rows = code.analyse(frames)
    assert rows.shape == (2, h * w + math.ceil(h / TILE) * math.ceil(w / TILE), DIMS)
    assert torch.allclose(code.synthesise(rows, h, w), frames, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (8, 3)])
def test_tiles_hold_all_means(size: tuple[int, int]) -> None:
    means = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    assert tiled(means).shape[2] == TILE_DIMS
    assert torch.equal(untiled(tiled(means), *size), means)


def test_the_smooth_picture_has_the_means_that_it_comes_from(code: TwoScaleCode) -> None:
    means = code.means(picture(80, 96))
    assert torch.allclose(code.means(code.smoothed(means)), means, atol=1e-4)
    fresh = TwoScaleCode(2, 2, 64, 0)
    assert torch.allclose(fresh.smoothed(means), F.interpolate(means / BLOCK, scale_factor=16.0) + 0.5, atol=1e-6)


def test_a_slope_costs_nothing_beside_its_means(code: TwoScaleCode) -> None:
    """Away from the edges most of a ramp is told by means: what flat blocks leave of it falls by 7 dB."""
    ramp = torch.linspace(0.2, 0.8, 160)[None, None, None].expand(1, 3, 96, 160).contiguous()
    means = code.means(ramp)
    flat = F.interpolate(means / BLOCK, scale_factor=16.0) + 0.5
    inner = (..., slice(16, 80), slice(16, 144))
    left, before = ((ramp - one)[inner].square().mean() for one in (code.smoothed(means), flat))
    assert float(left) < 0.2 * float(before)


def test_pictures_get_better_than_block_by_block() -> None:
    """The closed form over AWGN at 2 dB, fitted to other pictures, with as many classes and uses: at least 0.5 dB."""
    frames, snr_db, uses = scene("coffee-pan", 1, 320, 256), 2.0, 6000
    pictures = torch.cat([scene(name, 1, 320, 256) for name in FITTED_ON])
    h, w, errors = 16, 20, []
    for two in (True, False):
        code: BlockCode = TwoScaleCode(6, 2, 96, 16) if two else BlockCode(8, 96, 16)
        code.fit(torch.cat([pictures, pictures.flip(3)]), 6)
        rows = code.analyse(frames)[0]
        classes = code.likely(rows, code.grids(h, w))
        plan = code.allocate(classes, uses, snr_db)
        symbols = code.modulate(rows, classes, plan)
        scale = symbols.square().mean().rsqrt()
        noise_var = 10 ** (-snr_db / 10)
        noise = math.sqrt(noise_var) * torch.randn(symbols.shape, generator=torch.Generator().manual_seed(2))
        noise_of = torch.full_like(symbols, noise_var)
        rows = code.demodulate(symbols * scale + noise, noise_of, scale.expand(len(classes)), classes, plan)
        errors.append(float((code.synthesise(rows[None], h, w) - frames).square().mean()))
    assert 10 * math.log10(errors[1] / errors[0]) > 0.5


def test_details_and_tiles_have_classes_of_their_own() -> None:
    code = fitted(96, 16)
    rows, grids = code.analyse(picture(80, 96))[0], code.grids(5, 6)
    for classes in (code.likely(rows, grids), code.choose(rows, grids, 400, 10.0, 2.0)):
        for grid, own in parts(grids, classes):
            assert grid.first <= int(own.min()) <= int(own.max()) < grid.last
    assert not bool(rows[30:, TILE_DIMS:].any())
    assert code.smooth.shape == (NEIGHBOURS, DIMS)
    plan = code.allocate(code.likely(rows, grids), 300, 10.0)
    assert int(plan.uses[30:, TILE_DIMS:].sum()) == 0
    assert int(plan.uses[30:].sum()) > 0


def test_fewer_latents_than_a_tile_has_are_refused() -> None:
    with pytest.raises(ValueError, match="48 coefficients"):
        TwoScaleCode(4, 2, TILE_DIMS - 1, 0)


def test_quarters_and_tiles_stand_side_by_side() -> None:
    """Rows and maps of details, their quarters, then tiles; what is chosen comes back from its bytes."""
    code = TwoScaleCode(4, 2, 96, 16, quarters=3)
    code.fit(torch.cat([scene(name, 2, 192, 128) for name in FITTED_ON]), 4)
    frames, grids = scene("coffee-pan", 1, 96, 80), code.grids(5, 6)
    rows = code.analyse(frames)
    assert rows.shape == (1, 30 + 120 + 4, 96)
    classes = code.choose(rows[0], grids, 600, 10.0, 2.0)
    assert bool((classes[:30] == code.split).any())
    data = encode_classes(classes.numpy(), grids, *code.tables())
    back = decode_classes(data, grids, *code.tables())
    assert back is not None
    assert back.tolist() == classes.tolist()
    ideal = code.blocks.class_bits(classes.numpy(), grids, code.tables()[1])
    assert ideal - 1 <= 8 * len(data) <= ideal + 48
