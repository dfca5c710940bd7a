"""Does it learn? Tiny networks on textures made on the spot, through the loop that every system uses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from semcast import checkpoint
from semcast.errors import InputError
from semcast.layers.block_classes import DIMS
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.systems.deepjscc import DeepJscc, PaperConfig, SmallConfig, SmallDecoder
from semcast.systems.linear_jscc import LinearConfig, LinearJscc
from semcast.training.data import Corpus, CropSampler, load_corpus
from semcast.training.loop import Progress, saved_step, train, validate
from semcast.training.schedule import Schedule, Stage, load_schedule
from semcast.transmit import run
from semcast.types import Format, Step

pytest.importorskip("accelerate", reason="training needs the extra `train`")

SMALL = SmallConfig(classes=4, latents=96, width=32, fine_width=16, encoder_blocks=1, decoder_blocks=1, fine_blocks=1)
PAPER = PaperConfig()


@pytest.fixture(scope="module")
def corpus(clip: Callable[..., torch.Tensor]) -> Corpus:
    """24 clips of 3 textured frames of 112x96."""
    clips = [clip(3, 96, 112, seed=s).movedim(1, -1).mul(255).round().to(torch.uint8).numpy() for s in range(24)]
    return Corpus([np.ascontiguousarray(c) for c in clips], ("textures",))


def build(config: SmallConfig | PaperConfig, kind: type[DeepJscc] = DeepJscc) -> DeepJscc:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config)


def plan(preset: str, steps: int, **stage: Any) -> Schedule:
    only = Stage(
        **{"name": "only", "steps": steps, "batch": 4, "size": 64, "warmup": 1, "lr": 2e-3, "snr_db": (5.0, 15.0), **stage}
    )
    return Schedule(system="deepjscc", preset=preset, ema=0.9, validate_every=1000, save_every=1000, stages=(only,))


class Untouched(DeepJscc):
    """The small network with whatever statistics it has: fitting some takes longer than the steps that most tests need."""

    initialise = None  # type: ignore[assignment]


class BlindReceiver(DeepJscc):
    """Starts with block classes, but at the receiver from random weights alone."""

    def initialise(self, frames: torch.Tensor) -> None:
        assert isinstance(self.decoder, SmallDecoder)
        random = self.decoder.synthesis.weight.detach().clone()
        super().initialise(frames)
        with torch.no_grad():
            self.decoder.synthesis.weight.copy_(random)

    def lr_scale(self, parameter: str) -> float:
        return 1.0


def held_out(corpus: Corpus) -> torch.Tensor:
    """(8, 1, 3, 64, 64)."""
    return next(iter(CropSampler(corpus, 64, 1, 8, seed=99)))


def crops_to_fit(corpus: Corpus) -> torch.Tensor:
    """(320, 3, 64, 64)."""
    draws = iter(CropSampler(corpus, 64, 1, 16, seed=3))
    return torch.cat([next(draws).flatten(0, 1) for _ in range(20)])


def test_a_receiver_learns_from_nothing(corpus: Corpus, tmp_path: Path) -> None:
    """From random weights at the receiver: at least 6 dB in 60 steps (7.9 measured), and the loss falls by half."""
    system = build(SMALL, BlindReceiver)
    before = validate(system, held_out(corpus))
    seen: list[Progress] = []
    train(system, corpus, plan("small", 60, lr=5e-3, warmup=5), tmp_path, card={}, on_step=seen.append)
    assert [turn.step for turn in seen] == list(range(1, 61))
    assert validate(system, held_out(corpus)) > before + 6
    first, last = (sum(turn.loss for turn in part) for part in (seen[:10], seen[-10:]))
    assert last < 0.5 * first


def test_the_published_network_learns_from_nothing(corpus: Corpus, tmp_path: Path) -> None:
    """Sigmoids and strided convolutions take longer to get going: half a decibel in 80 steps is well beyond chance."""
    system = build(PAPER)
    before = validate(system, held_out(corpus))
    train(system, corpus, plan("paper", 80), tmp_path, card={})
    assert validate(system, held_out(corpus)) > before + 0.5


def test_the_closed_form_start_is_a_code_already(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the small network starts from is worth 15 dB (17.7 measured) over random weights, and is the linear code itself.

    The network's part starts at zero: the picture is that of ``linear-jscc`` with the same statistics, symbol for symbol.
    """
    monkeypatch.setattr(DeepJscc, "_side_mcs", staticmethod(lambda budget, csi: None))  # no margin, as in linear-jscc
    system = build(replace(SMALL, latents=DIMS))
    random = validate(system, held_out(corpus))
    system.initialise(crops_to_fit(corpus))
    start = validate(system, held_out(corpus))
    assert start > random + 15
    linear = LinearJscc(LinearConfig(classes=SMALL.classes, rotated=0), "classes-32")
    linear.blocks = system.blocks
    frame = held_out(corpus)[:1]
    shown = []
    for coder in (system, linear):
        link = Link("awgn", snr_db=10.0, cbr=1 / 12, mcs="qpsk-1/2").eval()  # the packet of classes costs both the same
        fmt = Format(64, 64, system=system.name, preset=system.preset, cbr=1 / 12)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            (result,) = run(coder.eval(), [Step(frame)], link, Ledger(), fmt=fmt, generator=generator)
        assert result.decoded.frames is not None
        shown.append(result.decoded.frames)
    assert float((shown[0] - shown[1]).abs().max()) < 1e-3


def test_training_keeps_what_the_start_is_worth(corpus: Corpus, tmp_path: Path) -> None:
    """Textures are nearly Gaussian, so the linear code is nearly the best: 40 steps cost it less than 0.4 dB (0.1 measured)."""
    system = build(SMALL)
    system.initialise(crops_to_fit(corpus))
    start = validate(system, held_out(corpus))
    train(system, corpus, plan("small", 40, warmup=5), tmp_path, card={})
    assert validate(system, held_out(corpus)) > start - 0.4


def test_a_run_leaves_a_checkpoint_a_log_and_a_curve(corpus: Corpus, tmp_path: Path) -> None:
    schedule = plan("small", 3).model_copy(update={"validate_every": 3})
    folder = train(build(SMALL, Untouched), corpus, schedule, tmp_path, card={"data": ["textures"]})
    card = checkpoint.read_card(folder)
    assert card["data"] == ["textures"]
    assert card["steps"] == card["of_steps"] == 3
    assert card["validation"]["psnr_rgb_db"] > 5
    assert len(checkpoint.load(build(SMALL, Untouched), folder)) == 16
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["step"] == 3
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")


class Stop(Exception):
    """The power goes out."""


def test_an_interrupted_run_ends_like_one_left_alone(corpus: Corpus, tmp_path: Path) -> None:
    """To the bit: weights, average, log and card, over a change of stage, with fading and a choice of rates."""
    first = plan("small", 6, channels={"awgn": 0.5, "rayleigh": 0.5}, cbr=(0.05, 0.1)).stages[0]
    second = first.model_copy(update={"steps": 4, "batch": 2})
    schedule = plan("small", 1).model_copy(update={"save_every": 4, "validate_every": 5, "stages": (first, second)})

    def stop_at_seven(turn: Progress) -> None:
        if turn.step == 7:
            raise Stop

    train(build(SMALL), corpus, schedule, tmp_path / "whole", card={})
    with pytest.raises(Stop):
        train(build(SMALL), corpus, schedule, tmp_path / "cut", card={}, on_step=stop_at_seven)
    assert json.loads((tmp_path / "cut" / "resume" / "state.json").read_text()) == {"step": 4}
    steps: list[int] = []
    with torch.random.fork_rng():
        torch.manual_seed(99)
        other = DeepJscc(SMALL)  # what it starts from must not matter
    train(other, corpus, schedule, tmp_path / "cut", card={}, on_step=lambda turn: steps.append(turn.step))
    assert steps == list(range(5, 11))
    for file in ("resume/model", "resume/average", "checkpoint/model"):
        left, right = (load_file(tmp_path / name / f"{file}.safetensors") for name in ("whole", "cut"))
        assert set(left) == set(right)
        assert [name for name in left if not torch.equal(left[name], right[name])] == []
    for file in ("log.jsonl", "checkpoint/card.json", "curve.svg"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


def test_an_interrupt_from_the_keyboard_finishes_the_step_and_saves_it(corpus: Corpus, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def interrupt(turn: Progress) -> None:
        if turn.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(build(SMALL, Untouched), corpus, plan("small", 50), tmp_path, card={}, on_step=interrupt)
    assert saved_step(tmp_path) == 4
    assert signal.getsignal(signal.SIGINT) == before
    assert saved_step(tmp_path / "nowhere") == 0


TWO_PROCESSES = """
import json, os, sys
import numpy as np
import torch
from accelerate.state import PartialState
from semcast.systems.deepjscc import DeepJscc, SmallConfig
from semcast.training import data
from semcast.training.loop import train
from semcast.training.schedule import Schedule, Stage

torch.manual_seed(int(os.environ["RANK"]))  # what each starts from must not matter
blocks = {"encoder_blocks": 1, "decoder_blocks": 1, "fine_blocks": 1}
system = DeepJscc(SmallConfig(classes=4, latents=96, width=32, fine_width=16, **blocks))
system.initialise = None
drawn, batch_at = [], data.CropSampler.batch_at
def noted(self, step):
    batch = batch_at(self, step)
    drawn.append(float(batch.double().sum()))
    return batch
data.CropSampler.batch_at = noted
clips = [np.random.default_rng(seed).integers(0, 256, (2, 96, 112, 3), dtype=np.uint8) for seed in range(4)]
stage = Stage(name="only", steps=3, batch=2, size=64, warmup=1, lr=2e-3)
schedule = Schedule(system="deepjscc", preset="small", ema=0.9, validate_every=3, save_every=2, stages=(stage,))
told = []
train(system, data.Corpus(clips, ("x",)), schedule, sys.argv[1], card={}, on_step=lambda turn: told.append(turn.step))
weights = sum(float(value.double().abs().sum()) for value in system.parameters())
mine = {"of": PartialState().num_processes, "drawn": drawn, "weights": weights, "told": told}
open(f"{sys.argv[1]}/{PartialState().process_index}.json", "w").write(json.dumps(mine))
"""


@pytest.mark.slow
def test_two_processes_draw_their_own_crops_and_keep_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(tmp_path),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["of"] == two["of"] == 2
    assert set(one["drawn"]).isdisjoint(two["drawn"])
    assert one["weights"] == two["weights"]
    assert (one["told"], two["told"]) == ([1, 2, 3], [])
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [3]


def test_a_finished_run_has_nothing_left_to_do(corpus: Corpus, tmp_path: Path) -> None:
    train(build(SMALL, Untouched), corpus, plan("small", 2), tmp_path, card={})
    again: list[Progress] = []
    train(build(SMALL, Untouched), corpus, plan("small", 2), tmp_path, card={}, on_step=again.append)
    assert again == []


def test_a_folder_holds_one_schedule(corpus: Corpus, tmp_path: Path) -> None:
    train(build(SMALL, Untouched), corpus, plan("small", 2), tmp_path, card={})
    with pytest.raises(InputError, match="holds a run of another schedule"):
        train(build(SMALL, Untouched), corpus, plan("small", 3), tmp_path, card={})


def test_time_runs_out_resumably(corpus: Corpus, tmp_path: Path) -> None:
    train(build(SMALL, Untouched), corpus, plan("small", 50), tmp_path, card={}, max_minutes=1e-6)
    assert json.loads((tmp_path / "resume" / "state.json").read_text()) == {"step": 1}


# -- the data ----------------------------------------------------------------------------------------------------------------


def test_crops_are_a_function_of_the_seed(corpus: Corpus) -> None:
    one, two, other = (next(iter(CropSampler(corpus, 64, 2, 3, seed=s))) for s in (1, 1, 2))
    assert one.shape == (3, 2, 3, 64, 64)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_a_batch_is_a_function_of_its_step(corpus: Corpus) -> None:
    one, two = (CropSampler(corpus, 64, 2, 3, seed=1) for _ in range(2))
    for step in (5, 0):
        one.batch_at(step)
    assert torch.equal(one.batch_at(7), two.batch_at(7))
    assert not torch.equal(one.batch_at(7), one.batch_at(8))
    assert not torch.equal(one.batch_at(7), CropSampler(corpus, 64, 2, 3, seed=2).batch_at(7))


def test_a_picture_is_set_in_motion_where_frames_are_asked_for(clip: Callable[..., torch.Tensor]) -> None:
    picture = clip(1, 160, 160).movedim(1, -1).mul(255).to(torch.uint8).numpy()
    crop = next(iter(CropSampler(Corpus([picture], ("x",)), 64, 4, 1, seed=0)))
    assert crop.shape == (1, 4, 3, 64, 64)
    assert bool((crop[0, 1:] != crop[0, :-1]).flatten(1).any(1).all())


def test_folders_without_material_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such data folder"):
        load_corpus(tmp_path / "nowhere")
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match="no clip or picture"):
        load_corpus(tmp_path)


# -- schedules ---------------------------------------------------------------------------------------------------------------


def test_the_shipped_schedule_is_valid() -> None:
    schedule = load_schedule("deepjscc", "small")
    assert (schedule.system, schedule.preset) == ("deepjscc", "small")
    assert schedule.steps == sum(stage.steps for stage in schedule.stages) > 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("system: a\npreset: b\nsedd: 3\nstages: [{name: x, steps: 1}]", "did you mean 'seed'"),
        ("system: a\npreset: b\nstages: [{name: x, stepps: 1, steps: 1}]", "did you mean 'steps'"),
        ("system: a\npreset: b\nstages: [{name: x, steps: 0}]", r"stages\.0\.steps.*greater than 0"),
        ("system: a\npreset: b\nstages: [{name: x, steps: 1, size: 8}]", r"stages\.0\.size.*64"),
        ("system: a\npreset: b", "stages"),
        ("like: a-c\npreset: b", r"like a-c\.yaml, which does not come"),
        ("- 1", "is wrong"),
        ("{", "is wrong"),
    ],
)
def test_wrong_schedules_name_the_place_and_the_nearest_key(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as error:
        load_schedule("a", "b", path)
    assert "\n" not in str(error.value)


def test_missing_schedules() -> None:
    with pytest.raises(InputError, match="no training schedule for deepjscc:nope"):
        load_schedule("deepjscc", "nope")
    with pytest.raises(InputError, match="no such schedule"):
        load_schedule("a", "b", "/nowhere.yaml")
