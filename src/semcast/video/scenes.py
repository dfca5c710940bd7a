"""Rendered scenes: photographs set in motion by a camera and by objects in front, with exact ground truth.

The photographs are those that scikit-image carries in its wheel. A scene is a stack of layers, each a textured plane with
its own path; the camera moves all of them. Every path is a similarity, so flow, occlusion and segmentation are known in
closed form and hold to subpixel accuracy.

Flow convention: ``flow[t]`` (2, H, W) is, at every pixel p of frame t, the (x, y) displacement in pixels that brought its
content there from frame t-1: ``frame[t](p) = frame[t-1](p - flow[t](p))``. It is zero in frame 0. ``flow_valid[t]`` (H, W)
says where this holds: content visible in both frames, away from soft edges, shadows and the border.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import SpecError, UnknownNameError, VideoError
from semcast.video.clip import Clip, Labels, VideoInfo, check_size

MOTIONS = ("static", "pan", "zoom", "rotate", "shake")
DEFAULT_SIZE = (416, 240)
DEFAULT_FRAMES = 33
DEFAULT_FPS = 25.0
_FILES = {
    **{name: f"{name}.png" for name in ("astronaut", "camera", "gravel", "brick", "coffee", "chelsea", "coins")},
    "rocket": "rocket.jpg",
    "motorcycle": "motorcycle_left.png",
}
Matrix = Tensor  # (3, 3) float64, acts on homogeneous pixel coordinates (x, y, 1)


@dataclass(frozen=True)
class Prop:
    """An object cut out of a photograph that moves over the background.

    Attributes:
        photo: key of the photographs. centre, radii: the cut-out ellipse in the photo's pixels.
        diameter: on screen, as a fraction of the view's height. start: of its centre, as fractions of the view from the middle.
        velocity: view heights per second (x, y). spin: radians per second. tint: RGB gains.
    """

    photo: str
    centre: tuple[float, float]
    radii: tuple[float, float]
    diameter: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    spin: float = 0.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class SceneSpec:
    """What a named scene consists of: background photograph, camera motion, objects from back to front, pace of the camera."""

    photo: str
    motion: str
    props: tuple[Prop, ...] = ()
    pace: float = 1.0

    @property
    def photos(self) -> set[str]:
        return {self.photo, *(prop.photo for prop in self.props)}


_GOLD, _COPPER, _SILVER = (1.3, 1.08, 0.62), (1.2, 0.82, 0.6), (1.1, 1.1, 1.12)


def _coin(
    centre: tuple[float, float], radius: float, diameter: float, start: tuple[float, float], velocity: tuple[float, float],
    spin: float, tint: tuple[float, float, float],
) -> Prop:  # fmt: skip
    return Prop("coins", centre, (radius, radius), diameter, start, velocity, spin, tint)
