"""The one training loop: for every system it runs ``transmit.run`` on crops, over a link in training mode.

A task model at the receiver has no link to learn over; what differs between the two is a :class:`Work`.

A run is a folder: ``checkpoint/`` (config, fp16 weights, card), ``resume/`` (everything needed to go on), ``log.jsonl`` and
``curve.svg``. An interrupted run goes on from the last save with the same command, and ends as it would have without the
interruption: what is drawn at a step depends on the seed and the step alone.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from semcast import checkpoint
from semcast.errors import InputError
from semcast.goals import GOALS
from semcast.goals.targets import imitation_target
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.machine import has_bf16
from semcast.systems.base import System
from semcast.training.curve import draw_curve
from semcast.training.data import Corpus, CropSampler, randomness
from semcast.training.schedule import Schedule, Stage
from semcast.transmit import run
from semcast.types import Format, Step

VALIDATION_SNR_DB, VALIDATION_EXAMPLES = 10.0, 12
WATCHING = "watch"  # the goal that losses of systems serve by themselves
ADAPTED_TO = 60  # clips that System.adapt sees
DIGITS = 4  # of a score in the log


@dataclass(frozen=True)
class Progress:
    """What the caller is told after every step."""

    step: int
    steps: int
    stage: str
    loss: float
    score: float
    validation: float | None
    examples_per_s: float


class Work(ABC):
    """What is trained, and how one step of it goes.

    Attributes:
        score: name of the number that log, curve and card show beside the loss; higher is better.
        held_out: in words, what :meth:`validate` measures it on.
        model: whose weights are trained and saved; has ``name``, ``preset`` and ``config``.
        exchange: the module that turns a batch into named losses, ``"loss"`` being the one to minimise.
    """

    score: ClassVar[str]
    held_out: str
    model: nn.Module
    exchange: nn.Module

    def initialise(self) -> None:  # noqa: B027  most start from random weights
        """Fit what is fitted in closed form, before the first step."""

    @abstractmethod
    def enter(self, stage: Stage, rank: int) -> None:
        """A stage begins, in the process ``rank``."""

    @abstractmethod
    def batch(self, step: int) -> tuple[Any, ...]:
        """What ``exchange`` is called with: a function of the seed, the rank and ``step`` alone."""

    @abstractmethod
    def validate(self) -> float:
        """The score of the model as it is, on what was held out."""

    def lr_scale(self, parameter: str) -> float:
        """Factor on the learning rate of a parameter, by name."""
        return 1.0


class Exchange(nn.Module):
    """One batch through the loop: crops -> losses. A module, so that several devices can share the work."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system

    def forward(
        self,
        frames: Tensor,
        link: Link,
        stage: Stage,
        cbr: float,
        generator: torch.Generator,
        labels: Tensor | None = None,
        flow: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """frames (B, t, 3, H, W), labels (B, t, H, W) and flow (B, t, 2, H, W) where they are known -> named losses."""
        steps = cut(frames, self.system.frames_per_step, labels, flow)
        height, width = frames.shape[-2:]
        fmt = Format(height, width, goal=stage.goal, system=self.system.name, preset=self.system.preset, cbr=cbr)
        results = list(run(self.system, steps, link, Ledger(), fmt=fmt, generator=generator))
        return self.system.loss(results, stage.goal, stage.options)


def cut(frames: Tensor, per_step: int, labels: Tensor | None = None, flow: Tensor | None = None) -> Iterator[Step]:
    """Crops (B, t, 3, H, W) as steps, with their labels (B, t, H, W) and flow (B, t, 2, H, W) where they are known."""
    pieces = frames.split(per_step, 1)
    truth = {name: x.split(per_step, 1) for name, x in (("segmentation", labels), ("flow", flow)) if x is not None}
    for index, piece in enumerate(pieces):
        yield Step(piece, {name: parts[index] for name, parts in truth.items()}, index, index == len(pieces) - 1)


def _learning_rate(stage: Stage, at: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * at / stage.steps))
    return min(1.0, (at + 1) / max(stage.warmup, 1)) * (stage.lr_end + (stage.lr - stage.lr_end) * cosine)


def _stage_at(schedule: Schedule, step: int) -> tuple[int, int]:
    """Index of the stage that ``step`` falls in, and the step within it."""
    for index, stage in enumerate(schedule.stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    raise IndexError("past the last stage")


def _average(average: dict[str, Tensor], system: nn.Module, decay: float) -> None:
    for name, value in system.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value.detach().float().to(average[name].device), 1 - decay)
        else:
            average[name].copy_(value)


@torch.no_grad()
def validate(
    system: System,
    frames: Tensor,
    labels: Tensor | None = None,
    *,
    snr_db: float = VALIDATION_SNR_DB,
    cbr: float = 1 / 12,
) -> float:
    """Mean RGB PSNR in dB of crops (B, t, 3, H, W) over AWGN, in evaluation mode, with a fixed seed."""
    system.eval()
    link = Link("awgn", snr_db=snr_db, cbr=cbr).eval()
    height, width = frames.shape[-2:]
    fmt = Format(height, width, system=system.name, preset=system.preset, cbr=cbr)
    psnr = []
    for index, example in enumerate(frames.split(1)):
        steps = cut(example, system.frames_per_step, None if labels is None else labels[index : index + 1])
        for result in run(system, steps, link, Ledger(), fmt=fmt, generator=torch.Generator().manual_seed(0)):
            assert result.decoded.frames is not None
            mse = (result.decoded.frames - result.step.frames).square().flatten(2).mean(2)
            psnr.append((-10 * torch.log10(mse + 1e-10)).flatten())
    system.train()
    return float(torch.cat(psnr).mean())


class SystemWork(Work):
    """A system on crops of clips over links: the rate drawn per batch, the SNR per example.

    Args:
        system: with fresh weights. corpus: what to train on; the last clip of every 20 is held out. schedule: stages and seed.
    """

    score: ClassVar[str] = "psnr_rgb_db"

    def __init__(self, system: System, corpus: Corpus, schedule: Schedule) -> None:
        self.held_out = f"held-out clips, AWGN {VALIDATION_SNR_DB:g} dB, CBR {schedule.validation_cbr:.4f}"
        self.model = self.system = system
        self.exchange = Exchange(system)
        self.start = schedule.start
        self.seed, self.first, self.cbr = schedule.seed, schedule.stages[0], schedule.validation_cbr
        held = Corpus(corpus.clips[19::20] or corpus.clips[:1], corpus.sources)
        self.kept = Corpus(
            [clip for index, clip in enumerate(corpus.clips) if index % 20 != 19] or corpus.clips, corpus.sources
        )
        first = self.first
        crops = CropSampler(held, first.size, first.frames, VALIDATION_EXAMPLES, 5, 0.7, first.mosaic, first.aspect)
        self.held_crops = next(iter(crops))

    def initialise(self) -> None:
        """Weights to begin with where the schedule names some, else what the system fits to crops by itself."""
        first = self.first
        initialise = getattr(self.system, "initialise", None)
        if self.start:
            checkpoint.borrow(self.system, self.start)
        elif initialise is not None:
            draws = iter(CropSampler(self.kept, first.size, first.frames, 16, self.seed + 17, first.min_scale, 1, first.aspect))
            clips = torch.cat([next(draws) for _ in range(60 if first.frames == 1 else 30 // first.frames)])
            initialise(clips if first.frames > 1 else clips[:, 0])
        if self.system.adapted:
            sampler = CropSampler(
                self.kept, first.size, first.frames, ADAPTED_TO, self.seed + 18, first.min_scale, first.mosaic, first.aspect
            )
            self.system.adapt(next(iter(sampler)))

    def enter(self, stage: Stage, rank: int) -> None:
        """Crops and links as the stage has them."""
        self.stage, self.rank = stage, rank
        self.system.begin(stage.options)
        self.system.task = None if stage.goal == WATCHING else GOALS.get(stage.goal).distortion
        if "target" in stage.options:
            imitate = getattr(self.system, "imitate", None)
            if imitate is None:
                raise InputError(
                    f"stage {stage.name!r}: {self.system.name} imitates no task model; leave out the option target"
                )
            imitate(imitation_target(str(stage.options["target"])))
        seed = self.seed + 7919 * rank
        self.sampler = CropSampler(
            self.kept, stage.size, stage.frames, stage.batch, seed, stage.min_scale, stage.mosaic, stage.aspect
        )
        self.links = {spec: Link(spec).train() for spec in stage.channels}

    def batch(self, step: int) -> tuple[Tensor, Link, Stage, float, torch.Generator]:
        """Crops, and a link set to what was drawn for them."""
        return self.sampler.batch_at(step), *self.air(step)

    def air(self, step: int) -> tuple[Link, Stage, float, torch.Generator]:
        """A link set to what is drawn for a batch, the stage, the rate, and the noise to come."""
        stage = self.stage
        rng, noise = randomness("air", self.seed, self.rank, step)
        link = self.links[rng.choices(list(stage.channels), list(stage.channels.values()))[0]]
        low, high = stage.snr_db
        cbr = rng.choice(stage.cbr)
        snr_db = low + (high - low) * torch.rand(stage.batch, generator=noise)
        if stage.snr_step_db:
            snr_db = (snr_db / stage.snr_step_db).round() * stage.snr_step_db
        link.set(snr_db=snr_db, cbr=cbr)
        return link, stage, cbr, noise

    def validate(self) -> float:
        """PSNR in dB of the crops held out."""
        return validate(self.system, self.held_crops.to(next(self.system.parameters()).device), cbr=self.cbr)

    def lr_scale(self, parameter: str) -> float:
        """As the system has it."""
        return self.system.lr_scale(parameter)


def train(
    system: System,
    corpus: Corpus,
    schedule: Schedule,
    out: str | Path,
    *,
    card: dict[str, Any],
    max_minutes: float | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train ``system`` on ``corpus``: :func:`fit` a :class:`SystemWork`; returns the folder of the checkpoint."""
    work = SystemWork(system, corpus, schedule)
    return fit(work, schedule, out, card=card, max_minutes=max_minutes, on_step=on_step)


def fit(
    work: Work,
    schedule: Schedule,
    out: str | Path,
    *,
    card: dict[str, Any],
    max_minutes: float | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train what ``work`` holds; returns the folder of the checkpoint.

    Args:
        work: with fresh weights; a run that was interrupted replaces them. schedule: stages and seeds. out: folder of the run.
            card: goes into card.json, completed by what was measured. max_minutes: stop (resumably) after so long.
            on_step: told after every step.

    Of several processes every one draws its own crops and noise, gradients are averaged, and the first one alone writes files
    and calls ``on_step``. An interrupt from the keyboard ends the run after the step that is under way, and saves it.

    Raises:
        InputError: the folder holds a run of another schedule. KeyboardInterrupt: after an interrupt.
    """
    from accelerate import Accelerator

    # Accelerate takes a device that it finds; processes on processors alone know of each other only where it is told so
    alone = not torch.accelerator.is_available()
    accelerator = Accelerator(cpu=alone, mixed_precision="bf16" if not alone or has_bf16() else "no")
    main = accelerator.is_main_process
    folder = Path(out)
    marker = folder / "schedule.json"
    plan = schedule.model_dump(mode="json")
    if marker.is_file() and json.loads(marker.read_text()) != json.loads(json.dumps(plan)):
        raise InputError(f"{folder} holds a run of another schedule; choose another --out, or remove it")
    accelerator.wait_for_everyone()  # all have read before the first one writes
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(plan, indent=2) + "\n")

    system, exchange = work.model, work.exchange
    if _saved(folder) is None:
        torch.manual_seed(schedule.seed)
        work.initialise()

    system.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's own annotations
    exchange.train()
    groups = [{"params": [p], "scale": work.lr_scale(name)} for name, p in system.named_parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(groups, lr=schedule.stages[0].lr, betas=(0.9, 0.99))
    exchange, optimiser = accelerator.prepare(exchange, optimiser)
    average = {name: value.detach().float().clone() for name, value in system.state_dict().items()}
    step = _resume(folder, system, optimiser, average)
    accelerator.wait_for_everyone()
    if main and (log := _read_log(folder)):  # what came after the save is done again
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log if line["step"] <= step))

    current = -1
    began, measured = time.monotonic(), 0
    rank = accelerator.process_index
    with _Interrupt() as interrupt:
        while step < schedule.steps:
            index, at = _stage_at(schedule, step)
            stage = schedule.stages[index]
            if index != current:
                current = index
                work.enter(stage, rank)
            batch = [x.to(accelerator.device) if isinstance(x, Tensor) else x for x in work.batch(step)]
            for group in optimiser.param_groups:
                group["lr"] = group["scale"] * _learning_rate(stage, at)
            with accelerator.autocast():
                losses = exchange(*batch)
            optimiser.zero_grad()
            accelerator.backward(losses["loss"])
            accelerator.clip_grad_norm_(exchange.parameters(), schedule.grad_clip)
            optimiser.step()
            step += 1
            measured += stage.batch * accelerator.num_processes
            _average(average, system, min(schedule.ema, step / (step + 10)))

            validation = None
            if main and (step % schedule.validate_every == 0 or step == schedule.steps):
                validation = _validate_average(work, average)
            speed = measured / (time.monotonic() - began)
            loss, score = float(losses["loss"].detach()), float(losses.get(work.score, torch.tensor(0.0)))
            stop = interrupt.seen or (max_minutes is not None and time.monotonic() - began > max_minutes * 60)
            if accelerator.num_processes > 1:  # whoever stops, all stop
                stop = bool(accelerator.reduce(torch.tensor(float(stop), device=accelerator.device)))
            if main:
                if step % 25 == 0 or validation is not None:
                    line = {"step": step, "stage": stage.name, "loss": round(loss, 4), work.score: round(score, DIGITS)}
                    line |= {name: round(float(value.detach()), 5) for name, value in losses.items() if name not in line}
                    if validation is not None:
                        line[f"validation_{work.score}"] = round(validation, DIGITS)
                    with (folder / "log.jsonl").open("a") as file:
                        file.write(json.dumps(line) + "\n")
                if step % schedule.save_every == 0 or step == schedule.steps or stop:
                    _save(folder, work, optimiser, average, step, card, schedule)
                if on_step:
                    on_step(Progress(step, schedule.steps, stage.name, loss, score, validation, speed))
            if stop:
                break
    accelerator.wait_for_everyone()
    if interrupt.seen:
        raise KeyboardInterrupt
    return folder / "checkpoint"


class _Interrupt:
    """Within it the first SIGINT is only noted, so that a step can be finished and saved; the second interrupts at once."""

    def __enter__(self) -> _Interrupt:
        self.seen = False
        self.former: Any = None
        if threading.current_thread() is threading.main_thread():
            self.former = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, self.former)

    def __exit__(self, *failure: object) -> None:
        if self.former is not None:
            signal.signal(signal.SIGINT, self.former)


def _validate_average(work: Work, average: dict[str, Tensor]) -> float:
    own = {name: value.detach().clone() for name, value in work.model.state_dict().items()}
    work.model.load_state_dict(average)
    try:
        return work.validate()
    finally:
        work.model.load_state_dict(own)


def _read_log(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _save(
    folder: Path,
    work: Work,
    optimiser: Any,
    average: dict[str, Tensor],
    step: int,
    card: dict[str, Any],
    schedule: Schedule,
) -> None:
    system, log = work.model, _read_log(folder)
    scores = [line[f"validation_{work.score}"] for line in log if f"validation_{work.score}" in line]
    trained = {
        **card,
        "steps": step,
        "of_steps": schedule.steps,
        "seed": schedule.seed,
        "validation": {"what": work.held_out, work.score: scores[-1] if scores else None},
        "torch": torch.__version__,
    }
    checkpoint.save(system, folder / "checkpoint", trained, state=average)
    resume = folder / "resume.new"
    resume.mkdir(exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in system.state_dict().items()}, resume / "model.safetensors")
    save_file({k: v.contiguous().clone() for k, v in average.items()}, resume / "average.safetensors")
    torch.save(optimiser.state_dict(), resume / "optimiser.pt")
    (resume / "state.json").write_text(json.dumps({"step": step}))
    _replace(resume, folder / "resume")
    if log:
        draw_curve(log, folder / "curve.svg", f"{system.name}:{system.preset}", work.score)


def _replace(new: Path, old: Path) -> None:
    """Swap folders so that an interruption leaves one whole copy."""
    import shutil

    backup = old.with_suffix(".old")
    if backup.exists():
        shutil.rmtree(backup)
    if old.exists():
        old.rename(backup)
    new.rename(old)
    if backup.exists():
        shutil.rmtree(backup)


def _saved(folder: Path) -> Path | None:
    """The folder to go on from, if there is one; a swap that was interrupted leaves the older one."""
    return next((path for path in (folder / "resume", folder / "resume.old") if (path / "state.json").is_file()), None)


def saved_step(out: str | Path) -> int:
    """The step that a run in the folder ``out`` would go on from; 0 where nothing was saved."""
    source = _saved(Path(out))
    return int(json.loads((source / "state.json").read_text())["step"]) if source else 0


def _resume(folder: Path, system: nn.Module, optimiser: Any, average: dict[str, Tensor]) -> int:
    source = _saved(folder)
    if source is None:
        return 0
    system.load_state_dict(load_file(source / "model.safetensors"))
    for name, value in load_file(source / "average.safetensors").items():
        average[name].copy_(value)
    optimiser.load_state_dict(torch.load(source / "optimiser.pt", weights_only=True))
    return saved_step(folder)
