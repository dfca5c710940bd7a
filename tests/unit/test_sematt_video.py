"""Frames between key frames: their packets, what the warp does, what a lost packet costs, and what the ledger is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semcast import checkpoint
from semcast.errors import InputError
from semcast.goals.segmenter import predict, shipped_segmenter
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.metrics.perceptual import find_squeezenet, load_lpips
from semcast.studies.session import Loaded, Radio, transmit_clip
from semcast.systems import SYSTEMS
from semcast.systems.freeze import Freeze
from semcast.systems.sematt.following import (
    GRIDS,
    LIMIT,
    NO_MAP,
    Following,
    FollowingMapCoder,
    MeshCoder,
    coarser,
    finer,
    pack,
    unpack,
)
from semcast.systems.sematt.generator import Generator, GeneratorConfig, carried_on, motion_of_maps
from semcast.systems.sematt.small import SmallConfig
from semcast.systems.sematt.system import SemAttSystem
from semcast.systems.sematt.video import SemAttVideo, VideoConfig, flow_to_first, other_scene
from semcast.transmit import run
from semcast.types import Format, Step, StepResult
from semcast.video.io import open_clips
from semcast.video.scenes import open_scene

CLASSES = 4
KEY = SmallConfig(C=16, latents=256, encoder_blocks=1, decoder_blocks=1, classes=CLASSES, extra="attention")
TINY = GeneratorConfig(classes=CLASSES, width=16, blocks=1, fine_width=8, fine_blocks=1)


def patches(seed: int, h: int = 23, w: int = 30) -> np.ndarray:
    """A map of large patches, moved by ``seed % 3`` cells."""
    random = np.random.default_rng(seed // 3)
    whole = np.kron(random.integers(0, CLASSES, (8, 12)), np.ones((4, 4), dtype=np.int64))
    return whole[:h, seed % 3 : seed % 3 + w]


# -- packets -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coder() -> FollowingMapCoder:
    made = FollowingMapCoder(CLASSES)
    now, before = (torch.from_numpy(np.stack([patches(3 * k + turn) for k in range(60)])) for turn in (1, 0))
    made.fit(now, before)
    return made


@pytest.mark.parametrize("level", range(len(GRIDS)))
def test_a_map_comes_back_from_its_bytes(coder: FollowingMapCoder, level: int) -> None:
    times = GRIDS[level] // GRIDS[0]
    now, before = (coarser(torch.from_numpy(patches(300 + k))[None], times, CLASSES)[0].numpy() for k in (1, 0))
    data = coder.encode(now, before, level)
    found = coder.decode(data, before, level)
    assert found is not None
    assert np.array_equal(found, now)
    assert abs(8 * len(data) - coder.bits(now, before, level)) < 40


def test_a_map_that_follows_is_shorter_than_one_that_follows_another_scene(coder: FollowingMapCoder) -> None:
    now = patches(301)
    assert len(coder.encode(now, patches(300), 0)) < 0.7 * len(coder.encode(now, patches(330), 0))
    assert len(coder.encode(now, now, 0)) < len(coder.encode(now, patches(300), 0))


def test_coarser_maps_are_the_commonest_class_and_fit_again() -> None:
    one = torch.zeros(1, 5, 7, dtype=torch.int64)
    one[0, 4:, 6:] = 2
    one[0, :2, 2:4] = torch.tensor([[1, 1], [1, 3]])
    small = coarser(one, 2, CLASSES)
    assert small[0].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]
    assert finer(small, 2, (5, 7)).shape == one.shape
    assert torch.equal(coarser(finer(small, 2, (6, 8)), 2, CLASSES), small)


def test_a_mesh_comes_back_and_large_jumps_are_cut_short() -> None:
    random = np.random.default_rng(0)
    smooth = np.stack(np.meshgrid(np.arange(10) * 3 - 12, np.arange(8) * 2 - 7), -1).astype(np.int64)
    coder = MeshCoder()
    coder.fit([smooth + random.integers(-1, 2, smooth.shape) for _ in range(10)])
    mesh = smooth + random.integers(-1, 2, smooth.shape)
    data = coder.encode(mesh)
    assert len(data) < 60
    found = coder.decode(data, 8, 10)
    assert found is not None
    assert np.array_equal(found, mesh)
    mesh[3, 4] = (200, -200)
    found = coder.decode(coder.encode(mesh), 8, 10)
    assert found is not None
    assert int(np.abs(found).max()) <= LIMIT
    assert np.array_equal(found[:3], mesh[:3])  # what comes before the jump


def test_packets_are_taken_apart_or_refused() -> None:
    for with_mesh in (False, True):
        one = Following(2, 1, b"ab" if with_mesh else b"", b"xyz", True)
        assert unpack(pack(one, with_mesh), with_mesh) == one
    assert unpack(b"", False) is None
    assert unpack(b"\x00\xff\xffab", True) is None
    assert unpack(pack(Following(3, NO_MAP), False), False) == (3, NO_MAP, b"", b"", False)


# -- the generator -----------------------------------------------------------------------------------------------------------


def scene(name: str, frames: int, width: int = 160, height: int = 128, **options: float) -> Tensor:
    """(T, 3, H, W)."""
    return torch.stack(list(open_scene(f"{name}:size={width}x{height},frames={frames}", **options).frames()))  # type: ignore[arg-type]


@torch.no_grad()
def test_a_known_shift_is_what_the_warp_makes() -> None:
    """An untrained generator is the warp: content that moved by (3, -2) a frame is where it should be two frames later."""
    random = torch.Generator().manual_seed(0)
    wide = torch.nn.functional.interpolate(torch.rand(1, 3, 20, 24, generator=random), (160, 192), mode="bicubic").clamp(0, 1)

    def at(t: int) -> Tensor:
        return wide[..., 20 + 2 * t : 148 + 2 * t, 30 - 3 * t : 158 - 3 * t]

    moved = torch.tensor([-3.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 128, 128) * 4  # from frame 4 back to frame 0
    flow = carried_on(moved, 2 / 4)
    assert torch.allclose(flow[0, :, 64, 64], torch.tensor([-6.0, 4.0]), atol=1e-4)
    torch.manual_seed(0)
    blank = torch.zeros(1, CLASSES, 16, 16)
    shown, used = Generator(TINY)(at(4), flow, torch.zeros(1, 1, 128, 128), blank, blank, torch.tensor([[0.5, 0.5]]))
    inner = (..., slice(12, -12), slice(12, -12))
    assert torch.allclose(used, flow, atol=1e-4)
    assert float((shown - at(6))[inner].abs().max()) < 1e-4
    assert float((at(4) - at(6))[inner].abs().mean()) > 0.05


def test_motion_that_grows_outwards_is_carried_on_along_its_path() -> None:
    """A camera that comes closer at a constant rate: positions are multiplied, so flow is no longer half of what it was."""
    y, x = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    place = torch.stack([x, y])[None]
    growth = 1.2
    moved = place / growth - place  # now at q, before at q / growth
    flow = carried_on(moved, 1.0)
    exact = place / (1 + (1 - 1 / growth)) - place  # q - moved(q) = p
    middle = (..., slice(8, -8), slice(8, -8))
    assert float((flow - exact)[middle].abs().max()) < 0.3
    assert float((moved - exact)[middle].abs().max()) > 0.5


def test_flow_from_frame_to_frame_is_chained() -> None:
    flow = torch.zeros(1, 3, 2, 16, 16)
    flow[:, 1:, 0] = 2.0
    assert torch.equal(flow_to_first(flow)[0, :, 0, 8, 8], torch.tensor([0.0, -2.0, -4.0]))


@torch.no_grad()
def test_maps_tell_of_motion_where_nothing_else_does() -> None:
    """An affine motion is read from two maps; two equal ones, or blank ones, stand still."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(30.0), indexing="ij")

    def at(scale: float, shift: float) -> Tensor:
        u, v = (x - 14.5) / scale - shift, (y - 11.5) / scale
        classes = (torch.hypot(u, v) < 6).long() + (v > 3).long() + (u > 9).long()
        return torch.nn.functional.one_hot(classes.clamp_max(3), CLASSES).movedim(-1, 0)[None].float()

    still, blank = at(1, 0), torch.zeros(1, CLASSES, 24, 30)
    assert float(motion_of_maps(still, still).abs().max()) < 1e-3
    assert float(motion_of_maps(still, blank).abs().max()) < 8  # finite and bounded, whatever it is
    assert not bool(motion_of_maps(blank, blank).any())
    flow = motion_of_maps(still, at(1.1, 0.5))
    exact = torch.stack([(x - 14.5) / 1.1 - 0.5 - (x - 14.5), (y - 11.5) / 1.1 - (y - 11.5)])[None]
    assert float((flow - exact).square().sum(1).mean().sqrt()) < 0.5 * float(exact.square().sum(1).mean().sqrt())


# -- the system --------------------------------------------------------------------------------------------------------------


def striped(frames: Tensor) -> Tensor:
    """Labels (T, H, W): four columns that move by two pixels a frame."""
    columns = torch.arange(frames.shape[-1])
    rows = [((columns + 2 * t) * 3).div(frames.shape[-1] - 1, rounding_mode="floor") % 3 for t in range(len(frames))]
    return torch.stack(rows)[:, None].expand(-1, frames.shape[-2], -1).long().contiguous()


def made(mesh: bool = False, gop: int = 4) -> SemAttVideo:
    """Fitted to clips, its generator as it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        key = SemAttSystem("sematt-jscc", "small", KEY)
        clips = torch.stack([scene(name, 4) for name in ("astronaut-pan", "gravel-rotate", "rocket-pan")])
        labels = torch.stack([striped(clip) for clip in clips])
        key.initialise(clips.flatten(0, 1), labels.flatten(0, 1))
        system = SemAttVideo("small", VideoConfig(gop, TINY, mesh), key)
        system.initialise(clips, labels)
    system.maps = "truth"
    return system.eval()


@pytest.fixture(scope="module")
def tiny() -> SemAttVideo:
    return made()


def held(
    system: SemAttVideo, frames: Tensor, snr_db: float = 12.0, cbr: float = 0.03, **link: Any
) -> tuple[list[StepResult], Ledger]:
    """A session with (T, 3, H, W) frames and their labels."""
    fmt = Format(*frames.shape[-2:], system=system.name, preset=system.preset, cbr=cbr)
    over, ledger, labels = Link("awgn", snr_db=snr_db, cbr=cbr, **link).eval(), Ledger(), striped(frames)
    gop = system.frames_per_step
    steps = [
        Step(frames[None, i : i + gop], {"segmentation": labels[None, i : i + gop]}, i) for i in range(0, len(frames), gop)
    ]
    with torch.no_grad():
        return list(run(system, steps, over, ledger, fmt=fmt, generator=torch.Generator().manual_seed(0))), ledger


def psnr_db(result: StepResult) -> list[float]:
    assert result.decoded.frames is not None
    mse = (result.decoded.frames - result.step.frames).square().mean((0, 2, 3, 4))
    return (-10 * torch.log10(mse)).tolist()


def test_an_untrained_receiver_goes_on_as_it_went(tiny: SemAttVideo) -> None:
    """In the second group it knows how things move, and is far ahead of one that repeats its key frame."""
    frames = scene("coffee-pan", 8)
    carried, _ = held(tiny, frames)
    tiny.generates = False
    try:
        frozen, _ = held(tiny, frames)
    finally:
        tiny.generates = True
    assert psnr_db(carried[0]) == pytest.approx(psnr_db(frozen[0]), abs=0.01)  # nothing is known of motion yet
    gain = [a - b for a, b in zip(psnr_db(carried[1]), psnr_db(frozen[1]), strict=True)]
    assert gain[0] == pytest.approx(0, abs=0.01)
    assert min(gain[1:]) > 1.0


def test_a_mesh_tells_of_motion_in_the_first_group() -> None:
    frames = scene("coffee-pan", 4)
    told, ledger = held(made(mesh=True), frames)
    still, without = held(made(), frames)
    assert min(a - b for a, b in zip(psnr_db(told[0])[1:], psnr_db(still[0])[1:], strict=True)) > 1.0
    assert ledger.streams()["map"] > without.streams()["map"]  # and is paid for


def test_maps_are_charged_within_the_budget(tiny: SemAttVideo) -> None:
    frames = scene("coffee-pan", 8)
    budget = 0.03 * frames.numel()
    _, charged = held(tiny, frames)
    _, free = held(tiny, frames, assumed_free=tiny.free_streams)
    for ledger in (charged, free):
        assert budget - 8 < ledger.channel_uses <= budget
    assert charged.streams()["map"] > 0
    assert "map" not in free.streams()
    assert "key0.map" not in free.streams()
    assert free.streams()["key0.latent"] > charged.streams()["key0.latent"]


def test_a_budget_too_small_for_maps_leaves_them_out(tiny: SemAttVideo) -> None:
    """From fine maps to coarse ones to none; frames come out whatever it is."""
    frames = scene("coffee-pan", 4)
    levels = []
    for cbr in (0.03, 0.006, 0.0035):
        results, _ = held(tiny, frames, cbr=cbr, snr_db=20.0)
        received = results[0].received
        assert received is not None
        packets = received.get("map")
        levels.append([unpack(data, False).level for data in packets[0]] if packets else None)  # type: ignore[index,union-attr]
        assert results[0].decoded.frames is not None
    assert levels[0] == [0, 0, 0]
    assert levels[-1] is None or min(levels[-1]) > 0


def test_more_than_a_key_frame_holds_makes_more_key_frames(tiny: SemAttVideo) -> None:
    frames = scene("coffee-pan", 4)
    keys = {}
    for cbr in (0.03, 0.08, 0.16):
        results, _ = held(tiny, frames, cbr=cbr)
        assert results[0].received is not None
        keys[cbr] = [int(name[3]) for name in results[0].received if name.endswith(".latent")]
        assert results[0].aux["gop"] == 4
    assert keys == {0.03: [0], 0.08: [0, 2], 0.16: [0, 1, 2, 3]}


def test_a_change_of_scenes_begins_with_a_key_frame(tiny: SemAttVideo) -> None:
    """Also where it falls into a group; and the motion of the scene before is not carried on into the new one."""
    first, second = scene("coffee-pan", 6), 1 - scene("rocket-pan", 6)
    assert bool(other_scene(first[:1], second[:1]))
    assert not bool(other_scene(first[3:4], first[:1]))
    results, _ = held(tiny, torch.cat([first, second]))
    assert results[1].received is not None
    assert [name for name in results[1].received if name.endswith(".latent")] == ["key0.latent", "key2.latent"]
    assert min(psnr_db(results[1])) > 15
    assert results[1].decoded.concealed == 0


def test_a_lost_packet_takes_one_frame_with_it(tiny: SemAttVideo) -> None:
    """The others come out as they would have, whatever is lost or damaged."""
    frames = scene("coffee-pan", 8)
    results, _ = held(tiny, frames)
    fmt = Format(*frames.shape[-2:], system=tiny.name, preset=tiny.preset, cbr=0.03)

    def shown(changed: dict[str, object]) -> tuple[Tensor, int]:
        state = tiny.start(fmt, "rx")
        with torch.no_grad():
            for result, other in zip(results, ({}, changed), strict=True):
                assert result.received is not None
                decoded, state, _ = tiny.decode({**result.received, **other}, state, 4, generator=torch.Generator())
        assert decoded.frames is not None
        assert bool(torch.isfinite(decoded.frames).all())
        return decoded.frames[0], decoded.concealed

    whole, concealed = shown({})
    assert concealed == 0
    assert results[1].received is not None
    row = list(results[1].received["map"][0])  # type: ignore[index,arg-type]
    for damage in (None, b"", b"\x1f", b"\xff\xff", row[1][:1]):
        found, concealed = shown({"map": [[row[0], damage, row[2]]]})
        assert concealed in (0, 1)
        assert torch.equal(found[[0, 1, 3]], whole[[0, 1, 3]])
    for all_of_it in (None, [], [[]], [[None] * 3]):
        found, concealed = shown({"map": all_of_it})
        assert concealed == 3
        assert torch.equal(found[0], whole[0])
    _, concealed = shown({"key0.map": [[None]]})
    assert concealed == 4  # maps that follow one that is not there say nothing


def test_maps_that_are_not_there_are_a_fault_of_the_input(tiny: SemAttVideo) -> None:
    frames = scene("coffee-pan", 4)
    link = Link("awgn", snr_db=10.0, cbr=0.03).eval()
    step = Step(frames[None])
    with pytest.raises(InputError, match="have none"):
        tiny.encode(step, tiny.start(Format(128, 160), "tx"), *link.grant(step), generator=torch.Generator())
    with pytest.raises(InputError, match="at most 32"):
        made(gop=33)


# -- what is shipped ---------------------------------------------------------------------------------------------------------


def shipped(preset: str) -> SemAttVideo:
    system, _ = checkpoint.make_system(f"sematt-video:{preset}")
    assert isinstance(system, SemAttVideo)
    return system


@torch.no_grad()
@pytest.mark.parametrize("preset", ["small", "motion"])
def test_what_is_shipped_beats_the_last_key_frame_on_a_rendered_pan(preset: str, hold: Any) -> None:
    """A scene and a pace that training never saw, no labels at hand: every frame between key frames of the second group."""
    system, frames = shipped(preset), scene("coffee-pan", 8, 256, 192)
    psnr = []
    for generates in (True, False):
        system.generates = generates
        shown = hold(system, frames, snr_db=10.0, cbr=1 / 48).shown
        psnr.append(-10 * (shown - frames).square().mean((1, 2, 3)).log10())
    gain = (psnr[0] - psnr[1])[5:]
    assert float(gain.min()) > 1.5


@pytest.mark.data
@pytest.mark.parametrize("preset", ["small", "motion"])
def test_synthesis_beats_freezing_on_the_held_half_of_the_drive(preset: str, data_dir: Path) -> None:
    """At equal counted use, in LPIPS and mIoU: what `sematt_study.py synthesis` measures, on its first twelve frames."""
    path = find_squeezenet()
    if path is None:
        pytest.skip("LPIPS needs the weights of SqueezeNet")
    distance = load_lpips(path)
    (clip,) = open_clips(f"camvid:{data_dir}/camvid/val[51:63]")
    ours = shipped(preset)
    key, digest = checkpoint.make_system("sematt-jscc")
    rival = Freeze(key, 4).eval()
    found = {}
    for name, system, holder in (("synthesis", ours, ours), ("freeze", rival, key)):
        holder.maps, holder.segmenter = "predicted", lambda frames: predict(shipped_segmenter(), frames)
        loaded = Loaded(system, digest, SYSTEMS.get("freeze" if system is rival else "sematt-video"), "strong")
        lpips: list[float] = []

        def take(result: StepResult, lpips: list[float] = lpips) -> None:
            assert result.decoded.frames is not None
            with torch.no_grad():
                lpips.extend(distance(result.step.frames[0, 1:], result.decoded.frames[0, 1:]).tolist())

        radio = Radio(snr_db=10.0, cbr=1 / 48)
        row = transmit_clip(loaded, clip, radio, goal="segment", metrics=("miou",), precision="fp32", on_step=take).row
        assert row.cbr <= 1 / 48 * 1.02
        found[name] = sum(lpips) / len(lpips), row.miou, row.channel_uses
    assert found["synthesis"][2] == pytest.approx(found["freeze"][2], rel=0.01)
    assert found["synthesis"][0] < 0.95 * found["freeze"][0]
    assert found["synthesis"][1] > found["freeze"][1]
