"""Preset ``small``: the same blocks around a code that is closed form, so that they learn what to add to it.

    frame ─(-)─▶ 16x16 blocks ─▶ KLT ─┬────────────────────────────── x gain ─(+)─▶ symbols
            │                        └▶ 8x8: E_C [ResBlock, SemAtt, SNRMod] ─┘
           mean picture(map)
            │
    symbols ─▶ LMMSE ─┬─▶ KLT^T ─(+)─▶ linear picture ──────────────────────────(+)─▶ frame_hat
                      └▶ 8x8: D_C [ResBlock, SemAtt, SNRMod] ◀┘  ─▶ D_S, 1x1 conv ─┘

The closed form knows classes as eq. (5) does: each has a mean and variances, here of the training pictures. They say how power
is shared out (water-filling) and what the receiver expects. DynamicJSCC is the same with a single class, and without SemAtt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.block_classes import BLOCK, DIMS, water_fill
from semcast.layers.residual import zero_conv
from semcast.systems.sematt.networks import ChannelBlock, Extra

CELL = 8
PART = 3 * CELL**2
WEIGHT = 50.0  # blocks that a class's statistics are worth at least of what holds for all


@dataclass(frozen=True)
class SmallConfig:
    """The shipped network.

    Attributes:
        extra: as in the published one. C: channels of the blocks, on the grid of 8x8 cells. latents: real symbols of a 16x16
            block at most; 128 of them are R = 1/12 (K = 8 on the paper's grid), 256 R = 1/6. encoder_blocks, decoder_blocks:
            of the channel coders. classes: M, CamVid's eleven and the unknown; 1 does without a map.
    """

    extra: Extra = ""
    C: int = 128
    latents: int = 320
    encoder_blocks: int = 1
    decoder_blocks: int = 3
    classes: int = 1

    @property
    def sends_maps(self) -> bool:
        """Whether there are classes to tell."""
        return self.classes > 1


class ClosedForm(nn.Module):
    """The linear code that training starts from: KLT, water-filling, LMMSE, given the classes of the cells.

    Args:
        classes: M. latents: coefficients of a block that may be sent.
    """

    basis: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, classes: int, latents: int) -> None:
        super().__init__()
        self.classes, self.latents = classes, latents
        self.register_buffer("basis", torch.eye(DIMS)[:latents].clone())  # rows: eigenvectors, strongest first
        self.register_buffer("mean", torch.full((classes, PART), 0.5))  # of the pixels of a cell
        self.register_buffer("variance", torch.ones(classes, latents))  # of the coefficients of a block, per cell of it

    @torch.no_grad()
    def fit(self, frames: Tensor, maps: Tensor) -> None:
        """Statistics of frames (N, 3, H, W), sides multiples of 16, with maps (N, H / 8, W / 8)."""
        cells = F.pixel_unshuffle(frames, CELL).movedim(1, -1).flatten(0, 2)
        one_hot = F.one_hot(maps.flatten(), self.classes).float()
        count = one_hot.sum(0)[:, None]
        self.mean.copy_((one_hot.T @ cells + WEIGHT * cells.mean(0)) / (count + WEIGHT))
        rows = F.pixel_unshuffle(frames - self.expected(maps), BLOCK).movedim(1, -1).flatten(0, 2)
        _, vectors = torch.linalg.eigh((rows.T @ rows / len(rows)).double())
        self.basis.copy_(vectors.flip(1).T[: self.latents])
        squares = (rows @ self.basis.T).square()
        share = F.avg_pool2d(F.one_hot(maps, self.classes).movedim(-1, 1).float(), 2).movedim(1, -1).flatten(0, 2)
        total = share.T @ squares + WEIGHT * squares.mean(0)
        self.variance.copy_((total / (share.sum(0)[:, None] + WEIGHT)).clamp_min(1e-7))

    def expected(self, maps: Tensor) -> Tensor:
        """E of eq. (5) as a picture: maps (B, h, w) -> (B, 3, 8 h, 8 w)."""
        return F.pixel_shuffle(self.mean[maps].movedim(-1, 1), CELL)

    def variances(self, maps: Tensor) -> Tensor:
        """Var of eq. (5), of the coefficients of every block: maps (B, 2 h, 2 w) -> (B, latents, h, w)."""
        v = self.variance[maps]
        mixed = (v[:, ::2, ::2] + v[:, ::2, 1::2]) + (v[:, 1::2, ::2] + v[:, 1::2, 1::2])  # in one order on any machine
        return mixed.movedim(-1, 1) / 4

    def gains(self, variance: Tensor, snr_db: Tensor, count: int) -> Tensor:
        """Amplitudes (B, latents, h, w) that water-fill SNRs (B,) over the first ``count`` values, and noughts after them."""
        out = []
        for v, snr in zip(variance.flatten(1), snr_db.tolist(), strict=True):
            sent = v[:count]
            power = water_fill(sent, torch.ones_like(sent), 10 ** (-snr / 10))
            out.append(F.pad((power / sent).sqrt(), (0, v.numel() - count)))
        return torch.stack(out).reshape(variance.shape)

    def analyse(self, rest: Tensor) -> Tensor:
        """A picture less what was expected, (B, 3, 16 h, 16 w) -> coefficients (B, latents, h, w)."""
        return F.conv2d(F.pixel_unshuffle(rest, BLOCK), self.basis[:, :, None, None])

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The inverse of :meth:`analyse`, but for what the basis leaves out."""
        return F.pixel_shuffle(F.conv2d(coefficients, self.basis.T[:, :, None, None]), BLOCK)


class SmallCode(nn.Module):
    """Encoder and decoder of the figure above."""

    told_numbers = 2  # SNR that the gains were made for, amplitude that the link takes away
    cell, multiple = CELL, BLOCK

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        c = self.config = config
        self.classes = c.classes
        self.linear = ClosedForm(c.classes, c.latents)

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(ChannelBlock(c.C, c.classes, c.extra, 2, normalised=False) for _ in range(count))

        self.E_S = nn.Conv2d(PART, c.C, 1)
        self.E_C = blocks(c.encoder_blocks)
        self.project = nn.Conv2d(c.C, 2 * c.latents, 2, 2)
        nn.init.zeros_(self.project.weight)
        assert self.project.bias is not None
        nn.init.zeros_(self.project.bias)
        self.unproject = nn.Conv2d(c.latents, 4 * c.C, 1)
        self.look = nn.Conv2d(PART, c.C, 1)
        self.D_C = blocks(c.decoder_blocks)
        self.D_S = zero_conv(c.C, PART)

    def capacity(self, height: int, width: int) -> int:
        """Real symbols at most, of a padded picture."""
        return self.config.latents * (height // BLOCK) * (width // BLOCK)

    def encode(self, frames: Tensor, classes: Tensor, snr_db: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Padded frames (B, 3, H, W), map, SNR (B,) -> real symbols (B, count), and told SNR and amplitude (B, 2)."""
        told_db = (2 * snr_db.clamp(-60, 60)).round() / 2
        rest = frames - self.linear.expected(classes)
        coefficients = self.linear.analyse(rest).float()
        variance = self.linear.variances(classes)
        gains = self.linear.gains(variance, told_db, count)
        conditions = self._conditions(told_db, count, variance)
        x = self.E_S(4 * F.pixel_unshuffle(rest, CELL))
        for block in self.E_C:
            x = block(x, classes, conditions)
        scale, shift = self.project(x).float().chunk(2, 1)
        symbols = (coefficients * gains * torch.exp(scale.clamp(-2, 2)) + shift).flatten(1)[:, :count]
        amplitude = symbols.square().mean(1).clamp_min(1e-9).rsqrt()
        return symbols, torch.stack([told_db, amplitude], 1)

    def decode(self, symbols: Tensor, noise_var: Tensor, classes: Tensor, told: Tensor, count: int) -> Tensor:
        """Received symbols (B, count) at unit power, their noise power (B,) per complex one, what was told -> padded frames."""
        variance = self.linear.variances(classes)
        gains = self.linear.gains(variance, told[:, 0], count) * told[:, 1, None, None, None]
        # Unit power is per complex symbol on the link, per real one in the plan: both are scaled by sqrt(2).
        y = F.pad(symbols * math.sqrt(2), (0, variance[0].numel() - count)).reshape(variance.shape)
        estimate = y * gains * variance / (gains.square() * variance + noise_var[:, None, None, None])
        linear = self.linear.synthesise(estimate).float() + self.linear.expected(classes)
        conditions = self._conditions(-10 * noise_var.log10(), count, variance)
        unit = estimate / variance.mean((2, 3), keepdim=True).sqrt()
        halves = F.pixel_unshuffle(linear, CELL)
        x = F.pixel_shuffle(self.unproject(unit), 2) + self.look(halves - 0.5)
        for block in self.D_C:
            x = block(x, classes, conditions)
        return F.pixel_shuffle(halves + self.D_S(x).float(), CELL)

    def _conditions(self, snr_db: Tensor, count: int, variance: Tensor) -> Tensor:
        """SNR in units of 20 dB, and the logarithm of the real symbols per block, (B, 2)."""
        snr = snr_db.clamp(-10, 40) / 20
        blocks = variance.shape[2] * variance.shape[3]
        return torch.stack([snr, torch.full_like(snr, math.log2(max(count / blocks, 1.0)) / 7)], 1)
