"""DVST with the published architecture, at small widths: the loop, the two links, what is charged, losses, training steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from semcast.errors import BudgetError, ContractError, InputError, UnknownNameError
from semcast.layers.index_table import decode_maps
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.dvst.config import PaperConfig, read_plan
from semcast.systems.dvst.paper import DvstPaper, make_paper
from semcast.systems.linear_jscc import LinearConfig, LinearJscc
from semcast.systems.ntscc.paper import NtsccPaper
from semcast.systems.ntscc.paper import PaperConfig as KeyConfig
from semcast.transmit import run
from semcast.types import Format, Step, StepResult

Clip = Callable[..., torch.Tensor]
Hold = Callable[..., Any]

KEY = KeyConfig(
    width=8,
    depths=(1, 1, 1, 1),
    heads=2,
    window=4,
    hyper_width=4,
    code_depth=1,
    code_heads=2,
    code_window=4,
    values=(1, 4, 8, 16),
)
TINY = PaperConfig(
    width=8, motion_width=6, context_width=6, hyper_width=4, token_width=16, motion_token_width=8, depth=2, heads=2, window=4,
    values=(0, 2, 5, 9, 16), motion_values=(0, 1, 4, 8), flow_levels=2, flow_widths=(4, 4),
)  # fmt: skip
CBR = 0.06
STEPS = [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "train_key": False}, {"step": 5, "train_key": False}]
ABLATIONS = {
    "all": TINY,
    "no GOP training": replace(TINY, gop_training=False),
    "residual": replace(TINY, context=False),
    "constant rate": replace(TINY, constant_rate=6),
    "no motion link": replace(TINY, motion_link=False),
}


def fresh(config: PaperConfig = TINY) -> DvstPaper:
    """Random weights, the same every time, with nothing left at nought."""
    torch.manual_seed(0)
    system = make_paper(config=config, key=NtsccPaper(KEY))
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return system.eval()


def sent_in_training(system: DvstPaper, frames: torch.Tensor, channel: str = "awgn", seed: int = 0) -> list[StepResult]:
    link = Link(channel, snr_db=torch.full((len(frames),), 10.0), cbr=0.1).train()
    fmt = Format(*frames.shape[-2:], system="dvst", preset="paper", cbr=0.1)
    return list(run(system, [Step(frames)], link, Ledger(), fmt=fmt, generator=torch.Generator().manual_seed(seed)))


def batch(clip: Clip, frames: int = 3, size: int = 64) -> torch.Tensor:
    return torch.stack([clip(frames, size, size, seed=s) for s in range(2)])


@pytest.fixture(scope="module")
def session(hold: Hold, clip: Clip) -> Any:
    """Three frames of 64x64, run once."""
    return hold(fresh(), clip(3, 64, 64), cbr=CBR)


# -- through the loop --------------------------------------------------------------------------------------------------------


def test_frames_out_equal_frames_in(session: Any) -> None:
    assert session.shown.shape == session.sent.shape == (3, 3, 64, 64)
    assert bool(torch.isfinite(session.shown).all())
    assert 0 <= float(session.shown.min()) <= float(session.shown.max()) <= 1


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "all"])
def test_ablations_run_at_an_odd_size(name: str, hold: Hold, clip: Clip) -> None:
    session = hold(fresh(ABLATIONS[name]), clip(5, 65, 79), cbr=CBR)  # a GOP of four, and a key frame
    assert session.shown.shape == (5, 3, 65, 79)
    streams = session.ledger.streams()
    assert ("motion.1" in streams) == (name != "no motion link")
    assert any(stream.startswith("primary.") for stream in streams)


def test_budget_is_kept_and_used(session: Any) -> None:
    spent = session.ledger.channel_uses - session.ledger.total(kind="header")
    granted = CBR * session.ledger.source_values
    assert granted / 3 < spent <= granted + 1


def test_the_ledger_says_what_the_indices_say(session: Any) -> None:
    """Two real symbols to a channel use, nothing besides; the packet is charged byte by byte."""
    system = fresh()
    for t in (1, 2):
        data = session.results[0].received[f"rates.{t}"][0][0]
        maps = decode_maps(data[4:], [(2, 2)] * 2, system.tables)
        assert maps is not None
        for name, values, indices in zip(("motion", "primary"), (TINY.motion_values, TINY.values), maps, strict=True):
            symbols = sum(values[q] for q in indices.flatten())
            assert session.ledger.total(kind="analog", stream=f"{name}.{t}") == (symbols + 1) // 2
        assert session.ledger.total("info_bits", stream=f"rates.{t}") == 8 * len(data)
    assert session.ledger.total(free=True) == 0


def test_a_receiver_needs_nothing_but_the_air(session: Any) -> None:
    receiver = fresh()
    state = receiver.start(session.fmt, "rx")
    with torch.no_grad():
        for result in session.results:
            decoded, state, _ = receiver.decode(result.received, state, 3, generator=torch.Generator())
            assert torch.equal(decoded.frames, result.decoded.frames)


def test_same_seed_same_frames(session: Any, hold: Hold, clip: Clip) -> None:
    again = hold(fresh(), clip(3, 64, 64), cbr=CBR)
    assert torch.equal(again.shown, session.shown)
    assert again.ledger.streams() == session.ledger.streams()


def test_without_noise_both_ends_refer_to_the_same(clip: Clip) -> None:
    """Check and hat part only where the channel parts them: eq. (2) against eqs. (5) and (6)."""
    system, frames = fresh(), clip(4, 64, 64)
    apart = []
    for snr_db in (80.0, 0.0):
        fmt, link = Format(64, 64, system="dvst", preset="paper", cbr=CBR), Link("awgn", snr_db=snr_db, cbr=CBR).eval()
        tx, rx, random = system.start(fmt, "tx"), system.start(fmt, "rx"), torch.Generator().manual_seed(0)
        with torch.no_grad():
            step = Step(frames[None])
            payload, tx, _ = system.encode(step, tx, *link.grant(step), generator=random)
            _, rx, _ = system.decode(link.send(payload, Ledger(), generator=random), rx, 4, generator=random)
        assert tx.check is not None
        apart.append(float((tx.check.x - rx.hat.x).abs().max()))
    assert apart[0] < 5e-3
    assert apart[1] > 3 * apart[0]


def test_another_system_for_key_frames(hold: Hold, clip: Clip) -> None:
    """Any System for pictures will do: here the closed-form one, with its amplitude left to the link."""
    torch.manual_seed(0)
    key = LinearJscc(LinearConfig(classes=4, rotated=16), "classes-32")
    key.blocks.fit(torch.cat([clip(2, 96, 112, seed=s) for s in range(20)]))
    session = hold(DvstPaper(TINY, key).eval(), clip(2, 64, 64), cbr=0.2, snr_db=20.0)
    first = float(-10 * torch.log10((session.sent[0] - session.shown[0]).square().mean()))
    assert first > 20


# -- losses of packets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [None, b"", b"\0" * 3, b"\xff" * 9, b"\x30\x75\x30\x75" + bytes(range(40))])
def test_a_lost_or_forged_packet_freezes_and_the_next_frame_goes_on(session: Any, data: bytes | None) -> None:
    system = fresh()
    state = system.start(session.fmt, "rx")
    received = {**session.results[0].received, "rates.1": [[data]]}
    with torch.no_grad():
        decoded, state, _ = system.decode(received, state, 3, generator=torch.Generator())
    assert decoded.frames is not None
    assert decoded.frames.shape == (1, 3, 3, 64, 64)
    assert bool(torch.isfinite(decoded.frames).all())
    assert decoded.concealed == 1
    assert torch.equal(decoded.frames[0, 1], decoded.frames[0, 0])
    assert not torch.equal(decoded.frames[0, 2], decoded.frames[0, 1])


def test_a_lost_key_frame_keeps_what_was_on_show(session: Any) -> None:
    system = fresh()
    state = system.start(session.fmt, "rx")
    with torch.no_grad():
        shown, state, _ = system.decode(session.results[0].received, state, 3, generator=torch.Generator())
        lost = {**session.results[0].received, "key.rates": [[None]]}
        decoded, state, _ = system.decode(lost, state, 3, generator=torch.Generator())
    assert decoded.concealed == 1
    assert torch.equal(decoded.frames[:, 0], shown.frames[:, 2])  # type: ignore[index]


def test_nothing_that_arrives_is_grey(session: Any) -> None:
    system = fresh()
    nothing = dict.fromkeys(session.results[0].received)
    with torch.no_grad():
        decoded, _, _ = system.decode(nothing, system.start(session.fmt, "rx"), 3, generator=torch.Generator())
    assert decoded.concealed == 3
    assert bool((decoded.frames == 0.5).all())


def test_a_frame_that_does_not_fit_is_not_sent(hold: Hold, clip: Clip) -> None:
    """The key frame eats nearly all: P-frames stay out rather than overdraw, and are shown frozen."""
    config = replace(TINY, key_share=1e4)
    session = hold(fresh(config), clip(3, 64, 64), cbr=0.02)
    sent = session.ledger.streams()
    assert [name for name in sent if name.startswith(("primary", "motion", "rates.1"))] == []  # indices may fit later
    assert torch.equal(session.shown[1], session.shown[0])


def test_a_constant_rate_that_cannot_be_met_is_refused(hold: Hold, clip: Clip) -> None:
    with pytest.raises(BudgetError, match="raise --cbr"):
        hold(fresh(replace(TINY, constant_rate=600)), clip(2, 64, 64), cbr=CBR)


# -- training steps ----------------------------------------------------------------------------------------------------------

MOTION_TRANSFORM = ("inter.flow", "inter.motion.g_", "inter.motion.prior")
PRIMARY_TRANSFORM = ("inter.primary.g_", "inter.primary.prior", "inter.phi_")
TRAINED: dict[int, tuple[str, ...]] = {
    1: MOTION_TRANSFORM,
    2: ("inter.flow", "inter.motion."),
    3: PRIMARY_TRANSFORM,
    4: ("inter.primary.", "inter.phi_", "inter.gamma_"),
    5: ("inter.",),
}


def silent_and_moved(system: DvstPaper) -> tuple[set[str], set[str]]:
    """Names of parameters without and with a gradient."""
    moved = {name for name, p in system.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    return {name for name, _ in system.named_parameters()} - moved, moved


@pytest.mark.parametrize("options", STEPS, ids=lambda o: f"step {o['step']}")
def test_a_step_trains_its_part_and_no_other(options: dict[str, Any], clip: Clip) -> None:
    system = fresh().train()
    system.begin(options)
    losses = system.loss(sent_in_training(system, batch(clip)), "watch", options)
    losses["loss"].backward()
    silent, moved = silent_and_moved(system)
    mine = {name for name, _ in system.named_parameters() if name.startswith(TRAINED[options["step"]])}
    assert silent & mine == set()
    assert moved - mine == set()
    assert all(bool(torch.isfinite(p.grad).all()) for p in system.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ABLATIONS)
def test_by_default_everything_learns(name: str, clip: Clip) -> None:
    system = fresh(ABLATIONS[name]).train()
    system.loss(sent_in_training(system, batch(clip)), "watch", {})["loss"].backward()
    silent, _ = silent_and_moved(system)
    if name == "constant rate":  # one rate needs no entropy, except for the sake of the hyperprior's own bits
        silent = {one for one in silent if ".prior." not in one}
    assert silent == set()


def test_without_bits_rate_costs_nothing(clip: Clip) -> None:
    """Step 3 begins without them: the entropy model then has nothing to learn from."""
    system = fresh().train()
    system.begin({"step": 3, "bits": False})
    system.loss(sent_in_training(system, batch(clip)), "watch", {"step": 3, "bits": False})["loss"].backward()
    _, moved = silent_and_moved(system)
    assert not any("prior" in name for name in moved)
    assert any("phi_a" in name for name in moved)


def test_no_gradient_from_key_frame_to_p_frame(clip: Clip) -> None:
    """Its picture is taken as given: without its own loss, the key system gets no gradient at all."""
    system = fresh().train()
    options = {"step": 5, "train_key": False}
    system.begin(options)
    system.loss(sent_in_training(system, batch(clip)), "watch", options)["loss"].backward()
    assert all(p.grad is None for p in system.key.parameters())


@pytest.mark.parametrize(
    ("config", "step", "passes"), [(TINY, 5, True), (TINY, 4, False), (ABLATIONS["no GOP training"], 5, False)]
)
def test_gradients_pass_from_frame_to_frame_in_gop_training_only(
    config: PaperConfig, step: int, passes: bool, clip: Clip
) -> None:
    """The last frame's distortion asks for a better second frame, eq. (19), or does not, eq. (23)."""
    system = fresh(config).train()
    options = {"step": step, "train_key": False}
    system.begin(options)
    result = sent_in_training(system, batch(clip))[0]
    second, third = (note["shown"] for note in result.aux["received"])
    second.retain_grad()
    (slope,) = torch.autograd.grad(third.square().sum(), second, allow_unused=True)
    assert (slope is not None and bool(slope.any())) == passes


def test_ten_training_steps_lower_the_loss(clip: Clip) -> None:
    system, frames = fresh().train(), batch(clip, 2)
    optimiser = torch.optim.Adam(system.parameters(), lr=2e-3)
    losses = []
    for _ in range(10):
        loss = system.loss(sent_in_training(system, frames), "watch", {})["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_lost_packets_in_training_freeze_and_do_not_count(clip: Clip) -> None:
    system = fresh().train()
    result = sent_in_training(system, batch(clip), "erasure:plr=1,packet_uses=64")
    first, second = result[0].aux["received"]
    assert not bool(first["arrived"].any() or second["arrived"].any())
    assert torch.equal(first["shown"], second["shown"])
    loss = system.loss(result, "watch", {})["loss"]
    second["shown"] = second["shown"] + 1  # whatever is shown there, the loss is the same
    assert torch.equal(system.loss(result, "watch", {})["loss"], loss)
    loss.backward()
    assert bool(torch.isfinite(loss.detach()))


def test_ms_ssim_and_a_task_can_be_asked_for(clip: Clip) -> None:
    system, frames = fresh().train(), batch(clip, 2)
    options = {"distortion": "ms_ssim", "rate_weight": 0.1, "train_key": False, "task_weight": 2.0}
    system.begin(options)
    results = sent_in_training(system, frames)
    plain = system.loss(results, "watch", options)["loss"]
    system.task = lambda step, decoded: 3 + (decoded.frames - step.frames).flatten(1).mean(1) * 0  # type: ignore[operator]
    assert float((system.loss(results, "watch", options)["loss"] - plain).detach()) == pytest.approx(6, rel=1e-3)
    plain.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in system.parameters() if p.grad is not None)


def test_gops_of_training_may_be_longer() -> None:
    system = fresh()
    assert system.frames_per_step == 4
    system.begin({"gop": 7})
    assert system.frames_per_step == 7


def test_plans_are_checked(clip: Clip) -> None:
    with pytest.raises(UnknownNameError, match="train_key"):
        read_plan({"trainkey": 1})
    with pytest.raises(InputError, match="1 to 5"):
        read_plan({"step": 6})
    with pytest.raises(InputError, match="step 3"):
        fresh(ABLATIONS["no motion link"]).begin({"step": 1})
    system = fresh().train()
    with pytest.raises(ContractError, match="begin"):
        system.loss(sent_in_training(system, batch(clip, 1)), "watch", {"step": 4})


# -- the published sizes -----------------------------------------------------------------------------------------------------


def test_published_sizes_are_the_paper_s() -> None:
    config = PaperConfig()
    assert (config.width, config.motion_width, config.context_width) == (96, 128, 96)
    assert (config.depth, config.heads, config.window) == (4, 8, 16)
    assert len(config.values) * len(config.motion_values) == 2**7  # "total q = 7 bits"
    assert config.values[-1] == 96
    assert config.motion_values[-1] == 48


@pytest.mark.slow
def test_published_sizes_build_and_run(hold: Hold, clip: Clip) -> None:
    torch.manual_seed(0)
    system = make_paper(key=NtsccPaper()).eval()
    session = hold(system, clip(2, 64, 64), cbr=0.1)
    assert session.shown.shape == (2, 3, 64, 64)
    assert 1e7 < sum(p.numel() for p in system.inter.parameters()) < 5e7
