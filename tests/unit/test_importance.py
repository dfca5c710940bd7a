"""Errors that count unevenly: what is found to count, what it does to channel uses, and that both ends go by it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_block_code import fitted, some
from tiny_systems import DVST, FITTED_ON, NTSCC, Ends, scene, tiny_dvst, tiny_ntscc
from torch import Tensor

from semcast.layers.block_code import BlockCode
from semcast.layers.importance import SHARE, STRONGEST, Importance, Tally
from semcast.layers.two_scales import TwoScaleCode
from semcast.metrics.structure import ms_ssim, ms_ssim_db
from semcast.systems.dvst.small import DvstSmall
from semcast.systems.ntscc.small import NtsccSmall

CLASSES, LATENTS, ROTATED = 4, 24, 8


def weighed(steps: Tensor) -> BlockCode:
    """The code of :func:`fitted` with importance."""
    plain = fitted(rotated=ROTATED)
    code = BlockCode(CLASSES, LATENTS, ROTATED, weighed=True)
    code.load_state_dict(plain.state_dict(), strict=False)
    code.weigh(steps)
    return code


# -- costs and uses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", [-20, 0, 30])
def test_where_all_counts_alike_classes_cost_what_they_cost_without_importance(price: int) -> None:
    """But for the energy of the block, which is the same in every class."""
    plain, code = fitted(rotated=ROTATED), weighed(torch.zeros(CLASSES, LATENTS, dtype=torch.int32))
    rows = torch.randn(50, LATENTS, generator=torch.Generator().manual_seed(1)) * plain.blocks.std[some(50, 2)]
    costs = [one._block_costs(rows, one.priced(price, 16)) for one in (plain, code)]
    assert torch.allclose(costs[0] + rows.square().sum(1, keepdim=True), costs[1], rtol=1e-4, atol=1e-4)


def test_what_counts_for_more_gets_more_uses_and_power() -> None:
    classes = some(40, 3)
    steps = torch.zeros(CLASSES, LATENTS, dtype=torch.int32)
    steps[1] = 24  # 6 dB
    steps[:, 12:] -= 12
    before, after = (code.allocate(classes, 400, 10.0) for code in (fitted(rotated=ROTATED), weighed(steps)))
    assert int(after.uses.sum()) == int(before.uses.sum())
    busy = classes == 1
    assert int(after.uses[busy, :12].sum()) > 1.1 * int(before.uses[busy, :12].sum())
    assert int(after.uses[~busy, 12:].sum()) < int(before.uses[~busy, 12:].sum())
    both = (before.uses > 0) & (after.uses == before.uses)
    assert float(after.power[busy[:, None] & both].mean()) > float(before.power[busy[:, None] & both].mean())


def test_importance_of_classes_and_within_them_make_the_whole() -> None:
    importance = Importance(3, 80)
    importance.steps.copy_(torch.randint(-40, 40, (3, 80), generator=torch.Generator().manual_seed(0)))
    whole = importance.of_classes()[:, None] * importance.within()
    assert torch.allclose(10 * whole.log10(), importance.steps / 4, atol=1e-4)
    assert torch.allclose(importance.within()[:, :STRONGEST].mean(1), torch.ones(3))


# -- what counts ---------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_a_weighed_error_is_found_again() -> None:
    """Of sum w e^2, with w 12 dB higher in one class of details and falling over coefficients, `SHARE` of the decibels come
    back."""
    code = TwoScaleCode(2, 1, 100, 0)
    directions = torch.randn(768, 100, generator=torch.Generator().manual_seed(0)).unflatten(0, (3, -1))
    directions = (directions - directions.mean(1, keepdim=True)).flatten(0, 1)  # details have no means
    code.blocks.basis.copy_(torch.linalg.qr(directions).Q.T)
    random = torch.Generator().manual_seed(1)
    w = 10 ** ((torch.tensor([6.0, -6.0])[:, None] - torch.linspace(0, 10, 100)) / 10)
    tally = Tally(code)
    classes = torch.cat([torch.arange(64) % 2, torch.full((4,), 2)])

    def loss(seen: Tensor, frames: Tensor) -> Tensor:
        e = code.blocks.analyse(seen - frames)[0].flatten(1).T
        return (w[classes[:64]] * e.square()).sum()

    for _ in range(20):
        frames = torch.rand(1, 3, 128, 128, generator=random)
        shown = frames + 0.05 * torch.randn(frames.shape, generator=random)
        tally.add(shown, frames, classes, lambda seen, frames=frames: loss(seen, frames))  # type: ignore[misc]
    found = tally.steps() / 4
    wanted = SHARE * 10 * w.log10()
    apart = found[:2] - wanted
    assert float((apart - apart.mean()).abs()[:, 5:-5].max()) < 0.5


def test_a_class_that_never_came_counts_as_others_do() -> None:
    """Were it worth nothing, calm pictures would take it for all of their blocks."""
    code = TwoScaleCode(3, 1, 100, 0)
    tally, random = Tally(code), torch.Generator().manual_seed(1)
    classes = torch.cat([torch.arange(64) % 2, torch.full((4,), 3)])
    for _ in range(3):
        frames = torch.rand(1, 3, 128, 128, generator=random)
        shown = frames + 0.05 * torch.randn(frames.shape, generator=random)
        tally.add(shown, frames, classes, lambda seen, frames=frames: (seen - frames).square().sum())  # type: ignore[misc]
    found = tally.steps().float().mean(1) / 4
    assert float((found[2] - found[:2].mean()).abs()) < 1


# -- systems -------------------------------------------------------------------------------------------------------------------


def structural_ntscc() -> NtsccSmall:
    """The tiny NTSCC for MS-SSIM, on the weights of that for MSE."""
    system = NtsccSmall(replace(NTSCC, distortion="ms_ssim"))
    system.load_state_dict(tiny_ntscc().state_dict(), strict=False)
    return system.eval()


@torch.no_grad()
def shown(system: NtsccSmall | DvstSmall, clip: Tensor, cbr: float) -> Tensor:
    ends = Ends(system, clip, cbr=cbr)
    decoded = ends.show(ends.send(clip), len(clip))
    assert decoded.concealed == 0
    assert decoded.frames is not None
    return decoded.frames[0]


def test_ntscc_adapted_to_ms_ssim_raises_it_and_lowers_psnr() -> None:
    """On pictures that it was not fitted to."""
    clips = torch.stack([scene(name, 4, 160, 128) for name in FITTED_ON])
    system = structural_ntscc()
    system.adapt(clips[:, ::3].flatten(0, 1)[:, None])
    assert system.code.importance is not None
    assert int(system.code.importance.steps.abs().max()) > 4
    other = scene("coffee-pan", 1, 160, 128)
    frames = [shown(one, other, 0.06) for one in (tiny_ntscc(), system)]
    quality = [float(ms_ssim_db(ms_ssim(other, one))[0]) for one in frames]
    errors = [float((one - other).square().mean()) for one in frames]
    assert quality[1] > quality[0] + 0.1
    assert errors[1] > errors[0]


def test_dvst_for_ms_ssim_gains_by_its_key_frames() -> None:
    """Frames after a key frame that errs where it counts least are better too, whatever P-frames are coded by."""
    key = structural_ntscc()
    key.adapt(torch.stack([scene(name, 4, 160, 128) for name in FITTED_ON])[:, ::3].flatten(0, 1)[:, None])
    system = DvstSmall(replace(DVST, distortion="ms_ssim", key_offset_db=3.0), key, 4)
    own = {name: tensor for name, tensor in tiny_dvst().state_dict().items() if not name.startswith("key.")}
    system.load_state_dict(own, strict=False)
    clip = scene("coffee-pan", 4, 160, 128)
    quality = [ms_ssim_db(ms_ssim(clip, shown(one, clip, 0.1))) for one in (tiny_dvst(), system.eval())]
    assert bool((quality[1] > quality[0] + 0.1).all())


def test_key_frames_are_those_of_the_same_distortion() -> None:
    assert tiny_dvst().key_name == "ntscc:small"
    assert DvstSmall(replace(DVST, distortion="ms_ssim"), structural_ntscc(), 4).key_name == "ntscc:ms-ssim"
