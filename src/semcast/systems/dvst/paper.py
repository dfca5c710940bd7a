"""DVST with the published sizes: deep video semantic transmission.

S. Wang, J. Dai, Z. Liang, K. Niu, Z. Si, C. Dong, X. Qin, P. Zhang, "Wireless deep video semantic transmission", IEEE J. Sel.
Areas Commun. 41(1), 2023. Fig. 1, with the motion link above and the primary link below:

    x_t, x'_{t-1} ─▶ flow ─▶ m_t ─▶ g_a^mv ─▶ f_e^mv ─▶ s^mv ═▶ channel ═▶ f_d^mv ─▶ g_s^mv ─▶ m^_t
                                                 └─▶ (13) ─▶ m'_t                               │
    x'_{t-1}, y'_{t-1}, m'_t ─▶ phi_a, gamma_e ─▶ c', d'       x^_{t-1}, y^_{t-1}, m^_t ─▶ phi_s, gamma_d ─▶ c^, d^
    x_t ─▶ g_a(. | c') ─▶ y_t ─▶ f_e(. | d') ─▶ s ═▶ channel ═▶ f_d(. | d^) ─▶ y^_t ─▶ g_s(. | c^) ─▶ x^_t
                                    └─▶ (2) ─▶ y'_t, x'_t
    which rate every token of both links got, and two amplitudes ─▶ range coder ═▶ packet

x' is the paper's check: what the transmitter refers to, simulated without noise; x^ the hat: what the receiver refers to.
Config and training steps: config.py. Contexts: contexts.py. Entropy: prior.py. A link: coding.py. P-frames: inter.py.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semcast.errors import BudgetError, ContractError, InputError
from semcast.layers.block_classes import side_margin_db
from semcast.layers.blocks import pad_to
from semcast.layers.index_table import IndexTable, decode_maps, encode_maps
from semcast.layers.rate_choice import Choice, choose, largest_scale
from semcast.layers.symbols import amplitude_of, amplitude_steps, equalised, pack, unpack, uses_of
from semcast.systems import SYSTEMS
from semcast.systems.base import Side, System
from semcast.systems.dvst.coding import CodedLink, no_motion
from semcast.systems.dvst.config import PATCH, PaperConfig, Plan, read_plan
from semcast.systems.dvst.inter import Draft, InterCoder, Reference
from semcast.systems.dvst.losses import frame_loss, pictured
from semcast.systems.dvst.pretrain import pretrain_frame, pretrain_motion
from semcast.systems.dvst.simulate import cost, loopback, unit_power
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
    RxProxy,
    State,
    Step,
    StepResult,
)

MOTION_SHARE = 1 / 3
"""Of a P-frame's channel uses: the most that motion may take in use."""


class TxState(NamedTuple):
    """Transmitter: the key system's two sides (its own, and the simulated receiver's), and by how much eta was scaled last."""

    fmt: Format
    key: State
    key_check: State
    scale: float = 1.0
    check: Reference | None = None


class RxState(NamedTuple):
    """Receiver: the key system's state, and what the next frame refers to."""

    fmt: Format
    key: State
    hat: Reference | None = None


class Told(NamedTuple):
    """What a P-frame's packet tells: indices (B, h, w) and amplitudes (B,), of the motion link where there is one."""

    rates: list[Tensor]
    amplitudes: list[Tensor]
    arrived: Tensor | None = None


class DvstPaper(System):
    """One GOP per step: a key frame by the key-frame system, then P-frames.

    Streams: the key system's own as ``key.NAME``; of P-frame t ``motion.t`` and ``primary.t`` (analog), ``rates.t`` (a packet).

    Args:
        config: sizes. key: a System for pictures.
    """

    name = "dvst"
    preset = "paper"

    def __init__(self, config: PaperConfig, key: System) -> None:
        super().__init__()
        self.config, self.key = config, key
        self.inter = InterCoder(config)
        self.begin({})

    def begin(self, options: Mapping[str, Any]) -> None:
        """Start a stage of training: its options are a :class:`Plan`."""
        self.plan: Plan = read_plan(options)
        if self.plan.step <= 2 and not self.config.motion_link:
            raise InputError("without a motion link, training begins with step 3")
        self.frames_per_step = self.plan.gop or self.config.gop

    @property
    def links(self) -> list[CodedLink]:
        """Motion link, where there is one, and primary link."""
        return [self.inter.motion, self.inter.primary] if self.config.motion_link else [self.inter.primary]

    @property
    def names(self) -> list[str]:
        """Of the links."""
        return ["motion", "primary"][-len(self.links) :]

    @property
    def tables(self) -> list[IndexTable]:
        """What the indices of each link are coded under."""
        return [link.table for link in self.links]

    def start(self, fmt: Format, side: Side) -> State:
        if side == "rx":
            return RxState(fmt, self.key.start(fmt, "rx"))
        return TxState(fmt, self.key.start(fmt, "tx"), self.key.start(fmt, "rx"))

    # -- transmitter ----------------------------------------------------------------------------------------------------

    def encode(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        if self.training and self.plan.ideal_reference:
            return self._pretrain(step, state, generator)
        count = step.frames.shape[1]
        payload: dict[str, Analog | Digital] = {}
        notes: list[dict[str, Tensor]] = []
        left = budget.uses
        aux: Aux = {}
        for t in range(count):
            if t == 0:
                share = self.config.key_share / (self.config.key_share + count - 1)
                granted = _part(budget, min(math.floor(left * share), 3 * state.fmt.height * state.fmt.width))
                sent, state, aux = self._encode_key(step, state, csi, granted, generator)
            else:
                x = pad_to(step.frames[:, t], PATCH)
                granted = _part(budget, max(left, 0) // (count - t))
                sent, state, note = self._encode_inter(x, t, state, csi, granted, generator)
                notes.append(note)
            payload.update(sent)
            left -= 0 if self.training else cost(sent, budget)
        return payload, state, {**aux, "sent": notes}

    def _encode_key(
        self, step: Step, state: TxState, csi: Csi, budget: Budget, generator: torch.Generator
    ) -> tuple[Payload, TxState, Aux]:
        """The key frame, and what a receiver without noise makes of it."""
        first = Step(step.frames[:, :1], index=step.index, last=step.last)
        with self._key_gradient():
            payload, key, aux = self.key.encode(first, state.key, csi, budget, generator=generator)
            payload = unit_power(payload)  # as the link would alone: P-frames have unit power of their own
        with torch.no_grad():
            shown, key_check, _ = self.key.decode(loopback(payload, csi.snr_db), state.key_check, 1, generator=generator)
        assert shown.frames is not None
        check = self._reference(shown.frames[:, 0])
        prefixed = {f"key.{name}": stream for name, stream in payload.items()}
        return prefixed, state._replace(key=key, key_check=key_check, check=check), {"key_sent": aux} if self.training else {}

    def _reference(self, frame: Tensor) -> Reference:
        """A key frame (B, 3, H, W) as a reference; no gradient passes from key frame to P-frame."""
        x = pad_to(frame.detach().float(), PATCH)
        return Reference(x, self.inter.feature_of(x))

    def _key_gradient(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.plan.train_key else torch.no_grad()

    def _encode_inter(
        self, x: Tensor, t: int, state: TxState, csi: Csi, budget: Budget, generator: torch.Generator
    ) -> tuple[Payload, TxState, dict[str, Tensor]]:
        """A P-frame (B, 3, H, W). One that the budget cannot carry is not sent, and both ends keep what they have."""
        check, inter, frozen = state.check, self.inter, self.training and self.plan.motion_frozen
        assert check is not None
        choices: list[Choice] = []
        symbols: list[Tensor] = []
        flow = no_motion(x)
        motion: Draft | None = None
        if self.config.motion_link:
            motion = inter.draft_motion(x, check.x, generator, frozen=frozen)
            picked = self._pick(motion, [], state.scale, csi, budget)
            if picked is None:
                return {}, state, {}
            choices.append(picked[0])
            symbols.append(inter.motion_symbols(motion, picked[0], frozen=frozen))
            flow = inter.restore_motion(symbols[0], picked[0].rates, frozen=frozen)  # eq. (13)
        draft = inter.draft_frame(x, check, flow, generator)
        picked = self._pick(draft, choices, None, csi, budget)
        if picked is None:
            return {}, state, {}
        choices.append(picked[0])
        symbols.append(inter.frame_symbols(draft, picked[0]))
        after = inter.restore_frame(symbols[-1], choices[-1].rates, check, flow)  # eq. (2)
        payload = self._pack(t, symbols, choices, self._mcs(csi, budget))
        note: dict[str, Tensor] = {}
        if self.training:
            note = self._rates([d for d in (motion, draft) if d is not None], choices)
            note["transform"] = inter.synthesise(draft.estimate.y, check.x, flow)
            after = self._between_frames(after)
        return payload, state._replace(check=after, scale=min(picked[1], 2.0**10)), note

    def _pick(
        self, draft: Draft, before: list[Choice], cap: float | None, csi: Csi, budget: Budget
    ) -> tuple[Choice, float] | None:
        """Q(k) for one link, and by how much eta was scaled for it: in training by nothing, in use to what the budget carries.

        Args:
            before: choices of the links that are coded already. cap: motion's, the scale that it may have at most: one eta
                serves both links, and what it is for the primary link is known one frame late.
        """
        link = self.links[len(before)]
        if self.training:
            return link.choose(draft.k), 1.0
        tables = self.tables[: len(before) + 1]
        head = 2 * len(self.links)
        spent = [_uses(choice) for choice in before]
        limit = budget.uses if cap is None else math.floor(budget.uses * MOTION_SHARE)

        def at(scale: float) -> Choice:
            return choose(draft.k * scale, link.values)

        def uses(scale: float) -> int:
            choice = at(scale)
            side = encode_maps([one.rates[0].cpu().numpy() for one in [*before, choice]], tables)
            return budget.uses_for_packets([head + len(side)], self._mcs(csi, budget)) + sum(spent) + _uses(choice)

        if not link.adapts:
            if uses(1.0) > budget.uses:
                raise BudgetError(f"dvst:paper at a constant rate cannot meet a CBR of {budget.cbr:g}; raise --cbr")
            return at(1.0), 1.0
        scale = largest_scale(uses, limit)
        if scale is None and cap is not None:
            scale = 2.0**-20  # hardly any motion is dearer than no motion
        if scale is None:
            return None
        scale = scale if cap is None else min(scale, cap)
        return at(scale), scale

    @staticmethod
    def _mcs(csi: Csi, budget: Budget) -> str | None:
        return budget.robust_mcs(side_margin_db(float(csi.snr_db.mean())))

    def _pack(self, t: int, symbols: list[Tensor], choices: list[Choice], mcs: str | None = None) -> Payload:
        """Analog streams of unit power, and the packet that says how to read them."""
        payload: dict[str, Analog | Digital] = {}
        amplitudes = []
        for name, link, symbol, choice in zip(self.names, self.links, symbols, choices, strict=False):
            rate = choice.value.flatten(1).sum(1) / 2 if self.training else None
            stream, amplitude = pack(symbol, link.sent(choice.rates), rate)
            amplitudes.append(amplitude)
            if stream is not None:
                payload[f"{name}.{t}"] = stream
        if self.training:
            told = [amplitude[:, None] for amplitude in amplitudes] + [choice.rates.flatten(1).float() for choice in choices]
            bits = torch.zeros(len(told[0]), 1)
            for link, choice in zip(self.links, choices, strict=False):
                link.table.observe(choice.rates)
                bits[:, 0] += torch.tensor([16 + link.table.bits(one) for one in choice.rates.cpu().numpy()])
            payload[f"rates.{t}"] = Digital(proxy=torch.cat(told, 1)[:, None], est_bits=bits)
            return payload
        head = b"".join(struct.pack("<H", int(amplitude_steps(amplitude)[0])) for amplitude in amplitudes)
        side = encode_maps([choice.rates[0].cpu().numpy() for choice in choices], self.tables)
        payload[f"rates.{t}"] = Digital([[Packet(head + side, mcs=mcs)]])
        return payload

    # -- receiver -------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: RxState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, RxState, Aux]:
        if self.training and self.plan.ideal_reference:
            return self._pretrained(received, state, n_frames)
        own = {name.removeprefix("key."): item for name, item in received.items() if name.startswith("key.")}
        with self._key_gradient() if self.training else contextlib.nullcontext():
            shown, key, key_aux = self.key.decode(own, state.key, 1, generator=generator)
        assert shown.frames is not None
        concealed = int(shown.concealed > 0)
        if concealed and state.hat is not None:
            hat = state.hat  # what was on show last is better than the key frame before
        else:
            hat = self._reference(shown.frames[:, 0])
        first = shown.frames[:, 0] if not concealed or state.hat is None else self._crop(hat.x, state.fmt)
        frames, notes = [first], []
        for t in range(1, n_frames):
            restored = self._decode_inter(received, t, hat, state.fmt)
            if restored is None:
                concealed += 1  # frozen: the frame before, moved by nothing, and so are the contexts
                restored = hat, {"shown": hat.x, "arrived": torch.zeros(len(hat.x), device=hat.x.device)}
            hat, note = restored
            notes.append(note)
            frames.append(self._crop(hat.x, state.fmt))
            hat = self._between_frames(hat) if self.training else hat
        decoded = Decoded(frames=torch.stack(frames, 1), concealed=concealed)
        if not self.training:
            return decoded, RxState(state.fmt, key, hat), {}
        return decoded, RxState(state.fmt, key, hat), {"key_shown": (shown, key_aux), "received": notes}

    @staticmethod
    def _crop(x: Tensor, fmt: Format) -> Tensor:
        return x[..., : fmt.height, : fmt.width]

    def _decode_inter(
        self, received: Received, t: int, hat: Reference, fmt: Format
    ) -> tuple[Reference, dict[str, Tensor]] | None:
        """A P-frame from what arrived of it; None where its packet was lost, is damaged or was never sent."""
        told = self._read(received.get(f"rates.{t}"), fmt)
        if told is None:
            return None
        coded = []
        for name, link, rates, amplitude in zip(self.names, self.links, told.rates, told.amplitudes, strict=True):
            sent = link.sent(rates)
            symbols = unpack(equalised(received.get(f"{name}.{t}")), sent, amplitude, exact=told.arrived is None)
            if symbols is None:
                return None
            coded.append((symbols, rates))
        flow = no_motion(hat.x)
        if self.config.motion_link:
            frozen = self.training and self.plan.motion_frozen
            flow = self.inter.restore_motion(*coded[0], frozen=frozen)  # eq. (12)
        after = self.inter.restore_frame(*coded[-1], hat, flow)  # eqs. (5), (6)
        if told.arrived is None:
            return after, {}
        kept = told.arrived.to(after.x.device)[:, None, None, None]
        after = Reference(torch.where(kept, after.x, hat.x), torch.where(kept, after.y, hat.y))
        return after, {"shown": after.x, "arrived": told.arrived.to(after.x)}

    def _read(self, side: object, fmt: Format, links: int | None = None) -> Told | None:
        """What a packet tells about the first ``links`` links; None where it was lost or is damaged."""
        count = links or len(self.links)
        h, w = math.ceil(fmt.height / PATCH), math.ceil(fmt.width / PATCH)
        device = self.links[0].values.device
        if isinstance(side, RxProxy):
            told = side.proxy[:, 0]
            maps = told[:, count:].round().long().reshape(len(told), count, h, w)
            return Told(list(maps.unbind(1)), list(told[:, :count].unbind(1)), side.arrived[:, 0])
        data = side[0][0] if isinstance(side, list) else None
        if data is None or len(data) < 2 * count:
            return None
        rates = decode_maps(data[2 * count :], [(h, w)] * count, self.tables)
        if rates is None:
            return None
        amplitudes = amplitude_of(torch.tensor(struct.unpack_from(f"<{count}H", data)))
        return Told([torch.from_numpy(one)[None].to(device) for one in rates], [a[None].to(device) for a in amplitudes])

    # -- training -------------------------------------------------------------------------------------------------------

    def _between_frames(self, reference: Reference) -> Reference:
        """Gradients pass from frame to frame in step 5 only, eq. (19), and there unless the ablation has none."""
        return reference if self.plan.step == 5 and self.config.gop_training else reference.detach()

    def _rates(self, drafts: list[Draft], choices: list[Choice]) -> dict[str, Tensor]:
        """Rate of every link in real symbols per pixel, what its hyperprior would take included."""
        rates = {}
        for name, draft, choice in zip(self.names, drafts, choices, strict=False):
            hidden = self.config.eta * draft.estimate.hyper_bits
            rates[f"{name}_rate"] = (choice.value.flatten(1).sum(1) + hidden) / draft.pixels  # eqs. (11), (15)
        return rates

    def _pretrain(self, step: Step, state: TxState, generator: torch.Generator) -> tuple[Payload, TxState, Aux]:
        """Steps 1 to 3, with the lossless previous frame as reference; step 2 sends motion."""
        inter = self.inter
        payload: dict[str, Analog | Digital] = {}
        notes: list[dict[str, Tensor]] = []
        frames = pad_to(step.frames.flatten(0, 1), PATCH).unflatten(0, step.frames.shape[:2])
        for t in range(1, frames.shape[1]):
            x, before = frames[:, t], frames[:, t - 1]
            note, draft = pretrain_motion(inter, x, before, self.plan, generator)
            if self.plan.step == 2:
                assert draft is not None
                choice = inter.motion.choose(draft.k)
                payload.update(self._pack(t, [inter.motion_symbols(draft, choice)], [choice]))
                note |= self._rates([draft], [choice])
            if self.plan.step == 3:
                note |= pretrain_frame(inter, x, before, note.get("motion_transform", no_motion(x)), generator)
            notes.append(note)
        return payload, state, {"sent": notes}

    def _pretrained(self, received: Received, state: RxState, n_frames: int) -> tuple[Decoded, RxState, Aux]:
        """The receiver in steps 1 to 3: motion in step 2, and nothing to show yet."""
        notes = []
        for t in range(1, n_frames) if self.plan.step == 2 else []:
            told = self._read(received.get(f"rates.{t}"), state.fmt, 1)
            assert told is not None
            assert told.arrived is not None
            sent = self.inter.motion.sent(told.rates[0])
            symbols = unpack(equalised(received.get(f"motion.{t}")), sent, told.amplitudes[0], exact=False)
            assert symbols is not None
            motion = self.inter.restore_motion(symbols, told.rates[0])
            notes.append({"motion": motion, "arrived": told.arrived.to(motion)})
        return Decoded(), state, {"received": notes}

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """The loss of the step that :meth:`begin` was told, averaged over the frames of all GOPs, eq. (19).

        Raises:
            ContractError: the run was made under another plan. InputError: GOPs of one frame leave a step nothing to learn.
        """
        plan = read_plan(stage)
        if plan != self.plan:
            raise ContractError("the run was made under other options: call begin(options) before it")
        rate_weight = plan.rate_weight or self.config.rate_weight
        losses: list[Tensor] = []
        errors: list[Tensor] = []
        rates: dict[str, list[Tensor]] = {}
        for result in run:
            frames, aux = result.step.frames, result.aux
            arrived = 1.0
            if plan.step >= 4:
                shown, key_aux = aux["key_shown"]
                arrived = key_aux.get("arrived", 1.0)
                errors.append((shown.frames[:, 0] - frames[:, 0]).detach().square().flatten(1).mean(1))
                if plan.train_key:
                    first = result.step._replace(frames=frames[:, :1])
                    own = StepResult(first, shown, 0.0, 0.0, {**aux["key_sent"], **key_aux})
                    losses.append(self.key.loss([own], goal, {})["loss"])
            for t, sent in enumerate(aux["sent"], 1):
                note = {**sent, **(aux["received"][t - 1] if aux["received"] else {})}
                if "arrived" in note:
                    note["arrived"] = note["arrived"] * arrived
                task = None if self.task is None else partial(self._task_loss, result.step, t)
                losses.append(frame_loss(note, frames[:, t], frames[:, t - 1], plan, rate_weight, task).mean())
                shown_frame = pictured(note, frames[:, t - 1], plan).detach()
                errors.append((shown_frame - frames[:, t]).square().flatten(1).mean(1))
                for name in note:
                    if name.endswith(("_rate", "_bits")):
                        rates.setdefault(name, []).append(note[name].detach().mean())
        if not losses:
            raise InputError("dvst learns from frames that follow another: a stage of it needs crops of two frames or more")
        psnr = (-10 * torch.log10(torch.stack(errors) + 1e-10)).mean()
        means = {name: torch.stack(values).mean() for name, values in rates.items()}
        return {"loss": torch.stack(losses).mean(), "psnr_rgb_db": psnr, **means}

    def _task_loss(self, step: Step, t: int, shown: Tensor) -> Tensor:
        """What the goal makes of frame t, shown as (B, 3, H, W): (B,)."""
        assert self.task is not None
        labels = {name: known[:, t : t + 1] for name, known in step.labels.items()}
        return self.task(Step(step.frames[:, t : t + 1], labels), Decoded(frames=shown[:, None]))


def _uses(choice: Choice) -> int:
    """Channel uses of a link's choice, one example."""
    return uses_of(round(float(choice.value.detach().sum())))


def _part(budget: Budget, uses: int) -> Budget:
    """A budget of so many uses."""
    share = uses / max(budget.uses, 1)
    return replace(budget, uses=uses, nominal_uses=uses, payload_bytes=math.floor(budget.payload_bytes * share))


def make_paper(condition: str = "", *, config: PaperConfig | None = None, key: System | None = None) -> DvstPaper:
    """The published sizes with fresh weights, around the published NTSCC unless another key-frame system is given."""
    if key is None:
        key = SYSTEMS.get("ntscc").make("paper", condition)
    return DvstPaper(config or PaperConfig(), key)


# Departures from the paper, and what it leaves open
# - Patches. The text has 32x32 pixels per embedding, and a stride of 16 where motion is pooled: latents are at 1/16, and two
#   by two of them are merged into a token, 4 C -> M channels. The paper gives no M; 2 C is what Swin's own merging makes of 4
#   C.
# - Real or complex R. V counts real symbols, two to a channel use, as section IV-A says; the ledger counts channel uses, k /
#   2m in the paper's terms, and prints the paper's k / m beside it.
# - eta_{t,i} is 2 eta sigmoid(network(d_t)); the motion link has no d_t and asks its own y. The paper has no formula.
# - Check contexts. Eq. (2) writes f_d and g_s of the simulated receiver on the transmitter's own contexts. Those are made by
#   other networks than the receiver's (phi_a, gamma_e), and g_s never learned from them: the simulation uses phi_s and
#   gamma_d on the check references, so that without noise both ends are the same. g_a, f_e and the entropy model use phi_a
#   and gamma_e.
# - The first P-frame after a key frame has no y_{t-1}, since key frames have latents of their own: both ends take g_a of the
#   key frame as they know it, with that frame's own context.
# - One eta serves both links and follows from the budget, by bisection, in place of a fixed one per model. Motion is coded
#   first, so its eta is that of the frame before, and motion takes at most a third. A P-frame that does not fit is not sent.
# - A GOP is one step, so its budget is shared out at once: key_share P-frames' worth to the key frame.
# - Side information: the indices of both links, range-coded under tables counted in training, and the two amplitudes that
#   unit power takes away, are a packet and charged. The paper sends 7 raw bits per token and has the amplitudes for nothing.
#   The hyperprior is not sent, as eq. (11) has it.
# - The losses pay for the hyperprior's bits although it is not sent: otherwise the bits of y would hide there, unseen by k.
# - The gradient of the distortion reaches k by a soft edge of what is sent (see TokenEncoder); without one, learned eta and
#   entropy would only ever fall.
# - The flow network starts as no motion and learns in step 1, instead of pretrained weights. Section III-B, step 3:
#   motion_transform of the frozen motion link, that is without a channel.
# - Where fig. 4 cannot be read from the text (filters of g_a and g_s, where ChannelNorm stands, widths of h_*): 5x5
#   convolutions with GDN as in DCVC, the paper's [27]; ChannelNorm where maps and codeword contexts are joined.
# - Steps 4 and 5 may train the key-frame system too (train_key); no gradient passes from its picture to P-frames.
