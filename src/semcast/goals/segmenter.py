"""The receiver's segmentation network: CamVid's eleven classes from a picture of any size.

    frame ─ SqueezeNet 1.1 ─┬─ 1/4 ─┬─ 1/8 ─┬─ 1/16 ─ blocks, dilated ─(+ picture mean)─ up ─┐
                            │       └─────────────────────────────────────────────── 1x1 ──(+)─ conv ─ up ─┐
                            └─────────────────────────────────────────────────────── 1x1 ────────────────(+)─ conv ─ logits 1/4

The encoder is the trunk of SqueezeNet 1.1 (Iandola et al. 2016). Training starts from its ImageNet weights: few pictures of
streets are labelled, and what tells a tree from a wall can be learnt from many others. Context is gathered at 1/16; poles and
signs are put back at 1/4. ``semcast train segmenter`` trains all of it.
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
from semcast.metrics.perceptual import squeezenet_features
from semcast.video.datasets import CAMVID_CLASSES, CAMVID_IGNORE

CLASSES = CAMVID_CLASSES[:CAMVID_IGNORE]
STRIDE = 16
RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
QUARTER, EIGHTH, SIXTEENTH = 128, 256, 512  # channels of the trunk at these shares of the picture's sides


@dataclass(frozen=True)
class SegmenterConfig:
    """Widths and depths of what follows the trunk.

    Attributes:
        classes: of the output. quarter, eighth, sixteenth: channels at 1/4, 1/8 and 1/16 of the picture's sides.
        dilations: of the residual blocks at 1/16, one each.
    """

    classes: int = len(CLASSES)
    quarter: int = 48
    eighth: int = 96
    sixteenth: int = 128
    dilations: tuple[int, ...] = (1, 2, 4)


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
        self.features = squeezenet_features()
        # padded at the left here, at the right elsewhere: every size halves, and no level is off by 1/5 of a cell
        self.features[0] = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.features[5] = nn.MaxPool2d(3, stride=2, padding=1)
        self.deep = nn.Sequential(conv_bn(SIXTEENTH, c.sixteenth, 1), nn.ReLU(), *(Block(c.sixteenth, d) for d in c.dilations))
        self.context = nn.Sequential(nn.Linear(c.sixteenth, c.eighth), nn.ReLU(), nn.Linear(c.eighth, c.eighth))
        self.from_sixteenth = conv_bn(c.sixteenth, c.eighth, 1)
        self.from_eighth = conv_bn(EIGHTH, c.eighth, 1)
        self.join_eighth = conv_bn(c.eighth, c.eighth)
        self.to_quarter = conv_bn(c.eighth, c.quarter, 1)
        self.from_quarter = conv_bn(QUARTER, c.quarter, 1)
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
        quarter = self.features[:5](padded)
        eighth = self.features[5:8](quarter)
        return quarter, eighth, self.deep(self.features[8:](eighth))

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
