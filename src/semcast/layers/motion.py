"""Optical flow: by a spatial pyramid (Ranjan, Black, "Optical flow estimation using a spatial pyramid network", CVPR 2017), and
by dense inverse search (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016), which learns nothing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.warp import warp


def luma_levels(frame: Tensor) -> np.ndarray:
    """Full-range BT.601 luma of a frame (3, H, W) in levels of 255: (H, W) uint8."""
    weights = frame.new_tensor([0.299, 0.587, 0.114])
    levels: np.ndarray = ((frame * weights[:, None, None]).sum(0).clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return levels


def inverse_search(current: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Flow (H, W, 2) float32 in pixels, of two :func:`luma_levels`: ``current`` at p looks like ``reference`` at p + flow."""
    import cv2

    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]  # not in its stubs
    flow: np.ndarray = search.calc(current, reference, None)
    return flow


@torch.no_grad()
def dense_flow(current: Tensor, reference: Tensor) -> Tensor:
    """(B, 2, H, W) with ``warp(reference, flow)`` close to ``current``, both (B, 3, H, W), by dense inverse search."""
    found = [inverse_search(luma_levels(a.float()), luma_levels(b.float())) for a, b in zip(current, reference, strict=True)]
    return torch.from_numpy(np.stack(found)).movedim(-1, 1).to(current.device)


class PyramidFlow(nn.Module):
    """Every level warps the reference by the flow so far and adds what is still missing; it starts as no motion.

    Args:
        levels: of the pyramid, each half the size of the next. widths: channels between the 7x7 convolutions of a level.
    """

    def __init__(self, levels: int = 4, widths: tuple[int, ...] = (32, 64, 32, 16)) -> None:
        super().__init__()
        self.levels = nn.ModuleList(self._level(widths) for _ in range(levels))

    @staticmethod
    def _level(widths: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        before = 8  # current frame, warped reference, flow so far
        for width in widths:
            layers += [nn.Conv2d(before, width, 7, padding=3), nn.ReLU()]
            before = width
        last = nn.Conv2d(before, 2, 7, padding=3)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, last)

    def forward(self, current: Tensor, reference: Tensor) -> Tensor:
        """Two (B, 3, H, W) -> flow (B, 2, H, W) in pixels with ``warp(reference, flow)`` close to ``current``."""
        pyramid = [(current, reference)]
        for _ in range(len(self.levels) - 1):
            smaller = [F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in pyramid[-1]]
            pyramid.append((smaller[0], smaller[1]))
        flow = torch.zeros_like(pyramid[-1][0][:, :2])
        for level, (now, before) in zip(self.levels, reversed(pyramid), strict=True):
            if flow.shape[-2:] != now.shape[-2:]:
                flow = 2 * F.interpolate(flow, now.shape[-2:], mode="bilinear", align_corners=False)
            flow = flow + level(torch.cat([now, warp(before, flow), flow], 1)).float()
        return flow
