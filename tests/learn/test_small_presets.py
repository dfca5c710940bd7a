"""The small presets of NTSCC and DVST through the loop: a few steps, and what they are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from semcast import checkpoint
from semcast.goals import GOALS
from semcast.systems.base import System
from semcast.systems.dvst import fit as dvst_fit
from semcast.systems.dvst.config import ABLATIONS
from semcast.systems.dvst.small import DvstSmall
from semcast.systems.dvst.small import SmallConfig as DvstConfig
from semcast.systems.ntscc.small import NtsccSmall
from semcast.systems.ntscc.small import SmallConfig as NtsccConfig
from semcast.training.data import Corpus
from semcast.training.loop import Progress, SystemWork, train
from semcast.training.schedule import Schedule, Stage, load_schedule
from semcast.video.scenes import open_scene

pytest.importorskip("accelerate", reason="training needs the extra `train`")

NTSCC = NtsccConfig(
    classes=4, quarter_classes=3, latents=64, rotated=0, width=16, fine_width=16, decoder_blocks=1, fine_blocks=1, embedding=4
)
DVST = DvstConfig(classes=4, quarter_classes=3, latents=64, rotated=0, fine_width=16, fine_blocks=1, embedding=4)
STEPS = 12


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Two scenes of 4 frames of 96x80."""
    clips = []
    for name in ("astronaut-pan", "gravel-rotate"):
        frames = torch.stack(list(open_scene(f"{name}:size=96x80,frames=4").frames()))
        clips.append(np.ascontiguousarray(frames.movedim(1, -1).mul(255).round().to(torch.uint8).numpy()))
    return Corpus(clips, ("scenes",))


def plan(system: str, frames: int) -> Schedule:
    """One condition only, so that losses can be compared from step to step."""
    only = Stage(
        name="only", steps=STEPS, batch=1, size=64, frames=frames, min_scale=1.0, warmup=1, lr=3e-3, lr_end=1e-3,
        snr_db=(6.0, 6.0), cbr=(0.12,),
    )  # fmt: skip
    often = {"validate_every": 1000, "save_every": 1000}
    return Schedule(system=system, preset="small", ema=0.5, validation_cbr=0.12, stages=(only,), **often)


def fitted(kind: str, clips: torch.Tensor) -> System:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        key = NtsccSmall(NTSCC)
        key.initialise(clips.flatten(0, 1))
        if kind == "ntscc":
            return key
        system = DvstSmall(DVST, key, 4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dvst_fit, "CBR", (0.12,))
            patch.setattr(dvst_fit, "SNR_DB", (6.0, 10.0))
            system.initialise(clips)
        return system


@pytest.mark.parametrize(("kind", "frames"), [("ntscc", 1), ("dvst", 4)])
def test_a_dozen_steps_lower_the_loss(
    kind: str, frames: int, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one condition, from the closed-form start, before which the networks add nothing; crops differ from step to step."""
    clips = torch.stack([torch.from_numpy(clip).movedim(-1, 1).float()[:, :, :80, :80] / 255 for clip in corpus.clips])
    system = fitted(kind, clips)
    monkeypatch.setattr(system, "initialise", None, raising=False)  # fitted already, to fewer clips than the loop would draw
    at_rest = {name: value.detach().clone() for name, value in system.named_parameters()}
    seen: list[Progress] = []
    train(system, corpus, plan(kind, frames), tmp_path, card={}, on_step=seen.append)
    assert [turn.step for turn in seen] == list(range(1, STEPS + 1))
    first, last = (sum(turn.loss for turn in part) for part in (seen[:4], seen[-4:]))
    assert last < first
    moved = {name for name, value in system.named_parameters() if not torch.equal(value, at_rest[name])}
    assert {name for name in moved if not name.startswith("g_s.")} == set()
    assert "g_s.head.weight" in moved


def test_a_stage_that_serves_another_goal_gets_its_loss_and_the_next_does_not(corpus: Corpus) -> None:
    system = NtsccSmall(NTSCC)
    schedule = plan("ntscc", 1)
    work = SystemWork(system, corpus, schedule)
    (stage,) = schedule.stages
    work.enter(stage.model_copy(update={"goal": "segment"}), 0)
    assert system.task == GOALS.get("segment").distortion
    work.enter(stage, 0)
    assert system.task is None


def test_weights_to_begin_with_are_adapted(corpus: Corpus, tmp_path: Path) -> None:
    """Training for MS-SSIM takes over all of the weights for MSE, and fits importance, which they do not have."""
    clips = torch.stack([torch.from_numpy(clip).movedim(-1, 1).float()[:, :, :80, :80] / 255 for clip in corpus.clips])
    start = checkpoint.save(fitted("ntscc", clips), tmp_path / "start", {})
    system = NtsccSmall(replace(NTSCC, distortion="ms_ssim"))
    SystemWork(system, corpus, plan("ntscc", 1).model_copy(update={"start": str(start)})).initialise()
    begun = load_file(start / "model.safetensors")
    own = system.state_dict()
    assert {name for name in own if name not in begun} == {"code.importance.steps"}
    changed = {name for name in begun if not torch.equal(own[name].float(), begun[name].float())}
    assert changed == {"code.levels"}
    assert bool(own["code.importance.steps"].any())


def test_the_shipped_schedules_are_valid() -> None:
    presets = [
        ("ntscc", "small", 1),
        ("ntscc", "ms-ssim", 1),
        ("dvst", "small", 4),
        ("dvst", "ms-ssim", 4),
        ("dvst", "segment", 4),
    ]
    for name, preset, frames in presets:
        schedule = load_schedule(name, preset)
        assert (schedule.system, schedule.preset) == (name, preset)
        assert all(stage.frames == frames for stage in schedule.stages)
        assert max(max(stage.cbr) for stage in schedule.stages) <= 0.125


@pytest.mark.parametrize("preset", ABLATIONS)
def test_ablations_are_trained_as_the_whole_is(preset: str) -> None:
    assert load_schedule("dvst", preset).model_copy(update={"preset": "small"}) == load_schedule("dvst", "small")
