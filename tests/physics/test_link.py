"""What the link does to power, noise, clock and budget; statistics are held to 5 sigma."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from semcast.ledger import Ledger
from semcast.link import Link, pack_header
from semcast.modems import make_modem
from semcast.modems.mcs import MCS
from semcast.types import Analog, Digital, Format, Packet, RxAnalog, Step, as_complex, as_real

N = 200_000


def symbols(n: int, seed: int = 0, batch: int = 1) -> Tensor:
    """CN(0, 1), (batch, n)."""
    return torch.randn(batch, n, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def carry(link: Link, *streams: Analog, seed: int = 1) -> tuple[list[RxAnalog], Ledger]:
    ledger = Ledger()
    received = link.send({str(i): s for i, s in enumerate(streams)}, ledger, generator=torch.Generator().manual_seed(seed))
    out = []
    for i in range(len(streams)):
        rx = received[str(i)]
        assert isinstance(rx, RxAnalog)
        out.append(rx)
    return out, ledger


# -- power -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [1e-3, 1.0, 300.0])
def test_unit_average_power_whatever_the_scale(gain: float) -> None:
    (rx,), _ = carry(Link("ideal"), Analog(gain * symbols(5000)))
    assert float(rx.y.abs().square().mean()) == pytest.approx(1.0, rel=1e-5)


def test_every_example_of_a_batch_has_its_own_power() -> None:
    x = symbols(4000, batch=3) * torch.tensor([[0.01], [1.0], [50.0]])
    (rx,), _ = carry(Link("ideal", snr_db=torch.zeros(3)), Analog(x))
    assert rx.y.abs().square().mean(1).tolist() == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_streams_of_one_send_share_the_power() -> None:
    """Relative power 3 to 1 over equal lengths: 1.5 and 0.5, one on average."""
    (strong, weak), _ = carry(Link("ideal"), Analog(torch.ones(1, 1000) + 0j, power=3.0), Analog(torch.ones(1, 1000) + 0j))
    assert float(strong.y.abs().square().mean()) == pytest.approx(1.5, rel=1e-5)
    assert float(weak.y.abs().square().mean()) == pytest.approx(0.5, rel=1e-5)


def test_silence_does_not_dilute_the_power() -> None:
    """Only active symbols count: 100 of 1000 uses at unit power, not at ten times that."""
    active = torch.arange(1000)[None] < 100
    (rx,), ledger = carry(Link("ideal"), Analog(symbols(1000), active=active))
    assert float(rx.y.abs().square().mean()) == pytest.approx(1.0, rel=1e-5)
    assert ledger.channel_uses == 100


def test_papr_of_what_is_sent() -> None:
    """One symbol of amplitude 10 among 999 of amplitude 1: peak 100 over mean 1.099, 19.59 dB."""
    x = torch.ones(1, 1000, dtype=torch.complex64)
    x[0, 500] = 10.0
    _, ledger = carry(Link("awgn").eval(), Analog(x))
    assert ledger.papr_db == pytest.approx(10 * math.log10(100 / 1.099), abs=1e-3)
    _, ledger = carry(Link("awgn").eval(), Analog(torch.ones(1, 100) + 0j))
    assert ledger.papr_db == pytest.approx(0.0, abs=1e-4)


# -- noise -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 7.0, 20.0])
def test_noise_power_is_that_of_the_snr(snr_db: float) -> None:
    """|n|^2 is exponential: the standard error of its mean over N uses is noise_var / sqrt(N). Es/N0, one complex symbol."""
    x = torch.ones(1, N, dtype=torch.complex64)
    (rx,), _ = carry(Link("awgn", snr_db=snr_db), Analog(x))
    noise = rx.y - x
    expected = 10 ** (-snr_db / 10)
    assert abs(float(noise.abs().square().mean()) - expected) < 5 * expected / math.sqrt(N)
    assert abs(float(noise.mean().abs())) < 5 * math.sqrt(expected / N)
    # half of the power in either part: a real-valued code meets noise_var / 2 per dimension
    for part in (noise.real, noise.imag):
        assert abs(float(part.square().mean()) - expected / 2) < 5 * (expected / 2) * math.sqrt(2 / N)
    assert float(rx.noise_var.mean()) == pytest.approx(expected, rel=1e-5)


def test_every_example_of_a_batch_meets_its_own_snr() -> None:
    x = torch.ones(3, N // 4, dtype=torch.complex64)
    (rx,), _ = carry(Link("awgn", snr_db=torch.tensor([0.0, 10.0, 20.0])), Analog(x))
    for got, expected in zip((rx.y - x).abs().square().mean(1).tolist(), (1.0, 0.1, 0.01), strict=True):
        assert abs(got - expected) < 5 * expected / math.sqrt(N // 4)


def test_the_receiver_is_told_the_noise_that_equalisation_leaves() -> None:
    """Over fading, the error of the equalised symbols has the power that RxAnalog announces, use by use."""
    x = torch.ones(1, N, dtype=torch.complex64)
    (rx,), _ = carry(Link("rayleigh", snr_db=10.0), Analog(x))
    estimate, noise_var = rx.equalised()
    kept = rx.h.abs().square() > 1e-3
    ratio = ((estimate - x).abs().square() / noise_var)[kept]
    assert abs(float(ratio.mean()) - 1) < 5 / math.sqrt(ratio.numel())


def test_ideal_has_no_noise_at_any_snr() -> None:
    x = symbols(1000)
    (rx,), _ = carry(Link("ideal", snr_db=-20.0), Analog(x))
    assert torch.allclose(rx.y, x / x.abs().square().mean().sqrt(), atol=1e-6)


# -- the clock ---------------------------------------------------------------------------------------------------------------


def test_the_channel_evolves_within_and_between_sends() -> None:
    """One coherence block spans the border of two sends: the clock, not the call, decides."""
    link = Link("rayleigh:block,coherence=100").eval()
    link.channel.reset(torch.Generator().manual_seed(0))
    (first,), _ = carry(link, Analog(symbols(150)))
    assert link.clock == 150
    (second,), _ = carry(link, Analog(symbols(100)))
    h = torch.cat([first.h, second.h], 1)[0]
    assert [len(set(h[i : i + 100].tolist())) for i in (0, 100)] == [1, 1]
    assert len(set(h.tolist())) == 3


# -- the budget --------------------------------------------------------------------------------------------------------------


def step(t: int = 1, height: int = 64, width: int = 96) -> Step:
    return Step(torch.zeros(1, t, 3, height, width))


def test_the_bucket_accrues_and_carries_over() -> None:
    link = Link("awgn", cbr=0.1).eval()
    nominal = 0.1 * 3 * 64 * 96
    _, budget = link.grant(step())
    assert budget.uses == budget.nominal_uses == math.floor(nominal)
    link.send({"a": Analog(symbols(1000))}, Ledger(), generator=torch.Generator().manual_seed(0))
    _, budget = link.grant(step())
    assert budget.uses == math.floor(2 * nominal) - 1000
    _, budget = link.grant(step(t=3))
    assert budget.uses == math.floor(5 * nominal) - 1000
    link.reset()
    _, budget = link.grant(step())
    assert budget.uses == math.floor(nominal)


def test_overspending_is_paid_back() -> None:
    link = Link("awgn", cbr=0.01).eval()
    link.grant(step())
    link.send({"a": Analog(symbols(1000))}, Ledger(), generator=torch.Generator().manual_seed(0))
    assert link.grant(step())[1].uses == 0
    for _ in range(10):
        _, budget = link.grant(step())
    assert 0 < budget.uses < 12 * budget.nominal_uses - 900


def test_no_fraction_of_a_use_is_lost() -> None:
    """Floors do not add up: after 100 steps the bucket holds floor(100 x), not 100 floor(x)."""
    link = Link("awgn", cbr=0.00101).eval()
    for _ in range(100):
        _, budget = link.grant(step())
    assert budget.uses == math.floor(100 * 0.00101 * 3 * 64 * 96 + 1e-6) > 100 * budget.nominal_uses


def test_pilots_come_out_of_the_budget() -> None:
    link = Link("tdl-c", cbr=0.1).eval()
    _, budget = link.grant(step())
    total = math.floor(0.1 * 3 * 64 * 96)
    assert budget.uses + link.channel.pilot_uses(budget.uses) <= total
    assert budget.uses + 1 + link.channel.pilot_uses(budget.uses + 1) > total
    ledger = Ledger()
    link.send({"a": Analog(symbols(budget.uses))}, ledger, generator=torch.Generator().manual_seed(0))
    assert ledger.total(kind="pilots") == link.channel.pilot_uses(budget.uses) > 0
    assert ledger.channel_uses == link.clock <= total


def test_payload_bytes_are_what_the_modem_can_carry() -> None:
    link = Link("awgn", snr_db=10.0, cbr=0.1).eval()
    _, budget = link.grant(step())
    ledger = Ledger()
    link.send({"p": Digital([[Packet(b"x" * budget.payload_bytes)]])}, ledger, generator=torch.Generator().manual_seed(0))
    assert 0.97 * budget.uses < ledger.channel_uses <= budget.uses


# -- the header --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phy", ["fast", "capacity"])
@pytest.mark.parametrize("name", [None, *MCS])
def test_the_uses_that_a_budget_promises_are_those_that_are_charged(name: str | None, phy: str) -> None:
    """Whether packets name their scheme or leave it to the link, which then protects short ones; pilots are extra."""
    link = Link("awgn", snr_db=40.0, csi_snr_db=10.0, cbr=0.5, phy=phy).eval()
    budget = link.grant(step())[1]
    for sizes in ([1], [20], [33, 7], [230], [700], [1500, 1500]):
        ledger = Ledger()
        stream = Digital([[Packet(bytes(size), mcs=name) for size in sizes]])
        link.send({"p": stream}, ledger, generator=torch.Generator().manual_seed(0))
        assert budget.uses_for_packets(sizes, name) == ledger.channel_uses


def test_the_header_is_charged_and_comes_out_of_the_budget() -> None:
    link, ledger = Link("awgn", snr_db=10.0, cbr=0.1).eval(), Ledger()
    fmt = Format(64, 96, system="toy", cbr=0.1)
    link.open(fmt, ledger, generator=torch.Generator().manual_seed(0))
    modem = make_modem("fast")
    assert ledger.channel_uses == ledger.total(kind="header") > 0
    assert ledger.channel_uses >= modem.uses_for_bytes([len(pack_header(fmt))], modem.select(10.0))
    assert ledger.total("info_bits") == 8 * len(pack_header(fmt))
    assert link.grant(step())[1].uses == math.floor(0.1 * 3 * 64 * 96) - ledger.channel_uses


def test_a_step_of_few_uses_expects_less_of_the_fading() -> None:
    """A short send meets two or three gains of a block Rayleigh channel; a long one sixteen, and can count on their mean."""
    choices = {}
    for cbr in (0.15, 1.0):  # 2764 and 18432 uses
        link = Link("rayleigh:block", snr_db=8.0, cbr=cbr).eval()
        link.grant(step())
        choices[cbr] = link.mcs()
        lost = 0
        for seed in range(12):
            link.reset()
            link.channel.reset(torch.Generator().manual_seed(seed))
            _, budget = link.grant(step())
            packets = [[Packet(bytes(budget.payload_bytes))]]
            arrived = link.send({"p": Digital(packets)}, Ledger(), generator=torch.Generator().manual_seed(seed))["p"]
            assert isinstance(arrived, list)
            lost += arrived[0][0] is None
        assert lost == 0 if cbr == 1.0 else lost < 9
    assert choices[0.15] != choices[1.0]


@pytest.mark.parametrize(("channel", "snr_db", "most"), [("awgn", -2.0, 1500), ("awgn", 10.0, 250), ("tdl-c", 12.0, 1000)])
def test_a_header_is_cheap(channel: str, snr_db: float, most: int) -> None:
    """25 bytes are 200 bits: even BPSK at rate 1/5 does not need thousands of uses, nor outages the slowest scheme."""
    link, ledger = Link(channel, snr_db=snr_db).eval(), Ledger()
    link.open(
        Format(240, 416, 50.0, "watch", "h265-ldpc", "default", cbr=0.02), ledger, generator=torch.Generator().manual_seed(0)
    )
    assert ledger.channel_uses < most


def test_the_header_is_repeated_until_it_arrives_and_every_attempt_is_charged() -> None:
    fmt = Format(64, 96, system="toy", cbr=0.1)
    uses, sent = [], []
    for channel in ("awgn", "erasure:plr=0.7"):
        link, ledger = Link(channel, snr_db=10.0).eval(), Ledger()
        link.open(fmt, ledger, generator=torch.Generator().manual_seed(4))
        uses.append(ledger.channel_uses)
        sent.append(ledger.total("packets_sent"))
        assert ledger.total("packets_lost") == sent[-1] - 1
    assert sent[0] == 1 < sent[1]
    assert uses[1] > uses[0]


def test_training_sends_no_header() -> None:
    link, ledger = Link("awgn").train(), Ledger()
    link.open(Format(64, 96), ledger, generator=torch.Generator().manual_seed(0))
    assert ledger.channel_uses == 0


# -- what the transmitter is told --------------------------------------------------------------------------------------------


def test_a_mismatch_changes_what_is_told_and_nothing_else() -> None:
    truth, lie = Link("awgn", snr_db=5.0), Link("awgn", snr_db=5.0, csi_snr_db=15.0)
    x = Analog(symbols(3000))
    (a,), _ = carry(truth, x)
    (b,), _ = carry(lie, x)
    assert torch.equal(a.y, b.y)
    assert torch.equal(a.noise_var, b.noise_var)
    (csi_truth, budget_truth), (csi_lie, budget_lie) = (link.eval().grant(step(6)) for link in (truth, lie))
    assert (float(csi_truth.snr_db), float(csi_lie.snr_db)) == (5.0, 15.0)
    assert csi_lie.bits_per_use > csi_truth.bits_per_use
    assert budget_lie.uses == budget_truth.uses > 0
    assert budget_lie.payload_bytes > budget_truth.payload_bytes


def test_digital_falls_off_a_cliff_and_analog_slides() -> None:
    """A scheme chosen for 12 dB: all packets at 13 dB, none at 8 dB. Analog symbols lose a decibel per decibel."""
    delivered, error_db = [], []
    for snr_db in (13.0, 8.0):
        link = Link("awgn", snr_db=snr_db, csi_snr_db=12.0).eval()
        packets = [Packet(b"y" * 400) for _ in range(40)]
        arrived = link.send({"p": Digital([packets])}, Ledger(), generator=torch.Generator().manual_seed(0))["p"]
        assert isinstance(arrived, list)
        delivered.append(sum(item is not None for item in arrived[0]))
        x = torch.ones(1, 20_000, dtype=torch.complex64)
        (rx,), _ = carry(link, Analog(x))
        error_db.append(10 * math.log10(float((rx.y - x).abs().square().mean())))
    assert delivered == [40, 0]
    assert error_db[1] - error_db[0] == pytest.approx(5.0, abs=10 * math.log10(1 + 5 * math.sqrt(2 / 20_000)))


@pytest.mark.parametrize("channel", ["awgn", "rayleigh", "rician", "tdl-c"])
def test_psnr_of_uncoded_pixels_rises_with_snr(channel: str, clip: Any) -> None:
    """Pixels as symbols with an MMSE receiver; over AWGN PSNR is the Wiener bound 10 log10((1 + snr) / variance)."""
    frame = clip(1, 64, 64)[None]
    signal = frame - frame.mean()
    variance = float(signal.square().mean())
    psnr = []
    for snr_db in (0.0, 5.0, 10.0, 15.0, 20.0):
        link = Link(channel, snr_db=snr_db).eval()
        link.channel.reset(torch.Generator().manual_seed(0))
        (rx,), _ = carry(link, Analog(as_complex(signal.flatten(1))))
        x, noise_var = rx.equalised()
        z = as_real(x / (1 + noise_var)).reshape(signal.shape) * math.sqrt(2 * variance)
        psnr.append(-10 * math.log10(float((z - signal).square().mean())))
        if channel == "awgn":
            assert psnr[-1] == pytest.approx(10 * math.log10((1 + 10 ** (snr_db / 10)) / variance), abs=0.15)
    assert psnr == sorted(psnr)
    assert psnr[-1] - psnr[0] > 6
