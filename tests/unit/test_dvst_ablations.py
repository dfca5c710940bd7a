"""DVST with something left out: what is left out is not on the air or in the network, and the rest still works."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_systems import DVST, scene, tiny_dvst, tiny_ntscc
from torch import Tensor

from semcast import checkpoint
from semcast.errors import WeightsError
from semcast.layers.block_classes import BLOCK
from semcast.layers.expansion import MAX_USES
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems import SYSTEMS
from semcast.systems.dvst.config import ABLATIONS
from semcast.systems.dvst.constant_rate import ConstantRate, real_uses
from semcast.systems.dvst.runs import UNIT, unpack_run
from semcast.systems.dvst.small import DvstSmall
from semcast.transmit import run
from semcast.types import Format, Step

Hold = Callable[..., Any]
CLIP = scene("coffee-pan", 8)


def ablated(preset: str) -> DvstSmall:
    """The tiny system without something, on the weights of the whole one."""
    ablation = ABLATIONS[preset]
    made = (ConstantRate if ablation.constant_rate else DvstSmall)(DVST, tiny_ntscc(), 4, ablation)
    made.preset = preset
    made.load_state_dict(tiny_dvst().state_dict())
    return made.eval()


# -- the motion link ---------------------------------------------------------------------------------------------------------


def test_without_a_motion_link_nothing_moves_and_less_is_told(hold: Hold) -> None:
    """The clip pans: prediction from the last frame as it stands is worse, and there is no stream of vectors."""
    whole, without = (hold(system, CLIP, cbr=0.06) for system in (tiny_dvst(), ablated("no-motion")))
    assert without.psnr_db < whole.psnr_db - 0.3
    assert whole.ledger.total("info_bits", stream="motion") > 0
    assert not any(name.startswith("motion") for name in without.ledger.streams())
    assert all(result.decoded.concealed == 0 for result in without.results)


def test_a_group_without_motion_predicts_from_frames_as_they_stand() -> None:
    system = ablated("no-motion")
    assert not system.motion_of(CLIP[1], CLIP[0], None, 0.02).field().any()
    assert tiny_dvst().motion_of(CLIP[1], CLIP[0], None, 0.02).field().any()


# -- constant rate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [-128, -40, 0, 33, 127])
def test_every_block_has_as_many_uses_at_mean_power_one(index: int) -> None:
    """However busy its class; where they are no whole number, the first blocks have one more."""
    code = ablated("constant-rate").code
    classes = torch.arange(30) % DVST.classes
    plan = code.plan_at(classes, index, 10.0)
    per_block, total = plan.uses.sum(1), real_uses(index, 30, DVST.latents * MAX_USES)
    assert int(per_block.sum()) == total
    assert int(per_block.max() - per_block.min()) <= 1
    varied = tiny_dvst().code.plan_at(classes, -100, 10.0).uses.sum(1)
    assert int(varied.max()) > int(varied.min())  # of the same classes, where uses follow entropy
    if index == 0:
        assert float((plan.power * plan.uses).sum()) / total == pytest.approx(1, abs=0.06)


@torch.no_grad()
def test_frames_have_equal_uses_and_side_information_its_third(hold: Hold) -> None:
    system = ablated("constant-rate")
    session = hold(system, CLIP, cbr=0.1)
    for result in session.results:
        assert result.decoded.concealed == 0
        heads = [unpack_run(data, count) for data, count in zip(result.received["side"][0], (2, 1), strict=True)]
        indices = {frame[0] for head in heads if head for frame in head[0].frames}
        assert len(indices) == 1  # of the rate, the same for all frames
        blocks = math.ceil(CLIP.shape[-2] / BLOCK) * math.ceil(CLIP.shape[-1] / BLOCK)
        uses = real_uses(indices.pop(), blocks, DVST.latents * MAX_USES)
        assert result.received["latent"].y.shape[1] == 3 * UNIT * math.ceil(uses / (2 * UNIT))
    side = sum(uses for name, uses in session.ledger.streams().items() if name.startswith(("side", "motion")))
    latent = session.ledger.total(stream="latent")
    assert 0.1 < side / (side + latent) < 0.36


def test_the_budget_is_met_at_a_constant_rate(hold: Hold) -> None:
    session = hold(ablated("constant-rate"), CLIP, cbr=0.08)
    granted = 0.08 * session.ledger.source_values
    assert 0.85 * granted < session.ledger.channel_uses <= granted + 1


# -- the network -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_residual_coding_restores_the_difference_alone() -> None:
    """What g_s adds to the context does not depend on it."""
    random = torch.Generator().manual_seed(0)
    difference, one, other = (torch.rand(1, 3, 32, 48, generator=random) for _ in range(3))
    classes = torch.zeros(1, 2, 3, dtype=torch.int64)
    for preset, same in (("residual", True), ("no-gop", False)):
        system = ablated(preset)
        conditions = system._conditions(10.0, -60, (2, 3))
        added = [system.g_s(difference - 0.5, context, classes, conditions) - context for context in (one, other)]
        assert torch.allclose(*added, atol=1e-5) == same


def test_without_groups_no_gradient_passes_from_frame_to_frame() -> None:
    made: list[Tensor] = []
    system = ablated("no-gop").train()
    system.g_s.register_forward_hook(lambda module, args, out: made.append(out))
    fmt = Format(*CLIP.shape[-2:], system="dvst", preset="no-gop", cbr=0.06)
    link = Link("awgn", snr_db=10.0, cbr=0.06).train()
    random = torch.Generator().manual_seed(0)
    (result,) = run(system, [Step(CLIP[None, :4], last=True)], link, Ledger(), fmt=fmt, generator=random)
    shown = [one for one in made if one.requires_grad]
    assert len(shown) == 3
    for one in shown:
        one.retain_grad()
    assert result.decoded.frames is not None
    (result.decoded.frames[0, 3] - CLIP[3]).square().mean().backward()  # type: ignore[no-untyped-call]
    assert [one.grad is not None and bool(one.grad.any()) for one in shown] == [False, False, True]


# -- weights -----------------------------------------------------------------------------------------------------------------


def test_closed_form_ablations_run_on_the_weights_of_small(tmp_path: Path) -> None:
    spec = SYSTEMS.get("dvst")
    folder = checkpoint.shipped("dvst", "small")
    assert folder is not None
    for preset in ABLATIONS:
        if preset in spec.lenders:
            system, digest = checkpoint.make_system(f"dvst:{preset}")
            assert (system.preset, digest) == (preset, checkpoint.weights_id(folder))
        elif checkpoint.shipped("dvst", preset) is None:
            with pytest.raises(WeightsError, match=f"train dvst --preset {preset}"):
                checkpoint.make_system(f"dvst:{preset}")
            with pytest.raises(WeightsError, match="belong to dvst:small"):
                checkpoint.make_system(f"dvst:{preset}", weights=folder)
