"""The generator of frames that are not key frames: flow, warp, and what the warp does not explain, as in vid2vid, but small.

    two last key pictures ─▶ dense flow, carried on ─▶ f ─┐
    key picture, its map, the new map, f ─▶ 1/8: blocks ──┼─▶ 1/4: f + residual ─▶ warp ─▶ w ─┐
                                              │           │                                   │
                                              ├─▶ 1/4: mask m ────────────────────────────────┤
                                              └─▶ 1/4: blocks │ w ─▶ r ──────────────────────(+)─▶ w + m r

With h = w + r for the hallucinated picture this is vid2vid's (1 - m) w + m h. The last layers of flow and picture start at
zero: an untrained generator carries the motion of the last two key pictures on, and stands still where there was only one.

T.-C. Wang et al., "Video-to-video synthesis", NeurIPS 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast.layers.residual import ResidualBlock, zero_conv
from semcast.layers.warp import warp

EIGHTH, QUARTER = 8, 4
TURNS = 3  # that a flow is carried on in; by then it changes by less than the sampling does
FITS, RIDGE = 8, 0.02  # steps of the motion of maps, and how much each is held back
LONGEST = 0.25  # of a picture's longer side: what a carried flow is kept below


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes.

    Attributes:
        classes: M. width, blocks: channels and residual blocks at 1/8. fine_width, fine_blocks: the same at 1/4.
    """

    classes: int = 12
    width: int = 96
    blocks: int = 4
    fine_width: int = 48
    fine_blocks: int = 1


@torch.no_grad()
def carried_on(moved: Tensor, share: float) -> Tensor:
    """Flow from a frame yet to come to the last one, if all goes on as it went between the last two.

    Args:
        moved: (B, 2, H, W) from the last to the one before it. share: time to the new frame over the time between these two.

    What is at q now was at q + moved(q), and will be at q - share moved(q): the place p of the new frame looks like
    q = p + f(p), f(p) = share moved(p + f(p)), which is iterated.
    """
    step = share * moved
    flow = step
    for _ in range(TURNS - 1):
        flow = warp(step, flow)
    most = LONGEST * max(moved.shape[-2:])
    return flow.clamp(-most, most)


@torch.no_grad()
def motion_of_maps(before: Tensor, now: Tensor) -> Tensor:
    """The affine motion under which one map becomes the other, as a flow with ``warp(before, flow)`` close to ``now``.

    Least squares by Gauss and Newton on smoothed maps, cells that do not fit counting less: what maps alone tell of motion.

    Args:
        before, now: one-hot (B, M, h, w).

    Returns:
        (B, 2, h, w) in cells; noughts where there is nothing to fit.
    """
    height, width = now.shape[-2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y]).to(now.device)
    before, now = _smoothed(before), _smoothed(now)
    wide = F.pad(before, (1, 1, 1, 1), mode="replicate")
    slopes = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2, (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    found = torch.zeros(len(now), 6, device=now.device)
    for _ in range(FITS):
        flow = torch.einsum("bck,khw->bchw", found.unflatten(1, (2, 3)), basis)
        missing = now - warp(before, flow)
        weight = 1 / (missing.square().sum(1) + 0.05)
        lines = torch.cat([warp(slope, flow)[:, :, None] * basis for slope in slopes], 2)  # (B, M, 6, h, w)
        A = torch.einsum("bmihw,bmjhw,bhw->bij", lines, lines, weight)
        g = torch.einsum("bmihw,bmhw,bhw->bi", lines, missing, weight)
        stiff = RIDGE * A.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-3
        found = found + torch.linalg.solve(A + stiff * torch.eye(6, device=A.device), g)
    return torch.einsum("bck,khw->bchw", found.unflatten(1, (2, 3)), basis).clamp(-LONGEST * width, LONGEST * width)


def _smoothed(maps: Tensor) -> Tensor:
    """Maps (B, M, h, w) without their steps."""
    line = maps.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(maps.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="replicate"), kernel, groups=maps.shape[1])


def enlarged(x: Tensor, times: int) -> Tensor:
    """(B, C, h, w) -> (B, C, times h, times w), bilinear."""
    return F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)


class Generator(nn.Module):
    """The networks of the figure above."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = c = config
        pixels = 3 * EIGHTH**2
        # picture, as it is and warped; maps of both, and their difference; flow, how far to trust it, where a map is known
        self.stem = nn.Conv2d(2 * pixels + 3 * c.classes + 4, c.width, 1)
        self.blocks = nn.ModuleList(ResidualBlock(c.width, c.width) for _ in range(c.blocks))
        self.flow_head = zero_conv(c.width, 2 * 4)
        self.mask_head = nn.Conv2d(c.width, 4, 1)
        self.expand = nn.Conv2d(c.width, 4 * c.fine_width, 1)
        self.look = nn.Conv2d(3 * QUARTER**2 + 1, c.fine_width, 1)
        self.fine = nn.ModuleList(ResidualBlock(c.fine_width, c.fine_width) for _ in range(c.fine_blocks))
        self.picture_head = zero_conv(c.fine_width, 3 * QUARTER**2)

    def forward(
        self, picture: Tensor, flow: Tensor, doubt: Tensor, before: Tensor, now: Tensor, conditions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The frame, and its flow to the key picture.

        Args:
            picture: key picture as received (B, 3, H, W), sides multiples of 16. flow: (B, 2, H, W) as far as it is known.
            doubt: (B, 1, H, W) how badly the last two key pictures agree under their flow; -1 where there was only one.
            before, now: maps (B, M, H / 8, W / 8) of the key frame and of this one, one-hot; noughts where unknown.
            conditions: (B, 2) time since the key frame in units of 4 frames, SNR in units of 20 dB.

        Returns:
            (B, 3, H, W), and (B, 2, H, W) in pixels.
        """
        coarse = F.avg_pool2d(flow, EIGHTH)
        moved = warp(picture, flow)
        carried = warp(before, coarse / EIGHTH)
        told = [before, now, now - carried * now.sum(1, keepdim=True)]
        seen = [F.pixel_unshuffle(x - 0.5, EIGHTH) for x in (picture, moved)]
        x = self.stem(torch.cat([*seen, *told, coarse / EIGHTH, F.avg_pool2d(doubt, EIGHTH), now.sum(1, keepdim=True)], 1))
        for block in self.blocks:
            x = block(x, conditions)
        x = F.gelu(x)
        residual = EIGHTH * F.pixel_shuffle(self.flow_head(x).float(), 2)
        flow = flow + enlarged(residual, QUARTER)
        mask = enlarged(torch.sigmoid(F.pixel_shuffle(self.mask_head(x).float(), 2)), QUARTER)
        moved = warp(picture, flow)
        local = torch.cat([F.pixel_unshuffle(moved - 0.5, QUARTER), F.avg_pool2d(mask, QUARTER)], 1)
        y = F.pixel_shuffle(self.expand(x), 2) + self.look(local)
        for block in self.fine:
            y = block(y, conditions)
        filled = F.pixel_shuffle(self.picture_head(F.gelu(y)).float(), QUARTER)
        return moved + mask * filled, flow
