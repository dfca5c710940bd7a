"""Quality measures. The convention stands in the name; :attr:`Metric.convention` says it in a sentence.

The value of a clip is the mean over its frames of the per-frame value, except for ``miou``, ``pixel_accuracy`` and ``top1``,
which say otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semcast.registry import Registry

if TYPE_CHECKING:
    from semcast.metrics.base import Metric

METRICS: Registry[type[Metric]] = Registry("metric")
METRICS.add("psnr_rgb_db", "semcast.metrics.fidelity:PsnrRgb")
METRICS.add("psnr_y_db", "semcast.metrics.fidelity:PsnrY")
METRICS.add("ssim_rgb", "semcast.metrics.structure:SsimRgb")
METRICS.add("ms_ssim_rgb", "semcast.metrics.structure:MsSsimRgb")
METRICS.add("ms_ssim_rgb_db", "semcast.metrics.structure:MsSsimRgbDb")
METRICS.add("lpips_squeeze", "semcast.metrics.perceptual:LpipsSqueeze")
METRICS.add("vmaf", "semcast.metrics.vmaf:Vmaf")
METRICS.add("miou", "semcast.metrics.task:MeanIou")
METRICS.add("pixel_accuracy", "semcast.metrics.task:PixelAccuracy")
METRICS.add("top1", "semcast.metrics.task:Top1")
