"""g_s of preset ``small`` of DVST: the network in the reference loops of both ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.block_classes import BLOCK, DIMS
from semcast.layers.residual import Conditions, ResidualBlock, zero_conv
from semcast.systems.dvst.config import SmallConfig


class Synthesis(nn.Module):
    """g_s: the coded difference and the context picture -> picture; the ablation without context restores the difference."""

    def __init__(self, config: SmallConfig, sees_context: bool = True) -> None:
        super().__init__()
        self.sees_context = sees_context
        fine = config.fine_width
        self.embed = nn.Embedding(config.classes + 1, 4 * config.embedding)
        self.look = nn.Conv2d(2 * DIMS // 4 + config.embedding, fine, 1)
        self.fine = nn.ModuleList(ResidualBlock(fine, fine) for _ in range(config.fine_blocks))
        self.head = zero_conv(fine, DIMS // 4)

    def forward(self, difference: Tensor, context: Tensor, classes: Tensor, conditions: Conditions) -> Tensor:
        """Difference and context, both (B, 3, 16 h, 16 w), and classes (B, h, w) -> (B, 3, 16 h, 16 w)."""
        before = F.pixel_unshuffle(context, BLOCK // 2)
        halves = before + F.pixel_unshuffle(difference, BLOCK // 2)
        told = F.pixel_shuffle(self.embed(classes).movedim(-1, 1), 2)
        seen = halves - 0.5 if self.sees_context else torch.zeros_like(halves)
        fine = self.look(torch.cat([seen, 8 * (halves - before), told], 1))
        for block in self.fine:
            fine = block(fine, conditions.vector)
        residual = self.head(F.gelu(fine))
        return F.pixel_shuffle(halves + residual.float(), BLOCK // 2)
