"""Packet loss and traces."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
import torch

from semcast.channels import make_channel
from semcast.errors import SpecError


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bursts(lost: list[bool]) -> list[int]:
    return [len(list(run)) for bad, run in groupby(lost) if bad]


def test_independent_losses() -> None:
    n, rate = 40_000, 0.025
    lost = make_channel("erasure:plr=0.025").erasures(n, 0, generator=rng())
    assert abs(float(lost.float().mean()) - rate) < 5 * (rate * (1 - rate) / n) ** 0.5
    pairs = (lost[1:] & lost[:-1]).float().mean()
    assert abs(float(pairs) - rate**2) < 5 * (rate**2 / n) ** 0.5


@pytest.mark.parametrize(
    ("spec", "rate", "length"),
    [
        ("erasure:plr=0.05,burst=4", 0.05, 4.0),
        ("erasure:plr=0.3,burst=2", 0.3, 2.0),
        ("gilbert-elliott:p=0.02,r=0.1", 0.02 / 0.12, 10.0),
    ],
)
def test_bursts(spec: str, rate: float, length: float) -> None:
    """Loss rate and mean burst of Gilbert's chain; the variance of the rate is widened by the chain's memory 1 - p - r."""
    n = 60_000
    channel, g = make_channel(spec), rng()
    lost = torch.cat([channel.erasures(n // 20, 0, generator=g) for _ in range(20)])  # the state persists between calls
    r = 1 / length
    memory = 1 - r - r * rate / (1 - rate)
    sigma = (rate * (1 - rate) / n * (1 + memory) / (1 - memory)) ** 0.5
    assert abs(float(lost.float().mean()) - rate) < 5 * sigma
    lengths = torch.tensor(bursts(lost.tolist())).double()
    assert abs(float(lengths.mean()) - length) < 5 * float(lengths.std()) / len(lengths) ** 0.5


def test_losses_in_both_states() -> None:
    n = 60_000
    lost = make_channel("gilbert-elliott:p=0.1,r=0.3,loss_good=0.02,loss_bad=0.5").erasures(n, 0, generator=rng())
    rate = (0.3 * 0.02 + 0.1 * 0.5) / 0.4
    assert abs(float(lost.float().mean()) - rate) < 5 * (rate / n * 4) ** 0.5  # memory 0.6 at most quadruples the variance


@pytest.mark.parametrize(("plr", "expected"), [(0, False), (1, True)])
def test_certainties(plr: int, expected: bool) -> None:
    for spec in (f"erasure:plr={plr}", f"erasure:plr={plr},burst=3"):
        assert (make_channel(spec).erasures(200, 0, generator=rng()) == expected).all()


def test_reset_forgets_the_state() -> None:
    channel = make_channel("gilbert-elliott:p=0,r=0")  # stays where it is: good, for nothing ever turns bad
    assert not channel.erasures(10, 0, generator=rng()).any()
    sticky = make_channel("gilbert-elliott:p=0.00001,r=0.00001")
    states = []
    for seed in range(40):
        sticky.reset(rng(seed))
        states.append(bool(sticky.erasures(3, 0, generator=rng(seed))[0]))
    assert 5 < sum(states) < 35


def test_analog_symbols_are_lost_in_chunks_and_the_receiver_knows() -> None:
    channel, g = make_channel("erasure:plr=0.3,packet_uses=64"), rng()
    fading = channel.sample(64 * 200 + 10, 0, batch=2, generator=g)
    chunks = fading.h[:, : 64 * 200].reshape(2, 200, 64).abs()
    assert ((chunks.amin(-1) == chunks.amax(-1)) & ((chunks[..., 0] == 0) | (chunks[..., 0] == 1))).all()
    assert 0.2 < float((chunks[..., 0] == 0).float().mean()) < 0.4
    assert not torch.equal(chunks[0], chunks[1])
    h_hat, error_var = channel.estimate(fading, 0.1, generator=g)
    assert torch.equal(h_hat, fading.h)
    assert float(error_var.max()) == 0
    assert (channel.air(100, 0, generator=g).h == 1).all()
    assert channel.erasure_packet_uses == 64


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_trace_follows_the_file_and_loops(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "time_s,snr_db,note\n5.0,10,a\n5.1,0,b\n5.2,20,c\n")
    channel = make_channel(f"trace:path={path}").configure(1000.0)
    power = channel.sample(700, 0, generator=rng()).h[0].abs().square()
    level_db = torch.tensor([10.0, 0.0, 20.0]).repeat_interleave(100).repeat(3)[:700]
    mean_db = 10 * torch.log10(torch.tensor((10 + 1 + 100) / 3))
    torch.testing.assert_close(10 * torch.log10(power), level_db - mean_db, atol=1e-3, rtol=0)
    assert float(power[:300].mean()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(channel.sample(50, 280, generator=rng()).h[0], power[280:330].sqrt().to(torch.complex64))


def test_trace_holds_if_told_and_weights_rows_by_their_duration(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "time_s,snr_db\n0,0\n0.3,10\n0.4,0\n")
    channel = make_channel(f"trace:path={path},end=hold").configure(1000.0)
    power = channel.sample(900, 0, generator=rng()).h[0].abs().square()
    assert float(power[:500].mean()) == pytest.approx(1.0, rel=1e-5)
    assert (power[500:] == power[499]).all()
    single = make_channel(f"trace:path={write(tmp_path / 'one.csv', 'time_s,snr_db' + chr(10) + '0,7')}")
    assert (single.sample(10, 0, generator=rng()).h == 1).all()


def test_a_column_of_gains_is_taken_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "g.csv", "gain_db,time_s\n-3,0\n-13,1\n")
    channel = make_channel(f"trace:path={path}").configure(10.0)
    power_db = 20 * torch.log10(channel.sample(20, 0, generator=rng()).h[0].abs())
    torch.testing.assert_close(power_db, torch.tensor([-3.0, -13.0]).repeat_interleave(10), atol=1e-4, rtol=0)
    assert channel.mean_gain == pytest.approx((10**-0.3 + 10**-1.3) / 2)


def test_typical_stretches_of_a_trace_start_anywhere(tmp_path: Path) -> None:
    path = write(tmp_path / "g.csv", "time_s,snr_db\n0,0\n1,10\n")
    h = make_channel(f"trace:path={path}").typical(2, 2000, generator=rng())[:, 0].abs()
    high = float((h > 1).float().mean())
    assert abs(high - 0.5) < 5 * 0.5 / 2000**0.5


def test_an_outdated_trace_costs_its_mean_square_change(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "time_s,gain_db\n0,0\n0.1,-20\n")
    channel = make_channel(f"trace:path={path},csi_age=50").configure(1000.0)
    fading = channel.sample(200, 200, generator=rng())
    h_hat, error_var = channel.estimate(fading, 0.1, generator=rng())
    assert torch.equal(h_hat[0, 50:], fading.h[0, :150])
    assert float((h_hat - fading.h).abs().square().mean()) == pytest.approx(float(error_var.mean()), rel=1e-2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns"),
        ("time_s,level\n0,1\n", "needs time_s"),
        ("time_s,snr_db\n", "no rows"),
        ("time_s,snr_db\n0,1\n1,x\n", "line 3"),
        ("time_s,snr_db\n0,1\n1,nan\n", "line 3"),
        ("time_s,snr_db\n0,1\n1\n", "line 3"),
        ("time_s,snr_db\n0,1\n0,2\n", "increase"),
    ],
)
def test_bad_traces_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(SpecError, match=message):
        make_channel(f"trace:path={path}")


def test_absent_and_alien_traces_are_explained(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        make_channel(f"trace:path={tmp_path / 'none.csv'}")
    (tmp_path / "alien.csv").write_bytes(b"\xff\xfe\x00\x81" * 50)
    with pytest.raises(SpecError, match="cannot be read"):
        make_channel(f"trace:path={tmp_path / 'alien.csv'}")
