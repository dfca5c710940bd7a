"""Measure block error rates of the real 5G LDPC chain and store them as the table of the fast path.

    OMP_NUM_THREADS=1 nice -n 19 python benchmarks/measure_bler.py --out src/semcast/modems/tables/bler_awgn.json

For every scheme and coded length: random payload, CRC-24A, encoder, QAM, AWGN, exact LLRs, 20 iterations of belief
propagation. Blocks are spent where they say most: after each batch the curve Q(slope * (snr_db - mid_db)) is refitted by
maximum likelihood, and the next batch is measured at a chosen quantile of it. On the side, one length is measured over
per-symbol Rayleigh fading with known gains, which calibrates the effective-SNR mapping.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import log_ndtr

from semcast.modems.framing import CONTROL_BITS, CONTROL_CODED_BITS
from semcast.modems.ldpc import ITERATIONS, BlockCode
from semcast.modems.mcs import MCS, Mcs
from semcast.modems.qam import SNR_GRID_DB, demodulate, modulate, mutual_information

LENGTHS = {132: 1200, 264: 1200, 528: 800, 1056: 640, 2112: 480, 6144: 448}
"""Coded length -> blocks per curve."""
RAYLEIGH_LENGTH, RAYLEIGH_BLOCKS = 2112, 288
BATCH = {132: 100, 264: 100, 528: 50, 1056: 40, 2112: 32, 6144: 32}
QUANTILES = (0.0, 0.8, 1.6, -0.8, 1.2, 2.0, 0.4)
"""Where to look, in standard deviations of the waterfall above its middle."""

Point = tuple[float, int, int]


def errors_at(code: BlockCode, bits_per_symbol: int, snr_db: float, blocks: int, rayleigh: bool, g: torch.Generator) -> int:
    """Blocks lost out of ``blocks`` at Es/N0 ``snr_db``."""
    payload = torch.randint(0, 2, (blocks, code.info_bits - code.crc_bits), generator=g).float()
    x = modulate(code.encode(payload), bits_per_symbol)
    noise_var = 10 ** (-snr_db / 10)
    h = torch.ones_like(x)
    if rayleigh:
        h = torch.view_as_complex(torch.randn(*x.shape, 2, generator=g)) * math.sqrt(0.5)
    y = h * x + torch.view_as_complex(torch.randn(*x.shape, 2, generator=g)) * math.sqrt(noise_var / 2)
    decoded, passed = code.decode(demodulate(y, h, torch.full((blocks, 1), noise_var), bits_per_symbol))
    return int((~passed | (decoded != payload).any(-1)).sum())


def fit(points: list[Point], mid_guess: float, slope_guess: float) -> tuple[float, float]:
    """Middle and slope of Q(slope * (snr_db - mid_db)): maximum likelihood under a wide prior around the guess."""
    snr, errors, blocks = (np.array(column, dtype=float) for column in zip(*points, strict=True))

    def cost(parameters: np.ndarray) -> float:
        z = np.exp(parameters[1]) * (snr - parameters[0])
        likelihood = errors * log_ndtr(-z) + (blocks - errors) * log_ndtr(z)
        prior = (parameters[0] - mid_guess) ** 2 / 2 + ((parameters[1] - math.log(slope_guess)) / 0.35) ** 2 / 2
        return float(prior - likelihood.sum())

    found = minimize(cost, np.array([mid_guess, math.log(slope_guess)]), method="Nelder-Mead")
    return float(found.x[0]), float(np.exp(found.x[1]))


def measure(
    code: BlockCode, m: int, blocks: int, batch: int, mid: float, slope: float, rayleigh: bool, g: Any
) -> dict[str, Any]:
    """One curve: fitted ``mid_db`` and ``slope_per_db`` with the points behind them."""
    mid_guess, slope_guess = mid, slope
    tally: dict[float, list[int]] = {}
    for turn in range(blocks // batch):
        snr_db = round((mid + QUANTILES[turn % len(QUANTILES)] / slope) / 0.05) * 0.05
        entry = tally.setdefault(round(snr_db, 2), [0, 0])
        entry[0] += errors_at(code, m, snr_db, batch, rayleigh, g)
        entry[1] += batch
        mid, slope = fit([(snr, e, b) for snr, (e, b) in tally.items()], mid_guess, slope_guess)
    points = [[snr, e, b] for snr, (e, b) in sorted(tally.items())]
    return {"mid_db": round(mid, 3), "slope_per_db": round(slope, 3), "points": points}


def guess(mcs: Mcs, n: int, rayleigh: bool) -> tuple[float, float]:
    """Where the waterfall should lie: mutual information a little above the rate."""
    curve = mutual_information(mcs.bits_per_symbol)
    if rayleigh:
        curve = rayleigh_mean(curve)
    rate = mcs.rate + 0.35 / math.sqrt(n) + 0.02
    mid = float(np.interp(min(rate, 0.98), curve, SNR_GRID_DB))
    return mid, 6.0 * (n / 6144) ** 0.4


def rayleigh_mean(curve: np.ndarray) -> np.ndarray:
    """Mutual information averaged over unit-power Rayleigh fading, on the same grid of mean SNR."""
    quantile = (np.arange(400) + 0.5) / 400
    gain_db = 10 * np.log10(-np.log(1 - quantile))
    return np.array([np.interp(snr + gain_db, SNR_GRID_DB, curve).mean() for snr in SNR_GRID_DB])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=None, help="names of schemes; the rest of an existing table is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"curves": {}, "rayleigh": {}}
    table["provenance"] = {
        "command": f"python benchmarks/measure_bler.py --seed {args.seed}",
        "chain": "CRC24A, 5G LDPC (TS 38.212), bit interleaver, Gray QAM, AWGN, exact LLR, boxplus-phi belief propagation",
        "iterations": ITERATIONS,
        "model": "bler = Q(slope_per_db * (snr_db - mid_db)), snr_db = Es/N0; points are [snr_db, lost, blocks]",
        "blocks_per_curve": {str(n): blocks // BATCH[n] * BATCH[n] for n, blocks in LENGTHS.items()},
        "rayleigh": f"per-symbol, known gains, n = {RAYLEIGH_LENGTH}, snr_db is the mean",
        "versions": {name: version(name) for name in ("sionna-no-rt", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    began = time.process_time()

    for mcs in MCS.values():
        if args.only is not None and mcs.name not in args.only:
            continue
        curves = {}
        for n, blocks in LENGTHS.items():
            coded = n // mcs.bits_per_symbol * mcs.bits_per_symbol
            code = BlockCode(math.ceil(coded * mcs.rate - 1e-9), coded, mcs.bits_per_symbol)
            if code.info_bits <= code.crc_bits:
                continue
            g = torch.Generator().manual_seed(args.seed * 1_000_003 + zlib.crc32(mcs.name.encode()) + n)
            curves[str(n)] = measure(code, mcs.bits_per_symbol, blocks, BATCH[n], *guess(mcs, n, False), False, g)
            if n == RAYLEIGH_LENGTH:
                start = guess(mcs, n, True)
                table["rayleigh"][mcs.name] = measure(
                    code, mcs.bits_per_symbol, RAYLEIGH_BLOCKS, BATCH[n], start[0], start[1] * 0.8, True, g
                )
        table["curves"][mcs.name] = curves
        last = curves["6144"]
        print(f"{mcs.name:12s} {last['mid_db']:7.2f} dB  {time.process_time() - began:6.0f} CPU s", flush=True)
        args.out.write_text(compact(table))

    if args.only is None or "control" in args.only:
        table["control"] = {}
        for n in CONTROL_CODED_BITS:
            g = torch.Generator().manual_seed(args.seed * 1_000_003 + 999_983 + n)
            code = BlockCode(CONTROL_BITS, n, 2, crc_bits=16)
            start = guess(Mcs("control", 2, CONTROL_BITS, n), n, False)
            table["control"][str(n)] = measure(code, 2, 2000, 100, *start, False, g)
        args.out.write_text(compact(table))


def compact(table: dict[str, Any]) -> str:
    """JSON with one curve per line."""
    text = ["{", '"provenance": ' + json.dumps(table["provenance"], indent=1) + ","]
    for part in ("curves", "rayleigh", "control"):
        rows = table.get(part, {})
        if part == "curves":
            lines = [
                f'"{name}": {{\n' + ",\n".join(f'  "{n}": {json.dumps(c)}' for n, c in by_n.items()) + "}"
                for name, by_n in rows.items()
            ]
        else:
            lines = [f'"{name}": {json.dumps(curve)}' for name, curve in rows.items()]
        text.append(f'"{part}": {{\n' + ",\n".join(lines) + "\n}" + ("" if part == "control" else ","))
    return "\n".join([*text, "}"]) + "\n"


if __name__ == "__main__":
    main()
