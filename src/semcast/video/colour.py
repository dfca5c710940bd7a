"""Between RGB and the YCbCr of video files, exactly where that is possible.

Two things make our own maths better than a converter's defaults. RGB stays float, so 8 or 10 bit code values come back
unchanged. And the chroma of 4:2:0 is brought down by the least-squares inverse of the very interpolation that brings it
up: what a file held survives decoding to RGB and back (colours outside the RGB cube excepted), and what was
never subsampled loses as little as this interpolation allows.

Matrix: the stream's own tag; untagged streams are BT.601 below 720 lines and BT.709 from there. Transfer curves are left
as they are: high dynamic range comes out as its code values. Chroma sits on even columns and between rows (the "left"
position of MPEG-2, H.264 and H.265); Motion JPEG has it in the middle of both.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from semcast.errors import SpecError, VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# name -> (Kr, Kb) of ITU-R BT.601, BT.709, BT.2020, SMPTE 240M, FCC
MATRICES: dict[str, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}
# FFmpeg's colour-space tags (ITU-T H.273, table 4) that name one of these
_TAGS = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_TAG_OF = {"bt709": 1, "fcc": 4, "bt601": 6, "smpte240m": 7, "bt2020": 9}
_PLANAR = re.compile(r"(?:yuva?|yuvj)(420|422|444|440|411|410)p(\d+)?(?:le)?|gray(\d+)?(?:le)?")
# layout -> log2 of the subsampling (vertical, horizontal)
_SHIFTS = {
    "420": (1, 1),
    "422": (0, 1),
    "444": (0, 0),
    "440": (1, 0),
    "411": (0, 2),
    "410": (2, 2),
}


class Yuv(NamedTuple):
    """Planes of limited-range YCbCr code values: y (..., H, W); u, v (..., ceil(H/2), ceil(W/2)) for 4:2:0; uint8 or int32."""

    y: Tensor
    u: Tensor
    v: Tensor


def matrix_for(height: int) -> str:
    """The matrix of an untagged stream of ``height`` lines: BT.601 below 720, BT.709 from there."""
    return "bt601" if height < 720 else "bt709"


def _coefficients(matrix: str | None, height: int) -> tuple[float, float]:
    name = matrix or matrix_for(height)
    if name not in MATRICES:
        raise SpecError(f"unknown colour matrix {name!r}; known: {', '.join(MATRICES)}")
    return MATRICES[name]


def _up(c: Tensor, dim: int, n: int, siting: str) -> Tensor:
    """Interpolate linearly to twice as many samples along ``dim`` (-1 or -2), cropped to ``n``."""
    after = torch.cat([c.narrow(dim, 1, c.shape[dim] - 1), c.narrow(dim, -1, 1)], dim)
    if siting == "left":  # even samples coincide, odd ones lie half way
        pair = (c, (c + after) * 0.5)
    else:  # "centre": both lie a quarter of a chroma sample to either side
        before = torch.cat([c.narrow(dim, 0, 1), c.narrow(dim, 0, c.shape[dim] - 1)], dim)
        pair = (c * 0.75 + before * 0.25, c * 0.75 + after * 0.25)
    return torch.stack(pair, dim).flatten(dim - 1, dim).narrow(dim, 0, n)


def _up_transposed(c: Tensor, dim: int, siting: str) -> Tensor:
    """The adjoint of :func:`_up`."""
    pad = c.shape[dim] % 2
    c = F.pad(c, (0, pad) if dim == -1 else (0, 0, 0, pad))
    even, odd = c.unflatten(dim, (-1, 2)).unbind(dim)
    last, first = odd.narrow(dim, -1, 1), even.narrow(dim, 0, 1)
    odd_before = torch.cat([torch.zeros_like(last), odd.narrow(dim, 0, odd.shape[dim] - 1)], dim)
    if siting == "left":
        out = even + 0.5 * (odd + odd_before)
        out.narrow(dim, -1, 1).add_(last, alpha=0.5)
    else:
        even_after = torch.cat([even.narrow(dim, 1, even.shape[dim] - 1), torch.zeros_like(first)], dim)
        out = 0.75 * (even + odd) + 0.25 * (even_after + odd_before)
        out.narrow(dim, 0, 1).add_(first, alpha=0.25)
        out.narrow(dim, -1, 1).add_(last, alpha=0.25)
    return out


@lru_cache(maxsize=32)
def _gram_banded(n: int, siting: str) -> np.ndarray:
    """Upper banded form of U'U for the interpolation U from ceil(n/2) to n samples: symmetric, tridiagonal."""
    u = _up(torch.eye((n + 1) // 2), -1, n, siting)
    bands = torch.zeros(2, u.shape[0])
    bands[0, 1:] = (u[:-1] * u[1:]).sum(-1)
    bands[1] = u.square().sum(-1)
    return bands.numpy()


def _down(c: Tensor, dim: int, siting: str) -> Tensor:
    """The least-squares inverse of :func:`_up`: ``(U'U)^-1 U' c`` along ``dim``, so that down(up(c)) = c."""
    from scipy.linalg import solveh_banded

    right = _up_transposed(c, dim, siting).movedim(dim, 0)
    solved = solveh_banded(_gram_banded(c.shape[dim], siting), right.reshape(right.shape[0], -1).numpy(), check_finite=False)
    return torch.from_numpy(solved).reshape(right.shape).movedim(0, dim)


def _subsample(c: Tensor, layout: str) -> Tensor:
    vertical, horizontal = _SHIFTS[layout]
    for _ in range(vertical):
        c = _down(c, -2, "centre")
    for _ in range(horizontal):
        c = _down(c, -1, "left")
    return c


def _interpolate(c: Tensor, layout: str, height: int, width: int, siting: str) -> Tensor:
    vertical, horizontal = _SHIFTS[layout]
    for k in reversed(range(horizontal)):
        c = _up(c, -1, -(-width >> k) if k else width, siting)
    for k in reversed(range(vertical)):
        c = _up(c, -2, -(-height >> k) if k else height, "centre")
    return c


def _encode(frames: Tensor, layout: str, matrix: str | None, bits: int) -> Yuv:
    """(..., 3, H, W) RGB in [0, 1] to rounded limited-range planes; BT.601 / BT.709 sections on quantisation."""
    kr, kb = _coefficients(matrix, frames.shape[-2])
    r, g, b = frames.detach().float().cpu().unbind(-3)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u = _subsample((b - y) / (2 * (1 - kb)), layout)
    v = _subsample((r - y) / (2 * (1 - kr)), layout)
    unit, top = float(1 << (bits - 8)), (1 << bits) - 1
    dtype = torch.uint8 if bits == 8 else torch.int32
    luma = (y * (219 * unit) + 16 * unit).round_().clamp_(0, top).to(dtype)
    chroma = [(c * (224 * unit) + 128 * unit).round_().clamp_(0, top).to(dtype) for c in (u, v)]
    return Yuv(luma, chroma[0], chroma[1])


def _decode(yuv: Yuv, layout: str, matrix: str | None, bits: int, full_range: bool, siting: str) -> Tensor:
    """Planes to (..., 3, H, W) float32 RGB in [0, 1], not rounded to 8 bits."""
    height, width = yuv.y.shape[-2:]
    kr, kb = _coefficients(matrix, height)
    unit, top = float(1 << (bits - 8)), float((1 << bits) - 1)
    y_zero, y_span, c_span = (0.0, top, top) if full_range else (16 * unit, 219 * unit, 224 * unit)
    y = (yuv.y.float() - y_zero) * (1 / y_span)
    u, v = (_interpolate((c.float() - 128 * unit) * (1 / c_span), layout, height, width, siting) for c in (yuv.u, yuv.v))
    r = torch.add(y, v, alpha=2 * (1 - kr))
    b = torch.add(y, u, alpha=2 * (1 - kb))
    g = (y - kr * r - kb * b) * (1 / (1 - kr - kb))
    return torch.stack([r, g, b], -3).clamp_(0, 1)


def rgb_to_yuv420(frames: Tensor, *, matrix: str | None = None, bits: int = 8) -> Yuv:
    """RGB to limited-range 4:2:0, the inverse of :func:`yuv420_to_rgb` wherever no colour had to be clipped.

    Args:
        frames: (..., 3, H, W) RGB in [0, 1], any H and W.
        matrix: a key of ``MATRICES``; None: :func:`matrix_for` the height.
        bits: per sample, 8 to 16.
    Returns:
        y (..., H, W) and u, v (..., ceil(H/2), ceil(W/2)): uint8, or int32 above 8 bits.
    """
    return _encode(frames, "420", matrix, bits)


def yuv420_to_rgb(yuv: Yuv, *, matrix: str | None = None, bits: int = 8) -> Tensor:
    """Limited-range 4:2:0 planes to (..., 3, H, W) float32 RGB in [0, 1], not rounded to 8 bits."""
    return _decode(yuv, "420", matrix, bits, False, "left")


def matrix_of(frame: VideoFrame) -> str:
    """Name of the matrix that a decoded frame is tagged with, or the rule for untagged ones."""
    return _TAGS.get(int(frame.colorspace), matrix_for(frame.height))


def _plane(frame: VideoFrame, index: int, bits: int) -> Tensor:
    plane = frame.planes[index]
    kind = np.dtype(np.uint8) if bits == 8 else np.dtype("<u2")
    rows = np.frombuffer(cast(Any, plane), kind).reshape(-1, plane.line_size // kind.itemsize)[: plane.height, : plane.width]
    return torch.from_numpy(rows.astype(np.uint8 if bits == 8 else np.int32))  # a copy: the decoder reuses its buffers


def _to_planar(frame: VideoFrame) -> VideoFrame:
    """The same samples in a pixel format that :func:`frame_to_rgb` reads plane by plane."""
    from av.video.reformatter import Interpolation as I

    exact = I.BICUBIC | I.ACCURATE_RND | I.FULL_CHR_H_INT | I.FULL_CHR_H_INP | I.BITEXACT
    fmt = frame.format
    bits = max(c.bits for c in fmt.components)
    if fmt.is_rgb or fmt.has_palette:
        return frame.reformat(format="gbrp" if bits <= 8 else "gbrp16le", interpolation=exact)
    chroma = [c for c in fmt.components if c.is_chroma]
    depth = next(d for d in (8, 10, 12, 16) if d >= bits)
    suffix = "" if depth == 8 else f"{depth}le"
    if not chroma:
        return frame.reformat(format=f"gray{suffix}", interpolation=exact)
    wide, high = chroma[0].width == fmt.width, chroma[0].height == fmt.height
    layout = "444" if wide and high else "422" if high else "420"
    return frame.reformat(format=f"yuv{layout}p{suffix}", interpolation=exact)


def frame_to_rgb(frame: VideoFrame, *, siting: str = "left") -> Tensor:
    """A decoded frame of any pixel format to (3, H, W) float32 RGB in [0, 1]; alpha is dropped, grey repeated.

    Args:
        frame: as PyAV decodes it; matrix and range are taken from its tags.
        siting: horizontal position of subsampled chroma, ``"left"`` or ``"centre"`` (Motion JPEG).
    """
    known = _PLANAR.fullmatch(frame.format.name)
    if known is None and not re.fullmatch(r"gbrap?(\d+(le)?)?", frame.format.name):
        frame = _to_planar(frame)
        known = _PLANAR.fullmatch(frame.format.name)
    bits = frame.format.components[0].bits
    if known is None:  # planes in the order G, B, R
        g, b, r = (_plane(frame, k, bits) for k in range(3))
        return torch.stack([r, g, b]).float().div_((1 << bits) - 1)
    y = _plane(frame, 0, bits)
    if known[1] is None:  # grey: full range unless the tag says otherwise, as in FFmpeg
        unit = 1 << (bits - 8)
        zero, span = (16 * unit, 219 * unit) if int(frame.color_range) == 1 else (0, (1 << bits) - 1)
        return ((y.float() - zero) / span).clamp_(0, 1).expand(3, -1, -1).clone()
    full_range = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    yuv = Yuv(y, _plane(frame, 1, bits), _plane(frame, 2, bits))
    return _decode(yuv, known[1], matrix_of(frame), bits, full_range, siting)


def rgb_to_frame(frame: Tensor, pix_fmt: str = "yuv420p", *, matrix: str | None = None) -> VideoFrame:
    """(3, H, W) RGB in [0, 1] to a PyAV frame with its tags set.

    Args:
        frame: values outside [0, 1] are clipped, NaN counts as 0.
        pix_fmt: ``yuv420p``, ``yuv422p``, ``yuv444p``, their ``10le`` forms, ``gbrp``, or ``gray`` (luma of the matrix).
        matrix: a key of ``MATRICES``; None: :func:`matrix_for` the height.
    """
    from av.video.frame import VideoFrame as Frame

    frame = torch.nan_to_num(frame.detach().float().cpu()).clamp(0, 1)
    height, width = frame.shape[-2:]
    out = Frame(width, height, pix_fmt)
    known = _PLANAR.fullmatch(pix_fmt)
    bits = out.format.components[0].bits
    if pix_fmt == "gbrp":
        planes = list(frame[[1, 2, 0]].mul(255).round().to(torch.uint8))
    elif known is not None and known[1] is not None:
        planes = list(_encode(frame, known[1], matrix, bits))
        out.colorspace, out.color_range = _TAG_OF[matrix or matrix_for(height)], 1
    elif pix_fmt == "gray":
        kr, kb = _coefficients(matrix, height)
        luma = torch.einsum("chw,c->hw", frame, torch.tensor([kr, 1 - kr - kb, kb]))
        planes, out.color_range = [luma.mul(255).round().to(torch.uint8)], 2
    else:
        raise VideoError(f"frames cannot be written as {pix_fmt!r}; use yuv420p, yuv444p, gbrp or gray")
    kind = np.dtype(np.uint8) if bits == 8 else np.dtype("<u2")
    for plane, values in zip(out.planes, planes, strict=True):
        rows = np.frombuffer(cast(Any, plane), kind).reshape(-1, plane.line_size // kind.itemsize)
        rows[: plane.height, : plane.width] = values.numpy()
    return out
