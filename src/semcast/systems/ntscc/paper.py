"""NTSCC with the published sizes: nonlinear transform source-channel coding of pictures.

J. Dai, S. Wang, K. Tan, Z. Si, X. Qin, K. Niu, P. Zhang, "Nonlinear transform source-channel coding for semantic
communications", IEEE J. Sel. Areas Commun. 40(8), 2022.

    x ─▶ g_a ─▶ y ─┬────────────────▶ f_e ─▶ s ─▶ channel ─▶ s_hat ─▶ f_d ─▶ y_hat ─▶ g_s ─▶ x_hat
                   │                   ▲ k_i                           ▲
                   └▶ h_a ─▶ z ─▶ h_s ─┴▶ mean, scale ─▶ -log P(y_i|z)  │
                                   index of k_i in V ─▶ range coder ─▶ packet
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from semcast.errors import BudgetError
from semcast.layers.block_classes import side_margin_db
from semcast.layers.blocks import pad_to
from semcast.layers.entropy import FactorisedDensity, gaussian_bits, quantise
from semcast.layers.hyperprior import HyperAnalysis, HyperSynthesis, positive
from semcast.layers.index_table import IndexTable, decode_maps, encode_maps
from semcast.layers.rate_choice import Choice, TokenDecoder, TokenEncoder, choose, largest_scale, sent_mask
from semcast.layers.swin import Merge, Split, SwinStack
from semcast.layers.symbols import amplitude_of, amplitude_steps, equalised, pack, unpack, uses_of
from semcast.systems.base import Side, System
from semcast.types import Aux, Budget, Csi, Decoded, Digital, Format, Packet, Payload, Received, RxProxy, Step, StepResult

STRIDE = 16
HEAD = "<H"  # amplitude, in steps of a hundredth of a decibel


@dataclass(frozen=True)
class PaperConfig:
    """The published network: four Swin stages to stride 16, one token per 16x16 pixels.

    Attributes:
        width: channels of every stage and of the latent (C). depths: Swin blocks of the stages of g_a; g_s has them in reverse.
        heads, window: of g_a and g_s. hyper_width: channels of z. code_depth, code_heads, code_window: Swin blocks of f_e, f_d.
        values: V, real symbols that a token can get. eta: real symbols per bit. send_hyperprior: z crosses the air as well, and
            f_d sees the mean and scale that it gives.
        rate_weight: lambda, on real symbols per pixel, against the MSE on the scale of 0 to 255.
    """

    width: int = 256
    depths: tuple[int, ...] = (1, 1, 2, 4)
    heads: int = 8
    window: int = 8
    hyper_width: int = 192
    code_depth: int = 4
    code_heads: int = 8
    code_window: int = 16
    values: tuple[int, ...] = (16, 32, 48, 64, 80, 96, 102, 118, 134, 160, 186, 192, 208, 224, 240, 256)
    eta: float = 0.2
    send_hyperprior: bool = False
    rate_weight: float = 64.0


class Analysis(nn.Sequential):
    """g_a: every stage halves the sides and attends: (B, 3, H, W) -> (B, C, H / 16, W / 16)."""

    def __init__(self, config: PaperConfig) -> None:
        widths = (3, *[config.width] * len(config.depths))
        super().__init__(
            *(
                nn.Sequential(Merge(before, config.width), SwinStack(config.width, depth, config.heads, config.window))
                for before, depth in zip(widths, config.depths, strict=False)
            )
        )


class Synthesis(nn.Sequential):
    """g_s, the mirror of g_a: (B, C, h, w) -> (B, 3, 16 h, 16 w)."""

    def __init__(self, config: PaperConfig) -> None:
        after = (*[config.width] * (len(config.depths) - 1), 3)
        super().__init__(
            *(
                nn.Sequential(SwinStack(config.width, depth, config.heads, config.window), Split(config.width, out))
                for out, depth in zip(after, reversed(config.depths), strict=True)
            )
        )


class HyperTable(nn.Module):
    """What a hyperprior that is sent is coded under: whole frequencies of -limit .. limit per channel, stored with the model.

    The density's own floats would not be the same on every machine.
    """

    def __init__(self, channels: int, limit: int = 15) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("frequencies", torch.ones(channels, 2 * limit + 1, dtype=torch.int32))

    frequencies: Tensor

    @torch.no_grad()
    def refresh(self, density: FactorisedDensity) -> None:
        """Take the frequencies of a density."""
        span = torch.arange(-self.limit, self.limit + 1, device=self.frequencies.device).double()
        p = density.probability(span.expand(1, self.frequencies.shape[0], 1, -1))[0, :, 0]
        self.frequencies.copy_(1 + (p * 60000).floor().to(torch.int32))

    def encode(self, z: Tensor) -> bytes:
        """(1, N, h, w) of integers -> bytes."""
        import constriction

        table = self.frequencies.cpu().numpy().astype(np.float64)
        encoder = constriction.stream.queue.RangeEncoder()
        for row, channel in zip(table / table.sum(1, keepdims=True), z[0], strict=True):
            symbols = (channel + self.limit).clamp(0, 2 * self.limit).flatten().cpu().numpy().astype(np.int32)
            encoder.encode(symbols, constriction.stream.model.Categorical(row, perfect=False))
        return encoder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")

    def decode(self, data: bytes, h: int, w: int) -> Tensor | None:
        """The inverse of :meth:`encode`; None where the bytes cannot be such a map."""
        import constriction

        words = np.frombuffer(data + bytes(-len(data) % 4 + 8), dtype="<u4").astype(np.uint32)
        decoder = constriction.stream.queue.RangeDecoder(words)
        table = self.frequencies.cpu().numpy().astype(np.float64)
        try:
            rows = [
                decoder.decode(constriction.stream.model.Categorical(row, perfect=False), h * w)
                for row in table / table.sum(1, keepdims=True)
            ]
        except (AssertionError, ValueError):
            return None
        return torch.from_numpy(np.stack(rows).astype(np.float32)).reshape(1, -1, h, w) - self.limit


class NtsccState(NamedTuple):
    """One side: the session header, and at the receiver the last frame, which a lost packet freezes."""

    fmt: Format
    last: Tensor | None = None


class NtsccPaper(System):
    """NTSCC of single frames: one analog stream ``latent``, and a packet ``rates`` that says how to read it.

    In use the scale from bits to symbols follows from the budget; in training it is ``config.eta``, and lambda sets the rate.
    """

    name = "ntscc"
    preset = "paper"
    frames_per_step = 1

    def __init__(self, config: PaperConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PaperConfig()
        C, N = config.width, config.hyper_width
        self.g_a, self.g_s = Analysis(config), Synthesis(config)
        self.h_a, self.h_s = HyperAnalysis(C, N), HyperSynthesis(N, 2 * C)
        self.density = FactorisedDensity(N)
        code = config.values, config.code_depth, config.code_heads, config.code_window
        self.f_e, self.f_d = TokenEncoder(C, *code), TokenDecoder(C, *code)
        self.index_table = IndexTable(len(config.values))
        if config.send_hyperprior:
            self.hyper_table = HyperTable(N)
            self.refine = nn.Conv2d(3 * C, C, 1)

    def train(self, mode: bool = True) -> NtsccPaper:
        """As any module; the table that a sent hyperprior is coded under follows the density when training pauses."""
        if self.config.send_hyperprior and self.training and not mode:
            self.hyper_table.refresh(self.density)
        super().train(mode)
        return self

    def start(self, fmt: Format, side: Side) -> NtsccState:
        return NtsccState(fmt)

    # -- transmitter ----------------------------------------------------------------------------------------------------

    def encode(
        self, step: Step, state: NtsccState, csi: Csi, budget: Budget, *, generator: torch.Generator
    ) -> tuple[Payload, NtsccState, Aux]:
        frames = step.frames.flatten(0, 1)
        height, width = frames.shape[-2:]
        y = self.g_a(pad_to(frames, STRIDE)).float()
        z = self.h_a(y)
        z_bar = quantise(z, self.training, generator)
        if self.config.send_hyperprior and not self.training:
            z_bar = z_bar.clamp(-self.hyper_table.limit, self.hyper_table.limit)
        mean, scale = self._prior(z_bar, y)
        y_bar = quantise(y, self.training, generator)
        bits = gaussian_bits(y_bar, mean, scale).sum(1)  # -log2 P(y_i | z), summed over the channels of a token
        if self.training:
            return self._encode_training(y, y_bar, z_bar, bits, state, (height, width))
        packet, index = self._plan(bits, z_bar, csi, budget)
        (latent, amplitude), _ = self._symbols(y, Choice(index, self.f_e.values[index]))
        data = struct.pack(HEAD, int(amplitude_steps(amplitude)[0])) + packet
        payload: Payload = {"rates": Digital([[Packet(data, mcs=self._side_mcs(budget, csi))]])}
        return payload if latent is None else {**payload, "latent": latent}, state, {}

    def _prior(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.h_s.expand(z, *y.shape[-2:]).float().chunk(2, 1)
        return mean, positive(raw, 0.11)

    def _symbols(self, y: Tensor, choice: Choice, rate: Tensor | None = None) -> tuple[Any, Tensor]:
        """The analog stream with its amplitude, and which symbols are sent."""
        sent = sent_mask(choice.rates, self.f_e.values)
        return pack(self.f_e(y, choice), sent, rate), sent

    def _plan(self, bits: Tensor, z: Tensor, csi: Csi, budget: Budget) -> tuple[bytes, Tensor]:
        """The most that the budget buys: bytes of side information, and the index of every token's rate (1, h, w)."""
        tail = self.hyper_table.encode(z) if self.config.send_hyperprior else b""
        sizes = self.f_e.values

        def at(scale: float) -> tuple[bytes, Tensor]:
            index = choose(self.config.eta * scale * bits, sizes).rates
            maps = encode_maps([index[0].cpu().numpy()], [self.index_table])
            return (struct.pack("<H", len(maps)) + maps + tail if tail else maps), index

        def cost(scale: float) -> int:
            side, index = at(scale)
            packet = budget.uses_for_packets([struct.calcsize(HEAD) + len(side)], self._side_mcs(budget, csi))
            return packet + max(1, uses_of(int(sizes[index].sum())))

        scale = largest_scale(cost, budget.uses)
        if scale is None:
            need = cost(2.0**-20) / max(budget.uses, 1) * budget.cbr
            raise BudgetError(f"ntscc:paper needs a CBR of about {need:.4f} for this picture, got {budget.cbr:g}; raise --cbr")
        return at(scale)

    @staticmethod
    def _side_mcs(budget: Budget, csi: Csi) -> str | None:
        return budget.robust_mcs(side_margin_db(float(csi.snr_db.mean())))

    def _encode_training(
        self, y: Tensor, y_tilde: Tensor, z_tilde: Tensor, bits: Tensor, state: NtsccState, size: tuple[int, int]
    ) -> tuple[Payload, NtsccState, Aux]:
        height, width = size
        choice = choose(self.config.eta * bits, self.f_e.values)  # k_i = eta * -log P(y_i | z)
        z_bits = self.density.bits(z_tilde).flatten(1).sum(1)
        symbols = choice.value.flatten(1).sum(1)
        (latent, amplitude), _ = self._symbols(y, choice, symbols / 2)
        self.index_table.observe(choice.rates)
        maps = choice.rates.cpu().numpy()
        told = [amplitude[:, None], choice.rates.flatten(1).to(y)]
        side_bits = torch.tensor([[16 + self.index_table.bits(one)] for one in maps])
        if self.config.send_hyperprior:
            told.append(z_tilde.flatten(1))
            side_bits = side_bits + z_bits.detach().cpu()[:, None]
        payload: Payload = {"rates": Digital(proxy=torch.cat(told, 1)[:, None], est_bits=side_bits)}
        if latent is not None:
            payload = {**payload, "latent": latent}
        # Symbols of the latent, and what z would take at the same exchange: unpaid, the bits of y would hide in z.
        rate = (symbols + self.config.eta * z_bits) / (height * width)
        pretrained = self.g_s(y_tilde)[..., :height, :width].float()
        return payload, state, {"rate": rate, "pretrained": pretrained, "symbols": symbols.detach()}

    # -- receiver -------------------------------------------------------------------------------------------------------

    def decode(
        self, received: Received, state: NtsccState, n_frames: int, *, generator: torch.Generator
    ) -> tuple[Decoded, NtsccState, Aux]:
        fmt = state.fmt
        h, w = math.ceil(fmt.height / STRIDE), math.ceil(fmt.width / STRIDE)
        side = received.get("rates")
        told = self._read(side, h, w)
        frames = None
        if told is not None:
            amplitude, index, z = told
            sent = sent_mask(index, self.f_d.values)
            symbols = unpack(equalised(received.get("latent")), sent, amplitude, exact=not self.training)
            if symbols is not None:
                y = self.f_d(symbols, index)
                if z is not None:
                    mean, scale = self._prior(z, y)
                    y = self.refine(torch.cat([y, mean.to(y), scale.to(y)], 1))
                frames = self.g_s(y)[..., : fmt.height, : fmt.width].float()
        if frames is None:
            device = self.f_d.rate_tokens.device
            last = state.last if state.last is not None else torch.full((1, 3, fmt.height, fmt.width), 0.5, device=device)
            return Decoded(frames=last[:, None], concealed=1), state, {}
        if self.training:
            aux: Aux = {"arrived": side.arrived[:, 0].float()} if isinstance(side, RxProxy) else {}
            return Decoded(frames=frames.unflatten(0, (-1, n_frames))), state, aux
        frames = frames.clamp(0, 1)
        return Decoded(frames=frames.unflatten(0, (-1, n_frames))), NtsccState(fmt, frames[-1:]), {}

    def _read(self, side: object, h: int, w: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Amplitude (B,), indices (B, h, w) and z where it is sent; None where the packet was lost or is damaged."""
        size = math.ceil(h / 4), math.ceil(w / 4)
        if isinstance(side, RxProxy):
            told = side.proxy[:, 0]
            index = told[:, 1 : 1 + h * w].round().long().reshape(-1, h, w)
            # A packet that was lost reads as noughts; its symbols are there all the same, and its frame does not count.
            z = told[:, 1 + h * w :].reshape(len(told), -1, *size) if self.config.send_hyperprior else None
            return told[:, 0], index, z
        data = side[0][0] if isinstance(side, list) else None
        head = struct.calcsize(HEAD)
        if data is None or len(data) < head:
            return None
        amplitude = amplitude_of(torch.tensor(struct.unpack_from(HEAD, data)))
        body, z = data[head:], None
        if self.config.send_hyperprior:
            if len(body) < 2:
                return None
            cut = 2 + struct.unpack_from("<H", body)[0]
            z = self.hyper_table.decode(body[cut:], *size)
            body = body[2:cut]
            if z is None:
                return None
        maps = decode_maps(body, [(h, w)], [self.index_table])
        if maps is None:
            return None
        device = self.f_d.rate_tokens.device
        return amplitude.to(device), torch.from_numpy(maps[0])[None].to(device), None if z is None else z.to(device)

    # -- training -------------------------------------------------------------------------------------------------------

    def loss(self, run: Sequence[StepResult], goal: str, stage: Mapping[str, Any]) -> dict[str, Tensor]:
        """lambda k + D(x_hat, x) + D(x_tilde, x): rate, what the receiver shows, and the transform without a channel.

        ``stage["rate_weight"]`` replaces lambda; distortion is the MSE on the scale of 0 to 255, rate real symbols per pixel.
        """
        result = run[0]
        assert result.decoded.frames is not None
        frames = result.step.frames.flatten(0, 1)
        shown = result.decoded.frames.flatten(0, 1)
        mse = (shown - frames).square().flatten(1).mean(1)
        transform = (result.aux["pretrained"] - frames).square().flatten(1).mean(1)
        arrived = result.aux.get("arrived", torch.ones_like(mse))
        weight = float(stage.get("rate_weight", self.config.rate_weight))
        loss = (weight * result.aux["rate"] + 255**2 * (mse * arrived + transform)).mean()
        psnr = (-10 * torch.log10(mse.detach() + 1e-10)).mean()
        return {"loss": loss, "psnr_rgb_db": psnr, "symbols_per_pixel": result.aux["rate"].detach().mean()}


# Departures from the paper
# - The amplitude that power normalisation takes away is sent, quantised to a hundredth of a decibel, and charged; in the paper
#   the receiver knows it. Which rate every token got is range-coded under a static table instead of sent as raw bits.
# - V and eta count real symbols, two to a channel use; the paper's figures count the same.
# - In use eta follows from the budget of channel uses, by bisection; the paper has one model per rate.
# - The gradient of the distortion reaches the rates by a soft edge of what is sent (see TokenEncoder).
# - A hyperprior that is sent is coded under whole frequencies taken from the density when training pauses.
