"""The published networks: source encoder and decoder, and the blocks of the channel encoder and decoder.

E_S = SourceEncoder, D_S = SourceDecoder; E_C = blocks and Conv2D-K, D_C = Conv2D and blocks. A block, fig. 2:

    DynamicJSCC [13]:         ResBlock ─────────────▶ SNRMod
    SemAttJSCC:               ResBlock ──▶ SemAtt ──▶ SNRMod
    baseline + convolutions:  ResBlock ▶ ResBlock ──▶ SNRMod
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.systems.sematt.attention import SemAtt

Extra = Literal["", "attention", "convolutions"]
"""What stands between ResBlock and SNRMod."""


@dataclass(frozen=True)
class PaperConfig:
    """The published sizes.

    Attributes:
        extra: what the channel coders have beyond DynamicJSCC. G: pixels along a side of a cell of the latent grid. C: channels
            on it. K: of them that are sent, R = K / (6 G^2): 8 for 1/12, 16 for 1/6. blocks: of channel encoder and decoder.
            classes: M, Cityscapes' 34.
    """

    extra: Extra = ""
    G: int = 4
    C: int = 256
    K: int = 8
    blocks: int = 2
    classes: int = 34

    @property
    def sends_maps(self) -> bool:
        """Whether anything reads them."""
        return self.extra == "attention"


class SNRMod(nn.Module):
    """Channels scaled and shifted by what their means and the channel state say, as DynamicJSCC does.

    Args:
        channels: C. conditions: numbers that describe the channel state, the SNR first.
    """

    def __init__(self, channels: int, conditions: int = 1) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.Linear(channels + conditions, channels), nn.ReLU(), nn.Linear(channels, channels), nn.Sigmoid()
        )
        self.shift = nn.Sequential(nn.Linear(channels + conditions, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        """x (B, C, h, w), conditions (B, conditions) -> (B, C, h, w)."""
        context = torch.cat([x.mean((2, 3)), conditions.to(x.dtype)], 1)
        return x * self.scale(context)[:, :, None, None] + self.shift(context)[:, :, None, None]


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a skip; ``normalised`` puts batch normalisation behind each."""

    def __init__(self, channels: int, normalised: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels) if normalised else nn.Identity()
        self.norm2 = nn.BatchNorm2d(channels) if normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> same."""
        return x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))


class ChannelBlock(nn.Module):
    """ResBlock, what the system adds, SNRMod."""

    def __init__(self, channels: int, classes: int, extra: Extra, conditions: int = 1, normalised: bool = True) -> None:
        super().__init__()
        self.res = ResBlock(channels, normalised)
        self.attention = SemAtt(channels, classes) if extra == "attention" else None
        self.more = ResBlock(channels, normalised) if extra == "convolutions" else None
        self.snr_mod = SNRMod(channels, conditions)

    def forward(self, x: Tensor, classes: Tensor, conditions: Tensor) -> Tensor:
        """x (B, C, h, w), classes (B, h, w), conditions (B, k) -> (B, C, h, w)."""
        x = self.res(x)
        if self.attention is not None:
            x = self.attention(x, classes)
        if self.more is not None:
            x = self.more(x)
        return self.snr_mod(x, conditions)


class SourceEncoder(nn.Sequential):
    """E_S: (B, 3, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, C: int) -> None:
        super().__init__(
            nn.Conv2d(3, C // 4, 7, padding=3), nn.BatchNorm2d(C // 4), nn.ReLU(),
            nn.Conv2d(C // 4, C // 2, 3, 2, 1), nn.BatchNorm2d(C // 2), nn.ReLU(),
            nn.Conv2d(C // 2, C, 3, 2, 1), nn.BatchNorm2d(C), nn.ReLU(),
        )  # fmt: skip


class SourceDecoder(nn.Sequential):
    """D_S: (B, C, H / 4, W / 4) -> (B, 3, H, W) in [0, 1]."""

    def __init__(self, C: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2), nn.Conv2d(C, C // 2, 3, padding=1), nn.BatchNorm2d(C // 2), nn.ReLU(),
            nn.Upsample(scale_factor=2), nn.Conv2d(C // 2, C // 4, 3, padding=1), nn.BatchNorm2d(C // 4), nn.ReLU(),
            nn.Conv2d(C // 4, 3, 5, padding=2), nn.Sigmoid(),
        )  # fmt: skip


class PaperCode(nn.Module):
    """Encoder and decoder of fig. 2. Of the K channels both ends keep the first ``count`` values, channel after channel."""

    told_numbers = 0

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        c = self.config = config
        self.cell = self.multiple = c.G
        self.classes = c.classes
        self.E_S = SourceEncoder(c.C)
        self.E_C = nn.ModuleList(ChannelBlock(c.C, c.classes, c.extra) for _ in range(c.blocks))
        self.project = nn.Conv2d(c.C, c.K, 3, padding=1)
        self.unproject = nn.Conv2d(c.K, c.C, 3, padding=1)
        self.D_C = nn.ModuleList(ChannelBlock(c.C, c.classes, c.extra) for _ in range(c.blocks))
        self.D_S = SourceDecoder(c.C)

    def capacity(self, height: int, width: int) -> int:
        """Real symbols at most, of a padded picture."""
        return self.config.K * (height // self.config.G) * (width // self.config.G)

    def encode(self, frames: Tensor, classes: Tensor, snr_db: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Padded frames (B, 3, H, W), map, SNR (B,) -> real symbols (B, count), and nothing to tell (B, 0)."""
        x = self.E_S(frames)
        for block in self.E_C:
            x = block(x, classes, _conditions(snr_db))
        return self.project(x).float().flatten(1)[:, :count], frames.new_zeros(len(frames), 0)

    def decode(self, symbols: Tensor, noise_var: Tensor, classes: Tensor, told: Tensor, count: int) -> Tensor:
        """Received symbols (B, count) and their noise power (B,) per complex one -> padded frames."""
        h, w = classes.shape[1:]
        x = F.pad(symbols, (0, self.config.K * h * w - count)).unflatten(1, (self.config.K, h, w))
        x = self.unproject(x)
        for block in self.D_C:
            x = block(x, classes, _conditions(-10 * noise_var.log10()))
        return self.D_S(x).float()


def _conditions(snr_db: Tensor) -> Tensor:
    """SNR in units of 20 dB, (B, 1)."""
    return (snr_db.clamp(-10, 40) / 20)[:, None]
