"""What every registered channel, modem, metric and goal must do."""

from __future__ import annotations

import math

import pytest
import torch

from semcast.channels import CHANNELS, make_channel
from semcast.errors import UnknownNameError
from semcast.goals import GOALS, TASK_MODELS
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.metrics import METRICS
from semcast.metrics.base import FrameMetric
from semcast.modems import MODEMS, make_modem
from semcast.registry import Registry
from semcast.systems import SYSTEMS
from semcast.types import Analog, Decoded, Digital, Format, Packet, RxAnalog, Step

REGISTRIES: list[Registry] = [SYSTEMS, CHANNELS, MODEMS, METRICS, GOALS, TASK_MODELS]
SPECIFICATIONS = sorted({text for name in CHANNELS for text in (name, CHANNELS.get(name).example)} - {"trace"})


@pytest.fixture
def spec(request: pytest.FixtureRequest, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> str:
    """A channel specification, run in a folder that holds the file which examples of traces name."""
    text: str = request.param
    path = text.partition("path=")[2].partition(",")[0]
    if path:
        monkeypatch.chdir(str(tmp_path))
        with open(path, "w") as file:
            file.write("time_s,snr_db\n0,10\n0.001,4\n0.002,12\n")
    return text


every_channel = pytest.mark.parametrize("spec", SPECIFICATIONS, indirect=True)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_every_entry_resolves(registry: Registry) -> None:
    assert len(registry) > 0
    for name in registry:
        assert registry.get(name) is registry.get(name)
        assert name == name.lower()


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda r: r.kind)
def test_an_unknown_name_offers_the_nearest(registry: Registry) -> None:
    name = next(iter(registry))
    with pytest.raises(UnknownNameError, match=f"unknown {registry.kind}") as error:
        registry.get(name + "x")
    assert f"did you mean {name!r}" in str(error.value)


# -- channels ----------------------------------------------------------------------------------------------------------------


@every_channel
def test_specification_round_trip(spec: str) -> None:
    channel = make_channel(spec)
    assert make_channel(channel.spec).spec == channel.spec


@every_channel
def test_analog_over_every_channel(spec: str) -> None:
    """Shapes, finite values, gradients to the symbols, the same result from the same seed."""
    received = []
    for _ in range(2):
        random = torch.Generator().manual_seed(0)
        x = torch.randn(2, 700, dtype=torch.complex64, generator=random, requires_grad=True)
        link = Link(spec, snr_db=torch.tensor([3.0, 15.0])).train()
        link.channel.reset(random)
        ledger = Ledger()
        rx = link.send({"a": Analog(x)}, ledger, generator=random)["a"]
        assert isinstance(rx, RxAnalog)
        estimate, noise_var = rx.equalised()
        assert rx.y.shape == rx.h.shape == estimate.shape == noise_var.shape == (2, 700)
        assert bool(torch.isfinite(torch.view_as_real(estimate)).all())
        assert bool((noise_var >= 0).all())
        estimate.abs().square().mean().backward()
        assert x.grad is not None
        assert bool(torch.isfinite(torch.view_as_real(x.grad)).all())
        assert bool((x.grad.abs() > 0).any())
        assert ledger.total(kind="analog") == 1400
        assert link.clock == 700 + link.channel.pilot_uses(700)
        received.append(rx.y.detach())
    assert torch.equal(received[0], received[1])


@every_channel
def test_packets_over_every_channel(spec: str) -> None:
    random = torch.Generator().manual_seed(0)
    link = Link(spec, snr_db=12.0, harq=2).eval()
    link.channel.reset(random)
    packets = [Packet(bytes(range(50))), Packet(b"x" * 300)]
    ledger = Ledger()
    arrived = link.send({"p": Digital([packets])}, ledger, generator=random)["p"]
    assert isinstance(arrived, list)
    assert all(got in (None, packet.data) for got, packet in zip(arrived[0], packets, strict=True))
    assert ledger.total(kind="digital") > 0
    assert ledger.total("info_bits") == 8 * 350
    assert ledger.channel_uses - ledger.total(kind="feedback") == link.clock


@every_channel
def test_the_whole_session_is_charged(spec: str) -> None:
    """Header, packets and symbols with all their pilots: what the clock counts is what the ledger holds."""
    random = torch.Generator().manual_seed(0)
    snr_db = 15.0 - 10 * math.log10(make_channel(spec).mean_gain)  # path loss counts its SNR at the transmitter
    link, ledger = Link(spec, snr_db=snr_db).eval(), Ledger()
    link.open(Format(64, 64, system="toy", cbr=0.1), ledger, generator=random)
    link.send(
        {"a": Analog(torch.ones(1, 700, dtype=torch.complex64)), "p": Digital([[Packet(b"x" * 90)]])}, ledger, generator=random
    )
    assert ledger.channel_uses == link.clock


@every_channel
def test_no_uses_are_no_charge(spec: str) -> None:
    random = torch.Generator().manual_seed(0)
    link = Link(spec).eval()
    link.channel.reset(random)
    ledger = Ledger()
    link.send({"a": Analog(torch.zeros(1, 0, dtype=torch.complex64)), "p": Digital([[]])}, ledger, generator=random)
    assert ledger.channel_uses == 0


# -- modems ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MODEMS))
def test_modem_charges_what_it_announced(name: str) -> None:
    """At an SNR with room to spare everything arrives, for exactly the uses that were planned."""
    modem = make_modem(name)
    mcs = modem.select(10.0)
    sizes = [1, 40, 700]
    link = Link("awgn", snr_db=16.0, csi_snr_db=10.0, phy=name).eval()
    ledger = Ledger()
    packets = [Packet(bytes([7]) * size) for size in sizes]
    arrived = link.send({"p": Digital([packets])}, ledger, generator=torch.Generator().manual_seed(0))["p"]
    assert arrived == [[packet.data for packet in packets]]
    assert ledger.channel_uses == modem.uses_for_bytes(sizes, mcs)
    assert link.clock == ledger.channel_uses


@pytest.mark.parametrize("name", list(MODEMS))
def test_modem_inverts_its_own_sizes(name: str) -> None:
    modem = make_modem(name)
    for snr_db in (0.0, 12.0):
        mcs = modem.select(snr_db)
        for uses in (400, 2500, 20000):
            size = modem.bytes_for_uses(uses, mcs)
            assert modem.uses_for_bytes([size], mcs) <= uses < modem.uses_for_bytes([size + 1], mcs)


@pytest.mark.parametrize("name", list(MODEMS))
def test_modem_goes_faster_when_told_of_a_better_channel(name: str) -> None:
    modem = make_modem(name)
    rates = [modem.bits_per_use(modem.select(snr_db)) for snr_db in (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0)]
    assert rates == sorted(rates)
    assert rates[-1] > 4 * rates[0]


# -- metrics, goals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in METRICS if issubclass(METRICS.get(n), FrameMetric)])
def test_frame_metrics_fall_with_noise(name: str, generator: torch.Generator) -> None:
    kind = METRICS.get(name)
    assert kind.convention
    reference = torch.rand(1, 3, 128, 128, generator=generator)
    noise = torch.randn(reference.shape, generator=generator)
    values = []
    for level in (0.01, 0.05, 0.2):
        metric = kind()
        metric.update(reference, (reference + level * noise).clamp(0, 1))
        values.append(metric.clip())
    assert values == sorted(values, reverse=kind.higher_is_better)


@pytest.mark.parametrize("name", list(GOALS))
def test_goals_name_metrics_that_exist(name: str) -> None:
    goal = GOALS.get(name)
    assert goal.name == name
    assert goal.summary
    assert goal.metrics
    assert all(metric in METRICS for metric in goal.metrics)
    assert goal.output in Decoded.__dataclass_fields__
    assert bool(goal.classes) == any(METRICS.get(metric).inputs == "labels" for metric in goal.metrics)


@pytest.mark.parametrize("name", [n for n in GOALS if not GOALS.get(n).truth])
def test_distortion_is_zero_only_for_what_was_sent(name: str, generator: torch.Generator) -> None:
    frames = torch.rand(2, 1, 3, 64, 64, generator=generator)
    goal = GOALS.get(name)
    assert goal.distortion(Step(frames), Decoded(frames=frames)).tolist() == [0, 0]
    assert bool((goal.distortion(Step(frames), Decoded(frames=1 - frames)) > 0).all())
