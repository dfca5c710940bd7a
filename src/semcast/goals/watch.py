"""Watch the video: pixels should be those that were sent."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from semcast.errors import ContractError
from semcast.goals.base import Goal
from semcast.types import Decoded, Step


class Watch(Goal):
    """A person looks at the frames; the distance is the MSE over RGB in [0, 1], so training raises PSNR."""

    name: ClassVar[str] = "watch"
    summary: ClassVar[str] = "look at the video: frames as close as possible to those sent"
    output: ClassVar[Literal["frames", "labels", "scores"]] = "frames"
    metrics: ClassVar[tuple[str, ...]] = (
        "psnr_rgb_db",
        "psnr_y_db",
        "ssim_rgb",
        "ms_ssim_rgb",
        "ms_ssim_rgb_db",
        "lpips_squeeze",
    )

    def distortion(self, step: Step, decoded: Decoded) -> Tensor:
        """Mean squared error of (B, t, 3, H, W); (B,)."""
        if decoded.frames is None or decoded.frames.shape != step.frames.shape:
            got = None if decoded.frames is None else tuple(decoded.frames.shape)
            raise ContractError(f"goal 'watch' needs frames of shape {tuple(step.frames.shape)}, the system gave {got}")
        return (decoded.frames.float() - step.frames.float()).square().flatten(1).mean(1)


GOAL = Watch()
