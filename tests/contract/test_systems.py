"""What every registered system must do. A new system is tested by being registered; nothing here knows a name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from preset_cases import SPECS, cases, is_light

from semcast import checkpoint
from semcast.errors import BudgetError, WeightsError
from semcast.goals import GOALS
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems import SYSTEMS
from semcast.systems.base import System, SystemSpec
from semcast.transmit import run
from semcast.types import Format, Step

CASES = cases()
TRAINED = cases(lambda spec: spec.trained)
NOT_DIGITAL = cases(lambda spec: spec.kind != "digital")
WITH_PACKETS = cases(lambda spec: spec.kind != "analog", is_light)
LIGHT = cases(default=is_light)
LIGHT_NOT_DIGITAL = cases(lambda spec: spec.kind != "digital", is_light)

Hold = Callable[..., Any]
Clip = Callable[..., torch.Tensor]


def fresh(spec: SystemSpec, preset: str) -> System:
    """A system with the same random weights every time; zero-initialised layers are moved off zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = spec.make(preset, "strong")
        system.name, system.preset = spec.name, preset
        with torch.no_grad():
            for parameter in system.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return system.eval()


@cache
def built(spec: SystemSpec, preset: str) -> System:
    """One instance shared by the tests that only run it: weights do not change, states are made anew by every session."""
    return fresh(spec, preset)


@cache
def ready(spec: SystemSpec, preset: str) -> System:
    """With the weights that come with the package, for what random weights cannot show."""
    try:
        return checkpoint.make_system(f"{spec.name}:{preset}")[0]
    except WeightsError:
        if checkpoint.shipped(spec.name, preset):
            raise
        pytest.skip(f"no weights of {spec.name}:{preset} come with the package")


LADDER = [1 / 12, 0.12, 0.15, 0.2, 0.3, 0.5, 1.0]


def affordable_cbr(system: System, height: int, width: int, at_least: float = 1 / 12) -> float:
    """The lowest CBR of a coarse ladder at which one frame and the session header fit: some serve one rate, padding costs."""
    frame = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    for cbr in (rung for rung in LADDER if rung >= at_least):
        fmt = Format(height, width, system=system.name, preset=system.preset, cbr=cbr)
        link = Link("awgn", snr_db=10.0, cbr=cbr, phy="capacity" if system.modem_kind == "capacity" else "fast").eval()
        with contextlib.suppress(BudgetError), torch.no_grad():
            list(
                run(system, [Step(frame[None], last=True)], link, Ledger(), fmt=fmt, generator=torch.Generator().manual_seed(0))
            )
            return cbr
    raise AssertionError(f"{system.name} accepts no CBR up to {LADDER[-1]}")


def budget_uses(session: Any) -> int:
    """What was spent on the video itself: all but the session header."""
    return int(session.ledger.channel_uses - session.ledger.total(kind="header"))


def spares(session: Any) -> bool:
    """Whether the system says that its best takes less than the budget: its rate is its own."""
    return all("takes less than the budget" in result.aux.get("rate_note", "") for result in session.results)


@cache
def _odd_session(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> Any:
    system = built(spec, preset)
    return hold(system, clip(3, 65, 79), cbr=affordable_cbr(system, 65, 79))


@pytest.fixture
def odd_session(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> Any:
    """Three frames of 79x65 over AWGN at 10 dB, run once per system."""
    return _odd_session(spec, preset, hold, clip)


# -- the registry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_entry_describes_the_system(spec: SystemSpec) -> None:
    assert SYSTEMS.get(spec.name) is spec
    assert spec.summary
    assert "\n" not in spec.summary
    assert spec.kind in ("digital", "analog", "hybrid")
    assert spec.presets
    assert len(set(spec.presets)) == len(spec.presets)
    assert spec.goals
    assert all(goal in GOALS for goal in spec.goals)


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_built_system_agrees_with_its_entry(spec: SystemSpec, preset: str) -> None:
    system = spec.make(preset, "strong")
    assert (system.name, system.preset) == (spec.name, preset)
    assert system.frames_per_step >= 1
    if spec.picture:
        assert system.frames_per_step == 1
    if not spec.trained:
        assert not [name for name, p in system.named_parameters() if p.requires_grad]


# -- frames in, frames out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_frames_out_equal_frames_in(spec: SystemSpec, preset: str, odd_session: Any) -> None:
    assert odd_session.shown.shape == odd_session.sent.shape
    assert odd_session.shown.dtype == torch.float32
    assert bool(torch.isfinite(odd_session.shown).all())
    assert float(odd_session.shown.min()) >= 0
    assert float(odd_session.shown.max()) <= 1


@pytest.mark.parametrize(("spec", "preset"), LIGHT_NOT_DIGITAL)
@pytest.mark.parametrize(("t", "height", "width"), [(1, 64, 64), (2, 71, 64), (1, 97, 131), (5, 64, 66)])
def test_any_size_and_length(spec: SystemSpec, preset: str, t: int, height: int, width: int, hold: Hold, clip: Clip) -> None:
    system = built(spec, preset)
    session = hold(system, clip(t, height, width), cbr=affordable_cbr(system, height, width))
    assert session.shown.shape == (t, 3, height, width)


@pytest.mark.parametrize(("spec", "preset"), LIGHT)
def test_one_frame_of_the_smallest_size(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> None:
    system = built(spec, preset)
    session = hold(system, clip(1, 64, 64), cbr=affordable_cbr(system, 64, 64))
    assert session.shown.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_what_is_shipped_shows_the_picture(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> None:
    session = hold(ready(spec, preset), clip(3, 96, 112), snr_db=15.0, cbr=0.2)
    mean = session.sent.mean((0, 2, 3), keepdim=True)
    of_grey = float(-10 * torch.log10((session.sent - mean).square().mean()))
    assert session.psnr_db > of_grey + (2 if spares(session) else 6)


@pytest.mark.parametrize(("spec", "preset"), LIGHT_NOT_DIGITAL)
def test_quality_rises_with_snr_and_rate(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> None:
    system, frames = ready(spec, preset), clip(1, 128, 160)
    by_snr = [hold(system, frames, snr_db=snr_db, cbr=0.12).psnr_db for snr_db in (0.0, 6.0, 12.0, 18.0)]
    by_rate = [hold(system, frames, snr_db=10.0, cbr=cbr).psnr_db for cbr in (0.05, 0.1, 0.2)]
    assert by_snr == sorted(by_snr)
    assert by_rate == sorted(by_rate)
    assert by_snr[-1] > by_snr[0] + 3


# -- determinism -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), LIGHT)
def test_same_seed_same_result(spec: SystemSpec, preset: str, odd_session: Any, hold: Hold, clip: Clip) -> None:
    again = hold(built(spec, preset), clip(3, 65, 79), cbr=odd_session.fmt.cbr)
    assert torch.equal(again.shown, odd_session.shown)
    assert again.ledger.streams() == odd_session.ledger.streams()


@pytest.mark.parametrize(("spec", "preset"), LIGHT_NOT_DIGITAL)
def test_another_seed_another_noise(spec: SystemSpec, preset: str, odd_session: Any, hold: Hold, clip: Clip) -> None:
    other = hold(built(spec, preset), clip(3, 65, 79), cbr=odd_session.fmt.cbr, seed=1)
    assert not torch.equal(other.shown, odd_session.shown)


@pytest.mark.parametrize(("spec", "preset"), LIGHT)
def test_global_randomness_is_left_alone(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> None:
    system = built(spec, preset)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    hold(system, clip(1, 64, 64), cbr=affordable_cbr(system, 64, 64))
    assert torch.equal(torch.random.get_rng_state(), before)


# -- the ledger --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_ledger_adds_up(spec: SystemSpec, preset: str, odd_session: Any) -> None:
    ledger: Ledger = odd_session.ledger
    header = ledger.total(kind="header")
    assert header > 0
    assert ledger.frames == 3
    assert ledger.source_values == 3 * 3 * 65 * 79
    assert sum(ledger.streams().values()) == ledger.channel_uses
    assert sum(ledger.uses_per_step) == ledger.channel_uses
    assert ledger.cbr == ledger.channel_uses / ledger.source_values
    assert ledger.total(free=True) == 0
    assert ledger.total(estimated=True) == 0


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_kind_says_what_is_sent(spec: SystemSpec, preset: str, odd_session: Any) -> None:
    analog, digital = (odd_session.ledger.total(kind=kind) > 0 for kind in ("analog", "digital"))
    if spec.kind == "analog":
        assert analog
        assert not digital
    elif spec.kind == "digital":
        assert digital
        assert not analog
    else:
        assert analog  # packets come with it in some presets


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_budget_is_kept(spec: SystemSpec, preset: str, odd_session: Any) -> None:
    granted = odd_session.fmt.cbr * odd_session.ledger.source_values
    assert budget_uses(odd_session) <= granted + 1


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_budget_is_used(spec: SystemSpec, preset: str, odd_session: Any) -> None:
    """At least a third of a small budget is spent, or the system says that its best takes less: who sends nothing meets all."""
    if spares(odd_session):
        return
    assert budget_uses(odd_session) > odd_session.fmt.cbr * odd_session.ledger.source_values / 3


# -- both sides --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), CASES)
def test_receiver_needs_nothing_but_the_air(spec: SystemSpec, preset: str, odd_session: Any) -> None:
    """A second instance that never saw the source decodes what crossed the link to the same frames."""
    receiver = fresh(spec, preset)
    state = receiver.start(odd_session.fmt, "rx")
    random = torch.Generator().manual_seed(odd_session.fmt.seed + 1)
    with torch.no_grad():
        for result in odd_session.results:
            n_frames = result.step.frames.shape[1]
            decoded, state, _ = receiver.decode(result.received, state, n_frames, generator=random)
            assert torch.equal(decoded.frames, result.decoded.frames)


@pytest.mark.parametrize(("spec", "preset"), LIGHT)
def test_encoder_leaves_its_input_alone(spec: SystemSpec, preset: str, clip: Clip, hold: Hold) -> None:
    frames = clip(2, 64, 80)
    copy = frames.clone()
    system = built(spec, preset)
    hold(system, frames, cbr=affordable_cbr(system, 64, 80))
    assert torch.equal(frames, copy)


@pytest.mark.parametrize(("spec", "preset"), LIGHT)
def test_sessions_do_not_leak_into_each_other(spec: SystemSpec, preset: str, odd_session: Any, hold: Hold, clip: Clip) -> None:
    system = built(spec, preset)
    hold(system, clip(2, 96, 64, seed=5), cbr=affordable_cbr(system, 96, 64))
    again = hold(system, clip(3, 65, 79), cbr=odd_session.fmt.cbr)
    assert torch.equal(again.shown, odd_session.shown)


# -- losses ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), LIGHT)
@pytest.mark.parametrize("channel", ["erasure:plr=0.6,packet_uses=64", "erasure:plr=1,packet_uses=64"])
def test_lost_packets_never_raise(spec: SystemSpec, preset: str, channel: str, hold: Hold, clip: Clip) -> None:
    system = built(spec, preset)
    frames = clip(4, 64, 72)
    cbr = affordable_cbr(system, 64, 72)
    fmt = Format(64, 72, system=system.name, preset=system.preset, cbr=cbr)
    link = Link(channel, snr_db=10.0, cbr=cbr, phy="capacity" if system.modem_kind == "capacity" else "fast").eval()
    tx, rx = system.start(fmt, "tx"), system.start(fmt, "rx")
    ledger, random = Ledger(), torch.Generator().manual_seed(0)
    link.channel.reset(random)  # no header: with every packet lost it would never arrive
    with torch.no_grad():
        for piece in frames.split(system.frames_per_step):
            step = Step(piece[None])
            payload, tx, _ = system.encode(step, tx, *link.grant(step), generator=random)
            received = link.send(payload, ledger, generator=random)
            decoded, rx, _ = system.decode(received, rx, piece.shape[0], generator=random)
            assert decoded.frames is not None
            assert decoded.frames.shape == step.frames.shape
            assert bool(torch.isfinite(decoded.frames).all())


@pytest.mark.parametrize(("spec", "preset"), WITH_PACKETS)
def test_a_link_that_lies_costs_quality_not_frames(spec: SystemSpec, preset: str, hold: Hold, clip: Clip) -> None:
    system = ready(spec, preset)
    frames = clip(3, 96, 128)
    cbr = affordable_cbr(system, 96, 128, 0.12)
    truth = hold(system, frames, snr_db=18.0, csi_snr_db=18.0, cbr=cbr)
    if truth.ledger.total(kind="digital") == 0:
        pytest.skip("this preset sends no packets")
    lie = hold(system, frames, snr_db=2.0, csi_snr_db=18.0, cbr=cbr)
    assert lie.shown.shape == frames.shape
    assert lie.ledger.total("packets_lost") > 0
    assert lie.psnr_db < truth.psnr_db


# -- weights -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), TRAINED)
def test_save_and_load(spec: SystemSpec, preset: str, tmp_path: Path, hold: Hold, clip: Clip) -> None:
    one, two = fresh(spec, preset), spec.make(preset, "strong").eval()
    if one.key_name:
        two.key = one.key  # whose weights stand in a checkpoint of their own
    checkpoint.save(one, tmp_path / "a", {"note": "random"})
    digest = checkpoint.load(one, tmp_path / "a")  # fp16 on disk
    assert checkpoint.load(two, tmp_path / "a") == digest
    cbr = affordable_cbr(one, 64, 64)
    assert torch.equal(hold(one, clip(1, 64, 64), cbr=cbr).shown, hold(two, clip(1, 64, 64), cbr=cbr).shown)


@pytest.mark.parametrize(("spec", "preset"), TRAINED)
def test_weights_of_another_preset_are_refused(spec: SystemSpec, preset: str, tmp_path: Path) -> None:
    system = fresh(spec, preset)
    checkpoint.save(system, tmp_path / "a", {})
    system.preset = "other"
    with pytest.raises(WeightsError, match="belong to"):
        checkpoint.load(system, tmp_path / "a")


@pytest.mark.parametrize("spec", [s for s in SPECS if s.trained], ids=lambda s: s.name)
def test_shipped_weights_load_and_carry_a_card(spec: SystemSpec) -> None:
    folder = checkpoint.shipped(spec.name, spec.presets[0])
    if folder is None:
        pytest.skip(f"no weights of {spec.name}:{spec.presets[0]} come with the package")
    system, digest = checkpoint.make_system(spec.name)
    assert len(digest) == 16
    assert not system.training
    assert checkpoint.read_card(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6


# -- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "preset"), TRAINED)
def test_a_training_step_reaches_every_parameter(spec: SystemSpec, preset: str, clip: Clip) -> None:
    system = fresh(spec, preset).train()
    if not any(parameter.requires_grad for parameter in system.parameters()):
        pytest.skip("its weights are computed in closed form: no parameter has a gradient")
    snr_db = [3.0, 12.0] if system.batched else [12.0]
    frames = torch.stack([clip(system.frames_per_step, 64, 64, seed=s) for s in range(len(snr_db))])
    cbr = affordable_cbr(built(spec, preset), 64, 64)
    link = Link("awgn", snr_db=torch.tensor(snr_db), cbr=cbr).train()
    fmt = Format(64, 64, system=spec.name, preset=preset, cbr=cbr)
    results = list(run(system, [Step(frames)], link, Ledger(), fmt=fmt, generator=torch.Generator().manual_seed(0)))
    losses = system.loss(results, spec.goals[0], {})
    assert losses["loss"].dim() == 0
    losses["loss"].backward()
    apart = "key." if system.key_name else "-"  # a key-frame system with a checkpoint of its own is not trained along
    own = [(name, p) for name, p in system.named_parameters() if not name.startswith(apart)]
    assert [name for name, p in own if p.grad is None or not bool((p.grad != 0).any())] == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in system.parameters() if p.grad is not None)
    before = [p.detach().clone() for _, p in own]
    torch.optim.Adam(system.parameters(), lr=1e-3).step()
    assert all(not torch.equal(a, b) for a, b in zip(before, [p for _, p in own], strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in system.parameters())


@pytest.mark.parametrize("spec", [s for s in SPECS if not s.trained], ids=lambda s: s.name)
def test_what_has_no_weights_says_that_there_is_nothing_to_train(spec: SystemSpec) -> None:
    system = spec.make(spec.presets[0], "strong")
    with pytest.raises(TypeError, match="nothing to train"):
        system.loss([], "watch", {})
    with pytest.raises(WeightsError):
        checkpoint.make_system(spec.name, weights="anything")
