"""Measured block error rates, and the effective SNR that makes a table over AWGN serve fading channels.

The table comes from ``benchmarks/measure_bler.py``. Within a block of varying gains, the mean BICM mutual information of
its channel uses is mapped to the AWGN SNR of equal mutual information (MIESM: Brueninghaus et al., "Link performance
models for system level simulations of broadband radio access systems", PIMRC 2005).
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from semcast.modems.framing import CONTROL_LEVELS
from semcast.modems.mcs import MCS, Mcs
from semcast.modems.qam import SNR_GRID_DB, mutual_information

Floats = NDArray[np.float64]
DESIGN_BITS = 3072
"""Coded length that adaptation is designed for: streams of several blocks have blocks between this and 6144."""
CONTROL_BLER = 1e-4
SLOWEST_GRACE_DB = 0.5
"""What short blocks of the slowest scheme may need beyond its long ones: nothing slower is left to turn to, and to pad 300
bits to 3072 coded ones would double the uses for the last 0.3 dB."""
_SNR_FLOOR, _SNR_CEILING = 1e-3, 1e6


@lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The measured table as stored."""
    text = resources.files("semcast.modems").joinpath("tables", "bler_awgn.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@lru_cache(maxsize=1)
def schemes() -> tuple[Mcs, ...]:
    """The schemes that have been measured: what adaptation may choose from."""
    return tuple(mcs for mcs in MCS.values() if mcs.name in table()["curves"])


@lru_cache(maxsize=256)
def _nodes(mcs: Mcs) -> tuple[Floats, Floats, Floats]:
    """Measured log2 lengths, middles in dB and log slopes of a scheme."""
    curves = table()["curves"][mcs.name]
    lengths = sorted(int(key) for key in curves)
    mid = np.array([curves[str(length)]["mid_db"] for length in lengths])
    slope = np.log([curves[str(length)]["slope_per_db"] for length in lengths])
    return np.log2(lengths), mid, slope


def waterfall(mcs: Mcs, n: ArrayLike) -> tuple[Floats, Floats]:
    """Middle in dB and slope per dB of the AWGN waterfall of ``mcs`` at ``n`` coded bits, interpolated over log n."""
    x, mid, slope = _nodes(mcs)
    log_n = np.log2(np.asarray(n, dtype=np.float64))
    return np.interp(log_n, x, mid), np.exp(np.interp(log_n, x, slope))


def bler(mcs: Mcs, n: int, snr_db: ArrayLike) -> Floats:
    """Block error rate over AWGN at Es/N0 ``snr_db`` (any shape) of blocks of ``n`` coded bits."""
    mid, slope = waterfall(mcs, n)
    rate: Floats = ndtr(-slope * (np.asarray(snr_db, dtype=np.float64) - mid))
    return rate


def threshold_db(mcs: Mcs, n: int, target_bler: float) -> float:
    """Es/N0 in dB from which the block error rate over AWGN stays below ``target_bler``."""
    mid, slope = waterfall(mcs, n)
    return float(mid - ndtri(target_bler) / slope)


def use_information(snr: ArrayLike, bits_per_symbol: int) -> Floats:
    """BICM mutual information per coded bit of uses with linear SNR ``snr`` (any shape)."""
    snr_db = 10.0 * np.log10(np.clip(np.asarray(snr, dtype=np.float64), _SNR_FLOOR, _SNR_CEILING))
    information: Floats = np.interp(snr_db, SNR_GRID_DB, mutual_information(bits_per_symbol))
    return information


def effective_snr_db(information: ArrayLike, bits_per_symbol: int) -> Floats:
    """The AWGN Es/N0 in dB whose mutual information per coded bit is ``information``."""
    snr_db: Floats = np.interp(np.asarray(information, dtype=np.float64), mutual_information(bits_per_symbol), SNR_GRID_DB)
    return snr_db


def faded_snr_db(snr: ArrayLike, bits_per_symbol: int) -> Floats:
    """Effective Es/N0 in dB of blocks whose uses have linear SNR ``snr`` (..., uses) -> (...)."""
    return effective_snr_db(use_information(snr, bits_per_symbol).mean(axis=-1), bits_per_symbol)


def control_bler(snr: ArrayLike) -> float:
    """Probability that a control block sent over uses with linear SNR ``snr`` (uses,) is lost.

    The second 60 uses complete the code word, repetitions add to the SNR of the uses they repeat.
    """
    snr = np.asarray(snr, dtype=np.float64)
    n = min(2 * len(snr), 240)
    combined = snr.reshape(-1, n // 2).sum(axis=0)
    curve = table()["control"][str(n)]
    return float(ndtr(-curve["slope_per_db"] * (faded_snr_db(combined, 2) - curve["mid_db"])))


@lru_cache(maxsize=256)
def control_uses(mcs: Mcs, target_bler: float) -> int:
    """Channel uses of a control block where ``mcs`` is the default: the fewest that lose at most ``CONTROL_BLER`` there."""
    snr = 10 ** (threshold_db(mcs, DESIGN_BITS, target_bler) / 10)
    for uses in CONTROL_LEVELS[:-1]:
        if control_bler(np.full(uses, snr)) <= CONTROL_BLER:
            return uses
    return CONTROL_LEVELS[-1]


@lru_cache(maxsize=256)
def short_block_schemes(default: Mcs, target_bler: float) -> tuple[tuple[Mcs, int], ...]:
    """Schemes no faster than ``default`` with the least coded bits at which each needs no more SNR than ``default`` does.

    Short blocks need more SNR (1 to 2 dB at 264 bits), so that a short stream takes a slower scheme instead; under the
    slowest one there is none, and ``SLOWEST_GRACE_DB`` is allowed.
    """
    slowest = min(schemes(), key=lambda mcs: mcs.efficiency)
    limit = threshold_db(default, DESIGN_BITS, target_bler) + (SLOWEST_GRACE_DB if default == slowest else 1e-9)
    lengths = np.arange(132, DESIGN_BITS + 1, 12)
    chosen = []
    for mcs in schemes():
        if mcs.efficiency > default.efficiency:
            continue
        mid, slope = waterfall(mcs, lengths)
        unsafe = lengths[mid - ndtri(target_bler) / slope > limit]
        least = int(unsafe[-1]) + 12 if len(unsafe) else 0
        if least <= DESIGN_BITS:
            chosen.append((mcs, least))
    return tuple(chosen)
