"""What ``compare``, ``transmit``, ``send`` and ``receive`` do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from semcast.app import show
from semcast.app.options import Common, check_choice, check_output, frame_size, names, numbers, one_number
from semcast.channels import make_channel
from semcast.errors import AirFileError, InputError, WeightsError
from semcast.goals import GOALS
from semcast.metrics.base import MetricSet
from semcast.studies.compare import Comparison, Plan
from semcast.studies.rows import write_json
from semcast.studies.session import (
    Loaded,
    MapSource,
    Precision,
    Radio,
    check_goal,
    check_truth,
    default_metrics,
    load_system,
    resolve_precision,
    send_clip,
    session_format,
    transmit_clip,
    weights_name,
)
from semcast.studies.session import receive as open_air
from semcast.types import StepResult
from semcast.video.clip import Clip
from semcast.video.io import open_clips
from semcast.video.writer import VideoWriter

PRECISIONS = ("auto", "bf16", "fp32")
ROWS_FILE = "rows.jsonl"
SNR_MAX_DB = 100.0
OnStep = Callable[[StepResult], None]


@dataclass(frozen=True)
class Request:
    """What was typed, checked: clips, link, metrics, arithmetic."""

    clips: list[Clip]
    radio: Radio
    snrs_db: list[float]
    cbrs: list[float]
    metrics: list[str]
    precision: Precision


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress display on stderr, silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as display:
        yield display


def set_threads(threads: int | None) -> None:
    """Use so many processor threads for arithmetic; None leaves PyTorch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def understand(typed: Common) -> Request:
    """Check everything that was typed before anything long begins."""
    set_threads(typed.threads)
    for channel in typed.channels:
        make_channel(channel).configure(typed.bandwidth_hz)
    check_choice(typed.phy, "--phy", ("fast", "exact"))
    precision: Precision = check_choice(typed.precision, "--precision", PRECISIONS)  # type: ignore[assignment]
    if not (0 < typed.power_w < float("inf")):
        raise InputError(f"--power {typed.power_w:g} W makes no sense; give a positive number")
    if typed.command == "compare":
        snrs, cbrs = numbers(typed.snr, "--snr"), numbers(typed.cbr, "--cbr", example="0.02,1/12")
    else:
        snrs = [one_number(typed.snr, "--snr", typed.command)]
        cbrs = [one_number(typed.cbr, "--cbr", typed.command, example="0.02")]
    for snr in [*snrs, *([] if typed.csi_snr is None else [typed.csi_snr])]:
        if not abs(snr) <= SNR_MAX_DB:
            raise InputError(
                f"an SNR of {snr:g} dB makes no sense; give --snr and --csi-snr between -{SNR_MAX_DB:g} and {SNR_MAX_DB:g}"
            )
    for cbr in cbrs:
        if not 0 < cbr <= 4:
            raise InputError(f"--cbr {cbr:g} is impossible; give channel uses per source value above 0 and up to 4, e.g. 0.02")
    metrics = _metrics(typed)
    clips = open_clips(
        typed.source, size=frame_size(typed.size), fps=typed.fps, stills=typed.stills, max_frames=typed.max_frames
    )
    for clip in clips:
        check_truth(clip, typed.goal)
    radio = Radio(
        typed.channels[0], snrs[0], cbrs[0], typed.csi_snr, typed.phy, typed.harq, typed.mcs, typed.bandwidth_hz, typed.power_w
    )
    return Request(clips, radio, snrs, cbrs, metrics, precision)


def _metrics(typed: Common) -> list[str]:
    """The metrics asked for, or those of the goal that can be measured here."""
    wanted = default_metrics(typed.goal) if typed.metrics is None else names(typed.metrics, "--metrics")
    goal = GOALS.get(typed.goal)
    measures = MetricSet(wanted, classes=len(goal.classes) or None, ignore_index=goal.ignore_index)
    missing = measures.unavailable() if typed.metrics is None else {}
    measures.close()
    return [name for name in wanted if name not in missing]


def _maps(typed: Common) -> MapSource:
    """Where maps that are sent along come from."""
    return check_choice(typed.maps, "--maps", ("predicted", "truth"))  # type: ignore[return-value]


# compare ------------------------------------------------------------------------------------------------------------------


def compare(typed: Common, systems: str, seeds: int, report: Path | None, json: Path | None, weights: list[Path]) -> None:
    """``semcast compare``: rows as they come, a table, and a report; what is there survives an interruption."""
    check_output(report, "--report", folder=True)
    check_output(json, "--json", source=typed.source)
    request = understand(typed)
    plan = Plan(
        systems=_load_all(names(systems, "--systems"), typed, weights),
        clips=request.clips,
        channels=list(dict.fromkeys(typed.channels)),
        snrs_db=request.snrs_db,
        cbrs=request.cbrs,
        radio=request.radio,
        goal=typed.goal,
        seeds=range(typed.seed, typed.seed + seeds),
        metrics=request.metrics,
        precision=request.precision,
        assumed_free=typed.assumed_free,
    )
    _check_seeds(plan)
    comparison = Comparison(plan, report / ROWS_FILE if report else None)
    interrupted = False
    try:
        with progress() as display:
            task = display.add_task("", total=len(plan))
            comparison.run(
                on_begin=lambda what: display.update(task, description=what),
                on_row=lambda row: display.advance(task),
            )
    except KeyboardInterrupt:
        interrupted = True
    finally:
        _finish(comparison, report, json)
    if interrupted:
        print(f"interrupted after {len(comparison.rows)} of {len(plan)} transmissions; what is there was kept", file=sys.stderr)
        raise KeyboardInterrupt


def _finish(comparison: Comparison, report: Path | None, json: Path | None) -> None:
    """Show and write what is there, whole or not."""
    if not comparison.rows:
        return
    show.rows(comparison.rows)
    for note in comparison.notes:
        print(f"note: {note}")
    if json:
        print(f"wrote {write_json(json, comparison.rows)}")
    if report:
        command = shlex.join(["semcast", *sys.argv[1:]])
        facts = {"threads": str(torch.get_num_threads()), "precision": resolve_precision(comparison.plan.precision)}
        print(f"wrote {comparison.report(report, command, facts)}")


def _load_all(wanted: list[str], typed: Common, weights: list[Path]) -> list[Loaded]:
    """Systems with their weights, each checkpoint going to the system that it names."""
    folders = {weights_name(folder): folder for folder in weights}
    chosen: dict[str, Path | None] = {}
    for name in wanted:
        fits = [key for key in folders if name in (key, key.partition(":")[0])]
        chosen[fits[0] if fits else name] = folders.pop(fits[0]) if fits else None
    for name, folder in folders.items():
        raise WeightsError(f"the weights in {folder} belong to {name}, which is not among --systems {','.join(wanted)}")
    return [load_system(name, condition=typed.condition, weights=folder, maps=_maps(typed)) for name, folder in chosen.items()]


def _check_seeds(plan: Plan) -> None:
    for seed in (plan.seeds[0], plan.seeds[-1]):
        session_format(plan.systems[0], 64, 64, 25.0, cbr=1.0, seed=seed)


# transmit, send, receive ----------------------------------------------------------------------------------------------------


def transmit(typed: Common, system: str, output: Path | None, json: Path | None, weights: Path | None) -> None:
    """``semcast transmit``: one system, one operating point; the received video and a row per clip."""
    check_output(json, "--json", source=typed.source)
    request = understand(typed)
    several = len(request.clips) > 1
    check_output(output, "OUTPUT", folder=several, source=typed.source)
    loaded = load_system(system, condition=typed.condition, weights=weights, maps=_maps(typed))
    check_goal(loaded, typed.goal)
    rows = []
    for clip in request.clips:
        ending = ".png" if clip.n_frames == 1 else ".mp4"
        target = output / f"{clip.name}{ending}" if output and several else output
        with _sink(clip, target) as consume, _frames_of(loaded, clip) as advance:

            def step(result: StepResult, consume: OnStep = consume, advance: OnStep = advance) -> None:
                consume(result)
                advance(result)

            done = transmit_clip(
                loaded,
                clip,
                request.radio,
                goal=typed.goal,
                seed=typed.seed,
                metrics=request.metrics,
                precision=request.precision,
                assumed_free=typed.assumed_free,
                on_step=step,
            )
        rows.append(done.row)
        show.outcome(rows[-1])
        if target:
            print(f"wrote {target}")
    if json:
        print(f"wrote {write_json(json, rows)}")


def send(typed: Common, system: str, air: Path, json: Path | None, weights: Path | None) -> None:
    """``semcast send``: as ``transmit``, but what is written is what crossed the air."""
    check_output(json, "--json", source=typed.source)
    check_output(air, "--air", source=typed.source)
    request = understand(typed)
    if len(request.clips) > 1:
        raise InputError(f"{typed.source} holds {len(request.clips)} clips, `semcast send` takes one; name a file in it")
    loaded = load_system(system, condition=typed.condition, weights=weights, maps=_maps(typed))
    check_goal(loaded, typed.goal)
    clip = request.clips[0]
    with _frames_of(loaded, clip) as advance:
        row = send_clip(
            loaded,
            clip,
            request.radio,
            air,
            goal=typed.goal,
            seed=typed.seed,
            metrics=request.metrics,
            precision=request.precision,
            on_step=advance,
        )
    show.outcome(row)
    print(f"wrote {air} ({air.stat().st_size:,} bytes)")
    if json:
        print(f"wrote {write_json(json, [row])}")


def receive(
    air: Path, output: Path, weights: Path | None, lossless: bool, precision: str, threads: int | None
) -> None:  # fmt: skip
    """``semcast receive``: the far end of ``send``; keeps what came before any damage."""
    set_threads(threads)
    chosen: Precision = check_choice(precision, "--precision", PRECISIONS)  # type: ignore[assignment]
    check_output(output, "OUTPUT", source=str(air))
    fmt, decoded = open_air(air, weights=weights, precision=chosen)
    count = 0
    with VideoWriter(output, fmt.width, fmt.height, fmt.fps, lossless=lossless) as writer, progress() as display:
        task = display.add_task(f"receiving {fmt.system}", total=None)
        try:
            for part in decoded:
                if part.frames is None:
                    raise InputError(f"{air}: {fmt.system} delivers no video for the goal {fmt.goal!r}")
                writer.write(part.frames)
                count += part.frames.shape[1]
                display.update(task, completed=count)
        except AirFileError as error:
            kept = f"the {count} frames before that are in {output}" if count else "nothing could be decoded"
            raise AirFileError(f"{error}; {kept}") from error
    if not count:
        raise AirFileError(f"{air}: the session holds no frames")
    print(f"{fmt.system}:{fmt.preset} delivered {count} frames of {fmt.width}x{fmt.height}")
    print(f"wrote {output}")


@contextmanager
def _frames_of(loaded: Loaded, clip: Clip) -> Iterator[OnStep]:
    """A progress bar over the frames of one transmission; what it yields moves it on."""
    with progress() as display:
        task = display.add_task(f"{loaded.system.name}, {clip.name}", total=clip.n_frames)
        yield lambda result: display.advance(task, result.step.frames.shape[1])


@contextmanager
def _sink(clip: Clip, target: Path | None) -> Iterator[OnStep]:
    """What takes the decoded frames of a session to a video file, or nowhere."""
    if target is None:
        yield lambda result: None
        return
    with VideoWriter(target, clip.width, clip.height, clip.fps) as writer:

        def consume(result: StepResult) -> None:
            if result.decoded.frames is not None:
                writer.write(result.decoded.frames)

        yield consume
