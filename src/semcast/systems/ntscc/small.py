"""Preset ``small`` of NTSCC: the shipped one.

    frame ─▶ blocks, and tiles of their means ─▶ g_a = KLT ─▶ y ─┬─▶ f_e: a curve for 0..6 uses per coefficient ─▶ symbols
                                                                └─▶ z = class of block ─▶ range coder ─▶ packet
    symbols ─▶ f_d: posterior mean per coefficient, given z ─▶ y_hat ─▶ g_s ─▶ frame_hat
    g_s = g_a^-1 + [conv, AF] on the grid of blocks + [conv, AF] on that of 8x8 + [conv, AF] on that of 2x2 pixels

z is a vector-quantised hyperprior: it names the variances of y, hence its entropy, hence the channel uses of every coefficient
(:mod:`semcast.layers.block_code`, :mod:`semcast.layers.two_scales`). Everything starts as the closed-form code; the networks
learn what to add.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import BudgetError
from semcast.layers.allocation import Plan, joined, placed
from semcast.layers.block_classes import BLOCK, Grid, decode_classes, encode_classes, side_margin_db
from semcast.layers.block_code import ADAPTED, parts
from semcast.layers.blocks import pad_to
from semcast.layers.fair_loss import fair_loss, reference_mse
from semcast.layers.motion import dense_flow
from semcast.layers.recall import recall
from semcast.layers.residual import Synthesis, conditions_of
from semcast.layers.side_rate import SideRate
from semcast.layers.spread import despread, spread
from semcast.layers.two_scales import TwoScaleCode
from semcast.layers.warp import warp
from semcast.systems.base import Side, System
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
    RxProxy,
    Step,
    StepResult,
    as_complex,
    as_real,
)


@dataclass(frozen=True)
class SmallConfig:
    """The shipped network.

    Attributes:
        classes, quarter_classes, tile_classes: of 16x16 blocks, of the quarters that they may be split into, and of tiles of
            their means. latents: real coefficients per block at most (L).
            rotated: of them turned into a class's own KLT. width, fine_width, finish_width: channels of g_s on the grid of
            blocks, on that of half blocks after it, and on that of pixels two by two at last. decoder_blocks, fine_blocks,
            finish_blocks: residual blocks on these. embedding: numbers that describe a class. distortion: what pictures are
            judged by, "mse" or "ms_ssim".
    """

    classes: int = 32
    quarter_classes: int = 24
    tile_classes: int = 16
    latents: int = 384
    rotated: int = 192
    width: int = 192
    fine_width: int = 96
    decoder_blocks: int = 2
    fine_blocks: int = 3
    finish_width: int = 32
    finish_blocks: int = 4
    embedding: int = 16
    distortion: Literal["mse", "ms_ssim"] = "mse"


class State(NamedTuple):
    """One side: the session header, and at the receiver the last frame, which a lost packet freezes, and a picture (1, 3, H, W)
    that the next one is likely to resemble, if there is one (:meth:`NtsccSmall.expect`)."""

    fmt: Format
    last: Tensor | None = None
    expected: Tensor | None = None


_HEAD = "<bbH"  # told SNR in dB, by how many dB curves are shifted, gain in hundredths of a dB from -100 dB


class NtsccSmall(System):
    """NTSCC of single frames; every frame is a packet ``hyperprior`` and an analog stream ``latent``."""

    name = "ntscc"
    preset = "small"
    frames_per_step = 1

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.config = config
        weighed = config.distortion != "mse"
        sizes = config.classes, config.tile_classes, config.latents, config.rotated, config.quarter_classes
        self.code = TwoScaleCode(*sizes, weighed)
        self.adapted = ADAPTED if weighed else ()
        features = config.latents + 3
        self.register_buffer("std", torch.ones(features))
        self.g_s = Synthesis(
            latents=features,
            classes=config.classes + 1,
            embedding=config.embedding,
            width=config.width,
            hidden=config.width,
            blocks=config.decoder_blocks,
            fine_width=config.fine_width,
            fine_hidden=config.fine_width,
            fine_blocks=config.fine_blocks,
            finish_width=config.finish_width,
            finish_blocks=config.finish_blocks,
        )

    std: Tensor

    def start(self, fmt: Format, side: Side) -> State:
        return State(fmt)

    # -- transmitter -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(
        self, step: Step, state: State, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, State, Aux]:
        frames = pad_to(step.frames.flatten(0, 1), BLOCK)
        told = csi.spread_snr_db.clamp(-60, 60).round()
        mcs = budget.robust_mcs(side_margin_db(float(csi.snr_db.mean())))
        with torch.autocast("cpu", enabled=False):
            y = self.code.analyse(frames)
            grids = self.code.grids(frames.shape[2] // BLOCK, frames.shape[3] // BLOCK)
            bits_per_use = SideRate(budget, mcs).bits_per_use
            guess = round(0.93 * budget.uses)
            chosen = [self.code.choose(one, grids, guess, snr, bits_per_use) for one, snr in zip(y, told.tolist(), strict=True)]
        classes = torch.stack(chosen)
        sides = [encode_classes(one.numpy(), grids, *self.code.tables()) for one in chosen]
        sizes = [struct.calcsize(_HEAD) + len(side) for side in sides]
        uses = budget.uses - round(sum(budget.uses_for_packets([size], mcs) for size in sizes) / len(sizes))
        least = grids[0].blocks // 16 + 1
        if uses < least:
            if not self.training:
                raise BudgetError(
                    f"ntscc:small needs {sizes[0]} bytes of side information a frame and has no channel uses left for it "
                    f"at CBR {budget.cbr:g}; raise --cbr"
                )
            uses = least
        places = [self.code.places(one) for one in chosen]
        chosen, rows = ([one[own] for one, own in zip(all_, places, strict=True)] for all_ in (chosen, y))
        plans = [self.code.allocate(one, uses, snr) for one, snr in zip(chosen, told.tolist(), strict=True)]
        with torch.autocast("cpu", enabled=False):
            shift = [self.code.shift(*each) for each in zip(rows, chosen, plans, strict=True)]
            plans = [self.code.shifted(plan, by) for plan, by in zip(plans, shift, strict=True)]
            symbols = self.code.modulate(torch.cat(rows), torch.cat(chosen), joined(plans)).reshape(len(y), -1)
        amplitude = symbols.square().mean(1).clamp_min(1e-9).rsqrt()
        latent = Analog(spread(as_complex(symbols)))
        if self.training:
            # What the packet would tell, as numbers.
            head = torch.stack([told, torch.tensor(shift).to(told), amplitude], 1)
            proxy = torch.cat([head, classes.to(symbols)], 1)
            bits = torch.tensor([[8.0 * size] for size in sizes])
            payload: Payload = {"hyperprior": Digital(proxy=proxy[:, None], est_bits=bits), "latent": latent}
            return payload, state, {"reference_mse": reference_mse(csi.snr_db, state.fmt.cbr)}
        gain = round(100 * (20 * math.log10(float(amplitude[0])) + 100))
        data = struct.pack(_HEAD, int(told[0]), shift[0], gain) + sides[0]
        return {"hyperprior": Digital([[Packet(data, mcs=mcs)]]), "latent": latent}, state, {}

    @torch.no_grad()
    def prices(self, frames: Tensor, csi: Csi) -> Callable[[Budget], int]:
        """The price of a use, in quarter decibels, at which a picture (1, 3, H, W) takes a budget, about."""
        told = float(csi.spread_snr_db.mean().round())
        frames = pad_to(frames, BLOCK)
        grids = self.code.grids(frames.shape[2] // BLOCK, frames.shape[3] // BLOCK)
        likely = self.code.likely(self.code.analyse(frames)[0], grids)
        size = round(self.code.blocks.class_bits(likely.numpy(), grids, self.code.tables()[1]) * 0.8 / 8)

        def price(budget: Budget) -> int:
            side = budget.uses_for_packets([size], budget.robust_mcs(side_margin_db(float(csi.snr_db.mean()))))
            return self.code.price_of(likely, max(budget.uses - side, 32), told)

        return price

    # -- receiver --------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: State, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, State, Aux]:
        rx, side = received["latent"], received["hyperprior"]
        assert isinstance(rx, RxAnalog)
        height, width = state.fmt.height, state.fmt.width
        frames = self._decode(side, rx, state.fmt, state.expected)
        if frames is None:
            last = state.last if state.last is not None else torch.full((1, 3, height, width), 0.5, device=rx.y.device)
            return Decoded(frames=last[:, None], concealed=1), state, {}
        frames = frames[..., :height, :width].float()
        if self.training:
            aux = {"arrived": side.arrived[:, 0].float()} if isinstance(side, RxProxy) else {}
            return Decoded(frames=frames.unflatten(0, (-1, n_frames))), state, aux
        frames = frames.clamp(0, 1)
        return Decoded(frames=frames.unflatten(0, (-1, n_frames))), State(state.fmt, frames[-1:]), {}

    @staticmethod
    def expect(state: State, picture: Tensor | None) -> State:
        """The receiver's state where the next picture is likely to look like this one (1, 3, H, W), motion apart."""
        return state._replace(expected=picture)

    def _decode(self, side: object, rx: RxAnalog, fmt: Format, expected: Tensor | None) -> Tensor | None:
        h, w = math.ceil(fmt.height / BLOCK), math.ceil(fmt.width / BLOCK)
        uses, grids = rx.y.shape[1], self.code.grids(h, w)
        if isinstance(side, RxProxy):
            numbers = side.proxy[:, 0]
            told, shift, amplitude = numbers[:, 0], numbers[:, 1], torch.where(side.arrived[:, 0], numbers[:, 2], 1.0)
            classes = numbers[:, 3:].detach().round().long()
        else:
            assert isinstance(side, list)
            parsed = parse(side[0][0], grids, self.code.tables())
            if parsed is None:
                return None
            (told, shift, amplitude), classes = torch.tensor([parsed[:3]]).T, parsed[3]
        places = [self.code.places(one) for one in classes]
        chosen = [one[own] for one, own in zip(classes, places, strict=True)]
        plans = [self.code.allocate(one, uses, snr) for one, snr in zip(chosen, told.tolist(), strict=True)]
        if any(int(plan.uses.sum()) != 2 * uses for plan in plans):
            return None
        plans = [self.code.shifted(plan, round(by)) for plan, by in zip(plans, shift.tolist(), strict=True)]
        x, noise_var = despread(rx)
        # The link's unit power is per complex symbol, a plan's per real one: both are scaled by sqrt(2).
        values, noise = as_real(x) * math.sqrt(2), noise_var.repeat_interleave(2, 1)
        with torch.autocast("cpu", enabled=False):
            per_row = amplitude.repeat_interleave(torch.tensor([len(own) for own in places]))
            rows = self.code.demodulate(values.flatten(), noise.flatten(), per_row, torch.cat(chosen), joined(plans))
            pieces = zip(rows.split([len(own) for own in places]), places, strict=True)
            y_hat = torch.stack([placed(own, place, classes.shape[1]) for own, place in pieces])
        measured_db = -10 * noise_var.log10().mean(1)
        detail = classes[:, : h * w].reshape(-1, h, w)
        conditions = conditions_of(measured_db, uses / (h * w), detail)
        with torch.autocast("cpu", enabled=False):
            linear = self.code.synthesise(y_hat, h, w)
            if expected is not None:
                uses_of, power, curve = (placed(table, places[0], len(classes[0])) for table in plans[0][:3])
                plan = plans[0]._replace(uses=uses_of, power=power, curve=curve)
                y_hat = self._recall(y_hat[0], linear, classes[0], plan, float(measured_db), expected)[None]
                linear = self.code.synthesise(y_hat, h, w)
            features = self.code.features(linear) / self.std[:, None, None]
        picture: Tensor = self.g_s(F.pixel_unshuffle(linear, BLOCK // 2), features, detail, conditions)
        return picture

    def _recall(self, y_hat: Tensor, linear: Tensor, classes: Tensor, plan: Plan, snr_db: float, expected: Tensor) -> Tensor:
        """Latent (n, L) given the expected picture as well, moved to where things are in ``linear`` (1, 3, H, W)."""
        expected = pad_to(expected, BLOCK)
        moved = warp(expected, dense_flow(linear, expected), "bicubic")
        before = self.code.analyse(moved)[0]
        grids = self.code.grids(linear.shape[2] // BLOCK, linear.shape[3] // BLOCK)
        known = []
        for grid, arrived, own, last, uses, power, curve in parts(
            grids, y_hat, classes, before, plan.uses, plan.power, plan.curve
        ):
            part = Plan(uses, power, curve, plan.price, plan.told)
            known.append(recall(self.code, arrived, own, grid, part, snr_db, last))
        return torch.cat(known)

    # -- training --------------------------------------------------------------------------------------------------------

    def initialise(self, frames: Tensor) -> None:
        """Start as the closed-form code: classes fitted to ``frames`` (N, 3, H, W)."""
        self.code.fit(frames)
        with torch.no_grad():
            self.std.copy_(self.code.features(frames).square().mean((0, 2, 3)).sqrt().clamp_min(1e-3))

    def adapt(self, clips: Tensor) -> None:
        """Fit how much errors count, where they are weighed, to the first frames of clips (N, t, 3, H, W)."""
        from semcast.systems.ntscc.fit import fit_importance

        fit_importance(self, clips[:, 0])

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """A power of the MSE, over what SNR and rate cost: :func:`~semcast.layers.fair_loss.fair_loss`; or MS-SSIM in decibels.

        The rate is not in the loss: the allocation meets the budget exactly, at the best distortion for the classes.
        """
        return fair_loss(run[0], stage) if self.config.distortion == "mse" else structural_run_loss(run[0])


def parse(
    data: bytes | None, grids: Sequence[Grid], tables: tuple[np.ndarray, np.ndarray | None]
) -> tuple[float, float, float, Tensor] | None:
    """Told SNR in dB, shift of the curves in dB, amplitude, classes (1, n) of a packet; None where it is lost or damaged."""
    size = struct.calcsize(_HEAD)
    if data is None or len(data) < size:
        return None
    told, shift, gain = struct.unpack_from(_HEAD, data)
    classes = decode_classes(data[size:], grids, *tables)
    if classes is None:
        return None
    return float(told), float(shift), 10 ** ((gain / 100 - 100) / 20), torch.from_numpy(classes)[None]
