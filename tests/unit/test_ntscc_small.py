"""The small preset of NTSCC: budget, side information, what a loss costs, and training beside deployment."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_systems import Ends, psnr_db, scene, tiny_ntscc

from semcast.errors import BudgetError
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.ntscc.small import NtsccSmall
from semcast.transmit import run
from semcast.types import Format, RxAnalog, RxProxy, Step

Hold = Callable[..., Any]
CLIP = scene("coffee-pan", 3)


@pytest.fixture
def system() -> Iterator[NtsccSmall]:
    made = tiny_ntscc()
    yield made
    made.eval().zero_grad()


@pytest.mark.parametrize("cbr", [0.03, 0.06, 0.12])
def test_the_budget_is_met(system: NtsccSmall, cbr: float, hold: Hold) -> None:
    """Within 5 %, session header included; never beyond."""
    session = hold(system, CLIP, cbr=cbr)
    granted = cbr * session.ledger.source_values
    assert 0.95 * granted < session.ledger.channel_uses <= granted + 1


def test_quality_rises_with_snr_and_with_rate(system: NtsccSmall, hold: Hold) -> None:
    by_snr = [hold(system, CLIP[:1], snr_db=snr, cbr=0.08).psnr_db for snr in (2.0, 5.0, 8.0, 11.0, 14.0)]
    by_rate = [hold(system, CLIP[:1], cbr=cbr).psnr_db for cbr in (0.03, 0.06, 0.12)]
    for rising in (by_snr, by_rate):  # the allocation changes in steps: a little back is no cliff
        assert all(later > earlier - 0.5 for earlier, later in pairwise(rising))
    assert by_snr[-1] > by_snr[0] + 4


@pytest.mark.parametrize("channel", ["rayleigh", "rayleigh:block"])
def test_fading_costs_quality_not_frames(system: NtsccSmall, channel: str, hold: Hold) -> None:
    faded, plain = (hold(system, CLIP, channel=one, cbr=0.3) for one in (channel, "awgn"))
    assert faded.shown.shape == CLIP.shape
    assert 10 < faded.psnr_db < plain.psnr_db


@torch.no_grad()
def test_a_lost_packet_freezes_the_last_frame(system: NtsccSmall) -> None:
    ends = Ends(system, CLIP)
    received = [ends.send(frame[None]) for frame in CLIP]
    grey = ends.show({**received[0], "hyperprior": [[None]]}, 1)
    assert grey.concealed == 1
    assert bool((grey.frames == 0.5).all())
    shown = ends.show(received[1], 1)
    frozen = ends.show({**received[2], "hyperprior": [[None]]}, 1)
    assert (shown.concealed, frozen.concealed) == (0, 1)
    assert torch.equal(frozen.frames, shown.frames)  # type: ignore[arg-type]
    assert ends.show(received[2], 1).concealed == 0


@torch.no_grad()
@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\x0a\x10\x27", b"\xff" * 3, b"\x80\0\0" + b"abcd" * 9, b"\x7f\xff\xff" + b"\xff" * 40]
)
def test_garbage_is_never_an_exception(system: NtsccSmall, data: bytes) -> None:
    ends = Ends(system, CLIP)
    ends.show({**ends.send(CLIP[:1]), "hyperprior": [[data]]}, 1)


@torch.no_grad()
def test_symbols_of_another_number_are_concealed(system: NtsccSmall) -> None:
    ends = Ends(system, CLIP)
    received = ends.send(CLIP[:1])
    rx: Any = received["latent"]
    more = RxAnalog(*(torch.cat([part] * 50, 1) for part in (rx.y, rx.h, rx.noise_var)))
    assert ends.show({**received, "latent": more}, 1).concealed == 1


@torch.no_grad()
def test_the_packet_tells_snr_and_amplitude(system: NtsccSmall) -> None:
    """The link takes the power away: a faint copy of a frame comes back as faint."""
    faint = (CLIP[:1] - 0.5) * 0.3 + 0.5
    ends = Ends(system, CLIP, snr_db=15.4, cbr=0.1)
    received = [ends.send(one) for one in (CLIP[:1], faint)]
    packets: list[Any] = [one["hyperprior"][0][0] for one in received]  # type: ignore[index]
    assert [struct.unpack_from("<bH", packet)[0] for packet in packets] == [15, 15]
    bright, dim = (ends.show(one, 1).frames for one in received)
    assert bright is not None
    assert dim is not None
    assert float(dim.std() / bright.std()) == pytest.approx(0.3, rel=0.1)


@torch.no_grad()
def test_busy_places_get_the_uses(system: NtsccSmall) -> None:
    """With half of the picture flat, the other half comes out better."""
    half = CLIP[:1].clone()
    half[..., :48] = 0.5
    both, one = (Ends(system, CLIP, cbr=0.04) for _ in range(2))
    shown = [ends.show(ends.send(picture), 1).frames for ends, picture in ((both, CLIP[:1]), (one, half))]
    (a, b) = (psnr_db(frames[0, ..., 64:], CLIP[:1, ..., 64:]) for frames in shown if frames is not None)
    assert b > a + 0.5


def test_a_budget_without_room_is_refused(system: NtsccSmall) -> None:
    with pytest.raises(BudgetError, match=r"bytes of side information.*raise --cbr"), torch.no_grad():
        Ends(system, CLIP, cbr=0.004).encode(CLIP[:1])


# -- training ------------------------------------------------------------------------------------------------------------------


def trained_on(system: NtsccSmall, frames: torch.Tensor, **link: Any) -> Any:
    """One batch (B, 1, 3, H, W) through the loop in training mode."""
    fmt = Format(*frames.shape[-2:], system="ntscc", preset="small", cbr=link["cbr"])
    step = [Step(frames, last=True)]
    (result,) = run(system.train(), step, Link(**link).train(), Ledger(), fmt=fmt, generator=torch.Generator().manual_seed(0))
    return result


@torch.no_grad()
@pytest.mark.parametrize(("snr_db", "cbr"), [(2.0, 0.15), (12.0, 0.06)])
def test_training_and_deployment_agree(system: NtsccSmall, snr_db: float, cbr: float) -> None:
    """The same symbols, as many of them, and over the same 6 noises the same picture within 0.05 dB, by proxy and by bytes."""
    frame = CLIP[:1]
    ends = Ends(system, CLIP, snr_db=snr_db, cbr=cbr)
    training = Ends(system.train(), CLIP, snr_db=snr_db, cbr=cbr)
    stood_in: Any = training.encode(frame)
    system.eval()
    real: Any = ends.encode(frame)
    assert torch.equal(real["latent"].x, stood_in["latent"].x)
    assert 8 * len(real["hyperprior"].packets[0][0].data) == float(stood_in["hyperprior"].est_bits)
    x = real["latent"].x * real["latent"].x.abs().square().mean().rsqrt()
    found: list[list[float]] = [[], []]
    for seed in range(6):
        noise = torch.randn(*x.shape, 2, generator=torch.Generator().manual_seed(seed)) * (10 ** (-snr_db / 10) / 2) ** 0.5
        rx = RxAnalog(x + torch.view_as_complex(noise), torch.ones_like(x), torch.full(x.shape, 10 ** (-snr_db / 10)))
        for mine, mode, side in (
            (found[0], False, [[real["hyperprior"].packets[0][0].data]]),
            (found[1], True, RxProxy(stood_in["hyperprior"].proxy, torch.ones(1, 1, dtype=torch.bool))),
        ):
            system.train(mode)
            shown = ends.show({"hyperprior": side, "latent": rx}, 1)
            assert shown.concealed == 0
            assert shown.frames is not None
            mine.append(psnr_db(shown.frames[0].clamp(0, 1), frame))
    deployed, trained = (sum(one) / len(one) for one in found)
    assert trained == pytest.approx(deployed, abs=0.05)


def test_gradients_reach_all_of_the_receiver(system: NtsccSmall) -> None:
    result = trained_on(system, CLIP[:2, None], snr_db=torch.tensor([4.0, 14.0]), cbr=0.1)
    losses = system.loss([result], "watch", {"power": 0.1})
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    assert [name for name, p in system.g_s.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
    assert float(losses["loss"].detach()) > 0


def test_the_start_is_the_closed_form_code(hold: Hold) -> None:
    """Before training the network adds nothing, whatever its inner weights are: pictures are those of the linear synthesis."""
    system = copy.deepcopy(tiny_ntscc())
    g_s = system.g_s
    assert g_s.finish is not None
    with torch.no_grad():
        for parameter in (*g_s.head.parameters(), *g_s.finish.head.parameters()):
            parameter.zero_()
        closed = hold(system, CLIP[:1], cbr=0.1, snr_db=15.0).psnr_db
        for block in (*g_s.fine, *g_s.finish.blocks):
            block.conv1.weight.mul_(3)
        again = hold(system, CLIP[:1], cbr=0.1, snr_db=15.0).psnr_db
    assert closed == again
    assert closed > psnr_db(CLIP[:1].mean((0, 2, 3), keepdim=True).expand_as(CLIP[:1]), CLIP[:1]) + 8
