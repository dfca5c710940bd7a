"""Parts of the study of DVST beside rate and SNR; `dvst_study.py` runs them.

ablations   fig. 14: `dvst:small` beside its presets with something left out, those that there are weights of
segment     fig. 15: what the frozen segmenter sees, on the second half of CamVid's labelled drive
time        section IV-B: encoding time a frame, all systems in turn in one run
pictures    figs. 12, 13: crops of one moment of a rendered scene side by side
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from figure_numbers import PICTURE
from PIL import Image
from study_rows import Shelf, expected, grouping, write_list

from semcast.errors import BudgetError, WeightsError
from semcast.studies.figures import Media, Picture, contact_sheet
from semcast.studies.session import Loaded, Radio, load_system, transmit_clip, weights_name
from semcast.systems import SYSTEMS
from semcast.systems.dvst.config import ABLATIONS
from semcast.video.clip import Clip
from semcast.video.io import open_clips

CONDITION = "dvst-paper"
VIDEO = "../shared/data/eval/video"
CLIPS = f"{VIDEO}/BasketballPass_416x240_50.mkv,{VIDEO}/city_cif.mkv"
CHAINS = ("h264-ldpc", "h265-ldpc")
DRIVE = "val[51:]"  # nothing was trained or chosen on it
SCENE, MOMENT = "scene:demo", 7
SHEET_WIDTH, SHEET_COLOURS = 1080, 128  # so that the file stays small
CROP = (0.30, 0.30, 0.40, 0.55)  # of the picture: left, top, width, height
ABLATION_RATES = (0.01, 0.02, 0.04)
SEGMENT_RATES = (0.005, 0.01, 0.015, 0.025)
PICTURE_RATE, PICTURE_SNRS = 0.02, (2.0, 10.0)


def clips_of(given: argparse.Namespace, default: str) -> list[Clip]:
    """What `--input` names, several divided by commas, or the default of the part."""
    size = tuple(int(side) for side in given.size.split("x")) if given.size else None
    names = (given.input or default).split(",")
    return [clip for name in names for clip in open_clips(name, size=size, max_frames=given.frames)]  # type: ignore[arg-type]


def load(name: str, given: argparse.Namespace) -> Loaded:
    """A system with groups of 4; with the weights from the command line where those are its own, or are lent to it."""
    base, _, preset = name.partition(":")
    spec = SYSTEMS.get(base)
    folders = {weights_name(folder): folder for folder in given.weights}
    preset = preset or spec.presets[0]
    found = [folders[key] for one in (preset, spec.lenders.get(preset, "")) if (key := f"{base}:{one}") in folders]
    return load_system(name, condition=CONDITION, weights=found[0] if found else None)


def measure(shelf: Shelf, loaded: Loaded, clip: Clip, radio: Radio, given: argparse.Namespace, **how: Any) -> None:
    """One row, unless it is there."""
    wanted = expected(loaded, clip, sum(1 for _ in clip.frames()), radio, 0, goal=how.get("goal", "watch"))
    if shelf.has(wanted):
        return
    try:
        row = transmit_clip(loaded, clip, radio, precision=given.precision, **how).row
    except BudgetError as error:
        shelf.refuse(wanted, str(error))
        print(f"{wanted.name} is left out of {clip.name} at CBR {radio.cbr:g}, {radio.snr_db:g} dB: {error}", flush=True)
        return
    shelf.add(row.model_copy(update=grouping(loaded)))
    seen = "" if row.miou is None else f"  mIoU {row.miou:.3f}"
    print(f"{row.name:20} {row.clip:28} {row.snr_db:4g} dB  CBR {row.cbr:.5f}  {row.psnr_rgb_db:6.2f} dB{seen}", flush=True)


def ablations(given: argparse.Namespace) -> None:
    """`dvst:small` and what is left of it without one thing or another, AWGN 10 dB, groups of 4."""
    shelf, clips = Shelf(given.out, "ablations"), clips_of(given, CLIPS)
    names = [f"dvst:{preset}" for preset in ("small", *ABLATIONS)]
    for name in given.systems or names:
        try:
            loaded = load(name, given)
        except WeightsError as error:
            print(f"{name} is not measured: {error}", flush=True)
            continue
        for clip in clips:
            for cbr in given.cbr or ABLATION_RATES:
                measure(shelf, loaded, clip, Radio(cbr=cbr), given, metrics=("psnr_rgb_db", "ms_ssim_rgb_db"))


def segment(given: argparse.Namespace) -> None:
    """mIoU and PSNR over CBR at the size of the paper, AWGN 10 dB, groups of 4, every frame labelled and counted."""
    given.size = given.size or "256x192"
    shelf, clips = Shelf(given.out, "segment"), clips_of(given, f"camvid:{given.camvid}/{DRIVE}")
    systems = [load(name, given) for name in given.systems or ("dvst", "dvst:segment", *CHAINS)]
    for clip in clips:
        for cbr in given.cbr or SEGMENT_RATES:
            for loaded in systems:
                measure(shelf, loaded, clip, Radio(cbr=cbr), given, goal="segment", metrics=("psnr_rgb_db", "miou"))


def times(given: argparse.Namespace) -> None:
    """Encoding time a frame: every system in turn, several rounds, the least of them; `dvst:paper` with random weights."""
    torch.set_num_threads(given.threads)
    (clip,) = clips_of(given, SCENE)
    systems = [_timed(name, given) for name in given.systems or ("dvst:small", "dvst:paper", "dcvc-ldpc", *CHAINS)]
    radio, least = Radio(cbr=(given.cbr or (0.02,))[0]), {}
    for _ in range(given.repeats):
        for loaded in systems:
            row = transmit_clip(loaded, clip, radio, precision=given.precision, metrics=()).row
            assert row.encode_fps is not None
            least[row.name] = min(least.get(row.name, 1e9), 1000 / row.encode_fps)
            print(f"{row.name:20} {1000 / row.encode_fps:9.1f} ms a frame", flush=True)
    frames = sum(1 for _ in clip.frames())
    where = {"clip": clip.name, "size": f"{clip.width}x{clip.height}", "frames": frames, "threads": given.threads}
    where |= {"precision": given.precision, "repeats": given.repeats}
    write_list(given.out / "time.json", [where | {"system": name, "encode_ms": ms} for name, ms in least.items()])


def _timed(name: str, given: argparse.Namespace) -> Loaded:
    """A system to take the time of: what it computes does not depend on its weights."""
    try:
        return load(name, given)
    except WeightsError:
        base, _, preset = name.partition(":")
        torch.manual_seed(0)
        return Loaded(SYSTEMS.get(base).make(preset, CONDITION).eval(), "", SYSTEMS.get(base), CONDITION)


def pictures(given: argparse.Namespace) -> None:
    """One moment of a rendered scene at one CBR over SNRs that the transmitter knows: the sheet, and the rows behind it."""
    (clip,) = clips_of(given, SCENE)
    shelf, media, cbr = Shelf(given.out, "pictures"), [], (given.cbr or (PICTURE_RATE,))[0]
    systems = [load(name, given) for name in given.systems or ("dvst", *CHAINS)]
    for loaded in systems:
        for snr_db in given.snr or PICTURE_SNRS:
            radio = Radio(snr_db=snr_db, cbr=cbr)
            row, moment = transmit_clip(loaded, clip, radio, precision=given.precision, keep_frame=MOMENT)
            shelf.add(row.model_copy(update=grouping(loaded)))
            assert moment is not None
            one, other = cropped(moment.original), cropped(moment.received)
            media.append(Media(row.name, clip.name, "awgn", snr_db, cbr, moment.frame, one, other, f"{row.cbr:.4f},"))
            print(f"{row.name:20} {snr_db:4g} dB  CBR {row.cbr:.5f}  {row.psnr_rgb_db:6.2f} dB", flush=True)
    target = (given.docs / PICTURE).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(media, width=SHEET_WIDTH)).quantize(SHEET_COLOURS, kmeans=2).save(target, optimize=True)
    print(f"{target}, {target.stat().st_size / 1000:.0f} kB")


def cropped(picture: Picture, crop: Sequence[float] = CROP) -> Picture:
    """The part of a picture (H, W, 3) that is shown."""
    height, width = picture.shape[:2]
    left, top = round(crop[0] * width), round(crop[1] * height)
    return picture[top : top + round(crop[3] * height), left : left + round(crop[2] * width)]


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {
    "ablations": ablations,
    "segment": segment,
    "time": times,
    "pictures": pictures,
}
FRAMES = {"ablations": 8, "segment": 24, "time": 8, "pictures": 8}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What only these parts read."""
    parser.add_argument("--camvid", type=Path, default=Path("../shared/data/camvid"), help="of `segment`: CamVid's folder")
