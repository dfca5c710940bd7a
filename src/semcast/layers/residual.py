"""Convolutional trunk on a grid of blocks, modulated by the channel state: what learns the residual of a closed-form code."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.blocks import AttentionFeature


class Conditions(NamedTuple):
    """What modulates a network: (B, k) numbers such as SNR / 20 dB and log2 of uses per block / 7, and the same as maps."""

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
    """1x1 conv - residual blocks: (B, in, h, w) -> (B, width, h, w)."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs + 2, width, 1)
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
