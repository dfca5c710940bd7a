"""Tapped delay lines over OFDM: against Sionna's own generator and covariances, and the estimators against the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semcast.channels import make_channel
from semcast.channels.fading import SumOfSinusoids
from semcast.channels.ofdm import Grid, linear_weights, spread
from semcast.channels.tdl import Tdl
from semcast.errors import SpecError

NARROW = "subcarriers=20,subcarrier_spacing_khz=15"


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tdl(spec: str) -> Tdl:
    channel = make_channel(spec)
    assert isinstance(channel, Tdl)
    return channel


def grids(channel: Tdl, symbols: int, draws: int) -> Tensor:
    """(draws, symbols, F) typical gains, NaN at pilots."""
    n = channel.grid.capacity(symbols)
    (window,) = channel.grid.windows(symbols)
    out = torch.full((draws, symbols, channel.grid.subcarriers), torch.nan, dtype=torch.complex64)
    out[:, channel.grid.data_mask(window)] = channel.typical(n, draws, generator=rng())
    return out


def test_taps_are_those_of_sionna() -> None:
    from sionna.phy import config
    from sionna.phy.channel.tr38901 import TDL

    channel = tdl("tdl-c:delay_spread_ns=120,speed_mps=30")
    table = TDL("C", 120e-9, 3.5e9, min_speed=30.0, precision="double", device="cpu")
    config.torch_rng("cpu").manual_seed(5)
    theirs, delays = table(3, 40, 1e4)
    g = rng(5)
    torch.rand(3, generator=g, dtype=torch.float64)  # Sionna draws a speed first
    ours = SumOfSinusoids(g, 3, len(channel.stats.powers)).gains(channel.stats.omega, torch.arange(40) / 1e4)
    ours = ours * channel.stats.powers.sqrt()[:, None].float()
    torch.testing.assert_close(ours, theirs[:, 0, 0, 0, 0].to(torch.complex64), atol=1e-4, rtol=0)
    torch.testing.assert_close(channel.stats.delays_s, delays[0, 0, 0])


@pytest.mark.parametrize("profile", "ABCDE")
def test_receiver_statistics_are_those_of_sionna(profile: str) -> None:
    from sionna.phy.ofdm import tdl_freq_cov_mat, tdl_time_cov_mat

    s = tdl(f"tdl-{profile.lower()}:delay_spread_ns=90,speed_mps=20").stats
    frequency = tdl_freq_cov_mat(profile, 15e3, 30, 90e-9, precision="double", device="cpu")
    step = torch.arange(30, dtype=torch.float64)
    lag = step[:, None] - step
    torch.testing.assert_close(s.frequency(lag * 15e3) + s.los_power, frequency, atol=1e-9, rtol=0)
    time = tdl_time_cov_mat(profile, 20.0, 3.5e9, 7e-5, 30, precision="double", device="cpu")
    ours = float(s.powers.sum()) * s.time(lag * 7e-5) + s.los_power * torch.exp(1j * s.los_omega * lag * 7e-5)
    torch.testing.assert_close(ours, time.to(torch.complex128), atol=1e-6, rtol=0)


@pytest.mark.parametrize("profile", ["a", "d"])
def test_frequency_selectivity_follows_the_delay_spread(profile: str) -> None:
    kept = []
    for delay_spread_ns in (30, 100, 300):
        channel = tdl(f"tdl-{profile}:delay_spread_ns={delay_spread_ns},{NARROW},prefix_fraction=0.1")
        h = grids(channel, 4, 1500)[:, 0]
        correlation = (h * h[:, :1].conj()).mean(0)
        lag = (channel.receiver.hertz - channel.receiver.hertz[0]).double()
        expected = channel.stats.frequency(lag) + channel.stats.los_power
        assert (correlation - expected).abs().max() < 5 * 2**0.5 / 1500**0.5
        kept.append(float(correlation[-1].abs()))
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("profile", ["b", "e"])
def test_correlation_in_time_follows_the_speed(profile: str) -> None:
    kept = []
    for speed_mps in (1, 20, 60):
        channel = tdl(f"tdl-{profile}:speed_mps={speed_mps},{NARROW},estimator=perfect")
        h = grids(channel, 9, 1500)[:, :, 0]
        correlation = (h * h[:, :1].conj()).mean(0)
        seconds = torch.arange(9, dtype=torch.float64) * channel.grid.symbol_uses / channel.bandwidth_hz
        s = channel.stats
        expected = float(s.powers.sum()) * s.time(seconds) + s.los_power * torch.exp(1j * s.los_omega * seconds)
        data = ~correlation.isnan()
        assert (correlation - expected)[data].abs().max() < 5 * 2**0.5 / 1500**0.5
        kept.append(float(correlation[-1].real))
    assert kept[0] > kept[1] > kept[2]
    if profile == "b":  # past the first zero of J0 after 8 symbols at 60 m/s
        assert kept[2] < 0


def test_gains_are_gaussian_without_and_steady_with_line_of_sight() -> None:
    diffuse, direct = (grids(tdl(f"tdl-{p}:{NARROW}"), 4, 4000)[:, 0, 0].abs().square() for p in "ce")
    assert abs(float(diffuse.var()) - 1) < 5 * (8 / 4000) ** 0.5  # exponential: variance 1, of its square 8
    assert float(direct.var()) < 0.3


def test_sends_are_continuous_in_the_clock() -> None:
    channel, g = tdl(f"tdl-c:speed_mps=60,{NARROW}"), rng()
    width, step = channel.grid.subcarriers, channel.grid.symbol_uses
    n = channel.grid.capacity(7)  # pilots in symbol 3 alone
    first = channel.sample(n, 1000, generator=g).h[0, : 3 * width].reshape(3, width)
    later = channel.sample(n, 1000 + step, generator=g).h[0, : 3 * width].reshape(3, width)
    torch.testing.assert_close(first[1:], later[:-1], atol=1e-5, rtol=0)
    assert (first[0] - first[1]).abs().max() > 1e-3
    hour = 3600 * int(channel.bandwidth_hz)
    far = channel.sample(n, hour, generator=g).h[0, :width], channel.sample(n, hour + 1, generator=g).h[0, :width]
    assert (far[0] - far[1]).abs().max() < 0.02


@pytest.mark.parametrize("profile", ["b", "c", "d"])
@pytest.mark.parametrize("estimator", ["ls", "lmmse"])
@pytest.mark.parametrize("speed_mps", [3, 50])
def test_estimation_error_matches_its_report(profile: str, estimator: str, speed_mps: int) -> None:
    """Per resource element, averaged over sessions; two noise levels at once."""
    channel, g = tdl(f"tdl-{profile}:delay_spread_ns=250,{NARROW},speed_mps={speed_mps},estimator={estimator}"), rng()
    noise_var, batch = torch.tensor([[0.02], [0.5]]).repeat(1500, 1), 3000
    n = channel.grid.capacity(9)
    fading = channel.sample(n, 0, batch=batch, generator=g)
    h_hat, reported = channel.estimate(fading, noise_var, generator=g)
    error = (h_hat - fading.h).abs().square()
    for row in (0, 1):
        real, told = error[row::2], reported[row]
        assert torch.equal(reported[row::2], told.expand(batch // 2, -1))
        sigma = real.std(0) / (batch // 2) ** 0.5
        assert ((real.mean(0) - told).abs() < 5 * sigma).all()
    assert (reported[0] < reported[1]).all()


@pytest.mark.parametrize("profile", ["a", "c", "e"])
def test_lmmse_beats_ls(profile: str) -> None:
    errors = {}
    for estimator in ("ls", "lmmse"):
        channel, g = tdl(f"tdl-{profile}:speed_mps=30,estimator={estimator}"), rng()
        fading = channel.sample(2500, 0, batch=20, generator=g)
        h_hat, reported = channel.estimate(fading, 0.1, generator=g)
        errors[estimator] = float((h_hat - fading.h).abs().square().mean())
        assert (reported >= 0).all()
    assert errors["lmmse"] < 0.5 * errors["ls"]


def test_estimates_converge_without_noise() -> None:
    channel, g = tdl(f"tdl-a:delay_spread_ns=30,speed_mps=1,{NARROW}"), rng()
    fading = channel.sample(500, 0, batch=4, generator=g)
    h_hat, reported = channel.estimate(fading, 1e-7, generator=g)
    assert (h_hat - fading.h).abs().max() < 0.02
    assert float(reported.max()) < 1e-4


def test_long_bursts_are_estimated_in_windows() -> None:
    channel, g = tdl(f"tdl-b:{NARROW}"), rng()
    n = channel.grid.capacity(300)
    assert len(channel.grid.windows(300)) == 3
    fading = channel.sample(n, 0, batch=2, generator=g)
    h_hat, error_var = channel.estimate(fading, 0.1, generator=g)
    assert h_hat.shape == error_var.shape == (2, n)
    assert float((h_hat - fading.h).abs().square().mean()) == pytest.approx(float(error_var.mean()), rel=0.3)


def test_age_of_perfect_estimates() -> None:
    channel, g = tdl(f"tdl-d:{NARROW},speed_mps=30,estimator=perfect,csi_age=150,csi_error_var=0.01"), rng()
    fading = channel.sample(30, 0, batch=4000, generator=g)
    h_hat, error_var = channel.estimate(fading, 0.1, generator=g)
    error = (h_hat - fading.h)[:, 0].abs().square()
    assert abs(float(error.mean() - error_var.mean())) < 5 * float(error.std()) / 4000**0.5
    assert float(error_var.mean()) > 0.02


def test_a_still_terminal_sees_one_channel() -> None:
    channel, g = tdl(f"tdl-a:speed_mps=0,{NARROW}"), rng()
    assert torch.equal(channel.sample(40, 0, generator=g).h, channel.sample(40, 10**7, generator=g).h)


@pytest.mark.parametrize("grid", [Grid(20, 2, 4, 7), Grid(5, 0, 2, 3), Grid(1, 1, 1, 2), Grid(64, 5, 64, 1), Grid(12, 1, 1, 2)])
def test_every_data_use_has_its_resource_element(grid: Grid) -> None:
    for n in (1, 2, 19, 20, 333, 5000):
        symbols = grid.symbols_for(n)
        assert grid.capacity(symbols - 1) < n <= grid.capacity(symbols)
        windows = grid.windows(symbols)
        assert sum(w.length for w in windows) == symbols
        assert sum(int(grid.data_mask(w).sum()) for w in windows) == grid.capacity(symbols)


def test_pilots_are_spread_and_interpolation_keeps_lines() -> None:
    assert spread(14, 7).tolist() == [3, 10]
    assert spread(3, 7).tolist() == [1]
    weights = linear_weights(14, spread(14, 7))
    torch.testing.assert_close(weights.sum(-1), torch.ones(14, dtype=torch.float64))
    line = weights @ spread(14, 7).double()
    torch.testing.assert_close(line, torch.arange(14, dtype=torch.float64).clamp(3, 10))


def test_the_grid_fits_the_band() -> None:
    assert tdl("tdl-a").grid.subcarriers == 67
    assert tdl("tdl-a").configure(5e6).grid.subcarriers == 333
    narrow = tdl("tdl-a:subcarriers=32").configure(1.92e6)
    assert narrow.spacing_hz == pytest.approx(60e3)
    # 1 of 4 x 7 pilots and 7 % prefix
    assert tdl("tdl-a").pilot_uses(100_000) / 100_000 == pytest.approx(1 / 27 + 5 / 67 * 28 / 27, abs=0.005)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tdl-c:delay_spread_ns=1000", "outlast the cyclic prefix"),
        ("tdl-c:speed_mps=100,carrier_ghz=28", "Doppler"),
        ("tdl-c:pilot_subcarriers=1,pilot_symbols=1", "no room for data"),
        ("tdl-c:pilot_symbols=1,subcarriers=2,pilot_subcarriers=1", "no room for data"),
        ("tdl-c:subcarrier_spacing_khz=0.00001,speed_mps=0", "more than 16384"),
        ("tdl-c:csi_age=3", "estimator=perfect"),
    ],
)
def test_impossible_numerologies_are_explained(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make_channel(spec)


def test_a_grid_that_does_not_fit_the_link_is_explained() -> None:
    channel = tdl("tdl-c:subcarriers=64,subcarrier_spacing_khz=30")
    assert channel.bandwidth_hz == pytest.approx(1.92e6)
    with pytest.raises(SpecError, match="give only one"):
        channel.configure(1e6)
