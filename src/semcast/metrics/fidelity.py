"""Peak signal-to-noise ratios."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from semcast.metrics.base import FrameMetric

PSNR_CAP_DB = 100.0
LUMA_BT601 = (0.299, 0.587, 0.114)


def psnr_db(reference: Tensor, received: Tensor) -> Tensor:
    """PSNR in dB at peak 1 of every item of (t, ...): 10 log10(1 / MSE) over all its values, at most 100 dB; (t,)."""
    mse = (reference.double() - received.double()).square().flatten(1).mean(1)
    return -10 * mse.clamp_min(10 ** (-PSNR_CAP_DB / 10)).log10()


def luma_bt601(rgb: Tensor) -> Tensor:
    """Full-range BT.601 luma 0.299 R + 0.587 G + 0.114 B of (t, 3, H, W); (t, 1, H, W)."""
    return (rgb * rgb.new_tensor(LUMA_BT601).view(1, 3, 1, 1)).sum(1, keepdim=True)


class PsnrRgb(FrameMetric):
    """PSNR over the three RGB planes together."""

    unit: ClassVar[str] = "dB"
    convention: ClassVar[str] = (
        "10 log10(1 / MSE) with the MSE over R, G and B of one frame together, capped at 100 dB; a clip is the mean over frames"
    )

    @staticmethod
    def frame_values(reference: Tensor, received: Tensor) -> Tensor:
        """(t, 3, H, W), (t, 3, H, W) in [0, 1] -> (t,) dB."""
        return psnr_db(reference, received)


class PsnrY(FrameMetric):
    """PSNR of luma; papers that take a file's limited-range Y at peak 255 read 20 log10(255/219) = 1.32 dB more."""

    unit: ClassVar[str] = "dB"
    convention: ClassVar[str] = (
        "PSNR of the full-range BT.601 luma 0.299 R + 0.587 G + 0.114 B at peak 1, capped at 100 dB; "
        "a clip is the mean over frames"
    )

    @staticmethod
    def frame_values(reference: Tensor, received: Tensor) -> Tensor:
        """(t, 3, H, W), (t, 3, H, W) in [0, 1] -> (t,) dB."""
        return psnr_db(luma_bt601(reference), luma_bt601(received))
