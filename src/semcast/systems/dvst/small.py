"""Preset ``small`` of DVST: the shipped one.

    x_t ─(-)─▶ KLT ─▶ y_t ─▶ f_e: a curve for 0..6 uses per coefficient ─▶ symbols                             primary link
          ▲            └─▶ z_t = class of block ──▶ range coder ─▶ packet of a few frames                     side information
    x_check_t-1 ─▶ warp ─▶ c_check
          └─ motion of blocks ────────────────────▶ range coder ─▶ packet of a few frames                     motion link
    symbols ─▶ f_d: posterior mean | z_t ─▶ y_hat_t ─▶ g_s: KLT^T + c_hat + [conv | c_hat] ─▶ x_hat_t,  c_hat = warp(x_hat_t-1)

One price of a channel use holds for the P-frames of a group, and a lower one for its I-frame, so the uses of a frame follow
the entropy of what is new in it (:mod:`semcast.layers.block_code`). The price is estimated ahead and follows what frames take,
so that a group meets its budget and nearly every frame is coded once. The transmitter is closed form; the network g_s learns
to restore pictures from what arrives, and stands in the reference loops of both ends.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import BudgetError, ContractError
from semcast.layers import block_motion
from semcast.layers.allocation import STEPS_PER_DB, Plan
from semcast.layers.block_classes import BLOCK
from semcast.layers.block_code import BlockCode
from semcast.layers.blocks import pad_to
from semcast.layers.residual import Conditions
from semcast.layers.side_coder import (
    CLASS_CONTEXTS,
    RunEncoder,
    Tables,
    decode_maps,
    decode_motion,
    earlier_context,
    groups,
    spatial_context,
)
from semcast.layers.side_rate import SideRate
from semcast.layers.spread import despread, spread
from semcast.layers.symbols import unit_power
from semcast.systems.base import Side, System
from semcast.systems.dvst.config import Ablation, SmallConfig
from semcast.systems.dvst.runs import (
    UNIT,
    Coded,
    Draft,
    Predicted,
    Run,
    amplitude_of,
    head_size,
    mean_price,
    pack_run,
    unpack_run,
)
from semcast.systems.dvst.shares import Group, closing_draft
from semcast.systems.dvst.synthesis import Synthesis
from semcast.systems.offline import heard
from semcast.systems.structural import structural_run_loss
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


@dataclass
class TxState:
    """The transmitter's own: session header, key-frame states of both kinds, by how much the first price was wrong, and the
    last frame as a receiver without noise would have it."""

    fmt: Format
    key: Any
    key_rx: Any
    bias: int = 0
    last: Tensor | None = None


@dataclass
class RxState:
    """The receiver's own: session header, key-frame state, and the last frame shown."""

    fmt: Format
    key: Any
    last: Tensor | None = None


ELASTICITY = 0.05
"""Channel uses fall about so much, in nepers, per quarter decibel of price."""
FAR_BELOW, FAR_ABOVE = -0.7, 0.4
"""What a run seems to take, over what is left, in nepers: beyond these it is begun anew at another price."""


class DvstSmall(System):
    """DVST of one group of pictures at a time.

    Streams: those of the key-frame system, prefixed ``key.``; packets ``motion`` and ``side``, each of a few P-frames, the
    latter with classes, prices and power; and the analog stream ``latent`` of all P-frames.

    Args:
        config: sizes. key: a system for pictures, that has ``prices`` and ``expect``. gop: frames of a group.
        ablation: what is left out.
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
        self.code = BlockCode(config.classes, config.latents, config.rotated, config.quarter_classes)
        self.key_name = config.key_name
        for name, table in block_motion.Counts.rough()._asdict().items():
            self.register_buffer(f"motion_{name}", torch.from_numpy(table.astype(np.int32)))
        self.register_buffer("often", torch.ones(CLASS_CONTEXTS, config.classes + 1, dtype=torch.int32))
        self.register_buffer("group", torch.from_numpy(groups(config.classes)), persistent=False)
        self.g_s = Synthesis(config, ablation.context)

    often: Tensor
    group: Tensor

    @property
    def tables(self) -> Tables:
        """What side information is coded under."""
        motion = block_motion.Counts(*(getattr(self, f"motion_{name}").numpy() for name in block_motion.Counts._fields))
        return Tables(motion, self.often.numpy(), self.code.often_quarters.numpy())

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
        if count == 1 and step.last:
            return streams, state, aux
        reference = self.key_reference(payload, state, told, generator)
        state.last = reference
        if count == 1:
            return streams, state, aux
        runs = self.encode_group(group, reference, budget.uses - key_uses, state)
        if not step.last:
            state.last = next((run[-1].reference for run in reversed(runs) if run), reference)
        symbols = torch.cat([coded.symbols for run in runs for coded in run] or [torch.zeros(0)])
        side, motion, at = [], [], 0
        for run in runs:
            head = Run(told, at, [(coded.price, coded.shift, coded.gain) for coded in run])
            at += sum(len(coded.symbols) for coded in run) // 2
            side.append(Packet(pack_run(head) + run[-1].coder.classes() if run else b"", mcs=rate.mcs))
            motion.append(Packet(run[-1].coder.motion() if run else b"", mcs=rate.mcs))
        if self.ablation.motion_link:
            streams["motion"] = Digital([motion])
        streams["side"] = Digital([side])
        streams["latent"] = Analog(spread(as_complex(symbols[None] / math.sqrt(2))))
        return streams, state, aux

    def group_of(self, frames: Tensor, told: int, rate: SideRate) -> Group:
        """A group (T, 3, H, W), ready to be shared out."""
        return Group(frames, self.code, self.tables, told, rate, self.config.key_offset_db, self.ablation.motion_link)

    def key_uses(self, group: Group, budget: Budget, csi: Csi, state: TxState) -> int:
        """Channel uses of the group's I-frame."""
        return group.key_uses(self.key.prices(group.frames[:1], csi), budget, state.bias)  # type: ignore[operator]

    def encode_group(self, group: Group, reference: Tensor, uses: int, state: TxState) -> list[list[Coded]]:
        """P-frames in runs, within a number of channel uses; a run that there is nothing left for is empty."""
        count = len(group)
        price = max(-128, min(127, group.price(reference, uses) + state.bias))
        opening, spent, runs = price, 0, []
        for begin in range(1, count, self.config.run):
            end = min(begin + self.config.run, count)
            # After a cut of scenes a run would take all that is left: half of their share is kept for the later ones.
            allowed = (uses - spent) * (1 - 0.5 * (count - end) / (count - begin))
            run, used, price = self._fitting_run(group, begin, end, reference, price, round(allowed))
            if run and end < count:
                reference = run[-1].reference
            runs.append(run)
            spent += used
            if end < count and used:
                fair = max(uses - spent, 1) / (count - end) / (used / (end - begin))
                price = round(min(127.0, max(-128.0, price - max(-12.0, min(12.0, math.log(fair) / ELASTICITY)))))
        state.bias = max(-40, min(40, state.bias + max(-8, min(8, (price - opening) // 2))))
        return runs

    def _fitting_run(
        self, group: Group, begin: int, end: int, reference: Tensor, price: int, left: int
    ) -> tuple[list[Coded], int, int]:
        """A run within ``left`` channel uses, what it takes, and its mean price; empty where nothing fits."""
        for attempt in range(9 if left > 0 else 0):
            run, used = self._encode_run(group, begin, end, reference, price, left, patient=attempt > 2)
            if len(run) == end - begin and used <= left:
                return run, used, mean_price(run)
            # Motion yields more slowly than the picture does, so every failure asks for more.
            change = max(-40, min(24, round(math.log(used / left) / ELASTICITY)))
            price = max(-128, min(127, price + (max(8 * attempt + 2, change) if used > left else change)))
        return [], 0, price

    def _encode_run(
        self, group: Group, begin: int, end: int, reference: Tensor, price: int, left: int, *, patient: bool
    ) -> tuple[list[Coded], int]:
        """P-frames at a price, and what they take; too few of them, and what all would take, about, where that is too much.

        The last run of a group is to use up what is left: the price follows what its frames take, and the last frame fits.
        Where the price turns out to be far off at its first frame, the run is left at that unless ``patient``.
        """
        last, head = end == len(group), head_size(end - begin)
        run: list[Coded] = []
        coder, spent, used, expected = RunEncoder(self.tables), 0, 0, 0.0
        for index in range(begin, end):
            before = run[-1] if run else None
            motion, context = self._predict(group, index, before.reference if before else reference, price, before)
            if self.ablation.motion_link:
                coder.add_motion(motion)
            difference = group.frames[index] - context[0]
            predicted = Predicted(motion, context, difference, before, coder, spent, head)
            at = partial(self._draft, group, predicted)
            closing = last and index == end - 1
            draft = closing_draft(at, price, left) if closing else at(price)
            run.append(self._coded(predicted, draft, group.told))
            coder, spent, used = draft.coder, spent + draft.uses, draft.used
            if used > left:
                return run, used * (end - begin) // len(run)
            if last and not closing:
                expected += group.demand.of(index, index + 1, price)
                needed = used / expected * group.demand.of(index + 1, end, price)
                if not patient and index == begin and not FAR_BELOW < math.log((used + needed) / left) < FAR_ABOVE:
                    return run, round(used + needed)
                change = math.log(needed / max(left - used, 1)) / ELASTICITY
                # Later frames are told from earlier ones with errors: what seems to be left over is kept for them, half of it.
                price = max(-128, min(127, price + round(min(24.0, change) if change > 0 else max(-12.0, change / 2))))
        return run, used

    def _predict(
        self, group: Group, index: int, reference: Tensor, price: int, before: Coded | None
    ) -> tuple[block_motion.Motion, Tensor]:
        """A frame's motion against the transmitter's own reference (3, H, W), and the reference moved, (1, 3, H, W)."""
        bit_price = self.code.bit_price(price, group.rate.bits_per_use)
        motion = self.motion_of(group.frames[index], reference, before.motion if before else None, bit_price)
        return motion, block_motion.compensate(reference[None], motion.field()[None])

    def motion_of(
        self, frame: Tensor, reference: Tensor, before: block_motion.Motion | None, bit_price: float
    ) -> block_motion.Motion:
        """Motion of a frame (3, H, W) against its reference; ``before`` is that of the frame before it in the same packet."""
        if not self.ablation.motion_link:
            return block_motion.Motion.still(frame.shape[1] // BLOCK, frame.shape[2] // BLOCK)
        return block_motion.estimate(frame, reference, self.tables.motion, before, bit_price)

    def _draft(self, group: Group, predicted: Predicted, price: int) -> Draft:
        before, bits_per_use = predicted.before, group.rate.bits_per_use
        shape = predicted.motion.split.shape
        told_before = None if before is None else before.classes[: shape[0] * shape[1]].reshape(shape).numpy()
        earlier = torch.from_numpy(earlier_context(told_before, shape, self.group.numpy()))
        with torch.autocast("cpu", enabled=False):
            choice = self.code.choose_at(
                predicted.difference, price, group.told, bits_per_use, self.often, self._context, earlier
            )
        plan = self.code.plan_at(choice.classes[choice.busy], price, group.told)
        uses = math.ceil(int(plan.uses.sum()) / (2 * UNIT)) * UNIT
        coder = predicted.coder.with_classes(choice.classes.numpy(), shape)
        side = group.rate.uses(len(coder.classes()) + predicted.head)
        if self.ablation.motion_link:
            side += group.rate.uses(len(coder.motion()))
        return Draft(choice, plan, price, coder, uses, predicted.spent + uses + side)

    def _coded(self, predicted: Predicted, draft: Draft, told: int) -> Coded:
        """The frame as its packet and symbols tell it."""
        classes, busy, rows = draft.choice
        own = classes[busy]
        with torch.autocast("cpu", enabled=False):
            shift = self.code.shift(rows, own, draft.plan)
            plan = self.code.shifted(draft.plan, shift)
            symbols = self.code.modulate(rows, own, plan)
        symbols = F.pad(symbols, (0, -len(symbols) % (2 * UNIT)))
        power = float(symbols.square().mean()) if len(symbols) else 1.0
        gain = max(0, min(65535, round(100 * (100 - 10 * math.log10(max(power, 1e-9))))))
        symbols = symbols * amplitude_of(gain)

        def receive() -> Tensor:
            noise = torch.full_like(symbols, 10 ** (-told / 10))
            conditions = self._conditions(float(told), plan.price, predicted.motion.split.shape)
            picture = self._reconstruct(predicted.context, symbols, noise, amplitude_of(gain), classes, busy, plan, conditions)
            return picture[0].clamp(0, 1)

        motion, difference = predicted.motion, predicted.difference
        return Coded(motion, classes, symbols, difference, draft.price, shift, gain, draft.coder, receive)

    def _context(self, left: Tensor, up: Tensor) -> Tensor:
        context: Tensor = spatial_context(self.group[left], self.group[up])
        return context

    def key_reference(self, payload: Payload, state: TxState, told: int, generator: torch.Generator) -> Tensor:
        """x_check of the I-frame: the receiver's part, without the channel (eq. 2)."""
        expecting = self._expect(state.key_rx, state.last)
        decoded, state.key_rx, _ = self.key.decode(heard(payload, told), expecting, 1, generator=copy.copy(generator))
        assert decoded.frames is not None
        return pad_to(decoded.frames[0, 0].clamp(0, 1)[None], BLOCK)[0]

    # -- both ends -------------------------------------------------------------------------------------------------------

    def _expect(self, state: Any, last: Tensor | None) -> Any:
        """The key-frame state of a receiver that has seen ``last``, (1, 3, H, W) or (3, H, W)."""
        return self.key.expect(state, None if last is None else last.reshape(1, *last.shape[-3:]))  # type: ignore[operator]

    def _reconstruct(
        self,
        context: Tensor,
        values: Tensor,
        noise: Tensor,
        amplitude: float,
        classes: Tensor,
        busy: Tensor,
        plan: Plan,
        conditions: Conditions,
    ) -> Tensor:
        """f_d and g_s: received real symbols (those of the plan for the busy blocks, and padding) -> frame (1, 3, H, W)."""
        total = int(plan.uses.sum())
        with torch.autocast("cpu", enabled=False):
            scale = torch.full((len(busy),), amplitude)
            y_hat = self.code.demodulate(values[:total], noise[:total], scale, classes[busy], plan)
            h, w = conditions.maps.shape[-2:]
            difference = self.code.synthesise_rows(y_hat, busy, h, w)
        picture: Tensor = self.g_s(difference, context, classes[: h * w].reshape(1, h, w), conditions)
        return picture

    def _conditions(self, snr_db: float, price: int, shape: tuple[int, ...]) -> Conditions:
        """For a frame of (h, w) blocks."""
        numbers = torch.tensor([[max(-10.0, min(40.0, snr_db)) / 20, (price / STEPS_PER_DB + 15) / 20]])
        return Conditions(numbers, numbers[:, :, None, None].expand(-1, -1, *shape))

    # -- receiver --------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        height, width = state.fmt.height, state.fmt.width
        inner = {name.removeprefix("key."): item for name, item in received.items() if name.startswith("key.")}
        with torch.no_grad():
            key, state.key, _ = self.key.decode(inner, self._expect(state.key, state.last), 1, generator=generator)
        assert key.frames is not None
        concealed, lost_key = key.concealed, key.concealed > 0
        last = key.frames[:, 0].clamp(0, 1)
        if lost_key and state.last is not None:
            last = state.last
        shown = [last]
        rx = received.get("latent")
        side, motion = (packets_of(received.get(name)) for name in ("side", "motion"))
        air = despread(rx) if isinstance(rx, RxAnalog) else None
        for number, begin in enumerate(range(1, n_frames, self.config.run)):
            count = min(self.config.run, n_frames - begin)
            data, vectors = (row[number] if number < len(row) else None for row in (side, motion))
            reference = pad_to(last, BLOCK)
            moving = None if lost_key else self._motion(vectors, count, reference)  # without its I-frame a group stands still
            frames = None
            if data and air is not None and moving is not None:
                frames = self._decode_run(data, moving, air, reference)
            if frames is None:
                concealed += count
                frames = [last] * count if moving is None else moved(reference, moving)
            shown += [frame[..., :height, :width] for frame in frames]
            last = shown[-1]
        state.last = last.detach()
        return Decoded(frames=torch.stack(shown, 1), concealed=concealed), state, {}

    def _motion(self, data: bytes | None, count: int, reference: Tensor) -> list[block_motion.Motion] | None:
        """Motion of so many frames of the size of (1, 3, H, W), or None where it is lost."""
        h, w = reference.shape[-2] // BLOCK, reference.shape[-1] // BLOCK
        if not self.ablation.motion_link:
            return [block_motion.Motion.still(h, w)] * count
        return None if data is None else decode_motion(data, count, h, w, self.tables)

    def _decode_run(
        self, data: bytes, moving: list[block_motion.Motion], air: tuple[Tensor, Tensor], reference: Tensor
    ) -> list[Tensor] | None:
        """P-frames of one packet and their part of the symbols, against the receiver's own reference (1, 3, H, W)."""
        h, w = reference.shape[-2] // BLOCK, reference.shape[-1] // BLOCK
        unpacked = unpack_run(data, len(moving))
        if unpacked is None:
            return None
        head, rest = unpacked
        side = decode_maps(rest, len(moving), h, w, self.tables)
        if side is None:
            return None
        at, frames = head.first, []
        x, noise_var = air
        for (price, shift, gain), motion, classes in zip(head.frames, moving, side, strict=True):
            of_blocks = torch.from_numpy(classes)
            busy = self.code.busy(of_blocks, price, head.told)
            plan = self.code.shifted(self.code.plan_at(of_blocks[busy], price, head.told), shift)
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
            conditions = self._conditions(measured_db, plan.price, (h, w))
            reference = self._reconstruct(context, values, noise, amplitude_of(gain), of_blocks, busy, plan, conditions)
            reference = reference if self.training else reference.clamp(0, 1)
            frames.append(reference)
        return frames

    # -- training --------------------------------------------------------------------------------------------------------

    def initialise(self, clips: Tensor) -> None:
        """Start as the closed-form code, fitted to clips (N, t, 3, H, W): statistics of differences, and tables."""
        from semcast.systems.dvst.fit import fit

        fit(self, clips)

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """Mean over P-frames of MSE^p, or of MS-SSIM in decibels (eq. 24, the rate being met exactly).

        Gradients pass from frame to frame of a group. ``stage["power"]`` is p, 0.5 by default: between MSE (p = 1), which the
        busiest clips own, and PSNR (p -> 0). Where training serves a task (section IV-C), its loss over all frames of the group
        is added, times ``stage["task_weight"]``, 1 by default.
        """
        result = run[0]
        assert result.decoded.frames is not None
        more = 0.0 * self.g_s.head.weight.sum()  # where all packets were lost there is nothing else to learn from
        if self.task is not None:
            more = more + float(stage.get("task_weight", 1.0)) * self.task(result.step, result.decoded).mean()
        if self.config.distortion == "ms_ssim":
            terms = structural_run_loss(result, first=1)
            return terms | {"loss": terms["loss"] + more}
        mse = (result.decoded.frames - result.step.frames)[:, 1:].square().flatten(2).mean(2)
        loss = mse.clamp_min(1e-6).pow(float(stage.get("power", 0.5))).mean() * 20
        return {"loss": loss + more, "psnr_rgb_db": (-10 * torch.log10(mse.detach() + 1e-10)).mean()}


def packets_of(batches: object) -> list[bytes | None]:
    """Of one clip, as received; none where there is no such stream."""
    return batches[0] if isinstance(batches, list) and batches else []


def moved(reference: Tensor, moving: Sequence[block_motion.Motion]) -> list[Tensor]:
    """Frames that a picture (1, 3, H, W) becomes by motion alone."""
    frames: list[Tensor] = []
    for motion in moving:
        reference = block_motion.compensate(reference, motion.field()[None]).clamp(0, 1)
        frames.append(reference)
    return frames
