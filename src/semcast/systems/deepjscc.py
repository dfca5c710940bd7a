"""Deep joint source-channel coding of pictures, frame by frame.

E. Bourtsoulatze, D. B. Kurka, D. Gündüz, "Deep joint source-channel coding for wireless image transmission", IEEE Trans.
Cogn. Commun. Netw. 5(3), 2019 (preset ``paper``), and J. Xu, B. Ai, W. Chen, A. Yang, P. Sun, M. Rodrigues, "Wireless image
transmission using deep source channel coding with attention modules", IEEE Trans. Circuits Syst. Video Technol. 32(4), 2022
(ADJSCC: attention features make one network serve all SNRs; preset ``small``).

    frame ─▶ f_enc ─▶ z in R^2k ─▶ k complex symbols ─▶ power ─▶ channel ─▶ z_hat ─▶ f_dec ─▶ frame_hat

    small:  16x16 blocks ─▶ KLT ─┬─────────────────── x gain(class) ─(+)─▶ the strongest coefficients of the picture
                                 ├▶ [conv, AF(SNR, rate)] ───────────┘
                                 └▶ class of block ─▶ range coder ─▶ packet
            z_hat ─▶ LMMSE(class) ─┬─▶ KLT^T ──────┬──────────────────(+)─▶ frame_hat
                                   └▶ [conv, AF] ──┴▶ 8x8: [conv, AF] ─┘
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semcast.errors import BudgetError, UnknownNameError
from semcast.layers.block_classes import BLOCK, DIMS, BlockClasses, decode_classes, encode_classes, side_margin_db
from semcast.layers.blocks import pad_to
from semcast.layers.fair_loss import fair_loss, reference_mse
from semcast.layers.residual import Conditions, Synthesis, Trunk, conditions_of, halved, zero_conv
from semcast.systems.base import Side, System, SystemSpec
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
class PaperConfig:
    """The published network: five 5x5 convolutions each way with PReLU, one model per rate.

    ``c`` latent channels on the quarter grid give CBR c / 96.
    """

    widths: tuple[int, ...] = (16, 32, 32, 32)
    c: int = 8


@dataclass(frozen=True)
class SmallConfig:
    """The shipped network.

    Attributes:
        classes: of 16x16 blocks; a class decides how many channel uses a block gets. latents: real coefficients per block at
            most (L). width, fine_width: channels on the grid of blocks, and at the decoder's end on that of half blocks.
            hidden, fine_hidden: channels between the two 3x3 convolutions of their residual blocks. encoder_blocks,
            decoder_blocks, fine_blocks: how many of these.
        embedding: numbers that describe a class to the convolutions.
    """

    classes: int = 32
    latents: int = 384
    width: int = 192
    hidden: int = 96
    fine_width: int = 96
    fine_hidden: int = 48
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    fine_blocks: int = 2
    embedding: int = 16


# -- preset "paper" ----------------------------------------------------------------------------------------------------------


class PaperEncoder(nn.Sequential):
    """f_enc of Bourtsoulatze et al., fig. 3: (B, 3, H, W) -> (B, c, H/4, W/4)."""

    def __init__(self, config: PaperConfig) -> None:
        a, b, c, d = config.widths
        super().__init__(
            nn.Conv2d(3, a, 5, 2, 2), nn.PReLU(a),
            nn.Conv2d(a, b, 5, 2, 2), nn.PReLU(b),
            nn.Conv2d(b, c, 5, 1, 2), nn.PReLU(c),
            nn.Conv2d(c, d, 5, 1, 2), nn.PReLU(d),
            nn.Conv2d(d, config.c, 5, 1, 2), nn.PReLU(config.c),
        )  # fmt: skip


class PaperDecoder(nn.Sequential):
    """f_dec of Bourtsoulatze et al., fig. 3: (B, c, H/4, W/4) -> (B, 3, H, W) in [0, 1]."""

    def __init__(self, config: PaperConfig) -> None:
        a, b, c, d = config.widths
        super().__init__(
            nn.ConvTranspose2d(config.c, d, 5, 1, 2), nn.PReLU(d),
            nn.ConvTranspose2d(d, c, 5, 1, 2), nn.PReLU(c),
            nn.ConvTranspose2d(c, b, 5, 1, 2), nn.PReLU(b),
            nn.ConvTranspose2d(b, a, 5, 2, 2, 1), nn.PReLU(a),
            nn.ConvTranspose2d(a, 3, 5, 2, 2, 1), nn.Sigmoid(),
        )  # fmt: skip


# -- preset "small" ----------------------------------------------------------------------------------------------------------


class SmallEncoder(nn.Module):
    """Coefficients -> what is sent: closed-form gains, and what a network makes of them."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        L = config.latents
        self.embed = nn.Embedding(config.classes, config.embedding)
        self.trunk = Trunk(L + config.embedding, config.width, config.hidden, config.encoder_blocks)
        self.head = zero_conv(config.width, 2 * L)

    def forward(self, coefficients: Tensor, std: Tensor, gain: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        """coefficients (B, L, h, w), std (L,), gain (B, L, h, w), classes (B, h, w) -> (B, L, h, w)."""
        features = torch.cat([coefficients / std[:, None, None], self.embed(classes).movedim(-1, 1)], 1)
        scale, shift = self.head(self.trunk(features, conditions)).float().chunk(2, 1)
        return coefficients * gain * torch.exp(scale.clamp(-2, 2)) + shift


class SmallDecoder(Synthesis):
    """Estimates of coefficients -> picture: the inverse KLT, and what a network adds to it."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__(
            latents=config.latents,
            classes=config.classes,
            embedding=config.embedding,
            width=config.width,
            hidden=config.hidden,
            blocks=config.decoder_blocks,
            fine_width=config.fine_width,
            fine_hidden=config.fine_hidden,
            fine_blocks=config.fine_blocks,
        )
        self.synthesis = nn.Conv2d(config.latents, DIMS, 1, bias=False)

    def decode(self, estimate: Tensor, std: Tensor, mean: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        """estimate (B, L, h, w), std (L,), mean (768,), classes (B, h, w) -> picture (B, 3, 16 h, 16 w)."""
        linear = self.synthesis(estimate).float() + mean[:, None, None]
        return self(halved(linear), estimate / std[:, None, None], classes, conditions)


# -- the system --------------------------------------------------------------------------------------------------------------


class JsccState(NamedTuple):
    """One side: the session header, and at the receiver the last frame, which a lost packet freezes."""

    fmt: Format
    last: Tensor | None = None


_HEAD = "<bH"  # told SNR in half dB, gain in hundredths of a dB from -100 dB


class DeepJscc(System):
    """Deep JSCC of single frames.

    ``paper`` sends one analog stream ``latent``. ``small`` adds a packet ``classes``: the class of every block, range-coded and
    charged like everything else, from which both ends derive where the channel uses go.
    """

    name = "deepjscc"
    frames_per_step = 1

    def __init__(self, config: SmallConfig | PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.preset = "small" if isinstance(config, SmallConfig) else "paper"
        if isinstance(config, SmallConfig):
            self.blocks = BlockClasses(config.classes, config.latents)
            self.register_buffer("std", torch.ones(config.latents))
            self.encoder: nn.Module = SmallEncoder(config)
            self.decoder: nn.Module = SmallDecoder(config)
        else:
            self.encoder, self.decoder = PaperEncoder(config), PaperDecoder(config)

    std: Tensor

    def start(self, fmt: Format, side: Side) -> JsccState:
        config = self.config
        if isinstance(config, PaperConfig):
            need = config.c * math.ceil(fmt.height / 4) * math.ceil(fmt.width / 4) / 2 / (3 * fmt.height * fmt.width)
            if fmt.cbr < need * (1 - 1e-6):
                raise BudgetError(
                    f"deepjscc:paper always sends CBR {need:.4f} at this size and cannot meet {fmt.cbr:g}; raise --cbr"
                )
        return JsccState(fmt)

    def encode(
        self, step: Step, state: JsccState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, JsccState, Aux]:
        frames = step.frames.flatten(0, 1)
        snr_db = csi.snr_db.to(frames.device)
        if isinstance(self.config, PaperConfig):
            x = as_complex(self.encoder(pad_to(frames, 4)).float().flatten(1))
            return {"latent": Analog(x)}, state, {"reference_mse": torch.full_like(snr_db, 1e-3)}
        coefficients = self.blocks.analyse(pad_to(frames, BLOCK)).float()
        classes = self.blocks.classify(coefficients)
        snr_steps = (2 * csi.snr_db.clamp(-60, 60)).round().to(torch.int64)
        side, uses = self._side_information(classes, budget, csi)
        plans = [
            self.blocks.allocate(one.flatten(), uses, steps / 2)
            for one, steps in zip(classes, snr_steps.tolist(), strict=True)
        ]  # fmt: skip
        gain, sent = (_grid([plan[i] for plan in plans], classes) for i in (1, 0))
        conditions = conditions_of(snr_db, uses / classes[0].numel(), classes)
        y = self.encoder(coefficients, self.std, gain, classes, conditions)
        x = _gather(y, _places(sent))
        amplitude = x.square().mean(1).clamp_min(1e-9).rsqrt()
        latent = Analog(torch.view_as_complex(x.unflatten(1, (-1, 2)).contiguous()))
        if self.training:
            # What the packet would tell, as numbers: SNR, amplitude and classes.
            told = torch.cat([snr_steps[:, None].to(x) / 2, amplitude[:, None], classes.flatten(1).to(x)], 1)
            bits = torch.tensor([[self._class_bits(one)] for one in classes])
            payload: Payload = {"classes": Digital(proxy=told[:, None], est_bits=bits), "latent": latent}
            return payload, state, {"reference_mse": reference_mse(snr_db, state.fmt.cbr)}
        gain_db = 20 * math.log10(float(amplitude[0]))
        head = struct.pack(_HEAD, int(snr_steps[0]), round(100 * (gain_db + 100)))
        packet = Packet(head + side, mcs=self._side_mcs(budget, csi))
        return {"classes": Digital([[packet]]), "latent": latent}, state, {}

    def _class_bits(self, classes: Tensor) -> float:
        return self.blocks.class_bits(classes.flatten().cpu().numpy(), self.blocks.grids(*classes.shape))

    def _side_information(self, classes: Tensor, budget: Budget, csi: Csi) -> tuple[bytes, int]:
        """Coded classes, and the channel uses that remain for the picture."""
        assert isinstance(self.config, SmallConfig)
        if self.training:
            bits = sum(self._class_bits(one) for one in classes) / len(classes)
            return b"", max(32, budget.uses - round(bits / csi.bits_per_use))
        first = classes[0].cpu()
        side = encode_classes(first.flatten().numpy(), self.blocks.grids(*first.shape), self.blocks.frequencies.cpu().numpy())
        size = struct.calcsize(_HEAD) + len(side)
        uses = budget.uses - budget.uses_for_packets([size], self._side_mcs(budget, csi))
        if uses < first.numel() // 16 + 1:
            raise BudgetError(
                f"deepjscc:small needs {size} bytes of side information a frame and has no channel uses left for the picture "
                f"at CBR {budget.cbr:g}; raise --cbr"
            )
        return side, uses

    @staticmethod
    def _side_mcs(budget: Budget, csi: Csi) -> str | None:
        return budget.robust_mcs(side_margin_db(float(csi.snr_db.mean())))

    def decode(
        self, received: Received, state: JsccState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, JsccState, Aux]:
        rx = received["latent"]
        assert isinstance(rx, RxAnalog)
        height, width = state.fmt.height, state.fmt.width
        if isinstance(self.config, PaperConfig):
            x, _ = rx.equalised()
            h, w = math.ceil(height / 4), math.ceil(width / 4)
            frames: Tensor | None = self.decoder(as_real(x).reshape(-1, self.config.c, h, w))
        else:
            frames = self._decode_small(received["classes"], rx, state.fmt)
        if frames is None:
            last = state.last if state.last is not None else torch.full((1, 3, height, width), 0.5, device=rx.y.device)
            return Decoded(frames=last[:, None], concealed=1), state, {}
        frames = frames[..., :height, :width].float()
        if self.training:
            side = received.get("classes")
            aux = {"arrived": side.arrived[:, 0].float()} if isinstance(side, RxProxy) else {}
            return Decoded(frames=frames.unflatten(0, (-1, n_frames))), state, aux
        frames = frames.clamp(0, 1)
        return Decoded(frames=frames.unflatten(0, (-1, n_frames))), JsccState(state.fmt, frames[-1:]), {}

    def _decode_small(self, side: object, rx: RxAnalog, fmt: Format) -> Tensor | None:
        h, w = math.ceil(fmt.height / BLOCK), math.ceil(fmt.width / BLOCK)
        device, uses = rx.y.device, rx.y.shape[1]
        if isinstance(side, RxProxy):
            told = side.proxy[:, 0]
            snr_db, amplitude, classes = told[:, 0].tolist(), told[:, 1:2], told[:, 2:].round().long().reshape(-1, h, w)
        else:
            assert isinstance(side, list)
            parsed = self._parse(side[0][0], h, w)
            if parsed is None:
                return None
            snr_db, amplitude, classes = [parsed[0]], torch.tensor([[parsed[1]]], device=device), parsed[2].to(device)
        plans = [self.blocks.allocate(one.flatten(), uses, snr) for one, snr in zip(classes, snr_db, strict=True)]
        sent, gain, variance = (_grid([plan[i] for plan in plans], classes) for i in range(3))
        if int(sent[0].sum()) != 2 * uses:
            return None
        x, noise_var = rx.equalised()
        # The link's unit power is per complex symbol, the plan's per real component: both are scaled by sqrt(2).
        y, noise = as_real(x) * math.sqrt(2), noise_var.repeat_interleave(2, 1)
        places = _places(sent)
        g, v = _gather(gain, places) * amplitude, _gather(variance, places)
        estimate = _scatter(y * g * v / (g.square() * v + noise), places, sent)
        measured_db = -10 * noise_var.log10().mean(1)
        conditions = conditions_of(measured_db, uses / (h * w), classes)
        assert isinstance(self.decoder, SmallDecoder)
        return self.decoder.decode(estimate, self.std, self.blocks.mean, classes, conditions)

    def _parse(self, data: bytes | None, h: int, w: int) -> tuple[float, float, Tensor] | None:
        """Told SNR in dB, amplitude and classes (1, h, w) from the packet; None where it was lost or is damaged."""
        size = struct.calcsize(_HEAD)
        if data is None or len(data) < size:
            return None
        snr_steps, gain_steps = struct.unpack_from(_HEAD, data)
        classes = decode_classes(data[size:], self.blocks.grids(h, w), self.blocks.frequencies.cpu().numpy())
        if classes is None:
            return None
        return snr_steps / 2, 10 ** ((gain_steps / 100 - 100) / 20), torch.from_numpy(classes).reshape(1, h, w)

    # -- training -------------------------------------------------------------------------------------------------------

    def initialise(self, frames: Tensor) -> None:
        """Start as the closed-form code: block classes fitted to ``frames`` (N, 3, H, W), and the inverse KLT."""
        if not isinstance(self.config, SmallConfig):
            return
        self.blocks.fit(frames)
        decoder = self.decoder
        assert isinstance(decoder, SmallDecoder)
        with torch.no_grad():
            self.std.copy_(self.blocks.analyse(frames).square().mean((0, 2, 3)).sqrt().clamp_min(1e-3))
            decoder.synthesis.weight.copy_(self.blocks.basis.T[:, :, None, None])

    def lr_scale(self, parameter: str) -> float:
        return 0.1 if "synthesis" in parameter else 1.0

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """A power of the MSE, over what SNR and rate cost: :func:`~semcast.layers.fair_loss.fair_loss`."""
        return fair_loss(run[0], stage)


def _grid(rows: list[Tensor], classes: Tensor) -> Tensor:
    """Per-picture (h w, L) -> (B, L, h, w)."""
    batch, h, w = classes.shape
    return torch.stack(rows).reshape(batch, h, w, -1).movedim(-1, 1).to(classes.device)


def _places(sent: Tensor) -> Tensor:
    """Which entries of (B, L, h, w) are sent, block by block: (B, 2 uses) indices for :func:`_gather` and :func:`_scatter`."""
    return sent.movedim(1, -1).flatten(1).nonzero()[:, 1].reshape(sent.shape[0], -1)


def _gather(grid: Tensor, places: Tensor) -> Tensor:
    """The sent entries of (B, L, h, w) as (B, 2 uses)."""
    return grid.movedim(1, -1).flatten(1).gather(1, places)


def _scatter(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_gather`, zero elsewhere: (B, 2 uses) -> the shape of ``like``."""
    batch, depth, h, w = like.shape
    rows = values.new_zeros(batch, h * w * depth).scatter(1, places, values)
    return rows.reshape(batch, h, w, depth).movedim(-1, 1)


CONFIGS: dict[str, SmallConfig | PaperConfig] = {"small": SmallConfig(), "paper": PaperConfig()}


def make(preset: str, condition: str) -> DeepJscc:
    """Build a preset with fresh weights."""
    if preset not in CONFIGS:
        raise UnknownNameError("preset of deepjscc", preset, CONFIGS)
    return DeepJscc(CONFIGS[preset])


SPEC = SystemSpec(
    name="deepjscc",
    summary="deep joint source-channel coding, frame by frame (small: one checkpoint for all rates and SNRs)",
    kind="hybrid",
    make=make,
    paper="Bourtsoulatze, Kurka, Gündüz 2019; Xu et al. 2021 (ADJSCC)",
    presets=tuple(CONFIGS),
    trained=True,
    picture=True,
)

# Departures from the papers
# - small: a block's share of the channel uses follows its class, which is sent as a packet and charged. The papers give every
#   place of a picture the same number of symbols; that alone costs 2 dB (see linear-jscc with one class and with 32).
# - small: convolutions work on the grids of 16x16 and 8x8 blocks instead of at full, half and quarter resolution; residual
#   blocks with GELU instead of PReLU/GDN stacks; one network serves all rates and, by AF modules as in ADJSCC, all SNRs.
# - small: both halves start as a closed-form linear code (KLT, water-filling, LMMSE) and learn what to add.
# - small: the root of MSE, divided by what SNR and rate cost, instead of MSE: one network serves all SNRs and rates.
# - small: the amplitude that power normalisation removes is sent with the classes; ADJSCC leaves the network to guess it.
# - Power is normalised per frame by the link, over what is really sent.
