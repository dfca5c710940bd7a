"""The fast path: block losses drawn from the measured tables."""

from __future__ import annotations

import numpy as np
import torch

from semcast.modems import bler as tables
from semcast.modems.base import Air
from semcast.modems.coded import CodedModem, Transmission
from semcast.modems.interleave import burst
from semcast.modems.mcs import Mcs


def combined_information(attempts: list[tuple[int, float]], mcs: Mcs) -> float:
    """Mutual information per coded bit of one transmission after several, as (redundancy version, effective SNR in dB).

    Walks the circular buffer of TS 38.212, table 5.4.2.1-2: fresh positions add information, repeated ones add SNR.
    """
    graph_1 = mcs.rate > 0.67
    buffer = (3.0 if graph_1 else 5.0) * mcs.rate  # in units of one transmission
    starts = (0, 17 / 66, 33 / 66, 56 / 66) if graph_1 else (0, 13 / 50, 25 / 50, 43 / 50)
    cells = 64
    snr = np.zeros(max(round(buffer * cells), 1))
    for rv, snr_db in attempts:
        where = (round(starts[rv] * len(snr)) + np.arange(cells)) % len(snr)
        np.add.at(snr, where, 10 ** (snr_db / 10))
    reached = snr[snr > 0]
    return float(tables.use_information(reached, mcs.bits_per_symbol).sum() / cells)


class TableModem(CodedModem):
    """Draws which blocks pass their CRC from tables measured with the real decoder; framing and accounting are real."""

    def _attempt(
        self, sent: Transmission, pending: list[int], with_control: bool, air: Air, generator: torch.Generator
    ) -> None:
        mcs, per_block = sent.lay.mcs, sent.lay.block_uses
        control = sent.control_uses if with_control else 0
        places = burst(control, len(pending), per_block)
        gains = air.fade(control + len(pending) * per_block)
        snr = (gains.h.abs().square().double() / gains.noise_var.double().clamp_min(1e-30)).flatten().numpy()
        draws = torch.rand(1 + len(pending), generator=generator, dtype=torch.float64).numpy()
        if with_control:
            if draws[0] < tables.control_bler(snr[places.control]):
                return
            sent.announced = sent.lay
        effective = tables.faded_snr_db(snr[places.data], mcs.bits_per_symbol)
        for index, snr_db, draw in zip(pending, effective.tolist(), draws[1:].tolist(), strict=True):
            history = sent.attempts.setdefault(index, [])
            history.append((self._rv(len(history)), snr_db))
            if len(history) > 1:
                information = combined_information([(rv, float(value)) for rv, value in history], mcs)
                snr_db = float(tables.effective_snr_db(information, mcs.bits_per_symbol))
            if draw >= float(tables.bler(mcs, sent.lay.coded_bits, snr_db)):
                sent.received[index] = sent.blocks[index]
