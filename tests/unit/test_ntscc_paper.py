"""NTSCC with the published architecture, at small widths: rates, side information, losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from semcast.errors import BudgetError
from semcast.layers.index_table import decode_maps
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.ntscc.paper import NtsccPaper, PaperConfig
from semcast.transmit import run
from semcast.types import Format, Step, StepResult

Clip = Callable[..., torch.Tensor]
Hold = Callable[..., Any]

TINY = PaperConfig(
    width=16, depths=(1, 1, 1, 1), heads=2, window=4, hyper_width=8, code_depth=2, code_heads=2, code_window=4,
    values=(0, 2, 5, 8, 16),
)  # fmt: skip


def fresh(config: PaperConfig = TINY) -> NtsccPaper:
    torch.manual_seed(0)
    return NtsccPaper(config).eval()


def sent_in_training(system: NtsccPaper, frames: torch.Tensor, channel: str = "awgn") -> list[StepResult]:
    link = Link(channel, snr_db=torch.tensor([3.0, 12.0]), cbr=0.1).train()
    fmt = Format(*frames.shape[-2:], system="ntscc", preset="paper", cbr=0.1)
    return list(run(system, [Step(frames)], link, Ledger(), fmt=fmt, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("send_hyperprior", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 79)])
def test_frames_go_through_and_the_budget_is_kept(
    height: int, width: int, send_hyperprior: bool, clip: Clip, hold: Hold
) -> None:
    session = hold(fresh(replace(TINY, send_hyperprior=send_hyperprior)), clip(2, height, width), cbr=0.06)
    assert session.shown.shape == (2, 3, height, width)
    assert bool(torch.isfinite(session.shown).all())
    spent = session.ledger.channel_uses - session.ledger.total(kind="header")
    granted = 0.06 * session.ledger.source_values
    assert granted / 3 < spent <= granted + 1
    assert session.ledger.total(kind="digital") > 0


def test_the_ledger_says_what_the_indices_say(clip: Clip, hold: Hold) -> None:
    system = fresh()
    session = hold(system, clip(1, 80, 96), cbr=0.05)
    data = session.results[0].received["rates"][0][0]
    maps = decode_maps(data[2:], [(5, 6)], [system.index_table])
    assert maps is not None
    symbols = sum(TINY.values[q] for q in maps[0].flatten())
    assert session.ledger.total(kind="analog") == (symbols + 1) // 2
    assert session.ledger.total("info_bits", stream="rates") == 8 * len(data)


def test_surprising_tokens_get_more_symbols(clip: Clip) -> None:
    """k_i = eta * -log P: what the entropy model finds unlikely is sent with more."""
    system = fresh()
    bits = torch.tensor([[[5.0, 50.0], [100.0, 500.0]]]).repeat_interleave(8, 1).repeat_interleave(8, 2)
    link = Link("awgn", snr_db=10.0, cbr=0.1).eval()
    csi, budget = link.grant(Step(clip(1, 64, 64)[None]))
    _, index = system._plan(bits, torch.zeros(1, 8, 1, 1), csi, budget)
    flat = index[0, ::8, ::8].flatten().tolist()
    assert flat == sorted(flat)
    assert flat[-1] > flat[0]


def test_a_receiver_needs_nothing_but_the_air(clip: Clip, hold: Hold) -> None:
    session = hold(fresh(), clip(2, 64, 80), cbr=0.06)
    receiver = fresh()
    state, random = receiver.start(session.fmt, "rx"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for result in session.results:
            decoded, state, _ = receiver.decode(result.received, state, 1, generator=random)
            assert torch.equal(decoded.frames, result.decoded.frames)


def test_same_seed_same_frames(clip: Clip, hold: Hold) -> None:
    one, two = (hold(fresh(), clip(1, 64, 64), cbr=0.06) for _ in range(2))
    assert torch.equal(one.shown, two.shown)
    assert one.ledger.streams() == two.ledger.streams()


@pytest.mark.parametrize("data", [None, b"", b"\0", b"\xff" * 3, bytes(60)])
@pytest.mark.parametrize("send_hyperprior", [False, True])
def test_a_lost_or_forged_packet_freezes(data: bytes | None, send_hyperprior: bool, clip: Clip, hold: Hold) -> None:
    system = fresh(replace(TINY, send_hyperprior=send_hyperprior))
    session = hold(system, clip(2, 64, 64), cbr=0.06)
    state, random = system.start(session.fmt, "rx"), torch.Generator()
    with torch.no_grad():
        shown, state, _ = system.decode(session.results[0].received, state, 1, generator=random)
        frozen, _, _ = system.decode({**session.results[1].received, "rates": [[data]]}, state, 1, generator=random)
    assert frozen.frames is not None
    assert frozen.frames.shape == (1, 1, 3, 64, 64)
    if data is None or len(data) < 2:
        assert frozen.concealed == 1
        assert torch.equal(frozen.frames, shown.frames)  # type: ignore[arg-type]


def test_a_hyperprior_that_is_sent_costs_bytes(clip: Clip, hold: Hold) -> None:
    plain, with_z = (
        hold(fresh(replace(TINY, send_hyperprior=sent)), clip(1, 64, 64), cbr=0.1).ledger.total("info_bits", stream="rates")
        for sent in (False, True)
    )
    assert with_z > plain


def test_a_budget_that_buys_nothing_is_refused(clip: Clip, hold: Hold) -> None:
    with pytest.raises(BudgetError, match="raise --cbr"):
        hold(fresh(), clip(1, 64, 64), cbr=0.0005)


# -- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("send_hyperprior", [False, True])
def test_a_training_step_reaches_every_parameter(send_hyperprior: bool, clip: Clip) -> None:
    system = fresh(replace(TINY, send_hyperprior=send_hyperprior)).train()
    frames = torch.stack([clip(1, 64, 64, seed=s) for s in range(2)])
    system.loss(sent_in_training(system, frames), "watch", {})["loss"].backward()
    silent = [name for name, p in system.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert silent == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in system.parameters() if p.grad is not None)


def test_training_lowers_the_loss(clip: Clip) -> None:
    system = fresh().train()
    frames = torch.stack([clip(1, 64, 64, seed=s) for s in range(2)])
    optimiser = torch.optim.Adam(system.parameters(), lr=2e-3)
    losses = []
    for _ in range(10):
        loss = system.loss(sent_in_training(system, frames), "watch", {})["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_dearer_rate_buys_fewer_symbols(clip: Clip) -> None:
    frames = torch.stack([clip(1, 64, 64, seed=s) for s in range(2)])
    symbols = []
    for weight in (0.1, 5000.0):
        system = fresh().train()
        optimiser = torch.optim.Adam(system.parameters(), lr=5e-3)
        for _ in range(8):
            results = sent_in_training(system, frames)
            optimiser.zero_grad()
            system.loss(results, "watch", {"rate_weight": weight})["loss"].backward()
            optimiser.step()
        symbols.append(float(results[0].aux["symbols"].mean()))
    assert symbols[1] < symbols[0]


def test_a_lost_packet_in_training_does_not_count(clip: Clip) -> None:
    system = fresh().train()
    frames = torch.stack([clip(1, 64, 64, seed=s) for s in range(2)])
    results = sent_in_training(system, frames, "erasure:plr=1,packet_uses=64")
    loss = system.loss(results, "watch", {})["loss"]
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert system.f_d.rate_tokens.grad is None or not bool(system.f_d.rate_tokens.grad.any())


# -- the published sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_published_sizes_build_and_run(clip: Clip, hold: Hold) -> None:
    system = fresh(PaperConfig())
    assert 2e7 < sum(p.numel() for p in system.parameters()) < 5e7
    session = hold(system, clip(1, 64, 64), cbr=0.08)
    assert session.shown.shape == (1, 3, 64, 64)
    values = {TINY.values[0]} | set(PaperConfig().values)
    assert max(values) == 256
