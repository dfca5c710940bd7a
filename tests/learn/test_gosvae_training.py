"""GOS-VAE through the loop: a few steps, weights to begin with, and what the schedule may say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semcast import checkpoint
from semcast.errors import InputError, WeightsError
from semcast.systems.gosvae.networks import SmallConfig
from semcast.systems.gosvae.system import GosVae
from semcast.training import loop
from semcast.training.data import Corpus, CropSampler, load_corpus
from semcast.training.loop import Progress, train
from semcast.training.schedule import Schedule, Stage, load_schedule
from semcast.video.scenes import open_scene

pytest.importorskip("accelerate", reason="training needs the extra `train`")

TINY = SmallConfig(codewords=32, depth=8, width=16, blocks=1, decoder_width=16, decoder_blocks=1, fine_width=8, fine_blocks=1)
STEPS = 16


class Colours(nn.Module):
    """A task model of three classes: which colour prevails."""

    def forward(self, frames: Tensor) -> Tensor:
        return 8 * frames


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """A scene of 4 frames of 128x96."""
    frames = torch.stack(list(open_scene("astronaut-pan:size=128x96,frames=4").frames()))
    clip = np.ascontiguousarray(frames.movedim(1, -1).mul(255).round().to(torch.uint8).numpy())
    return Corpus([clip[k : k + 1] for k in range(4)], ("scenes",))


def fresh(name: str = "gos-vae", preset: str = "small") -> GosVae:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GosVae(TINY, name, preset, {"mse": 1.0})


def plan(name: str, options: dict[str, object], **more: object) -> Schedule:
    only = Stage(
        name="only", steps=STEPS, batch=2, size=64, aspect=1.25, min_scale=0.9, warmup=1, lr=3e-3, lr_end=1e-3, options=options
    )
    often: dict[str, object] = {"validate_every": 1000, "save_every": 1000, "validation_cbr": 0.5, "ema": 0.5}
    return Schedule(system=name, preset="small", stages=(only,), **often, **more)  # type: ignore[arg-type]


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "imitation_target", lambda name: Colours())


@pytest.mark.parametrize("terms", [{"mse": 10.0}, {"mse": 10.0, "jsd": 1.0}])
def test_a_dozen_steps_lower_the_loss(
    terms: dict[str, float], corpus: Corpus, tmp_path: Path, colours: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From random weights: the closed-form start leaves little to lower in so few steps."""
    system = fresh()
    monkeypatch.setattr(system, "initialise", None)
    losses: list[float] = []

    def note(turn: Progress) -> None:
        losses.append(turn.loss)

    schedule = plan("gos-vae", {"terms": terms, "target": "segmenter"})
    folder = train(system, corpus, schedule, tmp_path / "run", card={}, on_step=note)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert set(terms) | {"quantisation", "validation_psnr_rgb_db"} <= set(line)
    again = fresh()
    checkpoint.load(again, folder)
    assert float(again.counts.seen) > 1
    assert not torch.equal(again.codebook.vectors, fresh().codebook.vectors)


def test_the_codebooks_terms_count_as_a_stage_has_them(corpus: Corpus, tmp_path: Path) -> None:
    def first_loss(terms: dict[str, float], folder: str) -> tuple[float, float]:
        short = plan("gos-vae", {"terms": terms})
        short = short.model_copy(update={"stages": (short.stages[0].model_copy(update={"steps": 1}),)})
        train(fresh(), corpus, short, tmp_path / folder, card={})
        line = json.loads((tmp_path / folder / "log.jsonl").read_text())
        return line["loss"], line["quantisation"]

    once, term = first_loss({"mse": 10.0}, "once")
    often, same = first_loss({"mse": 10.0, "quantisation": 32.0}, "often")
    assert term == same > 0
    assert often - once == pytest.approx(31 * term, abs=1e-3)


def test_training_goes_on_from_other_weights(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GOS-VAE* begins with what VQ-VAE learned."""
    first = train(fresh("vq-vae"), corpus, plan("vq-vae", {"terms": {"mse": 10.0}}), tmp_path / "vq", card={})
    losses: list[float] = []

    def note(turn: Progress) -> None:
        losses.append(turn.loss)

    schedule = plan("gos-vae", {"terms": {"mse": 10.0}}, start=str(first))
    train(fresh(), corpus, schedule, tmp_path / "star", card={}, on_step=note)
    cold: list[float] = []
    random = fresh()
    monkeypatch.setattr(random, "initialise", None)
    often = plan("gos-vae", {"terms": {"mse": 10.0}})
    train(random, corpus, often, tmp_path / "cold", card={}, on_step=lambda turn: cold.append(turn.loss))
    assert sum(losses[:3]) < sum(cold[:3])


def test_weights_to_begin_with_have_to_fit(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="neither shipped"):
        checkpoint.borrow(fresh(), str(tmp_path))
    other = GosVae(SmallConfig(codewords=16, depth=8), "vq-vae", "small", {})
    checkpoint.save(other, tmp_path, {})
    with pytest.raises(WeightsError, match="do not fit gos-vae:small"):
        checkpoint.borrow(fresh(), str(tmp_path))


def test_a_task_term_needs_a_target(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="target: segmenter"):
        train(fresh(), corpus, plan("gos-vae", {"terms": {"jsd": 1.0}}), tmp_path / "run", card={})


@pytest.mark.parametrize(
    ("name", "preset"),
    [(n, p) for n in ("gos-vae", "vq-vae") for p in ("small", "r2", "r8", "r16", "r32", "paper", "dagger")]
    + [("gos-vae", "star"), ("autoencoder", "small"), ("autoencoder", "paper"), ("vq-gan", "small")],
)
def test_every_preset_has_a_schedule_on_what_may_be_trained_on(name: str, preset: str) -> None:
    schedule = load_schedule(name, preset)
    assert (schedule.system, schedule.preset) == (name, preset)
    assert schedule.parts in (("train", "val[:50]"), ("leftImg8bit/train",))
    terms = {key for stage in schedule.stages for key in stage.options["terms"]}
    assert ("jsd" in terms) == (name == "gos-vae")


def test_upright_crops_and_parts_of_a_folder(tmp_path: Path, corpus: Corpus) -> None:
    from PIL import Image

    for index in range(4):
        for part in ("train", "val", "test"):
            (tmp_path / part).mkdir(exist_ok=True)
            shade = np.full((140, 160, 3), 40 * index, np.uint8)
            shade[70:] = 255
            Image.fromarray(shade).save(tmp_path / part / f"{index}.png")
    found = load_corpus(tmp_path, parts=("train", "val[:2]"))
    assert found.sources == ("train", "val[:2]")
    assert [int(clip[0, 0, 0, 0]) for clip in found.clips] == [0, 40, 80, 120, 0, 40]
    crops = CropSampler(found, size=64, batch=20, min_scale=0.5, aspect=1.25).batch_at(0)
    assert crops.shape == (20, 1, 3, 64, 80)
    varies = crops[:, 0, 0].diff(dim=-1).abs().amax((1, 2))
    assert float(varies.max()) < 1e-3  # a horizon stays level
