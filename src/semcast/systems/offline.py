"""What a link would grant and deliver, about: for fitting statistics, which comes before there is a link, and for references
that have none."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semcast.layers.symbols import unit_power
from semcast.types import Analog, Budget, Csi, Payload, Received, RxAnalog, RxProxy


def granted(clip: Tensor, snr_db: float, cbr: float) -> tuple[Csi, Budget]:
    """Channel state and budget of a clip (T, 3, H, W): packets at two thirds of capacity and a little framing."""
    uses = round(cbr * clip.numel())

    def rate(margin_db: float) -> float:
        return math.log2(1 + 10 ** ((snr_db - margin_db) / 10)) / 1.5

    def uses_for(sizes: list[int], mcs: str | None) -> int:
        return sum(math.ceil(8 * size / float(mcs or rate(0.0))) + 30 for size in sizes)

    budget = Budget(uses, uses, cbr, uses_for_packets=uses_for, robust_mcs=lambda margin_db: str(rate(margin_db)))
    return Csi(torch.tensor([snr_db])), budget


def heard(payload: Payload, snr_db: float, generator: torch.Generator | None = None) -> Received:
    """What a receiver hears of streams over AWGN: all packets, and symbols with noise where there is a generator to draw it.

    Without one symbols arrive as they are sent, and the receiver takes them to be as noisy as the SNR says (eq. 2 of DVST).
    """
    power = 10 ** (-snr_db / 10)
    out: dict[str, RxAnalog | RxProxy | list[list[bytes | None]] | None] = {}
    for name, stream in payload.items():
        unit = unit_power(stream)
        if isinstance(unit, Analog):
            y = unit.x
            if generator is not None:
                y = y + math.sqrt(power / 2) * torch.view_as_complex(torch.randn(*y.shape, 2, generator=generator))
            out[name] = RxAnalog(y, torch.ones_like(unit.x), torch.full(unit.x.shape, power))
        else:
            assert unit.packets is not None
            out[name] = [[packet.data for packet in row] for row in unit.packets]
    return out
