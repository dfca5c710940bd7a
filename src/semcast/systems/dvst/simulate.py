"""A transmission without a channel, which is how a transmitter knows what its receiver refers to."""

from __future__ import annotations

import torch
from torch import Tensor

from semcast.types import Analog, Budget, Digital, Payload, Received, RxAnalog, RxProxy


def unit_power(payload: Payload) -> dict[str, Analog | Digital]:
    """The same streams, the analog ones scaled together to unit average power per example, as a link would scale them alone."""
    analog = {name: stream for name, stream in payload.items() if isinstance(stream, Analog)}
    shaped = {
        name: stream.x * stream.power**0.5 * (1.0 if stream.active is None else stream.active)
        for name, stream in analog.items()
    }
    energy = sum((x.abs().square().sum(1) for x in shaped.values()), torch.zeros(()))
    count = sum((_count(stream) for stream in analog.values()), torch.zeros(()))
    scale = (count / energy.clamp_min(1e-12)).sqrt()
    out: dict[str, Analog | Digital] = dict(payload)
    for name, stream in analog.items():
        out[name] = Analog(shaped[name] * scale[:, None], stream.active, rate=stream.rate)
    return out


def loopback(payload: Payload, snr_db: Tensor) -> Received:
    """What a receiver would have, were the air without noise and loss; its noise power is that of the told SNR (B,)."""
    noise_var = (10 ** (-snr_db / 10)).float()[:, None]
    received: dict[str, RxAnalog | RxProxy | list[list[bytes | None]] | None] = {}
    for name, stream in payload.items():
        if isinstance(stream, Analog):
            x = stream.x
            if stream.active is not None:
                order = stream.active.to(torch.int8).argsort(dim=1, descending=True, stable=True)
                x = (x * stream.active).gather(1, order[:, : int(stream.active.sum(1).max())])
            received[name] = RxAnalog(x, torch.ones_like(x), noise_var.to(x.device).expand(x.shape))
        elif stream.packets is not None:
            received[name] = [[packet.data for packet in packets] for packets in stream.packets]
        else:
            assert stream.proxy is not None
            received[name] = RxProxy(stream.proxy, torch.ones(stream.proxy.shape[:2], dtype=torch.bool))
    return received


def cost(payload: Payload, budget: Budget) -> int:
    """Channel uses that a payload of one example will be charged for."""
    uses = 0
    for stream in payload.values():
        if isinstance(stream, Analog):
            uses += int(_count(stream).sum())
        elif stream.packets is not None:
            uses += sum(budget.uses_for_packets([len(packet.data)], packet.mcs) for row in stream.packets for packet in row)
    return uses


def _count(stream: Analog) -> Tensor:
    """Channel uses of every example, (B,)."""
    if stream.active is not None:
        return stream.active.sum(1)
    return torch.full(stream.x.shape[:1], stream.x.shape[1], device=stream.x.device)
