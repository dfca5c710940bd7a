"""Rendered scenes: the ground truth is checked against the pictures themselves."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from semcast.errors import SpecError, UnknownNameError, VideoError
from semcast.video import open_clips, open_scene, render_from_photo
from semcast.video.render import warp
from semcast.video.scenes import EVAL_SCENES, MOTIONS, SCENES, TRAIN_SCENES
from semcast.video.steps import steps

SMALL = "size=160x96,frames=6,fps=25"


def psnr(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean(0)[where].mean().clamp_min(1e-12)))


def test_no_photograph_serves_training_and_evaluation():
    train = set().union(*(scene.photos for scene in TRAIN_SCENES.values()))
    evaluation = set().union(*(scene.photos for scene in EVAL_SCENES.values()))
    assert train
    assert evaluation
    assert not train & evaluation
    assert "demo" in EVAL_SCENES
    for split in (TRAIN_SCENES, EVAL_SCENES):
        assert {scene.motion for scene in split.values()} == set(MOTIONS)


@pytest.mark.parametrize("name", sorted(SCENES))
def test_flow_takes_each_frame_to_the_next(name):
    items = list(open_scene(f"{name}:{SMALL}").labelled_frames())
    assert len(items) == 6
    assert not items[0][1]["flow"].any()
    assert not items[0][1]["flow_valid"].any()
    for (before, _), (frame, truth) in itertools.pairwise(items):
        valid = truth["flow_valid"]
        assert frame.shape == (3, 96, 160)
        assert valid.float().mean() > 0.75
        predicted = psnr(frame, warp(before, truth["flow"]), valid)
        # bilinear prediction of fine texture costs more than an exact flow leaves; 1 pixel of error costs 10 dB and more
        assert predicted > 30
        if truth["flow"][:, valid].norm(dim=0).mean() > 0.5:
            shifted = torch.roll(before, 1, -1)
            assert predicted > psnr(frame, warp(shifted, truth["flow"]), valid) + 5


@pytest.mark.parametrize("name", ["gravel-rotate", "demo"])
def test_segmentation_marks_the_objects_where_they_are(name):
    clip = open_scene(f"{name}:size=208x120,frames=4")
    labels = len(SCENES[name].props)
    for frame, truth in clip.labelled_frames():
        segmentation = truth["segmentation"]
        assert segmentation.dtype == torch.int64
        assert set(segmentation.unique().tolist()) == set(range(labels + 1))
        for label in range(1, labels + 1):
            inside = segmentation == label
            assert 0.005 < inside.float().mean() < 0.3
            assert frame[:, inside].std() > 0.02  # textured


def test_static_background_stands_still_while_objects_move():
    items = list(open_scene(f"coffee-static:{SMALL}").labelled_frames())
    truth = items[3][1]
    background = truth["segmentation"] == 0
    assert truth["flow"][:, background].abs().max() < 1e-3
    assert all(truth["flow"][:, truth["segmentation"] == k].norm(dim=0).mean() > 0.3 for k in (1, 2))


def test_same_seed_same_clip_other_seed_another():
    first, again, other = (list(open_scene(f"cat-shake:{SMALL},seed={seed}")) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])
    state = torch.random.get_rng_state()
    list(open_scene(f"cat-shake:{SMALL}"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_size_rate_and_length_are_what_was_asked_for():
    clip = open_scene("scene:coffee-pan:size=101x67,frames=5,fps=30,seed=1")
    assert (clip.width, clip.height, clip.fps, clip.n_frames, clip.name) == (101, 67, 30, 5, "coffee-pan")
    assert [tuple(f.shape) for f in clip] == [(3, 67, 101)] * 5
    assert int(clip.labels["motion"]) == MOTIONS.index("pan")
    (clip,) = open_clips("scene:demo", size=(128, 72), fps=10, max_frames=2)
    assert (clip.width, clip.height, clip.fps, clip.n_frames) == (128, 72, 10, 2)
    assert clip.yuv_frames() is None
    default = open_scene("demo")
    assert (default.width, default.height, default.fps, default.n_frames) == (416, 240, 25, 33)


def test_a_higher_rate_shows_the_same_motion_in_smaller_steps():
    slow = list(open_scene("motorcycle-pan:size=128x72,frames=3,fps=10").labelled_frames())
    fast = list(open_scene("motorcycle-pan:size=128x72,frames=5,fps=20").labelled_frames())
    assert torch.allclose(slow[2][0], fast[4][0], atol=1e-4)
    assert slow[2][1]["flow"].mean() == pytest.approx(float(fast[3][1]["flow"].mean() + fast[4][1]["flow"].mean()), rel=0.02)


def test_camera_never_leaves_the_photograph():
    for name in ("coffee-pan", "rocket-zoom", "motorcycle-rotate", "cat-shake"):
        from semcast.video.render import transform
        from semcast.video.scenes import stage_of

        stage = stage_of(SCENES[name], (160, 96), torch.Generator().manual_seed(5))
        height, width = stage.layers[0].texture.shape[-2:]
        for second in range(0, 60, 3):
            texel = transform(stage.layers[0].texel_of(second) @ stage.world_of(second), (0, 0, 160, 96))
            assert texel.min() >= -1.5
            assert texel[..., 0].max() <= width + 0.5
            assert texel[..., 1].max() <= height + 0.5


def test_steps_carry_the_truth():
    (step,) = steps(open_scene("demo:size=96x64,frames=3"), 4)
    assert step.labels["flow"].shape == (1, 3, 2, 64, 96)
    assert step.labels["segmentation"].shape == (1, 3, 64, 96)
    assert step.labels["flow_valid"].dtype == torch.bool
    assert step.labels["motion"].tolist() == [1]


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("demmo", UnknownNameError, "'demo'"),
        ("demo:frame=3", SpecError, "'frames'"),
        ("demo:size=416", SpecError, "size=416x240"),
        ("demo:frames=0", SpecError, "does not parse"),
        ("demo:fps=0", SpecError, "does not parse"),
        ("demo:seed=-1", SpecError, "does not parse"),
        ("demo:size=32x32", VideoError, "64x64"),
    ],
)
def test_malformed_scenes_say_what_is_wrong(spec, error, says):
    with pytest.raises(error, match=says):
        open_clips(f"scene:{spec}")


# any photograph


def test_photograph_in_motion_has_exact_flow():
    smooth = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    photo = torch.nn.functional.interpolate(smooth, (240, 320), mode="bicubic")[0].clamp(0, 1)
    for motion in (*MOTIONS, "any"):
        generator = torch.Generator().manual_seed(7)
        frames, flow = render_from_photo(photo, (96, 80), 6, motion, generator)
        assert frames.shape == (6, 3, 80, 96)
        assert flow.shape == (6, 2, 80, 96)
        assert not flow[0].any()
        assert (flow[1:].abs().max() > 0.05) == (motion != "static")
        inner = torch.zeros(80, 96, dtype=torch.bool)
        inner[12:-12, 12:-12] = True
        assert min(psnr(frames[t], warp(frames[t - 1], flow[t]), inner) for t in range(1, 6)) > 40
        again, _ = render_from_photo(photo, (96, 80), 6, motion, torch.Generator().manual_seed(7))
        assert torch.equal(frames, again)


def test_photograph_with_objects_and_single_frame():
    photo = torch.rand(3, 100, 130, generator=torch.Generator().manual_seed(0))
    plain, _ = render_from_photo(photo, (64, 64), 3, "static", torch.Generator().manual_seed(1))
    busy, flow = render_from_photo(photo, (64, 64), 3, "static", torch.Generator().manual_seed(1), objects=2)
    assert not torch.equal(plain, busy)
    assert 0.01 < (flow[1].norm(dim=0) > 0.1).float().mean() < 0.9
    one, _ = render_from_photo(photo, (64, 64), 1, "any", torch.Generator().manual_seed(1))
    assert one.shape == (1, 3, 64, 64)
    with pytest.raises(UnknownNameError, match="zoom"):
        render_from_photo(photo, (64, 64), 2, "zom", torch.Generator())


@pytest.mark.slow
def test_rendering_is_fast_enough_for_training():
    photo = torch.rand(3, 321, 481, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = 0.0
        for _ in range(3):
            start = time.perf_counter()
            render_from_photo(photo, (256, 256), 16, "any", torch.Generator().manual_seed(2))
            best = max(best, 16 / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(threads)
    assert best > 100
