"""The renderer behind the scenes: textured layers under a moving camera, with flow and visibility in closed form.

Coordinates: a *pixel* is a column and a row of the picture; the *world* is measured in pixels of the camera at rest, origin in
the middle of the view; a *texel* is a column and a row of a layer's texture. Affine matrices (3, 3) lead from one to the next.
Textures hold two texels per pixel where the photograph has that much detail, so that bilinear sampling neither blurs nor
flickers as content glides between pixels; they are never minified while rendering, so they don't alias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import UnknownNameError
from semcast.video.clip import check_size

MOTIONS = ("static", "pan", "zoom", "rotate", "shake")
SHADOW = -1  # label of a layer that darkens what lies beneath and is nobody's object
_VISIBLE = 0.99  # share of a pixel's light that must come from one layer for its flow to count


def similarity(scale: float = 1.0, angle: float = 0.0, shift: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """(3, 3) float64: rotate by ``angle`` (radians), scale, then shift."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[c, -s, shift[0]], [s, c, shift[1]], [0.0, 0.0, 1.0]], dtype=torch.float64)


@dataclass(frozen=True)
class Layer:
    """A textured plane.

    Attributes:
        texture: (3, h, w) for a background that fills everything, else (4, h, w): RGB premultiplied by alpha, and alpha.
        texel_of: time in seconds -> (3, 3) from world to texels.
        label: 0 background, 1.. objects, ``SHADOW``.
    """

    texture: Tensor
    texel_of: Callable[[float], Tensor]
    label: int = 0


def transform(matrix: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Where ``matrix`` takes the pixels of ``box`` (left, top, right, bottom): (h, w, 2) float32."""
    left, top, right, bottom = box
    x, y = torch.arange(left, right, dtype=torch.float64), torch.arange(top, bottom, dtype=torch.float64)[:, None]
    m = matrix.tolist()
    # rows and columns separately: only the sum is as large as the picture, and it is good to 1e-4 pixel in float32
    return torch.stack([(m[k][0] * x + m[k][2]).float() + (m[k][1] * y).float() for k in (0, 1)], -1)


def sample(image: Tensor, points: Tensor, padding: str = "zeros") -> Tensor:
    """Bilinear samples of (C, h, w) at (H, W, 2) points in its pixel coordinates -> (C, H, W)."""
    height, width = image.shape[-2:]
    grid = points * points.new_tensor([2 / (width - 1), 2 / (height - 1)]) - 1
    return F.grid_sample(image[None], grid[None], mode="bilinear", padding_mode=padding, align_corners=True)[0]


def warp(frame: Tensor, flow: Tensor) -> Tensor:
    """Predict a frame from the one before: (C, H, W) sampled at ``p - flow(p)``; flow (2, H, W) in pixels."""
    height, width = frame.shape[-2:]
    return sample(frame, transform(similarity(), (0, 0, width, height)) - flow.permute(1, 2, 0), "border")


class Stage:
    """Layers from back to front and a camera.

    Args:
        layers: the first is the background.
        world_of: time in seconds -> (3, 3) from pixels to the world.
        width, height: of the view, in pixels.
    """

    def __init__(self, layers: list[Layer], world_of: Callable[[float], Tensor], width: int, height: int) -> None:
        self.layers, self.world_of, self.width, self.height = layers, world_of, width, height
        self._latest: tuple[float, tuple[list[Tensor], Tensor, Tensor]] | None = None

    def _matrices(self, time_s: float) -> list[Tensor]:
        world = self.world_of(time_s)
        return [layer.texel_of(time_s) @ world for layer in self.layers]

    def _box(self, layer: Layer, matrix: Tensor) -> tuple[int, int, int, int] | None:
        """The pixels that a layer can touch, or None."""
        h, w = layer.texture.shape[-2:]
        corners = torch.tensor([[0, w, 0, w], [0, 0, h, h], [1, 1, 1, 1]], dtype=torch.float64)
        seen = torch.linalg.inv(matrix) @ corners
        low, high = seen.amin(1).floor().int().tolist(), seen.amax(1).ceil().int().tolist()
        box = max(low[0] - 1, 0), max(low[1] - 1, 0), min(high[0] + 2, self.width), min(high[1] + 2, self.height)
        return box if box[0] < box[2] and box[1] < box[3] else None

    def frame(self, time_s: float) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1] at ``time_s`` seconds."""
        matrices = self._matrices(time_s)
        view = sample(self.layers[0].texture, transform(matrices[0], (0, 0, self.width, self.height)), "reflection")
        for layer, matrix in zip(self.layers[1:], matrices[1:], strict=True):
            if (box := self._box(layer, matrix)) is not None:
                rgba = sample(layer.texture, transform(matrix, box))
                patch = view[:, box[1] : box[3], box[0] : box[2]]
                patch.mul_(1 - rgba[3]).add_(rgba[:3])
        return view.clamp_(0, 1)

    def _seen(self, time_s: float) -> tuple[list[Tensor], Tensor, Tensor]:
        """Matrices; (layers, H, W) share of each pixel's light per layer, shadows taking theirs; (H, W) owning layer."""
        if self._latest is not None and self._latest[0] == time_s:
            return self._latest[1]
        matrices = self._matrices(time_s)
        seen = torch.zeros(len(self.layers), self.height, self.width)
        seen[0] = 1
        owner = torch.zeros(self.height, self.width, dtype=torch.int64)
        for index in range(1, len(self.layers)):
            layer = self.layers[index]
            if (box := self._box(layer, matrices[index])) is not None:
                left, top, right, bottom = box
                alpha = sample(layer.texture[3:], transform(matrices[index], box))[0]
                seen[:index, top:bottom, left:right] *= 1 - alpha
                seen[index, top:bottom, left:right] = alpha
                if layer.label != SHADOW:
                    owner[top:bottom, left:right].masked_fill_(alpha > 0.5, index)
        return matrices, seen, owner

    def truth(self, time_s: float, before_s: float | None) -> dict[str, Tensor]:
        """Ground truth at ``time_s`` against the frame at ``before_s``.

        Returns:
            ``"segmentation"`` (H, W) int64, ``"flow"`` (2, H, W) float32 pixels, ``"flow_valid"`` (H, W) bool; without a frame
            before, flow is zero and nowhere valid.
        """
        earlier = self._seen(before_s) if before_s is not None else None
        matrices, seen, owner = now = self._seen(time_s)
        self._latest = (time_s, now)  # the next frame's past
        flow = torch.zeros(2, self.height, self.width)
        valid = torch.zeros(self.height, self.width, dtype=torch.bool)
        if earlier is not None:
            here = transform(similarity(), (0, 0, self.width, self.height))
            edge = here.new_tensor([self.width - 1, self.height - 1])
            for index, layer in enumerate(self.layers):
                box = self._box(layer, matrices[index]) if index else (0, 0, self.width, self.height)
                if box is None or layer.label == SHADOW:
                    continue
                window = slice(box[1], box[3]), slice(box[0], box[2])
                there = transform(torch.linalg.inv(earlier[0][index]) @ matrices[index], box)
                kept = sample(earlier[1][index : index + 1], there)[0] > _VISIBLE
                inside = ((there >= 0) & (there <= edge)).all(-1)
                mine = owner[window] == index
                flow[:, window[0], window[1]] = torch.where(mine, (here[window] - there).permute(2, 0, 1), flow[:, *window])
                valid[window] |= mine & kept & inside & (seen[index][window] > _VISIBLE)
        labels = torch.tensor([layer.label for layer in self.layers])
        return {"segmentation": labels[owner], "flow": flow, "flow_valid": valid}


# textures ---------------------------------------------------------------------------------------------------------


def background(photo: Tensor, size: tuple[int, int], cover: float, max_angle: float) -> tuple[Layer, tuple[float, float]]:
    """A photograph, scaled so that it covers ``cover`` times the view at any angle up to ``max_angle``.

    Returns:
        the layer, and how far (x, y) in pixels the camera may move either way before it sees the border.
    """
    width, height = size
    c, s = math.cos(max_angle), math.sin(max_angle)
    need = width * c + height * s, width * s + height * c
    h, w = photo.shape[-2:]
    scale = cover * max(need[0] / w, need[1] / h)  # pixels per photo pixel
    density = min(max(2 / scale, 1.0), 2.0)  # texels per pixel: beyond the photo's own detail more would be waste
    texture = resized(photo, round(w * scale), round(h * scale), density)
    th, tw = texture.shape[-2:]
    fixed = similarity(density, 0.0, ((tw - 1) / 2, (th - 1) / 2))
    slack = max(w * scale - need[0], 0) / 2, max(h * scale - need[1], 0) / 2
    return Layer(texture, lambda _: fixed), slack


def resized(photo: Tensor, width: int, height: int, density: float) -> Tensor:
    """(3, h, w) at ``density`` texels per pixel of (width, height), free of detail that those pixels could not show."""
    if width < photo.shape[-1]:
        photo = F.interpolate(photo[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
    target = round(height * density), round(width * density)
    return F.interpolate(photo[None], target, mode="bicubic", align_corners=False)[0].clamp_(0, 1)


def cut_out(patch: Tensor, alpha: Tensor) -> Tensor:
    """(3, h, w) and (h, w) to a premultiplied (4, h, w) texture with a clear border of two texels."""
    return F.pad(torch.cat([patch * alpha, alpha[None]]), (2, 2, 2, 2))


def placed(texture: Tensor, density: float, pose: Callable[[float], tuple[float, float, float]]) -> Callable[[float], Tensor]:
    """World-to-texel matrices of a prop whose middle is at pose(t) = (x, y, angle)."""
    middle = (texture.shape[-1] - 1) / 2, (texture.shape[-2] - 1) / 2

    def texel_of(time_s: float) -> Tensor:
        x, y, angle = pose(time_s)
        return similarity(density, -angle, middle) @ similarity(shift=(-x, -y))

    return texel_of


def camera(size: tuple[int, int], pose: Callable[[float], tuple[float, float, float, float]]) -> Callable[[float], Tensor]:
    """Pixel-to-world matrices of a camera with pose(t) = (scale, angle, x, y); scale below 1 is closer."""
    middle = similarity(shift=(-(size[0] - 1) / 2, -(size[1] - 1) / 2))

    def world_of(time_s: float) -> Tensor:
        scale, angle, x, y = pose(time_s)
        return similarity(scale, angle, (x, y)) @ middle

    return world_of


# any photograph as a clip -----------------------------------------------------------------------------------------


def render_from_photo(
    photo: Tensor,
    size: tuple[int, int],
    n_frames: int,
    motion: str,
    generator: torch.Generator,
    *,
    objects: int = 0,
) -> tuple[Tensor, Tensor]:
    """Set a photograph in motion, at random, for training.

    Args:
        photo: (3, h, w) RGB in [0, 1]. size: (width, height) of the frames.
        motion: one of ``MOTIONS``, or ``"any"``: pan, zoom and rotation together, each with its own random strength.
        generator: CPU generator of every choice.
        objects: rounded blobs, cut out of the same photograph elsewhere, that move across on their own.
    Returns:
        frames (T, 3, H, W) and flow (T, 2, H, W) in pixels, ``frames[t](p) = frames[t-1](p - flow[t](p))`` where visible;
        ``flow[0]`` is zero.
    Raises:
        UnknownNameError: a motion that does not exist. VideoError: below 64x64.
    """
    if motion not in (*MOTIONS, "any"):
        raise UnknownNameError("motion", motion, [*MOTIONS, "any"])
    check_size(*size, "rendered frames")

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    span = max(n_frames - 1, 1)
    turn = draw(-0.015, 0.015) if motion in ("rotate", "any") else 0.0  # radians per frame
    turn = max(min(turn, 0.5 / span), -0.5 / span)
    growth = draw(-0.02, 0.02) if motion in ("zoom", "any") else 0.0  # log scale per frame
    first_angle = -turn * span / 2
    layer, slack = background(photo, size, draw(1.05, 1.5), abs(turn) * span / 2)
    speed = draw(0.3, 5.0) if motion in ("pan", "any") else 0.0
    heading = draw(0.0, 2 * math.pi)
    reach = [
        min(abs(speed * k) * span / 2, limit) for k, limit in zip((math.cos(heading), math.sin(heading)), slack, strict=True)
    ]
    reach = [math.copysign(r, k) for r, k in zip(reach, (math.cos(heading), math.sin(heading)), strict=True)]
    rest = [draw(-1, 1) * (limit - abs(r)) for r, limit in zip(reach, slack, strict=True)]
    jitter = torch.zeros(n_frames, 3, dtype=torch.float64)
    if motion == "shake":
        noise = torch.randn(n_frames, 3, generator=generator, dtype=torch.float64)
        jitter = noise * torch.tensor([draw(0.2, 2.0), draw(0.2, 2.0), 0.003], dtype=torch.float64)

    def pose(frame: float) -> tuple[float, float, float, float]:
        along, (jx, jy, ja) = 2 * frame / span - 1, jitter[int(frame)].tolist()
        scale = math.exp(growth * frame - max(growth * span, 0.0))  # never beyond 1: no minification
        return scale, first_angle + turn * frame + ja, rest[0] + reach[0] * along + jx, rest[1] + reach[1] * along + jy

    layers = [layer, *(_blob(photo, size, label, span, draw) for label in range(1, objects + 1))]
    stage = Stage(layers, camera(size, pose), *size)
    frames = torch.stack([stage.frame(float(t)) for t in range(n_frames)])
    if objects:
        flow = [stage.truth(float(t), float(t - 1) if t else None)["flow"] for t in range(n_frames)]
    else:
        whole = (0, 0, *size)
        here, matrices = transform(similarity(), whole), [stage.world_of(float(t)) for t in range(n_frames)]
        back = [similarity(), *(torch.linalg.inv(matrices[t - 1]) @ matrices[t] for t in range(1, n_frames))]
        flow = [(here - transform(m, whole)).permute(2, 0, 1) for m in back]
    return frames, torch.stack(flow)


def _blob(photo: Tensor, size: tuple[int, int], label: int, span: int, draw: Callable[[float, float], float]) -> Layer:
    """A star-shaped piece of the photograph on a straight, slowly turning path."""
    side = 2 * max(int(draw(0.15, 0.4) * min(size)), 4)  # texels, two per pixel
    h, w = photo.shape[-2:]
    cut = min(side, h, w)
    top, left = int(draw(0, h - cut)), int(draw(0, w - cut))
    patch = photo[:, top : top + cut, left : left + cut]
    patch = resized(patch, side // 2, side // 2, 2.0)
    gains = torch.tensor([draw(0.6, 1.3) for _ in range(3)])
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    bearing, outline = torch.atan2(y, x), torch.full((side, side), 0.75)
    for k in (2, 3, 5):
        outline += draw(0.0, 0.22 / k) * torch.cos(k * bearing + draw(0, 2 * math.pi))
    alpha = ((outline - torch.hypot(x, y)) * side / 4 + 0.5).clamp(0, 1)
    texture = cut_out((patch * gains[:, None, None]).clamp(0, 1), alpha)
    start = draw(-0.45, 0.45) * size[0], draw(-0.45, 0.45) * size[1]
    step = draw(-5, 5), draw(-5, 5)
    spin = draw(-0.06, 0.06)

    def pose(frame: float) -> tuple[float, float, float]:
        return start[0] + step[0] * (frame - span / 2), start[1] + step[1] * (frame - span / 2), spin * frame

    return Layer(texture, placed(texture, 2.0, pose), label)
