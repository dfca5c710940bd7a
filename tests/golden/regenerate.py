"""Golden values: what must not move unnoticed. ``python tests/golden/regenerate.py`` writes ``golden.json`` again.

Look at the difference before you commit it, and say why it moved. Nothing here depends on an encoder's build or on trained
weights: ledgers, tables and headers are exact, pictures are means with a tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from semcast.channels import CHANNELS, make_channel
from semcast.ledger import Ledger
from semcast.link import Link, pack_header
from semcast.modems import bler, make_modem
from semcast.modems.mcs import get_mcs
from semcast.systems.deepjscc import DeepJscc, PaperConfig
from semcast.transmit import run
from semcast.types import Format, Step
from semcast.video.scenes import SCENES, open_scene

FILE = Path(__file__).with_name("golden.json")


def ledger_of_a_session() -> dict[str, Any]:
    """Three frames of 80x64 with the published deep JSCC over OFDM with pilots: what every stream costs."""
    system = DeepJscc(PaperConfig()).eval()
    link, ledger = Link("tdl-c", snr_db=12.0, cbr=0.1).eval(), Ledger()
    frames = torch.rand(3, 1, 1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    steps = [Step(frame, {}, index, index == 2) for index, frame in enumerate(frames)]
    fmt = Format(64, 80, 25.0, "watch", "deepjscc", "paper", cbr=0.1)
    with torch.no_grad():
        list(run(system, steps, link, ledger, fmt=fmt, generator=torch.Generator().manual_seed(0)))
    return {
        "streams": ledger.streams(),
        "uses_per_step": ledger.uses_per_step,
        "source_values": ledger.source_values,
        "clock": link.clock,
    }


def block_error_rates() -> dict[str, Any]:
    """Table look-ups: rates at fixed points, thresholds, and what adaptation picks."""
    points = [("qpsk-1/2", 6144, 1.5), ("qpsk-1/2", 264, 2.0), ("16qam-2/3", 6144, 9.0), ("256qam-5/6", 3072, 20.0)]
    modem = make_modem("fast")
    return {
        "bler": {f"{name} n={n} {snr} dB": float(bler.bler(get_mcs(name), n, snr)) for name, n, snr in points},
        "threshold_db": {name: bler.threshold_db(get_mcs(name), 6144, 1e-3) for name in ("qpsk-1/3", "16qam-1/2", "64qam-2/3")},
        "selected": {str(snr): modem.select(snr).name for snr in (-5.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0)},
        "uses_for_bytes": {str(size): modem.uses_for_bytes([size], modem.select(10.0)) for size in (1, 20, 1000, 30000)},
    }


def scenes() -> dict[str, Any]:
    """Means of the red, green and blue plane, and the spread, of the third frame of every scene at 96x64."""
    found = {}
    for name in SCENES:
        frame = list(open_scene(f"{name}:size=96x64,frames=3").frames())[2]
        found[name] = [round(float(v), 4) for v in (*frame.mean((1, 2)), frame.std())]
    return found


def headers() -> dict[str, str]:
    """The session header on the air, byte by byte: an old air file has to open."""
    return {
        "digital": pack_header(Format(240, 416, 25.0, "watch", "h265-ldpc", "default", "", 7, 0.02, "strong")).hex(),
        "weights": pack_header(Format(65, 79, 29.97, "watch", "deepjscc", "small", "0123456789abcdef", 0, 1 / 12)).hex(),
    }


def gains() -> dict[str, Any]:
    """Mean power of fixed draws of gains: a change of law or of seeding shows."""
    found = {}
    for name in CHANNELS:
        if not CHANNELS.get(name).is_fading or name == "trace":
            continue
        channel, random = make_channel(name), torch.Generator().manual_seed(0)
        channel.reset(random)
        h = channel.sample(4000, 0, batch=2, generator=random).h
        found[name] = [round(float(v), 4) for v in h.abs().square().mean(1)]
    return found


def golden() -> dict[str, Any]:
    """Everything, as it goes to the file."""
    return {
        "ledger": ledger_of_a_session(),
        "tables": block_error_rates(),
        "scenes": scenes(),
        "headers": headers(),
        "gains": gains(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=2) + "\n")
    print(f"wrote {FILE}")
