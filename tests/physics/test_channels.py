"""What every registered channel owes its users; the examples of the registry are the test cases."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from semcast.channels import CHANNELS, make_channel, papr_db
from semcast.channels.base import Channel
from semcast.errors import ContractError

NAMES = list(CHANNELS)
FADING = [name for name in NAMES if CHANNELS.get(name).is_fading]


@pytest.fixture(autouse=True)
def _trace_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("drive.csv").write_text("time_s,snr_db\n0,10\n0.001,3\n0.002,-6\n0.004,12\n")


def example(name: str, extra: str = "") -> Channel:
    spec = CHANNELS.get(name).example
    return make_channel(spec + ((("," if ":" in spec else ":") + extra) if extra else ""))


def symbols(batch: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, n, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("noise_var", [0.05, 2.0])
def test_noise_is_circular_and_of_the_power_asked_for(name: str, noise_var: float) -> None:
    channel, g, n = example(name), rng(), 20_000
    h = channel.sample(n, 0, batch=2, generator=g).h
    noise = (channel.apply(torch.zeros(2, n, dtype=torch.complex64), h, noise_var, generator=g)).flatten()
    if channel.is_ideal:
        assert noise.abs().max() == 0
        return
    sigma = noise_var / noise.numel() ** 0.5
    assert abs(float(noise.abs().square().mean()) - noise_var) < 5 * sigma
    assert abs(complex(noise.square().mean())) < 5 * sigma  # E n^2 = 0: circular
    assert abs(complex(noise.mean())) < 5 * (noise_var / noise.numel()) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_output_is_gain_times_clipped_symbol_plus_noise(name: str) -> None:
    channel, g = example(name), rng()
    x = symbols(3, 500)
    h = channel.sample(500, 0, batch=3, generator=g).h
    assert h.shape == (3, 500)
    assert h.dtype == torch.complex64
    y = channel.apply(x, h, 0.0, generator=g)
    torch.testing.assert_close(y, h * channel.clip(x))


def test_noise_power_may_differ_by_element_and_by_use() -> None:
    channel, n = make_channel("awgn"), 20_000
    noise_var = torch.tensor([[0.1], [1.0]]) * torch.cat([torch.ones(n), 4 * torch.ones(n)])
    y = channel.apply(torch.zeros(2, 2 * n, dtype=torch.complex64), torch.ones(1, 2 * n), noise_var, generator=rng())
    power = y.abs().square().reshape(2, 2, n).mean(-1)
    expected = torch.tensor([[0.1, 0.4], [1.0, 4.0]])
    assert ((power - expected).abs() < 5 * expected / n**0.5).all()


@pytest.mark.parametrize("name", NAMES)
def test_mean_power_gain(name: str) -> None:
    channel, draws = example(name), 4000
    power = channel.typical(8, draws, generator=rng()).abs().square().double().mean(-1)
    assert abs(float(power.mean()) - channel.mean_gain) <= 5 * float(power.std()) / draws**0.5 + 1e-6 * channel.mean_gain
    if not name.startswith("pathloss"):
        assert channel.mean_gain == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_air(name: str) -> None:
    def air(seed: int) -> list[Tensor]:
        channel, g = example(name), rng(seed)
        channel.reset(g)
        fading = channel.sample(2000, 5, batch=2, generator=g)
        h_hat, error_var = channel.estimate(fading, 0.1, generator=g)
        y = channel.apply(symbols(2, 2000), fading.h, 0.1, generator=g)
        drops = channel.erasures(50, 2005, generator=g)
        return [fading.h, h_hat, error_var, y, drops.float(), channel.typical(32, 4, generator=g)]

    first, again, other = air(1), air(1), air(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    if name != "ideal":
        assert not torch.equal(first[3], other[3])


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for name in NAMES:
        channel, g = example(name), rng()
        fading = channel.sample(300, 0, generator=g)
        channel.estimate(fading, 0.1, generator=g)
        channel.apply(symbols(1, 300), fading.h, 0.1, generator=g)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", FADING)
def test_fading_is_a_function_of_the_clock_until_reset(name: str) -> None:
    channel, g = example(name), rng()
    first = channel.sample(900, 100, batch=2, generator=g).h
    channel.sample(300, 7000, batch=2, generator=g)
    assert torch.equal(first, channel.sample(900, 100, batch=2, generator=g).h)
    if name != "trace":  # a file does not change with the session
        channel.reset(g)
        assert not torch.allclose(first, channel.sample(900, 100, batch=2, generator=g).h)


@pytest.mark.parametrize("name", FADING)
def test_typical_does_not_touch_the_session(name: str) -> None:
    channel, g = example(name), rng()
    first = channel.sample(400, 0, generator=g).h
    typical = channel.typical(400, 6, generator=g)
    assert typical.shape == (6, 400)
    assert torch.equal(first, channel.sample(400, 0, generator=g).h)


@pytest.mark.parametrize("name", FADING)
def test_reported_estimation_error_is_the_real_one(name: str) -> None:
    channel, g, sessions = example(name), rng(), 150
    real, reported = [], []
    for _ in range(sessions):
        channel.reset(g)
        fading = channel.sample(600, 0, batch=4, generator=g)
        h_hat, error_var = channel.estimate(fading, 0.2, generator=g)
        real.append((h_hat - fading.h).abs().square().mean())
        reported.append(error_var.mean())
    error = torch.stack(real)
    # Bursts repeat the same few trace levels: no spread between sessions, so allow single precision.
    assert abs(float(error.mean() - torch.stack(reported).mean())) <= 5 * float(error.std()) / sessions**0.5 + 1e-6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("extra", ["", "clip_papr_db=4"])
def test_gradients_reach_the_transmitter(name: str, extra: str) -> None:
    if "clip" in CHANNELS.get(name).example and extra:
        extra = ""
    channel, g = example(name, extra), rng()
    x = symbols(2, 300).requires_grad_()
    h = channel.air(300, 0, batch=2, generator=g).h
    y = channel.apply(x, h, 0.1, generator=g)
    (gradient,) = torch.autograd.grad(y.abs().square().sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.abs() > 0).float().mean() > 0.99
    if not extra and "clip" not in channel.spec:
        torch.testing.assert_close(gradient, 2 * h.conj() * y.detach())


@pytest.mark.parametrize("name", NAMES)
def test_clipping_bounds_the_peaks(name: str) -> None:
    channel = make_channel(CHANNELS.get(name).example.replace(":clip_papr_db=6", ""))
    x = symbols(3, 3000)
    assert torch.equal(channel.clip(x), x)
    limit_db = 3.0
    clipped = (
        example(name, "clip_papr_db=3") if "clip" not in CHANNELS.get(name).example else make_channel("awgn:clip_papr_db=3")
    )
    if name.startswith("tdl"):
        x = x[:, : 3000 // clipped.grid.subcarriers * clipped.grid.subcarriers]  # whole OFDM symbols: no padding cut off
    before, after = clipped.waveform(x).abs(), clipped.waveform(clipped.clip(x)).abs()
    bound = (before.square().mean(-1) * 10 ** (limit_db / 10)).sqrt()
    assert (after.amax(-1) <= bound * (1 + 1e-5)).all()
    untouched = before < bound[:, None] * (1 - 1e-5)
    assert 0.5 < untouched.float().mean() < 0.99
    torch.testing.assert_close(after[untouched], before[untouched], rtol=1e-4, atol=1e-5)


def test_papr() -> None:
    x = torch.tensor([[1, 1j, -1, -1j], [2, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.complex64)
    torch.testing.assert_close(papr_db(x), torch.tensor([0.0, 10 * torch.log10(torch.tensor(4.0)), 0.0]))


@pytest.mark.parametrize("name", NAMES)
def test_overhead_grows_with_the_send_and_can_be_inverted(name: str) -> None:
    channel = example(name, "pilot_overhead=0.1") if name in ("rayleigh", "rician", "pathloss", "trace") else example(name)
    totals = [n + channel.pilot_uses(n) for n in (0, 1, 2, 50, 51, 500, 5000)]
    assert totals[0] == 0
    assert totals == sorted(totals)
    for total in (100, 777, 4000):
        n = channel.data_uses(total)
        assert n + channel.pilot_uses(n) <= total < n + 1 + channel.pilot_uses(n + 1)
    if name.startswith("tdl") or "overhead" in channel.spec:
        assert channel.pilot_uses(1000) >= 100


@pytest.mark.parametrize("name", NAMES)
def test_empty_and_tiny_sends(name: str) -> None:
    channel, g = example(name), rng()
    for n in (0, 1):
        fading = channel.sample(n, 3, batch=2, generator=g)
        h_hat, error_var = channel.estimate(fading, 0.1, generator=g)
        assert fading.h.shape == h_hat.shape == (2, n)
        torch.broadcast_shapes(error_var.shape, (2, n))
    assert channel.erasures(0, 0, generator=g).shape == (0,)


def test_wrong_shapes_are_named() -> None:
    channel = make_channel("awgn")
    with pytest.raises(ContractError, match="complex"):
        channel.apply(torch.zeros(2, 4), torch.ones(2, 4), 0.1, generator=rng())
    with pytest.raises(ContractError, match="do not fit"):
        channel.apply(symbols(2, 4), torch.ones(2, 5), 0.1, generator=rng())
