"""Backward warping of feature maps by a flow in pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(x: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """y(p) = x(p + flow(p)), bilinear or bicubic, clamped at the border.

    Args:
        x: (B, C, h, w). flow: (B, 2, h, w) in pixels of this map, right and down; where in ``x`` a place of ``y`` comes from.
    """
    h, w = x.shape[-2:]
    flow = flow.float()
    columns = torch.arange(w, device=x.device) + flow[:, 0]
    rows = torch.arange(h, device=x.device)[:, None] + flow[:, 1]
    grid = torch.stack([2 * columns / max(w - 1, 1) - 1, 2 * rows / max(h - 1, 1) - 1], -1)
    return F.grid_sample(x.float(), grid, mode=mode, padding_mode="border", align_corners=True).to(x.dtype)


def pool_flow(flow: Tensor, stride: int) -> Tensor:
    """Flow of a map that is ``stride`` times coarser: averaged, and in pixels of that map; sides multiples of ``stride``."""
    return F.avg_pool2d(flow, stride) / stride
