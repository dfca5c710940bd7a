"""Colour conversion: code values survive, the matrices are the standards', tags are honoured."""

from __future__ import annotations

import pytest
import torch

from semcast.errors import SpecError, VideoError
from semcast.video.colour import Yuv, _down, _up, frame_to_rgb, matrix_for, rgb_to_frame, rgb_to_yuv420, yuv420_to_rgb


def photo_like(height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0.05, 0.95)


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean().clamp_min(1e-12)))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (67, 65), (65, 66), (720, 64)])
@pytest.mark.parametrize("bits", [8, 10])
def test_what_a_file_held_survives_rgb_exactly(height, width, bits):
    generator = torch.Generator().manual_seed(3)
    scale = 1 << (bits - 8)
    half = (2, (height + 1) // 2, (width + 1) // 2)
    y = torch.randint(90 * scale, 150 * scale, (2, height, width), generator=generator)
    u, v = (torch.randint(112 * scale, 140 * scale, half, generator=generator) for _ in range(2))
    rgb = yuv420_to_rgb(Yuv(y, u, v), bits=bits)
    assert rgb.shape == (2, 3, height, width)
    assert 0 < rgb.min() < rgb.max() < 1  # no colour clipped, so nothing may be lost
    back = rgb_to_yuv420(rgb, bits=bits)
    for got, want in zip(back, (y, u, v), strict=True):
        assert torch.equal(got.long(), want)


@pytest.mark.parametrize("siting", ["left", "centre"])
@pytest.mark.parametrize("n", [3, 4, 8, 65])
@pytest.mark.parametrize("dim", [-1, -2])
def test_down_is_the_least_squares_inverse_of_up(siting, n, dim):
    generator = torch.Generator().manual_seed(n)
    low, high = torch.randn(3, (n + 1) // 2, generator=generator), torch.randn(3, n, generator=generator)
    low, high = (x if dim == -1 else x.mT for x in (low, high))
    assert torch.allclose(_down(_up(low, dim, n, siting), dim, siting), low, atol=1e-5)
    residual = high - _up(_down(high, dim, siting), dim, n, siting)
    columns = _up(torch.eye((n + 1) // 2), -1, n, siting)  # the residual is orthogonal to all that can be shown
    assert torch.allclose((residual if dim == -1 else residual.mT) @ columns.mT, torch.zeros(()), atol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "rgb", "code"),
    [  # BT.601 and BT.709 colour bars, 8 bit
        ("bt601", (1, 0, 0), (81, 90, 240)),
        ("bt601", (0, 1, 0), (145, 54, 34)),
        ("bt601", (0, 0, 1), (41, 240, 110)),
        ("bt709", (1, 0, 0), (63, 102, 240)),
        ("bt709", (0, 1, 0), (173, 42, 26)),
        ("bt709", (0, 0, 1), (32, 240, 118)),
        ("bt709", (1, 1, 1), (235, 128, 128)),
        ("bt601", (0, 0, 0), (16, 128, 128)),
    ],
)
def test_standard_colours(matrix, rgb, code):
    frame = torch.tensor(rgb, dtype=torch.float32)[:, None, None].expand(3, 64, 64)
    planes = rgb_to_yuv420(frame, matrix=matrix)
    assert tuple(int(p.float().mean()) for p in planes) == code


def test_matrix_rule_and_tags():
    assert (matrix_for(719), matrix_for(720)) == ("bt601", "bt709")
    rgb = photo_like(64, 96)
    for matrix in ("bt601", "bt709", "bt2020", "smpte240m", "fcc"):
        assert psnr(frame_to_rgb(rgb_to_frame(rgb, "yuv444p", matrix=matrix)), rgb) > 50  # the tag tells the reader
    untagged = rgb_to_frame(rgb, "yuv444p", matrix="bt709")
    untagged.colorspace = 2
    assert psnr(frame_to_rgb(untagged), rgb) < 40  # read as BT.601, and that is wrong
    with pytest.raises(SpecError, match="bt601"):
        rgb_to_yuv420(rgb, matrix="bt602")
    with pytest.raises(VideoError, match="yuv420p"):
        rgb_to_frame(rgb, "nv12")


@pytest.mark.parametrize(
    ("pix_fmt", "floor_db"),
    [("yuv444p", 52), ("yuv420p", 42), ("yuv422p", 44), ("gbrp", 58), ("yuv444p10le", 64), ("yuv420p10le", 42)],
)
def test_every_written_format_reads_back(pix_fmt, floor_db):
    rgb = photo_like(67, 97)
    assert psnr(frame_to_rgb(rgb_to_frame(rgb, pix_fmt)), rgb) > floor_db


@pytest.mark.parametrize(
    "pix_fmt",
    [
        "nv12",
        "p010le",
        "yuyv422",
        "yuva420p",
        "yuvj420p",
        "yuv411p",
        "yuv440p",
        "yuv420p10be",
        "rgb24",
        "bgra",
        "rgb48le",
        "gbrap",
    ],
)
def test_foreign_formats_agree_with_ours(pix_fmt):
    rgb = photo_like(64, 96)
    other = rgb_to_frame(rgb, "yuv444p").reformat(format=pix_fmt)
    # FFmpeg's own conversion on the way there is the coarse part, and coarsest at a quarter of the chroma
    assert psnr(frame_to_rgb(other), rgb) > (29 if pix_fmt == "yuv411p" else 34)


def test_full_range_is_read_as_full_range():
    frame = rgb_to_frame(torch.full((3, 64, 64), 0.5), "yuv444p")
    limited = frame_to_rgb(frame).mean()
    frame.color_range = 2
    assert frame_to_rgb(frame).mean() == pytest.approx(126 / 255, abs=1e-3)
    assert limited == pytest.approx(0.5, abs=3e-3)
