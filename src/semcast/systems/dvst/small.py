"""Preset ``small`` of DVST: the shipped one.

    x_t ─(-)─▶ KLT ─▶ y_t ─▶ f_e: a curve for 0..3 uses per coefficient ─▶ symbols                             primary link
          ▲            └─▶ z_t = class of block ─┐
    x_check_t-1 ─▶ warp ─▶ c_check               ├─▶ range coder ─▶ packet of a few frames
          └─ motion of blocks ───────────────────┘                                                              motion link
    symbols ─▶ f_d: posterior mean | z_t ─▶ y_hat_t ─▶ g_s: KLT^T + c_hat + [conv | c_hat] ─▶ x_hat_t,  c_hat = warp(x_hat_t-1)

One price of a channel use holds for all P-frames of a group, and a lower one for its I-frame, so the uses of a frame follow
the entropy of what is new in it (:mod:`semcast.layers.block_code`); the price makes a group meet its budget. The transmitter is
closed form; the network g_s learns to restore pictures from what arrives, and stands in the reference loops of both ends.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import BudgetError, ContractError
from semcast.layers import block_motion
from semcast.layers.block_classes import BLOCK, DIMS
from semcast.layers.block_code import STEPS_PER_DB, BlockCode, Plan
from semcast.layers.blocks import pad_to
from semcast.layers.residual import Conditions, ResidualBlock, zero_conv
from semcast.layers.side_coder import (
    CLASS_CONTEXTS,
    Tables,
    decode_run,
    earlier_context,
    encode_run,
    groups,
    spatial_context,
)
from semcast.layers.side_rate import SideRate
from semcast.layers.spread import despread, spread
from semcast.layers.symbols import unit_power
from semcast.systems.base import Side, System
from semcast.systems.dvst.config import Ablation
from semcast.systems.dvst.runs import UNIT, Coded, Run, amplitude_of, head_size, pack_run, unpack_run
from semcast.systems.dvst.shares import Group
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
    as_complex,
    as_real,
)


@dataclass(frozen=True)
class SmallConfig:
    """The shipped network.

    Attributes:
        classes, latents, rotated: of the blocks of P-frames, as in NTSCC. fine_width, fine_blocks: channels and residual blocks
            of g_s, on the grid of 8x8 blocks. embedding: numbers that describe a class to it. key_offset_db: how much lower the
            price of a use is in the I-frame, per doubling of the group. run: P-frames whose side information shares a packet.
        side_margin_db: how much worse than told the channel may be before P-frames are lost; I-frames bear more.
    """

    classes: int = 32
    latents: int = 384
    rotated: int = 128
    fine_width: int = 96
    fine_blocks: int = 3
    embedding: int = 8
    key_offset_db: float = 1.0
    run: int = 4
    side_margin_db: float = 1.0


class Synthesis(nn.Module):
    """g_s: the coded difference and the context picture -> picture; the ablation without context restores the difference."""

    def __init__(self, config: SmallConfig, sees_context: bool = True) -> None:
        super().__init__()
        self.sees_context = sees_context
        fine = config.fine_width
        self.embed = nn.Embedding(config.classes, 4 * config.embedding)
        self.look = nn.Conv2d(2 * DIMS // 4 + config.embedding, fine, 1)
        self.fine = nn.ModuleList(ResidualBlock(fine, fine) for _ in range(config.fine_blocks))
        self.head = zero_conv(fine, DIMS // 4)

    def forward(self, difference: Tensor, context: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        """Difference and context, both (B, 3, 16 h, 16 w), and classes (B, h, w) -> (B, 3, 16 h, 16 w)."""
        before = F.pixel_unshuffle(context, BLOCK // 2)
        halves = before + F.pixel_unshuffle(difference, BLOCK // 2)
        told = F.pixel_shuffle(self.embed(classes).movedim(-1, 1), 2)
        seen = halves - 0.5 if self.sees_context else torch.zeros_like(halves)
        fine = self.look(torch.cat([seen, 8 * (halves - before), told], 1))
        for block in self.fine:
            fine = block(fine, conditions.vector)
        residual = self.head(F.gelu(fine))
        return F.pixel_shuffle(halves + residual.float(), BLOCK // 2)


@dataclass
class TxState:
    """The transmitter's own: session header, key-frame states of both kinds, and by how much the first price was wrong."""

    fmt: Format
    key: Any
    key_rx: Any
    bias: int = 0


@dataclass
class RxState:
    """The receiver's own: session header, key-frame state, and the last frame shown."""

    fmt: Format
    key: Any
    last: Tensor | None = None


ELASTICITY = 0.05
"""Channel uses fall about so much, in nepers, per quarter decibel of price."""


class DvstSmall(System):
    """DVST of one group of pictures at a time.

    Streams: those of the key-frame system, prefixed ``key.``; packets ``side``, each of a few P-frames (motion, classes,
    prices, power); and the analog stream ``latent`` of all P-frames.

    Args:
        config: sizes. key: a system for pictures, that has ``price``. gop: frames of a group. ablation: what is left out.
    """

    name = "dvst"
    preset = "small"
    key_name = "ntscc:small"
    follows_scenes = True
    batched = False

    def __init__(self, config: SmallConfig, key: System, gop: int, ablation: Ablation = Ablation()) -> None:
        super().__init__()
        self.config, self.frames_per_step, self.ablation = config, gop, ablation
        self.key = key
        self.code = BlockCode(config.classes, config.latents, config.rotated)
        for name, table in block_motion.Counts.rough()._asdict().items():
            self.register_buffer(f"motion_{name}", torch.from_numpy(table.astype(np.int32)))
        self.register_buffer("often", torch.ones(CLASS_CONTEXTS, config.classes, dtype=torch.int32))
        self.register_buffer("group", torch.from_numpy(groups(config.classes)), persistent=False)
        self.g_s = Synthesis(config, ablation.context)

    often: Tensor
    group: Tensor

    @property
    def tables(self) -> Tables:
        """What side information is coded under."""
        motion = block_motion.Counts(*(getattr(self, f"motion_{name}").numpy() for name in block_motion.Counts._fields))
        return Tables(motion, self.often.numpy())

    def train(self, mode: bool = True) -> DvstSmall:
        """Key frames are taken as they are shipped: their system never trains along."""
        super().train(mode)
        self.key.eval()
        return self

    def start(self, fmt: Format, side: Side) -> TxState | RxState:
        if side == "tx":
            return TxState(fmt, self.key.start(fmt, "tx"), self.key.start(fmt, "rx"))
        return RxState(fmt, self.key.start(fmt, "rx"))

    # -- transmitter -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        if len(step.frames) > 1:
            raise ContractError(f"dvst:small takes one clip at a time, in training as well; got {len(step.frames)}")
        frames = pad_to(step.frames[0], BLOCK)
        told = round(max(-60.0, min(60.0, float(csi.spread_snr_db.mean()))))
        count = len(frames)
        rate = SideRate(budget, budget.robust_mcs(self.config.side_margin_db))
        group = self.group_of(frames, told, rate)
        key_uses = self.key_uses(group, budget, csi, state)
        first = Step(step.frames[:, :1], index=step.index, last=step.last)
        key_budget = replace(budget, uses=key_uses, nominal_uses=key_uses)
        try:
            payload, state.key, aux = self.key.encode(first, state.key, csi, key_budget, generator=generator)
        except BudgetError:
            if not self.training:
                raise
            ample = replace(budget, uses=8 * budget.uses, nominal_uses=8 * budget.uses)  # nobody is charged in training
            payload, state.key, aux = self.key.encode(first, state.key, csi, ample, generator=generator)
        streams: dict[str, Analog | Digital] = {f"key.{name}": unit_power(stream) for name, stream in payload.items()}
        if count == 1:
            return streams, state, aux
        reference = self.key_reference(payload, state, told, generator)
        runs = self.encode_group(group, reference, budget.uses - key_uses, state)
        symbols = torch.cat([coded.symbols for run in runs for coded in run] or [torch.zeros(0)])
        packets, at = [], 0
        for run in runs:
            head = Run(told, at, [(coded.price, coded.shift, coded.gain) for coded in run])
            at += sum(len(coded.symbols) for coded in run) // 2
            packets.append(Packet(pack_run(head) + self._side(run) if run else b"", mcs=rate.mcs))
        streams["side"] = Digital([packets])
        streams["latent"] = Analog(spread(as_complex(symbols[None] / math.sqrt(2))))
        return streams, state, aux

    def _side(self, run: Sequence[Coded]) -> bytes:
        told = [(coded.motion, coded.classes.numpy()) for coded in run]
        return encode_run(told, self.tables, moving=self.ablation.motion_link)

    def group_of(self, frames: Tensor, told: int, rate: SideRate) -> Group:
        """A group (T, 3, H, W), ready to be shared out."""
        return Group(frames, self.code, self.tables, told, rate, self.config.key_offset_db, self.ablation.motion_link)

    def key_uses(self, group: Group, budget: Budget, csi: Csi, state: TxState) -> int:
        """Channel uses of the group's I-frame."""
        return group.key_uses(self.key.prices(group.frames[:1], csi), budget, state.bias)  # type: ignore[operator]

    def encode_group(self, group: Group, reference: Tensor, uses: int, state: TxState) -> list[list[Coded]]:
        """P-frames in runs, within a number of channel uses; a run that there is nothing left for is empty."""
        frames, told, rate, count = group.frames, group.told, group.rate, len(group)
        price = max(-128, min(127, group.price(reference, uses) + state.bias))
        opening, spent, runs = price, 0, []
        for begin in range(1, count, self.config.run):
            end = min(begin + self.config.run, count)
            # After a cut of scenes a run would take all that is left: half of their share is kept for the later ones.
            allowed = (uses - spent) * (1 - 0.5 * (count - end) / (count - begin))
            run, used, price = self._fitting_run(frames[begin:end], reference, price, round(allowed), end == count, told, rate)
            if run:
                reference = run[-1].reference
            runs.append(run)
            spent += used
            if end < count and used:
                fair = max(uses - spent, 1) / (count - end) / (used / (end - begin))
                price = round(min(127.0, max(-128.0, price - max(-12.0, min(12.0, math.log(fair) / ELASTICITY)))))
        state.bias = max(-40, min(40, state.bias + (price - opening) // 2))
        return runs

    def _fitting_run(
        self, frames: Tensor, reference: Tensor, price: int, left: int, last: bool, told: int, rate: SideRate
    ) -> tuple[list[Coded], int, int]:
        """A run within ``left`` channel uses, what it takes, and its price; the last of a group is to use them up."""
        best: list[Coded] = []
        most, at = 0, price
        cheap, dear = -129, 128  # what is known to be too cheap, and dear enough
        for attempt in range(9 if left > 0 else 0):
            run = self._encode_run(frames, reference, price, told, rate)
            used = sum(len(coded.symbols) for coded in run) // 2 + rate.uses(len(self._side(run)) + head_size(len(run)))
            if used > left:
                cheap = price
                # Motion yields more slowly than the picture does, so every failure asks for more.
                price += max(8 * attempt + 2, min(24, math.ceil(math.log(used / left) / ELASTICITY)))
            else:
                dear = price
                if used > most:
                    best, most, at = run, used, price
                if not last or used > 0.95 * left:
                    break
                price -= max(1, min(24, round(0.8 * math.log(left / used) / ELASTICITY)))
            if not cheap < price < dear:
                price = (cheap + dear) // 2
            if dear - cheap < 3:
                break
        return best, most, at if best else price

    def _encode_run(self, frames: Tensor, reference: Tensor, price: int, told: int, rate: SideRate) -> list[Coded]:
        run: list[Coded] = []
        for frame in frames:
            coded = self._encode_frame(frame, reference, price, told, rate, run[-1] if run else None)
            run.append(coded)
            reference = coded.reference
        return run

    def _encode_frame(
        self, frame: Tensor, reference: Tensor, price: int, told: int, rate: SideRate, before: Coded | None
    ) -> Coded:
        """One P-frame (3, H, W) at a price, against the transmitter's own reference."""
        bit_price = self.code.bit_price(price, rate.bits_per_use)
        motion = self.motion_of(frame, reference, before, bit_price)
        context = block_motion.compensate(reference[None], motion.field()[None])
        with torch.autocast("cpu", enabled=False):
            difference = frame[None] - context
            y = self.code.blocks.analyse(difference)
            earlier = torch.from_numpy(
                earlier_context(before.classes.numpy() if before else None, tuple(y.shape[2:]), self.group.numpy())
            )
            classes = self.code.choose_at(
                y[0], price, told, rate.bits_per_use, self.often, self._context, earlier
            )  # fmt: skip
            plan = self.code.plan_at(classes.flatten(), price, told)
            rows = y[0].flatten(1).T
            shift = self.code.shift(rows, classes.flatten(), plan)
            plan = self.code.shifted(plan, shift)
            symbols = self.code.modulate(rows, classes.flatten(), plan)
        symbols = F.pad(symbols, (0, -len(symbols) % (2 * UNIT)))
        power = float(symbols.square().mean()) if len(symbols) else 1.0
        gain = max(0, min(65535, round(100 * (100 - 10 * math.log10(max(power, 1e-9))))))
        symbols = symbols * amplitude_of(gain)
        noise = torch.full_like(symbols, 10 ** (-told / 10))
        amplitude = torch.full((len(plan.uses),), amplitude_of(gain))
        conditions = self._conditions(float(told), plan.price, classes[None])
        x_check = self._reconstruct(context, symbols, noise, amplitude, classes[None], plan, conditions)
        return Coded(motion, classes, symbols, difference[0], x_check[0].clamp(0, 1), price, shift, gain)

    def motion_of(self, frame: Tensor, reference: Tensor, before: Coded | None, bit_price: float) -> block_motion.Motion:
        """Motion of a frame (3, H, W) against its reference; ``before`` is the frame before it in the same packet."""
        if not self.ablation.motion_link:
            return block_motion.Motion.still(frame.shape[1] // BLOCK, frame.shape[2] // BLOCK)
        return block_motion.estimate(frame, reference, self.tables.motion, before.motion if before else None, bit_price)

    def _context(self, left: Tensor, up: Tensor) -> Tensor:
        context: Tensor = spatial_context(self.group[left], self.group[up])
        return context

    def key_reference(self, payload: Payload, state: TxState, told: int, generator: torch.Generator) -> Tensor:
        """x_check of the I-frame: the receiver's part, without the channel (eq. 2)."""
        air: dict[str, Any] = {}
        for name, stream in payload.items():
            unit = unit_power(stream)
            if isinstance(unit, Analog):
                air[name] = RxAnalog(unit.x, torch.ones_like(unit.x), torch.full(unit.x.shape, 10 ** (-told / 10)))
            else:
                assert unit.packets is not None
                air[name] = [[packet.data for packet in row] for row in unit.packets]
        decoded, state.key_rx, _ = self.key.decode(air, state.key_rx, 1, generator=copy.copy(generator))
        assert decoded.frames is not None
        return pad_to(decoded.frames[0, 0].clamp(0, 1)[None], BLOCK)[0]

    # -- both ends -------------------------------------------------------------------------------------------------------

    def _reconstruct(
        self,
        context: Tensor,
        values: Tensor,
        noise: Tensor,
        amplitude: Tensor,
        classes: Tensor,
        plan: Plan,
        conditions: Conditions,
    ) -> Tensor:
        """f_d and g_s: received real symbols (those of the plan and padding) -> frames (B, 3, H, W)."""
        total = int(plan.uses.sum())
        batch, h, w = classes.shape
        with torch.autocast("cpu", enabled=False):
            y_hat = self.code.demodulate(values[:total], noise[:total], amplitude, classes.flatten(), plan)
            difference = self.code.blocks.synthesise(y_hat.reshape(batch, h, w, -1).movedim(-1, 1))
        picture: Tensor = self.g_s(difference, context, classes, conditions)
        return picture

    def _conditions(self, snr_db: float, price: int, classes: Tensor) -> Conditions:
        numbers = torch.tensor([[max(-10.0, min(40.0, snr_db)) / 20, (price / STEPS_PER_DB + 15) / 20]])
        vector = numbers.expand(len(classes), -1)
        return Conditions(vector, vector[:, :, None, None].expand(-1, -1, *classes.shape[1:]))

    # -- receiver --------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        height, width = state.fmt.height, state.fmt.width
        inner = {name.removeprefix("key."): item for name, item in received.items() if name.startswith("key.")}
        with torch.no_grad():
            key, state.key, _ = self.key.decode(inner, state.key, 1, generator=generator)
        assert key.frames is not None
        concealed, lost_key = key.concealed, key.concealed > 0
        last = key.frames[:, 0].clamp(0, 1)
        if lost_key and state.last is not None:
            last = state.last
        shown = [last]
        rx, packets = received.get("latent"), received.get("side")
        row = packets[0] if isinstance(packets, list) and packets else []
        air = despread(rx) if isinstance(rx, RxAnalog) else None
        for number, begin in enumerate(range(1, n_frames, self.config.run)):
            count = min(self.config.run, n_frames - begin)
            data = row[number] if number < len(row) else None
            frames = None
            if data and air is not None and not lost_key:  # without its I-frame a group stands still
                frames = self._decode_run(data, count, air, pad_to(last, BLOCK))
            if frames is None:
                concealed += count
                shown += [last] * count
                continue
            shown += [frame[..., :height, :width] for frame in frames]
            last = shown[-1]
        state.last = last.detach()
        return Decoded(frames=torch.stack(shown, 1), concealed=concealed), state, {}

    def _decode_run(self, data: bytes, count: int, air: tuple[Tensor, Tensor], reference: Tensor) -> list[Tensor] | None:
        """P-frames of one packet and their part of the symbols, against the receiver's own reference (1, 3, H, W)."""
        h, w = reference.shape[-2] // BLOCK, reference.shape[-1] // BLOCK
        unpacked = unpack_run(data, count)
        if unpacked is None:
            return None
        head, rest = unpacked
        side = decode_run(rest, count, h, w, self.tables, moving=self.ablation.motion_link)
        if side is None:
            return None
        at, frames = head.first, []
        x, noise_var = air
        for (price, shift, gain), (motion, classes) in zip(head.frames, side, strict=True):
            classes_ = torch.from_numpy(classes)[None]
            plan = self.code.shifted(self.code.plan_at(classes_.flatten(), price, head.told), shift)
            uses = math.ceil(int(plan.uses.sum()) / (2 * UNIT)) * UNIT
            if at + uses > x.shape[1]:
                return None
            # The link's unit power is per complex symbol, a plan's per real one: both are scaled by sqrt(2).
            values = as_real(x[:, at : at + uses] * math.sqrt(2)).flatten()
            noise = noise_var[:, at : at + uses].repeat_interleave(2, 1).flatten()
            at += uses
            measured_db = float(-10 * noise.log10().mean()) if uses else float(head.told)
            reference = reference if self.ablation.gop_training else reference.detach()
            context = block_motion.compensate(reference, motion.field()[None])
            conditions = self._conditions(measured_db, plan.price, classes_)
            amplitude = torch.full((len(plan.uses),), amplitude_of(gain))
            reference = self._reconstruct(context, values, noise, amplitude, classes_, plan, conditions)
            reference = reference if self.training else reference.clamp(0, 1)
            frames.append(reference)
        return frames

    # -- training --------------------------------------------------------------------------------------------------------

    def initialise(self, clips: Tensor) -> None:
        """Start as the closed-form code, fitted to clips (N, t, 3, H, W): statistics of differences, and tables."""
        from semcast.systems.dvst.fit import fit

        fit(self, clips)

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """Mean over P-frames of MSE^p (eq. 24, the rate being met exactly): gradients pass from frame to frame of a group.

        ``stage["power"]`` is p, 0.5 by default: between MSE (p = 1), which the busiest clips own, and PSNR (p -> 0).
        """
        result = run[0]
        assert result.decoded.frames is not None
        mse = (result.decoded.frames - result.step.frames)[:, 1:].square().flatten(2).mean(2)
        loss = mse.clamp_min(1e-6).pow(float(stage.get("power", 0.5))).mean() * 20
        loss = loss + 0.0 * self.g_s.head.weight.sum()  # where all packets were lost there is nothing else to learn from
        return {"loss": loss, "psnr_rgb_db": (-10 * torch.log10(mse.detach() + 1e-10)).mean()}
