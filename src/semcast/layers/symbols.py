"""From symbols of tokens to the air and back: only what is sent, at unit power, two real symbols to a channel use."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.types import Analog, Digital, RxAnalog

STEP_DB, LOW_DB, STEPS = 0.01, -300.0, 65536


def uses_of(real_symbols: int) -> int:
    """Channel uses of so many real symbols."""
    return math.ceil(real_symbols / 2)


def pack(symbols: Tensor, sent: Tensor, rate: Tensor | None = None) -> tuple[Analog | None, Tensor]:
    """Sent entries of (B, n, V), token by token, as an analog stream of unit power, and the amplitude (B,) that this took away.

    Args:
        symbols: (B, n, V) real. sent: (B, n, V) bool. rate: differentiable channel uses (B,), for training.

    Returns:
        The stream, or None where nothing at all is sent; the amplitude, from channel use to what it stands for.
    """
    count = sent.flatten(1).sum(1)
    uses = (count + 1) // 2
    most = int(uses.max()) if len(uses) else 0
    if most == 0:
        return None, symbols.new_ones(symbols.shape[0])
    place = torch.arange(2 * most, device=symbols.device) < count[:, None]
    row = symbols.new_zeros(place.shape).masked_scatter(place, symbols[sent])
    amplitude = (row.square().sum(1) / uses.clamp_min(1)).clamp_min(1e-12).sqrt()
    amplitude = torch.where(uses > 0, amplitude, torch.ones_like(amplitude))
    x = torch.view_as_complex((row / amplitude[:, None]).float().unflatten(1, (-1, 2)).contiguous())
    active = torch.arange(most, device=symbols.device) < uses[:, None]
    return Analog(x, None if bool(active.all()) else active, rate=rate), amplitude


def unpack(x: Tensor | None, sent: Tensor, amplitude: Tensor, *, exact: bool = True) -> Tensor | None:
    """Received symbols at their places, zero elsewhere, (B, n, V).

    Args:
        x: (B, uses) complex, compacted to the left, or None if nothing came. sent: (B, n, V) bool. amplitude: (B,).
        exact: None comes back where the number of symbols is not what was announced. Training does without: where a packet was
            lost, what it would have announced reads as noughts.
    """
    count = sent.flatten(1).sum(1)
    need = int((count.max() + 1) // 2)
    have = 0 if x is None else x.shape[1]
    if exact and need != have:
        return None
    out = torch.zeros(sent.shape, device=sent.device)
    if x is None or not need:
        return out
    row = torch.view_as_real(x).flatten(1) * amplitude[:, None].to(x.device)
    row = F.pad(row, (0, 2 * (need - have)))
    place = torch.arange(2 * need, device=row.device) < count[:, None]
    return out.masked_scatter(sent, row[place])


def equalised(received: object) -> Tensor | None:
    """(B, uses) complex symbols with the channel's gain taken out, or None if the stream was not there."""
    return received.equalised()[0] if isinstance(received, RxAnalog) else None


def amplitude_steps(amplitude: Tensor) -> Tensor:
    """(B,) amplitudes as steps of a hundredth of a decibel, int64 that fit 16 bits."""
    level_db = 20 * amplitude.detach().double().clamp_min(1e-15).log10()
    return ((level_db - LOW_DB) / STEP_DB).round().clamp(0, STEPS - 1).to(torch.int64)


def amplitude_of(steps: Tensor) -> Tensor:
    """The inverse of :func:`amplitude_steps`."""
    return (10 ** ((steps.double() * STEP_DB + LOW_DB) / 20)).float()


def unit_power(stream: Analog | Digital) -> Analog | Digital:
    """A stream at unit power on its own, so that the link leaves the powers of several alone."""
    if isinstance(stream, Digital):
        return stream
    return replace(stream, x=stream.x * stream.x.abs().square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt())
