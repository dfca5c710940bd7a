"""What the reproduction cards of NTSCC and DVST stand on: rows of every part of the study, then the cards themselves.

    python benchmarks/dvst_study.py rd --out out/dvst               # measure; what is there already is not measured again
    python benchmarks/dvst_study.py cards --out out/dvst            # docs/reproduction/{dvst,ntscc}.md from the rows

Parts `ablations`, `segment`, `time` and `pictures` stand in `dvst_figures.py`.

Every part keeps one JSON list in the folder `--out`: rows of `semcast.studies.rows`, and for `agree` and `speed` plain objects.
Operating points that a system cannot serve stand in `PART-left-out.json`, with the reason. Networks compute in fp32 unless
`--precision` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dvst_figures
import memory
import reproduction
import torch
from study_numbers import REFERENCE
from study_rows import Shelf, expected, grouping, read_list, write_list

from semcast.errors import BudgetError
from semcast.ledger import Ledger
from semcast.link import Link
from semcast.machine import has_bf16
from semcast.metrics.base import MetricSet
from semcast.studies.compare import Plan
from semcast.studies.session import (
    Loaded,
    Radio,
    arithmetic,
    load_system,
    receive,
    send_clip,
    session_format,
    transmit_clip,
    weights_name,
)
from semcast.systems import SYSTEMS
from semcast.transmit import run
from semcast.types import StepResult
from semcast.video.clip import Clip
from semcast.video.io import open_clips
from semcast.video.steps import steps

DATA = "../shared/data/eval"
CLIP = f"{DATA}/video/BasketballPass_416x240_50.mkv"
MEASURES = ("psnr_rgb_db", "ms_ssim_rgb_db")
LADDERS = {"dvst-paper": (0.01, 0.015, 0.02, 0.03, 0.045), "strong": (0.006, 0.01, 0.015, 0.02, 0.03)}
TARGETS = (0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.045, 0.06)
STILL_RATES = (0.0208, 0.0417, 0.0625, 0.0833)
STILL_SYSTEMS = ("ntscc:small", "ntscc:ms-ssim", "linear-jscc:classes-32", "hevc-intra-ldpc", "deepjscc")


def numbers(text: str) -> tuple[float, ...]:
    """``"2,10"`` -> (2.0, 10.0)."""
    return tuple(float(part) for part in text.split(","))


class Reference:
    """PSNR of the transmitter's own noise-free reference, frame by frame, as `dvst:small` makes it while it encodes."""

    def __init__(self, loaded: Loaded) -> None:
        self.values: list[float | None] = []
        self._clean: list[torch.Tensor] = []
        system: Any = loaded.system
        self._inner: Callable[..., Any] = type(system).encode_group.__get__(system)
        system.encode_group = self._record

    def _record(self, group: Any, reference: torch.Tensor, *rest: Any) -> Any:
        runs = self._inner(group, reference, *rest)
        self._clean = [reference, *(coded.reference for run in runs for coded in run)]
        return runs

    def step(self, result: StepResult) -> None:
        """One turn of the loop; no values where frames were left out."""
        frames, clean = result.step.frames[0], self._clean
        self._clean = []
        if len(clean) != len(frames):
            self.values += [None] * len(frames)
            return
        measure = MetricSet(("psnr_rgb_db",))
        measure.update(frames, torch.stack(clean)[..., : frames.shape[-2], : frames.shape[-1]])
        self.values += measure.per_frame()["psnr_rgb_db"]


def measure(plan: Plan, shelf: Shelf, *, reference: bool = False) -> None:
    """Run what of a plan is not there yet; a line per row. ``reference`` also keeps that of the transmitter."""
    length = {id(clip): sum(1 for _ in clip.frames()) for clip in plan.clips}
    for clip, loaded, radio, seed in plan.points():
        wanted = expected(loaded, clip, length[id(clip)], radio, seed)
        if shelf.has(wanted):
            continue
        clean = Reference(loaded) if reference else None
        began = time.process_time()
        try:
            row = transmit_clip(
                loaded, clip, radio, seed=seed, metrics=plan.metrics, precision=plan.precision,
                on_step=clean.step if clean else None,
            ).row  # fmt: skip
        except BudgetError as error:
            shelf.refuse(wanted, str(error))
            print(f"{wanted.name} is left out of {clip.name} at CBR {radio.cbr:g}, {radio.snr_db:g} dB: {error}", flush=True)
            continue
        spent = (time.process_time() - began) / row.frames
        if clean:
            row = row.model_copy(update={"per_frame": {**row.per_frame, REFERENCE: clean.values}})
        shelf.add(row.model_copy(update=grouping(loaded)))
        print(
            f"{row.name:24} {loaded.condition:10} {row.clip:28} {row.channel:9} {row.snr_db:5g} dB  CBR {row.cbr:.5f} of "
            f"{radio.cbr:g}  {row.psnr_rgb_db:6.2f} dB  {spent:6.3f} CPU s a frame",
            flush=True,
        )


def load(names: Sequence[str], condition: str, given: argparse.Namespace) -> list[Loaded]:
    """Systems under a condition, with weights from the command line where those are theirs."""
    return [load_system(name, condition=condition, weights=weights_of(name, given)) for name in names]


def weights_of(name: str, given: argparse.Namespace) -> str | None:
    """The folder on the command line that belongs to a system, or None for the shipped weights."""
    base, _, preset = name.partition(":")
    folders = {weights_name(folder): folder for folder in given.weights}
    return folders.get(f"{base}:{preset or SYSTEMS.get(base).presets[0]}")


def plan_of(given: argparse.Namespace, systems: Sequence[Loaded], clips: Sequence[Clip], **what: Any) -> Plan:
    """A plan over AWGN at 10 dB but for what is said."""
    defaults: dict[str, Any] = {"channels": ("awgn",), "snrs_db": (10.0,), "metrics": MEASURES, "precision": given.precision}
    return Plan(systems, clips, **(defaults | what))


def clips_of(given: argparse.Namespace, default: str, **how: Any) -> list[Clip]:
    """What `--input` names, or the default of the part."""
    size = tuple(int(side) for side in given.size.split("x")) if given.size else None
    return open_clips(given.input or default, size=size, max_frames=given.frames, **how)  # type: ignore[arg-type]


def kodak(given: argparse.Namespace) -> None:
    """Pictures: PSNR and MS-SSIM over CBR at 10 dB, and over SNR at CBR 1/12."""
    shelf, clips = Shelf(given.out, "kodak"), clips_of(given, f"kodak:{DATA}/images", stills=True)
    systems = load(given.systems or STILL_SYSTEMS, "strong", given)
    rates = given.cbr or STILL_RATES
    everywhere = [loaded for loaded in systems if loaded.system.name != "deepjscc"]
    measure(plan_of(given, everywhere, clips, cbrs=rates), shelf)
    measure(plan_of(given, systems, clips, cbrs=rates[-1:], snrs_db=given.snr or (2.0, 10.0, 18.0)), shelf)


def rd(given: argparse.Namespace) -> None:
    """Video: rate against quality at 10 dB under both conditions."""
    bounds = ("h264-capacity", "h265-capacity") if given.capacity else ()
    names = given.systems or ("dvst", "dvst:ms-ssim", "h264-ldpc", "h265-ldpc", *bounds)
    shelf, clips = Shelf(given.out, "rd"), clips_of(given, f"{DATA}/video")
    for condition in given.conditions:
        measure(plan_of(given, load(names, condition, given), clips, cbrs=given.cbr or LADDERS[condition]), shelf)


def snr(given: argparse.Namespace) -> None:
    """One clip: quality against SNR, told the truth and told 10 dB, over AWGN and Rayleigh."""
    shelf, clips, rates = Shelf(given.out, "snr"), clips_of(given, CLIP), given.cbr or (0.015,)
    true, told = given.snr or tuple(range(-2, 21, 2)), given.mismatched or tuple(range(2, 15, 2))
    for condition in given.conditions[-1:]:
        systems = load(given.systems or ("dvst", "h265-ldpc"), condition, given)
        for channel in ("awgn", "rayleigh"):
            measure(plan_of(given, systems, clips, cbrs=rates, channels=(channel,), snrs_db=true), shelf)
            radio = Radio(csi_snr_db=10.0)
            measure(plan_of(given, systems, clips, cbrs=rates, channels=(channel,), snrs_db=told, radio=radio), shelf)


def drift(given: argparse.Namespace) -> None:
    """Long groups: what the receiver shows beside the transmitter's noise-free reference, frame by frame."""
    shelf, clips = Shelf(given.out, "drift"), clips_of(given, CLIP)
    for gop in given.gops:
        (loaded,) = load(given.systems or ("dvst",), "strong", given)
        loaded.system.frames_per_step = gop
        plan = plan_of(given, [loaded], clips, cbrs=given.cbr or (0.015,), snrs_db=given.snr or (2.0, 10.0))
        measure(plan, shelf, reference=True)


def rates(given: argparse.Namespace) -> None:
    """Whether the CBR asked for is met, and what of it is side information."""
    shelf, clips = Shelf(given.out, "rates"), clips_of(given, f"{DATA}/video")
    for condition in given.conditions:
        measure(plan_of(given, load(given.systems or ("dvst",), condition, given), clips, cbrs=given.cbr or TARGETS), shelf)


def training_forward(loaded: Loaded, clip: Clip, radio: Radio, seed: int, given: argparse.Namespace) -> tuple[float, float]:
    """CBR and PSNR of the forward pass that training sees, over a link in training mode, on whole frames."""
    fmt = session_format(loaded, clip.height, clip.width, clip.fps, cbr=radio.cbr, seed=seed)
    link, ledger, measures = (
        Link(radio.channel, snr_db=radio.snr_db, cbr=fmt.cbr).train(),
        Ledger(),
        MetricSet(("psnr_rgb_db",)),
    )
    source = steps(clip, loaded.system.frames_per_step, scenes=loaded.system.follows_scenes)
    loaded.system.train()
    try:
        with arithmetic(loaded.spec, given.precision):
            for result in run(loaded.system, source, link, ledger, fmt=fmt, generator=torch.Generator().manual_seed(seed)):
                measures.update_step(result.step, result.decoded)
    finally:
        loaded.system.eval()
    return ledger.cbr, float(measures.compute()["psnr_rgb_db"])


def agree(given: argparse.Namespace) -> None:
    """One group as real bytes through an air file into a fresh process, and by the training forward, seed by seed."""
    path = given.out / "agree.json"
    entries = read_list(path)
    (clip,) = clips_of(given, CLIP)
    (loaded,) = load(given.systems or ("dvst",), given.conditions[-1], given)
    radio = Radio(snr_db=(given.snr or (10.0,))[0], cbr=(given.cbr or (0.015,))[0])
    point = {"weights": loaded.weights, "clip": clip.name, "condition": loaded.condition, "snr_db": radio.snr_db}
    point |= {"frames": sum(1 for _ in clip.frames()), "cbr_target": radio.cbr}
    entries = [entry for entry in entries if point.items() <= entry.items()]
    there = {entry["seed"] for entry in entries}
    fresh = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in (seed for seed in range(given.seeds) if seed not in there):
            row = send_clip(loaded, clip, radio, Path(folder) / f"{seed}.air", seed=seed, precision=given.precision)
            cbr, psnr_db = training_forward(loaded, clip, radio, seed, given)
            entry = point | {"system": row.name, "seed": seed, "deployed_cbr": row.cbr}
            fresh.append(entry | {"training_cbr": cbr, "training_psnr_db": psnr_db})
        if fresh:
            given.airs = [str(Path(folder) / f"{entry['seed']}.air") for entry in fresh]
            again = [f"--{key}={value}" for key in ("input", "size", "frames") if (value := getattr(given, key))]
            again += [part for weights in given.weights for part in ("--weights", weights)]
            command = [sys.executable, __file__, "receive", "--precision", given.precision, *again, "--airs", *given.airs]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            for entry, psnr_db in zip(fresh, json.loads(done.stdout), strict=True):
                entries.append(entry | {"deployed_psnr_db": psnr_db})
    write_list(path, entries)
    for entry in entries:
        print({key: entry[key] for key in ("seed", "deployed_cbr", "training_cbr", "deployed_psnr_db", "training_psnr_db")})


def receive_airs(given: argparse.Namespace) -> None:
    """The receiving process of `agree`: mean PSNR of every air file against the clip, as JSON."""
    (clip,) = clips_of(given, CLIP)
    values = []
    for air in given.airs:
        _, decoded = receive(air, weights=weights_of((given.systems or ("dvst",))[0], given), precision=given.precision)
        measures, source = MetricSet(("psnr_rgb_db",)), clip.frames()
        for part in decoded:
            assert part.frames is not None
            for shown in part.frames[0]:
                measures.update(next(source)[None], shown[None])
        values.append(measures.compute()["psnr_rgb_db"])
    print(json.dumps(values))


def speed(given: argparse.Namespace) -> None:
    """Frames per second of encoder and decoder over sizes and lengths, and the peak memory of one 1080p transmission."""
    path = given.out / "speed.json"
    entries = read_list(path)
    torch.set_num_threads(given.threads)
    cases = [(size, given.frames or 32) for size in given.sizes.split(",")]
    cases += [(given.sizes.split(",")[0], int(count)) for count in given.lengths.split(",")]
    names = given.systems or ("dvst",)
    for condition, precision in ((c, p) for c in given.conditions for p in (("fp32", "bf16") if has_bf16() else ("fp32",))):
        for loaded in load(names, condition, given):
            name, own = loaded.system.name, loaded.weights
            entries = [entry for entry in entries if entry["system"] != name or entry["weights"] == own]
            for size, count in [*dict.fromkeys(cases), ("1920x1080", 8)] if given.large else dict.fromkeys(cases):
                key: dict[str, Any] = {"system": name, "preset": loaded.system.preset, "weights": own}
                key |= {"condition": condition, "precision": precision, "threads": given.threads, "size": size, "frames": count}
                if any(key.items() <= entry.items() for entry in entries):
                    continue
                width, height = (int(side) for side in size.split("x"))
                (clip,) = open_clips(given.input or "scene:demo", size=(width, height), max_frames=count)
                radio = Radio(cbr=(given.cbr or (0.02,))[0])
                runs = [transmit_clip(loaded, clip, radio, precision=precision, metrics=()).row for _ in range(given.repeats)]
                best = max(runs, key=lambda row: 1 / (1 / (row.encode_fps or 1e-9) + 1 / (row.decode_fps or 1e-9)))
                outcome = {"encode_fps": best.encode_fps, "decode_fps": best.decode_fps, "cbr": best.cbr, "peak_mb": None}
                if height >= 1080:
                    args = ["transmit", given.input or "scene:demo", str(given.out / "speed.mp4"), "--size", size]
                    args += ["--max-frames", str(count), "--system", name, "--cbr", str(radio.cbr)]
                    folder = weights_of(name, given)
                    args += ["--weights", folder] if folder else []
                    outcome["peak_mb"] = memory.peak_mb([*args, "--condition", condition, "--precision", precision])
                entries.append(key | outcome)
                write_list(path, entries)
                print(entries[-1], flush=True)


def cards(given: argparse.Namespace) -> None:
    """Write the cards; a figure that no row speaks of is said not to be attempted."""
    for name, text in reproduction.cards(given.out).items():
        given.docs.mkdir(parents=True, exist_ok=True)
        (given.docs / f"{name}.md").write_text(text, encoding="utf-8")
        print(given.docs / f"{name}.md")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "kodak": kodak, "rd": rd, "snr": snr, "drift": drift, "rates": rates, "agree": agree, "speed": speed, "cards": cards,
    "receive": receive_airs, **dvst_figures.FIGURES,
}  # fmt: skip
FRAMES = {"rd": 32, "snr": 32, "drift": 64, "rates": 32, "agree": 8, "speed": 32, "receive": 8, **dvst_figures.FRAMES}


def main() -> None:
    """One part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("out/dvst"), help="folder of the rows")
    parser.add_argument("--input", help="clips in place of the part's own")
    parser.add_argument("--size", help="WxH, as for `semcast transmit`")
    parser.add_argument("--frames", type=int, help="of every clip, in place of the part's own")
    parser.add_argument("--systems", type=lambda text: tuple(text.split(",")), help="in place of the part's own")
    parser.add_argument("--conditions", type=lambda text: tuple(text.split(",")), default=("dvst-paper", "strong"))
    parser.add_argument("--cbr", type=numbers, help="in place of the part's own")
    parser.add_argument("--snr", type=numbers, help="in place of the part's own")
    parser.add_argument("--mismatched", type=numbers, help="SNRs to send at when told 10 dB")
    parser.add_argument("--gops", type=lambda text: tuple(int(part) for part in text.split(",")), default=(4, 16, 64))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--capacity", action="store_true", help="the bounds at capacity as well")
    parser.add_argument("--weights", action="append", default=[], help="checkpoint in place of the shipped one; repeatable")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="of `speed` and `time`")
    parser.add_argument("--repeats", type=int, default=3, help="of `speed` and `time`")
    parser.add_argument("--sizes", default="416x240,208x120,832x480", help="of `speed`")
    parser.add_argument("--lengths", default="8,64", help="of `speed`")
    parser.add_argument("--no-large", dest="large", action="store_false", help="`speed` without 1080p")
    parser.add_argument("--docs", type=Path, default=Path("docs/reproduction"), help="where `cards` writes")
    dvst_figures.add_options(parser)
    parser.add_argument("--airs", nargs="*", default=[], help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.frames = given.frames or FRAMES.get(given.part)
    given.out.mkdir(parents=True, exist_ok=True)
    PARTS[given.part](given)


if __name__ == "__main__":
    main()
