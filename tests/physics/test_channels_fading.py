"""Statistics of flat fading, bit error rates against closed forms, and what the receiver knows."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import j0
from scipy.stats import kstest
from torch import Tensor

from semcast.channels import make_channel
from semcast.channels.fading import FlatFading
from semcast.channels.pathloss import path_gain
from semcast.errors import SpecError

FIVE_SIGMA = 5.7e-7  # two-sided tail of a normal distribution


def rng(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gains(spec: str, n: int, batch: int = 1, clock: int = 0, seed: int = 1) -> Tensor:
    channel = make_channel(spec)
    return channel.sample(n, clock, batch=batch, generator=rng(seed)).h


@pytest.mark.parametrize("spec", ["rayleigh", "rayleigh:block,coherence=4", "rayleigh:block,doppler_hz=100"])
def test_rayleigh_is_complex_gaussian(spec: str) -> None:
    h = make_channel(spec).typical(1, 20_000, generator=rng())[:, 0]
    assert kstest(h.abs().square().numpy(), "expon").pvalue > FIVE_SIGMA
    assert kstest(h.angle().numpy(), "uniform", args=(-math.pi, 2 * math.pi)).pvalue > FIVE_SIGMA
    assert abs(complex(h.square().mean())) < 5 * (2 / h.numel()) ** 0.5  # E|h|^4 = 2
    assert abs(complex(h.mean())) < 5 / h.numel() ** 0.5


def test_fast_fading_has_no_memory_and_batch_elements_differ() -> None:
    h = gains("rayleigh", 20_000, batch=2)
    assert abs(complex((h[0, 1:] * h[0, :-1].conj()).mean())) < 5 / 20_000**0.5
    assert abs(complex((h[0] * h[1].conj()).mean())) < 5 / 20_000**0.5


@pytest.mark.parametrize("k_db", [-3.0, 6.0, 12.0])
def test_rician_moments_give_k(k_db: float) -> None:
    k = 10 ** (k_db / 10)
    power = gains(f"rician:k_db={k_db}", 50_000).abs().square().double()
    fourth = power.square()
    expected = 1 + (2 * k + 1) / (k + 1) ** 2
    assert abs(float(fourth.mean()) - expected) < 5 * float(fourth.std()) / 50_000**0.5
    assert abs(float(power.mean()) - 1) < 5 * float(power.std()) / 50_000**0.5


@pytest.mark.parametrize("snr_db", [0.0, 4.0, 8.0])
@pytest.mark.parametrize("spec", ["awgn", "rayleigh"])
def test_qpsk_bit_error_rate(spec: str, snr_db: float) -> None:
    """Minimum distance decisions; only the real bit is counted: under fading the two bits of a symbol err together."""
    n, g, snr = 100_000, rng(3), 10 ** (snr_db / 10)
    channel = make_channel(spec)
    bits = torch.randint(0, 2, (2, 1, n), generator=g).float() * 2 - 1
    x = torch.complex(bits[0], bits[1]) / 2**0.5
    h = channel.sample(n, 0, generator=g).h
    y = channel.apply(x, h, 1 / snr, generator=g) * h.conj()
    errors = float(((y.real > 0) != (bits[0] > 0)).sum())
    if spec == "awgn":
        rate = 0.5 * math.erfc(math.sqrt(snr / 2))
    else:
        rate = 0.5 * (1 - math.sqrt(snr / (2 + snr)))
    assert abs(errors - n * rate) < 5 * math.sqrt(n * rate * (1 - rate))


def test_blocks_follow_the_clock_within_and_across_sends() -> None:
    channel = make_channel("rayleigh:block,coherence=100")
    h = channel.sample(250, 50, batch=2, generator=rng()).h
    assert (h[:, :50] == h[:, :1]).all()  # uses 50..99
    assert (h[:, 50:150] == h[:, 50:51]).all()  # 100..199
    assert (h[:, 150:] == h[:, 150:151]).all()  # 200..299
    assert (h[:, [0, 50, 150]].diff() != 0).all()
    later = channel.sample(20, 290, batch=2, generator=rng(9)).h
    assert (later[:, :10] == h[:, -1:]).all()
    assert (later[:, 10:] != h[:, -1:]).all()


def test_blocks_are_independent() -> None:
    h = gains("rayleigh:block,coherence=3", 60_000)[0, ::3]
    assert abs(complex((h[1:] * h[:-1].conj()).mean())) < 5 / h.numel() ** 0.5


@pytest.mark.parametrize("doppler_hz", [20.0, 50.0])
def test_doppler_correlation_is_j0(doppler_hz: float) -> None:
    channel = make_channel(f"rayleigh:block,coherence=100,doppler_hz={doppler_hz}").configure(1e5)
    assert isinstance(channel, FlatFading)
    lags = torch.tensor([0, 200, 500, 800, 1200, 2000])
    h = channel.gains(7, 10_000, lags)
    correlation = (h * h[:, :1].conj()).mean(0)
    expected = torch.from_numpy(j0(2 * math.pi * doppler_hz * lags.double().numpy() / 1e5)).to(torch.complex64)
    assert (correlation - expected).abs().max() < 5 / 10_000**0.5


def test_bandwidth_turns_uses_into_seconds() -> None:
    slow = make_channel("rayleigh:block,coherence=10,doppler_hz=50").configure(1e4)
    fast = make_channel("rayleigh:block,coherence=100,doppler_hz=50").configure(1e5)
    h = [c.sample(100 * s, 0, generator=rng()).h[0, ::s] for c, s in ((slow, 1), (fast, 10))]
    torch.testing.assert_close(*h)
    with pytest.raises(SpecError, match="positive"):
        slow.configure(0.0)


@pytest.mark.parametrize("distance_m", [10.0, 350.0])
@pytest.mark.parametrize("alpha", [1.0, 1.6])
def test_path_loss_is_eq_3_of_of_gsc(distance_m: float, alpha: float) -> None:
    amplitude = (299_792_458 / (4 * math.pi * distance_m * 2.4e9)) ** alpha
    spec = f"pathloss:distance_m={distance_m},alpha={alpha},carrier_ghz=2.4"
    assert path_gain(distance_m, 2.4e9, alpha) == pytest.approx(amplitude, rel=1e-12)
    still = gains(spec + ",fading=none", 3)
    torch.testing.assert_close(still, torch.full((1, 3), amplitude, dtype=torch.complex64))
    beta = gains(spec, 20_000)[0] / amplitude
    assert kstest(beta.abs().square().numpy(), "expon").pvalue > FIVE_SIGMA


def test_alpha_one_is_free_space_and_a_reference_moves_the_snr_there() -> None:
    """20 dB per decade of distance at alpha = 1: the exponent acts on the amplitude."""
    near, far = (make_channel(f"pathloss:distance_m={d},alpha=1") for d in (10, 100))
    assert 10 * math.log10(near.mean_gain / far.mean_gain) == pytest.approx(20.0)
    at, beyond = (make_channel(f"pathloss:distance_m={d},alpha=2,reference_m=100") for d in (100, 200))
    assert at.mean_gain == pytest.approx(1.0)
    assert 10 * math.log10(beyond.mean_gain) == pytest.approx(-40 * math.log10(2))


def test_perfect_csi_is_the_default() -> None:
    channel = make_channel("rayleigh")
    fading = channel.sample(50, 0, generator=rng())
    h_hat, error_var = channel.estimate(fading, 1.0, generator=rng())
    assert torch.equal(h_hat, fading.h)
    assert float(error_var.max()) == 0


@pytest.mark.parametrize("spec", ["rayleigh:csi_error_var=0.05", "rician:k_db=3,csi=estimated,csi_error_var=0.2"])
def test_estimation_error_has_the_variance_asked_for(spec: str) -> None:
    channel, n = make_channel(spec), 40_000
    fading = channel.sample(n, 0, generator=rng())
    h_hat, error_var = channel.estimate(fading, 1.0, generator=rng(2))
    error, variance = h_hat - fading.h, float(error_var.mean())
    assert variance == pytest.approx(0.05 if "0.05" in spec else 0.2)
    assert abs(float(error.abs().square().mean()) - variance) < 5 * variance / n**0.5
    assert abs(complex((error * fading.h.conj()).mean())) < 5 * variance**0.5 / n**0.5


def test_one_estimate_per_coherence_block() -> None:
    channel = make_channel("rayleigh:block,coherence=50,csi=estimated")
    fading = channel.sample(200, 0, generator=rng())
    error = channel.estimate(fading, 1.0, generator=rng(2))[0] - fading.h
    blocks = error.reshape(4, 50)
    torch.testing.assert_close(blocks, blocks[:, :1].expand(4, 50))
    assert blocks[:, 0].real.unique().numel() == 4


def test_age_costs_nothing_within_a_block_and_everything_beyond() -> None:
    channel = make_channel("rayleigh:block,coherence=100,csi_age=30")
    fading = channel.sample(200, 1000, batch=3000, generator=rng())
    h_hat, error_var = channel.estimate(fading, 1.0, generator=rng(2))
    position = torch.arange(200) % 100
    assert torch.equal(error_var[0], torch.where(position < 30, 2.0, 0.0))
    assert torch.equal(h_hat[:, position >= 30], fading.h[:, position >= 30])
    stale = (h_hat - fading.h)[:, 0].abs().square()
    assert abs(float(stale.mean()) - 2) < 5 * float(stale.std()) / 3000**0.5


def test_age_costs_what_doppler_makes_of_it() -> None:
    errors = []
    for age in (0, 100, 300, 600):
        channel = make_channel(f"rayleigh:doppler_hz=100,csi_age={age}").configure(1e5)
        fading = channel.sample(4, 0, batch=8000, generator=rng())
        h_hat, error_var = channel.estimate(fading, 1.0, generator=rng(2))
        error = (h_hat - fading.h)[:, 0].abs().square()
        expected = 2 * (1 - j0(2 * math.pi * 100 * age / 1e5))
        assert float(error_var.mean()) == pytest.approx(expected, abs=1e-6)
        assert abs(float(error.mean()) - expected) <= 5 * float(error.std()) / 8000**0.5
        errors.append(expected)
    assert errors == sorted(errors)
