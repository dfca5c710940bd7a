"""Likelihoods, densities, masked convolutions and hyperprior networks."""

from __future__ import annotations

import math

import pytest
import torch

from semcast.layers.entropy import FactorisedDensity, MaskedConv2d, gaussian_bits, laplace_bits, quantise
from semcast.layers.hyperprior import HyperAnalysis, HyperSynthesis, positive

BITS = [laplace_bits, gaussian_bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", [0.06, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("mean", [0.0, 0.3, -2.5])
def test_integers_share_one(bits, scale: float, mean: float) -> None:  # type: ignore[no-untyped-def]
    y = torch.arange(-200.0, 201.0)
    p = 2 ** -bits(y, torch.full_like(y, mean), torch.full_like(y, scale))
    assert float(p.sum()) == pytest.approx(1, abs=1e-3)


ENTROPY = [
    (laplace_bits, lambda b: math.log2(2 * math.e * b)),
    (gaussian_bits, lambda s: 0.5 * math.log2(2 * math.pi * math.e * s**2)),
]


@pytest.mark.parametrize(("bits", "entropy"), ENTROPY)
def test_bits_of_samples_are_the_entropy(bits, entropy) -> None:  # type: ignore[no-untyped-def]
    """At a scale of many steps, the differential entropy in bits is what rounding to integers costs."""
    generator = torch.Generator().manual_seed(0)
    scale, n = 6.0, 200_000
    if bits is laplace_bits:
        u = torch.rand(n, generator=generator) - 0.5
        x = -scale * u.sign() * torch.log1p(-2 * u.abs())
    else:
        x = scale * torch.randn(n, generator=generator)
    zero = torch.zeros(n)
    assert float(bits(x.round(), zero, zero + scale).mean()) == pytest.approx(entropy(scale), rel=0.01)


def test_laplace_far_away_has_a_slope() -> None:
    """A hundred scales out a probability underflows; its logarithm must not."""
    y = torch.tensor([100.0], requires_grad=True)
    bits = laplace_bits(y, torch.zeros(1), torch.full((1,), 0.5))
    bits.sum().backward()
    assert float(bits.detach()) == pytest.approx((200 - 1 + math.log(2)) / math.log(2), rel=0.01)
    assert y.grad is not None
    assert float(y.grad) == pytest.approx(2 / math.log(2), rel=1e-3)


def test_laplace_is_continuous_at_half_a_step() -> None:
    for scale in (0.05, 0.5, 5.0):
        y = torch.tensor([0.49999, 0.50001])
        a, b = laplace_bits(y, torch.zeros(2), torch.full((2,), scale)).tolist()
        assert a == pytest.approx(b, abs=2e-3)


def test_noise_in_training_and_rounding_in_use() -> None:
    y = torch.linspace(-3, 3, 1000)
    assert torch.equal(quantise(y, False, torch.Generator()), y.round())
    noise = quantise(y, True, torch.Generator().manual_seed(0)) - y
    assert float(noise.abs().max()) <= 0.5
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.1)
    again = quantise(y, True, torch.Generator().manual_seed(0)) - y
    assert torch.equal(noise, again)


def test_density_sums_to_one_in_every_channel() -> None:
    torch.manual_seed(0)
    density = FactorisedDensity(5)
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z = torch.arange(-2000.0, 2001.0).expand(1, 5, 1, -1)
    torch.testing.assert_close(density.probability(z).sum(-1), torch.ones(1, 5, 1), atol=1e-3, rtol=0)
    assert bool((density.probability(z) >= 0).all())


def test_density_learns_what_it_sees() -> None:
    """Fitted to samples, its bits come within a few percent of their entropy."""
    torch.manual_seed(0)
    density = FactorisedDensity(2)
    spread = torch.tensor([2.0, 8.0]).reshape(1, 2, 1, 1)
    optimiser = torch.optim.Adam(density.parameters(), lr=2e-2)
    for _ in range(400):
        z = 3 + spread * torch.randn(1, 2, 32, 32) + torch.rand(1, 2, 32, 32) - 0.5
        loss = density.bits(z).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    z = (3 + spread * torch.randn(1, 2, 100, 100)).round()
    got = density.bits(z).mean((0, 2, 3))
    want = 0.5 * torch.log2(2 * math.pi * math.e * spread.flatten().square())
    assert got.tolist() == pytest.approx(want.tolist(), rel=0.05)


def test_masked_convolution_is_causal() -> None:
    torch.manual_seed(0)
    conv = MaskedConv2d(2, 3)
    x = torch.randn(1, 2, 9, 9, requires_grad=True)
    conv(x)[0, :, 4, 4].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(0) > 0
    want = torch.zeros(9, 9, dtype=torch.bool)
    want[2:4, 2:7] = True
    want[4, 2:4] = True
    assert torch.equal(seen, want)


@pytest.mark.parametrize(("h", "w"), [(4, 8), (5, 7), (1, 1)])
def test_hyperprior_comes_back_to_the_size_of_the_latents(h: int, w: int) -> None:
    z = HyperAnalysis(6, 4)(torch.randn(2, 6, h, w))
    assert z.shape == (2, 4, -(-h // 4), -(-w // 4))
    assert HyperSynthesis(4, 12).expand(z, h, w).shape == (2, 12, h, w)


def test_scales_are_positive() -> None:
    raw = torch.tensor([-100.0, 0.0, 100.0])
    assert positive(raw).tolist() == pytest.approx([0.05, math.log(2) + 0.05, 100.05])
