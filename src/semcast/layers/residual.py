"""Convolutional trunk on a grid of blocks, modulated by the channel state: what learns the residual of a closed-form code."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.block_classes import BLOCK, DIMS
from semcast.layers.blocks import AttentionFeature
from semcast.layers.winograd import convolve


class Conditions(NamedTuple):
    """What modulates a network: (B, k) numbers such as SNR / 20 dB and log2 of uses per block / 7, and the same as maps."""

    vector: Tensor
    maps: Tensor


def conditions_of(snr_db: Tensor, uses_per_block: float, classes: Tensor) -> Conditions:
    """SNRs (B,) and the mean uses of a block, beside classes (B, h, w)."""
    snr = (snr_db.clamp(-10, 40) / 20).to(classes.device)
    rate = torch.full_like(snr, math.log2(max(uses_per_block, 0.5)) / 7)
    vector = torch.stack([snr, rate], 1)
    return Conditions(vector, vector[:, :, None, None].expand(-1, -1, *classes.shape[1:]))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, ``hidden`` channels between them, and an AF module (ADJSCC, fig. 3) around a skip:
    (B, width, h, w) -> same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, width, 3, padding=1)
        self.attention = AttentionFeature(width, 2)

    def forward(self, x: Tensor, conditions: Tensor) -> Tensor:
        y = convolve(self.conv2, F.gelu(convolve(self.conv1, x)))
        return x + self.attention(y, conditions)


class Trunk(nn.Module):
    """1x1 conv - residual blocks: (B, in, h, w) -> (B, width, h, w)."""

    def __init__(self, inputs: int, width: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs + 2, width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(width, hidden) for _ in range(blocks))

    def forward(self, x: Tensor, conditions: Conditions) -> Tensor:
        y = self.stem(torch.cat([x, conditions.maps.to(x.dtype)], 1))
        for block in self.blocks:
            y = block(y, conditions.vector)
        return F.gelu(y)


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero: what the network adds to the closed-form code is learned from nothing."""
    conv = nn.Conv2d(inputs, outputs, 1)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class Finish(nn.Module):
    """Last look at a picture, two by two pixels at a time, beside its linear part and what the grid of half blocks found.

    Args:
        features: channels of what was found. width: channels of its own. blocks: residual blocks.
    """

    PIXELS = 2
    HINTS = 8

    def __init__(self, features: int, width: int, blocks: int) -> None:
        super().__init__()
        pixels, scale = 3 * self.PIXELS**2, BLOCK // 2 // self.PIXELS
        self.hint = nn.Conv2d(features, self.HINTS * scale**2, 1)
        self.look = nn.Conv2d(2 * pixels + self.HINTS, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for _ in range(blocks))
        self.head = zero_conv(width, pixels)

    def forward(self, picture: Tensor, linear: Tensor, features: Tensor, conditions: Tensor) -> Tensor:
        """Picture so far and linear picture (B, 3, H, W), features (B, C, H / 8, W / 8), conditions (B, k) -> picture."""
        seen = F.pixel_unshuffle(torch.cat([picture - 0.5, 4 * (picture - linear)], 1), self.PIXELS)
        y = self.look(torch.cat([seen, F.pixel_shuffle(self.hint(features), BLOCK // 2 // self.PIXELS)], 1))
        for block in self.blocks:
            y = block(y, conditions)
        return picture + F.pixel_shuffle(self.head(F.gelu(y)).float(), self.PIXELS)


class Synthesis(nn.Module):
    """What a network adds to the linear picture: on the grid of blocks first, then on that of half blocks beside the picture,
    then, if it has ``finish_blocks``, on that of pixels two by two.

    Args:
        latents: coefficients of a block. classes, embedding: of blocks, and numbers that describe one. width,
            fine_width, finish_width: channels on the grids. hidden, fine_hidden: channels inside their residual blocks. blocks,
            fine_blocks, finish_blocks: residual blocks on them.
    """

    def __init__(
        self,
        *,
        latents: int,
        classes: int,
        embedding: int,
        width: int,
        hidden: int,
        blocks: int,
        fine_width: int,
        fine_hidden: int,
        fine_blocks: int,
        finish_width: int = 0,
        finish_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes, embedding)
        self.trunk = Trunk(latents + embedding, width, hidden, blocks)
        self.expand = nn.Conv2d(width, 4 * fine_width, 1)
        self.look = nn.Conv2d(DIMS // 4, fine_width, 1)
        self.fine = nn.ModuleList(ResidualBlock(fine_width, fine_hidden) for _ in range(fine_blocks))
        self.head = zero_conv(fine_width, DIMS // 4)
        self.finish = Finish(fine_width, finish_width, finish_blocks) if finish_blocks else None

    def forward(self, halves: Tensor, unit: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        """Linear picture as half blocks (B, 192, 2 h, 2 w), coefficients at unit variance (B, L, h, w), classes (B, h, w)
        -> picture (B, 3, 16 h, 16 w)."""
        features = torch.cat([unit, self.embed(classes).movedim(-1, 1)], 1)
        fine = F.pixel_shuffle(self.expand(self.trunk(features, conditions)), 2) + self.look(halves - 0.5)
        for block in self.fine:
            fine = block(fine, conditions.vector)
        fine = F.gelu(fine)
        picture = F.pixel_shuffle(halves + self.head(fine).float(), BLOCK // 2)
        if self.finish is None:
            return picture
        linear = F.pixel_shuffle(halves, BLOCK // 2)
        finished: Tensor = self.finish(picture, linear, fine, conditions.vector)
        return finished


def halved(blocks: Tensor) -> Tensor:
    """Blocks of 16x16 as half blocks: (B, 768, h, w) -> (B, 192, 2 h, 2 w)."""
    batch, _, h, w = blocks.shape
    parts = blocks.reshape(batch, 3, 2, BLOCK // 2, 2, BLOCK // 2, h, w).permute(0, 1, 3, 5, 6, 2, 7, 4)
    return parts.reshape(batch, DIMS // 4, 2 * h, 2 * w)
