"""Encoders and decoders of GOS-VAE: the published shallow CNN, and a light one for a weak sender."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.residual import zero_conv


@dataclass(frozen=True)
class VaeConfig:
    """What all sizes share.

    Attributes:
        r: a latent stands for r x r pixels; a power of two. codewords: K. depth: D, length of a codeword.
        planes: codewords per latent place. learned: whether the codebook is; else it is ``codewords`` even steps of one number.
        patch_gan: width of a discriminator for adversarial training; 0 for none.
    """

    r: int = 4
    codewords: int = 512
    depth: int = 32
    planes: int = 1
    learned: bool = True
    patch_gan: int = 0


@dataclass(frozen=True)
class SmallConfig(VaeConfig):
    """The light size: pixels are folded into channels first, and nearly all convolutions run on the latent grid.

    Attributes:
        width, blocks: channels and residual blocks of the encoder. decoder_width, decoder_blocks: of the decoder, on the latent
            grid. fine_width, fine_blocks: of the decoder at half the picture's size.
    """

    width: int = 48
    blocks: int = 2
    decoder_width: int = 64
    decoder_blocks: int = 3
    fine_width: int = 32
    fine_blocks: int = 2


@dataclass(frozen=True)
class PaperConfig(VaeConfig):
    """The published sizes: 0.70 M parameters, and 7.3 M with wide residual blocks and 12,000 codewords (the dagger).

    Attributes:
        hidden: channels. residual: channels inside a residual block. blocks: residual blocks of either end.
        plain: residual blocks of He et al. with two 3x3 convolutions; else 3x3 and 1x1, as VQ-VAE has them.
    """

    depth: int = 64
    hidden: int = 128
    residual: int = 32
    blocks: int = 2
    plain: bool = False


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (B, C, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class SmallEncoder(nn.Module):
    """z_e: a linear projection of r x r patches, and what a network adds to it. (B, 3, H, W) -> (B, planes D, H/r, W/r)."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.r, pixels, channels = config.r, 3 * config.r**2, config.planes * config.depth
        self.linear = nn.Conv2d(pixels, channels, 1)
        self.stem = nn.Conv2d(pixels, config.width, 1)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.blocks))
        self.head = zero_conv(config.width, channels)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x - 0.5, self.r)
        y = self.stem(patches)
        for block in self.blocks:
            y = block(y)
        return self.linear(patches) + self.head(F.relu(y))


class SmallDecoder(nn.Module):
    """The projection's transpose, and what a network adds to it: (B, planes D, h, w) -> (B, 3, r h, r w)."""

    def __init__(self, config: SmallConfig) -> None:
        super().__init__()
        self.r, channels, width = config.r, config.planes * config.depth, config.decoder_width
        self.linear = nn.Conv2d(channels, 3 * config.r**2, 1)
        self.stem = nn.Conv2d(channels, width, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(config.decoder_blocks))
        self.rise, self.between = nn.ModuleList(), nn.ModuleList()
        doublings = int(math.log2(config.r)) - 1
        for k in range(doublings):
            target = config.fine_width if k == doublings - 1 else max(width // 2, config.fine_width)
            self.rise.append(nn.Conv2d(width, 4 * target, 1))
            blocks = config.fine_blocks if k == doublings - 1 else 1
            self.between.append(nn.Sequential(*(Block(target) for _ in range(blocks))))
            width = target
        self.head = zero_conv(width, 12)

    def forward(self, z: Tensor) -> Tensor:
        y = self.stem(z)
        for block in self.blocks:
            y = block(y)
        for rise, between in zip(self.rise, self.between, strict=True):
            y = between(F.pixel_shuffle(rise(F.relu(y)), 2))
        return F.pixel_shuffle(self.linear(z), self.r) + F.pixel_shuffle(self.head(F.relu(y)), 2) + 0.5


class _Residual(nn.Module):
    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(config.hidden, config.residual, 3, padding=1)
        size = 3 if config.plain else 1
        self.conv2 = nn.Conv2d(config.residual, config.hidden, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class PaperEncoder(nn.Module):
    """Strided convolutions, one per halving, then residual blocks: (B, 3, H, W) -> (B, planes D, H/r, W/r)."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        halvings = int(math.log2(config.r))
        widths = [3, *[config.hidden // 2] * (halvings > 1), *[config.hidden] * max(1, halvings - 1)]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.join = nn.Conv2d(config.hidden, config.hidden, 3, padding=1)
        self.blocks = nn.ModuleList(_Residual(config) for _ in range(config.blocks))
        self.head = nn.Conv2d(config.hidden, config.planes * config.depth, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x - 0.5
        for down in self.down:
            y = F.relu(down(y))
        y = self.join(y)
        for block in self.blocks:
            y = block(y)
        return self.head(F.relu(y))


class PaperDecoder(nn.Module):
    """The encoder in reverse: (B, planes D, h, w) -> (B, 3, r h, r w)."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        halvings = int(math.log2(config.r))
        self.join = nn.Conv2d(config.planes * config.depth, config.hidden, 3, padding=1)
        self.blocks = nn.ModuleList(_Residual(config) for _ in range(config.blocks))
        widths = [*[config.hidden] * max(1, halvings - 1), *[config.hidden // 2] * (halvings > 1), 3]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in pairwise(widths))

    def forward(self, z: Tensor) -> Tensor:
        y = self.join(z)
        for block in self.blocks:
            y = block(y)
        for up in self.up:
            y = up(F.relu(y))
        return y + 0.5


class PatchDiscriminator(nn.Module):
    """Real or made, patch by patch (VQ-GAN): (B, 3, H, W) -> (B, 1, H/4, W/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, 1, 1, bias=False),  # a bias would not tell real from made
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(2 * x - 1)
        return logits
