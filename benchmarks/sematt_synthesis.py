"""Part `synthesis` of the study of SemAttJSCC: frames between key frames, synthesised, at equal counted channel use.

Groups of four frames, the second half of CamVid's labelled drive, which nothing was trained or chosen on. Every series meets
the same CBR, a quarter of the key frames' own rate:

    synthesis             maps between key frames, and the generator
    synthesis and motion  maps and a mesh of motion
    without maps          the generator alone; what maps take goes to the key frame
    plain warp            as `synthesis`, the generator as it starts: nothing corrected, nothing filled in
    freeze                what maps take goes to the key frame, which is repeated
    key frames only       every frame by `sematt-jscc`, at a quarter of the rate

In a row, groups are one session; alone, every group is a session, so that nothing is known of motion but what is sent.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from study_rows import read_list, write_list

from semcast.goals import GOALS
from semcast.goals.segmenter import predict, shipped_segmenter
from semcast.metrics.base import MetricSet
from semcast.metrics.task import MeanIou
from semcast.studies.session import Loaded, MapSource, Radio, load_system, transmit_clip
from semcast.systems import SYSTEMS
from semcast.systems.freeze import Freeze
from semcast.systems.sematt.generator import Generator
from semcast.systems.sematt.video import SemAttVideo
from semcast.types import StepResult
from semcast.video.clip import Clip
from semcast.video.io import open_clips

GOP = 4
MEASURES = ("lpips_squeeze", "psnr_rgb_db", "miou")
SERIES = ("synthesis", "synthesis and motion", "without maps", "plain warp", "freeze", "key frames only")
FIRST = 51  # frame of `val` that the second half begins with
KEY_RATES = {"1/12": 1 / 12, "1/6": 1 / 6}


def series(name: str, maps: MapSource, weights: dict[str, Path]) -> Loaded:
    """One of ``SERIES``; ``weights`` are folders of checkpoints by preset, the shipped ones where absent."""
    if name == "key frames only":
        return load_system("sematt-jscc", maps=maps)
    if name == "freeze":
        key = load_system("sematt-jscc", maps=maps)
        return Loaded(Freeze(key.system, GOP).eval(), key.weights, SYSTEMS.get("freeze"), key.condition)
    preset = "motion" if name == "synthesis and motion" else "small"
    loaded = load_system(f"sematt-video:{preset}", maps=maps, weights=weights.get(preset))
    assert isinstance(loaded.system, SemAttVideo)
    if name == "plain warp":
        torch.manual_seed(0)
        loaded.system.generator = Generator(loaded.system.config.generator).eval()
    loaded.system.sends_maps = name != "without maps"
    return loaded


class Watched:
    """What is measured of the frames at every place of a group.

    Attributes:
        at: the measures by place. places: of every frame, in the order of frames.
    """

    def __init__(self) -> None:
        goal = GOALS.get("segment")
        self.at: defaultdict[int, MetricSet] = defaultdict(
            lambda: MetricSet(MEASURES, classes=len(goal.classes), ignore_index=goal.ignore_index)
        )
        self.places: list[int] = []
        assert not self.at[0].unavailable(), "LPIPS needs SqueezeNet 1.1: set $SEMCAST_SQUEEZENET"

    @torch.no_grad()
    def take(self, result: StepResult) -> None:
        """One group, or one frame of those that are alone."""
        shown = result.decoded.frames
        assert shown is not None
        for place, (frame, source) in enumerate(zip(shown[0], result.step.frames[0], strict=True)):
            single = shown.shape[1] == 1 and not result.aux.get("gop")
            self.places.append(len(self.places) % GOP if single else place)
            measures = self.at[self.places[-1]]
            measures.update(source[None], frame[None])
            measures.update_labels(result.step.labels["segmentation"][:1, place], predict(shipped_segmenter(), frame[None]))

    def row(self, places: tuple[int, ...]) -> dict[str, Any]:
        """Means over the frames at these places of their groups; the mIoU is of their pixels together."""
        lpips, psnr = (self._by_frame(name, places) for name in ("lpips_squeeze", "psnr_rgb_db"))
        labels = [self.at[place].metrics["miou"] for place in places]
        return {
            "frames": len(lpips),
            "lpips": sum(lpips) / len(lpips),
            "psnr_db": sum(psnr) / len(psnr),
            "miou": MeanIou.of_confusion(sum(one.confusion for one in labels if isinstance(one, MeanIou))),
            "lpips_by_frame": [round(value, 5) for value in lpips],
        }

    def _by_frame(self, name: str, places: tuple[int, ...]) -> list[float]:
        """A measure of the frames at these places, in the order of frames."""
        left = {place: iter(self.at[place].per_frame().get(name, ())) for place in places}
        return [next(left[place]) for place in self.places if place in left]


def measure(name: str, maps: MapSource, clips: Sequence[Clip], radio: Radio, weights: dict[str, Path]) -> list[dict[str, Any]]:
    """Rows of a series at one operating point: a row per distance from the key frame, and one for all but key frames."""
    loaded, watched = series(name, maps, weights), Watched()
    rows = [
        transmit_clip(loaded, clip, radio, goal="segment", metrics=(), precision="fp32", on_step=watched.take).row
        for clip in clips
    ]
    packets = sum(uses for row in rows for stream, uses in row.streams.items() if stream.partition("/")[0] == "map")
    point = {
        "series": name, "maps": maps, "groups": "alone" if len(clips) > 1 else "in a row", "snr_db": radio.snr_db,
        "cbr_target": radio.cbr, "cbr": sum(row.cbr for row in rows) / len(rows),
        "channel_uses": sum(row.channel_uses for row in rows), "weights": loaded.weights,
        "map_uses": packets if loaded.spec.name == "sematt-video" else 0,
    }  # fmt: skip
    distances = [("between", tuple(range(1, GOP))), *((str(place), (place,)) for place in range(GOP))]
    return [point | {"distance": called} | watched.row(places) for called, places in distances]


def synthesis(given: argparse.Namespace) -> None:
    """Every series at every SNR and rate, predicted maps; with true maps, and groups alone, where `--rates` begins."""
    path = given.out / "synthesis.json"
    entries = read_list(path)
    drive = f"camvid:{given.data}/val"
    clips = {"in a row": open_clips(f"{drive}[{FIRST}:]")}
    whole = range(FIRST, FIRST + clips["in a row"][0].info.n_frames - GOP + 1, GOP)
    clips["alone"] = [clip for at in whole for clip in open_clips(f"{drive}[{at}:{at + GOP}]")]
    weights = {Path(folder).name.rpartition("-")[2]: Path(folder) / "checkpoint" for folder in given.weights}
    cases = (("predicted", "in a row"), ("predicted", "alone"), ("truth", "in a row"))
    for (maps, groups), rate, snr_db in itertools.product(cases, given.rates, given.snr):
        if (maps == "truth" or groups == "alone") and rate != given.rates[0]:
            continue
        radio = Radio(snr_db=snr_db, cbr=KEY_RATES[rate] / GOP)
        for name in given.systems or SERIES:
            at = {"series": name, "maps": maps, "groups": groups, "snr_db": snr_db, "cbr_target": radio.cbr}
            if any(all(entry[key] == value for key, value in at.items()) for entry in entries):
                continue
            found = measure(name, "truth" if maps == "truth" else "predicted", clips[groups], radio, weights)
            entries += found
            write_list(path, entries)
            for entry in found:
                print(
                    f"{name:21} {maps:9} {groups:8} {snr_db:4g} dB  CBR {entry['cbr']:.5f}  distance {entry['distance']:7} "
                    f"LPIPS {entry['lpips']:.4f}  PSNR {entry['psnr_db']:5.2f} dB  mIoU {100 * entry['miou']:5.2f} %",
                    flush=True,
                )
