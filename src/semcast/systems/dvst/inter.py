"""P-frames: both links and the contexts between them, on either side of the channel (figs. 1 to 3).

What a transmitter refers to (check) and what a receiver refers to (hat) are two :class:`Reference`; the functions that use
them are the same.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semcast.layers.motion import PyramidFlow
from semcast.layers.rate_choice import Choice
from semcast.layers.warp import warp
from semcast.systems.dvst.coding import motion_link, no_motion, primary_link
from semcast.systems.dvst.config import STRIDE, PaperConfig
from semcast.systems.dvst.contexts import CodewordContext, FeatureContext
from semcast.systems.dvst.prior import Estimate


class Reference(NamedTuple):
    """The frame before, (B, 3, H, W) with sides multiples of 32, and its feature map (B, C, H / 16, W / 16)."""

    x: Tensor
    y: Tensor

    def detach(self) -> Reference:
        """The same without a past."""
        return Reference(self.x.detach(), self.y.detach())


class Draft(NamedTuple):
    """A map before it is coded.

    Attributes:
        y: (B, C, h, w). codeword_context: d, or None. estimate: of its entropy. k: real symbols wanted (B, h / 2, w / 2).
    """

    y: Tensor
    codeword_context: Tensor | None
    estimate: Estimate
    k: Tensor

    @property
    def pixels(self) -> int:
        """Of the frame behind it."""
        return self.y.shape[-2] * self.y.shape[-1] * STRIDE**2


class InterCoder(nn.Module):
    """Everything that P-frames need but the channel."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        self.primary = primary_link(config)
        if config.motion_link:
            self.flow = PyramidFlow(config.flow_levels, config.flow_widths)
            self.motion = motion_link(config)
        if config.context:
            self.phi_a, self.phi_s = FeatureContext(config.context_width), FeatureContext(config.context_width)
            self.gamma_e, self.gamma_d = CodewordContext(config.width), CodewordContext(config.width)

    def feature_of(self, x: Tensor) -> Tensor:
        """The feature map of a key frame, which came another way: what g_a makes of it, its own context beside it."""
        if not self.config.context:
            return self.primary.analyse(torch.zeros_like(x))
        return self.primary.analyse(x, self.phi_a(x, no_motion(x)))

    # -- transmitter ----------------------------------------------------------------------------------------------------

    def draft_motion(self, x: Tensor, reference: Tensor, generator: torch.Generator, *, frozen: bool = False) -> Draft:
        """The flow from ``reference`` to ``x``, both (B, 3, H, W), analysed; ``frozen`` learns nothing from it."""
        with torch.no_grad() if frozen else contextlib.nullcontext():
            y = self.motion.analyse(self.flow(x, reference))  # eq. (12)
            estimate = self.motion.prior(y, None, generator)
            return Draft(y, None, estimate, self.motion.symbols_wanted(estimate.bits, y))  # eq. (14)

    def analyse_frame(self, x: Tensor, reference: Tensor, flow: Tensor) -> tuple[Tensor, Tensor | None]:
        """y and c of a frame ``x`` that follows ``reference``, both (B, 3, H, W); without contexts y is of the residual."""
        if not self.config.context:
            return self.primary.analyse(x - warp(reference, flow)), None
        c = self.phi_a(reference, flow)
        return self.primary.analyse(x, c), c  # eq. (3)

    def draft_frame(self, x: Tensor, reference: Reference, flow: Tensor, generator: torch.Generator) -> Draft:
        """What is new in ``x`` (B, 3, H, W), given the transmitter's contexts."""
        y, c = self.analyse_frame(x, reference.x, flow)
        estimate = self.primary.prior(y, c, generator)
        d = self.gamma_e(reference.y, flow) if self.config.context else None
        return Draft(y, d, estimate, self.primary.symbols_wanted(estimate.bits, y if d is None else d))  # eq. (11)

    def motion_symbols(self, draft: Draft, choice: Choice, *, frozen: bool = False) -> Tensor:
        """s^mv (B, tokens, V_max)."""
        with torch.no_grad() if frozen else contextlib.nullcontext():
            return self.motion.encode(draft.y, None, choice)  # eq. (12)

    def frame_symbols(self, draft: Draft, choice: Choice) -> Tensor:
        """s (B, tokens, V_max)."""
        return self.primary.encode(draft.y, draft.codeword_context, choice)  # eq. (4)

    # -- both sides -----------------------------------------------------------------------------------------------------

    def restore_motion(self, symbols: Tensor, rates: Tensor, *, frozen: bool = False) -> Tensor:
        """Flow from symbols: received ones, eq. (12), or the transmitter's own, eq. (13)."""
        with torch.no_grad() if frozen else contextlib.nullcontext():
            return self.motion.g_s(self.motion.decode(symbols, None, rates), None)

    def restore_frame(self, symbols: Tensor, rates: Tensor, reference: Reference, flow: Tensor) -> Reference:
        """The frame from symbols: received ones, eqs. (5) and (6), or the transmitter's own, eq. (2)."""
        d = self.gamma_d(reference.y, flow) if self.config.context else None
        y = self.primary.decode(symbols, d, rates)  # eq. (5)
        x = self.synthesise(y, reference.x, flow)
        return Reference(x if self.training else x.clamp(0, 1), y)

    def synthesise(self, y: Tensor, reference: Tensor, flow: Tensor) -> Tensor:
        """g_s(y | c), (B, 3, H, W)."""
        if not self.config.context:
            return warp(reference, flow) + self.primary.g_s(y, None)
        return self.primary.g_s(y, self.phi_s(reference, flow))  # eq. (6)
