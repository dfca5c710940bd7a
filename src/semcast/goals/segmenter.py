"""The receiver's segmentation network: CamVid's eleven classes from a picture of any size.

    frame ─ conv/2 ─ conv/2 ─┬─ blocks 1/8 ─┬─ blocks 1/16, dilated ─(+ picture mean)─ up ─┐
                             │              └──────────────────────────────────── 1x1 ──(+)─ conv ─ up ─┐
                             └────────────────────────────────────────────────── 1x1 ──────────────────(+)─ conv ─ logits 1/4

Nearly all arithmetic is at 1/8 and 1/16, where context is; poles and signs are put back at 1/4. A plain residual network of our
own, trained from random weights by ``semcast train segmenter``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semcast import checkpoint
from semcast.errors import WeightsError
from semcast.goals.base import TaskModelSpec
from semcast.video.datasets import CAMVID_CLASSES, CAMVID_IGNORE

CLASSES = CAMVID_CLASSES[:CAMVID_IGNORE]
STRIDE = 16
RGB_MEAN, RGB_STD = (0.40, 0.41, 0.42), (0.30, 0.31, 0.30)  # of CamVid's training pictures


@dataclass(frozen=True)
class SegmenterConfig:
    """Widths and depths.

    Attributes:
        classes: of the output. stem, quarter, eighth, sixteenth: channels at 1/2, 1/4, 1/8 and 1/16 of the picture's sides.
        eighth_blocks: residual blocks there. dilations: of the residual blocks at 1/16, one each.
    """

    classes: int = len(CLASSES)
    stem: int = 24
    quarter: int = 32
    eighth: int = 64
    sixteenth: int = 128
    eighth_blocks: int = 2
    dilations: tuple[int, ...] = (1, 2, 4, 2, 4, 8)


def conv_bn(inputs: int, outputs: int, size: int = 3, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation; the size is kept but for ``stride``."""
    pad = dilation * (size // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, pad, dilation, bias=False), nn.BatchNorm2d(outputs, momentum=0.02)
    )


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv_bn(channels, channels, dilation=dilation)
        self.second = conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class Down(nn.Module):
    """Half the size: a strided convolution beside a pooled shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = conv_bn(inputs, outputs, stride=2)
        self.shortcut = conv_bn(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C', h/2, w/2)."""
        return F.relu(self.body(x) + self.shortcut(F.avg_pool2d(x, 2)))


def _up(x: Tensor, factor: int = 2) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """The network of the figure above.

    Args:
        config: widths and depths. preset: its name.
    """

    name = "segmenter"
    mean: Tensor
    std: Tensor

    def __init__(self, config: SegmenterConfig | None = None, preset: str = "small") -> None:
        super().__init__()
        self.config = c = config or SegmenterConfig()
        self.preset = preset
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(RGB_STD).view(1, 3, 1, 1), persistent=False)
        self.stem = conv_bn(3, c.stem, stride=2)
        self.quarter = conv_bn(c.stem, c.quarter, stride=2)
        self.eighth = nn.Sequential(Down(c.quarter, c.eighth), *(Block(c.eighth) for _ in range(c.eighth_blocks)))
        self.sixteenth = nn.Sequential(Down(c.eighth, c.sixteenth), *(Block(c.sixteenth, d) for d in c.dilations))
        self.context = nn.Sequential(nn.Linear(c.sixteenth, c.eighth), nn.ReLU(), nn.Linear(c.eighth, c.eighth))
        self.from_sixteenth = conv_bn(c.sixteenth, c.eighth, 1)
        self.from_eighth = conv_bn(c.eighth, c.eighth, 1)
        self.join_eighth = conv_bn(c.eighth, c.eighth)
        self.to_quarter = conv_bn(c.eighth, c.quarter, 1)
        self.from_quarter = conv_bn(c.quarter, c.quarter, 1)
        self.join_quarter = conv_bn(c.quarter, c.quarter)
        self.head = nn.Conv2d(c.quarter, c.classes, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) RGB in [0, 1] -> logits (N, classes, H, W), H and W at least 16."""
        height, width = frames.shape[-2:]
        return self.decode(*self.encode(frames))[..., :height, :width]

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/4, 1/8 and 1/16 of sides that are padded to multiples of 16."""
        height, width = frames.shape[-2:]
        # edges are repeated, not blackened: a black band is a thing that a driver never sees
        padded = F.pad((frames - self.mean) / self.std, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        quarter = F.relu(self.quarter(F.relu(self.stem(padded))))
        eighth = self.eighth(quarter)
        return quarter, eighth, self.sixteenth(eighth)

    def decode(self, quarter: Tensor, eighth: Tensor, deep: Tensor) -> Tensor:
        """Logits of the padded picture, from the features of :meth:`encode`."""
        whole = self.context(deep.mean((-2, -1)))[..., None, None]
        x = F.relu(_up(self.from_sixteenth(deep) + whole) + self.from_eighth(eighth))
        x = F.relu(self.join_eighth(x))
        x = F.relu(_up(self.to_quarter(x)) + self.from_quarter(quarter))
        x = F.relu(self.join_quarter(x))
        return _up(self.head(x), 4)


CONFIGS = {"small": SegmenterConfig()}
SPEC = TaskModelSpec(
    name="segmenter",
    summary="segmentation of street pictures into CamVid's eleven classes, any size",
    make=lambda preset: Segmenter(CONFIGS[preset], preset),
    presets=tuple(CONFIGS),
)


def predict(model: nn.Module, frames: Tensor) -> Tensor:
    """Label maps of (..., 3, H, W) frames in [0, 1]: (..., H, W) int64. One picture at a time, so that memory is bounded."""
    flat = frames.detach().float().flatten(0, -4)
    with torch.no_grad():
        labels = [model(picture[None]).argmax(1) for picture in flat]
    return torch.cat(labels).unflatten(0, frames.shape[:-3])


@lru_cache(maxsize=1)
def shipped_segmenter() -> Segmenter:
    """The segmenter that comes with the package: frozen, in evaluation mode, loaded once.

    Raises:
        WeightsError: this copy of the package has none.
    """
    folder = checkpoint.shipped("segmenter", "small")
    if folder is None:
        raise WeightsError(
            "no weights of the segmenter come with this copy of Semcast; train them with `semcast train segmenter`"
        )
    with torch.inference_mode(False):  # whoever trains for the goal later needs gradients through it
        model = Segmenter()
        checkpoint.load(model, folder)
    return model.eval().requires_grad_(False)
