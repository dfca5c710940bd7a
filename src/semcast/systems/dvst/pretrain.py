"""Steps 1 and 3 of training (section III-B): the transforms alone, noise for rounding, and the lossless frame before."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from semcast.systems.dvst.config import Plan
from semcast.systems.dvst.inter import Draft, InterCoder


def pretrain_motion(
    inter: InterCoder, x: Tensor, before: Tensor, plan: Plan, generator: torch.Generator
) -> tuple[dict[str, Tensor], Draft | None]:
    """The motion link's transforms from ``before`` to ``x``, both (B, 3, H, W): the terms of eq. (20), and the draft."""
    if not inter.config.motion_link:
        return {}, None
    draft = inter.draft_motion(x, before, generator, frozen=plan.motion_frozen)
    with torch.no_grad() if plan.motion_frozen else contextlib.nullcontext():
        flow = inter.motion.g_s(draft.estimate.y, None)
    return {"motion_transform": flow, "motion_bits": _bits_per_pixel(draft.estimate.bits, draft.estimate.hyper_bits, x)}, draft


def pretrain_frame(inter: InterCoder, x: Tensor, before: Tensor, flow: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The primary link's transforms of ``x`` on contexts of ``before``: the terms of eq. (21)."""
    y, c = inter.analyse_frame(x, before, flow)
    estimate = inter.primary.prior(y, c, generator)
    bits = _bits_per_pixel(estimate.bits, estimate.hyper_bits, x)
    return {"transform": inter.synthesise(estimate.y, before, flow), "primary_bits": bits}


def _bits_per_pixel(bits: Tensor, hyper_bits: Tensor, x: Tensor) -> Tensor:
    """(B,)"""
    return (bits.flatten(1).sum(1) + hyper_bits) / (x.shape[-2] * x.shape[-1])
