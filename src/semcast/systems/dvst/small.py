"""Preset ``small`` of DVST: the shipped one.

    x_t ─(-)─▶ g_a: KLT + [conv | c_check] ─▶ y_t ─▶ f_e: a curve for 0..3 uses per coefficient ─▶ symbols       primary link
          ▲                                     └─▶ z_t = class of block ─┐
    x_check_t-1 ─▶ warp ─▶ c_check                                        ├─▶ range coder ─▶ packet
          └─ motion of blocks ────────────────────────────────────────────┘                                      motion link
    symbols ─▶ f_d: posterior mean, given z_t ─▶ y_hat_t ─▶ g_s: KLT^T + c_hat + [conv | c_hat] ─▶ x_hat_t,  c_hat = warp(x_hat_t-1)

One price of a channel use holds for all P-frames of a group, and a lower one for its I-frame, so the uses of a frame follow the
entropy of what is new in it (:mod:`semcast.layers.block_code`); the price is what makes a group meet its budget.
"""

from __future__ import annotations

import copy
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import BudgetError
from semcast.layers import block_motion
from semcast.layers.block_classes import BLOCK, DIMS, side_margin_db
from semcast.layers.block_code import STEPS_PER_DB, BlockCode, Plan, joined
from semcast.layers.blocks import pad_to
from semcast.layers.residual import Conditions, ResidualBlock, Trunk, zero_conv
from semcast.layers.side_coder import decode_frame, encode_frame
from semcast.systems.base import Side, System
from semcast.types import (
    Analog,
    Aux,
    Budget,
    Csi,
    Decoded,
    Digital,
    Format,
    Packet,
    Payload,
    Received,
    RxAnalog,
    Step,
    StepResult,
)


@dataclass(frozen=True)
class SmallConfig:
    """The shipped network.

    Attributes:
        classes, latents, rotated: of the blocks of P-frames, as in NTSCC. width, fine_width: channels of the convolutions on the
            grid of blocks and on that of half blocks. encoder_blocks, fine_blocks: residual blocks. embedding: numbers that
            describe a class. key_offset_db: how much lower the price of a use is in the I-frame, per doubling of the group.
    """

    classes: int = 32
    latents: int = 384
    rotated: int = 128
    width: int = 96
    fine_width: int = 96
    encoder_blocks: int = 1
    fine_blocks: int = 3
    embedding: int = 8
    key_offset_db: float = 1.0


class Analysis(nn.Module):
    """What the network adds to the KLT of the difference, given the context: (B, L, h, w) twice -> (B, L, h, w)."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.classes, config.embedding)
        self.trunk = Trunk(2 * config.latents + config.embedding, config.width, config.encoder_blocks)
        self.head = zero_conv(config.width, config.latents)

    def forward(self, unit: Tensor, context: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        features = torch.cat([unit, context, self.embed(classes).movedim(-1, 1)], 1)
        residual: Tensor = self.head(self.trunk(features, conditions))
        return residual.float()


class Synthesis(nn.Module):
    """g_s: estimates of coefficients and the context picture -> picture."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        fine = config.fine_width
        self.embed = nn.Embedding(config.classes, 4 * config.embedding)
        self.linear = nn.Conv2d(config.latents, DIMS, 1, bias=False)
        self.look = nn.Conv2d(2 * DIMS // 4 + config.embedding, fine, 1)
        self.fine = nn.ModuleList(ResidualBlock(fine) for _ in range(config.fine_blocks))
        self.head = zero_conv(fine, DIMS // 4)

    def forward(self, y_hat: Tensor, context: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        """y_hat (B, L, h, w), context (B, 3, 16 h, 16 w), classes (B, h, w) -> (B, 3, 16 h, 16 w)."""
        difference = F.pixel_shuffle(self.linear(y_hat).float(), BLOCK)
        before = F.pixel_unshuffle(context, BLOCK // 2)
        halves = before + F.pixel_unshuffle(difference, BLOCK // 2)
        told = F.pixel_shuffle(self.embed(classes).movedim(-1, 1), 2)
        fine = self.look(torch.cat([halves - 0.5, halves - before, told], 1))
        for block in self.fine:
            fine = block(fine, conditions.vector)
        residual = self.head(F.gelu(fine, approximate="tanh"))
        return F.pixel_shuffle(halves + residual.float(), BLOCK // 2)


@dataclass
class TxState:
    """The transmitter's own: session header, key-frame state, prices of the last group."""

    fmt: Format
    key: Any
    key_rx: Any
    price: int | None = None


@dataclass
class RxState:
    """The receiver's own: session header, key-frame state, and the last frame shown."""

    fmt: Format
    key: Any
    last: Tensor | None = None


class Coded(NamedTuple):
    """One P-frame as the transmitter made it: packet, real symbols of mean power 1/2, and the noise-free reference."""

    data: bytes
    symbols: Tensor
    reference: Tensor
    price: int


_HEAD = "<bhHH"  # told SNR in dB, price in quarter dB, gain in hundredths of a dB from -100 dB, first symbol in units of UNIT
UNIT = 4
"""Channel uses of a P-frame come in multiples of this, so that two bytes can say where they begin."""


class DvstSmall(System):
    """DVST of one group of pictures at a time.

    Streams: those of the key-frame system, prefixed ``key.``; a packet ``side`` per P-frame (motion, classes, price, power); and
    the analog stream ``latent`` of all P-frames.
    """

    name = "dvst"
    preset = "small"

    def __init__(self, config: SmallConfig, key: System, gop: int) -> None:
        super().__init__()
        self.config, self.frames_per_step = config, gop
        self.key = key
        self.code = BlockCode(config.classes, config.latents, config.rotated)
        self.register_buffer("std", torch.ones(config.latents))
        self.register_buffer("motion", torch.ones(block_motion.CONTEXTS, block_motion.SYMBOLS, dtype=torch.int32))
        self.g_a = Analysis(config)
        self.g_s = Synthesis(config)

    std: Tensor
    motion: Tensor

    def start(self, fmt: Format, side: Side) -> TxState | RxState:
        if side == "tx":
            return TxState(fmt, self.key.start(fmt, "tx"), self.key.start(fmt, "rx"))
        return RxState(fmt, self.key.start(fmt, "rx"))

    # -- transmitter -----------------------------------------------------------------------------------------------------

    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        frames = pad_to(step.frames[0], BLOCK)
        told = round(max(-60.0, min(60.0, float(csi.snr_db.mean()))))
        mcs = budget.robust_mcs(side_margin_db(float(csi.snr_db.mean())))
        bits_per_use = _bits_per_use(budget, mcs)
        count = len(frames)
        key_uses, price = self._prices(frames, budget, csi, told, mcs, state)
        first = Step(step.frames[:, :1], index=step.index, last=step.last)
        key_budget = replace(budget, uses=key_uses, nominal_uses=key_uses)
        payload, state.key, aux = self.key.encode(first, state.key, csi, key_budget, generator=generator)
        streams: dict[str, Analog | Digital] = {f"key.{name}": stream for name, stream in payload.items()}
        reference = self._key_reference(payload, state, told, generator)
        spent = key_uses
        packets: list[Packet] = []
        parts: list[Tensor] = []
        start = 0
        for index in range(1, count):
            left = budget.uses - spent
            coded, used = None, 0
            now = price
            for _ in range(12):
                attempt = self._encode_frame(frames[index], reference, now, told, bits_per_use, start)
                used = len(attempt.symbols) // 2 + budget.uses_for_packets([len(attempt.data)], mcs)
                if used <= left:
                    coded = attempt
                    break
                now += 4 * STEPS_PER_DB
            if coded is None:
                packets.append(Packet(b"", mcs=mcs))
                continue
            spent += used
            start += len(coded.symbols) // 2 // UNIT
            packets.append(Packet(coded.data, mcs=mcs))
            parts.append(coded.symbols)
            reference = coded.reference
            price = self._steer(price, used, budget.uses - spent, count - 1 - index)
        state.price = price
        if count > 1:
            symbols = torch.cat(parts) if parts else torch.zeros(0)
            streams["side"] = Digital([packets])
            streams["latent"] = Analog(torch.view_as_complex(symbols.reshape(1, -1, 2).contiguous()))
        return streams, state, aux

    def _prices(
        self, frames: Tensor, budget: Budget, csi: Csi, told: int, mcs: str | None, state: TxState
    ) -> tuple[int, int]:
        """Channel uses of the I-frame, and the price of a use in the P-frames, so that the group meets its budget."""
        count = len(frames)
        if count == 1:
            return budget.uses, 0
        bits_per_use = _bits_per_use(budget, mcs)
        picked = sorted({1 + round(i * (count - 2) / 3) for i in range(4)})
        samples = []
        for index in picked:
            vectors = block_motion.estimate(frames[index], frames[index - 1])
            context = block_motion.compensate(frames[index - 1 : index], vectors[None])[0]
            y = self.code.blocks.analyse((frames[index] - context)[None])[0]
            rows = y.flatten(1).T
            samples.append((rows, self.code.blocks.energies(rows), self._motion_bits(vectors)))

        def wanted(price: int) -> float:
            total = 0.0
            for rows, energies, motion_bits in samples:
                uses, bits = self.code.demand(rows, energies, price, told, bits_per_use)
                total += uses / 2 + budget.uses_for_packets([round((bits + motion_bits) / 8) + struct.calcsize(_HEAD)], mcs)
            return total / len(samples)

        offset = self.config.key_offset_db * math.log2(count) * STEPS_PER_DB
        share_low, share_high = 0.02, 0.98
        key_uses, price = budget.uses, 0
        for _ in range(7):
            share = math.sqrt(share_low * share_high)
            key_uses = round(share * budget.uses)
            granted = replace(budget, uses=key_uses, nominal_uses=key_uses)
            price = round(self.key.price(frames[:1], csi, granted) + offset)  # type: ignore[operator]
            if key_uses + (count - 1) * wanted(price) > budget.uses:
                # the price that this share implies asks for too much: spend less on the I-frame, so that it rises
                share_high = share
            else:
                share_low = share
        return key_uses, price

    @staticmethod
    def _steer(price: int, used: int, left: int, frames: int) -> int:
        """Price of the next frame, a little nearer to spending what is left on the frames that are left."""
        if frames <= 0 or used <= 0:
            return price
        ratio = max(left, 1) / frames / used
        return price - round(max(-2.0, min(2.0, 4.0 * math.log(ratio))) * STEPS_PER_DB / 2)

    def _motion_bits(self, vectors: Tensor) -> float:
        table = self.motion.double().numpy()
        lengths = -np.log2(table / table.sum(1, keepdims=True))
        return float((block_motion.count(vectors.numpy()) * lengths).sum())

    def _key_reference(self, payload: Payload, state: TxState, told: int, generator: torch.Generator) -> Tensor:
        """x_check of the I-frame: the receiver's part, without the channel (eq. 2)."""
        air: dict[str, Any] = {}
        for name, stream in payload.items():
            if isinstance(stream, Analog):
                x = stream.x * (stream.x.abs().square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt())
                air[name] = RxAnalog(x, torch.ones_like(x), torch.full(x.shape, 10 ** (-told / 10)))
            else:
                assert stream.packets is not None
                air[name] = [[packet.data for packet in row] for row in stream.packets]
        decoded, state.key_rx, _ = self.key.decode(air, state.key_rx, 1, generator=copy.copy(generator))
        assert decoded.frames is not None
        return pad_to(decoded.frames[0, 0][None], BLOCK)[0]

    def _encode_frame(self, frame: Tensor, reference: Tensor, price: int, told: int, bits_per_use: float, start: int) -> Coded:
        """One P-frame (3, H, W) at a price, against the transmitter's own reference."""
        vectors = block_motion.estimate(frame, reference)
        context = block_motion.compensate(reference[None], vectors[None])
        with torch.autocast("cpu", enabled=False):
            y = self.code.blocks.analyse(frame[None] - context)
            classes = self.code.choose_at(y[0], price, told, bits_per_use)
            plan = self.code.plan_at(classes.flatten(), price, told)
        conditions = self._conditions(told, price, classes[None])
        unit = y / self.std[:, None, None]
        y = y + self.std[:, None, None] * self.g_a(unit, self._context_code(context), classes[None], conditions)
        with torch.autocast("cpu", enabled=False):
            symbols = self.code.modulate(y[0].flatten(1).T, classes.flatten(), plan)
            symbols = F.pad(symbols, (0, -len(symbols) % (2 * UNIT)))
            power = symbols.square().mean() if len(symbols) else symbols.new_tensor(1.0)
            gain_steps = round(100 * (100 - 10 * math.log10(max(float(power), 1e-9))))
            amplitude = 10 ** ((gain_steps / 100 - 100) / 20)
        side = encode_frame(
            vectors.numpy(), classes.numpy(), self.motion.numpy(), self.code.blocks.frequencies.numpy()
        )  # fmt: skip
        data = struct.pack(_HEAD, max(-60, min(60, told)), price, gain_steps, start) + side
        noise = torch.full_like(symbols, 10 ** (-told / 10))
        x_check = self._reconstruct(
            context, symbols * amplitude, noise, torch.full((len(plan.uses),), amplitude), classes[None], plan, conditions
        )
        return Coded(data, symbols * power.clamp_min(1e-12).rsqrt(), x_check[0].clamp(0, 1), price)

    # -- both ends -------------------------------------------------------------------------------------------------------

    def _context_code(self, context: Tensor) -> Tensor:
        return self.code.blocks.analyse(context - 0.5) / self.std[:, None, None].clamp_min(1e-2)

    def _reconstruct(
        self, context: Tensor, values: Tensor, noise: Tensor, amplitude: Tensor, classes: Tensor, plan: Plan, conditions: Conditions
    ) -> Tensor:
        """f_d and g_s: received real symbols (those of the plan and padding) -> frames (B, 3, H, W)."""
        total = int(plan.uses.sum())
        batch, h, w = classes.shape
        with torch.autocast("cpu", enabled=False):
            y_hat = self.code.demodulate(values[:total], noise[:total], amplitude, classes.flatten(), plan)
        y_hat = y_hat.reshape(batch, h, w, -1).movedim(-1, 1)
        picture: Tensor = self.g_s(y_hat, context, classes, conditions)
        return picture

    def _conditions(self, snr_db: float, price: int, classes: Tensor) -> Conditions:
        numbers = torch.tensor([[max(-10.0, min(40.0, snr_db)) / 20, (price / STEPS_PER_DB + 25) / 20]])
        vector = numbers.expand(len(classes), -1)
        return Conditions(vector, vector[:, :, None, None].expand(-1, -1, *classes.shape[1:]))

    # -- receiver --------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        height, width = state.fmt.height, state.fmt.width
        inner = {name.removeprefix("key."): item for name, item in received.items() if name.startswith("key.")}
        key, state.key, _ = self.key.decode(inner, state.key, 1, generator=generator)
        assert key.frames is not None
        concealed, lost_key = key.concealed, key.concealed > 0
        last = key.frames[:, 0]
        if lost_key and state.last is not None:
            last = state.last
        shown = [last]
        rx = received.get("latent")
        packets = received.get("side")
        rows = packets[0] if isinstance(packets, list) and packets else []
        for index in range(1, n_frames):
            data = rows[index - 1] if index - 1 < len(rows) else None
            frame = None
            if data is not None and not lost_key and isinstance(rx, RxAnalog):  # without its I-frame a group stands still
                frame = self._decode_frame(data, rx, pad_to(last, BLOCK))
            if frame is None:
                concealed += 1
            else:
                last = frame[..., :height, :width].clamp(0, 1)
            shown.append(last)
        state.last = last
        return Decoded(frames=torch.stack(shown, 1), concealed=concealed), state, {}

    def _decode_frame(self, data: bytes, rx: RxAnalog, reference: Tensor) -> Tensor | None:
        """One P-frame from its packet and its part of the symbols, against the receiver's own reference (1, 3, H, W)."""
        h, w = reference.shape[-2] // BLOCK, reference.shape[-1] // BLOCK
        size = struct.calcsize(_HEAD)
        if len(data) < size:
            return None
        told, price, gain_steps, start = struct.unpack_from(_HEAD, data)
        side = decode_frame(data[size:], h, w, self.motion.numpy(), self.code.blocks.frequencies.numpy())
        if side is None:
            return None
        vectors, classes = torch.from_numpy(side[0])[None], torch.from_numpy(side[1])[None]
        plan = self.code.plan_at(classes.flatten(), price, told)
        first, uses = start * UNIT, math.ceil(int(plan.uses.sum()) / (2 * UNIT)) * UNIT
        if first + uses > rx.y.shape[1]:
            return None
        piece = RxAnalog(*(part[:, first : first + uses] if part.shape[1] > 1 else part for part in rx))
        x, noise_var = piece.equalised()
        # The link's unit power is per complex symbol, a plan's per real one: both are scaled by sqrt(2).
        values = torch.view_as_real(x * math.sqrt(2)).flatten()
        noise = noise_var.repeat_interleave(2, 1).flatten()
        amplitude = torch.full((len(plan.uses),), 10 ** ((gain_steps / 100 - 100) / 20))
        measured_db = float(-10 * noise_var.log10().mean()) if uses else float(told)
        context = block_motion.compensate(reference, vectors)
        conditions = self._conditions(measured_db, price, classes)
        return self._reconstruct(context, values, noise, amplitude, classes, plan, conditions)


def _bits_per_use(budget: Budget, mcs: str | None) -> float:
    """What a channel use carries of side information, framing left out."""
    few, many = (budget.uses_for_packets([size], mcs) for size in (100, 500))
    return 3200 / max(many - few, 1)
