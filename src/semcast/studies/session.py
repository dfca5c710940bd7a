"""One transmission of one clip, and its row: what ``transmit``, ``compare`` and ``send`` have in common; and its receiving end.

clip ─ steps ─▶ run(system, link) ─▶ metrics, pictures of one moment, whoever listens
                      └── ledger ──▶ Row
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import semcast
from semcast import checkpoint
from semcast.air import AirReader, AirWriter, as_sent, play
from semcast.errors import InputError, WeightsError
from semcast.goals import GOALS
from semcast.goals.base import Goal
from semcast.goals.segmenter import predict, shipped_segmenter
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.machine import has_bf16, return_freed_memory
from semcast.metrics import METRICS
from semcast.metrics.base import MetricSet
from semcast.studies.rows import Row
from semcast.studies.stats import goodput_bps, outage
from semcast.systems import SYSTEMS
from semcast.systems.base import System, SystemSpec
from semcast.transmit import run
from semcast.types import Decoded, Format, Received, Step, StepResult
from semcast.video.clip import Clip
from semcast.video.steps import steps

Precision = Literal["auto", "bf16", "fp32"]
MapSource = Literal["predicted", "truth"]
OUTAGE_PSNR_DB = 25.0
SEED_MAX = 2**32 - 2  # the session header has 32 bits for it, and the receiver's generator takes the next one
TRIM_FRAMES = 32  # how often free memory is handed back; it costs a digital chain 4 % of its time


class Loaded(NamedTuple):
    """A system ready to use: itself, the id of its weights ("" without), its registry entry, the condition it was built for."""

    system: System
    weights: str
    spec: SystemSpec
    condition: str


@dataclass(frozen=True)
class Radio:
    """The link of one session, as numbers and names.

    Attributes:
        channel: specification string. snr_db: Es/N0 per complex symbol. cbr: channel uses per source value.
        csi_snr_db: what the transmitter is told; None tells the truth. phy: "fast" or "exact"; systems that run at capacity
            replace it. harq: retransmissions at most. mcs: a fixed scheme by name; None adapts.
        bandwidth_hz: channel uses per second. tx_power_w: for the energy only.
    """

    channel: str = "awgn"
    snr_db: float = 10.0
    cbr: float = 1 / 12
    csi_snr_db: float | None = None
    phy: str = "fast"
    harq: int = 0
    mcs: str | None = None
    bandwidth_hz: float = 1e6
    tx_power_w: float = 1.0


class Moment(NamedTuple):
    """One frame as it was and as it arrived: index in the clip, (H, W, 3) uint8 RGB each, and a few words."""

    frame: int
    original: NDArray[np.uint8]
    received: NDArray[np.uint8]
    note: str


class SessionResult(NamedTuple):
    """What one transmission left behind; ``moment`` is None where no frame was asked for or frames are not what came out."""

    row: Row
    moment: Moment | None


def load_system(
    name: str, *, condition: str = "strong", weights: str | Path | None = None, maps: MapSource = "predicted"
) -> Loaded:
    """Build ``"system"`` or ``"system:preset"`` with its weights; ``maps`` says where one that sends maps has them from.

    Raises:
        UnknownNameError: no such system, preset or condition. WeightsError: weights absent, damaged or of another preset.
    """
    from semcast.systems.conditions import load_condition

    condition = load_condition(condition).name
    system, weights_id = checkpoint.make_system(name, condition=condition, weights=weights)
    if system.maps:
        system.maps, system.segmenter = maps, _segment
    return Loaded(system, weights_id, SYSTEMS.get(system.name), condition)


def _segment(frames: Tensor) -> Tensor:
    """The shipped segmenter's labels of pictures (N, 3, H, W)."""
    return predict(shipped_segmenter(), frames)


def resolve_precision(precision: Precision) -> Literal["bf16", "fp32"]:
    """The arithmetic of networks here: "auto" is bf16 where the processor has units for it.

    Both ends of an air file have to use the same one, since it decides the last bits of what is decoded.
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bf16() else "fp32"


@contextlib.contextmanager
def arithmetic(spec: SystemSpec, precision: Precision) -> Iterator[None]:
    """No gradients, and bf16 where asked for and where there are weights: digital chains always compute in fp32."""
    low = spec.trained and resolve_precision(precision) == "bf16"
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        yield


def _outside_autocast(source: Iterator[Step]) -> Iterator[Step]:
    """Decoding a source file is no part of a network: it keeps full precision."""
    while True:
        with torch.autocast("cpu", enabled=False):
            step = next(source, None)
        if step is None:
            return
        yield step


def default_metrics(goal: str) -> list[str]:
    """The metrics of a goal."""
    return list(GOALS.get(goal).metrics)


def check_goal(loaded: Loaded, goal: str) -> None:
    """Raise UnknownNameError or InputError unless the system serves the goal."""
    GOALS.get(goal)
    if goal not in loaded.spec.goals:
        raise InputError(f"{loaded.system.name} does not serve the goal {goal!r}; it serves {', '.join(loaded.spec.goals)}")


def check_truth(clip: Clip, goal: str) -> None:
    """Raise InputError unless the clip comes with the ground truth that the goal is judged by."""
    wanted = GOALS.get(goal)
    if not wanted.truth or clip.classes[: len(wanted.classes)] == wanted.classes:
        return
    has = f"labels of other classes ({', '.join(clip.classes[:3])}, ...)" if clip.classes else "no labels"
    known = f"{', '.join(wanted.classes[:3])}, ... ({len(wanted.classes)} classes)"
    raise InputError(
        f"the goal {goal!r} is judged by labels of {known}, and {clip.name} has {has}; give camvid:DIR/test, or --goal watch"
    )


def check_maps(loaded: Loaded, clip: Clip) -> None:
    """Raise InputError where maps are to be the truth, and the clip has no labels of the classes that maps hold."""
    classes = GOALS.get("segment").classes
    if loaded.system.maps == "truth" and clip.classes[: len(classes)] != classes:
        raise InputError(
            f"--maps truth sends labels of {', '.join(classes[:3])}, ... ({len(classes)} classes), and {clip.name} has none of "
            "these; give camvid:DIR/test, or --maps predicted"
        )


def session_format(
    loaded: Loaded, height: int, width: int, fps: float, *, cbr: float, goal: str = "watch", seed: int = 0
) -> Format:
    """The session header, as the receiver will read it.

    Raises:
        InputError: a seed, CBR or rate that the header cannot carry.
    """
    if not 0 <= seed <= SEED_MAX:
        raise InputError(f"--seed is {seed}; give a whole number from 0 to {SEED_MAX}")
    if not 0 < cbr <= 4:
        raise InputError(f"--cbr is {cbr:g}; give channel uses per source value above 0 and up to 4, e.g. 0.02 or 1/12")
    if max(height, width) > 65535:
        raise InputError(f"frames of {width}x{height} are larger than a session header can say; scale them with --size WxH")
    system = loaded.system
    return as_sent(Format(height, width, fps, goal, system.name, system.preset, loaded.weights, seed, cbr, loaded.condition))


def transmit_clip(
    loaded: Loaded,
    clip: Clip,
    radio: Radio,
    *,
    goal: str = "watch",
    seed: int = 0,
    metrics: Sequence[str] = ("psnr_rgb_db",),
    precision: Precision = "auto",
    assumed_free: bool = False,
    keep_frame: int | None = None,
    on_start: Callable[[Format], None] | None = None,
    on_step: Callable[[StepResult], None] | None = None,
) -> SessionResult:
    """Send a clip, streaming: at most one step of frames is held, however long the clip.

    Args:
        loaded: of :func:`load_system`. clip: what to send. radio: the link. goal: what the receiver does with it.
        seed: of the noise and of both ends. metrics: names in ``METRICS``; those on labels judge what the task model sees.
        precision: arithmetic of networks. assumed_free: do not charge the streams that the paper gets for free.
        keep_frame: index of the frame to keep as a picture; the last one of a shorter clip.
        on_start: told the session header. on_step: told every turn of the loop.

    Raises:
        BudgetError: the system cannot meet the CBR. InputError: any other bad input. ContractError: a fault of the system.
    """
    check_goal(loaded, goal)
    check_truth(clip, goal)
    check_maps(loaded, clip)
    system, purpose = loaded.system, GOALS.get(goal)
    fmt = session_format(loaded, clip.height, clip.width, clip.fps, cbr=radio.cbr, goal=goal, seed=seed)
    phy = "capacity" if system.modem_kind == "capacity" else radio.phy
    link = Link(
        radio.channel, snr_db=radio.snr_db, cbr=fmt.cbr, csi_snr_db=radio.csi_snr_db, phy=phy, harq=radio.harq, mcs=radio.mcs,
        bandwidth_hz=radio.bandwidth_hz, tx_power_w=radio.tx_power_w,
        assumed_free=system.free_streams if assumed_free else frozenset(),
    ).eval()  # fmt: skip
    ledger, measures = Ledger(), Measures(purpose, metrics)
    tally, trimmed = _Tally(keep_frame), 0
    if on_start:
        on_start(fmt)
    try:
        with arithmetic(loaded.spec, precision):
            source = _outside_autocast(
                steps(
                    clip,
                    system.frames_per_step,
                    labels=bool(purpose.truth) or system.maps == "truth",
                    scenes=system.follows_scenes,
                )
            )
            for result in run(system, source, link, ledger, fmt=fmt, generator=torch.Generator().manual_seed(seed)):
                with torch.autocast("cpu", enabled=False):
                    measures.update(result.step, result.decoded)
                    tally.add(result)
                    if on_step:
                        on_step(result)
                if tally.frames - trimmed >= TRIM_FRAMES:
                    trimmed = tally.frames
                    return_freed_memory()
        row = _row(loaded, clip, radio, fmt, link, ledger, measures, tally, phy)
    finally:
        measures.close()
    return SessionResult(row, tally.moment)


def send_clip(
    loaded: Loaded,
    clip: Clip,
    radio: Radio,
    path: str | Path,
    *,
    goal: str = "watch",
    seed: int = 0,
    metrics: Sequence[str] = ("psnr_rgb_db",),
    precision: Precision = "auto",
    on_step: Callable[[StepResult], None] | None = None,
) -> Row:
    """Send a clip as :func:`transmit_clip` does, and write what crossed the air to an air file, which appears when it is whole.

    Raises:
        AirFileError: the file cannot be written. And what ``transmit_clip`` raises.
    """
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        writers: list[AirWriter] = []

        def start(fmt: Format) -> None:
            writers.append(stack.enter_context(AirWriter(partial, fmt)))

        def step(result: StepResult) -> None:
            writers[0].write(result.received or {}, result.step.frames.shape[1])
            if on_step:
                on_step(result)

        row = transmit_clip(
            loaded, clip, radio, goal=goal, seed=seed, metrics=metrics, precision=precision, on_start=start, on_step=step
        ).row
        writers[0].close()
        partial.replace(target)
    return row


class Measures:
    """The metrics of one session: of what was received, and beside it what the task model makes of the source itself.

    Args:
        goal: whose task model reads the frames. metrics: names in ``METRICS``.
    """

    def __init__(self, goal: Goal, metrics: Sequence[str]) -> None:
        self.goal = goal
        classes = len(goal.classes) or None
        self.received = MetricSet(metrics, classes=classes, ignore_index=goal.ignore_index)
        on_labels = [name for name in metrics if METRICS.get(name).inputs == "labels"]
        self.clean = MetricSet(on_labels, classes=classes, ignore_index=goal.ignore_index)

    def update(self, step: Step, decoded: Decoded) -> None:
        """Take one turn of the loop."""
        if self.clean.metrics:
            decoded = self.goal.perceive(decoded)
            seen = self.goal.perceive(Decoded(frames=step.frames))
            self.clean.update_step(step, Decoded(labels=seen.labels))
        self.received.update_step(step, decoded)

    def compute(self) -> dict[str, Any]:
        """Values by key of a row: the metrics, those on labels also as ``NAME_clean``, and the counts behind them."""
        values: dict[str, Any] = self.received.compute()
        values |= {f"{name}_clean": value for name, value in self.clean.compute().items()}
        counts = {"received": self.received.label_counts(), "clean": self.clean.label_counts()}
        return values | {"label_counts": {name: found for name, found in counts.items() if found}}

    def close(self) -> None:
        """Release what metrics hold."""
        self.received.close()
        self.clean.close()


class _Tally:
    """What is summed over the steps of a session besides the metrics."""

    def __init__(self, keep_frame: int | None) -> None:
        self.keep_frame = keep_frame
        self.frames = self.concealed = self.delivered_bits = 0
        self.encode_s = self.decode_s = 0.0
        self.gop: int | None = None
        self.notes: list[str] = []
        self.moment: Moment | None = None

    def add(self, result: StepResult) -> None:
        count = result.step.frames.shape[1]
        self.encode_s += result.encode_s
        self.decode_s += result.decode_s
        self.concealed += result.decoded.concealed
        self.delivered_bits += _delivered_bits(result.received)
        gop = result.aux.get("gop")
        if gop is not None:
            self.gop = max(self.gop or 0, int(gop))
        note = result.aux.get("rate_note")
        if note and note not in self.notes:
            self.notes.append(str(note))
        shown = result.decoded.frames
        if self.keep_frame is not None and shown is not None and self.frames <= self.keep_frame:
            at = min(self.keep_frame - self.frames, count - 1)
            note = "concealed" if result.decoded.concealed == count else ""
            self.moment = Moment(self.frames + at, _picture(result.step.frames[0, at]), _picture(shown[0, at]), note)
        self.frames += count


def _picture(frame: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8."""
    levels: NDArray[np.uint8] = frame.clamp(0, 1).mul(255).round().to(torch.uint8).movedim(0, -1).contiguous().numpy()
    return levels


def _delivered_bits(received: Received | None) -> int:
    packets = [stream for stream in (received or {}).values() if isinstance(stream, list)]
    return sum(8 * len(packet) for stream in packets for batch in stream for packet in batch if packet is not None)


def _row(
    loaded: Loaded,
    clip: Clip,
    radio: Radio,
    fmt: Format,
    link: Link,
    ledger: Ledger,
    measures: Measures,
    tally: _Tally,
    phy: str,
) -> Row:
    values: dict[str, Any] = measures.compute()
    per_frame: dict[str, list[float | None]] = {name: list(series) for name, series in measures.received.per_frame().items()}
    packets = ledger.total("packets_sent", kind="digital", free=None)
    analog, digital = ledger.total(kind="analog"), ledger.total(kind=("digital", "header", "control"))
    footnotes = ledger.footnotes() + tally.notes
    footnotes += [f"{name} is not measured: {reason}" for name, reason in measures.received.unavailable().items()]
    ideal = link.channel.is_ideal
    told = radio.snr_db if radio.csi_snr_db is None else radio.csi_snr_db
    return Row(
        system=fmt.system,
        preset=fmt.preset,
        weights=fmt.weights or None,
        clip=clip.name,
        frames=tally.frames,
        height=fmt.height,
        width=fmt.width,
        goal=fmt.goal,
        channel=link.channel.spec,
        condition=loaded.condition if loaded.spec.kind == "digital" else None,
        phy=phy,
        mcs=_mcs_name(link, phy)
        if packets and digital > analog
        else None,  # what few packets analog systems send goes its own way
        gop=tally.gop,
        snr_db=None if ideal else radio.snr_db,
        csi_snr_db=None if ideal else told,
        cbr_target=radio.cbr,
        cbr=ledger.cbr,
        channel_uses=ledger.channel_uses,
        analog_uses=analog,
        digital_uses=digital,
        feedback_uses=ledger.total(kind="feedback"),
        info_bits=ledger.total("info_bits"),
        packets_sent=packets,
        packets_lost=ledger.total("packets_lost", kind="digital", free=None),
        assumed_free_uses=ledger.total(free=True),
        airtime_s=link.airtime_s(ledger),
        energy_j=link.energy_j(ledger),
        papr_db=ledger.papr_db,
        goodput_bps=goodput_bps(tally.delivered_bits, link.airtime_s(ledger)) if packets else None,
        outage=outage(per_frame.get("psnr_rgb_db", []), OUTAGE_PSNR_DB),
        concealed_frames=tally.concealed,
        encode_fps=tally.frames / tally.encode_s if tally.encode_s else None,
        decode_fps=tally.frames / tally.decode_s if tally.decode_s else None,
        seed=fmt.seed,
        version=semcast.__version__,
        maps=loaded.system.maps or None,
        streams=ledger.streams(),
        footnotes=footnotes,
        paper_conventions=dict(ledger.conventions()),
        per_frame=per_frame,
        **values,
    )


def _mcs_name(link: Link, phy: str) -> str:
    """The scheme that adaptation picks at the told SNR; the ideal bound has only a rate."""
    mcs = link.mcs()
    return f"{mcs.efficiency:.2f} bits/use" if phy == "capacity" else mcs.name


def receive(
    path: str | Path, *, weights: str | Path | None = None, precision: Precision = "auto"
) -> tuple[Format, Iterator[Decoded]]:
    """Open an air file: its session header, and an iterator that decodes it step by step.

    Args:
        path: what ``send`` wrote. weights: folder of a checkpoint; None takes the one that comes with the package.
        precision: as at the sending end.

    Raises:
        AirFileError: alien, truncated or damaged; while iterating, after what could be decoded. UnknownNameError: a system or
            condition that this version does not have. WeightsError: not the weights it was sent with.
    """
    reader = AirReader(path)
    try:
        fmt = reader.fmt
        loaded = load_system(f"{fmt.system}:{fmt.preset}", condition=fmt.condition, weights=weights)
        if loaded.weights != fmt.weights:
            raise WeightsError(
                f"{path} was sent with the weights {fmt.weights or 'none'}, those at hand are {loaded.weights or 'none'}; "
                "pass the matching --weights DIR"
            )
    except BaseException:
        reader.close()
        raise

    def decode() -> Iterator[Decoded]:
        with reader:
            played = play(loaded.system, reader)
            while True:
                with arithmetic(loaded.spec, precision):
                    decoded = next(played, None)
                if decoded is None:
                    return
                yield decoded

    return fmt, decode()


def weights_name(folder: str | Path) -> str:
    """``"system:preset"`` that a checkpoint belongs to; raises WeightsError where the folder is none."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return f"{config['system']}:{config['preset']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder} is no checkpoint: config.json is absent or damaged") from error
