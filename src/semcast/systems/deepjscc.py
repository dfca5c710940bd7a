"""Deep joint source-channel coding of pictures, frame by frame.

E. Bourtsoulatze, D. B. Kurka, D. Gündüz, "Deep joint source-channel coding for wireless image transmission", IEEE Trans.
Cogn. Commun. Netw. 5(3), 2019 (preset ``paper``), and J. Xu, B. Ai, W. Chen, A. Yang, P. Sun, M. Rodrigues, "Wireless image
transmission using deep source channel coding with attention modules", IEEE Trans. Circuits Syst. Video Technol. 32(4), 2022
(ADJSCC: attention features make one network serve all SNRs; preset ``small``).

    frame ─▶ f_enc ─▶ z in R^2k ─▶ k complex symbols ─▶ power ─▶ channel ─▶ z_hat ─▶ f_dec ─▶ frame_hat

    small:  16x16 blocks ─▶ KLT ─┬────────────────── x gain ─(+)─▶ first c of L coefficients a block, plus pilots
                                 └▶ [conv, AF(SNR, rate)] ────┘
            z_hat ─▶ shrink (LMMSE) ─┬─▶ KLT^T ─────────┬──────────────────────(+)─▶ frame_hat
                                     └▶ [conv, AF] ─────┴▶ 8x8: [conv, AF] ────┘
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.errors import BudgetError, UnknownNameError
from semcast.layers.blocks import AttentionFeature, dither, pad_to
from semcast.systems.base import Side, System, SystemSpec
from semcast.types import Analog, Aux, Budget, Csi, Decoded, Format, Payload, Received, RxAnalog, Step, StepResult, as_complex, as_real


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
        block: pixels per side of a block. latents: real coefficients per block at most (L). width, fine_width: channels of the
            convolutions on the grid of blocks, and on the grid of half blocks at the end of the decoder. encoder_blocks,
            decoder_blocks, fine_blocks: residual blocks of two 3x3 convolutions. pilots: uses per frame that tell the receiver the
            amplitude that power normalisation removed. min_latents: coefficients per block at least.
    """

    block: int = 16
    latents: int = 256
    width: int = 192
    fine_width: int = 96
    encoder_blocks: int = 2
    decoder_blocks: int = 2
    fine_blocks: int = 2
    pilots: int = 32
    min_latents: float = 2.0


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


class Conditions(NamedTuple):
    """What modulates the network: (B, 2) of SNR / 20 dB and rate c / L, and the same as maps (B, 2, h, w)."""

    vector: Tensor
    maps: Tensor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and an AF module (ADJSCC, fig. 3) around a skip: (B, C, h, w) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.attention = AttentionFeature(width, 2)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        y = self.conv2(F.gelu(self.conv1(x), approximate="tanh"))
        return x + self.attention(y, conditions)


class Trunk(nn.Module):
    """conv - residual blocks: (B, in, h, w) -> (B, width, h, w)."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs + 2, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        y = self.stem(torch.cat([x, conditions.maps.to(x.dtype)], 1))
        for block in self.blocks:
            y = block(y, conditions.vector)
        return F.gelu(y, approximate="tanh")


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero: what the network adds to the closed-form code is learned from nothing."""
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class SmallEncoder(nn.Module):
    """Blocks -> coefficients: a KLT with gains lambda^(-1/4), the high-SNR optimum, and what a network adds to it."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        dims, L = 3 * config.block**2, config.latents
        self.register_buffer("mean", torch.zeros(dims))
        self.register_buffer("whiten", torch.ones(L))  # standard deviation of every coefficient
        self.analysis = nn.Conv2d(dims, L, 1, bias=False)
        self.trunk = Trunk(L, config.width, config.encoder_blocks)
        self.head = zero_conv(config.width, 2 * L)

    def forward(self, blocks: Tensor, conditions: Conditions) -> Tensor:
        """(B, 3 b^2, h, w) -> (B, L, h, w)."""
        y = self.analysis(blocks - self.mean[:, None, None])
        features = self.trunk(y / self.whiten[:, None, None].to(y.dtype), conditions)
        scale, shift = self.head(features).float().chunk(2, 1)
        return y.float() * torch.exp(scale.clamp(-2, 2)) + shift


class SmallDecoder(nn.Module):
    """Coefficients -> blocks: LMMSE shrinkage per coefficient, the inverse KLT, and what a network adds to it.

    The network works on the grid of blocks first, then on half blocks, where it sees the linear picture.
    """

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        dims, L, fine = 3 * config.block**2, config.latents, config.fine_width
        self.register_buffer("mean", torch.zeros(dims))
        self.log_variance = nn.Parameter(torch.zeros(L))
        self.synthesis = nn.Conv2d(L, dims, 1, bias=False)
        self.trunk = Trunk(L, config.width, config.decoder_blocks)
        self.expand = nn.Conv2d(config.width, 4 * fine, 1)
        self.look = nn.Conv2d(dims // 4, fine, 1)
        self.fine = nn.ModuleList(ResidualBlock(fine) for _ in range(config.fine_blocks))
        self.head = zero_conv(fine, dims // 4)
        self.half = config.block // 2

    def forward(self, z: Tensor, noise_var: Tensor, conditions: Conditions) -> Tensor:
        """z and its noise power (B, L, h, w), infinite where nothing was sent -> picture (B, 3, b h, b w)."""
        variance = self.log_variance.exp()[:, None, None]
        shrunk = z * (variance / (variance + noise_var))
        linear = self.synthesis(shrunk) + self.mean[:, None, None].to(shrunk.dtype)
        halves = F.pixel_unshuffle(F.pixel_shuffle(linear, 2 * self.half), self.half)
        features = F.pixel_shuffle(self.expand(self.trunk(shrunk / variance.sqrt(), conditions)), 2) + self.look(halves - 0.5)
        for block in self.fine:
            features = block(features, conditions.vector)
        residual = self.head(F.gelu(features, approximate="tanh"))
        return F.pixel_shuffle((halves.float() + residual.float()), self.half)


class Layout(NamedTuple):
    """Which coefficients are sent, known to both ends from the session header: mask (L, h, w), uses per frame, rate c / L."""

    sent: Tensor
    uses: int
    rate: float


class DeepJscc(System):
    """Deep JSCC; every frame is one analog stream ``latent``.

    Any budget is met to the symbol: the first c coefficients of every block are sent, and a deterministic lattice of blocks sends
    one more pair, so that the receiver needs no side information beyond the CBR in the session header.
    """

    name = "deepjscc"
    frames_per_step = 1

    def __init__(self, config: SmallConfig | PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.preset = "small" if isinstance(config, SmallConfig) else "paper"
        if isinstance(config, SmallConfig):
            self.encoder: nn.Module = SmallEncoder(config)
            self.decoder: nn.Module = SmallDecoder(config)
            self.multiple = config.block
        else:
            self.encoder, self.decoder, self.multiple = PaperEncoder(config), PaperDecoder(config), 4
        self._layouts: dict[tuple[int, int, float], Layout] = {}

    # -- rate -----------------------------------------------------------------------------------------------------------

    def layout(self, height: int, width: int, cbr: float) -> Layout:
        """Positions sent per frame of ``height`` x ``width`` at ``cbr``; raises BudgetError."""
        key = (height, width, cbr)
        if key not in self._layouts:
            self._layouts[key] = self._make_layout(height, width, cbr)
        return self._layouts[key]

    def _make_layout(self, height: int, width: int, cbr: float) -> Layout:
        h, w = math.ceil(height / self.multiple), math.ceil(width / self.multiple)
        budget = math.floor(cbr * 3 * height * width + 1e-6)
        config = self.config
        if isinstance(config, PaperConfig):
            need = config.c * h * w // 2
            if budget < need * 0.999 - 2:
                raise BudgetError(f"deepjscc:paper always sends CBR {config.c / 96:.4f} and cannot meet {cbr:g}; take deepjscc:small")
            return Layout(torch.ones(config.c, h, w, dtype=torch.bool), need, 1.0)
        pairs = min(budget - config.pilots, h * w * config.latents // 2)
        if pairs < h * w * config.min_latents / 2:
            least = (h * w * config.min_latents / 2 + config.pilots) / (3 * height * width)
            raise BudgetError(f"deepjscc:small needs CBR {least:.4f} at least for {width}x{height}, got {cbr:g}; raise --cbr")
        full, extra = divmod(pairs, h * w)
        pair_sent = torch.zeros(config.latents // 2, h, w, dtype=torch.bool)
        pair_sent[:full] = True
        if extra:
            pair_sent[full] = dither(h, w, extra)
        return Layout(pair_sent.repeat_interleave(2, 0), pairs + config.pilots, 2 * pairs / (h * w) / config.latents)

    # -- the system -----------------------------------------------------------------------------------------------------

    def start(self, fmt: Format, side: Side) -> Format:
        self._layouts.clear()
        self.layout(fmt.height, fmt.width, fmt.cbr)
        return fmt

    def encode(
        self, step: Step, state: Format, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, Format, Aux]:
        frames = step.frames.flatten(0, 1)
        height, width = frames.shape[-2:]
        layout = self.layout(height, width, state.cbr)
        padded = pad_to(frames, self.multiple)
        if isinstance(self.config, PaperConfig):
            aux = {"reference_mse": torch.full((frames.shape[0],), 1e-3, device=frames.device)} if self.training else {}
            return {"latent": Analog(as_complex(self.encoder(padded).float().flatten(1)))}, state, aux
        conditions = self._conditions(csi.snr_db.to(frames.device), layout, frames)
        blocks = F.pixel_unshuffle(padded, self.config.block).contiguous(memory_format=torch.channels_last)
        y = self.encoder(blocks, conditions)
        y = y.unflatten(1, (-1, 2)).movedim(2, -1)[:, layout.sent[::2].to(y.device)]  # (B, pairs, 2)
        pilots = torch.ones(y.shape[0], self.config.pilots, 2, device=y.device)
        x = torch.view_as_complex(torch.cat([pilots, y], 1).contiguous())
        aux = {"reference_mse": reference_mse(csi.snr_db.to(x.device), state.cbr)} if self.training else {}
        return {"latent": Analog(x)}, state, aux

    def decode(
        self, received: Received, state: Format, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, Format, Aux]:
        rx = received["latent"]
        assert isinstance(rx, RxAnalog)
        layout = self.layout(state.height, state.width, state.cbr)
        x, noise_var = rx.equalised()
        if isinstance(self.config, PaperConfig):
            blocks = as_real(x).reshape(-1, *layout.sent.shape)
            frames = self.decoder(blocks)
        else:
            frames = self._decode_small(x, noise_var, layout)
        frames = frames[..., : state.height, : state.width].float()
        if not self.training:
            frames = frames.clamp(0, 1)
        return Decoded(frames=frames.unflatten(0, (-1, n_frames))), state, {}

    def _decode_small(self, x: Tensor, noise_var: Tensor, layout: Layout) -> Tensor:
        assert isinstance(self.config, SmallConfig)
        p = self.config.pilots
        weight = 1 / noise_var[:, :p]
        # The transmitter's pilots are 1 + 1j before normalisation: their mean tells the amplitude that it removed.
        amplitude = ((x[:, :p].real + x[:, :p].imag) / 2 * weight).sum(1) / weight.sum(1)
        amplitude = amplitude.clamp_min(0.05)[:, None]
        pairs = torch.view_as_real(x[:, p:] / amplitude)
        noise = (noise_var[:, p:] / 2 / amplitude.square())[..., None].expand_as(pairs)
        batch, device = x.shape[0], x.device
        sent = layout.sent[::2].to(device)
        z = torch.zeros(batch, *sent.shape, 2, device=device)
        nv = torch.full_like(z, 1e6)
        z[:, sent], nv[:, sent] = pairs, noise
        z, nv = (t.movedim(-1, 2).flatten(1, 2) for t in (z, nv))
        snr_db = -10 * noise_var[:, p:].log10().mean(1)
        conditions = self._conditions(snr_db, layout, z)
        return self.decoder(z.contiguous(memory_format=torch.channels_last), nv, conditions)

    def _conditions(self, snr_db: Tensor, layout: Layout, like: Tensor) -> Conditions:
        snr = (snr_db.clamp(-10, 40) / 20).to(like.device)
        if snr.shape[0] != like.shape[0]:
            snr = snr.repeat_interleave(like.shape[0] // snr.shape[0])
        vector = torch.stack([snr, torch.full_like(snr, layout.rate)], 1)
        h, w = layout.sent.shape[1:]
        return Conditions(vector, vector[:, :, None, None].expand(-1, -1, h, w))

    # -- training -------------------------------------------------------------------------------------------------------

    def initialise(self, frames: Tensor) -> None:
        """Start as the closed-form KLT code of ``frames`` (N, 3, H, W): eigenvectors of the block covariance, gains lambda^(-1/4)."""
        if not isinstance(self.config, SmallConfig):
            return
        blocks = F.pixel_unshuffle(frames.float(), self.config.block).movedim(1, -1).flatten(0, -2).double()
        mean = blocks.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((blocks - mean).T))
        values, vectors = values.flip(0).clamp_min(1e-8), vectors.flip(1).T
        L = self.config.latents
        gain = values[:L] ** -0.25
        gain = gain / (gain.square() * values[:L]).mean().sqrt()  # unit power per coefficient on average
        encoder, decoder = self.encoder, self.decoder
        assert isinstance(encoder, SmallEncoder)
        assert isinstance(decoder, SmallDecoder)
        with torch.no_grad():
            encoder.mean.copy_(mean)
            decoder.mean.copy_(mean)
            encoder.whiten.copy_(gain * values[:L].sqrt())
            encoder.analysis.weight.copy_((gain[:, None] * vectors[:L])[:, :, None, None])
            decoder.synthesis.weight.copy_((vectors[:L] / gain[:, None]).T[:, :, None, None])
            decoder.log_variance.copy_((gain.square() * values[:L]).log())

    def lr_scale(self, parameter: str) -> float:
        return 0.1 if "analysis" in parameter or "synthesis" in parameter else 1.0

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """Mean over the batch of MSE^p, each divided by what the condition costs, so that every SNR and rate counts.

        The divisor is the distortion of an ideal code whose rate is the channel's capacity at that SNR and CBR, up to a constant.
        ``stage["power"]`` is p, 0.5 by default: between MSE (p = 1), which the busiest pictures own, and PSNR (p -> 0).
        """
        result = run[0]
        assert result.decoded.frames is not None
        mse = (result.decoded.frames - result.step.frames).square().flatten(1).mean(1)
        p = float(stage.get("power", 0.5))
        return {"loss": (mse / result.aux["reference_mse"]).pow(p).mean(), "psnr_rgb_db": (-10 * torch.log10(mse.detach() + 1e-10)).mean()}


def reference_mse(snr_db: Tensor, cbr: float) -> Tensor:
    """A rough law of how the error of this family falls with SNR and rate, (B,); only its shape matters."""
    capacity = torch.log2(1 + 10 ** (snr_db / 10)) * cbr
    return 0.004 * (1 + capacity / 0.03) ** -1.1


CONFIGS: dict[str, SmallConfig | PaperConfig] = {"small": SmallConfig(), "paper": PaperConfig()}


def make(preset: str, condition: str) -> DeepJscc:
    """Build a preset with fresh weights."""
    if preset not in CONFIGS:
        raise UnknownNameError("preset of deepjscc", preset, CONFIGS)
    return DeepJscc(CONFIGS[preset])


SPEC = SystemSpec(
    name="deepjscc",
    summary="deep joint source-channel coding, frame by frame (small: one checkpoint for all rates and SNRs)",
    kind="analog",
    make=make,
    paper="Bourtsoulatze, Kurka, Gündüz 2019; Xu et al. 2021 (ADJSCC)",
    presets=tuple(CONFIGS),
    trained=True,
    picture=True,
)

# Departures from the papers
# - small: convolutions work on the grids of 16x16 and 8x8 blocks instead of at full, half and quarter resolution; residual blocks with
#   GELU instead of PReLU/GDN stacks; one network serves all rates by sending the first c coefficients.
# - small: both halves start as a closed-form linear code (KLT, LMMSE) and learn what to add.
# - small: the root of MSE, divided by what SNR and rate cost, instead of MSE: one network serves all SNRs and rates.
# - small: pilots carry the amplitude that power normalisation removes; ADJSCC leaves the network to guess it. They are charged.
# - Power is normalised per frame by the link, over what is really sent.
