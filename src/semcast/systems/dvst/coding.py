"""One link of DVST: nonlinear transform, entropy model, rate allocation and deep JSCC (fig. 4).

The primary link has all of it; the motion link is the same without contexts.

    x, c ─▶ g_a ─▶ y ─┬─▶ f_e(., d) ─▶ s ─▶ channel ─▶ s_hat ─▶ f_d(., d) ─▶ y_hat ─▶ g_s(., c) ─▶ x_hat
                      └─▶ -log P ─▶ x eta(d) ─▶ k ─▶ Q ──▲
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.gdn import GDN, ChannelNorm
from semcast.layers.index_table import IndexTable
from semcast.layers.rate_choice import Choice, TokenDecoder, TokenEncoder, choose, sent_mask
from semcast.layers.swin import Merge, Split
from semcast.systems.dvst.config import PaperConfig
from semcast.systems.dvst.contexts import ResidualBlock
from semcast.systems.dvst.prior import EntropyModel


class Analysis(nn.Sequential):
    """g_a: (B, inputs, H, W) -> y (B, C, H / 16, W / 16)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, width, 5, 2, 2), GDN(width),
            nn.Conv2d(width, width, 5, 2, 2),
        )  # fmt: skip


class Synthesis(nn.Module):
    """g_s: y (B, C, h, w), with c (B, C', 16 h, 16 w) where there is one -> (B, outputs, 16 h, 16 w)."""

    def __init__(self, width: int, outputs: int, context_width: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(width, width, 5, 2, 2, 1), GDN(width, inverse=True),
            nn.ConvTranspose2d(width, width, 5, 2, 2, 1), GDN(width, inverse=True),
            nn.ConvTranspose2d(width, width, 5, 2, 2, 1), GDN(width, inverse=True),
            nn.ConvTranspose2d(width, width, 5, 2, 2, 1),
        )  # fmt: skip
        self.fuse = nn.Sequential(
            nn.Conv2d(width + context_width, width, 3, padding=1), ResidualBlock(width), nn.Conv2d(width, outputs, 3, padding=1)
        )

    def forward(self, y: Tensor, context: Tensor | None) -> Tensor:
        x = self.up(y)
        return self.fuse(x if context is None else torch.cat([x, context.to(x.dtype)], 1)).float()


class Fusion(nn.Sequential):
    """Concatenation of a map with its codeword context, brought to C channels."""

    def __init__(self, width: int, contexts: int) -> None:
        super().__init__(nn.Conv2d(width + contexts, width, 3, padding=1), ChannelNorm(width), nn.LeakyReLU())

    def join(self, y: Tensor, context: Tensor | None) -> Tensor:
        """y (B, C, h, w) and d (B, C, h, w) or None -> (B, C, h, w)."""
        return self.forward(y if context is None else torch.cat([y, context.to(y.dtype)], 1))


class CodedLink(nn.Module):
    """g_a, the entropy model, eta, f_e, f_d and g_s of one link.

    Args:
        config: sizes. inputs, outputs: channels before g_a (contexts left out) and after g_s. width, token_width: C and M.
        values: V. context_width: channels of c; 0 for a link without contexts.
    """

    def __init__(
        self,
        config: PaperConfig,
        *,
        inputs: int,
        outputs: int,
        width: int,
        token_width: int,
        values: tuple[int, ...],
        context_width: int,
    ) -> None:
        super().__init__()
        self.eta, self.adapts = config.eta, len(values) > 1
        contexts = width if context_width else 0
        self.g_a, self.g_s = Analysis(inputs + context_width, width), Synthesis(width, outputs, context_width)
        self.prior = EntropyModel(width, config.hyper_width, context_width)
        if self.adapts:
            self.allocate = nn.Sequential(Merge(width, width), nn.LeakyReLU(), nn.Conv2d(width, 1, 1))
        self.fuse_e = Fusion(width, contexts)
        self.merge = Merge(width, token_width)
        code = values, config.depth, config.heads, config.window
        self.f_e, self.f_d = TokenEncoder(token_width, *code), TokenDecoder(token_width, *code)
        self.split = Split(token_width, width)
        self.fuse_d, self.out_d = Fusion(width, contexts), nn.Conv2d(width, width, 3, padding=1)
        self.table = IndexTable(len(values))

    @property
    def values(self) -> Tensor:
        """V as (V,) float32."""
        return self.f_e.values

    def analyse(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """y = g_a(x | c), eqs. (3) and (12)."""
        return self.g_a(x if context is None else torch.cat([x, context.to(x.dtype)], 1)).float()

    def symbols_wanted(self, bits: Tensor, guide: Tensor) -> Tensor:
        """k_i of every token, eqs. (10), (11) and (14).

        Args:
            bits: r_i (B, h / 2, w / 2). guide: what gives eta_i (B, C, h, w): the codeword context, or motion's own y.
        """
        if not self.adapts:
            return bits.detach() * 0 + self.values[0]
        eta = self.eta * 2 * torch.sigmoid(self.allocate(guide)[:, 0].float())
        return eta * bits  # eqs. (11), (14)

    def choose(self, k: Tensor) -> Choice:
        """Q(k) in V."""
        return choose(k, self.values)

    def encode(self, y: Tensor, context: Tensor | None, choice: Choice) -> Tensor:
        """s = f_e(y | d), eq. (4): (B, tokens, V_max), zero past a token's own."""
        return self.f_e(self.merge(self.fuse_e.join(y, context)), choice)

    def decode(self, symbols: Tensor, context: Tensor | None, rates: Tensor) -> Tensor:
        """y_hat = f_d(s_hat | d), eq. (5)."""
        y = self.split(self.f_d(symbols, rates))
        return self.out_d(self.fuse_d.join(y, context)).float()

    def sent(self, rates: Tensor) -> Tensor:
        """Which symbols of a token are sent: (B, h, w) -> (B, tokens, V_max)."""
        return sent_mask(rates, self.values)


def primary_link(config: PaperConfig) -> CodedLink:
    """Frames, given contexts; or residuals without."""
    return CodedLink(
        config, inputs=3, outputs=3, width=config.width, token_width=config.token_width, values=config.primary_rates,
        context_width=config.context_width if config.context else 0,
    )  # fmt: skip


def motion_link(config: PaperConfig) -> CodedLink:
    """Flow in pixels, without contexts."""
    return CodedLink(
        config, inputs=2, outputs=2, width=config.motion_width, token_width=config.motion_token_width,
        values=config.motion_rates, context_width=0,
    )  # fmt: skip


def no_motion(frames: Tensor) -> Tensor:
    """Zero flow for (B, C, H, W)."""
    return F.pad(torch.zeros_like(frames[:, :1]), (0, 0, 0, 0, 0, 1))
