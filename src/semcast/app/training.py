"""What ``train`` does: a schedule, a corpus, the one training loop, and a display of where it stands."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semcast import checkpoint
from semcast.app.commands import set_threads
from semcast.app.options import check_output
from semcast.app.show import console
from semcast.errors import InputError, UnknownNameError
from semcast.machine import keep_freed_memory
from semcast.systems import SYSTEMS
from semcast.training.data import load_corpus
from semcast.training.loop import Progress as Turn
from semcast.training.loop import saved_step
from semcast.training.loop import train as run_training
from semcast.training.schedule import load_schedule

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
    """Train ``name`` on ``data``; everything lands in ``out``, from which the same command goes on.

    Raises:
        InputError: a system without weights, no data, a schedule that does not fit, a folder that cannot be written.
    """
    set_threads(threads)
    base, _, after = name.partition(":")
    if after and preset and after != preset:
        raise InputError(f"{name} and --preset {preset} contradict each other; give one of them")
    spec = SYSTEMS.get(base)
    if not spec.trained:
        raise InputError(f"{base} has nothing to train; it works as it is")
    preset = preset or after or spec.presets[0]
    if preset not in spec.presets:
        raise UnknownNameError(f"preset of {base}", preset, spec.presets)
    check_output(out, "--out", folder=True)
    if max_minutes is not None and not max_minutes > 0:
        raise InputError(f"--max-minutes {max_minutes:g} leaves no time; give a positive number")
    schedule = load_schedule(base, preset, schedule_file)
    if (schedule.system, schedule.preset) != (base, preset):
        raise InputError(f"{schedule_file} is a schedule for {schedule.system}:{schedule.preset}, not for {base}:{preset}")
    keep_freed_memory()
    torch.manual_seed(schedule.seed)
    system = spec.make(preset, "strong")
    system.name, system.preset = base, preset
    checkpoint.attach_key(system)
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
        corpus = load_corpus(
            data,
            parts=schedule.parts,
            every=schedule.every,
            min_side=min(stage.size for stage in schedule.stages),
            progress=lambda done, of: display.update(reading, completed=done, total=of),
        )
        screen.print(
            f"{len(corpus.clips)} clips from {data} ({', '.join(corpus.sources)}), {corpus.megabytes:.0f} MB of frames"
        )
        task = display.add_task(f"{base}:{preset}", total=schedule.steps, state="")
        best = said = float("-inf")

        def on_step(turn: Turn) -> None:
            nonlocal last, best, said
            last = turn
            if turn.validation_db is not None:
                best = max(best, turn.validation_db)
                screen.print(f"step {turn.step}: {turn.validation_db:.2f} dB on held-out clips (best {best:.2f})")
            state = f"{turn.stage}  loss {turn.loss:.3f}  {turn.psnr_rgb_db:.2f} dB  {turn.examples_per_s:.1f} examples/s"
            display.update(task, completed=turn.step, state=state)
            if not screen.is_terminal and time.monotonic() - said > REPORT_EVERY_S:
                said = time.monotonic()
                print(f"step {turn.step} of {turn.steps}  {state}", flush=True)

        name_of = data.resolve().name
        sources = [name_of if source == "." else f"{name_of}/{source}" for source in corpus.sources]
        card = {
            "system": base,
            "preset": preset,
            "data": sources,
            "licence": licence,
        }
        try:
            folder = run_training(system, corpus, schedule, out, card=card, max_minutes=max_minutes, on_step=on_step)
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
