"""What ``train`` does: a schedule, a corpus, the one training loop, and a display of where it stands."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semcast import checkpoint
from semcast.app.commands import set_threads
from semcast.app.options import check_output
from semcast.app.show import console
from semcast.errors import InputError, UnknownNameError
from semcast.goals import TASK_MODELS
from semcast.machine import keep_freed_memory
from semcast.systems import SYSTEMS
from semcast.training.curve import NAMES
from semcast.training.data import load_corpus
from semcast.training.loop import Progress as Turn
from semcast.training.loop import SystemWork, Work, fit, saved_step
from semcast.training.schedule import Schedule, load_schedule

REPORT_EVERY_S = 30.0  # where the output is no terminal


def train(
    name: str,
    data: Path,
    out: Path,
    preset: str | None,
    schedule_file: Path | None,
    max_minutes: float | None,
    licence: str,
    threads: int | None,
) -> None:
    """Train ``name``, a system or a task model, on ``data``; everything lands in ``out``, from which the same command goes on.

    Raises:
        InputError: a system without weights, no data, a schedule that does not fit, a folder that cannot be written.
    """
    set_threads(threads)
    base, _, after = name.partition(":")
    if after and preset and after != preset:
        raise InputError(f"{name} and --preset {preset} contradict each other; give one of them")
    presets = _presets(base)
    preset = preset or after or presets[0]
    if preset not in presets:
        raise UnknownNameError(f"preset of {base}", preset, presets)
    check_output(out, "--out", folder=True)
    if max_minutes is not None and not max_minutes > 0:
        raise InputError(f"--max-minutes {max_minutes:g} leaves no time; give a positive number")
    schedule = load_schedule(base, preset, schedule_file)
    if (schedule.system, schedule.preset) != (base, preset):
        raise InputError(f"{schedule_file} is a schedule for {schedule.system}:{schedule.preset}, not for {base}:{preset}")
    keep_freed_memory()
    torch.manual_seed(schedule.seed)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that a launcher may have started, one speaks
    screen = console()
    screen.quiet = not first
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )  # fmt: skip
    last = Turn(0, schedule.steps, "", 0.0, 0.0, None, 0.0)
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as display:
        reading = display.add_task("reading clips", total=None, state="")
        work, sources, found = _work(
            base, preset, data, schedule, lambda done, of: display.update(reading, completed=done, total=of)
        )
        screen.print(f"{found} from {data} ({', '.join(sources)})")
        task = display.add_task(f"{base}:{preset}", total=schedule.steps, state="")
        best = said = float("-inf")

        def on_step(turn: Turn) -> None:
            nonlocal last, best, said
            last = turn
            if turn.validation is not None:
                best = max(best, turn.validation)
                said_now = _said(work, turn.validation)
                screen.print(f"step {turn.step}: {said_now} on {work.held_out.partition(',')[0]} (best {_said(work, best)})")
            state = f"{turn.stage}  loss {turn.loss:.3f}  {_said(work, turn.score)}  {turn.examples_per_s:.1f} examples/s"
            display.update(task, completed=turn.step, state=state)
            if not screen.is_terminal and time.monotonic() - said > REPORT_EVERY_S:
                said = time.monotonic()
                print(f"step {turn.step} of {turn.steps}  {state}", flush=True)

        name_of = data.resolve().name
        card = {
            "system": base,
            "preset": preset,
            "data": [name_of if source == "." else f"{name_of}/{source}" for source in sources],
            "licence": licence,
        }
        try:
            folder = fit(work, schedule, out, card=card, max_minutes=max_minutes, on_step=on_step)
        except KeyboardInterrupt:
            if first:
                print(
                    f"saved at step {saved_step(out)} of {schedule.steps}; the same command goes on from there", file=sys.stderr
                )
            raise
    if not first:
        return
    if last.step and last.step < schedule.steps:
        print(f"stopped at step {last.step} of {schedule.steps}; the same command goes on from there")
    print(f"wrote {folder} (weights {checkpoint.weights_id(folder)}), {out / 'log.jsonl'} and {out / 'curve.svg'}")


def _presets(name: str) -> tuple[str, ...]:
    """Presets of a system or a task model that can be trained."""
    if name in TASK_MODELS:
        return TASK_MODELS.get(name).presets
    if name not in SYSTEMS:
        raise UnknownNameError("system or task model", name, [*SYSTEMS, *TASK_MODELS])
    spec = SYSTEMS.get(name)
    if not spec.trained:
        raise InputError(f"{name} has nothing to train; it works as it is")
    return spec.presets


def _work(
    name: str, preset: str, data: Path, schedule: Schedule, progress: Callable[[int, int], None]
) -> tuple[Work, tuple[str, ...], str]:
    """What is to be trained, with the data read; the parts of the data folder, and in words what was found there."""
    if name in TASK_MODELS:
        from semcast.goals.segmenter import Segmenter
        from semcast.training.labelled import load_labelled
        from semcast.training.segmenter import SegmenterWork, trunk_weights

        trunk = trunk_weights()
        labelled = load_labelled(data, parts=schedule.parts, progress=progress)
        model = TASK_MODELS.get(name).make(preset)
        assert isinstance(model, Segmenter)
        work = SegmenterWork(model, labelled, schedule, trunk)
        return work, labelled.sources, f"{len(labelled.pictures)} labelled pictures, {labelled.megabytes:.0f} MB,"
    system = SYSTEMS.get(name).make(preset, "strong")
    system.name, system.preset = name, preset
    checkpoint.attach_key(system)
    if schedule.labelled:
        from semcast.training.labelled import load_labelled
        from semcast.training.labelled_groups import LabelledGroupsWork
        from semcast.training.labelled_system import LabelledSystemWork

        labelled = load_labelled(data, parts=schedule.parts, progress=progress)
        found = f"{len(labelled.pictures)} labelled pictures, {labelled.megabytes:.0f} MB,"
        groups = schedule.stages[0].frames > 1
        made = LabelledGroupsWork(system, labelled, schedule) if groups else LabelledSystemWork(system, labelled, schedule)
        return made, labelled.sources, found
    smallest = min(stage.size for stage in schedule.stages)
    corpus = load_corpus(data, parts=schedule.parts, every=schedule.every, min_side=smallest, progress=progress)
    found = f"{len(corpus.clips)} clips, {corpus.megabytes:.0f} MB of frames,"
    return SystemWork(system, corpus, schedule), corpus.sources, found


def _said(work: Work, value: float) -> str:
    """A score with its unit."""
    return f"{value:.2f} dB" if work.score.endswith("_db") else f"{NAMES[work.score]} {value:.3f}"
