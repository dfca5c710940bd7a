"""Constellations: bits to symbols, symbols to LLRs, and the mutual information between the two.

Gray labelling of 3GPP TS 38.211, section 5.1, through Sionna; BPSK is real: one bit per channel use on the real axis.
LLR = ln P(b = 1) - ln P(b = 0), positive for a one, everywhere in Semcast.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semcast.modems.sionna_import import sionna_phy

SNR_GRID_DB: NDArray[np.float64] = np.arange(-30.0, 45.01, 0.5)
"""Where mutual information is tabulated."""


@lru_cache(maxsize=8)
def _mapper(bits_per_symbol: int) -> Any:
    mapping = sionna_phy("mapping")
    kind = "pam" if bits_per_symbol == 1 else "qam"
    return mapping.Mapper(kind, bits_per_symbol, device="cpu", precision="single")


@lru_cache(maxsize=8)
def _demapper(bits_per_axis: int) -> Any:
    return sionna_phy("mapping").Demapper("app", "pam", bits_per_axis, device="cpu", precision="single")


def modulate(bits: Tensor, bits_per_symbol: int) -> Tensor:
    """Map bits (B, n) to unit-power symbols (B, n / bits_per_symbol) complex64."""
    x: Tensor = _mapper(bits_per_symbol)(bits.float())
    return x


def demodulate(y: Tensor, h: Tensor, noise_var: Tensor, bits_per_symbol: int) -> Tensor:
    """Exact a-posteriori LLRs (B, n * bits_per_symbol) of symbols received as ``y = h x + n``.

    Square QAM separates into two PAM of half the bits, which makes 256-QAM as cheap as two 16-PAM.

    Args:
        y: (B, n) complex64. h: (B, n) channel estimate. noise_var: (B, n) or (B, 1) noise power per complex symbol.
    """
    gain = h.abs().square().clamp_min(1e-12)
    equalised = y * h.conj() / gain
    noise = (noise_var / gain).expand_as(gain).clamp_min(1e-7)
    if bits_per_symbol == 1:
        llr: Tensor = _demapper(1)(equalised.real.to(torch.complex64), noise)
        return llr
    # one axis carries power 1/2: scaled to unit power, its real noise power is N0, which a complex demapper calls 2 N0
    axes = torch.stack((equalised.real, equalised.imag), dim=-2) * 2.0**0.5
    half = bits_per_symbol // 2
    llr = _demapper(half)(axes.to(torch.complex64), 2.0 * noise.unsqueeze(-2))
    # bits alternate between the axes: b0 b2 b4 on I, b1 b3 b5 on Q
    llr = llr.reshape(*llr.shape[:-2], 2, -1, half).movedim(-3, -1)
    return llr.reshape(*llr.shape[:-3], -1)


def _pam_levels(bits: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Gray-labelled unit-power PAM: levels (2**bits,) and labels (2**bits, bits), TS 38.211 eqs. 5.1.2 to 5.1.6."""
    labels = (np.arange(2**bits)[:, None] >> np.arange(bits)[::-1]) & 1
    level = np.ones(2**bits)
    for column in range(bits - 1, -1, -1):
        weight = 2 ** (bits - 1 - column)
        level = (1 - 2 * labels[:, column]) * (level if weight == 1 else weight - level)
    return level / np.sqrt(np.mean(level**2)), labels


@lru_cache(maxsize=8)
def mutual_information(bits_per_symbol: int) -> NDArray[np.float64]:
    """BICM mutual information per coded bit in [0, 1] on ``SNR_GRID_DB``.

    I = 1 - E[log2(1 + exp(-(2b - 1) LLR))] (Caire, Taricco, Biglieri 1998, eq. 15), integrated over the noise of one axis.
    """
    bits = max(bits_per_symbol // 2, 1)
    levels, labels = _pam_levels(bits)
    noise = np.linspace(-6.5, 6.5, 131)
    weight = np.exp(-(noise**2) / 2)
    weight /= weight.sum()
    curve = np.empty(SNR_GRID_DB.shape)
    for index, snr_db in enumerate(SNR_GRID_DB):
        # unit power per axis: QAM has N0/2 against 1/2, so sigma^2 = N0; BPSK has N0/2 against 1
        sigma = np.sqrt(10 ** (-snr_db / 10) * (0.5 if bits_per_symbol == 1 else 1.0))
        received = levels[:, None] + sigma * noise
        metric = -((received[..., None] - levels) ** 2) / (2 * sigma**2)
        everything = np.logaddexp.reduce(metric, axis=-1)
        loss = 0.0
        for column in range(bits):
            for value in (0, 1):
                mine = labels[:, column] == value
                same = np.logaddexp.reduce(metric[mine][..., mine], axis=-1)
                loss += float(((everything[mine] - same) * weight).sum()) / np.log(2) / 2**bits
        curve[index] = 1.0 - loss / bits
    # strictly increasing, so that it can be inverted where it saturates
    return np.maximum.accumulate(np.clip(curve, 0.0, 1.0)) + 1e-12 * np.arange(curve.size)
