"""Rendered scenes: photographs set in motion by a camera and by objects in front, with exact ground truth.

The photographs are those that scikit-image carries in its wheel; no photograph serves both training and evaluation.
``scene:coffee-pan:size=416x240,frames=33,fps=25,seed=1`` names one; every key is optional. Motion is laid out in seconds, so
a higher rate means smaller steps of the same motion, and every path swings back in time: a clip may be of any length.

Ground truth of a frame, in :meth:`Clip.labelled_frames`: ``"segmentation"`` (H, W) int64, 0 background, 1.. objects from back
to front; ``"flow"`` (2, H, W) and ``"flow_valid"`` (H, W). At every pixel p of frame t, flow is the (x, y) displacement in
pixels that brought its content there from frame t-1: ``frame[t](p) = frame[t-1](p - flow[t](p))``, see
:func:`semcast.video.render.warp`. It is zero in frame 0. ``flow_valid`` says where this holds: visible in both frames, away
from soft edges, shadows and the border.
Of the clip: ``"motion"`` () int64, index into ``MOTIONS``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from semcast.errors import SpecError, UnknownNameError, VideoError
from semcast.video.clip import Clip, Labels, VideoInfo, check_size
from semcast.video.render import (
    MOTIONS,
    SHADOW,
    Layer,
    Stage,
    background,
    camera,
    cut_out,
    placed,
    render_from_photo,
    resized,
    warp,
)

__all__ = ["EVAL_SCENES", "MOTIONS", "SCENES", "TRAIN_SCENES", "open_scene", "photo", "render_from_photo", "warp"]

DEFAULT_SIZE = (416, 240)
DEFAULT_FRAMES = 33
DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class Prop:
    """An object cut out of a photograph that slides over the background, slows down and comes back.

    Attributes:
        photo: file in scikit-image's data folder. centre, radii: the cut-out ellipse in the photo's pixels.
        diameter: on screen, as a fraction of the view's height. start: of its centre, (x, y) as fractions of the view's
            width and height from the middle. velocity: at the start, view heights per second. spin: radians per second.
            tint: RGB gains.
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
    """A background photograph, a camera motion and its pace (1 is moderate), and objects from back to front."""

    photo: str
    motion: str
    props: tuple[Prop, ...] = ()
    pace: float = 1.0

    @property
    def photos(self) -> set[str]:
        return {self.photo, *(prop.photo for prop in self.props)}


_GOLD, _COPPER, _SILVER = (1.25, 0.98, 0.5), (1.2, 0.78, 0.55), (1.05, 1.05, 1.1)
_FIGURE = Prop("coins.png", (334.8, 43.8), (29, 27.8), 0.3, (-0.36, -0.22), (0.42, 0.34), 2.2, _GOLD)
_FACE = Prop("coins.png", (212.5, 193), (23, 22.8), 0.24, (0.3, 0.36), (-0.3, -0.02), -1.6, _SILVER)
_HEAD = Prop("coins.png", (46.5, 260.3), (27, 26.8), 0.27, (0.34, -0.3), (-0.36, 0.3), -1.8, _COPPER)
_ROLLING = Prop("coins.png", (334.8, 43.8), (29, 27.8), 0.24, (-0.42, 0.36), (0.9, 0.0), 7.5, _GOLD)  # spin = velocity / radius
_PATCH = Prop("astronaut.png", (172, 385), (37.5, 38.5), 0.34, (-0.3, 0.25), (0.55, -0.35), 1.5)
_DISC = Prop("brick.png", (256, 256), (220, 220), 0.4, (0.3, 0.1), (-0.4, 0.2), 0.8, (1.25, 0.8, 0.65))
_STONE = Prop("gravel.png", (256, 256), (180, 140), 0.36, (0.25, -0.25), (-0.5, 0.3), -0.9, (1.0, 0.95, 0.85))

TRAIN_SCENES: dict[str, SceneSpec] = {
    "astronaut-pan": SceneSpec("astronaut.png", "pan", (_STONE,)),
    "rocket-zoom": SceneSpec("rocket.jpg", "zoom", (_PATCH,)),
    "rocket-pan": SceneSpec("rocket.jpg", "pan", (), 1.4),
    "camera-shake": SceneSpec("camera.png", "shake", (_PATCH,)),
    "gravel-rotate": SceneSpec("gravel.png", "rotate", (_DISC, _PATCH)),
    "brick-static": SceneSpec("brick.png", "static", (_STONE, _PATCH)),
}
EVAL_SCENES: dict[str, SceneSpec] = {
    "demo": SceneSpec("motorcycle_left.png", "pan", (_ROLLING,), 0.8),
    "coffee-pan": SceneSpec("coffee.png", "pan", (), 1.3),
    "coffee-static": SceneSpec("coffee.png", "static", (_FIGURE, _HEAD)),
    "motorcycle-pan": SceneSpec("motorcycle_left.png", "pan"),
    "motorcycle-rotate": SceneSpec("motorcycle_left.png", "rotate", (_HEAD,)),
    "cat-zoom": SceneSpec("chelsea.png", "zoom"),
    "cat-shake": SceneSpec("chelsea.png", "shake", (_FACE,)),
}
SCENES: dict[str, SceneSpec] = {**TRAIN_SCENES, **EVAL_SCENES}


@lru_cache(maxsize=4)
def photo(file: str) -> Tensor:
    """A photograph of scikit-image's wheel as (3, h, w) float32 RGB in [0, 1], without its downloader; don't write into it."""
    from semcast.video.io import read_picture

    spec = find_spec("skimage")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise VideoError(
            "rendered scenes use the photographs of scikit-image, which is not installed: pip install scikit-image"
        )
    return read_picture(Path(folders[0]) / "data" / file)


def open_scene(
    spec: str, *, size: tuple[int, int] | None = None, fps: float | None = None, max_frames: int | None = None
) -> Clip:
    """A rendered scene as a clip, each frame computed when asked for.

    Args:
        spec: ``NAME`` or ``NAME:size=416x240,frames=33,fps=25,seed=0``, with or without ``scene:`` in front. What the
            specification states wins over the arguments.
        size: (width, height). fps: frames per second. max_frames: upper limit of the number of frames.
    Raises:
        UnknownNameError: no such scene. SpecError: an option that does not parse. VideoError: below 64x64.
    """
    name, _, options = spec.removeprefix("scene:").partition(":")
    if name not in SCENES:
        raise UnknownNameError("scene", name, SCENES)
    given = _parse(spec, options)
    width, height = given.size or size or DEFAULT_SIZE
    rate = given.fps or fps or DEFAULT_FPS
    n_frames = given.frames or DEFAULT_FRAMES
    n_frames = min(n_frames, max_frames) if max_frames is not None else n_frames
    check_size(width, height, f"scene:{name}")
    scene, seed = SCENES[name], given.seed or 0
    info = VideoInfo(f"scene:{spec.removeprefix('scene:')}", width, height, rate, n_frames, "rendered", "gbrpf32le")

    def source(labels: bool) -> Iterator[tuple[Tensor, Labels]]:
        stage = stage_of(scene, (width, height), torch.Generator().manual_seed(seed))
        for index in range(n_frames):
            now, before = index / rate, (index - 1) / rate if index else None
            yield stage.frame(now), stage.truth(now, before) if labels else {}

    motion = {"motion": torch.tensor(MOTIONS.index(scene.motion))}
    classes = ("background", *(f"object {k}" for k in range(1, len(scene.props) + 1)))
    return Clip(name, info, source, labels=motion, classes=classes)


@dataclass(frozen=True)
class _Given:
    """The options of a scene specification; None where it is silent."""

    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: float | None = None
    seed: int | None = None


_FORMS = {"size": r"\d{2,5}x\d{2,5}", "frames": r"0*[1-9]\d{0,6}", "fps": r"\d{1,4}(\.\d+)?", "seed": r"\d{1,18}"}


def _parse(spec: str, options: str) -> _Given:
    found: dict[str, str] = {}
    for item in filter(None, options.split(",")):
        key, _, value = item.partition("=")
        if key not in _FORMS:
            near = difflib.get_close_matches(key, _FORMS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_FORMS)}"
            raise SpecError(f"scene {spec!r}: unknown option {key!r}; {hint}")
        if not re.fullmatch(_FORMS[key], value) or (key == "fps" and float(value) <= 0):
            raise SpecError(
                f"scene {spec!r}: {key}={value!r} does not parse; write for example size=416x240,frames=33,fps=25,seed=1"
            )
        found[key] = value
    width, _, height = found.get("size", "").partition("x")
    return _Given(
        size=(int(width), int(height)) if width else None,
        frames=int(found["frames"]) if "frames" in found else None,
        fps=float(found["fps"]) if "fps" in found else None,
        seed=int(found["seed"]) if "seed" in found else None,
    )


def stage_of(scene: SceneSpec, size: tuple[int, int], generator: torch.Generator) -> Stage:
    """Lay a scene out for ``size`` (width, height); the generator decides where its motion starts and heads."""
    layer, pose = _camera_path(scene, size, generator)
    layers = [layer]
    for label, prop in enumerate(scene.props, 1):
        layers += _prop_layers(prop, size, label, generator)
    return Stage(layers, camera(size, pose), *size)


def _camera_path(
    scene: SceneSpec, size: tuple[int, int], generator: torch.Generator
) -> tuple[Layer, Callable[[float], tuple[float, float, float, float]]]:
    """The background, framed with as much room as the motion needs, and the camera's pose over time."""
    width, height = size
    u = torch.rand(16, generator=generator, dtype=torch.float64).tolist()
    side = 1.0 if u[0] < 0.5 else -1.0
    picture = photo(scene.photo)
    if scene.motion == "static":
        layer, _ = background(picture, size, 1.0, 0.0)
        return layer, lambda _: (1.0, 0.0, 0.0, 0.0)
    if scene.motion == "pan":
        layer, slack = background(picture, size, 1.4, 0.0)
        peak = 0.14 * width * scene.pace  # pixels per second
        reach = 0.97 * max(slack[0], 1.0), min(0.97 * slack[1], 0.2 * height)
        rate_x = peak / reach[0]
        rate_y, phase_x, phase_y = 0.43 * rate_x, -0.6 + 0.3 * u[1], -0.5 + u[2]
        return layer, lambda t: (
            1.0,
            0.0,
            side * reach[0] * math.sin(rate_x * t + phase_x),
            reach[1] * math.sin(rate_y * t + phase_y),
        )
    if scene.motion == "zoom":
        layer, _ = background(picture, size, 1.0, 0.0)
        depth, phase = 0.4, 0.5 + 0.4 * u[1]
        rate = 0.44 * scene.pace / depth  # log scale per second peaks at half of that
        focus = (u[2] - 0.5) * 0.3 * width, (u[3] - 0.5) * 0.3 * height

        def zoomed(t: float) -> tuple[float, float, float, float]:
            scale = math.exp(-depth * (1 - math.cos(rate * t + phase)) / 2)
            return scale, 0.0, focus[0] * (1 - scale), focus[1] * (1 - scale)

        return layer, zoomed
    if scene.motion == "rotate":
        most = 0.2  # radians
        layer, _ = background(picture, size, 1.0, most)
        rate, phase = 0.25 * scene.pace / most, -0.5 + 0.4 * u[1]
        return layer, lambda t: (1.0, side * most * math.sin(rate * t + phase), 0.0, 0.0)
    # shake: hand-held, a few incommensurate swings in either direction
    layer, slack = background(picture, size, 1.12, 0.012)
    swings = [(1.0, 0.9), (0.5, 2.3), (0.3, 4.1), (0.15, 6.7)]  # relative amplitude, hertz
    full = sum(a for a, _ in swings)
    most_x, most_y = (min(0.014 * width * scene.pace, limit / full) for limit in slack)

    def shaken(t: float) -> tuple[float, float, float, float]:
        x, y, a = (
            sum(amp * math.sin(2 * math.pi * (f * t * (1 + 0.17 * k) + u[4 * k + j + 1])) for j, (amp, f) in enumerate(swings))
            for k in range(3)
        )
        return 1.0, 0.012 * a / full, most_x * x, most_y * y

    return layer, shaken


def _prop_layers(prop: Prop, size: tuple[int, int], label: int, generator: torch.Generator) -> list[Layer]:
    """The object's soft shadow and the object."""
    width, height = size
    jitter = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    density = 2.0
    diameter = prop.diameter * height
    aspect = prop.radii[1] / prop.radii[0]
    picture, (cx, cy), (rx, ry) = photo(prop.photo), prop.centre, prop.radii
    crop = picture[:, round(cy - ry) : round(cy + ry), round(cx - rx) : round(cx + rx)]
    patch = resized(crop, round(diameter), round(diameter * aspect), density)
    th, tw = patch.shape[-2:]
    patch = (patch * torch.tensor(prop.tint)[:, None, None]).clamp(0, 1)
    texture = cut_out(patch, _ellipse(tw, th, 0.96, 3.0))
    darkness = 0.45 * _ellipse(round(tw * 1.3), round(th * 1.3), 0.8, 0.28 * tw)
    shade = cut_out(torch.zeros(3, *darkness.shape), darkness)
    start = (prop.start[0] + 0.06 * (jitter[0] - 0.5)) * width, (prop.start[1] + 0.06 * (jitter[1] - 0.5)) * height
    velocity = [v * height * (0.85 + 0.3 * jitter[2]) for v in prop.velocity]
    spin, turned, pace = prop.spin, 2 * math.pi * jitter[3], 0.9

    def pose(t: float) -> tuple[float, float, float]:
        along = math.sin(pace * t) / pace  # equals t at first, then slows down and swings back
        return start[0] + velocity[0] * along, start[1] + velocity[1] * along, turned + spin * along

    def shadow_pose(t: float) -> tuple[float, float, float]:
        x, y, angle = pose(t)
        return x + 0.05 * diameter, y + 0.08 * diameter, angle

    return [
        Layer(shade, placed(shade, density, shadow_pose), SHADOW),
        Layer(texture, placed(texture, density, pose), label),
    ]


def _ellipse(width: int, height: int, radius: float, softness: float) -> Tensor:
    """(h, w) alpha of an ellipse that fills ``radius`` of the rectangle, its edge ``softness`` texels wide."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    alpha = ((radius - torch.hypot(x, y)) * min(width, height) / 2 / softness + 0.5).clamp(0, 1)
    return alpha * alpha * (3 - 2 * alpha)
