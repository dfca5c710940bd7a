"""What travels between source, transmitter, link and receiver.

Shapes: ``B`` batch (1 outside training), ``t`` frames of a step, ``n`` channel uses, ``P`` packets.
One channel use is one complex symbol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semcast.errors import ContractError


class Step(NamedTuple):
    """What a transmitter gets at a time.

    Attributes:
        frames: (B, t, 3, H, W) float32 RGB in [0, 1]; ``t <= frames_per_step`` of the system.
        labels: ground truth where known: ``"segmentation"`` (B, t, H, W) int64, ``"action"`` (B,) int64,
            ``"flow"`` (B, t, 2, H, W) float32 pixels, from the previous frame to this one.
        index: position of the step in the clip, from 0.
        last: whether the clip ends with this step.
    """

    frames: Tensor
    labels: Mapping[str, Tensor] = {}
    index: int = 0  # type: ignore[assignment]  # a tuple has a method of this name, which nobody needs here
    last: bool = False


class Format(NamedTuple):
    """The session header: what both ends know before the first frame. It is the first packet on the air, and charged.

    Attributes:
        height, width: pixels. fps: frames per second. goal: name of the receiver's goal.
        system, preset: names in the registry. weights: first 16 hex digits of the weights' SHA-256, or "".
        seed: seed of the receiver's own randomness. cbr: channel uses per source value that the session was set to.
        condition: name of the test condition that configured the system.
    """

    height: int
    width: int
    fps: float = 25.0
    goal: str = "watch"
    system: str = ""
    preset: str = ""
    weights: str = ""
    seed: int = 0
    cbr: float = 0.0
    condition: str = ""


@dataclass(frozen=True)
class Csi:
    """What the transmitter believes about the channel when it encodes.

    Attributes:
        snr_db: (B,) float32 Es/N0 in dB, as told to the transmitter (``--csi-snr`` makes it wrong on purpose).
        fading_snr_db: (B,) float32, or None for the same: the SNR that is left where symbols are spread over all of the
            channel's gains and LMMSE equalised; lower than ``snr_db`` where it fades.
        bits_per_use: information bits that one channel use carries at the modulation and coding the link would pick now.
        age: age of the estimate in channel uses; 0 is fresh.
        acks: for the packets of the previous send, stream name -> list of arrived flags, or empty.
    """

    snr_db: Tensor
    bits_per_use: float = 1.0
    age: int = 0
    acks: Mapping[str, list[bool]] = field(default_factory=dict)
    fading_snr_db: Tensor | None = None

    @property
    def spread_snr_db(self) -> Tensor:
        """(B,) of a stream that is spread (:mod:`semcast.layers.spread`)."""
        return self.snr_db if self.fading_snr_db is None else self.fading_snr_db


@dataclass(frozen=True)
class Budget:
    """A token bucket of channel uses.

    Attributes:
        uses: channel uses that may be spent on this step, savings of earlier steps included.
        nominal_uses: channel uses that accrue per step of this size; ``uses - nominal_uses`` is the carried balance.
        cbr: nominal channel uses per source value (3HW per frame).
        power: average transmit power per channel use, linear; 1 by convention.
        payload_bytes: the most payload that packets of this step may carry within ``uses`` at the link's present
            modulation and coding, framing and control already taken off.
        uses_for_packets: (payload sizes in bytes, MCS name or None) -> channel uses that the link will charge for such packets.
        robust_mcs: margin in dB -> name of the MCS that the link would pick at an SNR lower by that margin.
        assumed_free: names of streams that the link will book but not charge.
    """

    uses: int
    nominal_uses: int
    cbr: float
    power: float = 1.0
    payload_bytes: int = 0
    uses_for_packets: Callable[[list[int], str | None], int] = field(default=lambda sizes, mcs: 8 * sum(sizes))
    robust_mcs: Callable[[float], str | None] = field(default=lambda margin_db: None)
    assumed_free: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Analog:
    """A joint source-channel coded stream: it degrades, and is never lost whole.

    Attributes:
        x: (B, n) complex64, one element = one channel use; any scale, the link normalises.
        active: (B, n) bool for variable rate: what is really sent; inactive uses are neither sent nor charged, and the
            receiver must rebuild the mask from a Digital stream. None: all.
        power: relative power of this stream within one send; scalar or (B, n).
        rate: differentiable expected channel uses (B,), for training.
    """

    x: Tensor
    active: Tensor | None = None
    power: float | Tensor = 1.0
    rate: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.dim() != 2 or not self.x.is_complex():
            raise ContractError(f"Analog.x must be complex (B, n), got {self.x.dtype} {tuple(self.x.shape)}")


@dataclass(frozen=True)
class Packet:
    """Bytes that arrive whole or not at all.

    Attributes:
        data: the payload. priority: larger matters more. mcs: name of a modulation and coding scheme; None: the link adapts.
    """

    data: bytes
    priority: int = 0
    mcs: str | None = None


@dataclass(frozen=True)
class Digital:
    """A digital stream: packets of real bytes, or in training a differentiable stand-in.

    Attributes:
        packets: one list of packets per batch element; required outside training.
        proxy: (B, P, ...) the training stand-in; the link may drop entries along P.
        est_bits: (B, P) estimated payload bits behind ``proxy``; the ledger flags them as estimated.
    """

    packets: list[list[Packet]] | None = None
    proxy: Tensor | None = None
    est_bits: Tensor | None = None


@dataclass(frozen=True)
class RxAnalog:
    """What the receiver has of an analog stream.

    Attributes:
        y: (B, n) complex64 received symbols. h: (B, n) complex64 channel estimate. noise_var: (B, n) or (B, 1) float32,
            noise power per complex symbol including the estimation error.
    """

    y: Tensor
    h: Tensor
    noise_var: Tensor

    def equalised(self) -> tuple[Tensor, Tensor]:
        """Zero-forcing estimate of x and its noise power per complex symbol, both (B, n)."""
        gain = self.h.abs().square().clamp_min(1e-6)
        return self.y * self.h.conj() / gain, (self.noise_var / gain).expand_as(gain)


@dataclass(frozen=True)
class RxProxy:
    """Training stand-in of a received digital stream: (B, P, ...) with lost entries zero, and which arrived (B, P) bool."""

    proxy: Tensor
    arrived: Tensor


Payload = Mapping[str, Analog | Digital]
RxPackets = list[list[bytes | None]]
Received = Mapping[str, RxAnalog | RxProxy | RxPackets | None]
State = Any
Aux = dict[str, Any]


@dataclass(frozen=True)
class Decoded:
    """What a receiver makes of a step; each part is None where a system does not produce it.

    Attributes:
        frames: (B, t, 3, H, W) float32 RGB in [0, 1]. labels: (B, t, H, W) int64. scores: (B, classes) float32.
        concealed: frames of this step that were concealed rather than decoded.
    """

    frames: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    concealed: int = 0


class StepResult(NamedTuple):
    """One turn of the loop: what went in, what came out, and how long both ends took."""

    step: Step
    decoded: Decoded
    encode_s: float
    decode_s: float
    aux: Aux
    received: Received | None = None


def as_complex(x: Tensor) -> Tensor:
    """(B, 2n) real -> (B, n) complex64, neighbouring pairs becoming real and imaginary part."""
    return torch.view_as_complex(x.float().reshape(x.shape[0], -1, 2).contiguous())


def as_real(x: Tensor) -> Tensor:
    """(B, n) complex -> (B, 2n) real, the inverse of :func:`as_complex`."""
    return torch.view_as_real(x).reshape(x.shape[0], -1)
