"""Every kind of input comes in with its frames, size and rate; everything wrong is one sentence."""

from __future__ import annotations

import subprocess
import sys
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from semcast.errors import SemcastError, SpecError, UnknownNameError, VideoError
from semcast.video import VideoWriter, frame_to_rgb, open_clips, probe, read, rgb_to_frame, write
from semcast.video.io import check_size, natural_key


def pattern(index: int, height: int = 72, width: int = 96) -> torch.Tensor:
    """A smooth coloured frame that differs from every other index; corners are marked."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rgb = torch.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y, 0.5 + 0.3 * torch.sin(6.28 * (x + y)) * 0.5])
    rgb = rgb * (0.6 + 0.02 * (index % 20))
    rgb[:, : height // 4, : width // 4] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return rgb


def encode(
    path: Path,
    frames: list[torch.Tensor],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a file through PyAV alone; ``times`` are in 1/100 s."""
    height, width = frames[0].shape[-2:]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "8"} if options is None else options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        tick = Fraction(1, 100 if times else 25)
        stream.codec_context.time_base = tick
        if rotation:
            stream.set_display_rotation(rotation)
        for index, frame in enumerate(frames):
            source = "yuv444p" if pix_fmt.startswith(("rgb", "yuva", "gray")) else pix_fmt
            picture = rgb_to_frame(frame, source).reformat(format=pix_fmt)
            picture.pts, picture.time_base = (times[index] if times else index), tick
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean().clamp_min(1e-12)))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options", "floor_db"),
    [
        ("a.mp4", "libx264", "yuv420p", None, 32),
        ("a.mkv", "libx265", "yuv420p10le", {"crf": "8", "x265-params": "log-level=none"}, 32),
        ("a.webm", "libvpx-vp9", "yuv420p", {"crf": "8", "cpu-used": "8"}, 30),
        ("a.avi", "mjpeg", "yuvj420p", {"q:v": "2"}, 30),
        ("a.mkv", "ffv1", "yuv444p", {}, 45),
        ("a.mkv", "ffv1", "yuv422p10le", {}, 40),
        ("a.mkv", "ffv1", "yuva420p", {}, 32),
        ("a.mov", "png", "rgba", {}, 40),
        ("a.ts", "mpeg2video", "yuv420p", {"qmin": "1", "qmax": "2"}, 30),
    ],
)
def test_reads_what_ffmpeg_reads(tmp_path, name, codec, pix_fmt, options, floor_db):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    frames = [pattern(i) for i in range(5)]
    clip = read(encode(tmp_path / name, frames, codec=codec, pix_fmt=pix_fmt, options=options))
    assert (clip.width, clip.height, clip.name) == (96, 72, "a")
    assert clip.fps == pytest.approx(25, rel=0.01)
    for _ in range(2):  # again and again
        got = list(clip.frames())
        assert len(got) == 5
        assert all(f.shape == (3, 72, 96) and f.dtype == torch.float32 for f in got)
        assert min(psnr(a, b) for a, b in zip(got, frames, strict=True)) > floor_db


def test_grey_is_repeated_into_three_channels(tmp_path):
    clip = read(encode(tmp_path / "g.mkv", [pattern(0)], codec="ffv1", pix_fmt="gray", options={}))
    (frame,) = clip
    assert torch.equal(frame[0], frame[1])
    assert torch.equal(frame[0], frame[2])
    luma = (pattern(0) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    assert psnr(frame[0], luma) > 40
    assert clip.yuv_frames() is None


@pytest.mark.parametrize(("height", "width"), [(67, 65), (64, 101), (99, 64)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".y4m"])
def test_odd_sizes_survive_writing_and_reading(tmp_path, height, width, suffix):
    frames = [pattern(i, height, width) for i in range(3)]
    assert write(tmp_path / f"o{suffix}", frames, 24) == 3
    clip = read(tmp_path / f"o{suffix}")
    got = list(clip)
    assert (clip.width, clip.height) == (width, height)
    assert [tuple(f.shape) for f in got] == [(3, height, width)] * 3
    assert psnr(got[1], frames[1]) > 30


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".y4m"])
@pytest.mark.parametrize("fps", [25.0, 29.97, 12.5])
@pytest.mark.parametrize("count", [1, 34])
def test_writer_keeps_count_and_rate(tmp_path, suffix, fps, count):
    path = tmp_path / f"w{suffix}"
    with VideoWriter(path, 96, 72, fps) as writer:
        for index in range(count):
            writer.write(pattern(index))
    info = probe(path)
    assert info.n_frames == count
    assert info.fps == pytest.approx(fps, rel=1e-3)
    assert len(list(read(path))) == count


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_lossless_means_every_8_bit_value(tmp_path, suffix):
    noise = torch.randint(0, 256, (2, 3, 65, 66), generator=torch.Generator().manual_seed(1)) / 255
    write(tmp_path / f"l{suffix}", noise, 25, lossless=True)
    for got, want in zip(read(tmp_path / f"l{suffix}"), noise, strict=True):
        assert torch.equal((got * 255).round(), (want * 255).round())


def test_a_png_keeps_one_frame_exactly(tmp_path):
    noise = torch.randint(0, 256, (2, 3, 65, 67), generator=torch.Generator().manual_seed(1)) / 255
    write(tmp_path / "one.png", noise[:1], 25)
    assert torch.equal((next(iter(read(tmp_path / "one.png"))) * 255).round(), (noise[0] * 255).round())
    with pytest.raises(VideoError, match="holds one frame"):
        write(tmp_path / "two.png", noise, 25)


def test_writer_takes_damage_in_its_stride(tmp_path):
    frame = pattern(0)
    frame[0, 0, 0], frame[1, 1, 1] = float("nan"), 7.0
    assert write(tmp_path / "d.mp4", [frame], 25) == 1
    with pytest.raises(VideoError, match="expected"):
        write(tmp_path / "e.mp4", [pattern(0), pattern(0, 80, 96)], 25)
    with pytest.raises(VideoError, match="no frames to write"):
        write(tmp_path / "f.mp4", [], 25)
    with pytest.raises(SpecError, match="endings"):
        VideoWriter(tmp_path / "f.doc", 96, 72, 25)
    with pytest.raises(SpecError, match=r"\.mkv"):
        VideoWriter(tmp_path / "f.y4m", 96, 72, 25, lossless=True)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_display_matrix_is_applied(tmp_path, rotation):
    path = encode(tmp_path / "r.mp4", [pattern(0)], rotation=rotation)
    clip = read(path)
    (frame,) = clip
    assert clip.info.rotation == rotation % 360
    want = torch.rot90(pattern(0), rotation // 90, (-2, -1))  # counter-clockwise
    assert frame.shape == want.shape == (3, clip.height, clip.width)
    assert psnr(frame, want) > 32
    assert clip.yuv_frames() is None


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_keeps_frames_and_averages_rate(tmp_path, suffix):
    times = [0, 2, 10, 14, 30, 31, 50, 54]
    path = encode(tmp_path / f"v{suffix}", [pattern(i) for i in range(8)], times=times, options={"crf": "8", "bf": "0"})
    clip = read(path)
    assert len(list(clip)) == clip.n_frames == 8
    assert clip.fps == pytest.approx(8 / 0.58, rel=0.1)  # the last frame's own duration is the muxer's guess


def test_resampling_drops_and_repeats(tmp_path):
    path = encode(tmp_path / "t.mkv", [pattern(i) for i in range(10)], codec="ffv1", options={})
    all_frames = list(read(path))
    half = read(path, fps=12.5)
    assert half.fps == pytest.approx(12.5)
    assert half.n_frames == 5
    assert [psnr(a, b) > 60 for a, b in zip(half, all_frames[::2], strict=True)] == [True] * 5
    double = list(read(path, fps=50))
    assert len(double) == 20
    assert torch.equal(double[5], all_frames[2])
    small = read(path, size=(64, 66), max_frames=3)
    assert [tuple(f.shape) for f in small] == [(3, 66, 64)] * 3
    assert small.n_frames == 3
    assert small.yuv_frames() is None


@pytest.mark.parametrize(("height", "width"), [(72, 96), (67, 65)])
@pytest.mark.parametrize("bits", [8, 10])
def test_raw_yuv(tmp_path, height, width, bits):
    pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
    frames = [pattern(i, height, width) for i in range(3)]
    path = tmp_path / (f"Clip_{width}x{height}_50.yuv" if bits == 8 else f"Clip_{width}x{height}_50fps_10bit.yuv")
    with path.open("wb") as file:
        for frame in frames:
            for plane in rgb_to_frame(frame, pix_fmt).planes:
                step = 1 if bits == 8 else 2
                rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width * step]
                file.write(rows.tobytes())
    named = read(path)
    assert (named.fps, named.n_frames, named.info.pix_fmt) == (50, 3, pix_fmt)
    given = tmp_path / "noname.yuv"
    path.rename(given)
    told = read(given, size=(width, height), fps=30, pix_fmt=pix_fmt)
    assert (told.fps, told.width, told.height) == (30, width, height)
    got = list(told)
    assert len(got) == 3
    assert psnr(got[2], frames[2]) > 32
    own = told.yuv_frames()
    assert own is not None
    assert [f.format.name for f in own] == [pix_fmt] * 3
    with pytest.raises(SpecError, match="--size"):
        read(given)
    with pytest.raises(VideoError, match="whole number"):
        read(given, size=(width + 1, height + 3), pix_fmt=pix_fmt)
    with pytest.raises(SpecError, match="pixel format"):
        read(given, size=(width, height), pix_fmt="nonsense")


def test_own_frames_are_those_behind_the_rgb(tmp_path):
    clip = read(encode(tmp_path / "y.mp4", [pattern(i) for i in range(3)]), max_frames=2)
    own = clip.yuv_frames()
    assert own is not None
    pairs = list(zip(own, clip, strict=True))
    assert len(pairs) == 2
    assert all(torch.equal(frame_to_rgb(mine), rgb) for mine, rgb in pairs)


def test_streaming_holds_one_frame_at_a_time(tmp_path):
    path = tmp_path / "s.mkv"
    write(path, (pattern(i) for i in range(120)), 25)
    seen: list[weakref.ref[torch.Tensor]] = []
    for frame in read(path):
        seen.append(weakref.ref(frame))
        assert sum(ref() is not None for ref in seen) <= 2
    assert len(seen) == 120


def test_closing_early_is_fine(tmp_path):
    path = encode(tmp_path / "c.mp4", [pattern(i) for i in range(8)])
    frames = read(path).frames()
    next(frames)
    frames.close()
    path.unlink()
    assert not path.exists()


# pictures


def _save_png(path: Path, frame: torch.Tensor) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((frame * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def test_folder_of_pictures_is_one_clip_in_natural_order(tmp_path):
    for index in (10, 9, 1, 100):
        _save_png(tmp_path / f"frame_{index}.png", torch.full((3, 64, 70), index / 255))
    (clip,) = open_clips(tmp_path, fps=10)
    assert (clip.fps, clip.n_frames, clip.width, clip.height) == (10, 4, 70, 64)
    assert [round(float(f.mean() * 255)) for f in clip] == [1, 9, 10, 100]
    assert clip.yuv_frames() is None
    stills = open_clips(tmp_path, stills=True)
    assert [c.name for c in stills] == ["frame_1", "frame_9", "frame_10", "frame_100"]
    assert [len(list(c)) for c in stills] == [1] * 4
    assert len(list(open_clips(tmp_path, max_frames=2)[0])) == 2


def test_pictures_of_different_sizes_are_stills_unless_scaled(tmp_path):
    _save_png(tmp_path / "a.png", pattern(0, 64, 96))
    _save_png(tmp_path / "b.png", pattern(0, 96, 64))
    assert [(c.width, c.height) for c in open_clips(tmp_path)] == [(96, 64), (64, 96)]
    (clip,) = open_clips(tmp_path, size=(80, 80))
    assert [tuple(f.shape) for f in clip] == [(3, 80, 80)] * 2


def test_single_pictures_16_bit_grey_alpha_and_orientation(tmp_path):
    import cv2
    from PIL import Image

    wide = (torch.rand(64, 80, generator=torch.Generator().manual_seed(0)) * 65535).int().numpy().astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), wide)
    (frame,) = open_clips(tmp_path / "deep.png")[0]
    assert np.allclose(frame[0].numpy() * 65535, wide, atol=0.6)
    rgba = np.dstack([np.full((64, 64, 3), 200, np.uint8), np.zeros((64, 64, 1), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    (frame,) = open_clips(tmp_path / "alpha.png")[0]
    assert frame.mean() * 255 == pytest.approx(200, abs=0.01)
    turned = Image.fromarray((pattern(0) * 255).byte().permute(1, 2, 0).numpy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (clip,) = open_clips(tmp_path / "turned.jpg")
    (frame,) = clip
    assert frame.shape == (3, clip.height, clip.width) == (3, 96, 72)
    assert psnr(frame, torch.rot90(pattern(0), -1, (-2, -1))) > 30


def test_folder_of_videos_is_a_clip_each(tmp_path):
    encode(tmp_path / "b10.mp4", [pattern(0)])
    encode(tmp_path / "b9.mp4", [pattern(0)] * 2)
    assert [(c.name, len(list(c))) for c in open_clips(tmp_path)] == [("b9", 2), ("b10", 1)]
    _save_png(tmp_path / "x.png", pattern(0))
    with pytest.raises(VideoError, match="both"):
        open_clips(tmp_path)


def test_natural_key_orders_mixed_names():
    names = ["10.png", "9.png", "a2.png", "a10.png", "B1.png", "a.png"]
    assert sorted(names, key=lambda n: natural_key(Path(n))) == ["9.png", "10.png", "a2.png", "a10.png", "a.png", "B1.png"]


# what is wrong is said in one sentence


def damaged(tmp_path: Path) -> dict[str, Path]:
    whole = encode(tmp_path / "whole.mp4", [pattern(i) for i in range(30)])
    data = whole.read_bytes()
    fast = encode(tmp_path / "fast.mkv", [pattern(i) for i in range(30)], codec="ffv1", options={})
    raw = tmp_path / "raw.y4m"
    write(raw, [pattern(i) for i in range(3)], 25)
    cases = {
        "cut.mp4": data[: len(data) // 2],  # the index at the end is gone
        "cut.mkv": fast.read_bytes()[: fast.stat().st_size // 2],
        "text.txt": b"hello world\n" * 200,
        "text.mp4": b"hello world\n" * 200,
        "noise.mkv": bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
        "empty.mp4": b"",
        "noise.png": b"\x89PNG\r\n\x1a\n" + b"x" * 300,
        "text.jpg": b"not a picture",
        "header.y4m": b"YUV4MPEG2 W96 H72 F25:1 Ip A1:1 C420jpeg\n",
        "cut.y4m": raw.read_bytes()[:-100],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in cases}


@pytest.mark.parametrize(
    "name",
    [
        "cut.mp4",
        "cut.mkv",
        "text.txt",
        "text.mp4",
        "noise.mkv",
        "empty.mp4",
        "noise.png",
        "text.jpg",
        "header.y4m",
        "cut.y4m",
        "absent.mp4",
    ],
)
def test_bad_files_raise_one_sentence(tmp_path, name):
    damaged(tmp_path)
    with pytest.raises(VideoError) as caught:
        [list(clip) for clip in open_clips(tmp_path / name)]
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_still_gives_its_beginning(tmp_path):
    path = damaged(tmp_path)["cut.mkv"]
    assert len(list(read(path, max_frames=5))) == 5
    with pytest.raises(VideoError, match=r"--max-frames \d+"):
        list(read(path))


def test_truncated_mp4_with_its_index_in_front(tmp_path):
    path = encode(tmp_path / "f.mp4", [pattern(i) for i in range(30)])
    with av.open(str(path)) as source, av.open(str(tmp_path / "g.mp4"), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = (tmp_path / "g.mp4").read_bytes()
    (tmp_path / "g.mp4").write_bytes(data[: int(len(data) * 0.7)])
    with pytest.raises(VideoError, match=r"truncated|damaged"):
        list(read(tmp_path / "g.mp4"))


def test_sound_without_picture_is_no_video(tmp_path):
    with av.open(str(tmp_path / "s.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="not a video"):
        read(tmp_path / "s.wav")


def test_too_small_and_senseless_requests(tmp_path):
    small = encode(tmp_path / "small.mp4", [pattern(0, 62, 96)])
    good = encode(tmp_path / "good.mp4", [pattern(0)])
    _save_png(tmp_path / "p" / "a.png", pattern(0, 40, 96))
    (tmp_path / "nothing").mkdir()
    for call in (
        lambda: read(small),
        lambda: open_clips(tmp_path / "p"),
        lambda: open_clips(tmp_path / "p" / "a.png"),
        lambda: open_clips(good, size=(96, 10)),
        lambda: check_size(63, 64),
    ):
        with pytest.raises(VideoError, match="64x64"):
            call()
    check_size(64, 64)
    with pytest.raises(VideoError, match="no pictures"):
        open_clips(tmp_path / "nothing")
    with pytest.raises(VideoError, match="folder"):
        read(tmp_path)
    with pytest.raises(SpecError, match="frames per second"):
        open_clips(good, fps=0)
    with pytest.raises(SpecError, match="max-frames"):
        open_clips(good, max_frames=0)
    with pytest.raises(UnknownNameError, match="camvid"):
        open_clips("camvd:somewhere")
    with pytest.raises(SemcastError):
        open_clips("C:nowhere.mp4")


def test_size_change_inside_a_stream_is_said(tmp_path):
    first = encode(tmp_path / "1.h264", [pattern(0)]).read_bytes()
    second = encode(tmp_path / "2.h264", [pattern(0, 80, 80)]).read_bytes()
    (tmp_path / "both.h264").write_bytes(first + second)
    with pytest.raises(VideoError, match="80x80"):
        list(read(tmp_path / "both.h264"))


def test_names_with_colons_are_files(tmp_path):
    path = encode(tmp_path / "plain.mp4", [pattern(0)])
    odd = path.rename(tmp_path / "kodak:a b.mp4")
    assert len(list(open_clips(odd)[0])) == 1


def test_importing_the_package_is_light():
    code = "import sys, semcast.video; print([m for m in ('av', 'cv2', 'skimage', 'scipy', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
