"""Spreading: orthogonal, invisible without fading, and worth the SNR that it says where gains vary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semcast.layers.spread import CHUNK, despread, spread
from semcast.link import Link
from semcast.types import RxAnalog, Step


def gauss(batch: int, n: int, seed: int) -> Tensor:
    parts = torch.randn(batch, n, 2, generator=torch.Generator().manual_seed(seed))
    return torch.view_as_complex(parts) * math.sqrt(0.5)


@pytest.mark.parametrize("n", [1, 2, 7, 640, CHUNK, CHUNK + 5, 3 * CHUNK + 1000])
def test_energy_stays_and_symbols_come_back(n: int) -> None:
    x = gauss(2, n, 0)
    sent = spread(x)
    assert torch.allclose(sent.abs().square().sum(1), x.abs().square().sum(1), rtol=1e-4)
    back, noise_var = despread(RxAnalog(sent, torch.ones_like(sent), torch.full((2, 1), 0.1)))
    assert torch.allclose(back, x, atol=1e-4)
    assert torch.allclose(noise_var, torch.full((2, n), 0.1), rtol=1e-3)


def test_nothing_is_sent_as_nothing() -> None:
    none = torch.zeros(1, 0, dtype=torch.complex64)
    assert spread(none).shape == (1, 0)
    assert despread(RxAnalog(none, none, none.real))[0].shape == (1, 0)


def test_one_symbol_travels_on_all_uses() -> None:
    x = torch.zeros(1, 1024, dtype=torch.complex64)
    x[0, 5] = 1
    assert torch.allclose(spread(x).abs(), torch.full((1, 1024), 1 / 32), atol=1e-6)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_the_noise_that_is_told_is_the_noise_that_is_there(snr_db: float) -> None:
    """Rayleigh gains, one per use: errors per chunk as announced within 10 %, and as the transmitter expected within 0.5 dB."""
    n, noise = 4 * CHUNK, 10 ** (-snr_db / 10)
    x, h = gauss(1, n, 1), gauss(1, n, 2)
    y = h * spread(x) + gauss(1, n, 3) * noise**0.5
    back, noise_var = despread(RxAnalog(y, h, torch.full((1, n), noise)))
    error = (back - x).abs().square()
    assert float(error.mean() / noise_var.mean()) == pytest.approx(1, abs=0.1)
    link = Link("rayleigh", snr_db=snr_db, cbr=0.1).eval()
    csi, _ = link.grant(Step(torch.zeros(1, 1, 3, 64, 64)))
    assert float(csi.spread_snr_db) == pytest.approx(-10 * math.log10(float(error.mean())), abs=0.5)
    assert float(csi.spread_snr_db) < snr_db


def test_without_fading_the_told_snr_stands() -> None:
    csi, _ = Link("awgn", snr_db=7.0, cbr=0.1).eval().grant(Step(torch.zeros(1, 1, 3, 64, 64)))
    assert csi.fading_snr_db is None
    assert float(csi.spread_snr_db) == 7


def test_an_erased_stream_is_no_number_that_is_none() -> None:
    silent = torch.zeros(1, 300, dtype=torch.complex64)
    back, noise_var = despread(RxAnalog(silent, silent, torch.full((1, 1), 0.1)))
    assert bool(torch.isfinite(torch.view_as_real(back)).all())
    assert bool(torch.isfinite(noise_var).all())
