"""The small preset of DVST: budget, the reference loops of both ends, what losses cost, and training beside deployment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_systems import DVST, Ends, psnr_db, scene, tiny_dvst
from torch import Tensor

from semcast.ledger import Ledger
from semcast.link import Link
from semcast.studies.session import Radio, load_system, transmit_clip
from semcast.systems import SYSTEMS
from semcast.systems.dvst.small import UNIT, Coded, DvstSmall, Run, pack_run, unpack_run
from semcast.transmit import run
from semcast.types import Analog, Format, RxAnalog, Step
from semcast.video.clip import Clip, VideoInfo

Hold = Callable[..., Any]
CLIP = scene("coffee-pan", 9)


@pytest.fixture
def system() -> Iterator[DvstSmall]:
    made = tiny_dvst()
    yield made
    made.eval().zero_grad()
    made.frames_per_step = 4


@pytest.fixture(scope="module")
def group() -> Any:
    """What arrived of the first four frames, at 10 dB."""
    with torch.no_grad():
        return Ends(tiny_dvst(), CLIP).send(CLIP[:4])


# -- the head of a packet ----------------------------------------------------------------------------------------------------


FRAMES = st.lists(st.tuples(st.integers(-128, 127), st.integers(-20, 12), st.integers(0, 65535)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.integers(-60, 60), st.integers(0, 10**7), FRAMES, st.binary())
def test_heads_come_back(told: int, first: int, frames: list[tuple[int, int, int]], rest: bytes) -> None:
    """Nothing of what follows is touched; 32 frames of 1080p at CBR 0.02 are four million uses."""
    unpacked = unpack_run(pack_run(Run(told, first * UNIT, frames)) + rest, len(frames))
    assert unpacked == (Run(told, first * UNIT, frames), rest)


def test_short_heads_are_refused() -> None:
    data = pack_run(Run(10, 80, [(1, 0, 10000), (-2, -3, 9000)]))
    assert [unpack_run(data[:size], 2) is None for size in range(len(data) + 1)] == [True] * len(data) + [False]
    assert unpack_run(data, 3) is None


# -- budget and quality ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cbr", [0.05, 0.06, 0.08])
def test_the_budget_is_met(system: DvstSmall, cbr: float, hold: Hold) -> None:
    """Within 5 % over two groups and an odd tail, session header included; never beyond."""
    session = hold(system, CLIP, cbr=cbr)
    granted = cbr * session.ledger.source_values
    assert 0.95 * granted < session.ledger.channel_uses <= granted + 1
    assert session.ledger.total(stream="latent") % UNIT == 0
    assert all(result.decoded.concealed == 0 for result in session.results)


def test_quality_rises_with_snr_and_with_rate(system: DvstSmall, hold: Hold) -> None:
    by_snr = [hold(system, CLIP[:4], snr_db=snr, cbr=0.06).psnr_db for snr in (2.0, 6.0, 10.0, 14.0, 18.0)]
    by_rate = [hold(system, CLIP[:4], cbr=cbr).psnr_db for cbr in (0.03, 0.06, 0.09)]
    for rising in (by_snr, by_rate):  # the allocation changes in steps: a little back is no cliff
        assert all(later > earlier - 0.5 for earlier, later in pairwise(rising))
    assert by_snr[-1] > by_snr[0] + 4


def test_groups_beat_frames_on_their_own(system: DvstSmall, hold: Hold) -> None:
    """What a P-frame takes from the frame before is not sent again: better than the key-frame system for the same uses."""
    assert hold(system, CLIP, cbr=0.05).psnr_db > hold(system.key, CLIP, cbr=0.05).psnr_db + 0.5


@pytest.mark.parametrize(("condition", "frames"), [("dvst-paper", 4), ("strong", 16), ("offline", 16)])
def test_groups_are_those_of_the_condition_or_shorter(condition: str, frames: int) -> None:
    assert SYSTEMS.get("dvst").make("small", condition).frames_per_step == frames


@torch.no_grad()
def test_more_budget_than_there_is_to_send(system: DvstSmall) -> None:
    """A picture that stands still, after a group that was much cheaper than expected: prices end at what can be told."""
    ends = Ends(system, CLIP, cbr=0.3)
    ends.tx.bias = -40
    assert ends.show(ends.send(CLIP[:1].expand(4, -1, -1, -1)), 4).concealed == 0


@pytest.mark.parametrize(("gop", "count"), [(1, 2), (4, 5), (4, 6), (3, 3), (8, 9)])
def test_groups_of_any_length_and_odd_tails(system: DvstSmall, gop: int, count: int, hold: Hold) -> None:
    system.frames_per_step = gop
    session = hold(system, CLIP[:count], cbr=0.06)
    assert session.shown.shape == CLIP[:count].shape
    sizes = [result.step.frames.shape[1] for result in session.results]
    for size, result in zip(sizes, session.results, strict=True):
        for stream in ("side", "motion"):
            assert len(result.received.get(stream, [[]])[0]) == math.ceil((size - 1) / DVST.run)
        assert result.decoded.concealed == 0
    assert session.psnr_db > 20


@pytest.mark.parametrize("channel", ["rayleigh", "rayleigh:block"])
def test_fading_costs_quality_not_frames(system: DvstSmall, channel: str, hold: Hold) -> None:
    faded, plain = (hold(system, CLIP[:5], channel=one, cbr=0.09) for one in (channel, "awgn"))
    assert faded.shown.shape == CLIP[:5].shape
    assert 8 < faded.psnr_db < plain.psnr_db


# -- two ends, two references ------------------------------------------------------------------------------------------------


def noted(system: DvstSmall, monkeypatch: pytest.MonkeyPatch) -> list[list[list[Coded]]]:
    """Runs of every group, as the transmitter makes them."""
    groups: list[list[list[Coded]]] = []
    encode_group = system.encode_group

    def note(*args: Any) -> list[list[Coded]]:
        groups.append(encode_group(*args))
        return groups[-1]

    monkeypatch.setattr(system, "encode_group", note, raising=False)
    return groups


@torch.no_grad()
@pytest.mark.parametrize("told", [4.0, 8.0])
def test_without_noise_the_receiver_has_the_transmitter_s_reference(
    system: DvstSmall, told: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eq. (2), frame by frame: the receiver that hears the symbols themselves, told the same noise, shows x_check.

    They differ by rounding alone: the packet tells both the same amplitude.
    """
    groups = noted(system, monkeypatch)
    ends = Ends(system, CLIP, snr_db=told, cbr=0.08)
    for frames in CLIP[:8].split(4):
        received: dict[str, Any] = {}
        for name, stream in ends.encode(frames).items():
            if isinstance(stream, Analog):
                noise = torch.full(stream.x.shape, 10 ** (-told / 10))
                received[name] = RxAnalog(stream.x, torch.ones_like(stream.x), noise)
            else:
                assert stream.packets is not None
                received[name] = [[packet.data for packet in row] for row in stream.packets]
        shown = ends.show(received, 4)
        assert shown.concealed == 0
        assert shown.frames is not None
        coded = [one for run in groups[-1] for one in run]
        assert len(coded) == 3
        for frame, one, source in zip(shown.frames[0, 1:], coded, frames[1:], strict=True):
            mine = one.reference[:, : frame.shape[1], : frame.shape[2]]
            assert psnr_db(frame, mine) > psnr_db(mine, source) + 30


@torch.no_grad()
def test_the_transmitter_never_learns_what_the_receiver_heard(system: DvstSmall) -> None:
    """Told 10 dB, over a radio of 0 dB and one of 20: group after group the same symbols and bytes."""
    good, bad = (Ends(system, CLIP, snr_db=snr, csi_snr_db=10.0, seed=seed) for snr, seed in ((20.0, 1), (0.0, 2)))
    for frames in CLIP.split(4):
        streams = [ends.encode(frames) for ends in (good, bad)]
        for name, stream in streams[0].items():
            other: Any = streams[1][name]
            if isinstance(stream, Analog):
                assert torch.equal(stream.x, other.x)
            else:
                assert stream.packets == other.packets
        for ends, payload in zip((good, bad), streams, strict=True):
            ends.show(ends.link.send(payload, ends.ledger, generator=ends.random), len(frames))
    assert good.rx.last is not None
    assert not torch.equal(good.rx.last, bad.rx.last)


@torch.no_grad()
def test_runs_tell_where_their_symbols_begin(group: Any) -> None:
    heads = [unpack_run(data, count) for data, count in zip(group["side"][0], (2, 1), strict=True)]
    assert all(head is not None for head in heads)
    first = [head[0].first for head in heads if head is not None]
    assert first[0] == 0
    assert 0 < first[1] < group["latent"].y.shape[1]


# -- losses ------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_lost_run_stands_still_and_the_next_goes_on(system: DvstSmall) -> None:
    ends = Ends(system, CLIP)
    received: Any = ends.send(CLIP[:4])
    lost = {name: [[None, received[name][0][1]]] for name in ("side", "motion")}
    shown = ends.show({**received, **lost}, 4)
    assert shown.concealed == 2
    frames: Any = shown.frames
    assert torch.equal(frames[0, 1], frames[0, 0])
    assert torch.equal(frames[0, 2], frames[0, 0])
    assert not torch.equal(frames[0, 3], frames[0, 2])
    again = ends.show(ends.send(CLIP[4:8]), 4)
    assert again.concealed == 0
    assert psnr_db(again.frames[0], CLIP[4:8]) > 20  # type: ignore[index]


@torch.no_grad()
def test_motion_alone_moves_what_is_shown(system: DvstSmall, group: Any) -> None:
    """Without classes no symbol can be read, but vectors hold: better than standing still, and counted as concealed."""
    moved, still = (
        Ends(system, CLIP).show({**group, "side": [[None, None]], **more}, 4) for more in ({}, {"motion": [[None, None]]})
    )
    assert moved.concealed == still.concealed == 3
    assert psnr_db(moved.frames[0, 1:], CLIP[1:4]) > psnr_db(still.frames[0, 1:], CLIP[1:4]) + 1  # type: ignore[index]
    without = Ends(system, CLIP).show({**group, "motion": [[None, None]]}, 4)  # and classes are worth nothing without vectors
    assert torch.equal(without.frames, still.frames)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_lost_key_frame_holds_the_last_frame_until_the_next_group(system: DvstSmall) -> None:
    ends = Ends(system, CLIP)
    before = ends.show(ends.send(CLIP[:4]), 4)
    received = ends.send(CLIP[4:8])
    held = ends.show({**received, "key.hyperprior": [[None]]}, 4)
    assert held.concealed == 4
    assert all(torch.equal(frame, before.frames[0, -1]) for frame in held.frames[0])  # type: ignore[index]
    assert ends.show(ends.send(CLIP[8:]), 1).concealed == 0


@torch.no_grad()
def test_no_packet_at_all_arrives(system: DvstSmall, group: Any) -> None:
    """From the first group on: grey, as many frames as there were; with the I-frame alone the group stands still."""
    ends = Ends(system, CLIP)
    shown = ends.show({**group, "key.hyperprior": [[None]], "side": [[None, None]]}, 4)
    assert shown.concealed == 4
    assert bool((shown.frames == 0.5).all())
    assert ends.show({**group, "side": None}, 4).concealed == 3
    assert ends.show({**group, "latent": None}, 4).concealed == 3


@torch.no_grad()
@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\x0a" * 6, bytes(40), b"\xff" * 40, b"\x80\0\0\0\0\0\0" + b"abcd" * 9, b"\x0a\x10\x27\0\0\x80\x80\xff" * 8],
)
def test_forged_runs_cost_frames_at_most(system: DvstSmall, group: Any, data: bytes) -> None:
    for stream in ("side", "motion"):
        shown = Ends(system, CLIP).show({**group, stream: [[data, data]]}, 4)
        assert 0 <= shown.concealed <= 3


@torch.no_grad()
@pytest.mark.parametrize("packets", [[], [None], [None] * 5])
def test_another_number_of_packets_is_concealed(system: DvstSmall, group: Any, packets: list[None]) -> None:
    for stream in ("side", "motion"):
        assert Ends(system, CLIP).show({**group, stream: [packets]}, 4).concealed == 3


# -- training ----------------------------------------------------------------------------------------------------------------


def trained_on(system: DvstSmall, frames: Tensor, *, seed: int = 0, snr_db: float = 10.0, cbr: float = 0.06) -> Any:
    """One group (t, 3, H, W) through the loop in training mode."""
    fmt = Format(*frames.shape[-2:], system="dvst", preset="small", cbr=cbr)
    link = Link("awgn", snr_db=snr_db, cbr=cbr).train()
    random = torch.Generator().manual_seed(seed)
    (result,) = run(system.train(), [Step(frames[None], last=True)], link, Ledger(), fmt=fmt, generator=random)
    return result


@torch.no_grad()
def test_training_and_deployment_agree(system: DvstSmall) -> None:
    """One group over the same 6 noises, sent and shown in either mode: as many uses, and means within 0.05 dB."""
    frames, found, uses = CLIP[:4], [], []
    for mode in (False, True):
        ends = Ends(system.train(mode), CLIP)
        payload: Any = ends.encode(frames)
        uses.append([stream.x.shape[1] for stream in payload.values() if isinstance(stream, Analog)])
        psnr = []
        for seed in range(6):
            other = Ends(system, CLIP)
            received = other.link.send(payload, other.ledger, generator=torch.Generator().manual_seed(seed))
            shown = other.show(received, 4)
            assert shown.concealed == 0
            assert shown.frames is not None
            psnr.append(psnr_db(shown.frames[0].clamp(0, 1), frames))
        found.append(sum(psnr) / len(psnr))
    assert uses[0] == uses[1]
    assert found[0] == pytest.approx(found[1], abs=0.05)


def test_gradients_pass_through_all_frames_of_a_group(system: DvstSmall) -> None:
    """What the last frame looks like depends on g_s in every frame before, each of which is the next one's context."""
    made: list[Tensor] = []
    hook = system.g_s.register_forward_hook(lambda module, args, out: made.append(out))
    result = trained_on(system, CLIP[:4])
    hook.remove()
    with_graph = [one for one in made if one.requires_grad]
    assert len(with_graph) == 3
    for one in with_graph:
        one.retain_grad()
    (result.decoded.frames[0, 3] - CLIP[3]).square().mean().backward()
    sizes = [0.0 if one.grad is None else float(one.grad.norm()) for one in with_graph]
    assert all(size > 0 for size in sizes)
    assert all(later > 0.1 * earlier for earlier, later in pairwise(sizes))


def test_the_loss_trains_the_receiver_and_nothing_else(system: DvstSmall) -> None:
    losses = system.loss([trained_on(system, CLIP[:4])], "watch", {"power": 0.1})
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in system.g_s.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
    assert all(p.grad is None for p in system.key.parameters())
    assert not system.key.training


def test_what_a_task_makes_of_the_frames_is_added(system: DvstSmall) -> None:
    """Of all frames as shown, times its weight; and it is learned from."""
    result = trained_on(system, CLIP[:4])
    plain = system.loss([result], "segment", {})["loss"]
    try:
        system.task = lambda step, decoded: (decoded.frames - step.frames).abs().flatten(1).mean(1)  # type: ignore[operator]
        both = system.loss([result], "segment", {"task_weight": 50.0})["loss"]
    finally:
        system.task = None
    error = float((result.decoded.frames.detach() - result.step.frames).abs().mean())
    assert float((both - plain).detach()) == pytest.approx(50 * error, rel=1e-3)
    (slope,) = torch.autograd.grad(both - plain, system.g_s.head.weight)
    assert bool(slope.any())


def test_a_batch_whose_packets_were_all_lost_can_still_be_stepped_on(system: DvstSmall) -> None:
    result = trained_on(system, CLIP[:4])
    frames = result.decoded.frames.detach()
    lost = result._replace(decoded=type(result.decoded)(frames=frames, concealed=3))
    system.loss([lost], "watch", {})["loss"].backward()  # type: ignore[no-untyped-call]
    assert system.g_s.head.weight.grad is not None


def test_a_group_begins_where_a_scene_does() -> None:
    """In a session, not only on paper: the I-frame after a cut has its own packet."""
    frames = torch.cat([CLIP[:3], scene("astronaut-pan", 5)])
    info = VideoInfo("made", 96, 80, 25.0, None, "made", "gbrp")
    clip = Clip("made", info, lambda labels: ((frame, {}) for frame in frames))
    loaded = load_system("dvst:small", condition="strong")
    lengths: list[int] = []
    transmit_clip(loaded, clip, Radio(snr_db=10.0, cbr=0.2), on_step=lambda result: lengths.append(result.step.frames.shape[1]))
    assert lengths == [3, 5]
