"""DynamicJSCC and SemAttJSCC through the loop, on labelled crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from semcast import checkpoint
from semcast.systems.sematt.generator import GeneratorConfig
from semcast.systems.sematt.small import SmallConfig
from semcast.systems.sematt.system import SemAttSystem
from semcast.systems.sematt.video import SemAttVideo, VideoConfig
from semcast.training.labelled import LabelledCorpus
from semcast.training.labelled_groups import GroupSampler, LabelledGroupsWork, drives
from semcast.training.labelled_system import LabelledSystemWork, WindowSampler
from semcast.training.loop import Progress, fit
from semcast.training.schedule import Schedule, Stage, load_schedule
from semcast.video.scenes import open_scene, warp

pytest.importorskip("accelerate", reason="training needs the extra `train`")

STEPS = 16


@pytest.fixture(scope="module")
def corpus() -> LabelledCorpus:
    """Eight frames of two scenes, 112x96; the classes are three bands that differ in brightness, a corner unlabelled."""
    frames = torch.cat(
        [torch.stack(list(open_scene(f"{name}:size=112x96,frames=4").frames())) for name in ("astronaut-pan", "gravel-rotate")]
    )
    labels = torch.arange(96).div(32, rounding_mode="floor")[:, None].expand(96, 112).clone()
    labels[:6, :6] = 11
    tinted = 0.5 * frames + torch.tensor([0.0, 0.45, 0.2])[labels.clamp_max(2)]
    pictures = [np.ascontiguousarray(one.movedim(0, -1).mul(255).round().to(torch.uint8).numpy()) for one in tinted]
    return LabelledCorpus(pictures, [labels.to(torch.uint8).numpy()] * 8, [f"a_{i}" for i in range(8)], ("scenes",))


def plan(name: str) -> Schedule:
    """One condition, so that losses can be compared from step to step."""
    only = Stage(name="only", steps=STEPS, batch=2, size=64, warmup=1, lr=3e-3, lr_end=1e-3, snr_db=(4.0, 4.0), cbr=(0.1,))
    often = {"validate_every": 1000, "save_every": 1000}
    return Schedule(system=name, preset="small", labelled=True, ema=0.5, stages=(only,), **often)  # type: ignore[arg-type]


def made(name: str) -> SemAttSystem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mapped = {"extra": "attention", "classes": 12} if name == "sematt-jscc" else {}
        return SemAttSystem(name, "small", SmallConfig(C=16, encoder_blocks=1, decoder_blocks=1, **mapped))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["dynamicjscc", "sematt-jscc"])
def test_it_learns_beyond_its_closed_form(name: str, corpus: LabelledCorpus, tmp_path: Path) -> None:
    """From the closed-form start; every parameter moves."""
    system = made(name)
    work = LabelledSystemWork(system, corpus, plan(name))
    seen: list[Progress] = []
    at_rest = {key: value.detach().clone() for key, value in system.named_parameters()}
    fit(work, plan(name), tmp_path, card={}, on_step=seen.append)
    first, last = (sum(turn.loss for turn in part) for part in (seen[:5], seen[-5:]))
    assert last < first
    still = [key for key, value in system.named_parameters() if torch.equal(value, at_rest[key])]
    assert still == []
    assert seen[-1].validation is not None
    assert (tmp_path / "checkpoint" / "model.safetensors").is_file()


def test_both_learn_from_the_same(corpus: LabelledCorpus) -> None:
    """One schedule but for the name; the same crops, rates and SNRs."""
    schedules = [load_schedule(name, "small") for name in ("dynamicjscc", "sematt-jscc")]
    assert schedules[0].model_copy(update={"system": "sematt-jscc"}) == schedules[1]
    works = [LabelledSystemWork(made(name), corpus, plan(name)) for name in ("dynamicjscc", "sematt-jscc")]
    batches = []
    for work in works:
        work.enter(plan("x").stages[0], 0)
        batches.append(work.batch(5))
    (frames, link, _, cbr, _, labels), other = batches
    assert torch.equal(frames, other[0])
    assert torch.equal(labels, other[5])
    assert torch.equal(link.snr_db, other[1].snr_db)
    assert cbr == other[3]


def test_it_begins_with_the_weights_that_a_schedule_names(corpus: LabelledCorpus, tmp_path: Path) -> None:
    """They replace the closed form, which would be fitted to the pictures."""
    before = made("sematt-jscc")
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.normal_()
    checkpoint.save(before, tmp_path, {})
    system = made("sematt-jscc")
    LabelledSystemWork(system, corpus, plan("sematt-jscc").model_copy(update={"start": str(tmp_path)})).initialise()
    for name, value in system.named_parameters():
        assert torch.equal(value, before.get_parameter(name).half().float()), name


def test_windows_are_pieces_of_their_pictures() -> None:
    """Neither scaled nor recoloured: red and green are the row and the column, and the labels follow from them."""
    rows, columns = np.meshgrid(np.arange(80), np.arange(100), indexing="ij")
    picture = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    corpus = LabelledCorpus([picture], [((3 * rows + columns) % 11).astype(np.uint8)], ["a_0"], ("x",))
    frames, labels = WindowSampler(corpus, 64, 72, 6).batch_at(3)
    assert frames.shape == (6, 3, 64, 72)
    y, x = (255 * frames[:, :2]).round().long().unbind(1)
    assert torch.equal((3 * y + x) % 11, labels)
    assert bool((y.diff(dim=1) == 1).all())
    assert {int(step) for step in x.diff(dim=2).flatten()} == {-1, 1}  # some are mirrored


# -- frames between key frames -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driven() -> LabelledCorpus:
    """A drive of 20 frames and two single pictures, 112x96, labels in bands that move along."""
    drive = torch.stack(list(open_scene("astronaut-pan:size=112x96,frames=20").frames()))
    frames = torch.cat([drive, torch.stack(list(open_scene("gravel-rotate:size=112x96,frames=2").frames()))])
    pictures = [np.ascontiguousarray(one.movedim(0, -1).mul(255).round().to(torch.uint8).numpy()) for one in frames]
    columns = np.arange(112)
    labels = [np.tile((columns + i) // 40 % 3, (96, 1)).astype(np.uint8) for i in range(22)]
    names = [*(f"val/a_{10 + 2 * i}" for i in range(20)), "train/a_900", "train/b_930"]
    return LabelledCorpus(pictures, labels, names, ("scenes",))


def test_drives_are_pictures_that_follow_each_other(driven: LabelledCorpus) -> None:
    assert drives(driven) == [list(range(20))]


def test_rendered_groups_move_as_their_flow_says(driven: LabelledCorpus) -> None:
    """Pictures and labels alike; frames of drives follow each other, and the same step draws the same."""
    sampler = GroupSampler(driven, drives(driven), 5, 64, 6, rendered=1.0, seed=2)
    frames, labels, flow = sampler.batch_at(3)
    assert frames.shape == (6, 5, 3, 64, 64)
    assert labels.shape == (6, 5, 64, 64)
    assert not bool(flow[:, 0].any())
    for one, truth, moved in zip(frames, labels, flow, strict=True):
        for t in range(1, 5):
            inner = (..., slice(8, -8), slice(8, -8))
            error = (warp(one[t - 1], moved[t]) - one[t])[inner].abs().mean()
            assert float(error) < 0.03
            if float(moved[t].abs().mean()) > 1:
                assert float(error) < 0.6 * float((one[t - 1] - one[t])[inner].abs().mean())
            told = warp(truth[t - 1][None].float(), moved[t])[0].round()
            assert float((told == truth[t])[inner].float().mean()) > 0.9
    assert torch.equal(frames, sampler.batch_at(3)[0])
    pieces, _, estimated = GroupSampler(driven, drives(driven), 5, 64, 6, rendered=0.0).batch_at(0)
    assert float((pieces[:, 1:] - pieces[:, :-1]).abs().mean()) < 0.1
    assert float(estimated[:, 1:].abs().mean()) > 0.3


def test_a_generator_learns_beyond_motion_that_goes_on(driven: LabelledCorpus, tmp_path: Path) -> None:
    """Key frames stay as they are; every parameter of the generator moves."""
    only = Stage(
        name="only", steps=STEPS, batch=2, size=64, frames=8, warmup=1, lr=3e-3, lr_end=1e-3, snr_db=(8.0, 8.0), cbr=(0.03,),
        options={"flow": 0.02, "rendered": 0.5},
    )  # fmt: skip
    schedule = Schedule(
        system="sematt-video", preset="small", labelled=True, ema=0.5, stages=(only,), validate_every=1000, save_every=1000
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        key = SemAttSystem(
            "sematt-jscc", "small", SmallConfig(C=16, encoder_blocks=1, decoder_blocks=1, extra="attention", classes=12)
        )
        clips = torch.stack([torch.from_numpy(picture).movedim(-1, 0).float() / 255 for picture in driven.pictures])
        key.initialise(clips, torch.from_numpy(np.stack(driven.labels)).long())
        system = SemAttVideo("small", VideoConfig(generator=GeneratorConfig(width=16, blocks=1, fine_width=8)), key)
    work = LabelledGroupsWork(system, driven, schedule)
    assert work.held_groups.shape == (6, 8, 3, 64, 64)
    seen: list[Progress] = []
    at_rest = {name: value.detach().clone() for name, value in system.named_parameters()}
    fit(work, schedule, tmp_path, card={}, on_step=seen.append)
    first, last = (sum(turn.loss for turn in part) for part in (seen[:5], seen[-5:]))
    assert last < first
    moved = {name for name, value in system.named_parameters() if not torch.equal(value, at_rest[name])}
    assert moved == {name for name in at_rest if name.startswith("generator.")}
    assert not [name for name in load_file(tmp_path / "checkpoint" / "model.safetensors") if name.startswith("key.")]
    again = SemAttVideo("small", VideoConfig(generator=GeneratorConfig(width=16, blocks=1, fine_width=8)), key)
    checkpoint.borrow(again, str(tmp_path / "checkpoint"))
    assert float(again.coder.frequencies.max()) > 1
    assert bool(again.generator.flow_head.weight.any())
